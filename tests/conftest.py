"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from offline_infer.engines import fake

fake.register()

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
