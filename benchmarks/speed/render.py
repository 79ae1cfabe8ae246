"""From the raw values to the tables of docs/performance.md and the growth curves. Reads JSON, measures nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

BEGIN = "<!-- measured by benchmarks/speed/run.py: begin -->"
END = "<!-- measured by benchmarks/speed/run.py: end -->"
GIB = 2**30


def write_docs(results: dict[str, Any], docs: Path) -> None:
    """Replace the generated block of performance.md and draw the curves."""
    page = docs / "performance.md"
    block = f"{BEGIN}\n\n{tables(results)}\n{END}"
    text = page.read_text() if page.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + block + after)
    if "growth" in results:
        draw(results["growth"], docs / "images" / "performance_growth.png")


def tables(results: dict[str, Any]) -> str:
    """Everything that was measured, as Markdown."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    peer = ", ".join(f"{name} {value}" for name, value in results["peer_versions"].items())
    lines = [
        f"Measured {results['date']} with `{results['command']}`.",
        "",
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads used, "
        f"{machine['memory_gib']} GiB, flags {' '.join(machine['flags']) or 'none of interest'}; load when it started "
        f"{machine['load_at_start'][0]}.",
        f"- Ours: {versions}.",
        f"- Peer: {peer}.",
    ]
    peak = {name: value for name, value in results.get("peak_gflops", {}).items() if isinstance(value, float)}
    best = max((value for name, value in peak.items() if "," not in name), default=0.0)
    if best:
        by_processor = max((value for name, value in peak.items() if "," in name), default=0.0)
        lines.append(
            f"- float32 peak, the best product of 4096 x 4096 matrices: {best:.0f} GFLOP/s by the clock, {by_processor:.0f} by "
            "processor time."
        )
        best = max(best, by_processor)
    lines.append(
        "- Other programs shared the cores, so that wall times are longer than on a quiet machine and scatter; processor time "
        "(all threads together) is the steadier measure, and the two sides alternated."
    )
    lines.append("")
    if "tiles" in results:
        lines += tile_tables(results["tiles"], best, machine["threads"])
    if "network" in results:
        lines += network_table(results["network"])
    if "stages" in results or "growth" in results:
        lines += stage_tables(results)
    if "resampling" in results:
        lines += resampling_table(results["resampling"])
    return "\n".join(lines)


