"""The record that a run of ``predict`` or ``postprocess`` leaves beside its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offline_infer.files import read_json

RUN_RECORD = "offline_infer_run.json"
_LARGEST = 1 << 30


def read_run_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder of results; None where there is none, or it is no JSON object."""
    path = folder / RUN_RECORD
    try:
        record = read_json(path, largest=_LARGEST)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
