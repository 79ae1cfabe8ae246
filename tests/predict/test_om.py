"""Predict through an OM: the label maps of the ONNX engine, whatever the devices do, and a first run that checks itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ascend_specimens import tiny_bundle, use_binding

from offline_infer.ascend.compile import CompileOptions, compile_bundle
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.precision_checks import read_checks
from offline_infer.cli import main
from offline_infer.tasks.records import RecordBook

SOC = "Ascend310P3"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two cases, and a bundle of two folds."""
    tiny_bundle(tmp_path / "bundle", folds=("0", "1"))
    numbers = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, shape in (("a", (9, 14, 19)), ("b", (6, 12, 16))):
        image = sitk.GetImageFromArray(numbers.normal(0, 300, shape).astype(np.float32))
        sitk.WriteImage(image, str(tmp_path / "images" / f"{name}_0000.nii.gz"))
    return tmp_path


def predict(place: Path, output: str, *options: str) -> int:
    words = ["predict", str(place / "bundle"), str(place / "images"), str(place / output), "--threads", "1", "--quiet"]
    return main([*words, *options])


def labels(folder: Path) -> dict[str, bytes]:
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))).tobytes() for path in folder.glob("*.nii.gz")}


@pytest.mark.parametrize(
    ("binding", "fault"), [("v2023", ""), ("v2024", "fail-call:3 device:1; nan device:2"), ("acl", "")]
)
def test_label_maps_are_those_of_the_onnx_engine(
    binding: str, fault: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, binding, norms="exact", fail=fault)
    compile_bundle(place / "bundle", SOC)
    assert predict(place, "onnx", "--engine", "onnxruntime") == 0
    assert predict(place, "om", "--engine", "om", "--devices", "0,1,2") == 0
    assert labels(place / "om") == labels(place / "onnx")
    assert len(labels(place / "om")) == 2
    # The first run compared two tiles with the graph and kept the figures beside the bundle.
    rows = [row for row in read_checks(Bundle.load(place / "bundle")).rows if row.engine == "om"]
    assert {(row.fold, row.status, row.precision, row.processor) for row in rows} == {
        ("0", "ok", "fp16", SOC),
        ("1", "ok", "fp16", SOC),
    }
    assert all(row.label_agreement == 1 for row in rows)


def test_a_run_names_its_binding(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_binding(monkeypatch, "v2023")
    compile_bundle(place / "bundle", SOC)
    assert predict(place, "om", "--engine", "om", "--devices", "0", "--folds", "0") == 0
    records = [path.read_text() for path in (place / "om").rglob("*.json")]
    assert any("ais_bench" in text and "v2023" in text for text in records)


def test_a_device_that_does_not_work_is_told_and_recorded(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_binding(monkeypatch, "v2024", fail="busy device:1")
    compile_bundle(place / "bundle", SOC)
    words = ["predict", str(place / "bundle"), str(place / "images"), str(place / "om"), "--threads", "1"]
    assert main([*words, "--engine", "om", "--devices", "0,1", "--folds", "0"]) == 0
    said = capsys.readouterr().err
    assert said.count("device 1 is left out, the others do its work") == 1
    assert "507033" in said
    engine = json.loads((place / "om" / "offline_infer_run.json").read_text())["engine"]
    assert engine["devices"] == [0, 1]
    assert list(engine["left_out"]) == ["1"]


def test_an_om_is_compared_with_its_graph_by_the_outputs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner tensors of an OM cannot be seen."""
    use_binding(monkeypatch, "acl")
    compile_bundle(place / "bundle", SOC)
    words = ["compare", str(place / "bundle"), "--layers", "om", "onnxruntime", "--fold", "1", "--devices", "1"]
    assert main([*words, "-o", str(place / "layers.json"), "--threads", "1", "--quiet"]) == 0
    found = json.loads((place / "layers.json").read_text())
    assert [layer["name"] for layer in found["layers"]] == ["class"]
    assert (found["a"]["engine"], found["a"]["precision"], found["tolerance"]) == ("om", "fp16", 0.01)
    assert found["first"] is None


def test_a_result_of_another_om_is_not_taken_for_this_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result's record names the OM that answered and what it computes in: compiled anew, it is another model."""
    use_binding(monkeypatch, "v2024")
    compile_bundle(place / "bundle", SOC)
    command = ("om", "--engine", "om", "--devices", "0", "--folds", "0")
    assert predict(place, *command) == 0
    spec = Bundle.load(place / "bundle").spec
    digests = {compiled.graph: compiled.sha256 for compiled in spec.compiled}
    [record, _] = RecordBook(place / "om").all()
    assert record.provenance.compiled == {"0": digests["fold_0.onnx"]}
    assert record.provenance.precision == "fp16"
    assert predict(place, *command) == 0  # nothing to do
    compile_bundle(place / "bundle", SOC, CompileOptions(precision_mode="allow_mix_precision"))
    capsys.readouterr()
    assert predict(place, *command) == 2
    said = capsys.readouterr().err
    assert "compiled was" in said
    assert "precision was fp16, is allow_mix_precision" in said


@pytest.mark.parametrize("how", [("--tool", "msame"), ("--engine", "om")])
def test_records_of_the_staged_route_name_the_om(
    how: tuple[str, str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, "v2024")
    compile_bundle(place / "bundle", SOC)
    spec = Bundle.load(place / "bundle").spec
    folds = {graph.file: graph.fold for graph in spec.graphs}
    expected = {folds[record.graph]: record.sha256 for record in spec.compiled}
    bundle, image = str(place / "bundle"), str(place / "images" / "b_0000.nii.gz")
    work, quiet = str(place / "work"), ["--threads", "1", "--quiet", "--no-tta"]
    assert main(["preprocess", bundle, image, work, *quiet]) == 0
    assert main(["infer", bundle, work, *how, "--devices", "0,1", "--quiet"]) == 0
    assert main(["postprocess", bundle, work, str(place / "files"), "--quiet"]) == 0
    scratch = ["--scratch", "20MB", *how, "--devices", "0,1"]
    assert main(["staged", bundle, image, str(place / "scratch"), str(place / "rounds"), *scratch, *quiet]) == 0
    [files], [rounds] = RecordBook(place / "files").all(), RecordBook(place / "rounds").all()
    for record in (files, rounds):
        assert (record.provenance.compiled, record.provenance.precision) == (expected, "fp16")
        assert (record.provenance.engine, record.provenance.device) == (how[1], "npu")


def test_without_an_om_the_error_says_what_to_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_binding(monkeypatch, "v2024")
    assert predict(place, "om", "--engine", "om", "--devices", "0") == 2
    assert "compile" in capsys.readouterr().err
