"""The command line: exit status, one-line errors, whole results, lightness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.bundles.bundle import save
from offline_infer.cli import build_parser, main
from offline_infer.tasks.records import MANIFEST


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), folder), folder)
    return folder


def write_image(path: Path, seed: int = 0, shape: tuple[int, int, int] = (10, 14, 18)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(80, 90, shape).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.5, 1.5, 1.5))
    sitk.WriteImage(image, str(path))
    return path


def predict(bundle: Path, source: Path, output: Path, *options: str) -> int:
    return main(["predict", str(bundle), str(source), str(output), "--engine", "fake", "--quiet", *options])


def test_predict_writes_a_label_map_and_a_manifest(bundle: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    assert predict(bundle, tmp_path / "in", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.nii.gz").is_file()
    record = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert record["cases"][0]["status"] == "done"
    assert record["engine"]["name"] == "fake"


def test_one_terminal_or_log_hears_of_a_case_once(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_image(tmp_path / "in" / "a_0000.nii.gz")
    with (tmp_path / "out.txt").open("a") as out, (tmp_path / "err.txt").open("a") as err:
        for number, stdout in enumerate((out, err)):
            monkeypatch.setattr(sys, "stdout", stdout)
            monkeypatch.setattr(sys, "stderr", err)
            assert (
                main(["predict", str(bundle), str(image.parent), str(tmp_path / f"run{number}"), "--engine", "fake"])
                == 0
            )
    assert (tmp_path / "out.txt").read_text().count("a: done") == 1, "a file of results gets its own line"
    assert (tmp_path / "err.txt").read_text().count("a: done") == 2, "each run speaks of the case once"


def test_predict_measures_the_labels_on_request(bundle: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        write_image(tmp_path / "in" / f"{name}_0000.nii.gz", seed)
    assert predict(bundle, tmp_path / "in", tmp_path / "out", "--statistics") == 0
    record = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert {row["case"] for row in record["statistics"]} == {"a", "b"}
    assert all(row["volume_ml"] > 0 and row["intensity"]["p50"] for row in record["statistics"])
    table = (tmp_path / "out" / "statistics.csv").read_text().splitlines()
    assert len(table) == 1 + len(record["statistics"])
    # It changes no result, so finished ones are skipped and measured all the same.
    assert predict(bundle, tmp_path / "in", tmp_path / "out") == 0
    lone = tmp_path / "lone" / "x.nii.gz"
    assert predict(bundle, tmp_path / "in" / "a_0000.nii.gz", lone, "--statistics") == 0
    assert {p.name for p in lone.parent.iterdir() if p.is_file()} == {
        "x.nii.gz",
        "x_statistics.csv",
        "x_statistics.json",
    }
    assert predict(bundle, tmp_path / "in", tmp_path / "p", "--statistics", "--parts", "2") == 2
    assert not (tmp_path / "p").exists()


def test_one_bad_case_fails_alone(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / "in" / f"{name}_0000.nii.gz")
    whole = (tmp_path / "in" / "b_0000.nii.gz").read_bytes()
    (tmp_path / "in" / "b_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert predict(bundle, tmp_path / "in", tmp_path / "out") == 3
    captured = capsys.readouterr()
    assert "1 of 3 cases failed (b)" in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]


def test_finished_cases_are_skipped_and_redone_on_request(bundle: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    assert predict(bundle, tmp_path / "in", tmp_path / "out") == 0
    stamp = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
    assert predict(bundle, tmp_path / "in", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == stamp
    assert predict(bundle, tmp_path / "in", tmp_path / "out", "--overwrite") == 0
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns != stamp


def test_parts_share_the_cases(bundle: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / "in" / f"{name}_0000.nii.gz")
    for part in ("0", "1"):
        assert predict(bundle, tmp_path / "in", tmp_path / part, "--parts", "2", "--part", part) == 0
    assert [p.name for p in sorted((tmp_path / "0").glob("*.nii.gz"))] == ["a.nii.gz", "c.nii.gz"]
    assert [p.name for p in sorted((tmp_path / "1").glob("*.nii.gz"))] == ["b.nii.gz"]


@pytest.mark.parametrize("accumulate", ["framework", "float32", "float16"])
def test_staged_and_streaming_give_the_same_file(bundle: Path, tmp_path: Path, accumulate: str) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    assert predict(bundle, tmp_path / "in", tmp_path / "stream", "--accumulate", accumulate) == 0
    work, out = str(tmp_path / "work"), str(tmp_path / "staged")
    assert main(["preprocess", str(bundle), str(tmp_path / "in"), work, "--quiet"]) == 0
    assert main(["info", work, "--shards", "4"]) == 0
    assert main(["infer", str(bundle), work, "--engine", "fake", "--quiet"]) == 0
    assert main(["clean", work, "--apply"]) == 0
    assert main(["postprocess", str(bundle), work, out, "--quiet", "--accumulate", accumulate]) == 0
    stream = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "stream" / "a.nii.gz")))
    staged = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "staged" / "a.nii.gz")))
    assert len(np.unique(stream)) > 1
    np.testing.assert_array_equal(stream, staged)


def test_scratch_budget_run_gives_the_same_file(bundle: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    assert predict(bundle, tmp_path / "in", tmp_path / "stream") == 0
    arguments = ["staged", str(bundle), str(tmp_path / "in"), str(tmp_path / "work"), str(tmp_path / "rounds")]
    assert main([*arguments, "--scratch", "1MB", "--engine", "fake", "--quiet"]) == 0
    a, b = ((tmp_path / name / "a.nii.gz").read_bytes() for name in ("stream", "rounds"))
    assert a == b


def test_a_nan_answer_fails_its_case(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offline_infer.engines import fake

    monkeypatch.setattr(
        fake, "fake_logits", lambda image, classes: np.full((1, classes, *image.shape[2:]), np.nan, "f4")
    )
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    assert predict(bundle, tmp_path / "in", tmp_path / "out") == 3
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "{nothing}", "{images}", "{out}"], "no such file or folder"),
        (["predict", "{bundle}", "{nothing}", "{out}"], "no such file or folder"),
        (["predict", "{bundle}", "{empty}", "{out}"], "_0000"),
        (["predict", "{bundle}", "{images}", "{file}"], "is a file"),
        (["predict", "{bundle}", "{images}", "{out}", "--engine", "openvin"], "openvino"),
        (["predict", "{bundle}", "{images}", "{out}", "--folds", "9"], "no fold 9"),
        (["predict", "{bundle}", "{images}", "{out}", "--step-size", "0"], "fraction"),
        (["predict", "{bundle}", "{images}", "{out}", "--step", "0.5"], "unrecognized"),
        (["predict", "{images}", "{images}", "{out}"], "not a bundle"),
        (["predict", "{bundle}", "{images}", "{out}", "--part", "2", "--parts", "2"], "part"),
        (["export", "{images}", "-o", "{out}"], "model folder"),
        (["infer", "{bundle}", "{images}", "--engine", "fake"], "preprocess"),
        (["clean", "{images}"], "nothing in it was touched"),
        (["evaluate", "{images}", "{nothing}"], "no such file or folder"),
        (["staged", "{bundle}", "{images}", "{work}", "{out}", "--scratch", "lots"], "20GB"),
        (["infer", "{bundle}", "{images}", "--devices", "0,0"], "0,1,2,3"),
        (["nonsense"], "predict"),
    ],
)
def test_wrong_usage_is_one_line_and_status_two(
    arguments: list[str], words: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "images" / "a_0000.nii.gz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {name: str(tmp_path / name) for name in ("images", "empty", "file", "out", "nothing", "work")}
    places["bundle"] = str(bundle)
    if arguments[0] == "predict" and "--engine" not in arguments:
        arguments = [*arguments, "--engine", "fake"]
    try:
        status = main([argument.format(**places) for argument in arguments])
    except SystemExit as end:  # argparse
        status = int(str(end.code))
    captured = capsys.readouterr()
    assert status == 2
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


def test_json_is_one_object_also_for_errors(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    assert predict(bundle, tmp_path / "in", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cases"][0]["case"] == "a"
    assert predict(bundle, tmp_path / "none", tmp_path / "out", "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"] == "UsageError"


def test_every_command_has_help_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    assert commands is not None
    for name in commands:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert "--json" in capsys.readouterr().out


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, offline_infer, offline_infer.cli\n"
        "offline_infer.cli.build_parser().format_help()\n"
        "heavy = {'torch', 'numpy', 'openvino', 'onnxruntime', 'onnx', 'SimpleITK', 'pandas', 'scipy', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "1"]


def test_running_a_bundle_needs_neither_torch_nor_onnx(bundle: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'nnunetv2', 'batchgenerators', 'skimage'): sys.modules[name] = None\n"
        "from offline_infer.engines import fake\n"
        "fake.register()\n"
        "from offline_infer.cli import main\n"
        "sys.exit(main(['predict', *sys.argv[1:], '--engine', 'fake', '--quiet']))\n"
    )
    places = [str(bundle), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_engine_for_tests_cannot_be_asked_for(bundle: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    places = [str(bundle), str(tmp_path / "in"), str(tmp_path / "out")]
    command = [sys.executable, "-m", "offline_infer", "predict", *places, "--engine", "fake", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown engine 'fake'; legal names: om, onnxruntime, openvino" in done.stderr
    assert not (tmp_path / "out" / "a.nii.gz").exists()


def test_half_precision_sums_are_refused_where_the_framework_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec()
    spec = spec.model_copy(update={"aggregation": spec.aggregation.model_copy(update={"accumulate": "float32"})})
    (tmp_path / "bundle").mkdir()
    save(with_graphs(with_outputs(spec), tmp_path / "bundle"), tmp_path / "bundle")
    write_image(tmp_path / "in" / "a_0000.nii.gz")
    assert predict(tmp_path / "bundle", tmp_path / "in", tmp_path / "out", "--accumulate", "float16") == 2
    assert "nnU-Net v2 models only" in capsys.readouterr().err
