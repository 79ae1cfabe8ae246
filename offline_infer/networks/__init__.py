"""Networks whose parameter names are those of published checkpoints.

Nothing heavy is imported here; torch arrives when a network is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offline_infer.checkpoints.limits import MAX_EXCESS, SMALL_NETWORK
from offline_infer.errors import CheckpointError, ExportError

if TYPE_CHECKING:
    from torch import nn

    from offline_infer.checkpoints.description import NetworkDescription, Weights

__all__ = ["build", "load_weights"]


def build(description: NetworkDescription, deep_supervision: bool = False) -> nn.Module:
    """Build the network a checkpoint was trained with, in evaluation mode, with weights not yet loaded.

    Args:
        description: from a checkpoint reader.
        deep_supervision: False gives one output, the final logits (n, k, *patch). True gives a tuple or list of all
            heads, the final one first.

    Raises:
        ExportError: torch or another library that is needed is not installed.
        CheckpointError: the description does not fit together, or names a network that cannot be built.
    """
    try:
        _refuse_excess(description, deep_supervision)
        network = _build(description, deep_supervision)
    except ImportError as error:
        raise ExportError(
            f"building {description.class_name} needs a library that is not installed ({error})",
            remedy="install-export",
        ) from error
    except (ValueError, TypeError, AssertionError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"the network {description.class_name} cannot be built from the checkpoint's plans: {error}"
        ) from error
    return network.eval()


def load_weights(module: nn.Module, weights: Weights) -> None:
    """Copy a state dict into a network, strictly: every parameter must be given and every entry must be used.

    Prefixes that data-parallel training (``module.``) and ``torch.compile`` (``_orig_mod.``) leave are removed. A
    tensor the network holds under several names (nnU-Net v2 does) needs to be given under one of them.

    Args:
        module: from :func:`build`.
        weights: names and arrays, from ``CheckpointDescription.load_weights``.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped entries; the first of each are named.
    """
    from offline_infer.networks.loading import copy_weights

    copy_weights(module, weights)


def _refuse_excess(description: NetworkDescription, deep_supervision: bool) -> None:
    """Build the network without memory first: plans can ask for any number of features, the weights show how many.

    Raises:
        CheckpointError: the network would have many more parameters than the checkpoint.
    """
    import torch

    if description.parameters is None:
        return
    try:
        with torch.device("meta"):
            draft = _build(description, deep_supervision)
    except (RuntimeError, NotImplementedError):
        return  # a class that computes with its parameters while it is built; its arguments are bounded by the reader
    count = sum(parameter.numel() for parameter in draft.parameters())
    if count > MAX_EXCESS * description.parameters + SMALL_NETWORK:
        raise CheckpointError(
            f"the plans describe a {description.class_name} of {count:,} parameters, the checkpoint holds "
            f"{description.parameters:,}; they are not from one training"
        )


def _build(description: NetworkDescription, deep_supervision: bool) -> nn.Module:
    arguments: dict[str, Any] = dict(description.arguments)
    if description.kind == "dynamic":
        from offline_infer.networks.dynamic import build_dynamic

        return build_dynamic(description, deep_supervision)
    channels = (description.input_channels, arguments.pop("base_features"), description.output_channels)
    if description.kind == "unetplusplus":
        from offline_infer.networks.unetplusplus import UNetPlusPlus

        return UNetPlusPlus(*channels, **arguments, deep_supervision=deep_supervision)
    from offline_infer.networks.generic_unet import GenericUNet

    return GenericUNet(*channels, **arguments, deep_supervision=deep_supervision)
