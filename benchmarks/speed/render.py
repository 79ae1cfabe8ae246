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
    by_command: dict[tuple[str, str], list[str]] = {}
    for part, facts in results["measured"].items():
        by_command.setdefault((facts["date"], facts["command"]), []).append(part)
    lines = [
        *(f"Measured {date} with `{command}`: {', '.join(parts)}.\n" for (date, command), parts in by_command.items()),
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads used, "
        f"{machine['memory_gib']} GiB, flags {' '.join(machine['flags']) or 'none of interest'}; load when it started "
        f"{machine['load_at_start'][0]}.",
        f"- Ours: {versions}.",
        f"- Peer: {peer}.",
    ]
    peak = {name: value for name, value in results.get("peak_gflops", {}).items() if isinstance(value, float)}
    best = by_clock = best_product(results)
    if best:
        by_processor = max((value for name, value in peak.items() if "," in name), default=0.0)
        lines.append(
            f"- float32 peak, the best product of 4096 x 4096 matrices: {best:.0f} GFLOP/s by the clock, {by_processor:.0f} by "
            "processor time."
        )
        best = max(best, by_processor)
    lines.append(
        "- Every run is a process of its own, and the two sides alternate. Processor time is of all threads together."
    )
    loads = [row["load_before"] for row in _runs(results)]
    if loads and max(loads) > 1.5 * machine["threads"]:
        lines.append(
            f"- Other programs shared the cores (load up to {max(loads)} before a run), so that wall times scatter; processor time "
            "is the steadier measure."
        )
    lines.append("")
    if "startup" in results:
        lines += startup_table(results["startup"])
    if "tiles" in results:
        lines += tile_tables(results["tiles"], best, machine["threads"])
    if "network" in results:
        lines += network_table(results["network"], gflop_per_tile(results), by_clock)
    if "stages" in results or "growth" in results:
        lines += stage_tables(results)
    if "large" in results:
        lines += large_table(results["large"])
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
            "| engine | median s | min - max s | processor s | GFLOP/s by processor time | share of float32 peak | torch fp32 / this, wall (processor) | first call s | peak RSS GiB | max difference from torch fp32 (sd of logits) | labels equal | foreground Dice |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for engine, row in found["engines"].items():
            if "failed" in row:
                lines.append(f"| {engine} | failed: {row['failed']} |" + " |" * 10)
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
                f"| {worst:.2g} ({row.get('reference_std', 0):.2g}) | {100 * row.get('labels_equal', 0):.3f} % "
                f"| {row.get('foreground_dice') or 0:.4f} |"
            )
        lines.append("")
    return lines


def startup_table(found: dict[str, Any]) -> list[str]:
    """Whole processes."""
    lines = ["### Start-up: whole processes", "", "| command | median s | min - max s |", "|---|---|---|"]
    lines += [f"| {name} | {row['median']:.2f} | {_range(row)} |" for name, row in found.items()]
    return [*lines, ""]


def best_product(results: dict[str, Any]) -> float:
    """The machine's float32 peak as measured: GFLOP/s by the clock of the best library's matrix product; 0 if unknown."""
    peak = {name: value for name, value in results.get("peak_gflops", {}).items() if isinstance(value, float)}
    return max((value for name, value in peak.items() if "," not in name), default=0.0)


def gflop_per_tile(results: dict[str, Any]) -> dict[str, float]:
    """Network -> GFLOP of one tile."""
    return {name: found["gflop"] for name, found in results.get("tiles", {}).items()}


def peak_shares(name: str, row: dict[str, Any], gflop: dict[str, float], best: float) -> dict[str, float]:
    """Side -> share of the float32 peak that a whole case reaches; empty where the peak or the network is unknown.

    A ratio between two sides says little without it: it grows with what the peer leaves unused.
    """
    work = gflop.get(name.partition(",")[0])
    if not best or work is None:
        return {}
    tiles = len(row["fp32"]["runs"][0]["tiles_s"])
    return {
        side: tiles * work / row[side]["whole_s"]["median"] / best
        for side in ("peer", "fp32", "bf16")
        if "failed" not in row[side]
    }


def ratio_lines(results: dict[str, Any]) -> list[str]:
    """Every ratio of whole cases in words, each with the share of the peak that both sides reach; for the terminal."""
    best, lines = best_product(results), []
    if best:
        lines.append(f"best float32 matrix product of this machine: {best:.0f} GFLOP/s")
    for name, row in results.get("network", {}).items():
        shares = peak_shares(name, row, gflop_per_tile(results), best)
        for side in ("fp32", "bf16"):
            if "failed" in row[side] or "failed" in row["peer"]:
                lines.append(f"{name}, {side}: failed")
                continue
            ratio = row["peer"]["whole_s"]["median"] / row[side]["whole_s"]["median"]
            told = f" (peer at {shares['peer']:.0%} of the peak, {side} at {shares[side]:.0%})" if shares else ""
            lines.append(f"{name}, {side}: {ratio:.2f} times as fast as the peer{told}")
    return lines


