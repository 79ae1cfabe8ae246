"""The record that a run of ``predict`` or ``postprocess`` leaves beside its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN_RECORD = "offline_infer_run.json"
_LARGEST = 1 << 30


def read_run_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder of results; None where there is none, or it is no JSON object."""
    path = folder / RUN_RECORD
    try:
        if path.stat().st_size > _LARGEST:
            return None
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
