"""The image task on both routes: from a model of one's own to masks, scores and figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ascend_specimens import use_standins
from own_model_samples import write_model
from photo_samples import image_spec, photo, save, write_list, write_pairs
from PIL import Image

from offline_infer.checkpoints.digests import sha256
from offline_infer.cli import main
from offline_infer.errors import EngineFailed, GeometryError, UsageError
from offline_infer.tasks.image.adopting import adopt
from offline_infer.tasks.image.case import ImageFrame
from offline_infer.tasks.image.collecting import ImageCollector
from offline_infer.tasks.image.evaluation.evaluate import evaluate_folder
from offline_infer.tasks.image.items import ImageLayout
from offline_infer.tasks.image.spec import MaskOutput, ScoreOutput
from offline_infer.tasks.image.task import TASK
from offline_infer.tasks.image.writing import combine_scores, read_score
from offline_infer.tasks.settings import RunSettings


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("model")
    code, weights = write_model(root / "mine")
    found = {}
    for geometry in ("resize", "pad"):
        found[geometry] = root / geometry
        command = ["export", str(code), "--weights", str(weights), "--size", "48x64", "--geometry", geometry, "--quiet"]
        assert main([*command, "-o", str(found[geometry])]) == 0
    found["any"] = root / "any"
    command = ["export", str(code), "--weights", str(weights), "--size", "any", "--multiple-of", "16", "--quiet"]
    assert main([*command, "--set", "label=false", "-o", str(found["any"])]) == 0
    return found


def expected_mask(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the hand-set weights give, at the image's own size."""
    normal = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return 1 / (1 + np.exp(-4 * (normal.mean(axis=2) - 1.5)))


def grey(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path))