def network_table(network: dict[str, Any], gflop: dict[str, float], best: float) -> list[str]:
    """Whole case, real networks."""
    lines = [
        "### Whole case: file to file, real networks, voxels at the model's spacing",
        "",
        "Reading to writing, the program started and the network loaded. Medians of wall seconds (smallest - largest); ratios by wall, by processor time in brackets. UNet++ runs in this package's pipeline on both sides, with its torch module as the peer, because nnU-Net v2 cannot run it.",
        "",
        "| network | z, y, x | peer s | ours fp32 s | ours bf16 s | peer / fp32 | peer / bf16 | share of float32 peak: peer, fp32, bf16 | fp32: whole / sum of tiles | fp32 labels equal to peer's | bf16 foreground Dice against fp32 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in network.items():
        sides = {side: row[side] for side in ("peer", "fp32", "bf16")}
        reasons = [f"{side}: {found['failed']}" for side, found in sides.items() if "failed" in found]
        if reasons:
            lines.append(f"| {name} | failed: {'; '.join(reasons)} |" + " |" * 9)
            continue
        shares = ", ".join(f"{share:.0%}" for share in peak_shares(name, row, gflop, best).values()) or "-"
        fp32 = row["fp32"]
        share = fp32["whole_s"]["median"] / fp32["tiles_s"]["median"]
        dice = row["bf16 against fp32"].get("foreground_dice")
        lines.append(
            f"| {name} | {'x'.join(map(str, row['shape']))} | "
            + " | ".join(_seconds(found) for found in sides.values())
            + f" | {_ratio(row['peer'], fp32)} | {_ratio(row['peer'], row['bf16'])} | {shares} | {share:.3f} | {_percent(row['fp32 against peer'])} "
            f"| {dice if dice is None else f'{dice:.5f}'} |"
        )
    return [*lines, ""]


def stage_tables(results: dict[str, Any]) -> list[str]:
    """Whole case without the network."""
    lines = [
        "### Whole case without the network: reading, preparing, stitching, resampling back, deciding, writing",
        "",
        "Both sides are given the same answers at no cost. `framework sums`: half precision as nnU-Net v2 sums (the default for its models); `float32 sums`: `--accumulate float32`. Medians of wall seconds (smallest - largest), ratios by wall, by processor time in brackets.",
        "",
        "| case | peer s | framework sums s | float32 sums s | peer / framework sums | peer / float32 sums | peer peak GiB | ours peak GiB, framework / float32 | labels equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = list(results.get("stages", {}).items())
    growth = results.get("growth", {})
    rows += [(f"512x512x{count}, 3 classes", pair) for count, pair in growth.get("slices", {}).items()]
    rows += [(f"512x512x64 at 1.5 mm, {count} classes", pair) for count, pair in growth.get("classes", {}).items()]
    for name, pair in rows:
        sides = {side: pair[side] for side in ("peer", "ours", "ours_float32")}
        reasons = [f"{side}: {found['failed']}" for side, found in sides.items() if "failed" in found]
        if reasons:
            lines.append(f"| {name} | failed: {'; '.join(reasons)} |" + " |" * 7)
            continue
        peaks = {side: found["peak_rss"] / GIB for side, found in sides.items()}
        lines.append(
            f"| {name} | "
            + " | ".join(_seconds(found) for found in sides.values())
            + f" | {_ratio(pair['peer'], pair['ours'])} | {_ratio(pair['peer'], pair['ours_float32'])} | {peaks['peer']:.2f} "
            f"| {peaks['ours']:.2f} / {peaks['ours_float32']:.2f} | {_percent(pair['labels'])} |"
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
                cells = [sum(stages.get(part, 0.0) for part in parts) for parts in STAGES.values()]
                lines.append(f"| {name} | {side} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    if "growth" in results:
        lines += ["", "![time and peak memory against volume and classes](images/performance_growth.png)"]
    return [*lines, ""]


STAGES = {
    "read and prepare": ("read and prepare", "read", "prepare"),
    "stitch, resample back, decide": ("stitch", "resample back and decide", "infer", "finish"),
    "write": ("write",),
}


def large_table(found: dict[str, Any]) -> list[str]:
    """This package alone: memory against its estimate."""
    lines = [
        "### Large cases, this package alone: memory beside its estimate",
        "",
        "float32 sums, the network's answer counted with the stand-in that gives it.",
        "",
        "| case | estimate, above the program with its engine, GiB | measured GiB | in all GiB | seconds around the network (processor) |",
        "|---|---|---|---|---|",
    ]
    for name, row in found.items():
        if "failed" in row:
            lines.append(f"| {name} | failed: {row['failed']} | | | |")
            continue
        estimate = row["memory"]["peak_without_engine"] / GIB
        grown, peak = (row["peak_rss"] - row["base_rss"]) / GIB, row["peak_rss"] / GIB
        lines.append(
            f"| {name} | {estimate:.2f} | {grown:.2f} | {peak:.2f} | {row['whole_s']:.1f} ({row['cpu_s']:.1f}) |"
        )
    return [*lines, ""]


def _runs(results: Any) -> list[dict[str, Any]]:
    """Every run of a process, wherever in the results it is kept."""
    if isinstance(results, dict):
        here = [results] if "load_before" in results else []
        return here + [row for value in results.values() for row in _runs(value)]
    return [row for value in results for row in _runs(value)] if isinstance(results, list) else []


def _range(values: dict[str, float]) -> str:
    return f"{values['min']:.2f} - {values['max']:.2f} ({values['n']})"


def _seconds(side: dict[str, Any]) -> str:
    whole = side["whole_s"]
    spread = f" ({whole['min']:.1f} - {whole['max']:.1f})" if whole["n"] > 1 else " (once)"
    return f"{whole['median']:.1f}{spread}"


def _ratio(peer: dict[str, Any], ours: dict[str, Any]) -> str:
    by_clock = peer["whole_s"]["median"] / ours["whole_s"]["median"]
    return f"{by_clock:.2f} ({peer['cpu_s']['median'] / ours['cpu_s']['median']:.2f})"


def _percent(labels: dict[str, Any]) -> str:
    return f"{100 * labels['equal']:.4f} %" if "equal" in labels else "not compared"


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
            points = [(int(n), pair[side]) for n, pair in growth.get(key, {}).items() if "failed" not in pair[side]]
            where = [count for count, _ in points]
            axes[0, column].plot(where, [row["whole_s"]["median"] for _, row in points], "o-", color=colour, label=name)
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
