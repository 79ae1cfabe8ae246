"""Memory over a long run: ten thousand small photographs through one `predict`, resident memory by the image.

python benchmarks/images/many.py --count 10000 -o many.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
DISTINCT = 100


def draw(folder: Path, count: int) -> None:
    """``count`` photographs of 100 contents, each under its own name."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(DISTINCT):
        height, width = rng.integers(40, 90, 2)
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((int(width), int(height))).save(folder / f"photo{number:05}.jpg", quality=90)
    for number in range(DISTINCT, count):
        (folder / f"photo{number:05}.jpg").hardlink_to(folder / f"photo{number % DISTINCT:05}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--edge", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    from mymodel import BenchmarkNet

    from offline_infer.events import Event
    from offline_infer.predict.folder import FolderJob, predict_folder
    from offline_infer.predict.model import load
    from offline_infer.tasks.image.own_model import OwnModel, export_own_model
    from offline_infer.tasks.settings import RunSettings

    process, samples, done = psutil.Process(), [], 0

    def watch(event: Event) -> None:
        nonlocal done
        if event.kind == "case-finished":
            done += 1
            if done % (options.count // 20) == 0:
                samples.append((done, round(process.memory_info().rss / 2**20, 1)))
                print(*samples[-1], flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        draw(root / "photos", options.count)
        torch.save({"model": BenchmarkNet(2).state_dict()}, root / "weights.pth")
        own = OwnModel(HERE / "mymodel.py", root / "weights.pth", None, {"width": "2"}, options.edge, options.edge)
        export_own_model(own, root / "bundle")
        with load(root / "bundle", threads=options.threads) as model:
            found = model.task.list_cases(root / "photos", model.spec)
            started = time.perf_counter()
            report = predict_folder(model, FolderJob(found.cases, root / "out"), RunSettings(), watch)
            seconds = time.perf_counter() - started
        scores = json.loads((root / "out" / "pred_label_combined.json").read_text())
        result = {
            "images": options.count,
            "done": sum(case.status == "done" for case in report.cases),
            "masks": sum(1 for _ in (root / "out" / "pred").iterdir()),
            "scores": len(scores),
            "seconds": round(seconds, 1),
            "resident_mib": samples,
        }
    print(json.dumps(result))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
