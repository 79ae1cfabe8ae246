"""The stand-ins are as strict as the tools: flags, exit statuses, numbering, layouts, and failing on request."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ascend_specimens import CLASSES, PATCH, STANDINS, graph_bytes, use_standins

INPUT_BYTES = 4 * int(np.prod(PATCH))
OUTPUT_BYTES = CLASSES * INPUT_BYTES


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the stand-ins on PATH."""
    use_standins(monkeypatch)
    monkeypatch.chdir(tmp_path)
    os.umask(0o022)
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in OM with two heads, for Ascend310P3."""
    folder = tmp_path_factory.mktemp("om")
    (folder / "net.onnx").write_bytes(graph_bytes(heads=2))
    with pytest.MonkeyPatch.context() as patch:
        use_standins(patch)
        status, text = tool(*atc_line(folder / "net.onnx", folder / "net"), cwd=folder)
    assert status == 0, text
    return folder / "net.om"


def tool(*command: object, cwd: Path | None = None) -> tuple[int, str]:
    """Run a stand-in: status and everything it printed."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def atc_line(source: Path, target: Path, soc: str = "Ascend310P3") -> list[str]:
    return [
        "atc",
        "--framework=5",
        f"--model={source}",
        f"--output={target}",
        "--input_format=NCDHW",
        "--input_shape=image:1,1,4,6,8",
        f"--soc_version={soc}",
        "--log=error",
    ]


