"""Figures of a cohort: volume, place, extent and intensity, on the command line and in spreadsheets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from offline_infer.cli import main
from offline_infer.errors import UsageError
from offline_infer.proof.csv_tables import safe_cell
from offline_infer.proof.statistics import folder_statistics


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    for name in ("a", "b"):
        labels = np.zeros((5, 8, 9), np.uint8)
        labels[1:4, 2:6, 3:8] = 1
        labels[2, 3, 4:6] = 7 if name == "a" else 1
        save(tmp_path / "labels" / f"{name}.nii.gz", labels)
        save(tmp_path / "images" / f"{name}_0000.nii.gz", rng.normal(50, 20, labels.shape).astype(np.float32))
    return tmp_path


def test_figures_agree_with_the_library_that_reads_the_files(cohort: Path) -> None:
    found = folder_statistics(cohort / "labels", cohort / "images")
    assert [(row["case"], row["label"]) for row in found.rows] == [("a", 1), ("a", 7), ("b", 1)]
    for row in found.rows:
        labels = sitk.ReadImage(str(cohort / "labels" / f"{row['case']}.nii.gz"))
        image = sitk.ReadImage(str(cohort / "images" / f"{row['case']}_0000.nii.gz"))
        shape, intensity = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelStatisticsImageFilter()
        shape.Execute(labels)
        intensity.Execute(image, labels)
        label = row["label"]
        assert row["volume_ml"] == pytest.approx(shape.GetPhysicalSize(label) / 1000)
        np.testing.assert_allclose(row["centroid_mm"], shape.GetCentroid(label), atol=2e-3)
        x, y, z, *size = shape.GetBoundingBox(label)
        assert row["box_voxel"] == [[z, z + size[2]], [y, y + size[1]], [x, x + size[0]]]
        assert row["intensity"]["mean"] == pytest.approx(intensity.GetMean(label))
        assert row["intensity"]["min"] == pytest.approx(intensity.GetMinimum(label))
        inside = sitk.GetArrayFromImage(image)[sitk.GetArrayFromImage(labels) == label]
        assert row["intensity"]["p95"] == pytest.approx(np.percentile(inside, 95))


def test_jobs_and_labels_that_do_not_occur(cohort: Path) -> None:
    one, two = (folder_statistics(cohort / "labels", cohort / "images", jobs=jobs) for jobs in (1, 2))
    assert one.rows == two.rows
    wanted = folder_statistics(cohort / "labels", wanted=[7])
    assert [row["voxels"] for row in wanted.rows] == [2, 0]
    assert wanted.rows[1]["centroid_mm"] is None
    assert "intensity" not in wanted.rows[0]


def test_the_command_writes_both_files(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cohort / "labels" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "=cmd()": 1}}))
    (cohort / "labels" / "bad.nii.gz").write_bytes(b"nothing")
    arguments = ["statistics", str(cohort / "labels"), "--images", str(cohort / "images"), "--quiet"]
    assert main([*arguments, "-o", str(cohort / "s.csv")]) == 3
    assert "bad" in capsys.readouterr().err
    record = json.loads((cohort / "s.json").read_text())
    assert record["cases"] == 2
    assert list(record["failed"]) == ["bad"]
    with (cohort / "s.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == ["a", "a", "b"]
    assert rows[0]["name"] == "'=cmd()"
    assert float(rows[0]["box_z_last"]) == 3
    assert float(rows[0]["intensity_p50"]) == pytest.approx(record["statistics"][0]["intensity"]["p50"])
    assert main([*arguments, "-o", str(cohort / "s.txt")]) == 2


def test_wrong_places(cohort: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        folder_statistics(cohort / "nowhere")
    with pytest.raises(UsageError, match="one image, but"):
        folder_statistics(cohort / "labels", cohort / "images" / "a_0000.nii.gz")
    save(cohort / "images" / "a_0000.nii.gz", np.zeros((2, 3, 4), np.float32))
    assert "same grid" in folder_statistics(cohort / "labels", cohort / "images").failed["a"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1"])
def test_text_that_a_spreadsheet_would_run_is_made_harmless(text: str) -> None:
    assert safe_cell(text).startswith("'")


def test_cells() -> None:
    cells = [safe_cell(v) for v in (None, float("nan"), -1.5, np.float64(0.1), 3, "liver-1", "a\x1b[31mb")]
    assert cells == ["", "", "-1.5", "0.1", "3", "liver-1", "a\N{REPLACEMENT CHARACTER}[31mb"]
