"""Whether reduced precision computes what it should on this machine, tried on two small operators before it is trusted.

Libraries have shipped kernels that are fast and wrong on some processors: a bfloat16 matrix product with a cosine of 0.28
to the right one (https://github.com/openvinotoolkit/openvino/issues/38256). Rounding alone moves these answers by some
thousandths; a broken kernel by a large part of their size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from offline_infer.engines.base import FloatArray, Session
from offline_infer.errors import EngineUnavailable
from offline_infer.graph.tiny import single_operator
from offline_infer.scratch import scratch_folder

ALLOWED = 0.03
"""Largest Euclidean distance from the float32 answer, relative to that answer's norm."""

_CHANNELS, _FEATURES, _SIZES, _KERNEL = 32, 32, (10, 12, 16), 3
_ROWS, _INNER, _COLUMNS = 64, 192, 48


def check_arithmetic(
    what: str, open_graph: Callable[[Path], AbstractContextManager[Session]], *, half_graph: bool
) -> float:
    """Compare a 3D convolution and a matrix product with NumPy's float32 answer.

    Args:
        what: engine and precision, for the message.
        open_graph: opens an ONNX file the way that is to be trusted.
        half_graph: write the graphs in float16, for engines that take the precision from the graph.

    Returns:
        The larger of both relative distances.

    Raises:
        EngineUnavailable: a distance is more than :data:`ALLOWED`, or not a number; the message holds it.
    """
    worst = 0.0
    with scratch_folder("self_test") as folder:
        for operator, (graph, image, expected) in _cases(half_graph).items():
            path = folder / f"{operator}.onnx"
            path.write_bytes(graph)
            with open_graph(path) as session:
                answer = session.run(image)
            distance = float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))
            if not distance <= ALLOWED:
                raise EngineUnavailable(
                    f"{what}: {operator} is computed wrongly on this machine: its answer is {distance:.3g} of the right "
                    f"one's size away, where rounding explains at most {ALLOWED:g}; use float32, or another version"
                )
            worst = max(worst, distance)
    return worst


def _cases(half_graph: bool) -> dict[str, tuple[bytes, FloatArray, FloatArray]]:
    """Operator -> graph, input and expected answer."""
    rng = np.random.default_rng(0)
    dtype = np.float16 if half_graph else np.float32

    def drawn(*shape: int) -> FloatArray:
        return rng.standard_normal(shape).astype(dtype).astype(np.float32)

    image, weight = drawn(1, _CHANNELS, *_SIZES), drawn(_FEATURES, _CHANNELS, _KERNEL, _KERNEL, _KERNEL)
    matrix, factor = drawn(1, _ROWS, _INNER), drawn(_INNER, _COLUMNS)
    sizes = tuple(size - _KERNEL + 1 for size in _SIZES)
    kernel = {"kernel_shape": (_KERNEL,) * 3}
    convolution = single_operator("Conv", image.shape, weight.astype(dtype), (1, _FEATURES, *sizes), kernel)
    product = single_operator("MatMul", matrix.shape, factor.astype(dtype), (1, _ROWS, _COLUMNS))
    windows = np.lib.stride_tricks.sliding_window_view(image[0], (_KERNEL,) * 3, axis=(1, 2, 3))
    convolved = np.tensordot(windows, weight, axes=((0, 4, 5, 6), (1, 2, 3, 4)))  # (z, y, x, k)
    return {
        "Conv": (convolution, image, np.moveaxis(convolved, -1, 0)[None]),
        "MatMul": (product, matrix, matrix @ factor),
    }
