"""How fast, and whether the fast answer is still right: benchmarks, device figures, and any other list of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offline_infer.proof.report.charts import Bar, bars
from offline_infer.proof.report.parts import Section, Table, Tile
from offline_infer.proof.report.records import RecordKind, Timing
from offline_infer.proof.report.values import Content, Names, flat, name_of, real, short, table_of, whole

TABLE_KEYS = ("results", "records", "rows", "engines", "measurements")
"""Where a record may keep its list of measurements."""


def benchmark_section(content: Content, names: Names) -> list[Section]:
    """Engines and precisions of a bundle: one table of their answers, one of their times."""
    rows: Sequence[Content] = [row for row in content["results"] if row["status"] != "unavailable"]
    absent = tuple(f"{_pair(row)}: {row.get('reason')}" for row in content["results"] if row["status"] == "unavailable")
    facts = tuple(
        (key, short(value)) for key, value in flat(content, depth=1) if key not in ("kind", "version", "program")
    )
    return (
        [_precision(rows, absent, names), _speed(rows, facts)]
        if rows
        else [Section(kind="speed", heading="Speed", facts=facts, notes=absent, verdict=("no engine ran", "bad"))]
    )


def _precision(rows: Sequence[Content], absent: tuple[str, ...], names: Names) -> Section:
    classes = list(dict.fromkeys(key for row in rows for key in (row.get("dice_per_class") or {})))[:10]
    head = (
        "engine",
        "precision",
        "Dice",
        *(f"Dice {name_of(key, names)}" for key in classes),
        "labels that differ",
        "largest margin there",
        "largest difference of logits",
        "status",
    )
    table = []
    for row in rows:
        agreement = real(row.get("label_agreement"))
        differing = row.get("differing_voxels")
        table.append(
            (
                f"{row['engine']} {str(row.get('library', '')).partition('-')[0]}",
                str(row["precision"]),
                real(row.get("foreground_dice")),
                *(real((row.get("dice_per_class") or {}).get(key)) for key in classes),
                f"{whole(differing):,} of {whole(row['voxels']):,}" if differing is not None else _share(agreement),
                real(row.get("differing_margin_max")),
                real(row.get("max_abs_logit_difference")),
                "the reference"
                if row.get("reference")
                else str(row["status"]) + (f": {row['reason']}" if row.get("reason") else ""),
            )
        )
    failed = [row for row in rows if row["status"] == "failed"]
    compared = [real(row["foreground_dice"]) for row in rows if row.get("foreground_dice") is not None]
    return Section(
        kind="precision",
        heading="Precision: every engine against the float32 reference",
        verdict=(f"{len(failed)} failed", "bad") if failed else ("all answers agree", "good"),
        text="All answered the same tiles. The margin says how far the two best classes were apart, at most, where a label "
        "differs.",
        tiles=(Tile(f"{min(compared):.5f}", "lowest Dice of an engine against float32", "bad" if failed else ""),)
        if compared
        else (),
        tables=(Table(tuple(head), tuple(table), digits=5),),
        notes=tuple(f"unavailable: {line}" for line in absent),
    )


def _speed(rows: Sequence[Content], facts: tuple[tuple[str, str], ...]) -> Section:
    medians = {_pair(row): real(row["p50_s"]) for row in rows}
    baseline = next((row for row in rows if row.get("reference")), rows[0])
    base = real(baseline["p50_s"])
    head = (
        "engine and precision",
        "median of a call, s",
        "5 % to 95 %, s",
        "tiles per second",
        f"times {_pair(baseline)}",
        "first call, s",
        "opening, s",
        "memory, MB",
        "threads",
    )
    table = tuple(
        (
            _pair(row),
            real(row["p50_s"]),
            f"{real(row['p5_s']):.3f} to {real(row['p95_s']):.3f}",
            1 / real(row["p50_s"]) if row["p50_s"] else None,
            base / real(row["p50_s"]) if row["p50_s"] else None,
            real(row.get("first_call_s")),
            real(row.get("open_s")),
            real(row.get("memory_bytes")) / 1e6,
            row.get("threads"),
        )
        for row in rows
    )
    fastest = min(rows, key=lambda row: real(row["p50_s"]))
    return Section(
        kind="speed",
        heading="Speed of a network call",
        text="One call answers one tile; reading, resampling and writing a case come on top (see the run's whole-case times).",
        facts=facts,
        tiles=(Tile(f"{real(fastest['p50_s']):.3g} s", f"a call, {_pair(fastest)}"),),
        bars=bars([(name, value, f"{value:.3g} s") for name, value in medians.items()]),
        bars_caption="Median of a call, seconds; shorter is faster",
        tables=(Table(head, table, digits=3),),
    )


def performance_section(content: Content, names: Names) -> list[Section]:
    """Figures of an inference tool, per device."""
    devices: Sequence[Content] = content["devices"]
    total = real(content["throughput_total_per_s"])
    table, same = table_of(devices)
    rates = [(f"device {d['device']}", real(d["throughput_per_s"])) for d in devices]
    section = Section(
        kind="performance",
        heading="Device performance",
        facts=(*((key, short(value)) for key, value in flat(content, depth=0)), *same),
        tiles=(Tile(f"{total:.4g}", "network runs per second, all devices"),),
        bars=bars([(name, rate, f"{rate:.4g} / s") for name, rate in rates]) if len(rates) > 1 else (),
        bars_caption="Network runs per second; longer is faster",
        tables=(table,),
    )
    return [section]


def measurements_section(content: Content, names: Names) -> list[Section]:
    """Any record with a list of measurements: a table of it, and bars of its median time or its rate."""
    rows = [row for row in measurements_of(content) or [] if row.get("status") != "unavailable"]
    absent = [row for row in measurements_of(content) or [] if row.get("status") == "unavailable"]
    table, same = table_of(rows) if rows else (None, ())
    column = _column(table.head) if table else None
    drawn: tuple[Bar, ...] = ()
    if table is not None and column is not None and len(rows) > 1:
        labels = [
            " ".join(cell for cell in row if isinstance(cell, str)) or f"{i + 1}" for i, row in enumerate(table.rows)
        ]
        sizes = [real(row[column]) for row in table.rows]
        drawn = bars([(label[:60], size, short(size)) for label, size in zip(labels, sizes, strict=True)])
    section = Section(
        kind="measurements",
        heading=str(content.get("title", "Measurements")),
        facts=(*((k, short(v)) for k, v in flat(content, depth=0) if k not in ("title", "kind", "version")), *same),
        bars=drawn,
        bars_caption=table.head[column] if table is not None and column is not None else "",
        tables=(table,) if table is not None else (),
        notes=tuple(
            "unavailable: " + ", ".join(f"{k} {short(v)}" for k, v in flat(row, depth=0) if k != "status")
            for row in absent
        ),
    )
    return [section]


def record_section(content: Mapping[str, Any], names: Names) -> list[Section]:
    """A record of a kind this release has no page for: its scalars as facts, its lists as tables."""
    kind = str(content["kind"]).removeprefix("offline_infer.").replace("_", " ").replace(".", ": ")
    tables = []
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            table, _ = table_of(value[:1000], caption=key.replace("_", " "))
            tables.append(table)
    facts = tuple((key, short(value)) for key, value in flat(content, depth=2) if key not in ("kind", "version"))
    return [Section(kind="record", heading=kind.capitalize(), facts=facts[:60], tables=tuple(tables))]


def measurements_of(content: Content) -> list[Content] | None:
    """The list of measurements of a record: a non-empty list of objects under one of :data:`TABLE_KEYS`."""
    for key in TABLE_KEYS:
        value = content.get(key)
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            return value
    return None


def _column(head: Sequence[str]) -> int | None:
    """The column worth drawing: a median or a rate first; never the time to open an engine."""
    wanted = ("p50 s", "median s", "median", "seconds median", "throughput", "seconds", "latency", "mean", "ms", "s")
    for word in wanted:
        for index, key in enumerate(head):
            name = key.lower()
            if (name == word or set(word.split()) <= set(name.split())) and not {"open", "first", "load"} & set(
                name.split()
            ):
                return index
    return None


def _pair(row: Content) -> str:
    return f"{row['engine']} {row['precision']}"


def _share(agreement: float) -> str:
    return "-" if agreement != agreement else f"{100 * (1 - agreement):.4f} %"


def _benchmark_timings(content: Content) -> list[Timing]:
    rows = [row for row in content["results"] if row["status"] == "ok"]
    return [
        Timing(
            _pair(row),
            str(row.get("device") or ""),
            call=real(row["p50_s"]),
            low=real(row.get("p5_s")),
            high=real(row.get("p95_s")),
        )
        for row in rows
    ]


def _device_timings(content: Content) -> list[Timing]:
    """One row for all devices of a record: the mean, and the slowest and the fastest of them."""
    calls = sorted(1 / real(device["throughput_per_s"]) for device in content["devices"])
    tools = sorted({str(device["tool"]) for device in content["devices"] if device.get("tool")})
    return [
        Timing(
            " ".join([*tools, str(content.get("soc") or "")]).strip() or "device",
            f"{len(calls)} devices" if len(calls) > 1 else "1 device",
            call=1 / real(content["throughput_per_device_per_s"]),
            low=calls[0] if len(calls) > 1 else None,
            high=calls[-1] if len(calls) > 1 else None,
            devices_per_card=whole(content.get("devices_per_card", 1)),
        )
    ]


def _baseline_timings(content: Content) -> list[Timing]:
    middle = content.get("p50_s", content["average_s"])
    spread = (
        (real(content["min_s"]), real(content["p90_s"])) if "min_s" in content and "p90_s" in content else (None, None)
    )
    return [
        Timing(
            str(content.get("provider") or "baseline"),
            str(content.get("device") or ""),
            call=real(middle),
            low=spread[0],
            high=spread[1],
        )
    ]


def baseline_section(content: Content, names: Names) -> list[Section]:
    """A graph timed by itself, as the published guides take their baseline."""
    facts = tuple((key, short(value)) for key, value in flat(content, depth=0))
    return [
        Section(
            kind="measurements",
            heading=f"One graph on {content.get('provider', 'its own')}",
            facts=facts,
            tiles=(),
            text="Calls of the graph without data, as the published guides take their baseline.",
        )
    ]


RECORDS = (
    RecordKind(
        "benchmark", "benchmark", benchmark_section, named="offline_infer.benchmark", timings=_benchmark_timings
    ),
    RecordKind(
        "baseline", "speed of one graph", baseline_section, like=lambda c: "average_s" in c, timings=_baseline_timings
    ),
    RecordKind(
        "performance",
        "device performance",
        performance_section,
        like=lambda c: "throughput_total_per_s" in c and isinstance(c.get("devices"), list),
        timings=_device_timings,
    ),
)
ANY_RECORDS = (
    RecordKind("measurements", "list of measurements", measurements_section, like=lambda c: bool(measurements_of(c))),
    RecordKind(
        "record",
        "another record of this program",
        record_section,
        like=lambda c: str(c.get("kind")).startswith("offline_infer."),
    ),
)
