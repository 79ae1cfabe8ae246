"""The demonstration of instance models: its pictures, and the whole route without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offline_infer.cli import main
from offline_infer.demo import run
from offline_infer.errors import UsageError
from offline_infer.tasks.instances.demo.shapes import CLASSES, LEAST_VISIBLE, draw_scene
from offline_infer.tasks.instances.demonstration import DEMONSTRATION, write_cases
from offline_infer.tasks.instances.references import open_references
from offline_infer.tasks.opening import open_bundle
from offline_infer.tasks.registry import demonstrated

ABSENT = ("torch", "onnx", "onnxruntime", "matplotlib", "openpyxl", "pycocotools")


def test_a_scene_is_always_the_same_and_no_mask_overlaps_another() -> None:
    first, again = draw_scene(3), draw_scene(3)
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, draw_scene(4).image)
    assert len(first.masks) == len(first.labels) >= 1
    assert np.sum(first.masks, axis=0).max() == 1
    assert set(first.labels) <= set(range(len(CLASSES)))
    assert all(mask.sum() > LEAST_VISIBLE * 50 for mask in first.masks)


def test_the_cases_are_read_back_as_references(tmp_path: Path) -> None:
    made = write_cases(tmp_path, 2)
    stamp = (tmp_path / "shapes_01.png").stat().st_mtime_ns
    assert write_cases(tmp_path, 2) == made
    assert (tmp_path / "shapes_01.png").stat().st_mtime_ns == stamp
    truth = open_references(made.references)
    assert truth.names() == ("shapes_01", "shapes_02")
    scene = draw_scene(9001)
    for mask, expected in zip(truth.read("shapes_01").masks, scene.masks, strict=True):
        np.testing.assert_array_equal(mask.mask(), expected)


def test_the_shipped_bundle_was_verified() -> None:
    spec = open_bundle(DEMONSTRATION.bundle).spec
    assert all((graph.verification or {}).get("passed") for graph in spec.graphs)
    assert "instances" in demonstrated()


def test_the_whole_route_without_torch_and_what_only_decorates(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    arguments = ["demo", "--task", "instances", "--cases", "2", "-o", str(output)]
    code = (
        f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
        f"from offline_infer.cli import main\nsys.exit(main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads((output / "summary.json").read_text())
    assert summary["counts"]["objects"] > 4
    assert summary["over_objects"]["iou"] > 0.15
    assert (output / "overlay.png").is_file()
    assert (output / "pictures" / "shapes_01_matches.png").is_file()
    assert (output / "predictions" / "shapes_01_overlay.png").is_file()


def test_a_second_run_predicts_nothing_again(tmp_path: Path) -> None:
    arguments = ["demo", "--task", "instances", "--cases", "1", "-o", str(tmp_path / "demo"), "--quiet"]
    assert main(arguments) == 0
    result = tmp_path / "demo" / "predictions" / "shapes_01.json"
    stamp = result.stat().st_mtime_ns
    assert main(arguments) == 0
    assert result.stat().st_mtime_ns == stamp
    (tmp_path / "demo" / "bundle" / "bundle.json").write_text("{}")
    with pytest.raises(UsageError, match="another release"):
        run.run_demo(tmp_path / "demo", task="instances", cases=1)


def test_missing_packages_are_named_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"offline-infer\[instances\]"):
        run.run_demo(tmp_path / "demo", task="instances")
    assert not (tmp_path / "demo").exists()
