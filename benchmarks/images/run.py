"""Masks of a folder of photographs: offline_infer against the same model in torch with a DataLoader, same batch and threads.

    python benchmarks/images/run.py --count 60 --edge 512 --threads 2 -o result.json

Both sides decode the same JPEG files, prepare, run a batch of one, resize the mask to the photograph and write a PNG.
The time is that of the loop: opening the model and importing libraries is not counted on either side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def draw(folder: Path, count: int, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    y, x = np.mgrid[0:height, 0:width]
    for number in range(count):
        base = (
            120 + 60 * np.sin(x[..., None] / rng.uniform(8, 60, 3)) + 40 * np.cos(y[..., None] / rng.uniform(8, 60, 3))
        )
        picture = np.clip(base + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"photo{number:04}.jpg", quality=90)


def ours(bundle: Path, source: Path, output: Path, threads: int) -> float:
    from offline_infer.predict.folder import FolderJob, predict_folder
    from offline_infer.predict.model import load
    from offline_infer.tasks.settings import RunSettings

    with load(bundle, threads=threads) as model:
        found = model.task.list_cases(source, model.spec)
        model.session_info  # noqa: B018 - opens the graph
        started = time.perf_counter()
        report = predict_folder(model, FolderJob(found.cases, output), RunSettings())
        seconds = time.perf_counter() - started
    assert all(case.status == "done" for case in report.cases)
    return seconds


def theirs(weights: Path, source: Path, output: Path, edge: int, threads: int, workers: int) -> float:
    command = [sys.executable, str(HERE / "peer.py"), str(weights), str(source), str(output)]
    command += [str(edge), "1", str(threads), str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=960)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the DataLoader; the best counts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    from mymodel import BenchmarkNet

    from offline_infer.tasks.image.own_model import OwnModel, export_own_model

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        torch.manual_seed(0)
        torch.save({"model": BenchmarkNet().state_dict()}, root / "weights.pth")
        draw(root / "photos", options.count, options.height, options.width)
        model = OwnModel(HERE / "mymodel.py", root / "weights.pth", height=options.edge, width=options.edge)
        export_own_model(model, root / "bundle")
        mine, peer = [], []
        for repeat in range(options.repeats):  # in turn, so that a slow moment of the machine hits both
            mine.append(ours(root / "bundle", root / "photos", root / f"ours{repeat}", options.threads))
            best = min(
                theirs(
                    root / "weights.pth", root / "photos", root / f"peer{repeat}_{w}", options.edge, options.threads, w
                )
                for w in options.workers
            )
            peer.append(best)
        gap = worst_gap(root / "ours0" / "pred", root / f"peer0_{options.workers[0]}" / "pred")
    result = {
        "photographs": options.count,
        "size": [options.height, options.width],
        "edge": options.edge,
        "threads": options.threads,
        "ours_seconds": mine,
        "torch_seconds": peer,
        "ratio": statistics.median(peer) / statistics.median(mine),
        "largest_difference_in_grey_levels": gap,
    }
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def worst_gap(ours_folder: Path, peer_folder: Path) -> int:
    gaps = []
    for path in sorted(peer_folder.glob("*.png")):
        left, right = (np.asarray(Image.open(p)).astype(int) for p in (path, ours_folder / path.name))
        gaps.append(int(np.abs(left - right).max()))
    return max(gaps)


if __name__ == "__main__":
    main()
