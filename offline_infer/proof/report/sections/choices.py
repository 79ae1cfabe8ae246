"""What was chosen for speed, and what proves it: layers in INT8, and the setting of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from offline_infer.proof.report.charts import trade_off_plot
from offline_infer.proof.report.parts import Section, Table, Tile
from offline_infer.proof.report.records import RecordKind
from offline_infer.proof.report.values import Content, Names, count, real

_CALIBRATION = {"nncf": "ranges by NNCF", "fitted": "fitted to what each layer computes"}


def quantization_section(content: Content, names: Names) -> list[Section]:
    """INT8 graphs: which layers, what unseen cases said, what it gains."""
    judged, folds = content["judged"], content["folds"]
    lowest = judged["lowest_dice"]
    head = (
        "fold",
        "layers in INT8",
        "multiplications in INT8",
        "around them",
        "all in INT8",
        "chosen",
        "seconds an input",
    )
    rows = tuple(
        (
            str(fold["fold"]),
            len(fold["int8_layers"]),
            real(fold["int8_share"]),
            str(fold["around"]),
            _figure(fold["agreement_all_int8"]),
            _figure(fold["agreement"]),
            ", ".join(f"{name} {real(value):.3g}" for name, value in fold["input_seconds"].items()),
        )
        for fold in folds
    )
    cases = tuple(
        (case, _figure(value), _figure(judged["float_scores"].get(case)), _figure(judged["scores"].get(case)))
        for case, value in judged["dice"].items()
    )
    sensitive = [
        (str(fold["fold"]), layer, share, _now(fold, layer))
        for fold in folds
        for layer, share in _shares(fold["sensitivity"])
    ]
    tables = [
        Table(head, rows, caption="Agreement with float32 on the inputs the layers were chosen on", digits=5),
        Table(("unseen case", "Dice to float32", "task Dice, float32", "task Dice, INT8"), cases, digits=5),
    ]
    if sensitive:
        caption = (
            "Each layer alone in INT8: its share of the error that all of them put into the answers, each by itself"
        )
        tables.append(
            Table(("fold", "layer", "share of the error", "now"), tuple(sensitive), caption=caption, digits=5)
        )
    section = Section(
        kind="quantization",
        heading="INT8, judged on whole unseen cases",
        verdict=("accepted", "good"),  # a refusal leaves no record
        text="Ranges were calibrated, and layers chosen, on cases that do not judge. Dice is of all foreground together.",
        facts=(
            ("calibration", _CALIBRATION.get(str(content["calibration"]), str(content["calibration"]))),
            ("engine", str(content["engine"])),
            ("required Dice to float32", f"{real(content['min_dice']):g}"),
            *((("change of task Dice", _paired(judged["paired"])),) if judged["paired"] else ()),
            *(
                (f"{name} on" if name != "judges" else name, ", ".join(map(str, used)))
                for name, used in content["cases"].items()
            ),
        ),
        tiles=(Tile(_shown(lowest), "lowest Dice of an unseen case, INT8 against float32"),),
        tables=tuple(tables),
    )
    return [section]


def tuning_section(content: Content, names: Names) -> list[Section]:
    """Dice against time of every setting that was tried, and the one that was chosen."""
    rows: Sequence[Content] = content["settings"]
    chosen = next(row for row in rows if row["chosen"])
    front = sorted((row for row in rows if row["pareto"]), key=lambda row: real(row["seconds"]))
    table = tuple(
        (
            str(row["name"]),
            real(row["seconds"]),
            real(row["dice"]),
            _paired(row["change"]),
            "chosen" if row["chosen"] else "no other is better in both" if row["pareto"] else "",
        )
        for row in sorted(rows, key=lambda row: real(row["seconds"]))
    )
    plot = trade_off_plot(
        "Dice against time",
        [(_name(row), real(row["seconds"]), real(row["dice"])) for row in rows],
        [(real(row["seconds"]), real(row["dice"])) for row in front],
        "seconds a case",
        "mean task Dice",
    )
    confirmed = content["change_confirmed"]
    halves = (
        f"chosen on {count(len(content['chosen_on']), 'case')}, confirmed on {len(content['confirmed_on'])} others: "
        f"{_paired(confirmed)}"
        if confirmed
        else "too few cases to confirm the choice on others than those it was made on"
    )
    section = Section(
        kind="tuning",
        heading="Settings: Dice against time on labelled cases",
        verdict=(str(chosen["name"]), "good"),
        text="The line joins the settings that no other one beats in both. Nothing uses the chosen one unless it is asked for.",
        facts=(
            ("engine", str(content["engine"])),
            ("loss of task Dice allowed", f"{real(content['max_loss']):g}"),
            ("proof", halves),
        ),
        tiles=(
            Tile(
                f"{real(content['speed_up']):.2f} x", "faster than float32 with all folds, mirrors and the model's step"
            ),
        ),
        plots=(plot,) if plot is not None else (),
        tables=(Table(("setting", "seconds a case", "task Dice", "change", ""), table, digits=4),),
        notes=tuple(str(line) for line in content["left_out"]),
    )
    return [section]


def _name(row: Content) -> str:
    return f"{row['name']} (chosen)" if row["chosen"] else str(row["name"])


def _paired(change: Content) -> str:
    interval = "" if change["low"] is None else f" ({real(change['low']):+.5f} to {real(change['high']):+.5f})"
    return f"{real(change['mean']):+.5f}{interval}"


def _shares(errors: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Layers and their share of the sum of the errors, the largest first."""
    found = {layer: real(error) for layer, error in errors.items()}
    total = math.fsum(found.values())
    return [(layer, found[layer] / total if total else 0.0) for layer in sorted(found, key=lambda each: -found[each])]


def _now(fold: Mapping[str, Any], layer: str) -> str:
    if layer not in fold["int8_layers"]:
        return "float"
    return "INT8, dithered" if layer in fold.get("dithered_layers", ()) else "INT8"


def _figure(value: Any) -> float | None:
    return None if value is None else real(value)


def _shown(value: Any) -> str:
    return "-" if value is None else f"{real(value):.5f}"


RECORDS = (
    RecordKind("quantization", "INT8 and its proof", quantization_section, named="offline_infer.quantization"),
    RecordKind("tuning", "settings that were tuned", tuning_section, named="offline_infer.tuning"),
)
