"""Labels of convolutions with fewer multiplications beside those of direct ones and of torch, on networks drawn at random.

    python benchmarks/parity/winograd.py --random 60                   # small networks of every kind
    python benchmarks/parity/winograd.py --large                       # patches and features of ordinary plans
    python benchmarks/parity/winograd.py --goldens ../shared/goldens   # recorded answers of the frameworks, whole cases

Ways: `f2` and `f4` wherever a layer can be, `auto` with its thresholds taken away, so that every layer is what measures fastest.
Weights are random, so logits nearly tie in many places: the margin of the voxels that differ (between the two largest logits,
in standard deviations) says whether they do. `--rows` keeps the raw rows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.engines.openvino.winograd import plan

WAYS = ("f2", "f4", "auto")
FAMILIES = ("plain", "residual", "generic", "plusplus")


@dataclass(frozen=True)
class Drawn:
    """A network: what it is made of, (z, y, x) or (y, x)."""

    name: str
    family: str
    patch: tuple[int, ...]
    features: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    channels: int
    classes: int
    activation: str = "LeakyReLU"
    batch_norm: bool = False


def draw(seed: int) -> Drawn:
    """A network of a few features; the first seeds go through the families and both numbers of axes."""
    rng = random.Random(seed)
    family = FAMILIES[seed % len(FAMILIES)]
    dims = 2 if seed % 5 == 4 and family != "plusplus" else 3
    poolings = 5 if family == "plusplus" else rng.randint(2, 3)
    flat = dims == 3 and rng.random() < 0.6  # anisotropic: the first stages leave z as it is
    thin = rng.randint(1, poolings) if flat else 0
    kernels, strides = [], [(1,) * dims]
    for level in range(poolings + 1):
        kernels.append((1, 3, 3) if level < thin else (3,) * dims)
    for level in range(poolings):
        strides.append((1, 2, 2) if level < thin or (flat and rng.random() < 0.7) else (2,) * dims)
    total = [int(np.prod([stride[axis] for stride in strides])) for axis in range(dims)]
    patch = []
    for axis in range(dims):
        if dims == 3 and axis == 0:
            sizes = [size for size in (5, 7, 9, 10, 12, 13, 14, 16, 18, 20, 24) if size % total[0] == 0]
            patch.append(rng.choice(sizes or [total[0]]))
        else:
            least = 64 if dims == 2 else 24
            # Two voxels at the bottom, for an instance norm over a single one is refused by torch.
            patch.append(total[axis] * max(rng.randint(least, 2 * least) // total[axis], 2 if axis == dims - 1 else 1))
    base = rng.choice((8, 12, 16))
    return Drawn(
        f"random-{seed}",
        family,
        tuple(patch),
        tuple(min(base << level, 64) for level in range(poolings + 1)),
        tuple(kernels),
        tuple(strides),
        rng.choice((1, 1, 2, 4)),
        rng.choice((2, 3, 5, 14, 40)),
        rng.choice(("LeakyReLU", "LeakyReLU", "ReLU", "GELU", "Mish"))
        if family in ("plain", "residual")
        else "LeakyReLU",
        family in ("plain", "residual") and rng.random() < 0.2,
    )


def large() -> list[Drawn]:
    """Ordinary plans, with as many features as nnU-Net gives them; patches smaller than usual where torch would take minutes."""
    two, flat, cube = (2, 2, 2), (1, 2, 2), (3, 3, 3)
    one = (1, 1, 1)
    thin = (1, 3, 3)
    full = (32, 64, 128, 256, 320, 320)
    return [
        Drawn("plain 20x320x256", "plain", (20, 320, 256), full, (thin, thin, *(cube,) * 4), (one, flat, flat, two, two, flat), 1, 4),
        Drawn("residual 16x192x160", "residual", (16, 192, 160), full[:5], (thin, *(cube,) * 4), (one, flat, two, two, two), 2, 5),
        Drawn("residual 96x96x96", "residual", (96, 96, 96), full[:5], (cube,) * 5, (one, *(two,) * 4), 1, 15),
        Drawn("plain 13x160x160", "plain", (13, 160, 160), full[:5], (thin, thin, cube, cube, cube), (one, *(flat,) * 4), 3, 3),
        Drawn("plain 2d 512x512", "plain", (512, 512), (32, 64, 128, 256, 512, 512), ((3, 3),) * 6, ((1, 1), *((2, 2),) * 5), 1, 3),
        Drawn("generic 64x128x128", "generic", (64, 128, 128), full[:5], (cube,) * 5, (one, *(two,) * 4), 1, 3),
        Drawn("plusplus 32x64x64", "plusplus", (32, 64, 64), full, (cube,) * 6, (one, *(two,) * 5), 1, 3),
    ]  # fmt: skip


def build(drawn: Drawn, seed: int) -> Any:
    """The torch network, random weights from a seed."""
    import torch
    from torch import nn

    from offline_infer.networks.generic_unet import GenericUNet
    from offline_infer.networks.unetplusplus import UNetPlusPlus

    torch.manual_seed(seed)
    dims, stages = len(drawn.patch), len(drawn.features)
    if drawn.family in ("generic", "plusplus"):
        make: Any = GenericUNet if drawn.family == "generic" else UNetPlusPlus
        return make(
            drawn.channels,
            drawn.features[0],
            drawn.classes,
            drawn.strides[1:],
            drawn.kernels,
            max_features=max(drawn.features),
        ).eval()
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    shared: dict[str, Any] = {
        "input_channels": drawn.channels,
        "n_stages": stages,
        "features_per_stage": list(drawn.features),
        "conv_op": nn.Conv3d if dims == 3 else nn.Conv2d,
        "kernel_sizes": [list(kernel) for kernel in drawn.kernels],
        "strides": [list(stride) for stride in drawn.strides],
        "num_classes": drawn.classes,
        "n_conv_per_stage_decoder": [2 if drawn.family == "plain" else 1] * (stages - 1),
        "conv_bias": True,
        "norm_op": getattr(nn, f"{'BatchNorm' if drawn.batch_norm else 'InstanceNorm'}{dims}d"),
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": getattr(nn, drawn.activation),
        "nonlin_kwargs": {"inplace": True} if drawn.activation != "GELU" else {},
    }
    network: Any
    if drawn.family == "plain":
        network = PlainConvUNet(n_conv_per_stage=[2] * stages, **shared)
    else:
        network = ResidualEncoderUNet(n_blocks_per_stage=[1, 3, 4, 6, 6, 6][:stages], **shared)
    with torch.no_grad():  # norms as training leaves them, so that scale and shift count
        for name, value in network.named_parameters():
            if ".norm." in name:
                value.copy_(value + 0.2 * torch.randn_like(value))
        for name, value in network.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(0.2 * torch.randn_like(value))
    return network.eval()


def images(drawn: Drawn, seed: int) -> Iterator[np.ndarray[Any, Any]]:
    """A normalised CT with clipped air, then noise far from zero."""
    rng = np.random.default_rng(seed)
    shape = (1, drawn.channels, *drawn.patch)
    smooth = rng.standard_normal(shape).astype(np.float32)
    for axis in range(2, len(shape)):
        for shift in (1, 2, 4):
            smooth = (smooth + np.roll(smooth, shift, axis)) / np.float32(1.5)
    smooth += np.float32(0.1) * rng.standard_normal(shape).astype(np.float32)
    smooth[..., : drawn.patch[-1] // 4] = -1.5
    yield np.ascontiguousarray(smooth, np.float32)
    yield 20 + rng.standard_normal(shape).astype(np.float32)


def compare_networks(drawn: list[Drawn], ways: list[str], threads: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """Every way, direct and torch, on two inputs of each network."""
    import torch

    from offline_infer.exporting.torch_export import write_onnx

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        for seed, one in enumerate(drawn):
            network, inputs = build(one, seed), list(images(one, seed))
            path.write_bytes(write_onnx(network, torch.from_numpy(np.zeros_like(inputs[0])), 17, "image", ["logits"]))
            with torch.inference_mode():
                theirs = [network(torch.from_numpy(image)).numpy() for image in inputs]
            del network
            direct, _ = answers(path, "direct", inputs, threads)
            for way in ways:
                found, told = answers(path, way, inputs, threads)
                for number, answer in enumerate(found):
                    row = {"network": one.name, "family": one.family, "patch": one.patch, "input": number, "way": way}
                    row |= {"told": told, "batch_norm": one.batch_norm, **judge(answer, direct[number], theirs[number])}
                    keep({**row, "drawn": asdict(one)})


def answers(path: Path, way: str, inputs: list[Any], threads: int) -> tuple[list[Any], str]:
    """Logits, and what became of the way."""
    options = EngineOptions(threads=threads, extra={"convolution": way})
    with get_engine("openvino").open(path, options) as session:
        return [session.run(image).copy() for image in inputs], str(session.info.details["convolution"])


def judge(answer: Any, direct: Any, theirs: Any) -> dict[str, Any]:
    """Differing labels, and how far the reference was from another decision there, in standard deviations of its logits."""
    scale = float(direct.std())
    top = np.sort(direct, axis=1)[:, -2:]
    differing = answer.argmax(1) != direct.argmax(1)
    margins = (top[:, 1] - top[:, 0])[differing] / scale
    return {
        "voxels": int(differing.size),
        "differing": int(differing.sum()),
        "margin": float(margins.max()) if margins.size else 0.0,
        "error": float(np.abs(answer - direct).max()) / scale,
        "differing_from_torch": int((answer.argmax(1) != theirs.argmax(1)).sum()),
        "direct_from_torch": int((direct.argmax(1) != theirs.argmax(1)).sum()),
    }


def compare_goldens(
    goldens: Path, only: str, ways: list[str], threads: int, keep: Callable[[dict[str, Any]], None]
) -> None:
    """Whole cases against what the frameworks recorded, and against direct convolutions."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
    from recorded_answers import RECORDED

    from offline_infer.checkpoints import Selection
    from offline_infer.exporting.bundles import export_bundle
    from offline_infer.exporting.options import ExportOptions
    from offline_infer.images import read_labels
    from offline_infer.predict.model import load
    from offline_infer.tasks.settings import RunSettings

    with tempfile.TemporaryDirectory() as folder:
        made: dict[Any, Path] = {}

        def bundle(model: str, folds: tuple[str, ...]) -> Path:
            if (model, folds) not in made:
                made[model, folds] = Path(folder) / f"bundle{len(made)}"
                options = ExportOptions(verify=False)
                export_bundle(goldens / model, made[model, folds], selection=Selection(folds=folds), options=options)
            return made[model, folds]

        for recorded in (one for one in RECORDED if only in one.name):
            maps = {}
            for way in ("direct", *ways):
                previous = bundle(recorded.previous, ("0",)) if recorded.previous else None
                with load(
                    bundle(recorded.model, recorded.folds),
                    previous=previous,
                    threads=threads,
                    engine_options={"convolution": way},
                ) as model:
                    settings = RunSettings(tta=recorded.tta, postprocess=recorded.postprocess)
                    maps[way] = model.predict([goldens / image for image in recorded.images], settings=settings).array
                    told = str(model.session_info.details["convolution"])
                if way == "direct":
                    continue
                theirs, _ = read_labels(goldens / recorded.answer)
                row = {
                    "network": recorded.name,
                    "family": "golden",
                    "way": way,
                    "told": told,
                    "voxels": int(theirs.size),
                }
                row["differing"] = int((maps[way] != maps["direct"]).sum())
                row["differing_from_torch"] = int((maps[way] != theirs).sum())
                row["direct_from_torch"] = int((maps["direct"] != theirs).sum())
                keep(row)


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each family and way."""
    groups = defaultdict(list)
    for row in rows:
        axes = "" if "patch" not in row else f", {len(row['patch'])}D"
        groups[row["family"] + axes, row["way"]].append(row)
    lines = [
        "| networks | way | answers | rewritten | voxels | differ from direct | widest margin there, sd | largest difference, sd "
        "| differ from the framework | direct does |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (family, way), found in sorted(groups.items()):
        total = {
            key: sum(row[key] for row in found)
            for key in ("voxels", "differing", "differing_from_torch", "direct_from_torch")
        }
        most = {key: max((row[key] for row in found if key in row), default=None) for key in ("margin", "error")}
        changed = sum("F(" in row["told"] for row in found)
        cells = [f"{value:.1e}" if value is not None else "" for value in most.values()]
        lines.append(
            f"| {family} | {way} | {len(found)} | {changed} | {total['voxels']} | {total['differing']} | {cells[0]} | {cells[1]} "
            f"| {total['differing_from_torch']} | {total['direct_from_torch']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=0, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--goldens", type=Path)
    parser.add_argument("--only", default="", help="part of the name of a large network or a recorded answer")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=Path, help="append every row as a line of JSON")
    options = parser.parse_args()
    # What auto would leave alone is what has to be tried here.
    plan.LEAST_GFLOP = plan.LEAST_GAIN = plan.LEAST_SHARE = 0.0
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        if options.rows:
            with options.rows.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        shown = {key: row[key] for key in row if key not in ("drawn", "batch_norm")}
        print(json.dumps(shown), file=sys.stderr, flush=True)

    drawn = [draw(seed) for seed in range(options.first, options.first + options.random)]
    drawn += [one for one in large() if options.large and options.only in one.name]
    compare_networks(drawn, options.ways, options.threads, keep)
    if options.goldens:
        compare_goldens(options.goldens, options.only, options.ways, options.threads, keep)
    print(table(rows))


if __name__ == "__main__":
    main()
