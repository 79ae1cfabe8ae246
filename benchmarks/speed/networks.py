"""The networks that are compared, with random weights: a checkpoint for the peer, bundles for this package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parity"))

FULL = (32, 64, 128, 256, 320, 320)
PATCH = (128, 128, 128)
CT_SPACING = (1.0, 0.767578125, 0.767578125)


def labels(classes: int) -> dict[str, Any]:
    """``labels`` of a dataset.json."""
    return {"background": 0, **{f"structure_{i}": i for i in range(1, classes)}}


def write_checkpoint(folder: Path, *, classes: int, spacing: tuple[float, ...], features: tuple[int, ...]) -> None:
    """A model folder of nnU-Net v2. Needs the peer's environment."""
    from make_models import write_model
    from scenarios import Scenario

    scenario = Scenario("speed-benchmark", patch=PATCH, spacing=spacing, labels=labels(classes), features=features)
    write_model(folder, scenario, "3d_fullres")


def unetplusplus(classes: int) -> Any:
    """Full-scale UNet++, three-dimensional, random weights from a fixed seed. Needs torch."""
    import torch

    from offline_infer.networks.unetplusplus import UNetPlusPlus

    torch.manual_seed(0)
    network = UNetPlusPlus(1, 32, classes, [(2, 2, 2)] * 5, [(3, 3, 3)] * 6)
    return network.eval()


def gflop(network: Any, patch: tuple[int, ...] = PATCH) -> float:
    """Multiplications and additions of all convolutions for one tile, in 10^9, counted on torch's meta device."""
    import torch

    total = 0
    hooks = []

    def count(module: Any, _: Any, output: Any) -> None:
        nonlocal total
        kernel = 1
        for size in module.kernel_size:
            kernel *= size
        if isinstance(module, torch.nn.ConvTranspose3d):
            # Every output voxel of a stride-sized kernel comes from one input voxel.
            for size in module.stride:
                kernel //= size
        total += 2 * output.numel() * module.in_channels // module.groups * kernel

    network = network.to("meta")
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)):
            hooks.append(module.register_forward_hook(count))
    with torch.inference_mode():
        network(torch.zeros((1, 1, *patch), device="meta"))
    for hook in hooks:
        hook.remove()
    return total / 1e9


if __name__ == "__main__":
    import json

    for item in json.loads(sys.argv[1]):
        target = Path(item.pop("folder"))
        if not (target / "fold_0" / "checkpoint_final.pth").exists():
            write_checkpoint(
                target, classes=item["classes"], spacing=tuple(item["spacing"]), features=tuple(item["features"])
            )