def tile_tables(tiles: dict[str, Any], best: float, threads: int) -> list[str]:
    """Engine only."""
    lines = ["### Engine only: one 128x128x128 tile, nothing around it", ""]
    for name, found in tiles.items():
        reference = found["engines"].get("torch fp32", {}).get("tile_s", {}).get("median")
        reference_cpu = found["engines"].get("torch fp32", {}).get("cpu_s", {}).get("median", 0.0)
        lines += [
            f"**{name}**, {found['gflop']:.0f} GFLOP a tile",
            "",
            "| engine | median s | min - max s | processor s | GFLOP/s by processor time | share of float32 peak | torch fp32 / this, wall (processor) | first call s | peak RSS GiB | max difference from torch fp32 (sd of logits) |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for engine, row in found["engines"].items():
            if "failed" in row:
                lines.append(f"| {engine} | failed: {row['failed']} |" + " |" * 8)
                continue
            tile = row["tile_s"]
            cpu = row["cpu_s"]["median"]
            rate = found["gflop"] / (cpu / threads)
            share = f"{100 * rate / best:.0f} %" if best else ""
            ratio = f"{reference / tile['median']:.2f} ({reference_cpu / cpu:.2f})" if reference else ""
            worst = row.get("max_abs_difference", 0.0)
            lines.append(
                f"| {engine} | {tile['median']:.2f} | {tile['min']:.2f} - {tile['max']:.2f} ({tile['n']}) | {row['cpu_s']['median']:.2f} "
                f"| {rate:.0f} | {share} | {ratio} | {row['first_s']['median']:.2f} | {row['peak_rss'] / GIB:.1f} "
                f"| {worst:.2g} ({row.get('reference_std', 0):.2g}) |"
            )
        lines.append("")
    return lines


def network_table(network: dict[str, Any]) -> list[str]:
    """Whole case, real networks."""
    lines = [
        f"### Whole case: file to file, real networks, {'x'.join(map(str, network['shape']))} voxels at the model's spacing",
        "",
        "Reading to writing, the program started and the network loaded; wall seconds, processor seconds in brackets. UNet++ runs in this package's pipeline on both sides, with its torch module as the peer, because nnU-Net v2 cannot run it.",
        "",
        "| network | peer s | ours fp32 s | ours bf16 s | peer / fp32 | peer / bf16 | fp32: whole / sum of tiles | fp32 labels equal to peer's | bf16 foreground Dice against fp32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in network.items():
        if name == "shape":
            continue
        whole = {side: row[side].get("whole_s") for side in ("peer", "fp32", "bf16")}
        if None in whole.values():
            reasons = "; ".join(f"{side}: {row[side].get('failed')}" for side, value in whole.items() if value is None)
            lines.append(f"| {name} | failed: {reasons} |" + " |" * 7)
            continue
        cpu = {side: row[side]["cpu_s"] for side in whole}
        share = whole["fp32"] / sum(row["fp32"]["tiles_s"])
        share_cpu = cpu["fp32"] / sum(row["fp32"]["tiles_cpu_s"])
        same, dice = row["fp32 against peer"].get("equal"), row["bf16 against fp32"].get("foreground_dice")
        lines.append(
            f"| {name} | {whole['peer']:.1f} ({cpu['peer']:.1f}) | {whole['fp32']:.1f} ({cpu['fp32']:.1f}) | {whole['bf16']:.1f} ({cpu['bf16']:.1f}) | {whole['peer'] / whole['fp32']:.2f} ({cpu['peer'] / cpu['fp32']:.2f}) "
            f"| {whole['peer'] / whole['bf16']:.2f} ({cpu['peer'] / cpu['bf16']:.2f}) | {share:.3f} ({share_cpu:.3f}) | {100 * same:.4f} % | {dice if dice is None else f'{dice:.5f}'} |"
        )
    return [*lines, ""]


def stage_tables(results: dict[str, Any]) -> list[str]:
    """Whole case without the network."""
    lines = [
        "### Whole case without the network: reading, preparing, stitching, resampling back, deciding, writing",
        "",
        "Both sides are given the same answers at no cost. `framework sums`: half precision as nnU-Net v2 sums (the default for its models); `float32 sums`: `--accumulate float32`. Wall seconds, processor seconds in brackets.",
        "",
        "| case | peer s | framework sums s | float32 sums s | peer / framework sums | peer / float32 sums | peer peak GiB | ours peak GiB, framework / float32 | labels equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = list(results.get("stages", {}).items())
    growth = results.get("growth", {})
    rows += [(f"512x512x{count}, 3 classes", pair) for count, pair in growth.get("slices", {}).items()]
    rows += [(f"512x512x64 at 1.5 mm, {count} classes", pair) for count, pair in growth.get("classes", {}).items()]
    for name, pair in rows:
        mine, single = total(pair["ours"]), total(pair["ours_float32"])
        theirs = total(pair["peer"])
        if mine is None or single is None or theirs is None:
            failed = "; ".join(f"{side}: {pair[side]['failed']}" for side in pair if "failed" in pair[side])
            lines.append(f"| {name} | failed: {failed} |" + " |" * 7)
            continue
        peaks = {side: pair[side]["peak_rss"] / GIB for side in ("peer", "ours", "ours_float32")}
        lines.append(
            f"| {name} | {theirs[0]:.1f} ({theirs[1]:.1f}) | {mine[0]:.1f} ({mine[1]:.1f}) | {single[0]:.1f} ({single[1]:.1f}) "
            f"| {theirs[0] / mine[0]:.1f} ({theirs[1] / mine[1]:.1f}) | {theirs[0] / single[0]:.1f} ({theirs[1] / single[1]:.1f}) "
            f"| {peaks['peer']:.2f} | {peaks['ours']:.2f} / {peaks['ours_float32']:.2f} | {_percent(pair['labels'])} |"
        )
    lines += [
        "",
        "By stage, wall seconds:",
        "",
        "| case | side | " + " | ".join(STAGES) + " |",
        "|---|---|" + "---|" * len(STAGES),
    ]
    for name, pair in rows:
        for side in ("peer", "ours", "ours_float32"):
            stages = pair[side].get("stages")
            if stages:
                cells = [sum(stages[part]["wall_s"] for part in parts if part in stages) for parts in STAGES.values()]
                lines.append(f"| {name} | {side} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    if "growth" in results:
        lines += ["", "![time and peak memory against volume and classes](images/performance_growth.png)"]
    return [*lines, ""]


STAGES = {
    "read and prepare": ("read and prepare", "read", "prepare"),
    "stitch, resample back, decide": ("stitch", "resample back and decide", "infer"),
    "write": ("write",),
}


def _percent(labels: dict[str, Any]) -> str:
    return f"{100 * labels['equal']:.4f} %" if "equal" in labels else "not compared"


def total(side: dict[str, Any]) -> tuple[float, float] | None:
    """Wall and processor seconds of a case, or None where it failed."""
    if "failed" in side:
        return None
    if "whole_s" in side:
        return side["whole_s"], side["cpu_s"]
    rows = side["stages"].values()
    return sum(row["wall_s"] for row in rows), sum(row["cpu_s"] for row in rows)


def resampling_table(found: dict[str, Any]) -> list[str]:
    """Order 3 alone."""
    lines = [
        "### Order-3 resampling alone",
        "",
        "| volume | skimage s | ours s | ratio | largest difference (unit variance) |",
        "|---|---|---|---|---|",
    ]
    for shape, row in found.items():
        if "failed" in row:
            lines.append(f"| {shape} | failed: {row['failed']} | | | |")
            continue
        theirs, ours = median(row["skimage_s"]), median(row["ours_s"])
        lines.append(f"| {shape} | {theirs:.2f} | {ours:.3f} | {theirs / ours:.0f} | {row['max_abs_difference']:.1e} |")
    return [*lines, ""]


def draw(growth: dict[str, Any], path: Path) -> None:
    """Time and peak resident memory against volume size and number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    sides = (
        ("peer", "nnU-Net v2", "#b03a2e"),
        ("ours", "ours, framework sums", "#1f618d"),
        ("ours_float32", "ours, float32 sums", "#5dade2"),
    )
    for column, (key, label) in enumerate(
        (("slices", "slices of 512 x 512, 3 classes"), ("classes", "classes, 512 x 512 x 64"))
    ):
        for side, name, colour in sides:
            points = [
                (int(count), pair[side]) for count, pair in growth.get(key, {}).items() if "failed" not in pair[side]
            ]
            where = [count for count, _ in points]
            axes[0, column].plot(where, [total(row)[0] for _, row in points], "o-", color=colour, label=name)  # type: ignore[index]
            axes[1, column].plot(where, [row["peak_rss"] / GIB for _, row in points], "o-", color=colour, label=name)
        axes[1, column].set_xlabel(label)
        for row in (0, 1):
            axes[row, column].set_ylim(bottom=0)
            axes[row, column].grid(alpha=0.3)
    axes[0, 0].set_ylabel("seconds around the network")
    axes[1, 0].set_ylabel("peak resident memory, GiB")
    axes[0, 0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("results", type=Path, nargs="+", help="one or more JSON files; later ones win")
    parser.add_argument("--docs", type=Path, default=Path(__file__).resolve().parents[2] / "docs")
    options = parser.parse_args()
    merged: dict[str, Any] = {}
    for file in options.results:
        merged |= json.loads(file.read_text())
    write_docs(merged, options.docs)
