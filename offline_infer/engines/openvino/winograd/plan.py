"""Which convolutions of a graph are computed with fewer multiplications: all that can be, or those where it was measured to pay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from offline_infer.engines.openvino.winograd.cut import Cut
from offline_infer.engines.openvino.winograd.layers import Layer
from offline_infer.engines.openvino.winograd.transforms import OUTPUTS, TAPS

PART_BYTES = 16 << 20
"""Largest part of a tensor: about a dozen of them are in use at a time and should stay in the processor's cache."""
MOST_PARTS = 400
"""Of all layers of an axis together. The time to open a graph grows faster than its nodes, about ten for each part: a UNet++ with
twice as many was compiled in 15 instead of 7 s, and read from the cache in 6 instead of 3 s, for 5 % of a tile."""
FEWEST_PARTS = 32
"""Of the longest tensor. Those of deeper stages have fewer: half, a quarter."""
FEWEST_CHANNELS = 8
"""Of an input. With fewer the transforms cost as much as the products."""
LEAST_GFLOP = 50.0
"""Of all layers of a graph that may be chosen by measuring: with less, the longer opening is not earned back."""
LEAST_GAIN = 1.15
"""Of the layer that is measured. What a layer gains is partly lost again where the stage begins and ends."""
LEAST_SHARE = 0.02
"""Of a stage in all such layers' arithmetic, by measuring. The deepest have most of the weights, of which there would be twice as
many, and little of the time."""

Seconds = Mapping[int, float]
"""Measured time of a layer by m; 0 is the direct convolution."""

Measure = Callable[[Layer, Cut, Sequence[int]], Seconds]


@dataclass(frozen=True)
class Plan:
    """What is rewritten.

    Attributes:
        chosen: m of each layer that is not direct, by name.
        layers: all that were looked at, by name.
        cuts: by axis.
    """

    chosen: Mapping[str, int]
    layers: Mapping[str, Layer]
    cuts: Mapping[int, Cut]

    @property
    def weights(self) -> float:
        """Size of the convolutions' weights, over what they are in the graph: m + 2 kernels stand for three taps."""
        plain = {name: layer.weight_bytes for name, layer in self.layers.items()}
        held = sum(
            size * (self.chosen[name] + 2) / TAPS if name in self.chosen else size for name, size in plain.items()
        )
        return held / sum(plain.values()) if plain else 1.0

    def __str__(self) -> str:
        counts = [f"{list(self.chosen.values()).count(m)} F({m},3)" for m in OUTPUTS if m in self.chosen.values()]
        return ", ".join(counts) + f" of {len(self.layers)} layers" if counts else "direct"


def fixed_plan(layers: Sequence[Layer], m: int) -> Plan:
    """Every layer that can be F(m, 3)."""
    cuts = _cuts(layers)
    chosen = {layer.name: m for layer in layers if m in _possible(layer, cuts)}
    return Plan(chosen, {layer.name: layer for layer in layers}, cuts)


def measured_plan(layers: Sequence[Layer], measure: Measure) -> Plan:
    """Stage by stage the fastest way, where it is faster than the direct one by :data:`LEAST_GAIN`.

    One layer speaks for its stage: the kind with the most of its arithmetic. Kinds differ in their channels alone, and what
    they gain differs less than a measurement does (1.53 and 1.57 times, 1.71 and 1.77 were found).

    Args:
        measure: gives a layer's times for the m that are asked for and for 0.
    """
    cuts = _cuts(layers)
    possible = {layer.name: ways for layer in layers if (ways := _possible(layer, cuts))}
    stages: dict[object, list[Layer]] = defaultdict(list)
    for layer in layers:
        if layer.name in possible:
            stages[layer.stage].append(layer)
    work = {stage: sum(layer.gflop for layer in members) for stage, members in stages.items()}
    total = sum(work.values())
    chosen: dict[str, int] = {}
    for stage, members in stages.items() if total >= LEAST_GFLOP else ():
        if work[stage] >= LEAST_SHARE * total:
            speaker = _speaker(members)
            m = _fastest(speaker, cuts[speaker.axis], possible[speaker.name], measure)
            if m:
                chosen.update({layer.name: m for layer in members if m in possible[layer.name]})
    return Plan(chosen, {layer.name: layer for layer in layers}, cuts)


def _speaker(stage: Sequence[Layer]) -> Layer:
    """The first layer of the kind that does the most of a stage's arithmetic."""
    work: dict[Layer, float] = defaultdict(float)
    first: dict[Layer, Layer] = {}
    for layer in stage:
        kind = replace(layer, name="")
        work[kind] += layer.gflop
        first.setdefault(kind, layer)
    return first[max(work, key=work.__getitem__)]


def _fastest(layer: Layer, cut: Cut, ways: Sequence[int], measure: Measure) -> int:
    """The first of the ways, those with the fewest products first, that gains enough; 0 where none does."""
    for m in sorted(ways, reverse=True):
        times = measure(layer, cut, [m])
        if times[0] >= LEAST_GAIN * times[m]:
            return m
    return 0


def _cuts(layers: Sequence[Layer]) -> dict[int, Cut]:
    """One cut for every axis, so that parts fit from stage to stage: the deepest within the two limits on parts."""
    found = {}
    for axis in {layer.axis for layer in layers}:
        along = [layer for layer in layers if layer.axis == axis and layer.shape[1] >= FEWEST_CHANNELS]
        largest = max((layer.plane_bytes for layer in along), default=PART_BYTES)
        most = max((layer.shape[axis] for layer in along), default=1)
        depth = 1
        planes = sum(layer.shape[axis] for layer in along)
        while most % (2 * depth) == 0 and (
            planes > MOST_PARTS * depth or (2 * depth * largest <= PART_BYTES and most >= 2 * depth * FEWEST_PARTS)
        ):
            depth *= 2
        found[axis] = Cut(axis, depth)
    return found


def _possible(layer: Layer, cuts: Mapping[int, Cut]) -> list[int]:
    """The m that a layer can be computed with."""
    parts = cuts[layer.axis].parts_of(layer.shape[layer.axis])
    return [m for m in OUTPUTS if layer.shape[1] >= FEWEST_CHANNELS and parts >= m]
