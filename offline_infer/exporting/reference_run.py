"""What a torch network itself computes: the reference every exported graph is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import ExportError
from offline_infer.exporting.torch_export import import_torch
from offline_infer.exporting.verification import HALF_MAX

if TYPE_CHECKING:
    from torch import nn

FloatArray = npt.NDArray[np.float32]


@dataclass
class References:
    """What the network itself computed.

    Attributes:
        torch: version.
        heads: input name -> its heads, the final one first.
        peak: largest absolute activation and the module it came from.
        half: input name -> the final head when everything between layers is stored in half precision.
    """

    torch: str
    heads: dict[str, list[FloatArray]] = field(default_factory=dict)
    peak: dict[str, Any] = field(default_factory=dict)
    half: dict[str, FloatArray] = field(default_factory=dict)


def reference_run(network: nn.Module, probes: dict[str, FloatArray], precision: str) -> References:
    """Run the network on every input. For ``fp16`` its weights are rounded afterwards: do not use it again."""
    torch = import_torch()
    found = References(str(torch.__version__))
    peaks: dict[str, float] = {}
    with torch.inference_mode():
        with _watched(network, peaks):
            for name, image in probes.items():
                found.heads[name] = _run(network, image)
                if not all(np.isfinite(head).all() for head in found.heads[name]):
                    raise ExportError(f"the checkpoint's own network gives NaN or infinity for the input {name!r}")
        if precision == "fp16":
            with _half_storage(network):
                for name, image in probes.items():
                    found.half[name] = _run(network, image.astype(np.float16).astype(np.float32))[0]
    module = max(peaks, key=lambda name: peaks[name], default="")
    found.peak = {"value": float(f"{peaks.get(module, 0.0):.6g}"), "module": module}
    return found


def _run(network: nn.Module, image: FloatArray) -> list[FloatArray]:
    answer = network(import_torch().from_numpy(image))
    heads = list(answer) if isinstance(answer, (list, tuple)) else [answer]
    return [np.array(head.float().numpy()) for head in heads]


@contextmanager
def _watched(network: nn.Module, peaks: dict[str, float]) -> Iterator[None]:
    """Record the largest absolute value of every layer's output, which half precision has to represent."""
    torch = import_torch()

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel():
                low, high = torch.aminmax(output)
                peaks[name] = max(peaks.get(name, 0.0), -float(low), float(high))

        return hook

    with _hooked(network, watch):
        yield


@contextmanager
def _half_storage(network: nn.Module) -> Iterator[None]:
    """Round weights and every layer's result to float16, as an accelerator stores them; sums stay float32.

    No engine on a CPU does that: they compute half-precision graphs in float32 throughout and would hide an overflow.
    """
    torch = import_torch()

    def round_output(name: str) -> Callable[..., Any]:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            return output.half().float() if isinstance(output, torch.Tensor) else output

        return hook

    for module in network.modules():
        if "Norm" not in type(module).__name__:
            for parameter in module.parameters(recurse=False):
                parameter.copy_(parameter.clamp(-HALF_MAX, HALF_MAX).half().float())
    with _hooked(network, round_output):
        yield


@contextmanager
def _hooked(network: nn.Module, make: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    """A forward hook on every module that has no modules inside."""
    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(make(name)) for name, module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
