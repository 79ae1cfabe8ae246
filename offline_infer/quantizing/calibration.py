"""How every convolution that could be quantized is rounded, from inputs of real cases.

``fitted`` runs the graph with the activations as outputs and looks for the rounding that changes least of what each
convolution computes (:mod:`offline_infer.quantizing.fitting`). ``nncf`` takes the ranges that NNCF's static quantization
decides on (``pip install 'offline-infer[quantize]'``), read off its graph.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import EngineOptions, Session, get_engine
from offline_infer.errors import UsageError
from offline_infer.graph import load_model, save_model
from offline_infer.graph.model import Model
from offline_infer.graph.quantized import Convolution, Range, Rounding, rounding_by_range, weights_of
from offline_infer.graph.taps import with_outputs
from offline_infer.quantizing.fitting import Samples, fitted, rows_wanted
from offline_infer.scratch import scratch_folder

FloatArray = npt.NDArray[np.float32]
METHODS = ("fitted", "nncf")
_HELD = 1 << 30
"""Bytes of activations and samples that are held at a time."""


def refuse_missing(method: str) -> None:
    """Refuse a method whose packages are not installed.

    Raises:
        UsageError: NNCF is wanted and not there.
    """
    if method == "nncf" and not (importlib.util.find_spec("nncf") and importlib.util.find_spec("openvino")):
        raise UsageError("calibration with NNCF needs the packages nncf and openvino", remedy="install-quantize")


def roundings_of(
    graph: Path,
    layers: Sequence[Convolution],
    inputs: Sequence[FloatArray],
    method: str,
    engine: str,
    threads: int,
    tell: Callable[[int, int], None],
) -> dict[str, Rounding]:
    """Convolution (by its name) -> how it is rounded.

    Args:
        graph: in float32.
        layers: of the graph.
        inputs: (1, c, ...) each.
        method: one of :data:`METHODS`.
        tell: called with (convolutions done, in all).

    Raises:
        EngineFailed, EngineUnavailable: the graph cannot be run.
        ExportError: a weight or an activation holds NaN or infinite values.
        UsageError: NNCF failed.
    """
    model = load_model(graph)
    weights = weights_of(model, layers)
    if method == "nncf":
        ranges = _ranges_by_nncf(graph, {each.source for each in layers}, inputs)
        return {
            each.name: rounding_by_range(weights[each.name], ranges[each.source])
            for each in layers
            if each.source in ranges
        }
    found: dict[str, Rounding] = {}
    for group in _groups(weights, layers):
        found |= _fitted_group(model, weights, group, inputs, engine, threads)
        tell(len(found), len(layers))
    return found


def _groups(weights: Mapping[str, FloatArray], layers: Sequence[Convolution]) -> Iterator[list[Convolution]]:
    """Convolutions that are fitted in one go: as many as can be held in memory."""
    group: list[Convolution] = []
    held = 0
    for each in layers:
        columns = weights[each.name][0].size
        size = each.source_bytes + 8 * columns * rows_wanted(columns) if each.source_bytes else _HELD
        if group and held + size > _HELD:
            yield group
            group, held = [], 0
        group.append(each)
        held += size
    yield group


def _fitted_group(
    model: Model,
    weights: Mapping[str, FloatArray],
    layers: Sequence[Convolution],
    inputs: Sequence[FloatArray],
    engine: str,
    threads: int,
) -> dict[str, Rounding]:
    samples = {
        each.name: Samples(each.window, weights[each.name].shape[1], len(inputs)) for each in layers if each.window
    }
    ranges: dict[str, Range] = {}
    with scratch_folder("quantize") as folder:
        path = folder / "activations.onnx"
        computed = {name for node in model.graph.node for name in node.output}
        save_model(with_outputs(model, sorted({each.source for each in layers} & computed)), path)
        with get_engine(engine).open(path, EngineOptions(threads=threads)) as session:
            for batch in inputs:
                activations = _activations(session, batch, model)
                for each in layers:
                    activation = activations[each.source]
                    if each.name in samples:
                        samples[each.name].add(activation)
                    else:
                        ranges[each.name] = _widened(ranges.get(each.name), activation)
    return {
        each.name: fitted(weights[each.name], samples.pop(each.name), normalized=each.normalized)
        if each.name in samples
        else rounding_by_range(weights[each.name], ranges[each.name])
        for each in layers
    }


def _activations(session: Session, batch: FloatArray, model: Model) -> dict[str, FloatArray]:
    """Every output of the graph, and its input."""
    answers = session.run_all(batch)
    constants = {tensor.name for tensor in model.graph.initializer}
    (image,) = [port.name for port in model.graph.input if port.name not in constants]
    return {**answers, image: batch}


def _widened(known: Range | None, activation: FloatArray) -> Range:
    found = Range(float(activation.min()), float(activation.max()))
    return found if known is None else Range(min(found.low, known.low), max(found.high, known.high))


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
        raise UsageError(f"NNCF could not calibrate {graph.name}: {error}; try --calibration fitted") from error
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
