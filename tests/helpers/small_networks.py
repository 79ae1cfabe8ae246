"""A small ONNX network whose answers depend on every kind of node a U-Net has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from offline_infer.spec import VolumeSpec


def network(
    path: Path, spec: VolumeSpec, *, seed: int = 0, gain: float = 1.0, half: bool = False, bottleneck: str = "none"
) -> Path:
    """Conv, norm, LeakyRelu, down, up, skip, and two heads; lopsided, so that mirrors give different answers."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(seed)
    rank = len(spec.patch_size)
    kind, dtype = (10, np.float16) if half else (1, np.float32)
    classes = spec.labels.channels
    weights: dict[str, Any] = {
        "w": rng.standard_normal((4, spec.input_channels, *(3,) * rank)),
        "s": rng.uniform(0.5, 2, 4),
        "b": rng.standard_normal(4),
        "down": rng.standard_normal((4, 4, *(2,) * rank)) / 4,
        "up": rng.standard_normal((4, 4, *(2,) * rank)) / 4,
        "head": gain * rng.standard_normal((classes, 8, *(1,) * rank)),
        "deep": rng.standard_normal((classes, 4, *(1,) * rank)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["x"], pads=[1] * 2 * rank),
        helper.make_node("InstanceNormalization", ["x", "s", "b"], ["n"], name="norm"),
        helper.make_node("LeakyRelu", ["n"], ["a"], alpha=0.01),
        helper.make_node("Conv", ["a", "down"], ["d"], strides=[2] * rank),
        helper.make_node("ConvTranspose", ["d", "up"], ["u"], strides=[2] * rank),
        helper.make_node("Concat", ["a", "u"], ["c"], axis=1),
        helper.make_node("Conv", ["c", "head"], ["logits"]),
        helper.make_node("Conv", ["d", "deep"], ["logits_1"]),
    ]
    if half:  # exported graphs norm in float32
        nodes[1] = helper.make_node("Mul", ["x", "half"], ["n"])
        weights = {**{name: weights[name] for name in weights if name not in ("s", "b")}, "half": np.array(0.5)}
    tensors = [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()]
    if bottleneck == "reshape":  # a shape that names the batch
        nodes[-2].output[0] = "flat"
        tensors.append(numpy_helper.from_array(np.array((1, classes, *spec.patch_size), np.int64), "shape"))
        nodes.append(helper.make_node("Reshape", ["flat", "shape"], ["logits"], name="fixed"))
    small = [size // 2 for size in spec.patch_size]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", kind, list(spec.input_shape))],
        [
            helper.make_tensor_value_info("logits", kind, [1, classes, *spec.patch_size]),
            helper.make_tensor_value_info("logits_1", kind, [1, classes, *small]),
        ],
        tensors,
        value_info=[helper.make_tensor_value_info("a", kind, [1, 4, *spec.patch_size])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
