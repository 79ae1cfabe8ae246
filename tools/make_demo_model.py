"""Train the checkpoint the demonstration uses, and write it as nnU-Net v1 / UNet++ would.

    python tools/make_demo_model.py --minutes 25 --out offline_infer/demo/model

The training set is phantoms (:mod:`offline_infer.demo.phantom`) with seeds from 1000 on; validation during training
uses seeds from 900 on. The demonstration (from 9001 on) draws from neither. Preprocessing is nnU-Net v1's: resampling to the target
spacing, clipping to the foreground's percentiles, mean and sd of the foreground.

The time budget ends the training and steers the learning rate, so two runs agree closely but not bit by bit. Every
improvement is written at once: an early end leaves a usable model. ``--cache`` keeps the preprocessed training set.
The model in the package: 30 minutes, then ``--resume --rate 0.002`` for 9 and ``--resume --rate 0.0015 --seed 1`` for
10, each on one thread of a loaded machine (1872 steps in all).

Needs the ``export`` extra (torch) and nothing of nnU-Net.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage.transform import resize
from torch.nn import functional

from offline_infer.demo.phantom import TUMOUR, make_phantom
from offline_infer.networks.unetplusplus import UNetPlusPlus

SPACING = (3.0, 2.5, 2.5)
PATCH = (48, 96, 96)
SMALL_PATCH = (32, 64, 64)
POOLINGS = [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
KERNELS = [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
BASE_FEATURES = 4
CLASSES = 2
HEAD_WEIGHTS = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""Of the five heads, the final one first. (The fork's own sum trains the shallowest head only.)"""

TASK = "Task003_Liver"
TRAINER = "nnUNetPlusPlusTrainerV2"
PLANS = "nnUNetPlansv2.1"
TRAINING_SEED, VALIDATION_SEED = 1000, 900

Float = npt.NDArray[np.float32]


@dataclass
class Case:
    """A preprocessed phantom.

    Attributes:
        image: (z, y, x), HU at the target spacing, float16.
        labels: (z, y, x), uint8.
        foreground: HU of foreground voxels of the original image, every tenth.
        size, spacing: of the original image, (z, y, x).
    """

    name: str
    image: npt.NDArray[np.float16]
    labels: npt.NDArray[np.uint8]
    foreground: npt.NDArray[np.int16]
    size: tuple[int, ...]
    spacing: tuple[float, ...]


# --- data ---------------------------------------------------------------------------------------------------------


def make_case(seed: int) -> Case:
    """Draw a phantom and resample it. A few are as finely spaced as clinical scans."""
    rng = np.random.default_rng([77, seed])
    fine = rng.random() < 0.08
    phantom = make_phantom(
        seed,
        in_plane_mm=float(rng.uniform(0.9, 1.2)) if fine else None,
        slice_mm=5.0 if fine else None,
    )
    spacing = phantom.spacing[::-1]
    return Case(
        name=f"liver_{seed}",
        image=resample(phantom.ct.astype(np.float32), spacing, 3).astype(np.float16),
        labels=resample_labels(phantom.labels, spacing),
        foreground=phantom.ct[phantom.labels > 0][::10],
        size=phantom.ct.shape,
        spacing=spacing,
    )


def resample(image: Float, spacing: Sequence[float], order: int) -> Float:
    """nnU-Net v1's resampling to SPACING: splines; slice by slice, then nearest along z, where z is coarse."""
    shape = [int(np.round(s / t * n)) for s, t, n in zip(spacing, SPACING, image.shape, strict=True)]
    options = {"order": order, "mode": "edge", "anti_aliasing": False, "clip": True}
    if max(spacing) / min(spacing) <= 3:
        return np.asarray(resize(image, shape, **options), np.float32)
    slices = np.stack([resize(s, shape[1:], **options) for s in image])
    rows = (np.arange(shape[0]) + 0.5) * image.shape[0] / shape[0] - 0.5
    nearest = np.clip(np.floor(rows + 0.5), 0, image.shape[0] - 1).astype(int)
    return np.asarray(slices[nearest], np.float32)


def resample_labels(labels: npt.NDArray[np.uint8], spacing: Sequence[float]) -> npt.NDArray[np.uint8]:
    """Label by label with order 1, as :func:`resample` otherwise; the higher label wins."""
    result: npt.NDArray[np.uint8] | None = None
    for value in (1, 2):
        mask = resample((labels >= value).astype(np.float32), spacing, 1) >= 0.5
        result = np.zeros(mask.shape, np.uint8) if result is None else result
        result[mask] = value
    assert result is not None
    return result


