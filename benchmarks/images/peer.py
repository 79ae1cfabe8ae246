"""The same model as published code runs it: torch, a DataLoader with workers, masks resized by torch and saved by Pillow."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent))
from mymodel import BenchmarkNet

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Photographs(Dataset):
    def __init__(self, folder: Path, edge: int) -> None:
        self.paths, self.edge = sorted(folder.glob("*.jpg")), edge

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        pixels = torch.from_numpy(np.array(Image.open(self.paths[index]).convert("RGB"))).permute(2, 0, 1).float()
        height, width = pixels.shape[1:]
        small = functional.interpolate(pixels[None], size=(self.edge, self.edge), mode="bilinear", align_corners=False)[
            0
        ]
        return (small.round() / 255 - MEAN) / STD, (height, width), self.paths[index].stem


def main() -> None:
    weights, source, output, edge, batch, threads, workers = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = BenchmarkNet()
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    model.eval()
    Path(output, "pred").mkdir(parents=True)
    loader = DataLoader(Photographs(Path(source), int(edge)), int(batch), num_workers=int(workers))
    scores = {}
    started = time.perf_counter()
    with torch.inference_mode():
        for image, (heights, widths), stems in loader:
            result = model(image)
            for index, stem in enumerate(stems):
                size = (int(heights[index]), int(widths[index]))
                soft = functional.interpolate(
                    result["pred_mask"][index : index + 1], size=size, mode="bilinear", align_corners=False
                )
                grey = (soft[0, 0] * 255 + 0.5).clamp(0, 255).to(torch.uint8).numpy()
                Image.fromarray(grey).save(Path(output, "pred", f"{stem}.png"))
                scores[f"{stem}.jpg"] = float(result["pred_label"][index])
    Path(output, "scores.json").write_text(json.dumps(scores))
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
