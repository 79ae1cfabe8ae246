"""What was run, and what was checked before: bundles, precision checks, run records, stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from offline_infer.proof.report.parts import Section, Table, Tile
from offline_infer.proof.report.records import RecordKind, Timing
from offline_infer.proof.report.values import Content, Names, count, flat, real, short, table_of, whole

_COLUMNS = 8
_COMPARISON_HEAD = (
    "graph",
    "precision",
    "engine",
    "input",
    "largest difference",
    "largest logit",
    "labels changed",
    "margin there",
)

_CHANGED = (
    " A changed label is a voxel whose most probable class is another one; the margin says how far the two best classes were "
    "apart there."
)


def bundle_section(content: Content, names: Names) -> list[Section]:
    """Where a bundle came from, and how its graphs compare with the framework's network."""
    comparisons = [found for graph in content["graphs"] for _, _, found in _comparisons(graph)]
    flips = sum(whole(found["flips"]) for found in comparisons)
    voxels = sum(whole(found["voxels"]) for found in comparisons)
    good = bool(content["graphs"]) and all(
        bool((graph.get("verification") or {}).get("passed")) for graph in content["graphs"]
    )
    rows = tuple(row for graph in content["graphs"] for row in _graph_rows(graph))
    changed = f"of {voxels:,} voxel labels changed by the export"
    section = Section(
        kind="bundle",
        heading="The exported graph against the framework's network",
        verdict=("verified when exported", "good") if good else ("not verified", "warn"),
        text="The graph answered the same inputs as the framework's own network." + (_CHANGED if rows else ""),
        facts=_bundle_facts(content),
        tiles=(Tile(f"{flips:,}", changed, "warn" if flips else "good"),) if voxels else (),
        tables=(Table(_COMPARISON_HEAD, rows),) if rows else (),
        notes=tuple(line for graph in content["graphs"] for line in _own_words(graph)),
    )
    return [section]


def _own_words(graph: Content) -> list[str]:
    """What a kind of model whose answers are no labels of voxels says of every engine."""
    engines = (graph.get("verification") or {}).get("engines") or ()
    return [f"{engine['engine']}: {engine['text']}" for engine in engines if isinstance(engine.get("text"), str)]


def _comparisons(graph: Content) -> list[tuple[str, str, Content]]:
    """(engine with its release, input, figures) of every comparison a graph went through."""
    return [
        (f"{engine['engine']} {_release(engine['version'])}", probe, found)
        for engine in (graph.get("verification") or {}).get("engines", ())
        for probe, found in (engine.get("inputs") or {}).items()
    ]


def _graph_rows(graph: Content) -> list[tuple[Any, ...]]:
    """A graph's rows of the table of comparisons."""
    if not graph.get("verification"):
        return [(graph["file"], graph["precision"], "-", "not verified", None, None, None, None)]
    return [
        (
            graph["file"],
            graph["precision"],
            engine,
            probe,
            real(found["max_diff"]),
            real(found["logit_scale"]),
            whole(found["flips"]),
            real(found["flip_margin"]),
        )
        for engine, probe, found in _comparisons(graph)
    ]


def _bundle_facts(content: Content) -> tuple[tuple[str, str], ...]:
    """The checkpoint's origin, and the digests of its weights and graphs."""
    source: Content = content["source"]
    keys = ("framework", "framework_version", "trainer", "plans_name", "dataset", "configuration", "network")
    origin = [(key.replace("_", " "), str(source[key])) for key in keys if source.get(key)]
    weights = [
        (f"checkpoint, fold {fold['fold']}", f"{fold['checkpoint']}, SHA-256 {fold['sha256']}")
        for fold in source["folds"]
    ]
    graphs = [(f"graph {graph['file']}", f"SHA-256 {graph['sha256']}") for graph in content["graphs"]]
    return (*origin, *weights, *graphs)


