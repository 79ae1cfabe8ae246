"""A comparison as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from offline_infer.proof.comparison.records import CaseComparison, ComparisonReport, Verdict
from offline_infer.proof.evaluation.metrics import mean_of
from offline_infer.proof.evaluation.tables import format_table

Row = dict[str, str | float | int | None]

VERDICTS: Mapping[Verdict, str] = {
    "identical": "identical",
    "ties": "the same model: only voxels differ in which two classes tie",
    "different": "two different models",
    "bug": "a bug: the difference is more than rounding",
    "unknown": "cannot be judged: save the probabilities of one side, so that ties can be told from mistakes",
}
_COLUMNS = 8


def comparison_text(report: ComparisonReport, names: Mapping[str, str] | None = None) -> str:
    """Dice per case and class, how much differs and why, and the verdict.

    Args:
        names: label key -> name.
    """
    keys = _label_keys(report.cases)
    lines = [f"a: {report.a}", f"b: {report.b}", ""]
    shown = keys if len(keys) <= _COLUMNS else []
    lines += [format_table([_case_row(case, shown, names or {}) for case in report.cases], digits=4), ""]
    if keys and (len(report.cases) > 1 or not shown):
        lines += [format_table([_label_row(report.cases, key, names or {}) for key in keys], digits=4), ""]
    lines += [f"{case.case}: {case.explanation.text}" for case in report.cases if case.explanation is not None]
    lines += [f"{case.case}: {remark}" for case in report.cases for remark in case.remarks]
    lines += [f"{case}: only in a" for case in report.only_in_a]
    lines += [f"{case}: only in b" for case in report.only_in_b]
    lines += [f"{case}: not compared: {reason}" for case, reason in report.failed.items()]
    lines.append(f"{report.differing:,} of {report.voxels:,} voxels differ; {VERDICTS[report.verdict]}")
    if report.verdict in ("ties", "bug"):
        lines.append(f"a tie: the two most probable classes differ by no more than {report.tie_margin:g}")
    return "\n".join(lines)


def below(report: ComparisonReport, limit: float, names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Cases with a foreground Dice below the limit, or without a comparison -> what is below."""
    found: dict[str, str] = {}
    for case in report.cases:
        low = [
            f"Dice of {(names or {}).get(key, f'label {key}')} {row['dice']:.4f}"
            for key, row in case.labels.items()
            if key != "0" and row["dice"] is not None and row["dice"] < limit
        ]
        if low:
            found[case.case] = f"{', '.join(low)}; at least {limit:g} was asked for"
    for case_name in (*report.only_in_a, *report.only_in_b):
        found[case_name] = "on one side only"
    return {**found, **report.failed}


def _label_keys(cases: Sequence[CaseComparison]) -> list[str]:
    """Foreground labels that occur in any case, by value, regions last."""
    keys = {key for case in cases for key in case.labels if key != "0"}
    return sorted(keys, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))


def _case_row(case: CaseComparison, keys: Sequence[str], names: Mapping[str, str]) -> Row:
    place, margins = case.place, case.margins
    return {
        "case": case.case,
        **{f"Dice {names.get(key, key)}": case.labels.get(key, {}).get("dice") for key in keys},
        **({} if keys else {"lowest Dice": case.lowest_dice}),
        "differing": case.differing,
        "agreement": f"{percent(case.agreement, case.differing)} %",
        "on border": "-" if place is None else f"{place.on_border}/{place.judged}",
        "largest margin": None if margins is None or margins.max is None else f"{margins.max:.2g}",
        "verdict": case.verdict,
    }


def _label_row(cases: Sequence[CaseComparison], key: str, names: Mapping[str, str]) -> Row:
    found = [(float(dice), case.case) for case in cases if (dice := case.labels.get(key, {}).get("dice")) is not None]
    lowest = min(found, default=None)
    return {
        "label": names.get(key, key),
        "cases": len(found),
        "mean Dice": mean_of([dice for dice, _ in found]),
        "lowest Dice": None if lowest is None else lowest[0],
        "in case": "-" if lowest is None else lowest[1],
    }


def percent(agreement: float, differing: int) -> str:
    """A percentage that says 100 only when nothing differs."""
    text = f"{100 * agreement:.4f}"
    return "99.9999+" if differing and text == "100.0000" else text
