"""Copying a state dict of NumPy arrays into a torch module, strictly and with readable errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from offline_infer.checkpoints.fields import shown
from offline_infer.checkpoints.state_dict import strip_prefixes
from offline_infer.errors import CheckpointError


def copy_weights(module: nn.Module, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """See :func:`offline_infer.networks.load_weights`."""
    given = strip_prefixes(weights)
    targets = module.state_dict(keep_vars=True)
    # A parameter that the module holds under several names is one object: group the names by identity.
    names_of: dict[int, list[str]] = {}
    for name, tensor in targets.items():
        names_of.setdefault(id(tensor), []).append(name)
    missing = [names[0] for names in names_of.values() if not any(name in given for name in names)]
    unexpected = [shown(name, 200) for name in given if name not in targets]
    misshapen = [
        f"{name} is {tuple(given[name].shape)}, the network wants {tuple(tensor.shape)}"
        for name, tensor in targets.items()
        if name in given and tuple(given[name].shape) != tuple(tensor.shape)
    ]
    problems = [
        *_listed("missing", missing),
        *_listed("unexpected", unexpected),
        *_listed("of the wrong shape", misshapen),
    ]
    if problems:
        raise CheckpointError(
            f"the weights do not fit {type(module).__name__}: {'; '.join(problems)}; the checkpoint's trainer may have "
            "built another network than its plans describe"
        )
    with torch.no_grad():
        for names in names_of.values():
            present = [name for name in names if name in given]
            first = given[present[0]]
            for name in present[1:]:
                other = given[name]
                if other is not first and not np.array_equal(other, first, equal_nan=first.dtype.kind in "fc"):
                    raise CheckpointError(
                        f"{present[0]} and {name} are one parameter of {type(module).__name__} but the checkpoint "
                        "holds different values for them; the file is damaged or was edited"
                    )
            source = np.asarray(first, order="C")
            targets[present[0]].copy_(torch.from_numpy(source if source.flags.writeable else source.copy()))


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    found = list(names)
    if not found:
        return []
    first = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    return [f"{len(found)} {kind} ({first})"]
