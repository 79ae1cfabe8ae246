"""One command: the real nnU-Net 1.7.1 and this package on the same random-weight models and images, one table.

The exit status is 1 where a scenario disagrees by more than near ties.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from make_models import model_folder  # noqa: E402
from scenarios import NAMED, Scenario, random_scenario  # noqa: E402

if TYPE_CHECKING:
    from offline_infer.predict.model import Model

PINS = (
    "nnunet==1.7.1",
    "numpy==1.23.5",
    "scipy==1.10.1",
    "scikit-image==0.19.3",
    "SimpleITK==2.2.1",
    "batchgenerators==0.23",
    "torch",
)
NEAR_TIE = 1e-4
"""Voxels may differ where the two best classes (or a region and one half) are closer than this."""
ROUNDING = 1e-3
"""No probability may differ by more than this, whether or not a label does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--work", type=Path, default=HERE.parent / ".work" / "parity_v1")
    parser.add_argument("--peer-python", type=Path, help="python of an environment that has nnunet 1.7.1")
    parser.add_argument("--only", nargs="+", default=[], help="substrings of scenario names")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="also N random plans")
    parser.add_argument("--first-seed", type=int, default=0, help="of the random plans")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--convolution", choices=("direct", "auto", "f2", "f4"), help="OpenVINO's option of that name")
    parser.add_argument("--json", type=Path, help="write the raw rows there")
    options = parser.parse_args()

    seeds = range(options.first_seed, options.first_seed + options.random)
    scenarios = [*NAMED, *(random_scenario(seed) for seed in seeds)]
    scenarios = [s for s in scenarios if not options.only or any(part in s.name for part in options.only)]
    peer = options.peer_python or make_peer_environment(HERE.parent / ".envs" / "nnunetv1")
    run_peer(peer, options.work, [scenario.name for scenario in scenarios])
    rows = []
    extra = {} if options.convolution is None else {"convolution": options.convolution}
    for scenario in scenarios:
        rows += compare(options.work / scenario.name, scenario, options.engine, extra)
    versions = peer_versions(peer)
    print(f"peer: {versions}; engine: {' '.join([options.engine, *extra.values()])}\n")
    print(table(rows))
    if options.json:
        for row in rows:
            if "error" in row:  # the file is for others, who have other folders
                row["error"] = row["error"].replace(str(options.work), "").replace(str(HERE), "")
        content = {"versions": versions, "engine": options.engine, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(0 if all(agrees(row) for row in rows) else 1)


def run_peer(python: Path, work: Path, names: list[str]) -> None:
    """Make the models and let the real framework predict; what is there already is not made again."""
    work.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "RESULTS_FOLDER": str(work / ".results"),
        "OMP_NUM_THREADS": "1",
        "nnUNet_def_n_proc": "1",
    }
    log = work / "peer.log"
    with log.open("w") as stream:
        for step in ("make_models.py", "peer_predict.py"):
            done = subprocess.run(
                [python, "-W", "ignore", HERE / step, work, *names],
                env=environment,
                stdout=stream,
                stderr=stream,
                check=False,
            )
            if done.returncode:
                sys.exit(f"{step} failed; see {log}")


