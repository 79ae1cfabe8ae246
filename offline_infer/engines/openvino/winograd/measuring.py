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
STARVED = 0.75
"""Share of its threads' time that a direct convolution gets on a machine with nothing else to do, at least."""


def layer_facts(layer: Layer) -> dict[str, Any]:
    """What a layer's time depends on, JSON-able: all but its name."""
    return {key: value for key, value in asdict(layer).items() if key != "name"}


def measure(
    ov: Any, core: Any, config: Mapping[str, str], layer: Layer, cut: Cut, ways: Sequence[int]
) -> dict[int, float]:
    """Least seconds of a layer for 0, the direct convolution, and for each m of ``ways``.

    By the clock; by the processor's time, divided by the threads, where other programs or a quota took much of it: what a busy
    machine measures is kept for quiet days too.
    """
    requests, threads = {}, 1
    for m in (0, *ways):
        model, image = _alone(ov, layer, cut)
        if m:
            layers = {found.name: found for found in find_layers(model) if found.axis == cut.axis}
            rewrite(model, dict.fromkeys(layers, m), layers, {cut.axis: cut})
        compiled = core.compile_model(model, "CPU", dict(config))
        threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        requests[m] = compiled.create_infer_request()
        requests[m].set_input_tensor(0, ov.Tensor(image, shared_memory=True))
    times: dict[int, list[tuple[float, float]]] = {m: [] for m in requests}
    for _ in range(ROUNDS):
        for m, request in requests.items():
            clock, processor = time.perf_counter(), time.process_time()
            request.start_async()
            request.wait()
            times[m].append((time.perf_counter() - clock, (time.process_time() - processor) / threads))
    return least_seconds(times)


def least_seconds(times: Mapping[int, Sequence[tuple[float, float]]]) -> dict[int, float]:
    """The least of several times of each way: by the clock, or by the processor where direct convolutions were starved of it.

    Args:
        times: m -> (seconds by the clock, seconds of each thread's processor).
    """
    clock, processor = (sum(values) for values in zip(*times[0], strict=True))
    counts = 1 if processor < STARVED * clock else 0
    return {m: min(each[counts] for each in values) for m, values in times.items()}


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
