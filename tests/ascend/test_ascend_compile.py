"""Compiling a bundle through ``atc``: what is refused before, what is believed after, what is recorded."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ascend_specimens import STANDINS, graph_bytes, tiny_bundle, use_standins

from offline_infer.ascend.compile import Compilation, CompileOptions, compile_bundle
from offline_infer.ascend.compiled import select
from offline_infer.ascend.flags import build_flags
from offline_infer.ascend.socs import SOCS, check_soc
from offline_infer.bundles.bundle import Bundle, creating
from offline_infer.engines.om.error_codes import CODES, explain, sentences
from offline_infer.engines.om.npu_smi import Device, DeviceQuery
from offline_infer.errors import BundleError, EngineUnavailable, ToolError, UsageError
from offline_infer.files import sha256_file, temporary_name

SOC = "Ascend310P3"


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    use_standins(monkeypatch)
    return monkeypatch


def compile_one(folder: Path, soc: str = SOC, **options: Any) -> Compilation:
    (made,) = compile_bundle(folder, soc, CompileOptions(**options))
    return made


def test_a_compiled_bundle_records_what_was_made_of_what(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    made = compile_one(tmp_path / "bundle", precision_mode="must_keep_origin_dtype", extra_flags=["--is_weight_clip=0"])
    record = made.record
    again = Bundle.load(tmp_path / "bundle", verify_hashes=True)
    assert again.spec.compiled == (record,)
    assert record.graph_sha256 == bundle.spec.graphs[0].sha256
    assert record.sha256 == sha256_file(again.compiled_path(record))
    assert record.soc == SOC
    assert record.tool_version == "8.0.RC2-standin"
    assert "--precision_mode=must_keep_origin_dtype" in record.flags
    assert "--is_weight_clip=0" in record.flags
    assert "--input_format=NCDHW" in record.flags
    assert "--input_shape=image:1,1,4,6,8" in record.flags
    assert not any(str(tmp_path) in flag for flag in record.flags), "a machine's path in a bundle"
    assert record.log is not None
    assert "ATC run success" in (tmp_path / "bundle" / record.log).read_text()
    assert [output.name for output in record.outputs] == ["class"]
    # Newer tools refuse a model that others may write.
    assert again.compiled_path(record).stat().st_mode & 0o022 == 0


def test_an_up_to_date_om_is_reused_and_any_change_compiles_again(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle")
    first = compile_one(tmp_path / "bundle")
    assert not first.reused
    assert compile_one(tmp_path / "bundle").reused
    assert not compile_one(tmp_path / "bundle", overwrite=True).reused
    assert not compile_one(tmp_path / "bundle", precision_mode_v2="origin").reused
    assert not compile_one(tmp_path / "bundle", soc="Ascend310").reused
    socs = [record.soc for record in Bundle.load(tmp_path / "bundle").spec.compiled]
    assert sorted(socs) == ["Ascend310", "Ascend310P3"]
    om = tmp_path / "bundle" / first.record.file
    om.write_bytes(om.read_bytes() + b"x")
    assert not compile_one(tmp_path / "bundle", precision_mode_v2="origin").reused, "a changed file was taken for good"


def test_every_fold_is_compiled_or_one(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle", folds=("0", "1"))
    assert [made.fold for made in compile_bundle(tmp_path / "bundle", SOC, fold="1")] == ["1"]
    assert [made.fold for made in compile_bundle(tmp_path / "bundle", SOC)] == ["0", "1"]
    with pytest.raises(UsageError, match="no fold '7'"):
        compile_bundle(tmp_path / "bundle", SOC, fold="7")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("code:E90003", "decompose-norms"),
        ("code:EC0010", "numpy below 2"),
        ("code:E40000", "a Python module could not be loaded"),
        ("code:E10001", "an error that was asked for"),
        ("exit0-without-success", "without saying 'ATC run success'"),
        ("success-without-om", "no .om is there"),
        ("disk-full", "the disk is full"),
        ("crash-after:0", "exit status 139"),
    ],
)
def test_a_failing_atc_is_named_explained_and_leaves_the_bundle_as_it_was(
    standins: pytest.MonkeyPatch, tmp_path: Path, rule: str, said: str
) -> None:
    tiny_bundle(tmp_path / "bundle")
    before = (tmp_path / "bundle" / "bundle.json").read_bytes()
    standins.setenv("OFFLINE_INFER_STANDIN_FAIL", rule)
    with pytest.raises(ToolError, match="could not compile") as caught:
        compile_one(tmp_path / "bundle")
    assert said in str(caught.value)
    assert (tmp_path / "bundle" / "bundle.json").read_bytes() == before
    log = tmp_path / "bundle" / "compiled" / f"fold_0.{SOC}.failed.log"
    assert "ATC start working" in log.read_text()
    with creating(tmp_path / "bundle", overwrite=True) as folder:  # a failure's log does not stand in the way
        tiny_bundle(folder)
    (tmp_path / "bundle" / "compiled").mkdir(exist_ok=True)
    log.write_text("ATC start working")
    assert str(log) in str(caught.value)
    standins.delenv("OFFLINE_INFER_STANDIN_FAIL")
    compile_one(tmp_path / "bundle")
    assert not log.exists(), "the log of a failure that was put right"


def test_a_hanging_atc_is_ended_with_everything_it_started(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle")
    (tmp_path / "temporary").mkdir()
    standins.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    standins.setenv("OFFLINE_INFER_STANDIN_FAIL", "hang")
    with pytest.raises(ToolError, match=r"not ready after 2 s"):
        compile_one(tmp_path / "bundle", timeout_s=2)
    assert not _running(str(tmp_path))
    assert not list((tmp_path / "temporary").iterdir()), "the private folder was left behind"


def test_sigterm_ends_the_tool_as_well(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle")
    standins.setenv("OFFLINE_INFER_STANDIN_FAIL", "hang")
    code = (
        "import sys; from offline_infer.ascend.compile import compile_bundle;"
        f"compile_bundle({str(tmp_path / 'bundle')!r}, {SOC!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 30
    while len(children) < 2 and time.monotonic() < deadline:  # the wrapper and atc.bin
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    assert len(children) >= 2
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert b"Terminated: SIGTERM" in said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "atc.bin outlived the run that started it"


def test_a_missing_or_unfit_program_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bundle(tmp_path / "bundle")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable, match=r"atc .* is not on PATH; source scripts/set_env.sh"):
        compile_one(tmp_path / "bundle")
    with pytest.raises(UsageError, match="no such file"):
        compile_one(tmp_path / "bundle", atc=str(tmp_path / "atc"))
    (tmp_path / "atc").write_text("text")
    with pytest.raises(UsageError, match="not executable"):
        compile_one(tmp_path / "bundle", atc=str(tmp_path / "atc"))
    (tmp_path / "atc").write_bytes(b"\x7fELF-of-another-machine")
    (tmp_path / "atc").chmod(0o755)
    with pytest.raises(ToolError, match="cannot be started"):
        compile_one(tmp_path / "bundle", atc=str(tmp_path / "atc"))


def test_atc_is_run_in_a_folder_of_its_own(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle")
    (tmp_path / "cwd").mkdir()
    standins.chdir(tmp_path / "cwd")
    compile_one(tmp_path / "bundle")
    assert not list((tmp_path / "cwd").iterdir()), "kernel_meta and the like in the user's folder"
    names = {path.name for path in (tmp_path / "bundle").rglob("*")}
    assert names == {
        "MANIFEST.sha256",
        "bundle.json",
        "fold_0.onnx",
        "compiled",
        f"fold_0.{SOC}.om",
        f"fold_0.{SOC}.log",
    }


# ---- the command line of atc -----------------------------------------------------------------------------------------


def test_soc_names_are_exact_and_the_error_lists_them() -> None:
    for name in SOCS:
        assert check_soc(name) == name
    for wrong, near in [("310P3", "Ascend310P3"), ("ascend910b3", "Ascend910B3"), ("Ascend310-P3", "Ascend310P3")]:
        with pytest.raises(UsageError, match=f"did you mean {near}") as caught:
            check_soc(wrong)
        assert all(name in str(caught.value) for name in SOCS)
    assert check_soc("Ascend950X", allow_unlisted=True) == "Ascend950X"
    with pytest.raises(UsageError, match="cannot be a chip name"):
        check_soc("Ascend 950; rm", allow_unlisted=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision_mode": "force_fp32", "precision_mode_v2": "origin"}, "exclude each other"),
        ({"precision_mode": "force_fp32", "extra": ["--precision_mode_v2=origin"]}, "exclude each other"),
        ({"precision_mode": "fp16"}, "legal values: force_fp16"),
        ({"precision_mode_v2": "force_fp16"}, "legal values: fp16"),
        ({"extra": ["--dynamic_batch_size=1,2"]}, "fixed shape"),
        ({"extra": ["--op_select_impl_mode=high_precision"]}, "op_select_implmode"),
        ({"extra": ["--auto_tune_mode=RL,GA"]}, "aoe"),
        ({"extra": ["--soc_version=Ascend310"]}, "set by compile itself"),
        ({"extra": ["--out_nodes=x"]}, "--out-nodes"),
        ({"extra": ["precision_mode=force_fp32"]}, "expected --name=value"),
        ({"extra": ["--buffer_optimize"]}, "expected --name=value"),
        ({"extra": ["--status_check=1", "--status_check=0"]}, "stands twice"),
        ({"extra": ["--optypelist_for_implmode=Relu"]}, "only together with"),
        ({"extra": ["--keep_dtype=/no/such/file"]}, "no such file"),
        ({"extra": ["--output_type=node:0:FP16"]}, "FP32 or FP16"),
        ({"extra": ["--input_fp16_nodes=picture"]}, "called image"),
        ({"input_format": "NCHW"}, "does not fit"),
        ({"input_format": "NHWC"}, "legal values"),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        build_flags(SOC, "image", (1, 1, 4, 6, 8), **options)


def test_a_file_option_is_given_with_its_full_path_and_recorded_with_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keep.cfg").write_text("Norm_0\n")
    flags = build_flags(SOC, "image", (1, 1, 4, 6, 8), extra=["--keep_dtype=keep.cfg"])
    assert f"--keep_dtype={tmp_path / 'keep.cfg'}" in flags.arguments
    assert f"--keep_dtype=keep.cfg#{sha256_file(tmp_path / 'keep.cfg')[:16]}" in flags.recorded


def test_formats_follow_the_number_of_axes() -> None:
    assert "--input_format=NCHW" in build_flags(SOC, "image", (1, 3, 64, 64)).arguments
    assert "--input_format=NCDHW" in build_flags(SOC, "image", (1, 1, 4, 6, 8)).arguments
    assert "--input_format=ND" in build_flags(SOC, "image", (1, 1, 4, 6, 8), input_format="ND").arguments


# ---- the look at the graph -------------------------------------------------------------------------------------------


def test_half_precision_ports_are_recorded(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle")
    record = compile_one(tmp_path / "bundle", extra_flags=["--input_fp16_nodes=image", "--output_type=FP16"]).record
    assert record.input_dtype == "float16"
    assert [output.dtype for output in record.outputs] == ["float16"]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("class", ["class"]),
        ("Head_0:0", ["class"]),
        ("head_2;class", ["head_2", "class"]),
        (None, ["class", "head_1", "head_2"]),
    ],
)
def test_out_nodes_say_which_outputs_the_om_has(
    standins: pytest.MonkeyPatch, tmp_path: Path, wanted: str | None, names: list[str]
) -> None:
    tiny_bundle(tmp_path / "bundle", heads=3)
    record = compile_one(tmp_path / "bundle", out_nodes=wanted).record
    assert [output.name for output in record.outputs] == names
    om = select(Bundle.load(tmp_path / "bundle"), "0", None, DeviceQuery(), (0,))
    assert [("class", "head_1", "head_2")[position] for position in om.positions] == names


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("logits", "no output 'logits'; it has class, head_1"),
        ("class;Head_1:0", "mixes"),
        ("head_1", "leaves out class"),
        ("Conv_9:0", "no node output"),
        ("Conv_0:0", "no output 'stem'"),
        ("class;class", "twice"),
        (";", "empty"),
    ],
)
def test_out_nodes_that_cannot_be_are_refused_before_atc_starts(
    standins: pytest.MonkeyPatch, tmp_path: Path, wanted: str, said: str
) -> None:
    tiny_bundle(tmp_path / "bundle", heads=2)
    with pytest.raises(UsageError, match=said):
        compile_one(tmp_path / "bundle", out_nodes=wanted)
    assert not (tmp_path / "bundle" / "compiled").exists()


def test_advice_names_opset_and_normalisation(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle", opset=17)
    advice = " ".join(compile_one(tmp_path / "bundle").advice)
    assert "opset 17" in advice
    assert "decompose-norms" in advice
    plain = compile_one(tmp_path / "bundle", decompose_instance_norm=True)
    assert plain.record.passes == ("decompose-instance-norm",)
    assert not plain.reused
    assert not any("InstanceNormalization" in sentence for sentence in plain.advice)
    om = (tmp_path / "bundle" / plain.record.file).read_bytes()
    assert b"InstanceNormalization" not in om
    assert b"ReduceMean" in om


def test_open_sizes_and_changed_graphs_are_refused(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    bundle = tiny_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle" / "fold_0.onnx"
    model = onnx.load_from_string(graph_bytes())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="changed after it was exported"):
        compile_one(tmp_path / "bundle")
    record = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    record["graphs"][0]["sha256"] = sha256_file(path)
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"open sizes \(image\[0\]\)"):
        compile_one(tmp_path / "bundle")
    assert bundle.spec.compiled == ()


# ---- which OM may be used --------------------------------------------------------------------------------------------


def _query(*socs: str) -> DeviceQuery:
    return DeviceQuery(
        tuple(Device(i, i, 0, soc.removeprefix("Ascend"), "OK", "0000:01:00.0") for i, soc in enumerate(socs))
    )


def test_an_om_is_never_used_for_another_chip_or_graph(standins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"has no OM \[remedy: compile-for-chip\]"):
        select(Bundle.load(tmp_path / "bundle"), "0", None, DeviceQuery(), (0,))
    compile_one(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    assert select(bundle, "0", None, DeviceQuery(), (0,)).record.soc == SOC
    assert select(bundle, "0", None, _query(SOC), (0,)).record.soc == SOC
    with pytest.raises(UsageError, match="the devices are Ascend310 "):
        select(bundle, "0", None, _query("Ascend310"), (0,))
    with pytest.raises(UsageError, match="compile-for-chip chip=Ascend910B3"):
        select(bundle, "0", "Ascend910B3", DeviceQuery(), (0,))
    compile_one(tmp_path / "bundle", soc="Ascend310")
    bundle = Bundle.load(tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"OMs for Ascend310, Ascend310P3 \[remedy: name-chip\]"):
        select(bundle, "0", None, DeviceQuery(), (0,))
    assert select(bundle, "0", None, _query("Ascend310"), (0,)).record.soc == "Ascend310"
    # The graph is exported anew: its old OM is of no use.
    changed = graph_bytes(scale=3.0)
    (tmp_path / "bundle" / "fold_0.onnx").write_bytes(changed)
    record = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    record["graphs"][0]["sha256"] = sha256_file(tmp_path / "bundle" / "fold_0.onnx")
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(record))
    with pytest.raises(BundleError, match=r"older fold_0\.onnx; compile again"):
        select(Bundle.load(tmp_path / "bundle"), "0", SOC, DeviceQuery(), (0,))
    assert not compile_one(tmp_path / "bundle").reused


# ---- error codes -----------------------------------------------------------------------------------------------------


def test_codes_are_found_wherever_the_releases_print_them() -> None:
    old = "ATC run failed, Please check the detail log\nE10001: Value [Ascend999] for [--soc_version] is invalid."
    new = "E10001: [PID: 4711] 2025-06-01-10:11:12.123.456 Value [Ascend999] is invalid.\n        TraceBack: none"
    python = (
        "RuntimeError: ({'errCode': 'E90003', 'detailed_cause': 'tuple_reduce_sum not support'}, 'Compile operator')"
    )
    assert [found.code for found in explain(old)] == ["E10001"]
    assert [found.code for found in explain(new)] == ["E10001"]
    assert [found.code for found in explain(python)] == ["E90003"]
    assert "W11001" not in sentences("W11001: High-priority service is not found")
    assert explain("Error: something\nEverything is fine\nE1: no") == []
    assert '"unheard of"' in explain("E77777: unheard of")[0].sentence()
    assert explain("E13005: x")[0].meaning.startswith("a file or an environment variable")
    assert explain("aclrtSetDevice failed, errorCode is 507033")[0].code == "507033"
    assert explain("pid 1507033 took 207001.5 ms") == [], "a number within a number is no code"


def test_every_code_of_the_table_says_a_way_out() -> None:
    needed = {"E10001", "E10016", "E19010", "EZ3002", "EZ3003", "E40000", "EC0010", "E90003", "E19999", "507011"}
    assert needed <= set(CODES)
    for code, (meaning, way_out) in CODES.items():
        assert len(meaning) > 10, code
        assert len(way_out) > 15, code


def _running(where: str) -> list[list[str]]:
    """Command lines of stand-ins that work on that folder."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(STANDINS) in " ".join(line) and where in " ".join(line)]


