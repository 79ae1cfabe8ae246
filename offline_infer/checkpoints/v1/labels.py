"""Names for the labels of an nnU-Net v1 model: its plans hold none, so they are given, or stand in a dataset.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from offline_infer.checkpoints.fields import printable, read_json, shown
from offline_infer.checkpoints.v1.trainers import BRATS_ORDER, BRATS_REGIONS, Traits
from offline_infer.errors import UsageError
from offline_infer.spec import Labels

_LISTED = 20  # labels named in a message


def read_labels(folder: Path, trainer: str, traits: Traits, classes: int, given: Mapping[str, int] | None) -> Labels:
    """What the outputs mean.

    Args:
        folder: the model folder, which may hold a ``dataset.json``.
        trainer: class name.
        traits: what that trainer changes about inference.
        classes: number of outputs, background included.
        given: name -> value of every foreground label; None or empty takes the stored names, or ``label 1`` and so on.

    Raises:
        UsageError: the names given are not one for every foreground label.
        CheckpointError: ``dataset.json`` is damaged.
    """
    if traits.regions:
        if given:
            raise UsageError(f"trainer {trainer} predicts regions, whose names are known")
        return Labels(names=BRATS_REGIONS, regions_class_order=BRATS_ORDER)
    found = _checked(given, classes) if given else _stored(folder / "dataset.json")
    names: dict[str, int | tuple[int, ...]] = {"background": 0}
    for value in range(1, classes):
        name = found.get(value, f"label {value}")
        names[name if name not in names else f"label {value}"] = value
    return Labels(names=names, channel_values=tuple(range(classes)))


def _checked(given: Mapping[str, int], classes: int) -> dict[int, str]:
    """Value -> name, for exactly the foreground labels."""
    foreground = {name: value for name, value in given.items() if (name, value) != ("background", 0)}
    expected = range(1, classes)
    named = all(name and name.isprintable() and name != "background" for name in foreground)
    if not named or sorted(foreground.values()) != list(expected):
        legal = ", ".join(str(value) for value in expected[:_LISTED]) + (", ..." if classes > _LISTED + 1 else "")
        raise UsageError(
            f"the labels {shown(dict(given), 200)} do not name every foreground label once; this model has {legal}",
            remedy="name-labels",
        )
    return {value: name for name, value in foreground.items()}


def _stored(path: Path) -> dict[int, str]:
    """Value -> name, as far as the file tells."""
    if not path.is_file():
        return {}
    content = read_json(path).raw("labels", {})
    if not isinstance(content, Mapping):
        return {}
    numbered = {str(key): value for key, value in content.items() if re.fullmatch(r"[0-9]{1,6}", str(key))}
    return {int(key): printable(value, f"{path}: the name of label {key}") for key, value in numbered.items()}
