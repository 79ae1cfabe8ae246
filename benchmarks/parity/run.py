"""One command: the real nnU-Net v2 and this package on the same random-weight models and images, one table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from scenarios import NAMED, random_scenario  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--work", type=Path, default=HERE.parent / ".work" / "parity")
    parser.add_argument("--peer-python", type=Path, help="python of an environment that has nnunetv2")
    parser.add_argument("--only", nargs="+", default=[], help="substrings of scenario names")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="also N random plans")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--convolution", choices=("direct", "auto", "f2", "f4"), help="OpenVINO's option of that name")
    parser.add_argument("--json", type=Path, help="write the raw rows there")
    options = parser.parse_args()

    scenarios = [*NAMED, *(random_scenario(seed) for seed in range(options.random))]
    scenarios = [s for s in scenarios if not options.only or any(part in s.name for part in options.only)]
    peer = options.peer_python or make_peer_environment(HERE.parent / ".envs" / "nnunetv2")
    names = [scenario.name for scenario in scenarios]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "nnUNet_raw": "",
        "nnUNet_preprocessed": "",
        "nnUNet_results": "",
    }
    options.work.mkdir(parents=True, exist_ok=True)
    log = options.work / "peer.log"
    with log.open("w") as stream:
        for step in ("make_models.py", "peer_predict.py"):
            done = subprocess.run(
                [peer, HERE / step, options.work, *names], env=environment, stdout=stream, stderr=stream, check=False
            )
            if done.returncode:
                sys.exit(f"{step} failed; see {log}")
    extra = {} if options.convolution is None else {"convolution": options.convolution}
    rows = [
        row for scenario in scenarios for row in compare(options.work / scenario.name, scenario, options.engine, extra)
    ]
    versions = subprocess.run(
        [
            peer,
            "-c",
            "import importlib.metadata as m; print(', '.join(p + ' ' + m.version(p) for p in ('nnunetv2', 'torch', 'numpy', 'scikit-image', 'batchgenerators')))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    print(f"peer: {versions}; engine: {' '.join([options.engine, *extra.values()])}\n")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "engine": options.engine, "rows": rows}, indent=1))


def make_peer_environment(folder: Path) -> Path:
    """nnU-Net in an environment of its own."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        subprocess.run(
            [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "-c",
                HERE.parents[1] / "constraints.txt",
                "torch",
                "nnunetv2==2.8.1",
                "tifffile",
            ],
            check=True,
        )
        (folder / "ready").write_text("")
    return python


def compare(folder: Path, scenario, engine: str, extra: dict[str, str]) -> list[dict]:  # type: ignore[no-untyped-def]
    """Predict with this package and compare with what the peer wrote."""
    from offline_infer.checkpoints import Selection
    from offline_infer.exporting.bundles import export_bundle
    from offline_infer.exporting.options import ExportOptions
    from offline_infer.images import read_labels
    from offline_infer.images.cases import find_cases
    from offline_infer.nnunet_files.probabilities import read_npz
    from offline_infer.predict.model import load
    from offline_infer.tasks.settings import RunSettings

    try:
        export_bundle(
            folder / "model",
            folder / "bundle",
            selection=Selection(folds=scenario.folds),
            options=ExportOptions(overwrite=True),
        )
        bundle, previous = folder / "bundle", None
        if scenario.cascade:
            export_bundle(
                folder / "model2",
                folder / "bundle2",
                selection=Selection(folds=scenario.folds),
                options=ExportOptions(overwrite=True),
            )
            bundle, previous = folder / "bundle2", folder / "bundle"
        model = load(bundle, engine=engine, engine_options=extra, previous=previous, cache=folder / "cache")
    except Exception as error:
        return [{"scenario": scenario.name, "case": "-", "error": f"{type(error).__name__}: {error}"}]
    rows = []
    with model:
        channels = 1 if scenario.images[0][2] == "rgb" else len(model.spec.channels)
        for case in find_cases(folder / "images", channels, scenario.file_ending).cases:
            row = {"scenario": scenario.name, "case": case.case_id}
            rows.append(row)
            try:
                theirs, _ = read_labels(folder / "peer" / f"{case.case_id}{scenario.file_ending}", model.spec.reader)
                _, probabilities = read_npz(folder / "peer" / f"{case.case_id}.npz")
                row.update(voxels=int(theirs.size), labels=len(np.unique(theirs)))
                for sums in ("framework", "float32"):
                    settings = RunSettings(
                        scenario.step_size, scenario.tta, sums, save_probabilities=sums == "framework"
                    )
                    ours = model.predict(list(case.channels), settings=settings)
                    where = ours.array != theirs
                    row[f"differing_{sums}"] = int(where.sum())
                    row[f"margin_{sums}"] = widest_margin(probabilities, where, model.spec.labels.regions_class_order)
                    if ours.probabilities is not None:
                        box = tuple(slice(a, b) for a, b in ours.crop)
                        apart = np.abs(ours.probabilities - probabilities[(slice(None), *box)])
                        row["probability_difference"] = float(apart.max())
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
    return rows


def widest_margin(probabilities: np.ndarray, where: np.ndarray, regions: object) -> float | None:
    """How far the peer was from another decision, at worst, where the label maps differ."""
    if not where.any():
        return None
    at = probabilities[:, where]
    if regions is not None:
        return float(np.abs(at - 0.5).min(axis=0).max())
    top = np.sort(at, axis=0)
    return float((top[-1] - top[-2]).max())


def table(rows: list[dict]) -> str:
    """Markdown, one row a case."""
    lines = [
        "| scenario | case | voxels | labels seen | differing | widest margin there | max probability difference "
        "| differing, float32 sums | widest margin there |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['scenario']} | {row['case']} | error: {row['error']} | | | | | | |")
            continue
        margins = [f"{row[k]:.1e}" if row[k] is not None else "" for k in ("margin_framework", "margin_float32")]
        lines.append(
            f"| {row['scenario']} | {row['case']} | {row['voxels']} | {row['labels']} | {row['differing_framework']} | {margins[0]} "
            f"| {row['probability_difference']:.1e} | {row['differing_float32']} | {margins[1]} |"
        )
    good = [row for row in rows if "error" not in row]
    if good:
        total = sum(row["voxels"] for row in good)
        exact, plain = (sum(row[f"differing_{sums}"] for row in good) for sums in ("framework", "float32"))
        lines.append(f"| **all** | {len(good)} | {total} | | **{exact}** | | | {plain} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