def checks_section(content: Content, names: Names) -> list[Section]:
    """Reduced precisions that were compared with float32 on tiles of real images."""
    checks: Sequence[Content] = content["checks"]
    head = (
        "engine",
        "precision",
        "fold",
        "Dice against float32",
        "equal labels",
        "largest difference",
        "tiles",
        "status",
    )
    rows = tuple(
        (
            f"{row['engine']} {_release(row['library'])}",
            str(row["precision"]),
            str(row["fold"]),
            real(row.get("foreground_dice")),
            real(row.get("label_agreement")),
            real(row.get("max_abs_logit_difference")),
            f"{row['tiles']} of {'an image' if row['source'] == 'image' else 'noise'}",
            str(row["status"]) + (f": {row['reason']}" if row.get("reason") else ""),
        )
        for row in checks
    )
    failed = [row for row in checks if row["status"] == "failed"]
    on = sorted({f"{row['device']} ({row['processor']})" for row in checks})
    section = Section(
        kind="checks",
        heading="Precisions checked against float32",
        verdict=(f"{count(len(failed), 'check')} failed", "bad")
        if failed
        else (f"{count(len(checks), 'check')} passed", "good"),
        text="Tiles were answered in float32 and in the other precision; Dice is of all foreground together.",
        facts=(("measured on", "; ".join(on)),) if on else (),
        tables=(Table(head, rows, digits=5),) if rows else (),
    )
    return [section]


def run_section(content: Content, names: Names) -> list[Section]:
    """A run of ``predict``: what ran, with which settings, and what became of each case."""
    cases: Sequence[Content] = content["cases"]
    records = [case["record"] for case in cases if isinstance(case.get("record"), dict)]
    facts, differing = _common(records) if records else ((), ())
    if not records:
        facts = tuple((key, short(value)) for key, value in (*_origin(content), *_manifest(content)))
    elif "model" not in differing:  # one model made all cases, so the run's own facts hold for each
        facts = (*((key, short(value)) for key, value in _origin(content)), *facts)
    states = [str(case["status"]) for case in cases]
    failed = states.count("failed")
    verdict = (
        (f"{failed} of {len(cases)} cases failed", "bad")
        if failed
        else (f"{count(len(cases), 'case')} complete", "good")
    )
    notes = [f"{case['case']}: {case.get('reason')}" for case in cases if case["status"] == "failed"]
    if differing:
        notes.insert(0, f"the cases were not all made the same way; they differ in {', '.join(differing)}")
    rows = []
    for case in cases:
        flattened = dict(flat(case["record"])) if isinstance(case.get("record"), dict) else {}
        seconds = {key: real(value) for key, value in (case.get("seconds") or {}).items()}
        total = sum(v for v in seconds.values() if math.isfinite(v))
        own = tuple(flattened.get(key) for key in differing)
        rows.append(
            (str(case["case"]), str(case["status"]), case.get("tiles"), total or None, seconds.get("infer"), *own)
        )
    table = Table(("case", "status", "tiles", "whole case, s", "network, s", *differing), tuple(rows), digits=2)
    section = Section(
        kind="run",
        heading="What was run",
        verdict=verdict,
        facts=facts,
        tables=(table,) if rows else (),
        notes=tuple(notes),
    )
    return [section]


def stage_section(content: Content, names: Names) -> list[Section]:
    """A stage's report: its cases and what it measured."""
    cases: Sequence[Content] = content["cases"]
    failed = [f"{case['case']}: {case.get('reason')}" for case in cases if case["status"] == "failed"]
    table, same = table_of(cases) if cases else (None, ())
    section = Section(
        kind="stage",
        heading=f"Run of {content['stage']}",
        facts=(*((key.replace("_", " "), short(v)) for key, v in flat(content, depth=0)), *same),
        verdict=(f"{len(failed)} of {len(cases)} cases failed", "bad") if failed else ("all cases complete", "good"),
        tables=(table,) if table else (),
        notes=tuple(failed),
    )
    return [section]


def problems_section(content: Content, names: Names) -> list[Section]:
    """Cases that an evaluation left out."""
    failed = [f"{case}: {reason}" for case, reason in content["failed"].items()]
    others = [f"{case}: no prediction" for case in content["without_prediction"] if case not in content["failed"]]
    others += [f"{case}: no reference" for case in content["without_reference"]]
    others += [f"{case}: {remark}" for case, remarks in content["notes"].items() for remark in remarks]
    section = Section(
        kind="problems",
        heading="Cases left out of the evaluation, and remarks",
        tiles=(Tile(str(len(failed)), "cases failed in the evaluation", "bad"),) if failed else (),
        verdict=(f"{len(failed)} failed", "bad") if failed else None,
        notes=(*failed, *others),
    )
    return [section]


