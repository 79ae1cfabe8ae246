"""How long one convolution takes on this machine, directly and with fewer multiplications."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from offline_infer.engines.openvino.winograd.cut import Cut
from offline_infer.engines.openvino.winograd.layers import Layer, find_layers
from offline_infer.engines.openvino.winograd.rewrite import rewrite

PARTS = 8
"""Parts that are measured; a tensor with more is cut down to as many."""
ROUNDS = 3
"""Of all ways in turn. The fastest of each counts: other programs only ever make one slower."""


def layer_facts(layer: Layer) -> dict[str, Any]:
    """What a layer's time depends on, JSON-able: all but its name."""
    return {key: value for key, value in asdict(layer).items() if key != "name"}


def measure(
    ov: Any, core: Any, config: Mapping[str, str], layer: Layer, cut: Cut, ways: Sequence[int]
) -> dict[int, float]:
    """Least seconds of a layer for 0, the direct convolution, and for each m of ``ways``."""
    requests = {}
    for m in (0, *ways):
        model, image = _alone(ov, layer, cut)
        if m:
            layers = {found.name: found for found in find_layers(model) if found.axis == cut.axis}
            rewrite(model, dict.fromkeys(layers, m), layers, {cut.axis: cut})
        requests[m] = core.compile_model(model, "CPU", dict(config)).create_infer_request()
        requests[m].set_input_tensor(0, ov.Tensor(image, shared_memory=True))
    seconds: dict[int, list[float]] = {m: [] for m in requests}
    for _ in range(ROUNDS):
        for m, request in requests.items():
            start = time.perf_counter()
            request.start_async()
            request.wait()
            seconds[m].append(time.perf_counter() - start)
    return {m: min(values) for m, values in seconds.items()}


def _alone(ov: Any, layer: Layer, cut: Cut) -> tuple[Any, Any]:
    """A graph of a layer between two convolutions of one tap that make its channels and sum them up, and an input."""
    import openvino.opset13 as ops

    rng = np.random.default_rng(0)
    sizes = list(layer.shape[2:])
    sizes[cut.axis - 2] = min(sizes[cut.axis - 2], PARTS * cut.depth)
    flat = [1] * len(sizes)
    none = [0] * len(sizes)

    def weights(*shape: int) -> Any:
        return ops.constant(rng.standard_normal(shape, np.float32))

    image = rng.standard_normal((1, 1, *sizes), np.float32)
    port = ops.parameter(image.shape, np.float32)
    channels = ops.convolution(port, weights(layer.shape[1], 1, *flat), flat, none, none, flat)
    kernel = weights(layer.answer[1], layer.shape[1], *layer.kernel)
    answer = ops.convolution(
        channels, kernel, list(layer.strides), list(layer.before), list(layer.after), list(layer.dilations)
    )
    whole = ops.convolution(answer, weights(1, layer.answer[1], *flat), flat, none, none, flat)
    return ov.Model([whole], [port]), image
