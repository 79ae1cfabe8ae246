"""Where inside a graph two engines, or two precisions of one, begin to differ.

Tensors of the graph are made visible as outputs, a few at a time, and both sides answer the same input. A tensor that is an
output cannot be fused with its neighbours, and an engine may compute what lies just before an output in full precision; so
the tensors that are visible at the same time lie far apart, and each shows what the graph before it has done to the input.
What was compiled from a graph cannot be given further outputs: there only the graph's own outputs are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import CompiledEngine, EngineOptions, SessionInfo, get_engine
from offline_infer.errors import UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import write_text
from offline_infer.graph.model import load_model, save_model
from offline_infer.graph.taps import Tap, find_taps, with_outputs
from offline_infer.proof.comparison.arrays import array_distance
from offline_infer.scratch import scratch_folder

FloatArray = npt.NDArray[np.float32]

STAGE = "compare"
KIND = "offline_infer.comparison.layers"
TOLERANCES: Mapping[str, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2}
"""Relative Euclidean distance that a precision explains: float32 sums in another order, 11 and 8 bits of mantissa."""
_BUDGET = 1 << 30
_APART = 8
"""Least number of tensors from one that is visible to the next."""


@dataclass(frozen=True)
class Side:
    """One of the two: an engine, what it is asked for, and the graph it runs."""

    engine: str
    graph: Path
    options: EngineOptions

    @property
    def name(self) -> str:
        return f"{self.engine} {self.options.precision}"


@dataclass(frozen=True)
class Layer:
    """One tensor of both sides; see :class:`offline_infer.proof.comparison.arrays.ArrayDistance` for the figures."""

    name: str
    node: str
    op: str
    shape: tuple[int, ...]
    cosine: float | None
    relative_euclidean: float | None
    max_abs: float | None
    required_atol: float | None
    required_rtol: float | None
    finite: bool


@dataclass(frozen=True)
class LayerComparison:
    """All tensors, in the order they are computed.

    Attributes:
        a, b: what ran; b is the reference.
        tolerance: relative Euclidean distance up to which two tensors count as equal.
    """

    a: SessionInfo
    b: SessionInfo
    tolerance: float
    layers: tuple[Layer, ...]

    @property
    def first(self) -> int | None:
        """Index of the first tensor beyond the tolerance, or with NaN or infinity on one side; None if there is none."""
        return next((i for i, layer in enumerate(self.layers) if self._parts(layer)), None)

    def _parts(self, layer: Layer) -> bool:
        return not layer.finite or layer.relative_euclidean is None or layer.relative_euclidean > self.tolerance

    def to_json(self) -> dict[str, Any]:
        first = self.first
        return {
            "kind": KIND,
            "version": 1,
            "a": _facts(self.a),
            "b": _facts(self.b),
            "tolerance": self.tolerance,
            "first": None if first is None else {"number": first + 1, **asdict(self.layers[first])},
            "layers": [asdict(layer) for layer in self.layers],
        }


def compare_layers(
    a: Side, b: Side, batch: FloatArray, *, tolerance: float | None = None, budget: int = _BUDGET, sink: Sink = silent
) -> LayerComparison:
    """Compare every tensor that both graphs compute under the same name.

    Args:
        a: what is in question. b: the reference.
        batch: an input of the graph, (1, c, *patch).
        tolerance: default by the coarser of the two precisions (:data:`TOLERANCES`).
        budget: bytes of tensors that are kept at a time; one tensor may be larger.

    Raises:
        UsageError: the graphs have no tensor in common, or a tolerance that makes no sense.
        EngineUnavailable, EngineFailed: a side cannot be opened or does not answer.
    """
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise UsageError(f"tolerance {tolerance} is not a relative distance; expected 0 or more")
    models = {side.graph: load_model(side.graph) for side in (a, b)}
    sealed = any(isinstance(get_engine(side.engine), CompiledEngine) for side in (a, b))
    shared = {tap.name for tap in find_taps(models[b.graph])}
    if sealed:
        shared &= {output.name for model in models.values() for output in model.graph.output}
    taps = [tap for tap in find_taps(models[a.graph]) if tap.name in shared]
    if not taps:
        raise UsageError(f"{a.graph} and {b.graph} have no tensor in common")
    layers: dict[str, Layer] = {}
    infos: list[SessionInfo] = []
    with scratch_folder("layers") as folder:
        for group in [taps] if sealed else _groups(taps, budget):
            answers = []
            infos = []
            for number, side in enumerate((a, b)):
                path = side.graph if sealed else folder / f"{number}.onnx"
                names = tuple(tap.name for tap in group)
                if not sealed:
                    save_model(with_outputs(models[side.graph], names), path)
                found, info = _answer(replace(side, graph=path), names, batch)
                answers.append(found)
                infos.append(info)
            layers |= {tap.name: _compare(tap, answers[0][tap.name], answers[1][tap.name]) for tap in group}
            sink(Event("progress", STAGE, done=len(layers), total=len(taps)))
    precisions = {*(side.options.precision for side in (a, b)), *(info.precision for info in infos)}
    limit = max(TOLERANCES.get(p, 1e-2) for p in precisions) if tolerance is None else tolerance
    return LayerComparison(infos[0], infos[1], limit, tuple(layers[tap.name] for tap in taps))


def layers_text(found: LayerComparison) -> str:
    """Where the two sides part, and the tensors around that place, for a terminal."""
    from offline_infer.proof.evaluation.tables import format_table

    first = found.first
    lines = [f"a: {_title(found.a)}", f"b: {_title(found.b)}", ""]
    middle = first if first is not None else len(found.layers) - 1
    rows = [
        {
            "no.": str(index + 1),
            "tensor": layer.name,
            "kind": layer.op,
            "cosine": layer.cosine,
            "relative distance": _text(layer.relative_euclidean),
            "largest difference": _text(layer.max_abs),
            "passes at atol": _text(layer.required_atol),
        }
        for index, layer in enumerate(found.layers)
        if abs(index - middle) <= 4 or index == len(found.layers) - 1
    ]
    lines += [format_table(rows, digits=6), ""]
    if first is None:
        lines.append(f"all {len(found.layers)} tensors agree within a relative distance of {found.tolerance:g}")
    else:
        layer = found.layers[first]
        what = (
            f"a relative distance of {_text(layer.relative_euclidean)}" if layer.finite else "NaN or infinite numbers"
        )
        lines.append(
            f"they part at tensor {first + 1} of {len(found.layers)}: {layer.name}, made by {layer.op}, with {what} where "
            f"{found.tolerance:g} is expected"
        )
    return "\n".join(lines)


def write_growth_picture(path: Path, found: LayerComparison) -> None:
    """The growth of the error over the graph as an SVG picture."""
    write_text(path, growth_svg(found))


def growth_svg(found: LayerComparison) -> str:
    """The relative distance of every tensor on a logarithmic scale, the tolerance and the place of parting."""
    values = [layer.relative_euclidean or 0.0 for layer in found.layers]
    positive = [v for v in (*values, found.tolerance) if v > 0 and math.isfinite(v)]
    low = math.floor(math.log10(min(positive, default=1e-7)))
    high = max(math.ceil(math.log10(max(positive, default=1.0))), low + 1)
    left, top, width, height = 70, 46, 860, 320

    def x(index: int) -> float:
        return left + width * index / max(len(values) - 1, 1)

    def y(value: float) -> float:
        clipped = min(max(value, 10.0**low), 10.0**high)
        return top + height * (high - math.log10(clipped)) / (high - low)

    heading = f"{_escape(_title(found.a))} against {_escape(_title(found.b))}"
    points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 420" font-family="sans-serif" font-size="13">',
        '<rect width="960" height="420" fill="#ffffff"/>',
        f'<text x="{left}" y="26" font-size="16" fill="#17211f">{heading}</text>',
    ]
    for power in range(low, high + 1):
        place = y(10.0**power)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{place:.1f}" y2="{place:.1f}" stroke="#dfe5e2"/>')
        parts.append(f'<text x="{left - 8}" y="{place + 4:.1f}" text-anchor="end" fill="#56655f">1e{power}</text>')
    if found.tolerance > 0:
        limit = y(found.tolerance)
        parts.append(
            f'<line x1="{left}" x2="{left + width}" y1="{limit:.1f}" y2="{limit:.1f}" stroke="#b93815" stroke-dasharray="6 4"/>'
        )
    parts.append(f'<polyline points="{points}" fill="none" stroke="#0f766e" stroke-width="2"/>')
    if found.first is not None:
        place, layer = x(found.first), found.layers[found.first]
        anchor = "end" if found.first > len(values) / 2 else "start"
        parts.append(f'<circle cx="{place:.1f}" cy="{y(values[found.first]):.1f}" r="5" fill="#b93815"/>')
        parts.append(
            f'<text x="{place:.1f}" y="{top + height + 18}" text-anchor="{anchor}" fill="#b93815">'
            f"{found.first + 1}: {_escape(layer.name)} ({_escape(layer.op)})</text>"
        )
    said = f"relative Euclidean distance of {len(values)} tensors, in the order they are computed"
    parts.append(f'<text x="{left}" y="410" fill="#56655f">{said}; dashed: tolerance</text></svg>')
    return "\n".join(parts) + "\n"


def _groups(taps: Sequence[Tap], budget: int) -> list[list[Tap]]:
    """The tensors in groups that fit the budget, one tensor at least; those of a group lie far apart in the graph."""
    sizes = [tap.bytes or budget for tap in taps]  # of unknown size: as large as may be
    strides = range(min(_APART, len(taps)), len(taps) + 1)
    stride = next((n for n in strides if all(sum(sizes[k::n]) <= budget for k in range(n))), len(taps))
    return [list(taps[k::stride]) for k in range(stride)]


def _answer(side: Side, names: tuple[str, ...], batch: FloatArray) -> tuple[dict[str, npt.NDArray[Any]], SessionInfo]:
    options = replace(side.options, outputs=names, cache=None)
    with get_engine(side.engine).open(side.graph, options) as session:
        return {name: array.copy() for name, array in session.answer(batch).items()}, session.info


def _compare(tap: Tap, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Layer:
    found = array_distance(a, b)
    return Layer(
        name=tap.name,
        node=tap.node,
        op=tap.op,
        shape=found.shape,
        cosine=found.cosine,
        relative_euclidean=_number(found.relative_euclidean),
        max_abs=_number(found.max_abs),
        required_atol=found.required_atol,
        required_rtol=found.required_rtol,
        finite=found.finite,
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _facts(info: SessionInfo) -> dict[str, Any]:
    return {"engine": info.engine, "version": info.version, "device": info.device, "precision": info.precision}


def _title(info: SessionInfo) -> str:
    return f"{info.engine} {info.version.partition('-')[0]} {info.precision} on {info.device}"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
