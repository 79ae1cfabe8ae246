"""The image that belongs to a label map, by nnU-Net's naming."""

from __future__ import annotations

from pathlib import Path

from offline_infer.proof.evaluation.pairs import LABEL_ENDINGS


def image_of(folder: Path | None, case: str, channel: int = 0) -> Path | None:
    """The image of a case in a folder with nnU-Net's naming; a name without a number is the only channel. A file is the
    image of any case."""
    if folder is None or folder.is_file():
        return folder
    stems = (f"{case}_{channel:04d}", case) if channel == 0 else (f"{case}_{channel:04d}",)
    candidates = (folder / f"{stem}{ending}" for stem in stems for ending in LABEL_ENDINGS)
    return next((path for path in candidates if path.is_file()), None)
