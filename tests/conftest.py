"""Shared fixtures."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from offline_infer.engines import fake

fake.register()

# A shell starts what runs in its background with SIGINT ignored, and children inherit that: the interrupted programs of
# the tests would never notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts a time: a busy machine is not a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of recorded framework answers; tests that need it are skipped where it is absent."""
    named = os.environ.get("OFFLINE_INFER_GOLDENS")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "goldens"
    if not folder.is_dir():
        pytest.skip(f"recorded framework answers not found ({folder}); set OFFLINE_INFER_GOLDENS to their folder")
    return folder
