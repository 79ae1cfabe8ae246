"""Records that a bundle keeps of quantize and tune, as lines for people."""

from __future__ import annotations

from typing import Any


def lines_of_quantization(record: dict[str, Any]) -> list[str]:
    """The record for people."""
    judged = record["judged"]
    lines = [
        f"fold {fold['fold']}: {len(fold['int8_layers'])} layers, {fold['int8_share']:.0%} of the multiplications in INT8, "
        f"{fold['around']} around them; seconds an input: "
        + ", ".join(f"{name} {value:g}" for name, value in fold["input_seconds"].items())
        for fold in record["folds"]
    ]
    lines.append(
        f"{len(judged['dice'])} unseen cases: foreground Dice to float32 lowest {judged['lowest_dice']:.5f}, mean "
        f"{judged['mean_dice']:.5f}"
    )
    paired = judged["paired"]
    if paired is not None:
        interval = "" if paired["low"] is None else f" (95 % interval {paired['low']:+.5f} to {paired['high']:+.5f})"
        lines.append(f"task Dice changes by {paired['mean']:+.5f}{interval} over {paired['cases']} cases")
    return lines


def lines_of_tuning(record: dict[str, Any]) -> list[str]:
    """The table for people, the fastest setting first; ``*`` marks those that no other one beats in both."""
    rows = sorted(record["settings"], key=lambda row: float(row["seconds"]))
    lines = [f"{'s a case':>9}{'Dice':>9}{'change':>10}  setting"]
    for row in rows:
        mark = "chosen" if row["chosen"] else "*" if row["pareto"] else ""
        lines.append(
            f"{row['seconds']:>9.3f}{row['dice']:>9.4f}{row['change']['mean']:>+10.5f}  {row['name']}  {mark}".rstrip()
        )
    return [*lines, *(f"left out: {line}" for line in record["left_out"])]
