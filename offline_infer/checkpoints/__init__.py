"""Checkpoint readers: from what a training framework left behind to a description that needs no framework.

Nothing a checkpoint's pickles name is imported or executed, and reading needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offline_infer.checkpoints.description import CheckpointDescription, NetworkDescription, Weights
from offline_infer.errors import CheckpointError

__all__ = ["CheckpointDescription", "NetworkDescription", "Weights", "read_checkpoint"]

_LAYOUTS_HELP = (
    "a model folder of nnU-Net v1 or UNet++ holds plans.pkl and fold_0/model_final_checkpoint.model(.pkl); one of "
    "nnU-Net v2 holds plans.json, dataset.json and fold_0/checkpoint_final.pth"
)


def read_checkpoint(
    path: str | Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint_name: str | None = None,
    configuration: str | None = None,
) -> CheckpointDescription:
    """Understand a model folder, or a zip archive of one.

    Args:
        path: a model folder of nnU-Net v1, its UNet++ fork or nnU-Net v2, or a zip archive that holds one. An archive
            is unpacked into a temporary folder that lives as long as the answer's ``load_weights``.
        folds: ``"0"``, ``"1"``, ..., or ``"all"``; None takes those the framework's own predictor would take.
        checkpoint_name: such as ``model_best`` or ``checkpoint_best``; None takes the final one.
        configuration: such as ``3d_fullres``: which model of an archive that holds several; for a folder, what it must
            be.

    Raises:
        UnsafePickleError: a pickle names something outside the closed table; nothing was executed.
        CheckpointError: not a model folder (nearby ones are listed), or one that is damaged, unknown or contradictory.
    """
    given = Path(path)
    from offline_infer.checkpoints.archive import is_model_archive

    if is_model_archive(given) or (given.is_file() and given.suffix == ".zip"):
        return _read_archive(given, folds, checkpoint_name, configuration)
    from offline_infer.checkpoints.folders import candidates, recognise

    if not given.exists():
        raise CheckpointError(f"{given} does not exist; {_LAYOUTS_HELP}")
    if not given.is_dir() or recognise(given) is None:
        near = candidates(given)
        found = "; did you mean " + " or ".join(str(folder) for folder in near[:8]) if near else ""
        kind = "a folder" if given.is_dir() else "a file"
        raise CheckpointError(f"{given} is {kind}, not a model folder{found}. What is expected: {_LAYOUTS_HELP}")
    return _read_folder(given, folds, checkpoint_name, configuration, None)


def _read_folder(
    folder: Path, folds: Sequence[str] | None, checkpoint_name: str | None, configuration: str | None, keep: Any
) -> CheckpointDescription:
    from offline_infer.checkpoints.folders import recognise
    from offline_infer.checkpoints.v1 import reader as nnunet_v1
    from offline_infer.checkpoints.v2 import reader as nnunet_v2

    layout = recognise(folder)
    reader = nnunet_v2.read if layout is not None and layout.kind == "nnunet_v2" else nnunet_v1.read
    description = reader(folder, folds, checkpoint_name, keep)
    actual = description.spec.source.configuration
    if configuration is not None and configuration != actual:
        raise CheckpointError(f"{folder} holds the configuration {actual}, not {configuration}")
    return description


def _read_archive(
    path: Path, folds: Sequence[str] | None, checkpoint_name: str | None, configuration: str | None
) -> CheckpointDescription:
    from offline_infer.checkpoints.archive import unpack
    from offline_infer.checkpoints.folders import candidates

    temporary = unpack(path)
    try:
        found = candidates(temporary.path)
        if configuration is not None:
            found = [folder for folder in found if _is_of(folder.relative_to(temporary.path), configuration)]
        names = ", ".join(str(folder.relative_to(temporary.path)) for folder in found)
        if not found:
            wanted = f" of configuration {configuration}" if configuration else ""
            raise CheckpointError(f"{path} holds no model folder{wanted}; {_LAYOUTS_HELP}")
        if len(found) > 1:
            raise CheckpointError(f"{path} holds {len(found)} models ({names})", remedy="name-configuration")
        return _read_folder(found[0], folds, checkpoint_name, configuration, temporary)
    except BaseException:
        temporary.remove()
        raise


def _is_of(folder: Path, configuration: str) -> bool:
    """Whether a model folder's path names the configuration: v1 as a parent folder, v2 behind the last ``__``."""
    return configuration in folder.parts or folder.name.split("__")[-1] == configuration
