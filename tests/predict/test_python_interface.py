"""What a person types in Python: images from other libraries, label maps back, folders, threads, wrong arguments."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

import offline_infer
from offline_infer.bundles.bundle import save
from offline_infer.engines import fake
from offline_infer.errors import GeometryError, OfflineInferError, UsageError
from offline_infer.images.objects import from_sitk, to_nibabel


@pytest.fixture
def model(tmp_path: Path) -> Any:
    fake.register()
    folder = tmp_path / "bundle"
    folder.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), folder), folder)
    with offline_infer.load(folder, engine="fake") as opened:
        yield opened


def picture() -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(80, 60, (12, 16, 20)).astype(np.float32))
    image.SetSpacing([1.5, 1.6, 1.7])
    image.SetOrigin([10.0, -20.0, 30.0])
    image.SetDirection([0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    return image


def test_images_of_other_libraries_are_the_same_image(model: Any, tmp_path: Path) -> None:
    image = picture()
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    by_path = model.predict(tmp_path / "a.nii.gz")
    array = sitk.GetArrayFromImage(image)
    ours = [
        offline_infer.Image.from_sitk(image),
        offline_infer.Image.from_nibabel(nib.load(tmp_path / "a.nii.gz")),
        offline_infer.Image.from_numpy(
            array, image.GetSpacing()[::-1], origin=image.GetOrigin(), direction=image.GetDirection()
        ),
    ]
    for given in ours:
        found = model.predict(given)
        np.testing.assert_array_equal(found.array, by_path.array)
        np.testing.assert_allclose(found.frame.direction, by_path.frame.direction, atol=1e-6)
        np.testing.assert_allclose(found.frame.origin, by_path.frame.origin, atol=1e-5)
    back = by_path.to_sitk()
    np.testing.assert_allclose(back.GetDirection(), image.GetDirection(), atol=1e-6)
    again = by_path.to_nibabel()
    np.testing.assert_allclose(again.affine, nib.load(tmp_path / "a.nii.gz").affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(again.dataobj).transpose(2, 1, 0), by_path.array)
    assert repr(by_path).startswith("LabelMap(shape=(12, 16, 20)")
    assert to_nibabel(by_path.array, from_sitk(image, "SimpleITKIO")[1]).shape == (20, 16, 12)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (None, "image: a NoneType"),
        (np.zeros((3, 4, 5), np.float32), "image: a numpy.ndarray"),
        ({"path": "x"}, "image: a dict"),
        ([], "image: a list"),
    ],
)
def test_what_is_no_image_is_named(model: Any, image: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        model.predict(image)


def test_an_array_that_does_not_fit_its_geometry_is_refused(model: Any) -> None:
    good = offline_infer.Image.from_numpy(np.zeros((12, 16, 20), np.float32), (1.5, 1.5, 1.5))
    turned = offline_infer.Image(good.array.transpose(0, 3, 2, 1), good.geometry)
    with pytest.raises(GeometryError, match="same image, axes in the same order"):
        model.predict(turned)
    broken = offline_infer.Image(np.full_like(good.array, np.nan), good.geometry)
    with pytest.raises(OfflineInferError, match="NaN"):
        model.predict(broken)
    with pytest.raises(UsageError, match="settings: a dict"):
        model.predict(good, settings={"tta": False})


@pytest.mark.parametrize(
    "wrong", [{"step_size": 0}, {"step_size": -1}, {"step_size": 3}, {"accumulate": "float8"}, {"tta": "yes"}]
)
def test_settings_look_at_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        offline_infer.RunSettings(**wrong)


def test_a_folder_at_once_and_a_model_used_from_four_threads(model: Any, tmp_path: Path) -> None:
    cases = [write_case(tmp_path / "in", name, seed=seed) for seed, name in enumerate("abcd")]
    report = offline_infer.predict_folder(model, tmp_path / "in", tmp_path / "out")
    assert report.named("done") == ("a", "b", "c", "d")
    assert offline_infer.predict_folder(model, tmp_path / "in", tmp_path / "out").named("skipped") == (
        "a",
        "b",
        "c",
        "d",
    )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: model.predict(case.channels).array, cases))
    for case, array in zip(cases, found, strict=True):
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{case.case_id}.nii.gz")))
        np.testing.assert_array_equal(array, written)


def test_the_public_names_are_shown() -> None:
    assert {"load", "Image", "LabelMap", "RunSettings", "export_bundle"} <= set(dir(offline_infer))
