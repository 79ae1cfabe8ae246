"""Which convolutions of a graph can be computed with fewer multiplications, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from offline_infer.engines.openvino.winograd.convolution import Kernel


@dataclass(frozen=True)
class Layer:
    """A convolution with three taps, stride 1 and padding 1 along ``axis``.

    Attributes:
        name: of the node, unique within one read graph.
        axis: of (n, c, *sizes); along it the planes are cut.
        shape: of the input (n, c_in, *sizes).
        answer: shape of the output.
        kernel: sizes of the kernel.
        strides, dilations, before, after: see :class:`Kernel`.
    """

    name: str
    axis: int
    shape: tuple[int, ...]
    answer: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def gflop(self) -> float:
        """Multiplications and additions of the direct convolution, in 10^9."""
        return 2e-9 * prod(self.answer) * self.shape[1] * prod(self.kernel)

    @property
    def weight_bytes(self) -> int:
        """Size of the weights."""
        return 4 * self.shape[1] * self.answer[1] * prod(self.kernel)

    @property
    def plane_bytes(self) -> int:
        """Size of one plane of the larger of input and output."""
        return 4 * max(prod(shape) // shape[self.axis] for shape in (self.shape, self.answer))

    @property
    def stage(self) -> tuple[int, tuple[int, ...]]:
        """What layers share that may hand parts to each other: the axis and the sizes."""
        return self.axis, self.answer[2:]


def fold_constants(model: Any) -> None:
    """Compute what depends on constants alone, in place, before layers are looked for.

    The ONNX reader leaves a convolution's bias and a norm's scale behind reshapes of constants, and shapes that are known
    behind ``ShapeOf`` nodes, which count as readers of what they take the shape of.
    """
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)


def find_layers(model: Any) -> list[Layer]:
    """The convolutions of an ``openvino.Model``, in the order of computation, that fit :class:`Layer`."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            kernel = kernel_of(node)
            layer = None if kernel is None else _layer(node, kernel)
            if layer is not None:
                found.append(layer)
    return found


def kernel_of(node: Any) -> Kernel | None:
    """The constants of a convolution, transposed or not, of one group; None where something is open or of another type."""
    if not is_fixed_float32(node.input_value(0)) or not is_fixed_float32(node.output(0)) or node.get_input_size() != 2:
        return None
    source, attributes = node.input_value(1).get_node(), node.get_attributes()
    if source.get_type_name() != "Constant" or not is_fixed_float32(node.input_value(1)):
        return None
    if attributes.get("auto_pad", "explicit").lower() != "explicit" or any(attributes.get("output_padding", ())):
        return None
    strides, dilations, before, after = (
        tuple(int(value) for value in attributes[name]) for name in ("strides", "dilations", "pads_begin", "pads_end")
    )
    return Kernel(np.asarray(source.data), strides, dilations, before, after)


def is_fixed_float32(output: Any) -> bool:
    """Whether a tensor is float32 and all its sizes are known."""
    return not output.get_partial_shape().is_dynamic and np.dtype(output.get_element_type().to_dtype()) == np.float32


def shape_of(output: Any) -> tuple[int, ...]:
    """The shape of a tensor whose sizes are known."""
    return tuple(int(size) for size in output.get_shape())


def _layer(node: Any, kernel: Kernel) -> Layer | None:
    shape, answer = shape_of(node.input_value(0)), shape_of(node.output(0))
    # Not the last axis: a plane across it would be a column of single values.
    axis = next((axis for axis in range(2, len(shape) - 1) if kernel.is_same(axis)), None)
    if axis is None:
        return None
    return Layer(
        node.get_name(),
        axis,
        shape,
        answer,
        kernel.weights.shape[2:],
        kernel.strides,
        kernel.dilations,
        kernel.before,
        kernel.after,
    )
