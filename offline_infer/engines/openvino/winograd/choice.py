"""The engine option ``convolution``: how convolutions are computed, decided once for a graph and a machine, and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from offline_infer.engines.base import EngineOptions
from offline_infer.engines.compiled_cache import CompiledCache
from offline_infer.engines.openvino.winograd.cut import Cut
from offline_infer.engines.openvino.winograd.layers import Layer, find_layers, fold_constants
from offline_infer.engines.openvino.winograd.measuring import layer_facts, measure
from offline_infer.engines.openvino.winograd.plan import fixed_plan, measured_plan
from offline_infer.engines.openvino.winograd.rewrite import rewrite
from offline_infer.errors import EngineUnavailable

VERSION = "2"
"""Part of the key of a cached graph: change it with this folder."""

_MODES = ("direct", "auto", "f2", "f4")


class Convolutions:
    """What was asked for, and after a graph was opened what became of it.

    Attributes:
        told: what is computed how, for reports.
        weights: size of the weights that are held, over what they are in the graph.
    """

    def __init__(self, options: EngineOptions) -> None:
        """
        Raises:
            EngineUnavailable: no such way, or not at this precision or with these norms.
        """
        self._mode = options.extra.get("convolution", "direct")
        if self._mode not in _MODES:
            raise EngineUnavailable(f"openvino: convolution is {self._mode!r}; legal: {', '.join(_MODES)}")
        possible = options.precision == "fp32" and options.extra.get("norms", "exact") == "exact"
        if not possible and self._mode == "auto":
            self._mode = "direct"
        if not possible and self._mode != "direct":
            raise EngineUnavailable(
                f"openvino: convolution is {self._mode!r}, which needs precision fp32 and norms=exact; legal here: direct, auto"
            )
        self.told = self._mode
        self.weights = 1.0
        self._cache: CompiledCache | None = None
        self._machine: Mapping[str, Any] = {}
        self._graph: Mapping[str, Any] = {}

    @property
    def fact(self) -> str:
        """What a compiled graph depends on. Not the choice itself: the graph that is kept keeps that too."""
        return "direct" if self._mode == "direct" else f"{self._mode} {VERSION}"

    def remember(self, cache: CompiledCache, machine: Mapping[str, Any], graph: Mapping[str, Any]) -> None:
        """Keep what is measured and chosen in a cache, under facts about the machine and the graph."""
        self._cache, self._machine, self._graph = cache, machine, graph

    def recall(self) -> None:
        """Tell again what was chosen for the graph, which came out of the cache."""
        if self._mode != "direct" and (kept := self._read({**self._graph, "what": "convolutions"})):
            self.told, self.weights = kept["told"], kept["weights"]

    def rewrite(self, ov: Any, core: Any, model: Any, config: Mapping[str, str]) -> None:
        """Rewrite a model, in place, after measuring where the mode says so."""
        if self._mode == "direct":
            return
        fold_constants(model)
        layers = find_layers(model)

        def timed(layer: Layer, cut: Cut, ways: Sequence[int]) -> dict[int, float]:
            facts = {**self._machine, "what": f"layer {VERSION}", "layer": layer_facts(layer), "depth": cut.depth}
            facts["ways"] = list(ways)
            known = self._read(facts)
            if known is None:
                known = {str(m): value for m, value in measure(ov, core, config, layer, cut, ways).items()}
                self._write(facts, known)
            return {int(m): float(value) for m, value in known.items()}

        plan = measured_plan(layers, timed) if self._mode == "auto" else fixed_plan(layers, int(self._mode[1:]))
        rewrite(model, plan.chosen, plan.layers, plan.cuts)
        self.told, self.weights = f"{self._mode}: {plan}", plan.weights
        self._write({**self._graph, "what": "convolutions"}, {"told": self.told, "weights": self.weights})

    def _read(self, facts: Mapping[str, Any]) -> Any:
        """What is kept under some facts; None where nothing is."""
        kept = None if self._cache is None else self._cache.read(facts)
        return None if kept is None else json.loads(kept)

    def _write(self, facts: Mapping[str, Any], value: Any) -> None:
        if self._cache is not None:
            with suppress(OSError):  # it is measured again the next time
                self._cache.write(facts, json.dumps(value).encode())
