"""One command: nnU-Net v2's own predictor and this package side by side; raw values as JSON, tables and curves as docs.

Engine-only figures (one tile, nothing around it) and whole-case figures (by stage) are never put in one column. Every
measurement runs in a fresh process; the two sides alternate, so that other load affects both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "parity"))

from machine import machine_facts, versions_of  # noqa: E402
from networks import CT_SPACING, FULL, PATCH, gflop, unetplusplus  # noqa: E402
from shared import REPORT, spread, synthetic_ct  # noqa: E402

PARTS = ("startup", "resampling", "tiles", "network", "stages", "large", "growth")
MANY = 48
"""From that many classes on the two sides run once: the peer takes minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--work", type=Path, default=HERE.parent / ".work" / "speed")
    parser.add_argument("--peer-python", type=Path, help="python of an environment that has nnunetv2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default all")
    parser.add_argument("--rounds", type=int, default=2, help="how often the two sides alternate (many classes: once)")
    parser.add_argument("--tiles", type=int, default=3, help="measured tiles per round and engine")
    parser.add_argument("--stage-slices", type=int, default=400, help="of the 512x512 CT of the stages, 3 classes")
    parser.add_argument(
        "--slices", type=int, nargs="+", default=[40, 80, 160, 320], help="growth: of 512x512 CTs, 3 classes"
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 16, 48, 118], help="growth: on a 512x512x64 CT")
    shape = {"type": int, "nargs": 3, "metavar": ("Z", "Y", "X")}
    parser.add_argument("--case", default=[160, 192, 192], help="real networks, no mirroring", **shape)
    parser.add_argument("--tta-case", default=[128, 192, 192], help="real network with mirroring", **shape)
    parser.add_argument("--no-tta-run", action="store_true", help="leave out the whole case with mirroring")
    parser.add_argument("--no-docs", action="store_true", help="write the JSON only")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    bench = Bench(options)
    started = time.perf_counter()
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    results |= {
        "machine": machine_facts(options.threads),
        "versions": versions_of(Path(sys.executable)),
        "peer_versions": versions_of(bench.peer),
    }
    measured: dict[str, dict[str, Any]] = results.setdefault("measured", {})
    command = " ".join(["python", "benchmarks/speed/run.py", *_told(options)])
    results["peak_gflops"] = bench.script("tile.py", {"engine": "peak", "threads": options.threads})
    for part in options.parts:
        before, begun = results.get(part), time.perf_counter()

        def keep(found: dict[str, Any], part: str = part) -> None:
            """A long part that is stopped leaves what it has measured."""
            results[part] = found
            options.json.write_text(json.dumps(results, indent=1))

        bench.keep = keep
        results[part] = getattr(bench, part)()
        print(
            f"{part}: done after {time.perf_counter() - started:.0f} s{'' if before is None else ', replaced'}",
            flush=True,
        )
        facts = {"date": time.strftime("%Y-%m-%d"), "command": command, "seconds": round(time.perf_counter() - begun)}
        measured[part] = facts
        options.json.write_text(json.dumps(results, indent=1))
    from render import ratio_lines, write_docs

    print("\n".join(ratio_lines(results)))
    if not options.no_docs:
        write_docs(results, ROOT / "docs")


def _told(options: argparse.Namespace) -> list[str]:
    """The command line without what is the machine's own business: its paths."""
    private = {str(path) for path in (options.work, options.peer_python, options.json) if path is not None}
    words = [word for word in sys.argv[1:] if str(Path(word)) not in private]
    return [word for word in words if word not in ("--work", "--peer-python", "--json", "--no-docs")]


