"""The Python interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from specimens import tiny_spec, with_graphs, with_outputs

import offline_infer
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.bundles.bundle import save
from offline_infer.engines.fake import fake_logits
from offline_infer.errors import GeometryError, ImageError, UsageError
from offline_infer.predict import model as module
from offline_infer.spec import PreviousStage, Resampling

FRAME = ImageGeometry(
    shape=(9, 13, 17),
    spacing=(1.5, 1.5, 1.5),
    origin=(-10.0, 20.0, 5.0),
    direction=(0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    itk_spacing=(1.5, 1.5, 1.5),
)


def make_bundle(folder: Path, **changes: object) -> Path:
    spec = with_outputs(tiny_spec()).model_copy(update=changes)
    folder.mkdir(parents=True)
    save(with_graphs(spec, folder), folder)
    return folder


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(3).normal(80, 90, FRAME.shape).astype(np.float32)


def test_predict_from_an_array(tmp_path: Path, volume: np.ndarray) -> None:
    seen = []
    with offline_infer.load(make_bundle(tmp_path / "b"), engine="fake") as model:
        image = offline_infer.Image(volume[np.newaxis], FRAME)
        label_map = model.predict(image, progress=lambda done, total: seen.append((done, total)))
    # At the model's own spacing the fake network's answer at a voxel depends on that voxel alone.
    figures = model.spec.channels[0].intensity
    assert figures is not None
    clipped = volume.clip(figures.percentile_00_5, figures.percentile_99_5)
    expected = fake_logits((clipped[np.newaxis, np.newaxis] - figures.mean) / figures.std, 3)[0].argmax(0)
    assert (label_map.array != expected).mean() < 0.01  # half-precision sums decide ties
    assert label_map.array.dtype == np.uint8
    assert label_map.spacing == (1.5, 1.5, 1.5)
    assert label_map.names["l1"] == 1
    assert seen[-1][0] == seen[-1][1]


def test_the_image_is_left_as_it_was(tmp_path: Path, volume: np.ndarray) -> None:
    before = volume.copy()
    with offline_infer.load(make_bundle(tmp_path / "b"), engine="fake") as model:
        model.predict(offline_infer.Image(volume[np.newaxis], FRAME))
    np.testing.assert_array_equal(volume, before)


def test_saved_label_map_lies_on_the_image(tmp_path: Path, volume: np.ndarray) -> None:
    image = sitk.GetImageFromArray(volume.astype(np.int16))
    image.SetSpacing(FRAME.itk_spacing)
    image.SetOrigin(FRAME.origin)
    image.SetDirection(FRAME.direction)
    sitk.WriteImage(image, str(tmp_path / "p_0000.nii.gz"))
    with offline_infer.load(make_bundle(tmp_path / "b"), engine="fake") as model:
        path = model.predict(tmp_path / "p_0000.nii.gz").save(tmp_path / "out.nii.gz")
    written = sitk.ReadImage(str(path))
    np.testing.assert_allclose(written.GetDirection(), FRAME.direction, atol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), FRAME.origin, atol=1e-4)
    assert written.GetSize() == image.GetSize()


def test_probabilities_sum_to_one_and_agree_with_the_labels(tmp_path: Path, volume: np.ndarray) -> None:
    settings = offline_infer.RunSettings(save_probabilities=True)
    with offline_infer.load(make_bundle(tmp_path / "b"), engine="fake") as model:
        result = model.predict(offline_infer.Image(volume[np.newaxis], FRAME), settings=settings)
    assert result.probabilities is not None
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    assert (result.probabilities.argmax(0) == result.array).mean() > 0.999


def test_a_cascade_takes_its_first_stage(tmp_path: Path, volume: np.ndarray) -> None:
    stage = PreviousStage(labels=(1, 2), rule="nnunet_v2", resampling=Resampling(order=1), configuration="3d_lowres")
    second = make_bundle(tmp_path / "second", previous_stage=stage)
    image = offline_infer.Image(volume[np.newaxis], FRAME)
    with offline_infer.load(second, engine="fake") as model, pytest.raises(GeometryError, match="previous stage"):
        model.predict(image)
    first = make_bundle(tmp_path / "first")
    with offline_infer.load(second, engine="fake", previous=first) as model:
        assert model.predict(image).array.shape == FRAME.shape


def test_wrong_inputs_are_named(tmp_path: Path, volume: np.ndarray) -> None:
    bundle = make_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="no fold 4"):
        offline_infer.load(bundle, engine="fake", folds=["4"])
    with pytest.raises(UsageError, match="openvino"):
        offline_infer.load(bundle, engine="openVINO")
    wrong: list[dict[str, object]] = [
        {"folds": "0"},
        {"folds": [0]},
        {"folds": 0},
        {"precision": "fp8"},
        {"threads": -1},
    ]
    for arguments in [*wrong, {"previous": 3}, {"cache": 3}, {"threads": None}]:
        with pytest.raises(UsageError, match=next(iter(arguments))):
            offline_infer.load(bundle, engine="fake", **arguments)  # type: ignore[arg-type]
    for path in (None, 3):
        with pytest.raises(UsageError, match="path"):
            offline_infer.load(path)  # type: ignore[arg-type]
    with offline_infer.load(bundle, engine="fake") as model:
        with pytest.raises(GeometryError, match="2 channels"):
            model.predict(offline_infer.Image(np.stack([volume, volume]), FRAME))
        with pytest.raises(ImageError):
            model.predict(tmp_path / "nothing.nii.gz")
        with pytest.raises(UsageError, match=r"image: a SimpleITK.* Image.from_sitk"):
            model.predict(sitk.GetImageFromArray(volume))
    with pytest.raises(GeometryError, match="spacing None"):
        offline_infer.Image.from_numpy(volume, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="step size True"):
        offline_infer.RunSettings(step_size=True)


def test_too_little_memory_changes_nothing_but_the_place_of_the_sums(
    tmp_path: Path, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with offline_infer.load(make_bundle(tmp_path / "b"), engine="fake") as model:
        image = offline_infer.Image(volume[np.newaxis], FRAME)
        plenty = model.predict(image)
        with pytest.raises(UsageError, match="a limit of 1 MB cannot be kept"):
            model.predict(image, memory=1_000_000)
        monkeypatch.setattr(module, "room_left", lambda limit: 0)
        tight = model.predict(image)
    np.testing.assert_array_equal(plenty.array, tight.array)


def test_a_file_gives_the_labels_of_its_array(tmp_path: Path, volume: np.ndarray) -> None:
    path = tmp_path / "p_0000.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(volume.astype(np.int16)), str(path))
    with offline_infer.load(make_bundle(tmp_path / "b"), engine="fake", threads=1) as model:
        from_file = model.predict(path)
        image = offline_infer.Image(volume.astype(np.int16).astype(np.float32)[np.newaxis], from_file.frame)
        np.testing.assert_array_equal(model.predict(image).array, from_file.array)
