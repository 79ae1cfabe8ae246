"""State dicts as references to tensors, and whether two folds describe the same network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offline_infer.checkpoints.description import NetworkDescription
from offline_infer.checkpoints.fields import shown
from offline_infer.checkpoints.limits import MAX_TEXT
from offline_infer.checkpoints.pickles.torch_file import TensorRef
from offline_infer.errors import CheckpointError
from offline_infer.spec import VolumeSpec

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What data-parallel training and ``torch.compile`` put before every name."""


def state_dict(content: Any, origin: str) -> dict[str, TensorRef]:
    """The entries of a state dict without wrapper prefixes.

    Raises:
        CheckpointError: not a dictionary of tensors, or an empty one.
    """
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{origin}: the state dict is empty or not a dictionary")
    result: dict[str, TensorRef] = {}
    for key, value in content.items():
        if not isinstance(key, str) or len(key) > MAX_TEXT or not isinstance(value, TensorRef):
            raise CheckpointError(f"{origin}: state dict entry {shown(key)} is a {type(value).__name__}, not a tensor")
        result[key] = value
    return strip_prefixes(result)


def strip_prefixes(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The same entries with wrapper prefixes removed, where all of them carry one."""
    result = dict(entries)
    changed = True
    while changed:
        changed = False
        for prefix in WRAPPER_PREFIXES:
            if result and all(name.startswith(prefix) for name in result):
                result = {name[len(prefix) :]: value for name, value in result.items()}
                changed = True
    return result


def differing(
    first: VolumeSpec, other: VolumeSpec, network: NetworkDescription, other_network: NetworkDescription
) -> list[str]:
    """Names of the specification's fields in which two folds differ, their fold records aside."""
    a, b = first.model_dump(), other.model_dump()
    for record in (a, b):
        record["source"].pop("folds")
    names = [name for name in a if a[name] != b[name]]
    return [*names, *(["network"] if network != other_network else [])]
