"""The engine option ``convolution``: how convolutions are computed, decided once for a graph and a machine, and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from offline_infer.engines.base import EngineOptions
from offline_infer.engines.compiled_cache import ALIGNMENT, CompiledCache
from offline_infer.engines.openvino.winograd.cut import Cut
from offline_infer.engines.openvino.winograd.layers import Layer, find_layers, fold_constants
from offline_infer.engines.openvino.winograd.measuring import layer_facts, measure
from offline_infer.engines.openvino.winograd.plan import fixed_plan, measured_plan
from offline_infer.engines.openvino.winograd.rewrite import rewrite
from offline_infer.errors import EngineUnavailable

VERSION = "4"
"""Part of the key of a cached graph: change it with this folder."""

_NOTE = 4 * ALIGNMENT
"""Bytes of the note before a graph that is kept."""

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
        asked = options.extra.get("convolution")
        self._mode = asked or "auto"
        # By default only where the choice can be kept: every process of a machine is to compute alike, and measure once.
        self._only_kept = asked is None
        if self._mode not in _MODES:
            raise EngineUnavailable(f"openvino: convolution is {self._mode!r}; legal: {', '.join(_MODES)}")
        possible = options.precision == "fp32" and options.extra.get("norms", "exact") == "exact"
        if not possible and self._mode == "auto":
            self._mode = "direct"
        if not possible and self._mode != "direct":
            raise EngineUnavailable(
                f"openvino: convolution is {self._mode!r}, which needs precision fp32 and norms=exact; legal here: direct, auto"
            )
        self.told = "direct"
        self.weights = 1.0
        self._cache: CompiledCache | None = None
        self._machine: Mapping[str, Any] = {}

    @property
    def fact(self) -> str:
        """What a kept graph depends on. Not the choice itself: the graph that is kept keeps that too."""
        return "direct" if self._mode == "direct" else f"{self._mode} {VERSION}"

    def remember(self, cache: CompiledCache, machine: Mapping[str, Any]) -> None:
        """Keep what is measured in a cache, under facts about the machine."""
        self._cache, self._machine = cache, machine

    def note(self) -> bytes:
        """What became of the choice, to be kept before the compiled graph, whose alignment it keeps."""
        note = json.dumps({"told": self.told, "weights": self.weights}).encode()
        assert len(note) <= _NOTE
        return note.ljust(_NOTE)

    def recall(self, kept: memoryview) -> memoryview:
        """Take up the choice of a graph that was kept.

        Returns:
            The compiled graph.

        Raises:
            ValueError, KeyError: there is no such note.
        """
        note = json.loads(bytes(kept[:_NOTE]))
        self.told, self.weights = str(note["told"]), float(note["weights"])
        return kept[_NOTE:]

    def rewrite(self, ov: Any, core: Any, model: Any, config: Mapping[str, str]) -> None:
        """Rewrite a model, in place, after measuring where the mode says so."""
        if self._mode == "direct" or (self._only_kept and self._cache is None):
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
        self.told, self.weights = f"{self._mode}: {plan}" if plan.chosen else "direct", plan.weights

    def _read(self, facts: Mapping[str, Any]) -> Any:
        """What is kept under some facts; None where nothing is."""
        kept = None if self._cache is None else self._cache.read(facts)
        return None if kept is None else json.loads(bytes(kept))

    def _write(self, facts: Mapping[str, Any], value: Any) -> None:
        if self._cache is not None:
            with suppress(OSError):  # it is measured again the next time
                self._cache.write(facts, json.dumps(value).encode())