def load_cases(first: int, count: int, cache: Path | None) -> list[Case]:
    """Phantoms ``first`` ... ``first + count - 1``, made by two processes or taken from the cache."""
    seeds = list(range(first, first + count))
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(partial(_cached_case, cache), seeds))


def _cached_case(cache: Path | None, seed: int) -> Case:
    file = cache / f"{seed}.npz" if cache is not None else None
    if file is not None and file.is_file():
        with np.load(file) as data:
            size, spacing = tuple(int(n) for n in data["size"]), tuple(float(v) for v in data["spacing"])
            return Case(f"liver_{seed}", data["image"], data["labels"], data["foreground"], size, spacing)
    case = make_case(seed)
    if file is not None:
        partial_file = file.with_suffix(".partial.npz")
        np.savez(
            partial_file,
            image=case.image,
            labels=case.labels,
            foreground=case.foreground,
            size=case.size,
            spacing=case.spacing,
        )
        partial_file.replace(file)
    return case


def intensity_figures(values: npt.NDArray[Any]) -> OrderedDict[str, Any]:
    """The figures nnU-Net v1 keeps of a channel, in its types."""
    values = values.astype(np.float32)
    return OrderedDict(
        median=np.float32(np.median(values)),
        mean=np.float32(values.mean()),
        sd=np.float32(values.std()),
        mn=np.float32(values.min()),
        mx=np.float32(values.max()),
        percentile_99_5=np.float64(np.percentile(values, 99.5)),
        percentile_00_5=np.float64(np.percentile(values, 0.5)),
    )


def normalise(image: npt.NDArray[np.float16], figures: OrderedDict[str, Any]) -> Float:
    """nnU-Net v1's CT scheme."""
    clipped = np.clip(image.astype(np.float32), figures["percentile_00_5"], figures["percentile_99_5"])
    return np.asarray((clipped - figures["mean"]) / figures["sd"], np.float32)


# --- training -----------------------------------------------------------------------------------------------------


