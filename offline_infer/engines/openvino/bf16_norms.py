"""What stays float32 inside a bfloat16 graph, for OpenVINO's CPU plugin: the norms' statistics, and both ends of the network.

With INFERENCE_PRECISION_HINT bf16 the plugin's own kernel (MVN) reads and writes bfloat16 and keeps its sums in float32,
but adds up a whole channel in one chain, as in float32 (see :mod:`offline_infer.engines.openvino.norms`): over 128^3
voxels the mean is off by 0.005 sd where most voxels are equal, and by 0.45 sd where the mean is 100 sd. Written out in plain
operators it would be worse, because every step would round to bfloat16. So the steps are written out and marked: the
plugin leaves a node alone whose conversion to half precision is forbidden. Sums run along one axis at a time, the
convolution before the norm hands its result over in float32, and only the norm's end is rounded, for the next
convolution.

    y = x * a + b,   a = 1 / sqrt(var + epsilon),   b = -mean * a,
    var = mean over lines of (mean of squares - squared mean of the line) + variance of the lines' means

A line is a row of voxels along the innermost axis. What cancels in its difference is of the order of float32's rounding
times (mean / sd)^2, far below what bfloat16 left of such values.

The convolutions that read the image and those that give the logits stay float32 as a whole. They hardly count in time (a
few thousandths of a U-Net's arithmetic), but the image, a few large values with fine differences, is what rounding to eight
bits hurts most: on trained networks 43 to 73 % of the labels that bfloat16 had changed came from there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from offline_infer.engines.openvino.norms import has_fixed_sizes, is_spatial_norm, norm_shape

VERSION = "2"
"""Part of the key of a cached graph: change it with this module."""

_MARK = "offline_infer.float32."
_MARK_END = _MARK + "end."
_CONVOLUTIONS = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData")
_LARGEST = 3e38  # bounds of a Clamp that changes nothing and makes a convolution give float32
# A node whose conversion to half precision is forbidden, as a graph file says it; Python has no other way to get the mark.
_MARKED = b"""<?xml version="1.0"?><net name="marked" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1" element_type="f32"/>
<output><port id="0" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="1" name="marked" type="Abs" version="opset1"><rt_info><attribute name="precise" version="0"/></rt_info>
<input><port id="0" precision="FP32"><dim>1</dim></port></input>
<output><port id="1" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="2" name="y" type="Result" version="opset1"><input><port id="0" precision="FP32"><dim>1</dim></port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges></net>"""


def make_norms_float32(core: Any, model: Any) -> int:
    """Replace every MVN over the spatial axes of an ``openvino.Model``, in place.

    One over a single line of voxels stays: its one sum is short.

    Returns:
        How many had to stay because the size of an axis they sum over is open.

    Raises:
        RuntimeError, AttributeError, TypeError: this OpenVINO has no such mark.
    """
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "MVN" and is_spatial_norm(node)]
    fixed = [node for node in nodes if has_fixed_sizes(node)]
    several_lines = [node for node in fixed if len(_long_axes(node.input_value(0))) > 1]
    if several_lines:
        keep = _Keeper(core)
        for node in several_lines:
            _write_out(node, keep)
        model.validate_nodes_and_infer_types()
    return len(nodes) - len(fixed)


def keep_ends_float32(core: Any, model: Any) -> int:
    """Let the convolutions nearest to the inputs and to the outputs, and what lies outside them, compute in float32, in place.

    Returns:
        How many operators.

    Raises:
        RuntimeError, AttributeError, TypeError: this OpenVINO has no such mark.
    """
    keep = _Keeper(core, _MARK_END)
    ends = _nearest(
        [parameter.output(0) for parameter in model.get_parameters()],
        lambda port: [target.get_node() for target in port.get_target_inputs()],
        lambda node: node.outputs(),
    )
    ends |= _nearest(
        [result.input_value(0) for result in model.get_results()],
        lambda port: [port.get_node()],
        lambda node: [node.input_value(0)] if node.get_input_size() else [],
    )
    for node in ends.values():
        keep(node)
    return len(ends)


def _nearest(ports: list[Any], nodes_at: Any, beyond: Any) -> dict[str, Any]:
    """The operators on every way from some ports to the first convolution, that one included, by name."""
    found: dict[str, Any] = {}
    while ports:
        for node in nodes_at(ports.pop()):
            name = node.get_name()  # unique within a model
            if name in found or node.get_type_name() in ("Constant", "Parameter", "Result"):
                continue
            found[name] = node
            if node.get_type_name() not in _CONVOLUTIONS:
                ports.extend(beyond(node))
    return found


def rounded_node(compiled: Any) -> str | None:
    """The first node of a compiled graph that was to compute in float32 and does not, or None."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: _text(value) for key, value in node.get_rt_info().items()}
        if _MARK not in facts.get("originalLayersNames", ""):
            continue
        # A convolution that took the clamp in computes in bfloat16 as it should, and must give float32.
        convolution = facts.get("layerType", "").endswith(("Convolution", "Deconvolution"))
        inside = convolution and _MARK_END not in facts["originalLayersNames"]
        precision = facts.get("outputPrecisions" if inside else "runtimePrecision", "").lower()
        if precision not in ("f32", "fp32"):
            return f"{node.get_friendly_name()} ({facts.get('layerType')}) in {precision}"
    return None