class Bench:
    """Runs the scripts beside this file, ours and the peer's."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.keep: Callable[[dict[str, Any]], None] = lambda found: None
        if options.peer_python is None:
            options.peer_python = peer_environment(HERE.parent / ".envs" / "nnunetv2")
        self.peer = Path(os.path.abspath(options.peer_python))  # not resolved: that would leave the environment

    def script(self, name: str, job: dict[str, Any], python: Path | None = None) -> dict[str, Any]:
        """Run a script in a fresh process; its result, or what went wrong."""
        threads = str(self.options.threads)
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        load = os.getloadavg()[0]
        done = subprocess.run(
            [python or sys.executable, HERE / name, json.dumps(job)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith(REPORT)]
        label = job.get("engine", "peer")
        if not lines:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            print(f"  {name} {label}: failed: {reason}", flush=True)
            return {"failed": reason[:300]}
        result: dict[str, Any] = json.loads(lines[-1][len(REPORT) :])
        result["load_before"] = round(load, 1)
        print(f"  {name} {label} {job.get('precision', '')}: done", flush=True)
        return result

    def model(self, classes: int, spacing: tuple[float, ...], features: tuple[int, ...]) -> tuple[Path, Path]:
        """Checkpoint folder and bundle."""
        name = f"model_{classes}_{features[0]}_{spacing[0]:g}"
        folder, bundle = self.work / name, self.work / f"{name}_bundle"
        if not bundle.exists():
            item = {"folder": str(folder), "classes": classes, "spacing": spacing, "features": features}
            subprocess.run(
                [self.peer, HERE / "networks.py", json.dumps([item])],
                env={**os.environ, "PYTHONPATH": str(HERE)},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            from offline_infer.exporting.bundles import export_bundle
            from offline_infer.exporting.options import ExportOptions

            export_bundle(folder, bundle, options=ExportOptions(verify=False, overwrite=True))
        return folder, bundle

    def image(self, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Path:
        path = self.work / ("ct_" + "x".join(map(str, shape)) + f"_{spacing[0]:g}_0000.nii.gz")
        if not path.exists():
            import SimpleITK as sitk

            image = sitk.GetImageFromArray(synthetic_ct(shape))
            image.SetSpacing(spacing[::-1])
            sitk.WriteImage(image, str(path), True, 1)
        return path

    def plusplus(self) -> Path:
        """A bundle of the full-scale UNet++ for CT, three classes."""
        bundle = self.work / "unetplusplus_bundle"
        if not bundle.exists():
            from offline_infer.bundles.bundle import Bundle
            from offline_infer.exporting.bundles import export_network
            from offline_infer.exporting.options import ExportOptions

            spec = Bundle.load(self.model(3, CT_SPACING, FULL)[1]).spec
            export_network(spec, lambda fold: unetplusplus(3), bundle, options=ExportOptions(verify=False))
        return bundle

    def resampling(self) -> dict[str, Any]:
        """Order 3, against skimage."""
        print("resampling")
        jobs = (
            {"shape": (80, 160, 160), "target": (120, 128, 128)},
            {"shape": (160, 512, 512), "target": (240, 520, 520)},
        )
        return {
            "x".join(map(str, job["shape"])): self.script(
                "resampling.py", {**job, "threads": self.options.threads, "repeats": 3 if job["shape"][0] < 100 else 1}
            )
            for job in jobs
        }

    def tiles(self) -> dict[str, Any]:
        """Engine only: one tile of the two full-size networks."""
        print("tiles")
        from offline_infer.checkpoints import read_checkpoint
        from offline_infer.networks import build

        model, bundle = self.model(3, CT_SPACING, FULL)
        networks = {
            "PlainConvUNet": {"network": "checkpoint", "model": str(model), "bundle": str(bundle)},
            "UNet++": {"network": "unetplusplus", "bundle": str(self.plusplus())},
        }
        found: dict[str, Any] = {
            "PlainConvUNet": {"gflop": gflop(build(read_checkpoint(model).network))},
            "UNet++": {"gflop": gflop(unetplusplus(3))},
        }
        engines = [
            ("torch", "fp32"),
            ("torch", "bf16"),
            ("openvino", "fp32"),
            ("openvino", "bf16"),
            ("onnxruntime", "fp32"),
        ]
        for name, job in networks.items():
            runs: dict[str, list[dict[str, Any]]] = {f"{engine} {precision}": [] for engine, precision in engines}
            for number in range(self.options.rounds):
                for engine, precision in engines:
                    if engine == "onnxruntime" and number:
                        continue  # known to be the slowest; once is enough
                    facts = {
                        **job,
                        "engine": engine,
                        "precision": precision,
                        "threads": self.options.threads,
                        "classes": 3,
                        "patch": PATCH,
                        "repeats": self.options.tiles if name == "PlainConvUNet" else max(1, self.options.tiles - 1),
                        "answer": str(self.work / f"answer_{name}_{engine}_{precision}.npy"),
                    }
                    runs[f"{engine} {precision}"].append(self.script("tile.py", facts))
            found[name]["engines"] = {key: _tile_summary(rows) for key, rows in runs.items()}
            found[name]["raw"] = runs
            _compare_answers(self.work, name, found[name]["engines"])
        return found

    def _pair(self, image: Path, model: Path, bundle: Path, classes: int, tta: bool) -> dict[str, Any]:
        """One case with a stand-in for the network, through both sides."""
        job = {
            "image": str(image),
            "model": str(model),
            "bundle": str(bundle),
            "classes": classes,
            "tta": tta,
            "threads": self.options.threads,
            "stand_in": True,
            "engine": "stand-in",
        }
        runs: dict[str, list[dict[str, Any]]] = {"peer": [], "ours": [], "ours_float32": []}
        for _ in range(1 if classes >= MANY else self.options.rounds):
            ours = {**job, "output": str(self.work / "ours")}
            single = {**job, "accumulate": "float32", "output": str(self.work / "ours32")}
            runs["ours_float32"].append(self.script("our_case.py", single))
            runs["ours"].append(self.script("our_case.py", ours))
            peer = {**job, "engine": "peer", "output": str(self.work / "peer")}
            runs["peer"].append(self.script("peer_case.py", peer, self.peer))
        same = _agreement(self.work / "ours" / "case.nii.gz", self.work / "peer.nii.gz")
        return {**{side: _case_summary(rows) for side, rows in runs.items()}, "labels": same}

    def stages(self) -> dict[str, Any]:
        """Around the network: a large CT at the model's full resolution, 3 classes, with mirroring and without."""
        print("stages")
        count = self.options.stage_slices
        image = self.image((count, 512, 512), (1.0, 0.78, 0.78))
        found: dict[str, Any] = {}
        for tta in (True, False):
            name = f"512x512x{count}, 3 classes" + (", mirroring" if tta else "")
            found[name] = self._pair(image, *self.model(3, CT_SPACING, (2, 2)), 3, tta)
            self.keep(found)
        return found

    def growth(self) -> dict[str, Any]:
        """Around the network: against volume size and number of classes, without mirroring."""
        print("growth")
        found: dict[str, Any] = {"slices": {}, "classes": {}}
        for count in self.options.slices:
            image = self.image((count, 512, 512), (1.5, 0.78, 0.78))
            found["slices"][count] = self._pair(image, *self.model(3, CT_SPACING, (2, 2)), 3, False)
            self.keep(found)
        for classes in self.options.classes:
            image = self.image((64, 512, 512), (3.0, 0.78, 0.78))
            found["classes"][classes] = self._pair(image, *self.model(classes, (1.5, 1.5, 1.5), (2, 2)), classes, False)
            self.keep(found)
        return found

    def large(self) -> dict[str, Any]:
        """Memory and time of this package alone on a CT whose many classes the peer cannot hold here."""
        print("large")
        count, classes = self.options.stage_slices, max(self.options.classes)
        image = self.image((count, 512, 512), (1.0, 0.78, 0.78))
        cases = {
            f"512x512x{count}, {classes} classes, model at 1.5 mm": (classes, (1.5, 1.5, 1.5), False),
            f"512x512x{count}, 3 classes, full resolution, mirroring": (3, CT_SPACING, True),
        }
        found: dict[str, Any] = {}
        for name, (number, spacing, tta) in cases.items():
            model, bundle = self.model(number, spacing, (2, 2))
            job = {
                "image": str(image),
                "model": str(model),
                "bundle": str(bundle),
                "classes": number,
                "tta": tta,
                "threads": self.options.threads,
                "stand_in": True,
                "engine": "stand-in",
                "accumulate": "float32",
                "output": str(self.work / "large"),
            }
            found[name] = self.script("our_case.py", job)
            self.keep(found)
        return found

    def startup(self) -> dict[str, Any]:
        """Wall seconds of whole processes: ``--help``, and ``predict`` of a tiny case, first and with the compiled graph cached."""
        print("startup")
        bundle = self.model(3, CT_SPACING, (2, 2))[1]
        image = self.image((24, 48, 48), CT_SPACING)
        cache = self.work / "startup_cache"
        shutil.rmtree(cache, ignore_errors=True)
        program = [sys.executable, "-m", "offline_infer"]
        predict = [*program, "predict", str(bundle), str(image), str(self.work / "startup"), "--overwrite"]
        predict += ["--no-tta", "--cache", str(cache), "--threads", str(self.options.threads)]
        jobs = {"help": ([*program, "--help"], 5), "predict, first": (predict, 1), "predict, cached": (predict, 5)}
        found: dict[str, Any] = {}
        for name, (command, repeats) in jobs.items():
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                seconds.append(time.perf_counter() - start)
            found[name] = spread(seconds)
        return found

    def network(self) -> dict[str, Any]:
        """Whole case with the real networks."""
        print("network")
        model, bundle = self.model(3, CT_SPACING, FULL)
        found: dict[str, Any] = {}
        plain, mirrored = (self.options.case, False), (self.options.tta_case, True)
        job: dict[str, Any] = {
            "model": str(model),
            "threads": self.options.threads,
            "stand_in": False,
            "classes": 3,
        }
        networks: list[tuple[str, Path, tuple[list[int], bool], Path | None]] = [
            ("PlainConvUNet", bundle, plain, self.peer),
            ("PlainConvUNet, mirroring", bundle, mirrored, self.peer),
            ("UNet++", self.plusplus(), (self.options.tta_case, False), None),
        ]
        for name, folder, (shape, tta), peer in networks:
            if tta and self.options.no_tta_run:
                continue
            image = self.image((shape[0], shape[1], shape[2]), CT_SPACING)
            found[name] = self._real({**job, "image": str(image), "bundle": str(folder), "tta": tta}, peer)
            found[name]["shape"] = shape
            self.keep(found)
        return found

    def _real(self, job: dict[str, Any], peer: Path | None) -> dict[str, Any]:
        """Peer, ours in float32, ours in bfloat16. Without a peer's environment, the torch module takes its place."""
        runs: dict[str, list[dict[str, Any]]] = {"peer": [], "fp32": [], "bf16": []}
        cache = str(self.work / "cache")
        answer = self.work / "real_peer.nii.gz" if peer is not None else self.work / "real_torch" / "case.nii.gz"
        for _ in range(self.options.rounds):
            for precision in ("fp32", "bf16"):
                job_here = {**job, "engine": "openvino", "precision": precision, "cache": cache}
                job_here["output"] = str(self.work / f"real_{precision}")
                runs[precision].append(self.script("our_case.py", job_here))
            if peer is not None:
                theirs = {**job, "output": str(self.work / "real_peer")}
                runs["peer"].append(self.script("peer_case.py", theirs, peer))
            else:
                theirs = {**job, "engine": "torch", "output": str(self.work / "real_torch")}
                runs["peer"].append(self.script("our_case.py", theirs))
        ours, half = (self.work / f"real_{precision}" / "case.nii.gz" for precision in ("fp32", "bf16"))
        return {
            **{side: _case_summary(rows) for side, rows in runs.items()},
            "fp32 against peer": _agreement(ours, answer),
            "bf16 against fp32": _agreement(half, ours),
        }


