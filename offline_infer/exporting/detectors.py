"""torch detector -> verified ONNX graph with the three fixed outputs ``dets``, ``labels`` and ``masks``.

The graph takes any height and width, or one canvas. It is compared with the network it was made from on every engine that is
installed: pairs of detections, not raw numbers, because a rounding error may exchange two of nearly equal score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offline_infer import graph as passes
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import ExportError, OfflineInferError
from offline_infer.exporting.torch_export import import_torch, write_onnx

if TYPE_CHECKING:
    from torch import nn

FloatArray = npt.NDArray[np.float32]
Answers = Mapping[str, npt.NDArray[Any]]
Judge = Callable[[Sequence[Answers], Sequence[Answers]], dict[str, Any]]
"""(answers, reference answers) -> ``status`` (``ok`` or ``failed`` with a ``reason``) and figures."""

NAMES = ("dets", "labels", "masks")
OPSETS = range(16, 18)
"""RoIAlign with half-pixel alignment came with opset 16; Ascend's parser reads up to 17."""
INPUT = "image"
_TRACED = (96, 128)  # any size would do


@dataclass(frozen=True)
class DetectorShapes:
    """Shapes of the graph.

    Attributes:
        channels: of the input.
        canvas: (height, width) of the only input the graph takes; None for any.
        limit: rows of the outputs; mask_size: side of a mask.
    """

    channels: int
    canvas: tuple[int, int] | None
    limit: int
    mask_size: int

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        return {"dets": (self.limit, 5), "labels": (self.limit,), "masks": (self.limit, self.mask_size, self.mask_size)}


def trace_detector(network: nn.Module, shapes: DetectorShapes, opset: int) -> Any:
    """The network as a clean ONNX model.

    Args:
        network: (1, c, y, x) -> dets, labels, masks.

    Raises:
        ExportError: torch cannot trace it, or the graph is not valid.
    """
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} cannot be written for a detector; legal: {OPSETS[0]} to {OPSETS[-1]}")
    torch = import_torch()
    generator = torch.Generator().manual_seed(0)
    example = torch.randn((1, shapes.channels, *(shapes.canvas or _TRACED)), generator=generator)
    example[:, -1] = 1
    axes = None if shapes.canvas else {INPUT: {2: "height", 3: "width"}}
    written = write_onnx(network, example, opset, INPUT, NAMES, axes)
    onnx = passes.onnx_package()
    model = passes.clean(onnx.load_from_string(written))
    declare_outputs(model, shapes.outputs)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError
        raise ExportError(f"the exported graph is not valid ONNX: {' '.join(str(error).split())[:400]}") from error
    return model


def declare_outputs(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write down the fixed shapes of the outputs, which a tracer loses on the way through selections."""
    for value in model.graph.output:
        sizes = shapes[value.name]
        kind = value.type.tensor_type
        kind.ClearField("shape")
        for size in sizes:
            kind.shape.dim.add().dim_value = size


def torch_answers(network: nn.Module, inputs: Sequence[FloatArray]) -> list[Answers]:
    """What the network itself answers."""
    torch = import_torch()
    found: list[Answers] = []
    with torch.inference_mode():
        for image in inputs:
            outputs = network(torch.from_numpy(image))
            found.append({name: value.numpy().copy() for name, value in zip(NAMES, outputs, strict=True)})
    return found


def verify_detector(
    path: Path, inputs: Sequence[FloatArray], reference: Sequence[Answers], judge: Judge, engines: Sequence[str]
) -> list[dict[str, Any]]:
    """Run the graph on every engine and compare.

    Returns:
        One record per engine.

    Raises:
        ExportError: an engine does not give the network's answer.
    """
    records = []
    for name in engines:
        with get_engine(name).open(path, EngineOptions(outputs=NAMES)) as session:
            try:
                answers = [session.run_all(image) for image in inputs]
            except OfflineInferError as error:
                raise ExportError(f"{name} cannot run the graph: {error}; nothing was written") from error
            told = judge(answers, reference)
            version = session.info.version
        if told["status"] != "ok":
            raise ExportError(
                f"{name} {version} does not give the network's answer: {told['reason']}; nothing was written"
            )
        records.append({"engine": name, "version": version, **told})
    return records