def make_peer_environment(folder: Path) -> Path:
    """nnU-Net 1.7.1 in an environment of its own, with the libraries of its time."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        if sys.version_info >= (3, 12):
            sys.exit("numpy 1.23, which nnunet 1.7.1 needs, runs on Python 3.11 and older; name one with --peer-python")
        venv.create(folder, with_pip=True)
        constraints = HERE.parents[1] / "constraints.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, *PINS], check=True)
        (folder / "ready").write_text("")
    return python


def peer_versions(python: Path) -> str:
    packages = ("nnunet", "torch", "numpy", "scipy", "scikit-image", "SimpleITK", "batchgenerators")
    code = f"import importlib.metadata as m; print(', '.join(p + ' ' + m.version(p) for p in {packages!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def compare(folder: Path, scenario: Scenario, engine: str, extra: dict[str, str]) -> list[dict[str, Any]]:
    """Predict with this package and compare with what the peer wrote."""
    from offline_infer.checkpoints import Selection
    from offline_infer.exporting.bundles import export_bundle
    from offline_infer.exporting.options import ExportOptions
    from offline_infer.images.cases import find_cases
    from offline_infer.predict.model import load

    def fail(message: str) -> list[dict[str, Any]]:
        return [{"scenario": scenario.name, "case": "-", "error": message}]

    if not (folder / "peer_done").exists():
        error = folder / "peer_error"
        return fail("the peer failed: " + (error.read_text().strip().splitlines()[-1] if error.exists() else "?"))
    models = [("peer", scenario.configuration, scenario.trainer)]
    if scenario.cascade:
        models.insert(0, ("peer_lowres", "3d_lowres", "nnUNetTrainerV2"))
    rows: list[dict[str, Any]] = []
    previous: Path | None = None
    for output, configuration, trainer in models:
        bundle = folder / f"bundle_{configuration}"
        try:
            export_bundle(
                model_folder(folder, configuration, trainer),
                bundle,
                selection=Selection(folds=scenario.asked, checkpoint_name=scenario.checkpoint),
                options=ExportOptions(overwrite=True),
            )
            model = load(bundle, engine=engine, engine_options=extra, previous=previous, threads=1)
        except Exception as error:
            return fail(f"{type(error).__name__}: {error}")
        with model:
            found = find_cases(folder / "images", len(scenario.channels), ".nii.gz")
            for case in found.cases:
                name = case.case_id + (" (lowres)" if output == "peer_lowres" else "")
                row = {"scenario": scenario.name, "case": name}
                rows.append(row)
                try:
                    row |= compare_case(model, list(case.channels), folder / output / case.case_id, scenario)
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"
        previous = bundle
    return rows


def compare_case(model: Model, channels: list[Path], stem: Path, scenario: Scenario) -> dict[str, Any]:
    """One image: labels as users get them, probabilities of a second run that keeps them."""
    from offline_infer.images import read_labels
    from offline_infer.nnunet_files.probabilities import read_npz
    from offline_infer.tasks.settings import RunSettings

    settings = RunSettings(step_size=scenario.step_size, tta=scenario.tta)
    ours = model.predict(channels, settings=settings)
    kept = model.predict(
        channels, settings=RunSettings(step_size=scenario.step_size, tta=scenario.tta, save_probabilities=True)
    )
    theirs, _ = read_labels(stem.with_name(stem.name + ".nii.gz"), model.spec.reader)
    different = headers_differ(
        ours.save(stem.with_name(stem.name + "_ours.nii.gz")), stem.with_name(stem.name + ".nii.gz")
    )
    if different:
        return {"error": f"the files' headers differ in {different}"}
    _, half = read_npz(stem.with_name(stem.name + ".npz"))
    mine = kept.probabilities
    assert mine is not None
    row: dict[str, Any] = {"voxels": int(theirs.size), "labels": len(np.unique(theirs))}
    where = ours.array != theirs
    row["differing"] = int(where.sum())
    row["paths_differ"] = int((ours.array != kept.array).sum())
    if mine.shape != half.shape:
        return {**row, "error": f"probabilities of shape {mine.shape}, the peer's are {half.shape}"}
    # The peer keeps its probabilities in half precision: only what goes beyond that rounding is a difference.
    beyond = np.abs(mine - half.astype(np.float32)) - np.spacing(half).astype(np.float32) / 2
    row["max_probability_difference"] = float(np.maximum(beyond, 0).max())
    if where.any():
        box = tuple(slice(first, last) for first, last in ours.crop)
        row["outside_crop"] = int(where.sum() - where[box].sum())
        regions = model.spec.labels.regions_class_order is not None
        row["widest_margin"] = widest_margin(mine[:, where[box]], regions)
        row["widest_margin_peer"] = widest_margin(half[:, where[box]].astype(np.float32), regions)
    return row


def widest_margin(at: np.ndarray, regions: bool) -> float:
    """How far the widest of some decisions was from another one.

    Args:
        at: (k, n), the probabilities at n voxels.
        regions: every probability is decided at one half, by itself.
    """
    if regions:
        margin = np.abs(at - 0.5).min(axis=0)
    else:
        top = np.sort(at, axis=0)
        margin = top[-1] - top[-2]
    return float(margin.max(initial=0))


def headers_differ(ours: Path, theirs: Path) -> str:
    """What another program would see differently of two label maps beside their voxels; empty for nothing."""
    import SimpleITK as sitk

    images = [sitk.ReadImage(str(path)) for path in (ours, theirs)]
    found = []
    for name in ("GetSize", "GetPixelIDTypeAsString", "GetSpacing", "GetOrigin", "GetDirection"):
        a, b = (getattr(image, name)() for image in images)
        if a != b and (isinstance(a, str) or not np.allclose(a, b, rtol=0, atol=1e-6)):
            found.append(f"{name.removeprefix('Get')} ({a}, {b})")
    return ", ".join(found)


def agrees(row: dict[str, Any]) -> bool:
    """Nothing differs but voxels where two classes are practically equal, and those are few."""
    if "error" in row or row["paths_differ"] or row["differing"] > max(1, 1e-4 * row["voxels"]):
        return False
    if row["max_probability_difference"] > ROUNDING:
        return False
    return row.get("widest_margin", 0) < NEAR_TIE and not row.get("outside_crop")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for a scenario that agrees, one for all random plans that do, and one for every other case."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = row["scenario"]
        groups.setdefault("random plans" if name.startswith("random-") else name, []).append(row)
    lines = [
        "| scenario | label maps | voxels | labels seen | differing | widest margin there | max probability difference |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, group in groups.items():
        good = [row for row in group if agrees(row)]
        if good:
            models = len({row["scenario"] for row in good})
            lines.append(line(name if models == 1 else f"{name} ({models})", good))
        for row in group:
            title = f"{row['scenario']} {row['case']} **disagrees**"
            if "error" in row:
                message = " ".join(row["error"].split()).replace("|", "/")
                lines.append(f"| {title} | {message} | | | | | |")
            elif not agrees(row):
                lines.append(line(title, [row]))
    compared = [row for row in rows if "voxels" in row and "error" not in row]
    if compared:
        lines.append(line(f"**all ({len({row['scenario'] for row in compared})} models)**", compared))
    return "\n".join(lines)


def line(title: str, rows: list[dict[str, Any]]) -> str:
    """One line of the table for some label maps that were compared."""
    margins = [row["widest_margin"] for row in rows if "widest_margin" in row]
    labels = sorted({row["labels"] for row in rows})
    return (
        f"| {title} | {len(rows)} | {sum(row['voxels'] for row in rows)} "
        f"| {labels[0] if len(labels) == 1 else f'{labels[0]} to {labels[-1]}'} "
        f"| {sum(row['differing'] for row in rows)} | {f'{max(margins):.1e}' if margins else ''} "
        f"| {max(row['max_probability_difference'] for row in rows):.1e} |"
    )


if __name__ == "__main__":
    main()