def peer_environment(folder: Path) -> Path:
    """nnU-Net in an environment of its own, the same as for the parity benchmark."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        needs = ["torch", "nnunetv2==2.8.1", "tifffile"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *needs], check=True)
        (folder / "ready").write_text("")
    return python


def _tile_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row for row in rows if "failed" not in row]
    if not good:
        return {"failed": rows[0]["failed"] if rows else "not run"}
    return {
        "tile_s": spread([value for row in good for value in row["tiles_s"]]),
        "cpu_s": spread([value for row in good for value in row["cpu_s"]]),
        "first_s": spread([row["first_s"] for row in good]),
        "open_s": spread([row["open_s"] for row in good]),
        "peak_rss": max(row["peak_rss"] for row in good),
    }


def _case_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spread of some runs of one case; the runs themselves under ``runs``."""
    good = [row for row in rows if "failed" not in row]
    if not good:
        return {"failed": rows[0]["failed"] if rows else "not run"}
    for row in good:
        if "whole_s" not in row:
            row["whole_s"] = sum(stage["wall_s"] for stage in row["stages"].values())
            row["cpu_s"] = sum(stage["cpu_s"] for stage in row["stages"].values())
    stages = good[0].get("stages", {})
    return {
        "whole_s": spread([row["whole_s"] for row in good]),
        "cpu_s": spread([row["cpu_s"] for row in good]),
        "tiles_s": spread([sum(row["tiles_s"]) for row in good]) if good[0].get("tiles_s") else None,
        "tiles_cpu_s": spread([sum(row["tiles_cpu_s"]) for row in good]) if good[0].get("tiles_cpu_s") else None,
        "peak_rss": max(row["peak_rss"] for row in good),
        "stages": {name: statistics.median(row["stages"][name]["wall_s"] for row in good) for name in stages},
        "runs": rows,
    }