def test_a_torn_om_behind_a_success_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    use_standins(monkeypatch, fail="truncated-om")
    with pytest.raises(ToolError, match="cannot read the OM it wrote"):
        compile_bundle(bundle.folder, SOC)
    assert Bundle.load(bundle.folder).spec.compiled == ()


def test_a_release_that_cannot_look_at_an_om_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    use_standins(monkeypatch)
    atc = tmp_path / "atc"
    atc.write_text(
        '#!/bin/sh\ncase "$1" in --mode=6) echo "E10001: Value [6] for parameter [--mode] is invalid."; exit 255;; esac\n'
        f'exec {STANDINS}/bin/atc "$@"\n'
    )
    atc.chmod(0o755)
    assert compile_bundle(bundle.folder, SOC, CompileOptions(atc=str(atc)))


@pytest.mark.parametrize(
    ("flag", "pieces"),
    [
        ("--buffer_optimize=foo", ("buffer_optimize", "must be one of")),
        ("--no_such_flag=1", ("no_such_flag", "not an option of atc")),
    ],
)
def test_errors_quote_the_compilers_own_reason(
    flag: str, pieces: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    use_standins(monkeypatch)
    with pytest.raises(ToolError) as caught:
        compile_bundle(bundle.folder, SOC, CompileOptions(extra_flags=(flag,)))
    for piece in pieces:
        assert piece in str(caught.value)
    assert "--soc" not in str(caught.value)
    assert "inner error" not in str(caught.value)


def test_a_bare_910b_is_no_chip(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="910B1"):
        compile_bundle(tiny_bundle(tmp_path / "bundle").folder, "Ascend910B")


_KILLED = """
import sys
from offline_infer.ascend.compile import compile_bundle
compile_bundle({bundle!r}, {soc!r})
"""


def started_compile(bundle: Bundle) -> tuple[psutil.Process, list[psutil.Process]]:
    """A compile in a process of its own, once its compiler runs; with the compiler's processes."""
    started = psutil.Popen([sys.executable, "-c", _KILLED.format(bundle=str(bundle.folder), soc=SOC)])
    deadline = time.monotonic() + 30
    compilers: list[psutil.Process] = []
    while not compilers and time.monotonic() < deadline:
        time.sleep(0.1)
        with contextlib.suppress(psutil.Error):  # one has ended meanwhile
            compilers = [child for child in started.children(recursive=True) if "atc.bin" in " ".join(child.cmdline())]
    assert compilers
    return started, compilers


def test_a_killed_compile_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    use_standins(monkeypatch, fail="hang")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    started, compilers = started_compile(bundle)
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(compilers, timeout=15)
    assert not alive
    deadline = time.monotonic() + 10
    while list((tmp_path / "tmp").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list((tmp_path / "tmp").iterdir())


def test_what_nobody_could_clean_up_is_cleaned_up_by_the_next_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guardian was killed as well, as where a whole group of processes is ended for its memory."""
    bundle = tiny_bundle(tmp_path / "bundle")
    use_standins(monkeypatch, fail="hang")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    started, compilers = started_compile(bundle)
    guardians = [child for child in started.children() if "guardian" in " ".join(child.cmdline())]
    for process in (*guardians, started):
        process.kill()
    started.wait()
    torn = bundle.folder / "compiled" / temporary_name("fold_0.Ascend310P3.om")
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"half")
    assert guardians
    assert all(compiler.is_running() for compiler in compilers)
    use_standins(monkeypatch)
    compile_one(bundle.folder)
    _, alive = psutil.wait_procs(compilers, timeout=15)
    assert not alive
    assert not list((tmp_path / "tmp").glob("offline_infer_atc_*"))
    assert not torn.exists()
