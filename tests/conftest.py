"""Shared fixtures."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from recorded_models import MadeOnce, RecordedModels

from offline_infer.engines import fake

fake.register()

# A shell starts what runs in its background with SIGINT ignored, and children inherit that: the interrupted programs of
# the tests would never notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts a time: a busy machine is not a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

COMMON = pytest.StashKey[Path]()
"""The folder that all workers of a run share; it goes with the run."""


def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", {}).get("common")
    config.stash[COMMON] = Path(given or tempfile.mkdtemp(prefix="offline_infer_tests_"))


def pytest_collection_finish() -> None:
    """An export collects garbage several times, and would look through torch and all tests each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Called by pytest-xdist before a worker starts."""
    node.workerinput["common"] = str(node.config.stash[COMMON])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[COMMON], ignore_errors=True)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of recorded framework answers; tests that need it are skipped where it is absent."""
    named = os.environ.get("OFFLINE_INFER_GOLDENS")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "goldens"
    if not folder.is_dir():
        pytest.skip(f"recorded framework answers not found ({folder}); set OFFLINE_INFER_GOLDENS to their folder")
    return folder


@pytest.fixture(scope="session")
def made_once(pytestconfig: pytest.Config) -> MadeOnce:
    """Folders that are made once for all workers."""
    return MadeOnce(pytestconfig.stash[COMMON])


@pytest.fixture(scope="session")
def recorded_models(goldens: Path, made_once: MadeOnce) -> RecordedModels:
    """The recorded checkpoints as bundles."""
    return RecordedModels(goldens, made_once)
