"""One table of how fast everything ran, over all records of a page: engines, devices and cards, beside a chosen baseline.

Calls of the network alone and whole cases, from file to file, are different things and never share a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from offline_infer.errors import UsageError
from offline_infer.proof.report.charts import bars
from offline_infer.proof.report.parts import Section, Table, Tile
from offline_infer.proof.report.records import Timing


def speed_section(timings: Sequence[tuple[str, Timing]], baseline: str | None = None) -> Section | None:
    """What ran how fast; None where there is nothing to compare.

    Args:
        timings: what tells the record from others, and what it says.
        baseline: the name of what all others are compared with; default the first. A part of a name will do where it is the
            only one that has it.

    Raises:
        UsageError: nothing of that name was measured, or more than one thing.
    """
    calls = _named((label, timing) for label, timing in timings if _positive(timing.call))
    cases = _named((label, timing) for label, timing in _joined(timings))
    if baseline is None and len(calls) < 2 and len(cases) < 2 and not (calls and cases):
        return None
    chosen = None if baseline is None else _chosen(baseline, [*calls, *cases])
    tables, drawn = [], []
    if calls:
        base = chosen if chosen in calls else next(iter(calls))
        tables.append(_calls(calls, base))
        rates = [(name, _per_card(timing)) for name, timing in calls.items()]
        drawn = [(name, rate, f"{rate:.4g} / s") for name, rate in rates]
    if cases:
        tables.append(_cases(cases, chosen if chosen in cases else next(iter(cases))))
    return Section(
        kind="performance overview",
        heading="Performance: engines, devices and cards",
        text="A call answers one input of the network and nothing around it; a whole case goes from file to file, with reading, "
        "preparing, stitching and writing. The two are never compared with each other.",
        tiles=_tiles(calls, chosen),
        bars=bars(drawn) if len(drawn) > 1 else (),
        bars_caption="Network calls per second and card; longer is faster" if len(drawn) > 1 else "",
        tables=tuple(tables),
    )


def _calls(calls: Mapping[str, Timing], baseline: str) -> Table:
    base = calls[baseline]
    rows = []
    for name, timing in calls.items():
        seconds = timing.call or math.nan
        spread = f"{timing.low:.4g} to {timing.high:.4g}" if timing.low is not None and timing.high is not None else "-"
        rows.append(
            (
                name,
                timing.device or "-",
                seconds,
                spread,
                1 / seconds,
                _per_card(timing),
                (base.call or math.nan) / seconds,
                _per_card(timing) / _per_card(base),
            )
        )
    head = (
        "the network alone",
        "on",
        "a call, s",
        "spread, s",
        "calls per second, device",
        "per card",
        "speed-up, device",
        "speed-up, card",
    )
    return Table(
        head, tuple(rows), caption=f"Speed-up over {baseline}: a device's, and a card's with all its devices.", digits=3
    )


def _cases(cases: Mapping[str, Timing], baseline: str) -> Table:
    base = cases[baseline].cases
    rows = []
    for name, timing in cases.items():
        seconds = sorted(timing.cases.values())
        ratios = [base[case] / value for case, value in timing.cases.items() if case in base]
        spread = f"{seconds[0]:.4g} to {seconds[-1]:.4g}"
        rows.append(
            (
                name,
                timing.device or "-",
                len(seconds),
                median(seconds),
                spread,
                median(ratios) if ratios else None,
                len(ratios),
            )
        )
    head = ("whole cases", "on", "cases", "median, s", "smallest to largest, s", "speed-up", "over so many cases")
    caption = f"Speed-up over {baseline}: the median over the cases that both ran."
    return Table(head, tuple(rows), caption=caption, digits=2)


def _tiles(calls: Mapping[str, Timing], baseline: str | None) -> tuple[Tile, ...]:
    """The fastest card beside a baseline that was asked for."""
    if baseline is None or baseline not in calls:
        return ()
    name, fastest = max(calls.items(), key=lambda pair: _per_card(pair[1]))
    return (Tile(f"{_per_card(fastest) / _per_card(calls[baseline]):.3g} times", f"{name}, over {baseline}"),)


def _named(timings: Iterable[tuple[str, Timing]]) -> dict[str, Timing]:
    """Timings by their names; those of equal names are told apart by their records."""
    listed = list(timings)
    names = [timing.name for _, timing in listed]
    found: dict[str, Timing] = {}
    for label, timing in listed:
        name = timing.name if names.count(timing.name) == 1 else f"{timing.name} ({label})"
        while name in found:
            name = f"{name} again"
        found[name] = timing
    return found


def _joined(timings: Sequence[tuple[str, Timing]]) -> list[tuple[str, Timing]]:
    """Those of whole cases."""
    kept = [(label, timing, {k: v for k, v in timing.cases.items() if _positive(v)}) for label, timing in timings]
    return [(label, Timing(timing.name, timing.device, cases=cases)) for label, timing, cases in kept if cases]


def _chosen(wanted: str, names: Sequence[str]) -> str:
    found = [name for name in names if name == wanted] or [name for name in names if wanted in name]
    if len(set(found)) == 1:
        return found[0]
    problem = "more than one thing has" if found else "nothing was measured under"
    raise UsageError(f"baseline {wanted!r}: {problem} that name; there are {', '.join(dict.fromkeys(names)) or 'none'}")


def _per_card(timing: Timing) -> float:
    return timing.devices_per_card / (timing.call or math.nan)


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
