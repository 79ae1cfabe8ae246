"""The shell wrappers and the ONNX Runtime baseline."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ascend_specimens import (
    REPOSITORY,
    STANDINS,
    check_answers,
    graph_bytes,
    tiny_bundle,
    use_standins,
    work_folder,
)

from offline_infer.ascend.compile import compile_bundle
from offline_infer.bundles.bundle import Bundle

WRAPPERS = REPOSITORY / "tools" / "benchmark_wrappers"
MACHINE = os.uname().machine


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in; stand-ins on PATH, this Python for the wrappers."""
    use_standins(monkeypatch)
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.delenv("TOOL_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle compiled by the stand-in."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny_bundle(folder)
    with pytest.MonkeyPatch.context() as patch:
        use_standins(patch)
        compile_bundle(folder, "Ascend310P3")
    return Bundle.load(folder)


def wrapper(name: str, *arguments: object) -> tuple[int, str]:
    """Run a wrapper: status and everything it printed."""
    command = [str(WRAPPERS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "tool"), [(f"benchmark.{MACHINE}.sh", "benchmark"), ("msame.sh", "msame"), ("ais_bench.sh", "ais_bench")]
)
def test_bundle_and_work_folder_give_parallel_sessions(name: str, tool: str, place: Path, bundle: Bundle) -> None:
    worklist = work_folder(place / "work", bundle.spec, 4)
    status, text = wrapper(name, bundle.folder, place / "work", "--devices", "0,1", "--json", "--quiet")
    assert status == 0, text
    record = json.loads(text)
    assert [(session["device"], session["done"]) for session in record["sessions"]] == [(0, 2), (1, 2)]
    assert record["tool"] == tool
    check_answers(bundle, worklist, "0")


def test_tool_path_is_passed_on(place: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_PATH", str(place / "nowhere"))
    work_folder(place / "work", bundle.spec, 1)
    status, text = wrapper("msame.sh", bundle.folder, place / "work")
    assert status == 2
    assert f"{place / 'nowhere'}: no such file" in text


def _guide_line(bundle: Bundle, info: Path) -> list[str]:
    """The options of the guide's section 2.5."""
    om = bundle.compiled_path(bundle.spec.compiled[0])
    return [
        "-model_type=vision",
        "-device_id=1",
        "-batch_size=1",
        f"-om_path={om}",
        f"-input_text_path={info}",
        "-input_width=8",
        "-input_height=6",
        "-output_binary=True",
        "-useDvpp=False",
    ]


def test_the_guides_line_runs_one_checked_session(place: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    worklist = work_folder(place / "work", bundle.spec, 3)
    paths = [worklist.path(item) for item in worklist.items()]
    info = place / "sth1.info"
    info.write_text("".join(f"{i} {path} 8 6\n" for i, path in enumerate(paths)))
    name = f"benchmark.{MACHINE}.sh"
    status, text = wrapper(name, *_guide_line(bundle, info))
    assert status == 0, text
    assert "3 inputs answered" in text
    assert len(list((place / "result" / "dumpOutput_device1").iterdir())) == 3
    for path in (place / "result" / "dumpOutput_device1").iterdir():
        path.unlink()
    monkeypatch.setenv("OFFLINE_INFER_STANDIN_FAIL", "missing-outputs:2")
    status, text = wrapper(name, *_guide_line(bundle, info))
    assert status == 2
    assert f"{paths[0].stem}: output 1 is missing" in text
    monkeypatch.setenv("OFFLINE_INFER_STANDIN_FAIL", "exit-after:0")
    status, text = wrapper(name, *_guide_line(bundle, info))
    assert status == 2
    assert "ended with status 1" in text


def test_a_pure_run_as_in_the_guides_section_on_speed(place: Path, bundle: Bundle) -> None:
    om = bundle.compiled_path(bundle.spec.compiled[0])
    status, text = wrapper(f"benchmark.{MACHINE}.sh", "-round=3", f"-om_path={om}", "-device_id=0", "-batch_size=1")
    assert status == 0
    assert "ave_throughputRate" in text


def test_the_wrapper_of_another_machine_is_refused(place: Path) -> None:
    other = "aarch64" if MACHINE == "x86_64" else "x86_64"
    status, text = wrapper(f"benchmark.{other}.sh", "-round=3")
    assert status == 2
    assert f"use benchmark.{MACHINE}.sh" in text


def test_msame_is_not_believed(place: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    worklist = work_folder(place / "work", bundle.spec, 2)
    om = bundle.compiled_path(bundle.spec.compiled[0])
    line = ["--model", om, "--input", place / "work" / "inputs", "--output", place / "out"]
    assert wrapper("msame.sh", *line)[0] == 0
    status, text = wrapper("msame.sh", *line, "--outfmt", "NPY")
    assert status == 2
    assert "without saying 'Execute sample success'" in text
    path = worklist.path(worklist.items()[0])
    path.write_bytes(path.read_bytes()[:-4])
    status, text = wrapper("msame.sh", *line)
    assert status == 2
    assert "passed over inputs" in text


def test_ais_bench_is_found_as_a_module_as_well(place: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    om = bundle.compiled_path(bundle.spec.compiled[0])
    assert wrapper("ais_bench.sh", "--model", om, "--loop", "2")[0] == 0
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    status, text = wrapper("ais_bench.sh", "--model", om)
    assert status == 2
    assert "neither on PATH nor a module" in text
    monkeypatch.setenv("PYTHONPATH", str(STANDINS / "python"))
    assert wrapper("ais_bench.sh", "--model", om)[0] == 0


# ---- the baseline ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_infer() -> ModuleType:
    """``tools/benchmark_wrappers/onnx_infer.py`` as a module."""
    spec = importlib.util.spec_from_file_location("onnx_infer", WRAPPERS / "onnx_infer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_average_is_that_of_the_runs_that_count(place: Path) -> None:
    (place / "net.onnx").write_bytes(graph_bytes())
    arguments = [place / "net.onnx", "1,1,4,6,8", "--device", "cpu", "--rounds", "30", "--threads", "1"]
    status, text = wrapper("onnx_infer.sh", *arguments)
    assert status == 0, text
    assert "Average time spent: " in text
    assert "Provider: CPUExecutionProvider" in text
    record = json.loads(wrapper("onnx_infer.sh", *arguments, "--json")[1])
    assert record["rounds"] == 30
    assert record["discarded"] == 10
    assert record["min_s"] <= record["p50_s"] <= record["p90_s"] <= record["p99_s"] <= record["max_s"]
    assert record["runs_per_s"] == pytest.approx(1 / record["average_s"])
    assert record["first_run_s"] > 0


def test_a_gpu_that_is_not_there_is_an_error_not_a_slow_success(place: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine's onnxruntime has CUDA")
    (place / "net.onnx").write_bytes(graph_bytes())
    for device in ([], ["--device", "cuda:0"], ["--device", "npu:0"]):  # as the guide types it: a GPU is meant
        status, text = wrapper("onnx_infer.sh", place / "net.onnx", "1,1,4,6,8", *device)
        assert status == 2
        assert "this onnxruntime has no" in text
        assert "--device cpu" in text


class _Session:
    """A session of a library that fell back."""

    def __init__(self, providers: list[str]) -> None:
        self._providers = providers

    def get_providers(self) -> list[str]:
        return self._providers


def test_a_silent_fall_back_is_found_after_opening(onnx_infer: ModuleType) -> None:
    with pytest.raises(onnx_infer.InferError, match="fell back without a word"):
        onnx_infer._used(_Session(["CPUExecutionProvider"]), "cuda")
    # TensorRT was asked for and CUDA took over: the published order of preference.
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnx_infer._used(_Session(both), "tensorrt") == "CUDAExecutionProvider"
    assert onnx_infer._used(_Session(["CPUExecutionProvider"]), "cpu") == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.onnx", "1,1,4,6,8"], "no such file"),
        (["net.onnx", "1,1,4,6,9"], "takes [1, 1, 4, 6, 8]"),
        (["net.onnx", "1,1,4,6"], "takes [1, 1, 4, 6, 8]"),
        (["net.onnx", "1,1,4,6,x"], "is not a shape"),
        (["net.onnx", "1,1,4,6,8", "--rounds", "10"], "leave nothing"),
        (["net.onnx", "1,1,4,6,8", "--device", "gpu"], "unknown device"),
        (["bad.onnx", "1,1,4,6,8"], "cannot be opened"),
    ],
)
def test_wrong_use_is_one_readable_line(
    arguments: list[str], said: str, place: Path, onnx_infer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "net.onnx").write_bytes(graph_bytes())
    (place / "bad.onnx").write_bytes(b"not a graph")
    if "--device" not in arguments:
        arguments = [*arguments, "--device", "cpu"]
    try:
        status: Any = onnx_infer.main(arguments)
    except SystemExit as ended:
        status = ended.code
    said_there = capsys.readouterr().err
    assert status == 2
    assert said in said_there
    assert said_there.count("\n") == 1


def test_percentiles_are_of_the_counted_runs(onnx_infer: ModuleType, place: Path) -> None:
    ordered = [float(value) for value in np.arange(1, 191)]
    assert onnx_infer.percentile(ordered, 50) == 95.0
    assert onnx_infer.percentile(ordered, 99) == 189.0


@pytest.mark.parametrize("in_bundle", [True, False])
@pytest.mark.parametrize(
    ("fault", "reason"), [("missing-outputs:2", "is missing"), ("wrong-size:2", "bytes, expected")]
)
@pytest.mark.parametrize("tool", ["benchmark", "msame", "ais_bench"])
def test_wrappers_do_not_believe_a_run_that_left_outputs_out_or_cut_them(
    tool: str, fault: str, reason: str, in_bundle: bool, place: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    worklist = work_folder(place / "work", bundle.spec, 5)
    inputs = place / "work" / "inputs"
    for path in (inputs, *inputs.iterdir()):
        path.chmod(0o750 if path.is_dir() else 0o640)
    om = bundle.compiled_path(bundle.spec.compiled[0])
    if not in_bundle:
        om = place / "model.om"
        om.write_bytes(bundle.compiled_path(bundle.spec.compiled[0]).read_bytes())
        om.chmod(0o640)
    info = place / "sth1.info"
    info.write_text("".join(f"{i} {worklist.path(item)} 8 6\n" for i, item in enumerate(worklist.items())))
    line = {
        "benchmark": [word for word in _guide_line(bundle, info) if "om_path" not in word] + [f"-om_path={om}"],
        "msame": ["--model", om, "--input", inputs, "--output", place / "out"],
        "ais_bench": [f"--model={om}", f"--input={inputs}", f"--output={place / 'out'}", "--output_dirname=run"],
    }[tool]
    name = f"benchmark.{MACHINE}.sh" if tool == "benchmark" else f"{tool}.sh"
    status, text = wrapper(name, *line)
    assert status == 0, text
    assert "5 inputs answered" in text
    shutil.rmtree(place / "result", ignore_errors=True)
    shutil.rmtree(place / "out", ignore_errors=True)
    monkeypatch.setenv("OFFLINE_INFER_STANDIN_FAIL", fault)
    status, text = wrapper(name, *line)
    assert status == 2
    assert reason in text
