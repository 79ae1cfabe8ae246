"""What a checkpoint reader hands over: a specification, a network to rebuild, and where the weights are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offline_infer.spec import VolumeSpec

Weights = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class NetworkDescription:
    """A network as plain data, enough to rebuild it.

    Attributes:
        kind: ``unetplusplus`` and ``generic_unet`` are reimplemented in :mod:`offline_infer.networks`; ``dynamic`` is
            a class of ``dynamic_network_architectures`` (imported at export time only).
        class_name: the framework's class name (for ``dynamic``: the full dotted name).
        arguments: plain numbers, strings and lists; what they mean is the builder's contract.
        input_channels, output_channels: of the network, previous-stage channels included.
        patch_size: spatial shape of the input, network axis order.
        parameters: scalars in the checkpoint's state dict, which bounds what is built; None where it is not known.
    """

    kind: Literal["unetplusplus", "generic_unet", "dynamic"]
    class_name: str
    arguments: Mapping[str, Any]
    input_channels: int
    output_channels: int
    patch_size: tuple[int, ...]
    parameters: int | None = None


@dataclass(frozen=True)
class Selection:
    """Which part of a checkpoint to read, and what is known of it beforehand.

    Attributes:
        folds: ``"0"``, ``"1"``, ..., or ``"all"``; None takes those the framework's own predictor would take.
        checkpoint_name: such as ``model_best`` or ``checkpoint_best``; None takes the final one.
        configuration: such as ``3d_fullres``: which model of an archive that holds several; for a folder, what it must
            be.
        labels: name -> value of every foreground label, for frameworks that do not store names.
        expect_sha256: digests its publisher gives: of the archive, or of every weights file that is used. Empty accepts
            any file.
    """

    folds: Sequence[str] | None = None
    checkpoint_name: str | None = None
    configuration: str | None = None
    labels: Mapping[str, int] | None = None
    expect_sha256: Sequence[str] = ()


@dataclass(frozen=True)
class CheckpointDescription:
    """What was read from a checkpoint folder.

    Attributes:
        spec: everything inference needs except ``outputs`` and ``graphs``, which export fills in.
        network: the network to rebuild.
        load_weights: fold name -> state dict as NumPy arrays (no torch, no pickle executed).
        notes: things worth telling the user (unknown trainer, missing fold, ...).
    """

    spec: VolumeSpec
    network: NetworkDescription
    load_weights: Callable[[str], Weights] = field(repr=False)
    notes: tuple[str, ...] = ()


def parameter_count(weights: Mapping[str, npt.NDArray[np.generic]]) -> int:
    """Number of scalars in a state dict."""
    return int(sum(array.size for array in weights.values()))
