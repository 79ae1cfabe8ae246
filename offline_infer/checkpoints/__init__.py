"""Checkpoint readers: from what a training framework left behind to a description that needs no framework.

Nothing a checkpoint's pickles name is imported or executed, and reading needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offline_infer.checkpoints.description import CheckpointDescription, NetworkDescription, Selection, Weights
from offline_infer.errors import CheckpointError

__all__ = ["CheckpointDescription", "NetworkDescription", "Selection", "Weights", "read_checkpoint", "read_selected"]

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
    labels: Mapping[str, int] | None = None,
    expect_sha256: Sequence[str] = (),
) -> CheckpointDescription:
    """Read a model folder, or a zip archive of one.

    Args:
        path: a model folder of nnU-Net v1, its UNet++ fork or nnU-Net v2, or a zip archive that holds one. An archive
            is unpacked into a temporary folder that lives as long as the answer's ``load_weights``.
        folds, checkpoint_name, configuration, labels, expect_sha256: see :class:`Selection`.

    Raises:
        UnsafePickleError: a pickle names something outside the closed table; nothing was executed.
        CheckpointError: not a model folder (nearby ones are listed), or one that is damaged, unknown, contradictory, or
            not the expected one.
        UsageError: labels or digests that cannot be.
    """
    return read_selected(Path(path), Selection(folds, checkpoint_name, configuration, labels, tuple(expect_sha256)))


def read_selected(given: Path, selection: Selection) -> CheckpointDescription:
    """:func:`read_checkpoint` with its options in one record."""
    from offline_infer.checkpoints.archive import is_model_archive
    from offline_infer.checkpoints.folders import candidates, recognise

    if is_model_archive(given) or (given.is_file() and given.suffix == ".zip"):
        return _read_archive(given, selection)
    if not given.exists():
        raise CheckpointError(f"{given} does not exist; {_LAYOUTS_HELP}")
    if not given.is_dir() or recognise(given) is None:
        near = candidates(given)
        found = "; did you mean " + " or ".join(str(folder) for folder in near[:8]) if near else ""
        kind = "a folder" if given.is_dir() else "a file"
        raise CheckpointError(f"{given} is {kind}, not a model folder{found}. What is expected: {_LAYOUTS_HELP}")
    return _read_folder(given, selection, None)


def _read_folder(folder: Path, selection: Selection, keep: Any) -> CheckpointDescription:
    from offline_infer.checkpoints.folders import recognise
    from offline_infer.checkpoints.v1 import reader as nnunet_v1
    from offline_infer.checkpoints.v2 import reader as nnunet_v2

    layout = recognise(folder)
    reader = nnunet_v2.read if layout is not None and layout.kind == "nnunet_v2" else nnunet_v1.read
    description = reader(folder, selection, keep)
    actual, wanted = description.spec.source.configuration, selection.configuration
    if wanted is not None and wanted != actual:
        raise CheckpointError(f"{folder} holds the configuration {actual}, not {wanted}")
    return description


def _read_archive(path: Path, selection: Selection) -> CheckpointDescription:
    from offline_infer.checkpoints.archive import unpack
    from offline_infer.checkpoints.digests import sha256
    from offline_infer.checkpoints.folders import candidates

    if selection.expect_sha256 and sha256(path) in [text.lower() for text in selection.expect_sha256]:
        selection = replace(selection, expect_sha256=())  # it covers everything inside
    temporary = unpack(path)
    try:
        found = candidates(temporary.path)
        if selection.configuration is not None:
            found = [folder for folder in found if _is_of(folder.relative_to(temporary.path), selection.configuration)]
        names = ", ".join(str(folder.relative_to(temporary.path)) for folder in found)
        if not found:
            wanted = f" of configuration {selection.configuration}" if selection.configuration else ""
            raise CheckpointError(f"{path} holds no model folder{wanted}; {_LAYOUTS_HELP}")
        if len(found) > 1:
            raise CheckpointError(f"{path} holds {len(found)} models ({names})", remedy="name-configuration")
        return _read_folder(found[0], selection, temporary)
    except BaseException:
        temporary.remove()
        raise


def _is_of(folder: Path, configuration: str) -> bool:
    """Whether a model folder's path names the configuration: v1 as a parent folder, v2 behind the last ``__``."""
    return configuration in folder.parts or folder.name.split("__")[-1] == configuration