def test_padding_gives_each_pixel_its_own_answer(bundles: dict[str, Path], tmp_path: Path) -> None:
    write_pairs(tmp_path / "Set", [(40, 50), (48, 64)])
    assert main(["predict", str(bundles["pad"]), str(tmp_path / "Set"), str(tmp_path / "out"), "--quiet"]) == 0
    for name in ("p0", "p1"):
        pixels = np.asarray(Image.open(tmp_path / "Set" / "Tp" / f"{name}.png"))
        wanted = np.floor(expected_mask(pixels) * 255 + 0.5)
        found = grey(tmp_path / "out" / "pred" / f"{name}.png")
        assert found.shape == pixels.shape[:2]
        assert np.abs(found - wanted).max() <= 1
    scores = json.loads((tmp_path / "out" / "pred_label_combined.json").read_text())
    assert list(scores) == ["p0.png", "p1.png"]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_both_roads_give_the_same_bytes(bundles: dict[str, Path], tmp_path: Path, engine: str) -> None:
    source, work = write_pairs(tmp_path / "Set", [(40, 50), (200, 130), (48, 64)]), tmp_path / "work"
    bundle = str(bundles["pad"])
    common = ["--oversize", "tile", "--quiet"]
    run = ["predict", bundle, str(source), str(tmp_path / "one"), "--engine", engine, *common]
    assert main([*run, "--extras", "binary,overlay,png16,npy,tiff"]) == 0
    assert main(["preprocess", bundle, str(source), str(work), *common]) == 0
    assert main(["info", str(work), "--shards", "4", "--quiet"]) == 0
    assert main(["infer", bundle, str(work), "--engine", engine, "--quiet"]) == 0
    assert main(["clean", str(work), "--apply", "--quiet"]) == 0
    assert main(["postprocess", bundle, str(work), str(tmp_path / "two"), "--quiet"]) == 0
    for name in ("pred/p0.png", "pred/p1.png", "pred/p2.png", "scores/p1.json", "pred_label_combined.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    soft = np.load(tmp_path / "one" / "npy" / "p1.npy")
    assert soft.shape == (200, 130)
    binary = grey(tmp_path / "one" / "binary" / "p1.png") > 0
    np.testing.assert_array_equal(binary, soft > 0.5)
    assert grey(tmp_path / "one" / "png16" / "p1.png").max() > 255
    assert evaluate_folder(tmp_path / "two", source).failed == {}


def test_a_graph_of_any_size(bundles: dict[str, Path], tmp_path: Path) -> None:
    write_pairs(tmp_path / "Set", [(40, 50), (100, 33)])
    assert main(["predict", str(bundles["any"]), str(tmp_path / "Set"), str(tmp_path / "out"), "--quiet"]) == 0
    pixels = np.asarray(Image.open(tmp_path / "Set" / "Tp" / "p1.png"))
    assert np.abs(grey(tmp_path / "out" / "pred" / "p1.png") - expected_mask(pixels) * 255).max() <= 1
    assert not (tmp_path / "out" / "pred_label_combined.json").exists()


def test_a_bad_image_fails_alone(bundles: dict[str, Path], tmp_path: Path) -> None:
    write_pairs(tmp_path / "Set", [(40, 50), (40, 50), (60, 50)])
    broken = tmp_path / "Set" / "Tp" / "p0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert main(["predict", str(bundles["pad"]), str(tmp_path / "Set"), str(tmp_path / "out"), "--quiet"]) == 3
    assert sorted(path.name for path in (tmp_path / "out" / "pred").iterdir()) == ["p1.png"]


def test_parts_of_a_folder_make_one_list_of_scores(bundles: dict[str, Path], tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "Set", [(40, 50)] * 7)
    run = ["predict", str(bundles["resize"]), str(source), str(tmp_path / "out"), "--quiet", "--parts", "4", "--part"]
    combined_list = tmp_path / "out" / "pred_label_combined.json"
    for part in (2, 0, 3):  # the run of part 1 died
        assert main([*run, str(part)]) == 0
        assert not combined_list.exists()  # a list of all images never lacks one
    assert main([*run, "1"]) == 0
    ranks = [json.loads((tmp_path / "out" / f"pred_label_rank{part}.json").read_text()) for part in range(4)]
    assert [len(rank) for rank in ranks] == [2, 2, 2, 1]
    combined = json.loads(combined_list.read_text())
    assert combined == {name: score for rank in ranks for name, score in rank.items()}
    assert list(combined) == [f"p{number}.png" for number in range(7)]
    combined_list.unlink()  # a run that was killed after its last image
    assert main([*run, "1"]) == 0
    assert json.loads(combined_list.read_text()) == combined


TOOL_RUNS = {"benchmark": "", "msame": "exit-after:1 device:2", "ais_bench": "crash-after:1 device:1"}


@pytest.mark.parametrize("tool", TOOL_RUNS)
def test_tools_give_the_same_bytes_on_four_devices(
    bundles: dict[str, Path], tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two outputs, tiles, four shards; a device that dies leaves its share to the others."""
    use_standins(monkeypatch, fail=TOOL_RUNS[tool])
    source, work, bundle = (
        write_pairs(tmp_path / "Set", [(40, 50), (90, 70), (48, 64)]),
        tmp_path / "work",
        tmp_path / "b",
    )
    shutil.copytree(bundles["pad"], bundle)
    run = ["predict", str(bundle), str(source), str(tmp_path / "one"), "--engine", "onnxruntime", "--quiet"]
    assert main([*run, "--oversize", "tile"]) == 0
    assert main(["compile", str(bundle), "--soc", "Ascend310P3", "--quiet"]) == 0
    assert main(["preprocess", str(bundle), str(source), str(work), "--oversize", "tile", "--quiet"]) == 0
    assert main(["info", str(work), "--shards", "4", "--quiet"]) == 0
    assert main(["infer", str(bundle), str(work), "--tool", tool, "--devices", "0,1,2,3", "--quiet"]) == 0
    assert main(["clean", str(work), "--apply", "--quiet"]) == 0
    assert main(["postprocess", str(bundle), str(work), str(tmp_path / "two"), "--quiet"]) == 0
    for name in ("pred/p0.png", "pred/p1.png", "pred/p2.png", "scores/p1.json", "pred_label_combined.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    ranks = [json.loads((tmp_path / "two" / f"pred_label_rank{device}.json").read_text()) for device in range(4)]
    assert sorted(name for rank in ranks for name in rank) == ["p0.png", "p1.png", "p2.png"]


def test_an_image_without_an_answer_is_an_error_in_the_staged_run(bundles: dict[str, Path], tmp_path: Path) -> None:
    source, work = write_pairs(tmp_path / "Set", [(40, 50)] * 3), tmp_path / "work"
    bundle, out = str(bundles["resize"]), tmp_path / "out"
    assert main(["preprocess", bundle, str(source), str(work), "--quiet"]) == 0
    assert main(["info", str(work), "--shards", "2", "--quiet"]) == 0
    assert main(["infer", bundle, str(work), "--engine", "onnxruntime", "--quiet"]) == 0
    next((work / "outputs").rglob("*p1*")).unlink()
    assert main(["postprocess", bundle, str(work), str(out), "--quiet"]) == 3
    assert list(json.loads((out / "pred_label_combined.json").read_text())) == ["p0.png", "p2.png"]


@pytest.mark.parametrize("route", ["predict", "postprocess"])
def test_a_run_killed_before_its_lists_were_written_is_made_good(
    bundles: dict[str, Path], tmp_path: Path, route: str
) -> None:
    """All masks are there, but what the folder says of itself is that of the run before."""
    source, output, work = tmp_path / "Set", tmp_path / "out", tmp_path / "work"
    bundle = str(bundles["pad"])

    def run() -> None:
        if route == "predict":
            assert main(["predict", bundle, str(source), str(output), "--quiet"]) == 0
            return
        assert main(["preprocess", bundle, str(source), str(work), "--quiet"]) == 0
        assert main(["infer", bundle, str(work), "--quiet"]) == 0
        assert main(["postprocess", bundle, str(work), str(output), "--quiet"]) == 0

    lists = ("offline_infer_run.json", "pred_label_combined.json")
    write_pairs(source, [(40, 50)])
    run()
    before = {name: (output / name).read_bytes() for name in lists}
    write_pairs(source, [(40, 50), (30, 60)])
    run()
    wanted = {name: json.loads((output / name).read_text()) for name in lists}
    for name in lists:
        (output / name).write_bytes(before[name])
    run()
    cases = json.loads((output / lists[0]).read_text())["cases"]
    assert cases == wanted[lists[0]]["cases"]
    assert json.loads((output / lists[1]).read_text()) == wanted[lists[1]]
    stamp = (output / lists[0]).stat().st_mtime_ns
    run()  # complete: the manifest is that of the run before
    assert (output / lists[0]).stat().st_mtime_ns == stamp


def test_evaluate_finds_the_task(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_pairs(tmp_path / "Set", [(40, 50), (30, 60)])
    run = ["predict", str(bundles["resize"]), str(source), str(tmp_path / "out"), "--extras", "network", "--quiet"]
    assert main(run) == 0
    capsys.readouterr()
    for more in ([], ["--protocol", "trufor"], ["--as-upstream"], ["--size", "network"]):
        assert (
            main(["evaluate", str(tmp_path / "out"), str(source), "-o", str(tmp_path / "s.json"), "--quiet", *more])
            == 0
        )
        summary = json.loads((tmp_path / "s.json").read_text())
        assert summary["sets"]["Set"]["pixel"]["quoted"]["F1"] > 0.8
        assert summary["protocol"]["name"] in capsys.readouterr().out
        assert main(["report", str(tmp_path / "s.json"), "-o", str(tmp_path / "page.html"), "--quiet"]) == 0
        page = (tmp_path / "page.html").read_text()
        assert "Masks and scores: Set" in page
        assert f"pixel-level F1 [{summary['protocol']['name']}]" in page


def test_equal_names_in_a_list_stay_apart(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x/a.png", "y/a.png", "x/b.jpg", "x/b.png"):
        save(tmp_path / name, photo(40, 50, len(name)))
    listed = write_list(tmp_path / "l.json", [(n, "Negative") for n in ("x/a.png", "y/a.png", "x/b.jpg", "x/b.png")])
    assert main(["predict", str(bundles["resize"]), str(listed), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.index("its results are called 'b_jpg'") < said.index("x_a: done")  # before any work
    assert len(list((tmp_path / "out" / "pred").glob("*.png"))) == 4
    assert list(json.loads((tmp_path / "out" / "pred_label_combined.json").read_text())) == [
        "b.jpg",
        "b.png",
        "x/a.png",
        "y/a.png",
    ]


def test_adopting_somebody_elses_graph(bundles: dict[str, Path], tmp_path: Path) -> None:
    graph = next(bundles["resize"].glob("*.onnx"))
    made = adopt(graph, tmp_path / "adopted", {}, overwrite=False, sink=lambda event: None)
    assert (made.spec.mask.name, made.spec.score.name, made.spec.height) == ("mask", "score", 48)  # type: ignore[attr-defined]
    command = ["adopt", str(graph), "--task", "image", "-o", str(tmp_path / "b"), "--quiet"]
    assert main([*command, "--set", "score=none", "--set", "mean=0.5,0.5,0.5"]) == 0
    assert main([*command, "--set", "score=none", "--set", "mean=0.5,0.5,0.5"]) == 0  # it is there, and the same
    assert main([*command, "--set", "score=none", "--set", "mean=0.5,0.5,0.4"]) == 2
    assert main([*command, "--overwrite", "--set", "mask=nothing"]) == 2
    assert main([*command, "--overwrite", "--set", "colour=red"]) == 2
    assert main([*command, "--overwrite", "--set", "size=32"]) == 2


def test_adopting_only_the_file_that_was_published(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = next(bundles["resize"].glob("*.onnx"))
    digest = sha256(graph)
    command = ["adopt", str(graph), "--task", "image", "-o", str(tmp_path / "b"), "--quiet", "--expect-sha256"]
    for wrong in ([digest[:-1] + ("0" if digest[-1] != "0" else "1")], ["0" * 64, "1" * 64], ["abc"]):
        assert main([*command, *wrong]) == 2
        assert "SHA-256" in capsys.readouterr().err
        assert not (tmp_path / "b").exists()
    assert main([*command, "0" * 64, digest.upper()]) == 0


def test_the_command_sweeps_a_bundle_over_attacks(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "Set", [(40, 50), (30, 36)])
    (tmp_path / "grid.json").write_text('{"GaussianBlur": [0, 3]}')
    command = ["sweep", str(bundles["resize"]), "-o", str(tmp_path / "out"), "--grid", str(tmp_path / "grid.json")]
    assert main([*command, "--references", str(tmp_path / "missing"), "--quiet"]) == 2
    assert "missing: no such file or folder" in capsys.readouterr().err
    command += ["--references", str(tmp_path / "Set"), "--threshold", "0.7", "--json", "--quiet"]
    assert main(command) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["attack"], row["strength"]) for row in rows] == [("none", 0), ("GaussianBlur", 3)]
    assert (tmp_path / "out" / "sweep.csv").is_file()


def test_the_scaffold_is_never_overwritten(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / "mine"), "--quiet"]) == 0
    (tmp_path / "mine" / "mymodel.py").write_text("mine")
    assert main(["init", str(tmp_path / "mine"), "--quiet"]) == 2
    assert (tmp_path / "mine" / "mymodel.py").read_text() == "mine"
    assert main(["init", str(tmp_path / "mine"), "--force", "--quiet"]) == 0


def collect(answers: dict[str, np.ndarray[Any, Any]], folds: int = 1, **fields: Any) -> Any:
    spec = image_spec(height=4, width=6, **fields)
    frame = ImageFrame("", (4, 6))
    placed = ImageLayout.of(frame, spec, RunSettings()).placed
    collector = ImageCollector(frame, placed, spec, RunSettings(), folds)
    for fold in range(folds):
        collector.take(0, 0, fold, answers)
    return collector.finish()


def test_scores_of_every_shape_and_activations() -> None:
    mask = np.full((1, 1, 4, 6), 0.25, np.float32)
    for shape in ((), (1,), (1, 1)):
        result = collect({"mask": mask, "s": np.full(shape, 0.75, np.float32)}, score=ScoreOutput(name="s"))
        assert (result.score, result.mask[0, 0]) == (0.75, 0.25)
    logits = np.zeros((1, 2, 4, 6), np.float32)
    result = collect({"mask": logits}, folds=3, mask=MaskOutput(name="mask", activation="softmax", channel=1))
    assert result.mask[0, 0] == pytest.approx(0.5)
    half = collect({"mask": np.zeros((1, 2, 3), np.float32)}, mask=MaskOutput(name="mask", activation="sigmoid"))
    assert half.mask.shape == (4, 6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5, -0.1])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(EngineFailed, match=r"NaN|no probabilities"):
        collect({"mask": np.full((1, 1, 4, 6), value, np.float32)})


def test_missing_outputs_and_shapes_are_named() -> None:
    with pytest.raises(EngineFailed, match="no output 'mask'"):
        collect({"other": np.zeros((1, 1, 4, 6), np.float32)})
    with pytest.raises(EngineFailed, match="has shape"):
        collect({"mask": np.zeros((2, 1, 4, 6), np.float32)})
    with pytest.raises(GeometryError, match="more than"):
        collect({"mask": np.zeros((1, 1, 8, 6), np.float32)})


def test_scores_are_merged_once_per_image(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    for stem, score in (("A__a", 0.5), ("B__a", 0.5)):
        (tmp_path / "scores" / f"{stem}.json").write_text(
            json.dumps({"name": "a.png", "image": "/x/a.png", "score": score})
        )
    assert combine_scores(tmp_path) == {"a.png": 0.5}
    (tmp_path / "scores" / "C__a.json").write_text(json.dumps({"name": "a.png", "image": "/x/a.png", "score": 0.6}))
    with pytest.raises(UsageError, match=r"0\.5 and 0\.6"):
        combine_scores(tmp_path)
    (tmp_path / "scores" / "C__a.json").write_text('{"name": "a.png", "image": "", "score": 7}')
    with pytest.raises(UsageError, match="no score of a run"):
        read_score(tmp_path / "scores" / "C__a.json")


def test_the_python_interface_takes_arrays() -> None:
    spec = image_spec(geometry="pad")
    loaded = TASK.load(photo(20, 30), spec)
    assert TASK.prepare(loaded, spec, None, threads=1, consume=False).batch is not None
    for source in (3, np.zeros((2, 2), np.float32)):
        with pytest.raises(UsageError, match="uint8"):
            TASK.load(source, spec)
    with pytest.raises(GeometryError, match=r"\(y, x, 3\)"):
        TASK.load(np.zeros((2, 2, 4), np.uint8), spec)
    with pytest.raises(UsageError, match="damaged"):
        TASK.geometry_from_json({"image": "x", "size": [0, 3]}, spec)


def test_a_change_is_that_of_the_masks_probabilities_and_of_the_score() -> None:
    spec = image_spec(mask=MaskOutput(name="mask", activation="sigmoid"), score=ScoreOutput(name="score"))
    shape = (1, 1, 32, 48)
    one = {"mask": np.zeros(shape, np.float32), "score": np.array([0.25], np.float32)}
    other = {"mask": np.full(shape, np.log(3.0), np.float32), "score": np.array([0.75], np.float32)}
    assert TASK.change([one], [one], spec) == 0
    assert TASK.change([other, one], [one, one], spec) == pytest.approx((0.25**2 + 0.5**2) / 2, rel=1e-5)
