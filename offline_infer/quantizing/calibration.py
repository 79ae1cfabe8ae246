"""The range of every activation that could be quantized, from inputs of real cases.

NNCF gives them where it is installed (``pip install 'offline-infer[quantize]'``): its static quantization collects the
statistics, and the ranges it decided on are read off its graph. Without it, an engine of this package answers a graph that
tells the smallest and the largest value of every such tensor, and both are averaged over the inputs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import UsageError
from offline_infer.graph import load_model, save_model
from offline_infer.graph.quantized import Range, with_observed_ranges
from offline_infer.scratch import scratch_folder

FloatArray = npt.NDArray[np.float32]
METHODS = ("auto", "nncf", "observed")


def calibration_method(wanted: str) -> str:
    """The method that ``wanted`` stands for: ``auto`` is NNCF where it is installed.

    Raises:
        UsageError: NNCF is wanted and not installed.
    """
    installed = importlib.util.find_spec("nncf") is not None and importlib.util.find_spec("openvino") is not None
    if wanted == "nncf" and not installed:
        raise UsageError("calibration with NNCF needs the packages nncf and openvino", remedy="install-quantize")
    if wanted == "auto":
        return "nncf" if installed else "observed"
    return wanted


def ranges_of(
    graph: Path, tensors: Collection[str], inputs: Sequence[FloatArray], method: str, engine: str, threads: int
) -> dict[str, Range]:
    """Range of each of some tensors of a float32 graph, as :func:`calibration_method` says.

    Args:
        tensors: names of activations that convolutions read.
        inputs: (1, c, ...) each.

    Raises:
        EngineFailed, EngineUnavailable: the graph cannot be run.
        UsageError: NNCF failed.
    """
    if method == "nncf":
        return _ranges_by_nncf(graph, tensors, inputs)
    return _observed_ranges(graph, tensors, inputs, engine, threads)


def _observed_ranges(
    graph: Path, tensors: Collection[str], inputs: Sequence[FloatArray], engine: str, threads: int
) -> dict[str, Range]:
    model, names = with_observed_ranges(load_model(graph), tensors)
    lowest: dict[str, list[float]] = {tensor: [] for tensor in names}
    highest: dict[str, list[float]] = {tensor: [] for tensor in names}
    with scratch_folder("quantize") as folder:
        path = folder / "observed.onnx"
        save_model(model, path)
        with get_engine(engine).open(path, EngineOptions(threads=threads)) as session:
            for batch in inputs:
                answers = session.run_all(batch)
                for tensor, (low, high) in names.items():
                    lowest[tensor].append(float(answers[low].min()))
                    highest[tensor].append(float(answers[high].max()))
    return {tensor: Range(float(np.mean(lowest[tensor])), float(np.mean(highest[tensor]))) for tensor in names}


def _ranges_by_nncf(graph: Path, tensors: Collection[str], inputs: Sequence[FloatArray]) -> dict[str, Range]:
    """NNCF's decision, from the operators it put before the convolutions of OpenVINO's model."""
    get_engine("openvino").available()  # imports OpenVINO with its telemetry hidden, which NNCF would use as well
    import nncf
    import openvino as ov

    nncf.set_log_level(40)  # errors
    reader = ov.frontend.FrontEndManager().load_by_framework("onnx")
    model = reader.convert(reader.load(str(graph)))
    others = {op.get_type_name() for op in model.get_ops()} - {"Convolution", "Parameter", "Result", "Constant"}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its bar would run through the results
            made = nncf.quantize(
                model,
                nncf.Dataset(list(inputs)),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(types=sorted(others), validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
            )
    except Exception as error:  # its exceptions share no base class
        raise UsageError(f"NNCF could not calibrate {graph.name}: {error}; try --calibration observed") from error
    wanted = set(tensors)
    found: dict[str, Range] = {}
    for node in made.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        for tensor in wanted & set(node.input_value(0).get_names()):
            low, high = (_constant(node, place) for place in (1, 2))
            found[tensor] = Range(float(low.min()), float(high.max()))
    return found


def _constant(node: Any, place: int) -> npt.NDArray[Any]:
    return np.asarray(node.input_value(place).get_node().data)
