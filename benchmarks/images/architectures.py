"""Published architectures, exported and run on both engines: masks and scores against torch's own.

    python benchmarks/images/architectures.py -o architectures.json

Needs `pip install segmentation_models_pytorch timm` beside the extras export, images and ort. Weights are random; statistics of
normalisations and the range of the logits come from the photographs, so that masks are neither constant nor saturated. Each
model goes the whole way: `export` compares the graph with torch on both engines, `predict` writes masks of photographs of
several sizes, and torch's masks of the same inputs, resized by torch, are compared with them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

ARCHITECTURES = {
    "Unet": "resnet34",
    "UnetPlusPlus": "resnet18",
    "MAnet": "resnet18",
    "Linknet": "mobilenet_v2",
    "FPN": "resnet34",
    "PSPNet": "resnet18",
    "PAN": "resnet18",
    "DeepLabV3": "resnet18",
    "DeepLabV3Plus": "resnet34",
    "UPerNet": "resnet18",
    "Segformer": "mit_b0",
    "Unet/efficientnet": "efficientnet-b0",
    "timm/convnext": "convnext_atto",
    "timm/resnet": "resnet26",
    "timm/efficientnet": "efficientnet_lite0",
    "timm/swin": "swin_tiny_patch4_window7_224",
}
ENGINES = ("openvino", "onnxruntime")
SIZES = ((224, 224), (300, 200), (170, 411))


def draw(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number, (height, width) in enumerate(SIZES):
        y, x = np.mgrid[0:height, 0:width]
        picture = (
            110 + 50 * np.sin(x[..., None] / rng.uniform(8, 40, 3)) + 40 * np.cos(y[..., None] / rng.uniform(8, 40, 3))
        )
        inside = (y - height / 2) ** 2 + (x - width / 3) ** 2 < (min(height, width) / 4) ** 2
        picture[inside] = 255 - picture[inside]
        pixels = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"photo{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def compare(name: str, encoder: str, edge: int, photos: list[Path], root: Path) -> dict[str, Any]:
    from published_model import Published

    from offline_infer.predict.folder import FolderJob, predict_folder
    from offline_infer.predict.model import load
    from offline_infer.tasks.image.case import prepare, read
    from offline_infer.tasks.image.own_model import OwnModel, export_own_model
    from offline_infer.tasks.settings import RunSettings

    architecture = name.split("/")[0]
    torch.manual_seed(0)
    network = Published(architecture, encoder)
    place = root / name.replace("/", "_")
    place.mkdir()
    arguments = {"architecture": architecture, "encoder": encoder}
    own = OwnModel(HERE / "published_model.py", place / "weights.pth", "Published", arguments, edge, edge)
    spec_inputs = torch.from_numpy(np.concatenate([inputs(photo, edge) for photo in photos]))
    network.spread(spec_inputs)
    torch.save({"model": network.state_dict()}, place / "weights.pth")
    bundle = export_own_model(own, place / "bundle")
    record = bundle.spec.graphs[0].verification
    row: dict[str, Any] = {
        "encoder": encoder,
        "parameters": record["parameters"],
        "export": {
            engine["engine"]: {name: dict(figures) for name, figures in engine["inputs"].items()}
            for engine in record["engines"]
        },
    }
    for engine in ENGINES:
        with load(place / "bundle", engine=engine) as model:
            found = model.task.list_cases(photos[0].parent, model.spec)
            report = predict_folder(model, FolderJob(found.cases, place / engine), RunSettings())
            assert all(case.status == "done" for case in report.cases), report.failures
            levels = flips = pixels = 0
            score = 0.0
            for photo in photos:
                prepared = prepare(read(photo, model.spec), model.spec)
                with torch.inference_mode():
                    answer = network(torch.from_numpy(prepared.batch))
                    size = prepared.geometry.size
                    soft = functional.interpolate(answer["pred_mask"], size=size, mode="bilinear", align_corners=False)
                wanted = (soft[0, 0] * 255 + 0.5).clamp(0, 255).to(torch.uint8).numpy().astype(int)
                mine = np.asarray(Image.open(place / engine / "pred" / f"{photo.stem}.png")).astype(int)
                levels = max(levels, int(np.abs(mine - wanted).max()))
                flips += int(((mine >= 128) != (wanted >= 128)).sum())
                pixels += mine.size
                told = json.loads((place / engine / "scores" / f"{photo.stem}.json").read_text())["score"]
                score = max(score, abs(told - float(answer["pred_label"][0])))
            row[engine] = {"grey_levels": levels, "flips": flips, "pixels": pixels, "score": score}
    return row


def inputs(photo: Path, edge: int) -> np.ndarray[Any, Any]:
    from offline_infer.arithmetic.bilinear import resize_pixels
    from offline_infer.arithmetic.normalization import normalization_table
    from offline_infer.images.decoding import read_image
    from offline_infer.spec import Pixels

    table, pixels = normalization_table(Pixels()), resize_pixels(read_image(photo, Pixels()), edge, edge)
    return np.stack([table[c][pixels[:, :, c]] for c in range(3)])[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=224)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    packages = ("torch", "segmentation_models_pytorch", "timm", "onnxruntime", "openvino")
    result: dict[str, Any] = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "edge": options.edge,
        "models": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        photos = draw(Path(temporary) / "photos")
        for name in options.only:
            try:
                row = compare(name, ARCHITECTURES[name], options.edge, photos, Path(temporary))
            except Exception as error:  # the table says what does not work
                row = {"encoder": ARCHITECTURES[name], "failed": f"{type(error).__name__}: {error}"[:300]}
            result["models"][name] = row
            print(name, json.dumps({key: value for key, value in row.items() if key != "export"}), flush=True)
            if options.output:
                options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
