"""Blur, noise and JPEG against the published attacks, and sweeps."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from photo_samples import photo, write_pairs
from PIL import Image

from offline_infer.errors import UsageError
from offline_infer.images.decoding import read_image
from offline_infer.proof.report import write_report
from offline_infer.spec import Pixels
from offline_infer.tasks.image.attacks import ATTACKS, attacks_of_file, blur_kernel, gaussian_noise, seed_of
from offline_infer.tasks.image.datasets import find_sets
from offline_infer.tasks.image.evaluation.evaluate import EvaluationOptions
from offline_infer.tasks.image.sweeping import SweepJob, read_grid, run_sweep, write_attacked
from offline_infer.tasks.image.tensorboard import EventFile, crc32c


@pytest.mark.parametrize("size", [3, 5, 7, 9, 11, 15, 19, 23])
def test_kernels_are_symmetric_and_sum_to_one(size: int) -> None:
    kernel = blur_kernel(size)
    assert kernel.sum() == 256
    assert (kernel == kernel[::-1]).all()


@pytest.mark.parametrize("size", [3, 7, 23])
def test_blur_is_opencvs(size: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    image = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        ATTACKS["GaussianBlur"].apply(image, size, 0), cv2.GaussianBlur(image, (size, size), 0)
    )


def test_a_constant_image_stays_under_blur_and_no_attack_changes_shape() -> None:
    flat = np.full((9, 12, 3), 77, np.uint8)
    assert (ATTACKS["GaussianBlur"].apply(flat, 11, 0) == 77).all()
    image = photo(31, 20)
    for attack in ATTACKS.values():
        damaged = attack.apply(image, attack.strengths[1], 3)
        assert (damaged.shape, damaged.dtype) == (image.shape, image.dtype)
        assert (damaged != image).any()


def test_strengths_are_checked() -> None:
    image = photo(8, 8)
    for name, strength in (("GaussianBlur", 4), ("GaussianBlur", 2.5), ("GaussianNoise", -1), ("JpegCompression", 0)):
        with pytest.raises(UsageError, match="expected"):
            ATTACKS[name].apply(image, strength, 0)


def test_noise_is_the_same_in_every_run_and_darkens_by_half() -> None:
    image = np.full((200, 200, 3), 128, np.uint8)
    seed = seed_of("a.png", "GaussianNoise", 11, 0)
    one, two = gaussian_noise(image, 11, seed), gaussian_noise(image, 11, seed)
    np.testing.assert_array_equal(one, two)
    assert seed != seed_of("b.png", "GaussianNoise", 11, 0)
    change = one.astype(float) - 128
    assert change.mean() == pytest.approx(-0.5, abs=0.05)
    assert change.std() == pytest.approx((11 + 1 / 12) ** 0.5, abs=0.05)


@pytest.mark.parity
def test_attacked_pictures_are_the_published_ones(goldens: Path) -> None:
    folder = goldens / "images"
    seen = 0
    for told in json.loads((folder / "expected" / "robustness" / "attacks.json").read_text()):
        image = read_image(folder / "data" / "setA" / "Tp" / told["name"], Pixels())
        if told["attack"] == "GaussianBlur":
            damaged = ATTACKS["GaussianBlur"].apply(image, told["strength"] or 1, 0)
        elif told["attack"] == "JpegCompression":
            damaged = ATTACKS["JpegCompression"].apply(image, told["quality_drawn"], 0)
        else:
            draw = random.Random(
                told["python_seed"]
            )  # the published attack draws the array's seed from Python's generator
            draw.random()
            draw.uniform(told["strength"], told["strength"])
            damaged = gaussian_noise(image, told["strength"], draw.randint(0, 2**32 - 1))
        assert hashlib.sha256(damaged.tobytes()).hexdigest() == told["sha256_uint8_hwc"], (told["name"], told["attack"])
        seen += 1
    assert seen > 50


def test_attacks_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from offline_infer.tasks.image.attacks import Attack\n"
        "ATTACK = Attack('Negative', lambda image, strength, seed: 255 - image, (1,), 'none')\n"
    )
    assert attacks_of_file(file)["Negative"].apply(np.zeros((1, 1, 3), np.uint8), 1, 0)[0, 0, 0] == 255
    file.write_text("x = 1")
    with pytest.raises(UsageError, match="defines no Attack"):
        attacks_of_file(file)
    file.write_text("1/0")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        attacks_of_file(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds list"),
        ('{"Blur": [3]}', "unknown attack"),
        ('{"GaussianBlur": ["3"]}', "list of numbers"),
        ("{", "cannot"),
    ],
)
def test_grids_are_checked(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_grid(tmp_path / "grid.json")


def copy_brightness(bundle: Path, source: Path, output: Path) -> None:
    """A stand-in for a model: bright pixels are the mask."""
    (one,) = find_sets(source)
    (output / "pred").mkdir(parents=True)
    for item in one.items:
        Image.fromarray(read_image(item.image, Pixels())[:, :, 0]).save(output / "pred" / f"{item.stem}.png")


def test_a_sweep_does_every_point_once(tmp_path: Path) -> None:
    write_pairs(tmp_path / "Set", [(40, 50), (30, 36)])
    for name in ("checkpoint-2", "checkpoint-11"):
        (tmp_path / name).mkdir()
    calls: list[str] = []

    def predict(bundle: Path, source: Path, output: Path) -> None:
        calls.append(output.parent.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        copy_brightness(bundle, source, output)

    job = SweepJob(
        bundles=[tmp_path / "checkpoint-2", tmp_path / "checkpoint-11"],
        references=tmp_path / "Set",
        output=tmp_path / "out",
        grid={"GaussianBlur": [0, 3, 23]},
        attacks=ATTACKS,
        evaluation=EvaluationOptions(threshold=0.7),
    )
    with pytest.raises(KeyboardInterrupt):
        run_sweep(job, predict)
    rows = run_sweep(job, predict)
    assert len(calls) == 7  # six points, one of them twice
    assert [(row["step"], row["attack"], row["strength"]) for row in rows][:4] == [
        (2, "none", 0),
        (2, "GaussianBlur", 3),
        (2, "GaussianBlur", 23),
        (11, "none", 0),
    ]
    f1 = [row["measures"]["pixel-level F1"] for row in rows[:3]]
    assert f1[0] > f1[2]
    table = (tmp_path / "out" / "sweep.csv").read_text().splitlines()
    assert len(table) == 7
    assert "benco" in table[1]
    assert not (tmp_path / "out" / "points").exists() or not any((tmp_path / "out" / "points").iterdir())
    events = list((tmp_path / "out" / "tensorboard").glob("*/events*"))
    assert len(events) == 3
    for tag in (b"robustness/predict_threshold", b"robustness/image"):
        assert sum(tag in path.read_bytes() for path in events) == 2  # for each model, under its attack
    page = tmp_path / "page.html"
    write_report([tmp_path / "out" / "sweep.json"], page)
    assert page.read_text().count("<polyline") == 6  # F1 and AUC: under blur for two models, over the checkpoints


def test_attacked_sets_keep_names_and_masks(tmp_path: Path) -> None:
    (one,) = find_sets(write_pairs(tmp_path / "Set", [(20, 30)]))
    listed = write_attacked(one, ATTACKS["GaussianBlur"], 3, 0, tmp_path / "attacked")
    (again,) = find_sets(listed, need_masks=True)
    assert [(item.stem, item.mask) for item in again.items] == [("p0", one.items[0].mask)]


def test_event_files_are_framed_as_tensorboard_expects(tmp_path: Path) -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    with EventFile(tmp_path) as events:
        events.scalar("pixel-level_F1", 3, 0.25)
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard"
    )
    found = accumulators.EventAccumulator(str(tmp_path)).Reload()
    (point,) = found.Scalars("pixel-level_F1")
    assert (point.step, point.value) == (3, 0.25)