class _Keeper:
    """Makes operators that stay float32."""

    def __init__(self, core: Any, mark: str = _MARK) -> None:
        marked = next(op for op in core.read_model(_MARKED, b"").get_ops() if op.get_type_name() == "Abs")
        self._marks = list(marked.get_rt_info().items())
        if not self._marks:
            raise RuntimeError("the mark that forbids half precision is not known")
        self._mark = mark
        self._count = 0

    def __call__(self, node: Any) -> Any:
        for key, value in self._marks:
            node.set_rt_info(value, key)
        self._count += 1
        node.set_friendly_name(f"{self._mark}{self._count}")
        return node


def _long_axes(source: Any) -> list[int]:
    """Spatial axes with more than one voxel."""
    return [axis for axis, size in enumerate(norm_shape(source)) if axis >= 2 and size > 1]


def _write_out(node: Any, keep: _Keeper) -> None:
    import openvino.opset13 as ops

    shape = norm_shape(node.input_value(0))
    *others, last = _long_axes(node.input_value(0))

    def constant(value: Any, dtype: Any = np.float32) -> Any:
        return ops.constant(np.array(value, dtype))

    def multiply(a: Any, b: Any) -> Any:
        return keep(ops.multiply(a, b))

    def along(reduce: Any, values: Any, axis: int) -> Any:
        return keep(reduce(values, constant([axis], np.int64), keep_dims=True))

    def mean_of_lines(values: Any) -> Any:
        # Sum and factor, not ReduceMean: the plugin merges ReduceMeans in a row into one over all axes.
        for axis in reversed(others):
            values = multiply(along(ops.reduce_sum, values, axis), constant(1.0 / shape[axis]))
        return values

    x = keep(ops.clamp(node.input_value(0), -_LARGEST, _LARGEST))
    share = constant(1.0 / shape[last])
    line_mean = multiply(along(ops.reduce_sum, x, last), share)
    length = along(ops.reduce_l2, x, last)  # the root of the sum of squares, without writing the squares to memory
    line_square = multiply(multiply(length, length), share)
    mean = mean_of_lines(line_mean)
    offset = keep(ops.subtract(line_mean, mean))
    within = keep(ops.subtract(line_square, multiply(line_mean, line_mean)))
    variance = mean_of_lines(keep(ops.add(within, multiply(offset, offset))))
    variance = keep(ops.maximum(variance, constant(0.0)))  # rounding may make the variance of equal voxels negative
    deviation = keep(ops.sqrt(keep(ops.add(variance, constant(node.get_attributes()["eps"])))))
    a = keep(ops.divide(constant(1.0), deviation))
    b = multiply(multiply(mean, a), constant(-1.0))
    node.output(0).replace(keep(ops.add(multiply(x, a), b)).output(0))


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
