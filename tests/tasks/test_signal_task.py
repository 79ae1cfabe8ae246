"""A task nobody has heard of goes down both routes, through shards, rounds, records and the evaluation: one folder, one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from signal_task.task import SignalSpec
from specimens import tiny_spec

import offline_infer
from offline_infer.bundles import bundle as bundles
from offline_infer.cli import main
from offline_infer.engines import fake
from offline_infer.files import sha256_file
from offline_infer.spec import GraphRecord, OutputSpec
from offline_infer.tasks import registry
from offline_infer.tasks.opening import open_bundle

WINDOW = 8
ENGINE = ["--engine", "fake", "--engine-option", f"shape=1,1,{WINDOW}", "--engine-option", "classes=3"]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    monkeypatch.setitem(registry.TASKS, "signal", "signal_task")
    fake.register()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "fold_0.onnx").write_bytes(b"graph")
    spec = SignalSpec(
        source=tiny_spec().source,
        window=WINDOW,
        classes=("rest", "walk", "run"),
        outputs=(OutputSpec(name="logits", dtype="float32", shape=(1, 3, WINDOW), keep=True),),
        graphs=(
            GraphRecord(
                file="fold_0.onnx", fold="0", precision="fp32", opset=17, sha256=sha256_file(folder / "fold_0.onnx")
            ),
        ),
    )
    bundles.save(spec, folder)
    return folder


@pytest.fixture
def signals(tmp_path: Path) -> Path:
    """Three signals of different length; the fake network's class is the whole number nearest to the mean."""
    folder = tmp_path / "in"
    folder.mkdir()
    for case, level, samples in (("a", 0.1, 8), ("b", 1.2, 21), ("c", 2.1, 40)):
        values = level + 0.1 * np.sin(np.arange(samples))
        (folder / f"{case}.txt").write_text("\n".join(f"{value:.6f}" for value in values))
    return folder


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("?.json"))}


def staged(bundle: Path, signals: Path, work: Path, out: Path) -> None:
    assert main(["preprocess", str(bundle), str(signals), str(work), "--quiet"]) == 0
    assert main(["info", str(work), "--shards", "4"]) == 0
    assert main(["infer", str(bundle), str(work), *ENGINE, "--quiet"]) == 0
    assert main(["clean", str(work), "--apply"]) == 0
    assert main(["postprocess", str(bundle), str(work), str(out), "--quiet"]) == 0


def test_both_roads_and_rounds_give_the_same_files(bundle: Path, signals: Path, tmp_path: Path) -> None:
    assert main(["predict", str(bundle), str(signals), str(tmp_path / "streamed"), *ENGINE, "--quiet"]) == 0
    staged(bundle, signals, tmp_path / "work", tmp_path / "staged")
    arguments = [str(bundle), str(signals), str(tmp_path / "rounds"), str(tmp_path / "budgeted"), "--scratch", "400kB"]
    assert main(["staged", *arguments, *ENGINE, "--quiet"]) == 0
    streamed = results(tmp_path / "streamed")
    assert {name: json.loads(text)["label"] for name, text in streamed.items()} == {
        "a.json": "rest", "b.json": "walk", "c.json": "run",
    }  # fmt: skip
    assert results(tmp_path / "staged") == streamed
    assert results(tmp_path / "budgeted") == streamed
    lists = [(tmp_path / "work" / "info" / f"shard_{i}.info").read_text().splitlines() for i in range(1, 5)]
    assert sum(map(len, lists)) == 1 + 3 + 5  # windows of eight samples


def test_results_are_compared_with_their_records(
    bundle: Path, signals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(bundle), str(signals), str(tmp_path / "out"), *ENGINE, "--quiet"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    assert {case["status"] for case in json.loads(capsys.readouterr().out)["cases"]} == {"skipped"}
    assert main([*arguments, "--vote", "largest"]) == 2
    assert "options was" in capsys.readouterr().err
    assert main([*arguments, "--vote", "largest", "--keep"]) == 0
    assert main([*arguments, "--vote", "largest", "--overwrite"]) == 0
    record = json.loads((tmp_path / "out" / "offline_infer_run.json").read_text())
    assert [case["record"]["settings"]["options"] for case in record["cases"]] == [{"vote": "largest"}] * 3


def test_one_bad_signal_fails_alone(bundle: Path, signals: Path, tmp_path: Path) -> None:
    (signals / "b.txt").write_text("no number")
    assert main(["predict", str(bundle), str(signals), str(tmp_path / "out"), *ENGINE, "--quiet"]) == 3
    assert sorted(results(tmp_path / "out")) == ["a.json", "c.json"]


def test_evaluation_and_python_interface(bundle: Path, signals: Path, tmp_path: Path) -> None:
    assert main(["predict", str(bundle), str(signals), str(tmp_path / "out"), *ENGINE, "--quiet"]) == 0
    references = tmp_path / "references.json"
    references.write_text(json.dumps({"a": "rest", "b": "walk", "c": "walk"}))
    arguments = ["evaluate", str(tmp_path / "out"), str(references), "-o", str(tmp_path / "summary.json")]
    assert main([*arguments, "--bundle", str(bundle)]) == 0
    assert json.loads((tmp_path / "summary.json").read_text()) == {"accuracy": pytest.approx(2 / 3)}
    options = {"shape": f"1,1,{WINDOW}", "classes": "3"}
    with offline_infer.load(bundle, engine="fake", engine_options=options) as model:
        assert model.predict(signals / "c.txt")["label"] == "run"
    assert open_bundle(bundle).spec.task == "signal"