def _compare_answers(work: Path, name: str, engines: dict[str, Any]) -> None:
    import numpy as np

    reference = np.load(work / f"answer_{name}_torch_fp32.npy")
    for key, row in engines.items():
        engine, precision = key.split(" ")
        path = work / f"answer_{name}_{engine}_{precision}.npy"
        if "failed" not in row and path.exists():
            answer = np.load(path)
            row["max_abs_difference"] = float(np.abs(answer - reference).max())
            row["reference_std"] = float(reference.std())
            mine, theirs = answer.argmax(0), reference.argmax(0)
            front = int((mine > 0).sum()) + int((theirs > 0).sum())
            row["labels_equal"] = float((mine == theirs).mean())
            row["foreground_dice"] = 2 * int(((mine == theirs) & (mine > 0)).sum()) / front if front else None


def _agreement(one: Path, other: Path) -> dict[str, Any]:
    """Equal voxels, and the foreground's Dice, of two label files."""
    import numpy as np

    from offline_infer.images import read_labels

    try:
        a, b = read_labels(one)[0], read_labels(other)[0]
    except Exception as error:
        return {"failed": str(error)[:200]}
    front = int((a > 0).sum()) + int((b > 0).sum())
    return {
        "equal": float((a == b).mean()),
        "different_voxels": int((a != b).sum()),
        "foreground_dice": 2 * int(((a == b) & (a > 0)).sum()) / front if front else None,
        "labels": [int(value) for value in np.unique(a)],
    }


if __name__ == "__main__":
    main()