class Sampler:
    """Random patches: half of them around a foreground voxel, most of those around a tumour; lightly augmented."""

    def __init__(self, images: Sequence[Float], labels: Sequence[npt.NDArray[np.uint8]], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._images, self._labels = images, labels
        self._liver = [np.flatnonzero(seg) for seg in labels]
        self._tumour = [np.flatnonzero(seg == TUMOUR) for seg in labels]

    def batch(self, size: int, patch: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (n, 1, z, y, x) float32 and labels (n, z, y, x) int64."""
        pairs = [self._sample(patch, centred=i % 2 == 1) for i in range(size)]
        return torch.stack([p[0] for p in pairs])[:, None], torch.stack([p[1] for p in pairs])

    def _sample(self, patch: Sequence[int], *, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
        rng = self._rng
        n = int(rng.integers(len(self._images)))
        image, labels = self._images[n], self._labels[n]
        zoom = rng.uniform(0.85, 1.2, 3) if rng.random() < 0.3 else np.ones(3)
        taken = [min(round(p * z), s) for p, z, s in zip(patch, zoom, image.shape, strict=True)]
        if centred:
            pool = self._tumour[n] if len(self._tumour[n]) and rng.random() < 0.7 else self._liver[n]
            voxel = np.unravel_index(int(pool[int(rng.integers(len(pool)))]), image.shape)
            jitter = [rng.uniform(0.15, 0.85) for _ in taken]
            starts = [int(v - j * t) for v, j, t in zip(voxel, jitter, taken, strict=True)]
        else:
            starts = [int(rng.integers(s - t + 1)) for s, t in zip(image.shape, taken, strict=True)]
        starts = [min(max(0, a), s - t) for a, t, s in zip(starts, taken, image.shape, strict=True)]
        box = tuple(slice(a, a + t) for a, t in zip(starts, taken, strict=True))
        axes = tuple(a for a in range(3) if rng.random() < 0.5)
        x = torch.from_numpy(np.flip(image[box], axes).copy())
        y = torch.from_numpy(np.flip(labels[box], axes).copy())
        if list(x.shape) != list(patch):
            x = functional.interpolate(x[None, None], tuple(patch), mode="trilinear", align_corners=False)[0, 0]
            y = functional.interpolate(y[None, None].float(), tuple(patch), mode="nearest-exact")[0, 0].to(torch.uint8)
        x = x * rng.uniform(0.85, 1.15) + rng.uniform(-0.2, 0.2)
        if rng.random() < 0.4:
            x = x + torch.randn(x.shape) * rng.uniform(0, 0.3)
        elif rng.random() < 0.2:
            sd = rng.uniform(0.3, 0.8)
            x = torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0.5 * sd, sd, sd)))
        return x.float(), y.long()


def loss_of(heads: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Weighted sum over the heads of cross-entropy and (1 - soft Dice over the batch, foreground classes)."""
    wanted = functional.one_hot(target, CLASSES + 1).movedim(-1, 1)[:, 1:].float()
    total = torch.zeros(())
    for weight, logits in zip(HEAD_WEIGHTS, heads, strict=True):
        logits = logits.float()
        p = logits.softmax(1)[:, 1:]
        axes = (0, 2, 3, 4)
        dice = (2 * (p * wanted).sum(axes) + 1) / (p.sum(axes) + wanted.sum(axes) + 1)
        total = total + weight * (functional.cross_entropy(logits, target) + 1 - dice.mean())
    return total / sum(HEAD_WEIGHTS)


def tile_starts(size: int, patch: int) -> list[int]:
    """Evenly spaced starts, at most half a patch apart."""
    if size <= patch:
        return [0]
    steps = int(np.ceil((size - patch) / (patch * 0.5))) + 1
    return [round((size - patch) / (steps - 1) * i) for i in range(steps)]


def predict(net: torch.nn.Module, image: Float) -> npt.NDArray[np.uint8]:
    """Labels of a normalised image by sliding window, without mirroring: for validation during training only."""
    pad = [(max(0, p - s) // 2, max(0, p - s) - max(0, p - s) // 2) for p, s in zip(PATCH, image.shape, strict=True)]
    padded = np.pad(image, pad)
    profile = [np.exp(-0.5 * ((np.arange(p) - p // 2) / (p / 8)) ** 2) for p in PATCH]
    weight = torch.from_numpy(np.einsum("i,j,k->ijk", *profile).astype(np.float32)).clamp_min(1e-4)
    total = torch.zeros((CLASSES + 1, *padded.shape))
    for z in tile_starts(padded.shape[0], PATCH[0]):
        for y in tile_starts(padded.shape[1], PATCH[1]):
            for x in tile_starts(padded.shape[2], PATCH[2]):
                box = (slice(z, z + PATCH[0]), slice(y, y + PATCH[1]), slice(x, x + PATCH[2]))
                tile = torch.from_numpy(padded[box].copy())[None, None].contiguous(memory_format=torch.channels_last_3d)
                with torch.no_grad():
                    total[(slice(None), *box)] += net(tile)[0][0].softmax(0) * weight
    inner = tuple(slice(a, n - b) for (a, b), n in zip(pad, padded.shape, strict=True))
    return np.asarray(total.argmax(0).numpy()[inner], np.uint8)


def dice(prediction: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8], label: int) -> float:
    """Overlap of one label; NaN where both are empty."""
    a, b = prediction == label, reference == label
    both = int(a.sum() + b.sum())
    return float(2 * (a & b).sum() / both) if both else float("nan")


def validate(net: UNetPlusPlus, validation: Sequence[tuple[Float, npt.NDArray[np.uint8]]]) -> tuple[float, float]:
    """Mean Dice of liver and tumour over the cases that have them."""
    net.eval()
    found = [(predict(net, image), labels) for image, labels in validation]
    net.train()
    liver, tumour = (float(np.nanmean([dice(*pair, label) for pair in found])) for label in (1, 2))
    return liver, tumour


def train(
    net: UNetPlusPlus,
    sampler: Sampler,
    validation: Sequence[tuple[Float, npt.NDArray[np.uint8]]],
    minutes: float,
    rate: float,
    small: float,
) -> Iterator[tuple[int, float, list[float]]]:
    """Train for a time; yields (step, score, running losses) after every validation.

    The first part (``small``) of the time uses small patches. The score is the mean Dice of both labels.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4)
    begun = time.monotonic()
    seconds = minutes * 60
    losses: list[float] = []
    step, paused, next_check = 0, 0.0, 0.1
    while (share := (time.monotonic() - begun - paused) / seconds) < 1:
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (1 - share) ** 0.9
        x, y = sampler.batch(2, SMALL_PATCH if share < small else PATCH)
        # bfloat16 saves a quarter of the time; the last part is in full precision, as inference will be.
        with torch.autocast("cpu", torch.bfloat16, enabled=share < 0.85):
            heads = net(x.contiguous(memory_format=torch.channels_last_3d))
        loss = loss_of(heads, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 12.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        step += 1
        share = (time.monotonic() - begun - paused) / seconds
        if share >= min(next_check, 1.0):
            stopped = time.monotonic()
            means = validate(net, validation)
            paused += time.monotonic() - stopped
            print(
                f"{share:4.0%} step {step} loss {np.mean(losses[-50:]):.3f} "
                f"liver {means[0]:.4f} tumour {means[1]:.4f} ({time.monotonic() - begun:.0f} s)",
                flush=True,
            )
            yield step, sum(means) / 2, losses
            next_check = share + (0.1 if share < 0.9 else 0.05)


# --- the framework's files ----------------------------------------------------------------------------------------


class OldNamesPickler(pickle._Pickler):
    """Writes NumPy's constructors under the module name they had before NumPy 2, which every version can read."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = str(getattr(obj, "__module__", ""))
        if not module.startswith("numpy._core"):
            super().save_global(obj, name)  # type: ignore[misc]
            return
        self.save(module.replace("numpy._core", "numpy.core", 1))  # type: ignore[attr-defined]
        self.save(name or obj.__qualname__)  # type: ignore[attr-defined]
        self.write(pickle.STACK_GLOBAL)  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[type, Any]] = {
        **pickle._Pickler.dispatch,  # type: ignore[attr-defined]
        type(make_case): save_global,
    }


def save_pickle(path: Path, value: Any) -> None:
    """Pickle under another name, then rename."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        OldNamesPickler(file, protocol=4).dump(value)
    temporary.replace(path)


def make_plans(cases: Sequence[Case], figures: OrderedDict[str, Any]) -> dict[str, Any]:
    """plans.pkl, entry by entry as nnU-Net v1's planner writes it."""
    figures = figures.copy()
    local = OrderedDict((case.name, intensity_figures(case.foreground)) for case in cases)
    sizes = [tuple(int(n) for n in case.size) for case in cases]
    spacings = [np.array(case.spacing) for case in cases]
    target = np.array(SPACING)
    shapes = [np.round(np.array(case.spacing) / target * np.array(case.size)) for case in cases]
    stage = {
        "batch_size": 2,
        "num_pool_per_axis": [sum(k[a] > 1 for k in POOLINGS) for a in range(3)],
        "patch_size": np.array(PATCH),
        "median_patient_size_in_voxels": np.median(np.array(shapes), axis=0).astype(int),
        "current_spacing": target,
        "original_spacing": target.copy(),
        "do_dummy_2D_data_aug": False,
        "pool_op_kernel_sizes": POOLINGS,
        "conv_kernel_sizes": KERNELS,
    }
    return {
        "num_stages": 1,
        "num_modalities": 1,
        "modalities": {0: "CT"},
        "normalization_schemes": OrderedDict([(0, "CT")]),
        "dataset_properties": {
            "all_sizes": sizes,
            "all_spacings": spacings,
            "all_classes": [1, 2],
            "modalities": {0: "CT"},
            "intensityproperties": OrderedDict([(0, OrderedDict([("local_props", local), *figures.items()]))]),
            "size_reductions": OrderedDict((case.name, np.float64(1.0)) for case in cases),
        },
        "list_of_npz_files": [f"nnUNet_cropped_data/{TASK}/{case.name}.npz" for case in cases],
        "original_spacings": spacings,
        "original_sizes": sizes,
        "preprocessed_data_folder": f"nnUNet_preprocessed/{TASK}",
        "num_classes": CLASSES,
        "all_classes": [1, 2],
        "base_num_features": BASE_FEATURES,
        "use_mask_for_norm": OrderedDict([(0, False)]),
        "keep_only_largest_region": None,
        "min_region_size_per_class": None,
        "min_size_per_class": None,
        "transpose_forward": [np.int64(0), 1, 2],
        "transpose_backward": [np.int64(0), np.int64(1), np.int64(2)],
        "data_identifier": "nnUNetData_plans_v2.1",
        "plans_per_stage": {0: stage},
        "preprocessor_name": "GenericPreprocessor",
        "conv_per_stage": 2,
    }


def write_plans(folder: Path, plans: dict[str, Any]) -> None:
    """plans.pkl, model_final_checkpoint.model.pkl of fold 0, and a dataset.json, which gives the labels names."""
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    dataset = {
        "name": "Liver",
        "description": "synthetic abdominal CT, see offline_infer.demo.phantom",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
    }
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1) + "\n", encoding="utf-8")
    save_pickle(folder / "plans.pkl", plans)
    pre = f"nnUNet_preprocessed/{TASK}"
    results = f"nnUNet/3d_fullres/{TASK}/{TRAINER}__{PLANS}"
    info = OrderedDict(
        init=(f"{pre}/{PLANS}_plans_3D.pkl", 0, results, pre, False, 0, True, True, False),
        name=TRAINER,
        plans=plans,
    )
    info["class"] = f"<class 'nnunet.training.network_training.{TRAINER}.{TRAINER}'>"
    info.move_to_end("plans")
    save_pickle(folder / "fold_0" / "model_final_checkpoint.model.pkl", info)


def write_weights(folder: Path, net: UNetPlusPlus, step: int, losses: Sequence[float]) -> None:
    """model_final_checkpoint.model; without optimiser state, which would triple its size."""
    path = folder / "fold_0" / "model_final_checkpoint.model"
    weights = OrderedDict((key, value.detach().cpu().contiguous().clone()) for key, value in net.state_dict().items())
    curve = [round(float(np.mean(losses[i : i + 100])), 5) for i in range(0, len(losses), 100)]
    record = {
        "epoch": step,
        "state_dict": weights,
        "optimizer_state_dict": None,
        "lr_scheduler_state_dict": None,
        "plot_stuff": (curve, [], [], []),
        "best_stuff": (None, None, None),
    }
    temporary = path.with_name(path.name + ".partial")
    torch.save(record, temporary)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25, help="time for training alone (default 25)")
    parser.add_argument("--seed", type=int, default=0, help="of the network's first weights and of the patches")
    parser.add_argument("--out", type=Path, default=Path("offline_infer/demo/model"), help="where nnUNet/... goes")
    parser.add_argument("--cases", type=int, default=120, help="training phantoms (default 120)")
    parser.add_argument("--cache", type=Path, help="folder that keeps the preprocessed phantoms for the next run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-3, help="first learning rate of AdamW (default 0.003)")
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out, with the full patch")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    begun = time.monotonic()
    cases = load_cases(TRAINING_SEED, options.cases, options.cache)
    held_out = load_cases(VALIDATION_SEED, 5, options.cache)
    print(f"{len(cases)} phantoms in {time.monotonic() - begun:.0f} s", flush=True)
    figures = intensity_figures(np.concatenate([case.foreground for case in cases]))
    print({key: round(float(value), 2) for key, value in figures.items()}, flush=True)

    folder = options.out / "nnUNet" / "3d_fullres" / TASK / f"{TRAINER}__{PLANS}"
    weights_file = folder / "fold_0" / "model_final_checkpoint.model"
    write_plans(folder, make_plans(cases, figures))
    net = UNetPlusPlus(1, BASE_FEATURES, CLASSES + 1, POOLINGS, KERNELS, deep_supervision=True)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            torch.nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    done = 0
    if options.resume:
        record = torch.load(weights_file, weights_only=True)
        net.load_state_dict(record["state_dict"])
        done = int(record["epoch"])
    net = net.to(memory_format=torch.channels_last_3d)
    sampler = Sampler([normalise(c.image, figures) for c in cases], [c.labels for c in cases], options.seed + done)
    validation = [(normalise(c.image, figures), c.labels) for c in held_out]
    best = sum(validate(net, validation)) / 2 if options.resume else -1.0
    small = 0.0 if options.resume else 0.5
    for step, score, losses in train(net, sampler, validation, options.minutes, options.rate, small):
        if score > best:
            best = score
            write_weights(folder, net, done + step, losses)
    print(f"best mean Dice {best:.4f}")


if __name__ == "__main__":
    main()