def inputs(folder: Path, names: list[str], size: int = INPUT_BYTES) -> list[Path]:
    folder.mkdir()
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.write_bytes(np.full(size // 4, number, np.float32).tobytes())
    return paths


# ---- atc -------------------------------------------------------------------------------------------------------------


def test_atc_succeeds_with_the_text_and_the_traces_of_the_real_one(place: Path) -> None:
    (place / "net.onnx").write_bytes(graph_bytes())
    status, text = tool(*atc_line(place / "net.onnx", place / "net"))
    assert status == 0
    assert [line for line in text.splitlines() if line][-1] == "ATC run success, welcome to the next use."
    assert {path.name for path in place.iterdir()} == {
        "net.onnx", "net.om", "kernel_meta", "fusion_result.json", "check_result.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (["--framwork=5"], "E10001"),
        (["--soc_version=310P3"], "E10001"),
        (["--precision_mode=fp16"], "E10001"),
        (["--precision_mode=force_fp32", "--precision_mode_v2=origin"], "E10056"),
        (["--auto_tune_mode=RL,GA"], "E10001"),
        (["--op_select_impl_mode=high_precision"], "E10001"),
        (["--optypelist_for_implmode=Relu"], "E10047"),
        (["--dynamic_batch_size=1,2", "--dynamic_dims=1,2"], "E10009"),
        (["--input_shape=picture:1,1,4,6,8"], "E10016"),
        (["--input_shape=image:1,4,6,8"], "E10049"),
        (["--input_shape=image 1,1,4,6,8"], "E10002"),
        (["--out_nodes=logits"], "E11017"),
        (["--model=/no/such.onnx"], "E10410"),
        (["--model=/no such.onnx"], "E10001"),
        (["--input_format=NDHWC"], "E10001"),
    ],
)
def test_atc_refuses_with_status_255_and_a_code_on_standard_output(place: Path, change: list[str], code: str) -> None:
    (place / "net.onnx").write_bytes(graph_bytes())
    done = subprocess.run(
        [*atc_line(place / "net.onnx", place / "net"), *change], capture_output=True, text=True, check=False
    )
    assert done.returncode == 255
    assert not done.stderr
    assert "ATC run failed" in done.stdout
    assert re.search(rf"(?m)^{code}: ", done.stdout), done.stdout
    assert not (place / "net.om").exists()


def test_atc_needs_the_framework_and_knows_no_new_opset(place: Path) -> None:
    (place / "net.onnx").write_bytes(graph_bytes(opset=19))
    line = atc_line(place / "net.onnx", place / "net")
    assert "E19010: No parser is registered" in tool(*line)[1]
    assert "E10007" in tool(*(word for word in line if "framework" not in word))[1]
    assert tool("atc", "--help")[0] == 0


# ---- benchmark -------------------------------------------------------------------------------------------------------


def benchmark_line(model: Path, info: Path, device: int = 0) -> list[str]:
    return [
        f"benchmark.{os.uname().machine}", "-model_type=vision", f"-device_id={device}", "-batch_size=1",
        f"-om_path={model}", f"-input_text_path={info}", "-input_width=8", "-input_height=6", "-output_binary=True",
        "-useDvpp=False",
    ]  # fmt: skip


def test_benchmark_numbers_from_one_under_result(place: Path, model: Path) -> None:
    paths = inputs(place / "bins", ["a_0.bin", "b.1.bin"])
    (place / "x.info").write_text("".join(f"{i} {path} 8 6\n" for i, path in enumerate(paths)))
    status, text = tool(*benchmark_line(model, place / "x.info", 2))
    assert status == 0, text
    names = {path.name: path.stat().st_size for path in (place / "result" / "dumpOutput_device2").iterdir()}
    assert names == dict.fromkeys(["a_0_1.bin", "a_0_2.bin", "b.1_1.bin", "b.1_2.bin"], OUTPUT_BYTES)
    report = (place / "result" / "perf_vision_batchsize_1_device_2.txt").read_text()
    assert "Interface throughputRate" in report
    assert report.startswith("[e2e]")


def test_benchmark_refuses_misspelt_options_and_lists(place: Path, model: Path) -> None:
    (path,) = inputs(place / "bins", ["a.bin"])
    info = place / "x.info"
    info.write_text(f"0 {path} 8 6\n")
    line = benchmark_line(model, info)
    for wrong in (["-batchsize=1"], ["--om_path=x"], ["-useDvpp=Maybe"], ["-round"], ["-useDvpp=True"]):
        status, text = tool(*line, *wrong)
        assert status == 1, wrong
        assert "[ERROR]" in text, wrong
    for text in (f"1 {path} 8 6\n", f"0 {path} 8\n", f"{path} 0 8 6\n"):
        info.write_text(text)
        assert tool(*line)[0] == 1
    info.write_text("0 nowhere.bin 8 6\n")
    assert "does not exist" in tool(*line)[1]


def test_benchmark_without_data_reports_pure_speed(place: Path, model: Path) -> None:
    status, text = tool(
        f"benchmark.{os.uname().machine}", "-round=5", f"-om_path={model}", "-device_id=0", "-batch_size=1"
    )
    assert status == 0, text
    assert "ave_throughputRate:" in text
    assert "ave_throughputRate = " in (place / "result" / "PureInfer_perf_of_net_in_device_0.txt").read_text()


# ---- msame -----------------------------------------------------------------------------------------------------------


def test_msame_numbers_from_zero_in_a_folder_called_after_the_time(place: Path, model: Path) -> None:
    inputs(place / "bins", ["a.bin", "b.1.bin"])
    status, text = tool(
        "msame", "--model", model, "--input", place / "bins", "--output", place / "out", "--outfmt", "BIN"
    )
    assert status == 0
    assert "Execute sample success" in text
    assert text.count("Inference time:") == 2
    (stamped,) = (place / "out").iterdir()
    assert re.fullmatch(r"\d{8}_\d{1,2}_\d{1,2}_\d{1,2}_\d{1,6}", stamped.name)
    assert {path.name for path in stamped.iterdir()} == {
        "a_output_0.bin", "a_output_1.bin", "b.1_output_0.bin", "b.1_output_1.bin",
    }  # fmt: skip


def test_msame_ends_with_status_zero_even_where_it_failed(place: Path, model: Path) -> None:
    inputs(place / "bins", ["a.bin"])
    for wrong in (
        ["--modle", "x"],
        ["--outfmt", "NPY"],
        ["--device", "256"],
        ["--loop", "0"],
        ["--input", "nowhere"],
        ["rest"],
    ):
        status, text = tool("msame", "--model", model, "--input", place / "bins", *wrong)
        assert status == 0, wrong
        assert "[ERROR]" in text, wrong
        assert "Execute sample success" not in text, wrong
    # A file of another size is passed over, and success is reported all the same.
    (place / "bins" / "b.bin").write_bytes(b"short")
    status, text = tool("msame", "--model", model, "--input", place / "bins", "--output", place / "out")
    assert status == 0
    assert "Execute sample success" in text
    assert "[ERROR] b" in text


# ---- ais_bench -------------------------------------------------------------------------------------------------------


def test_ais_bench_writes_its_summary_beside_the_folder(place: Path, model: Path) -> None:
    inputs(place / "bins", ["a10.bin", "a9.bin"])
    status, text = tool(
        "ais_bench", "--model", model, "--input", place / "bins", "--output", place / "out", "--output_dirname", "run"
    )
    assert status == 0, text
    assert {path.name for path in (place / "out" / "run").iterdir()} == {
        "a9_0.bin",
        "a9_1.bin",
        "a10_0.bin",
        "a10_1.bin",
    }
    record = json.loads((place / "out" / "run_summary.json").read_text())
    first = record["filesinfo"]["0"]
    assert Path(first["infiles"][0][0]).name == "a9.bin", "natural order: 9 before 10"
    assert [Path(name).name for name in first["outfiles"]] == ["a9_0.bin", "a9_1.bin"]
    assert record["NPU_compute_time"]["count"] == 2
    assert "percentile(99%)" in record["NPU_compute_time"]


def test_ais_bench_cuts_names_at_the_first_dot(place: Path, model: Path) -> None:
    inputs(place / "bins", ["a.1.bin", "a.2.bin"])
    tool("ais_bench", "--model", model, "--input", place / "bins", "--output", place / "out", "--output_dirname", "run")
    assert {path.name for path in (place / "out" / "run").iterdir()} == {"a_0.bin", "a_1.bin"}


def test_ais_bench_glues_half_sized_files_and_fails_only_when_saving(place: Path, model: Path) -> None:
    inputs(place / "bins", ["a.bin", "b.bin"], INPUT_BYTES // 2)
    status, text = tool("ais_bench", "--model", model, "--input", place / "bins", "--output", place / "out")
    assert status == 1
    assert "save out files error" in text
    assert tool("ais_bench", "--model", model, "--input", place / "bins")[0] == 0
    (place / "bins" / "a.bin").write_bytes(b"12345")
    assert "not match" in tool("ais_bench", "--model", model, "--input", place / "bins")[1]


@pytest.mark.parametrize("generation", ["v2023", "v2024"])
def test_the_generations_differ_in_safety_and_in_sharing(
    place: Path, model: Path, generation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFLINE_INFER_STANDIN_GENERATION", generation)
    new = generation == "v2024"
    assert ("--divide_input" in tool("ais_bench", "--help")[1]) == new
    (path, *_) = inputs(place / "bins", ["a.bin", "b.bin"])
    line = ["ais_bench", "--model", model, "--input", place / "bins"]
    path.chmod(0o664)
    assert (tool(*line)[0] == 1) == new
    path.chmod(0o640)
    (place / "bins" / "c.bin").symlink_to(path)
    assert (tool(*line)[0] == 1) == new
    (place / "bins" / "c.bin").unlink()
    status, text = tool(*line, "--device", "0,1", "--output", place / "out", "--output_dirname", "run")
    assert status == 0
    assert "summary throughput:" in text
    names = sorted(entry.name for entry in (place / "out" / "run").iterdir() if entry.is_dir())
    assert names == (["device0_0", "device1_1"] if new else ["device0", "device1"])
    # The newer one lets every device do everything unless told to divide.
    assert len(list((place / "out" / "run" / names[0]).iterdir())) == (4 if new else 2)
    assert (place / "out" / "run" / f"{names[0]}_summary.json").is_file()


def test_ais_bench_refuses_misspelt_options_with_status_two(place: Path, model: Path) -> None:
    for wrong in (
        ["--modle", "x"],
        ["--outfmt", "bin"],
        ["--device", "256"],
        ["--output-dirname", "x"],
        ["--dev", "0"],
    ):
        status, text = tool("ais_bench", "--model", model, *wrong)
        assert status == 2, wrong
        assert "error" in text, wrong
    assert tool("ais_bench", "--model", model, "--output_dirname", "x")[0] == 1


def test_ais_bench_as_a_module(place: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STANDINS / "python"))
    status, text = tool(sys.executable, "-m", "ais_bench", "--model", model, "--loop", "3")
    assert status == 0
    assert "throughput 1000*batchsize.mean(1)/NPU_compute_time.mean" in text


# ---- all of them -----------------------------------------------------------------------------------------------------


def test_a_model_runs_on_its_chip_and_on_devices_that_exist(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "507033" in tool("msame", "--model", model, "--device", "4")[1]
    monkeypatch.setenv("OFFLINE_INFER_STANDIN_SOC", "Ascend310")
    status, text = tool("ais_bench", "--model", model)
    assert status == 1
    assert "500002" in text
    (place / "not.om").write_bytes(b"something else")
    assert "not an offline model" in tool("msame", "--model", place / "not.om")[1]


def test_a_rule_that_cannot_be_read_never_passes_for_a_success(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rule in ("crash-aftr:1", "device:1", "hang hang", "crash-after:1 times:1"):
        monkeypatch.setenv("OFFLINE_INFER_STANDIN_FAIL", rule)
        status, text = tool("ais_bench", "--model", model)
        assert status == 97, rule
        assert "cannot read" in text, rule
    monkeypatch.setenv("OFFLINE_INFER_STANDIN_FAIL", "crash-after:0 tool:msame; exit-after:0 device:3")
    assert tool("ais_bench", "--model", model)[0] == 0, "a rule about another tool or device"


def test_every_stand_in_says_that_it_is_one() -> None:
    for path in [*(STANDINS / "bin").iterdir(), *STANDINS.rglob("*.py")]:
        assert "STAND-IN" in path.read_text() or "stand-in" in path.read_text(), path
        if path.parent.name == "bin":
            assert os.access(path, os.X_OK), path
