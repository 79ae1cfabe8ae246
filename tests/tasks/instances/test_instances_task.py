"""The task on both routes: bundle, predict, staged run, resume, one case that fails alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refinemask_samples import CLASSES, write_checkpoint

import offline_infer
from offline_infer.cli import main
from offline_infer.errors import UsageError
from offline_infer.tasks.instances.adopting import adopt_detector
from offline_infer.tasks.instances.class_names import model_classes, read_class_names
from offline_infer.tasks.instances.exporting import export_refinemask
from offline_infer.tasks.instances.writing import read_record
from offline_infer.tasks.opening import open_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export_refinemask(write_checkpoint(folder / "model.pth"), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a", (48, 64, 3)), ("b", (70, 50, 3)), ("c", (40, 40, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every result file of a run."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith("offline_infer")
    }


def test_the_bundle_says_what_it_is_and_was_verified(bundle: Path) -> None:
    spec: Any = open_bundle(bundle).spec
    assert spec.task == "instances"
    assert spec.classes == CLASSES
    assert spec.input_shape == (1, 4, -1, -1)
    verification = spec.graphs[0].verification
    assert verification is not None
    assert {record["engine"] for record in verification["engines"]} == {"openvino", "onnxruntime"}


def test_both_roads_give_the_same_files(bundle: Path, images: Path, tmp_path: Path) -> None:
    streamed, staged, work = tmp_path / "streamed", tmp_path / "staged", tmp_path / "work"
    assert main(["predict", str(bundle), str(images), str(streamed)]) == 0
    for command in (
        ["preprocess", str(bundle), str(images), str(work)],
        ["info", str(work), "--shards", "2"],
        ["infer", str(bundle), str(work)],
        ["postprocess", str(bundle), str(work), str(staged)],
    ):
        assert main(command) == 0, command
    found = contents(streamed)
    assert contents(staged) == found
    assert sorted(found) == sorted(
        f"{name}{ending}" for name in "abc" for ending in (".json", "_objects.png", "_classes.png")
    )
    result, classes = read_record(streamed / "a.json")
    assert classes == CLASSES
    assert len(result) > 0
    assert result.size == (48, 64)


def test_a_damaged_image_fails_alone_and_the_rest_is_not_done_again(
    bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(good[: len(good) // 2])
    output = tmp_path / "out"
    assert main(["predict", str(bundle), str(images), str(output)]) == 3
    assert sorted(path.name for path in output.glob("*.json") if "offline" not in path.name) == ["a.json", "c.json"]
    before = (output / "a.json").stat().st_mtime_ns
    (images / "b.png").write_bytes(good)
    assert main(["predict", str(bundle), str(images), str(output)]) == 0
    assert (output / "a.json").stat().st_mtime_ns == before
    assert (output / "b.json").is_file()


def test_the_python_interface_takes_arrays_and_paths(bundle: Path, images: Path) -> None:
    with offline_infer.load(bundle) as model:
        from_path = model.predict(images / "a.png")
        from_array = model.predict(np.asarray(Image.open(images / "a.png")))
        np.testing.assert_array_equal(from_path.boxes, from_array.boxes)


def test_class_names_are_needed_and_read(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"classes": ["a", "b"]}))
    (tmp_path / "names.txt").write_text("a\nb\n\n")
    assert read_class_names(tmp_path / "names.json") == read_class_names(tmp_path / "names.txt") == ("a", "b")
    (tmp_path / "bad.json").write_text("5")
    with pytest.raises(UsageError):
        read_class_names(tmp_path / "bad.json")


def test_the_command_exports_a_checkpoint_with_a_canvas(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model.pth")
    command = ["export", str(checkpoint), "-o", str(tmp_path / "bundle"), "--no-verify", "--quiet"]
    assert main([*command, "--canvas", "64x96"]) == 0
    assert open_bundle(tmp_path / "bundle").spec.input_shape == (1, 4, 64, 96)


@pytest.mark.parity
def test_the_command_adopts_the_recorded_torchvision_model(
    goldens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = goldens / "instances/torchvision"
    classes = json.loads((folder / "config.json").read_text())["classes"]
    (tmp_path / "classes.txt").write_text("\n".join(classes))
    command = ["adopt", str(folder / "tiny_maskrcnn.onnx"), "--task", "instances", "-o", str(tmp_path / "b"), "--quiet"]
    assert main(command) == 2
    assert "the graph does not name its 20 classes" in capsys.readouterr().err
    command += ["--set", f"classes={tmp_path / 'classes.txt'}"]
    assert main([*command, "--set", "std=0,1,1"]) == 2
    assert "the preparation of images is impossible" in capsys.readouterr().err
    assert main([*command, "--set", "min-score=0.2"]) == 0
    assert "same answers on" in capsys.readouterr().out
    spec: Any = open_bundle(tmp_path / "b").spec
    assert spec.score_floor == 0.2


@pytest.mark.parity
def test_the_recorded_torchvision_model_on_both_engines(goldens: Path, tmp_path: Path) -> None:
    folder = goldens / "instances"
    classes = json.loads((folder / "torchvision/config.json").read_text())["classes"]
    with pytest.raises(UsageError, match="class"):
        adopt_detector(folder / "torchvision/tiny_maskrcnn.onnx", tmp_path / "bundle")
    adopt_detector(folder / "torchvision/tiny_maskrcnn.onnx", tmp_path / "bundle", classes=classes)
    for engine in ("openvino", "onnxruntime"):
        with offline_infer.load(tmp_path / "bundle", engine=engine) as model:
            for name in ("a_320x240.png", "b_151x227.jpg"):
                expected = np.load(folder / "torchvision/expected" / f"{Path(name).stem}.npz")
                found = model.predict(folder / "refinemask/images" / name)
                check(found, expected["boxes"], expected["scores"], expected["labels"] - 1, expected)


@pytest.mark.parity
def test_the_recorded_refinemask_on_both_engines(goldens: Path, tmp_path: Path) -> None:
    folder = goldens / "instances/refinemask"
    export_refinemask(folder / "tiny_r50.pth", tmp_path / "bundle", verify=False)
    for engine in ("openvino", "onnxruntime"):
        with offline_infer.load(tmp_path / "bundle", engine=engine) as model:
            for path in sorted((folder / "images").iterdir()):
                expected = np.load(folder / "expected" / f"{path.stem}.npz")
                found = model.predict(path)
                check(found, expected["dets"][:, :4], expected["dets"][:, 4], expected["labels"], expected)


def check(found: Any, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, expected: Any) -> None:
    """The tolerances of the recordings."""
    np.testing.assert_allclose(found.boxes, boxes, rtol=0, atol=0.01)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-4)
    assert found.labels.tolist() == labels.tolist()
    shape = expected["masks_shape"]
    masks = np.unpackbits(expected["masks_packed"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    wrong = [int((own.mask() != other).sum()) for own, other in zip(found.masks, masks, strict=True)]
    assert max(wrong, default=0) <= max(3, 0.001 * masks[0].size if len(masks) else 0)
    assert sum(count == 0 for count in wrong) >= 0.9 * len(wrong)


def test_class_names_stand_where_exporters_leave_them(tmp_path: Path) -> None:
    def graph(**metadata: str) -> Any:
        return SimpleNamespace(metadata_props=[SimpleNamespace(key=key, value=metadata[key]) for key in metadata])

    path = tmp_path / "m.onnx"
    for text in ("{0: 'a', 1: 'b'}", "['a', 'b']", '{"0": "a", "1": "b"}', "a, b"):
        assert model_classes(None, path, graph(names=text), 2) == ("a", "b")
    assert model_classes(None, path, graph(stride="32", CLASSES="('a', 'b')"), None) == ("a", "b")
    with pytest.raises(UsageError, match="does not name its 2 classes"):
        model_classes(None, path, graph(names="{1: 'a'}"), 2)
    path.with_suffix(".txt").write_text("background\na\nb\n")
    assert model_classes(None, path, graph(), 2) == ("a", "b")
    with pytest.raises(UsageError, match="3 class names for a graph with 2"):
        model_classes(("a", "b", "c"), path, graph(), 2)
    # COCO's 91 numbers, of which many are no class.
    assert model_classes(("__background__", "a", "N/A", "N/A"), path, graph(), 3) == ("a", "N/A (1)", "N/A (2)")


def test_an_empty_name_in_the_middle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\n\nb\n")
    with pytest.raises(UsageError, match="name 2 is empty"):
        read_class_names(tmp_path / "names.txt")