def _origin(content: Content) -> list[tuple[str, Any]]:
    """Bundle and checkpoint of a run record."""
    found: list[tuple[str, Any]] = [("bundle", content.get("bundle"))]
    source = content.get("source")
    if isinstance(source, dict):
        found += [(key, source.get(key)) for key in ("framework", "trainer", "dataset", "configuration", "network")]
        used = [str(fold) for fold in content.get("folds") or ()]
        found += [
            (f"checkpoint, fold {fold['fold']}", f"SHA-256 {fold['sha256']}")
            for fold in source.get("folds", ())
            if not used or str(fold["fold"]) in used
        ]
    return [(key, value) for key, value in found if value is not None]


def _manifest(content: Content) -> list[tuple[str, Any]]:
    """Engine, settings and program of a run record."""
    found: list[tuple[str, Any]] = [(f"engine {key}", value) for key, value in flat(content.get("engine") or {})]
    found += list(flat(content.get("settings") or {}))
    found.append(("program", f"{content.get('program')} {content.get('version')}"))
    if content.get("seconds") is not None:
        found.append(("whole run, s", content["seconds"]))
    return [(key, value) for key, value in found if value is not None]


def _common(records: Sequence[Content]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """What all per-case records agree in, and the names of what they do not, images' own facts left out."""
    flattened = [dict(flat(record)) for record in records]
    keys = list(dict.fromkeys(key for record in flattened for key in record))
    same = tuple(key for key in keys if len({repr(record.get(key)) for record in flattened}) == 1)
    facts = tuple((key, short(flattened[0].get(key))) for key in same)
    own = ("image", "seconds", "time", "date", "memory", "voxels", "shape", "finished", "started")
    differing = [key for key in keys if key not in same and not any(word in key.split() for word in own)]
    return facts, tuple(differing[:_COLUMNS])


def _release(version: Any) -> str:
    """``2026.4.1`` of ``2026.4.1-22982-e213a147257-releases/2026/4``."""
    return str(version).partition("-")[0][:40]


def _run_timings(content: Content) -> list[Timing]:
    """Whole cases, apart by what ran them."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for case in content["cases"]:
        if not isinstance(case.get("record"), dict) or case.get("status") == "failed":
            continue
        made: Content = case["record"]
        key = (f"{made.get('engine')} {made.get('precision')}", str(made.get("device") or ""))
        found.setdefault(key, {})[str(case["case"])] = _whole_case(case)
    return [Timing(name, device, cases=cases) for (name, device), cases in found.items()]


def _whole_case(case: Content) -> float:
    """Seconds of all steps of a case."""
    return sum(v for v in (real(value) for value in (case.get("seconds") or {}).values()) if math.isfinite(v))


def _is_run(content: Content) -> bool:
    return content.get("program") == "offline_infer" and "engine" in content and isinstance(content.get("cases"), list)


def _labels_of_bundle(content: Content) -> Names:
    """A region is named in the summary by the labels it holds: ``(1, 2)``."""
    names: Content = content["labels"]["names"]
    return {str(tuple(key)) if isinstance(key, list) else str(key): str(name) for name, key in names.items()}


RECORDS = (
    RecordKind(
        "bundle",
        "bundle",
        bundle_section,
        like=lambda c: isinstance(c.get("graphs"), list) and isinstance(c.get("source"), dict),
        labels=_labels_of_bundle,
    ),
    RecordKind("checks", "precision checks of a bundle", checks_section, named="offline_infer.precision_checks"),
    RecordKind("run", "run of predict", run_section, like=_is_run, timings=_run_timings),
    RecordKind(
        "problems", "cases left out of an evaluation", problems_section, named="offline_infer.evaluation_problems"
    ),
)
STAGES = (
    RecordKind(
        "stage",
        "run of a stage",
        stage_section,
        like=lambda c: isinstance(c.get("stage"), str) and isinstance(c.get("cases"), list),
    ),
)
