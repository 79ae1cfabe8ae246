"""torch's own exporter, called in one way."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from offline_infer.errors import ExportError, OfflineInferError

if TYPE_CHECKING:
    import torch
    from torch import nn


def require_packages() -> None:
    """Refuse before any work is done where a package is missing that every export needs; loads none of them.

    Raises:
        ExportError: torch or onnx is not installed.
    """
    missing = [name for name in ("torch", "onnx") if find_spec(name) is None]
    if missing:
        raise ExportError(f"export needs {' and '.join(missing)}, not installed here", remedy="install-export")


def import_torch() -> Any:
    """torch, or a readable refusal.

    Raises:
        ExportError: it is not installed.
    """
    try:
        import torch
        import torch.onnx
    except ImportError as error:
        raise ExportError(f"export needs torch, which cannot be imported ({error})", remedy="install-export") from error
    return torch


def write_onnx(
    network: nn.Module,
    example: torch.Tensor | list[torch.Tensor],
    opset: int,
    input_name: str,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> bytes:
    """The network as torch writes it.

    Args:
        example: an input, batch axis first; a list where the network takes a list of images.
        output_names: None leaves them to torch.
        dynamic_axes: name -> axis -> what to call its size, for axes of any size.

    Raises:
        ExportError: torch cannot trace it.
    """
    torch = import_torch()
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # It warns of shapes taken as constants (they are) and of instance norm "in training mode", which is how it
            # calls a norm without running statistics. What was written is checked instead.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (example,),
                buffer,
                dynamo=False,  # the default has changed between torch releases
                opset_version=opset,
                input_names=[input_name],
                output_names=None if output_names is None else list(output_names),
                dynamic_axes=dynamic_axes,
                do_constant_folding=True,
            )
    except OfflineInferError:
        raise
    except Exception as error:  # whatever a network or the exporter may raise
        text = " ".join(str(error).split())[:400]
        raise ExportError(
            f"torch {torch.__version__} cannot export {type(network).__name__} at opset {opset}: {text}"
        ) from error
    return buffer.getvalue()
