"""Finding model folders and the folds in them.

A model folder is what one training run left: nnU-Net v1 (and its UNet++ fork) puts ``plans.pkl`` and ``fold_0/
model_final_checkpoint.model`` with a ``.model.pkl`` beside it there, nnU-Net v2 ``plans.json``, ``dataset.json`` and
``fold_0/checkpoint_final.pth``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offline_infer.errors import CheckpointError, Remedy

Kind = Literal["nnunet_v1", "nnunet_v2"]

MAX_SEARCH_DEPTH = 6
MAX_SEARCHED = 4000


@dataclass(frozen=True)
class Layout:
    """Where a framework puts its folds and weights.

    Attributes:
        kind: the framework.
        suffix: of a weights file.
        default_checkpoint: the name its predictor takes when none is given, without the suffix.
        all_folder: name of the folder of a model trained on all cases.
        plans: file in the model folder that is there in any case.
    """

    kind: Kind
    suffix: str
    default_checkpoint: str
    all_folder: str
    plans: str


LAYOUTS = (
    Layout("nnunet_v1", ".model", "model_final_checkpoint", "all", "plans.pkl"),
    Layout("nnunet_v2", ".pth", "checkpoint_final", "fold_all", "plans.json"),
)


@dataclass(frozen=True)
class Fold:
    """One fold's weights file. ``name`` is the number as text, or ``all``."""

    name: str
    path: Path


def recognise(folder: Path) -> Layout | None:
    """The layout of a model folder, or None if the folder is not one."""
    for layout in LAYOUTS:
        if _fold_folders(folder, layout) or (folder / layout.plans).is_file():
            return layout
    return None


def candidates(path: Path) -> list[Path]:
    """Model folders near a path that is not one itself: above it, otherwise below it."""
    for parent in [path, *path.parents][:4]:
        if parent.is_dir() and recognise(parent):
            return [parent]
    found: list[Path] = []
    for searched, (root, names, _) in enumerate(os.walk(path), start=1):
        here = Path(root)
        if recognise(here):
            found.append(here)
            names.clear()
        elif len(here.relative_to(path).parts) >= MAX_SEARCH_DEPTH:
            names.clear()
        names.sort()
        if searched >= MAX_SEARCHED:
            break
    return found


def choose_folds(
    folder: Path, layout: Layout, folds: Sequence[str] | None, checkpoint_name: str | None
) -> tuple[list[Fold], list[str]]:
    """The folds to use, in the framework's order, and notes about what was left out.

    Args:
        folder: a model folder.
        layout: its layout.
        folds: names such as ``"0"``, ``"fold_0"`` or ``"all"``; None takes what the framework's predictor takes: every
            fold folder, and the one trained on all cases only if it is asked for or (v2) there is no other.
        checkpoint_name: with or without suffix; None takes the framework's default.

    Raises:
        CheckpointError: no fold, an unknown fold, or a fold without that checkpoint; the message lists what is there.
    """
    present = _fold_folders(folder, layout)
    name = (checkpoint_name or layout.default_checkpoint).removesuffix(layout.suffix)
    if not present:
        raise CheckpointError(
            f"{folder} has no fold folder with a *{layout.suffix} file; expected for example "
            f"{folder.name}/fold_0/{layout.default_checkpoint}{layout.suffix}"
        )
    file = f"{name}{layout.suffix}"
    if folds is None:
        chosen, notes = _default_folds(folder, layout, present, file)
    else:
        chosen, notes = _named_folds(folder, present, folds), []
    return [Fold(fold, _weights(present[fold], file, layout)) for fold in chosen], notes


def _default_folds(folder: Path, layout: Layout, present: Mapping[str, Path], file: str) -> tuple[list[str], list[str]]:
    """What the framework's predictor takes, and notes about what it leaves out."""
    notes: list[str] = []
    chosen = [fold for fold in present if fold != "all"] or ["all"]
    all_cases = Remedy("name-folds", {"folds": "all"})
    if chosen == ["all"] and layout.kind == "nnunet_v1":
        raise CheckpointError(
            f"{folder} holds only a model trained on all cases, which has to be asked for", remedy=all_cases
        )
    if layout.kind == "nnunet_v2":
        complete = [fold for fold in chosen if (present[fold] / file).is_file()]
        left_out = [fold for fold in chosen if fold not in complete]
        if complete and left_out:
            notes.append(f"fold {', '.join(left_out)} left out: no {file} (nnU-Net leaves it out too)")
            chosen = complete
    empty = sorted(
        child.name
        for child in folder.glob("fold_*")
        if child.is_dir() and child.name[5:].isdecimal() and _fold_name(child.name) not in present
    )
    if empty:
        notes.append(f"{', '.join(empty)} left out: no *{layout.suffix} file")
    if "all" in present and chosen != ["all"]:
        notes.append(f"the model trained on all cases (fold all) was not used {all_cases}")
    return chosen, notes


def _named_folds(folder: Path, present: Mapping[str, Path], folds: Sequence[str]) -> list[str]:
    chosen = list(dict.fromkeys(_fold_name(fold) for fold in folds))
    unknown = [fold for fold in chosen if fold not in present]
    if unknown or not chosen:
        raise CheckpointError(
            f"{folder} has no fold {', '.join(unknown) or '(none asked for)'}; it has {', '.join(present)}"
        )
    return chosen


def _weights(fold_folder: Path, file: str, layout: Layout) -> Path:
    path = fold_folder / file
    if not path.is_file():
        there = sorted(found.name for found in fold_folder.glob(f"*{layout.suffix}"))
        raise CheckpointError(
            f"{path} is missing; {fold_folder.name} has {', '.join(there) or 'no weights'}", remedy="name-checkpoint"
        )
    return path


def _fold_folders(folder: Path, layout: Layout) -> dict[str, Path]:
    """Fold name -> folder, for folders that hold a weights file; numbers first, in order."""
    found: dict[str, Path] = {}
    try:
        children = [child for child in folder.iterdir() if child.is_dir()]
        for child in children:
            if child.name != layout.all_folder and not re.fullmatch(r"fold_\d+", child.name):
                continue
            if any(child.glob(f"*{layout.suffix}")):
                found["all" if child.name == layout.all_folder else _fold_name(child.name)] = child
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error
    return dict(sorted(found.items(), key=lambda item: (item[0] == "all", item[0].zfill(9))))


def _fold_name(text: str) -> str:
    """``fold_0`` and ``0`` are the same fold; so are ``fold_all`` and ``all``."""
    name = str(text).removeprefix("fold_")
    return str(int(name)) if name.isdecimal() else name
