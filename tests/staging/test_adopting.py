"""Outputs a tool wrote by hand, as the published guide runs it, taken into the work folder its lists came from."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ascend_specimens import STANDINS, check_answers, tiny_bundle, use_standins, work_folder

from offline_infer.ascend.compile import compile_bundle
from offline_infer.bundles.bundle import Bundle
from offline_infer.cli import main
from offline_infer.errors import UsageError
from offline_infer.staging.adopting import adopt_outputs
from offline_infer.staging.lists import write_info
from offline_infer.staging.worklist import Worklist, WorklistWriter, header_for

SOC = "Ascend310P3"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Five heads of one shape, as the published export leaves them."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny_bundle(folder, heads=5)
    with pytest.MonkeyPatch.context() as patch:
        use_standins(patch)
        compile_bundle(folder, SOC)
    return Bundle.load(folder)


def by_benchmark(bundle: Bundle, worklist: Worklist, place: Path) -> None:
    """Guide, 2.5, method two: four lists, four devices."""
    files = write_info(worklist.work, shards=4)
    om = bundle.compiled_path(bundle.spec.compiled[0])
    for device, shard in enumerate(files.shards):
        if files.counts[device]:
            run(
                "benchmark.x86_64", "-model_type=vision", f"-device_id={device}", "-batch_size=1", f"-om_path={om}",
                f"-input_text_path={shard}", "-input_width=8", "-input_height=6", "-output_binary=True", "-useDvpp=False",
                cwd=place,
            )  # fmt: skip


def by_msame(bundle: Bundle, worklist: Worklist, place: Path) -> None:
    om = bundle.compiled_path(bundle.spec.compiled[0])
    run("msame", "--model", om, "--input", worklist.work / "inputs", "--output", place / "result", cwd=place)


def by_ais_bench(bundle: Bundle, worklist: Worklist, place: Path) -> None:
    om = bundle.compiled_path(bundle.spec.compiled[0])
    for path in (worklist.work / "inputs", *(worklist.work / "inputs").iterdir()):
        path.chmod(0o750 if path.is_dir() else 0o640)
    run("ais_bench", "--model", om, "--input", worklist.work / "inputs", "--output", place / "result", cwd=place)


def run(tool: str, *arguments: object, cwd: Path) -> None:
    command = [str(STANDINS / "bin" / tool), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("tool", [by_benchmark, by_msame, by_ais_bench])
def test_what_a_tool_wrote_by_hand_is_taken_over(
    tool: Callable[[Bundle, Worklist, Path], None], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    worklist = work_folder(tmp_path / "work", bundle.spec, 6)
    tool(bundle, worklist, tmp_path)
    report = adopt_outputs(bundle, tmp_path / "work", tmp_path / "result")
    assert (report.outputs, report.needed, report.other, report.notes) == (6, 6, 24, ())
    check_answers(bundle, worklist, "0")
    again = adopt_outputs(bundle, tmp_path / "work", tmp_path / "result")  # only other heads are left
    assert (again.outputs, again.other, again.evidence, again.notes) == (0, 24, "nothing was missing", ())


def test_a_folder_without_outputs_says_how_a_tools_own_are_taken_over(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_folder(tmp_path / "work", bundle.spec, 2)
    assert main(["clean", str(tmp_path / "work"), "--apply"]) == 0
    assert "offline-infer adopt-outputs BUNDLE WORK FOLDER" in capsys.readouterr().out


def test_other_heads_are_deleted_while_the_tool_runs(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published guide's user does every half hour; what the tool is still writing stays."""
    use_standins(monkeypatch)
    worklist = work_folder(tmp_path / "work", bundle.spec, 4)
    by_benchmark(bundle, worklist, tmp_path)
    later = [path for path in (tmp_path / "result").rglob("*.bin") if path.name.startswith(worklist.items()[3].stem)]
    contents = {path: path.read_bytes() for path in later}
    for path in later:
        path.write_bytes(contents[path][: 100 if path.name.endswith("_5.bin") else None])
        if path.name.endswith("_1.bin"):
            path.unlink()
    report = adopt_outputs(bundle, tmp_path / "work", tmp_path / "result", drop_redundant=True)
    assert (report.outputs, report.dropped) == (3, 12)
    assert {path.name for path in (tmp_path / "result").rglob("*.bin")} == {
        path.name for path in later if not path.name.endswith("_1.bin")
    }
    for path, content in contents.items():
        path.write_bytes(content)
    report = adopt_outputs(bundle, tmp_path / "work", tmp_path / "result", drop_redundant=True)
    assert (report.outputs, report.dropped, report.notes) == (1, 4, ())
    assert not list((tmp_path / "result").rglob("*.bin"))
    check_answers(bundle, worklist, "0")


def test_a_head_with_the_number_of_another_tools_first_is_not_taken_for_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ais_bench's ``_1.bin`` is another head of the same shape; benchmark's ``_1.bin`` is the needed one."""
    use_standins(monkeypatch)
    worklist = work_folder(tmp_path / "work", bundle.spec, 3)
    by_ais_bench(bundle, worklist, tmp_path)
    for path in (tmp_path / "result").rglob("*.bin"):
        if not path.name.endswith("_1.bin"):
            path.unlink()
    with pytest.raises(UsageError, match="none of the files of one input holds"):
        adopt_outputs(bundle, tmp_path / "work", tmp_path / "result")


def test_cut_files_are_named_and_left(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_standins(monkeypatch)
    worklist = work_folder(tmp_path / "work", bundle.spec, 3)
    by_msame(bundle, worklist, tmp_path)
    last = sorted((tmp_path / "result").rglob("*_output_0.bin"))[-1]
    last.write_bytes(last.read_bytes()[:100])
    report = adopt_outputs(bundle, tmp_path / "work", tmp_path / "result")
    assert (report.outputs, report.wrong_size) == (2, (last.name,))
    assert "outputs of 1 items are still missing" in report.notes[0]
    assert np.fromfile(last, np.uint8).size == 100


def test_the_published_files_are_told_apart_by_the_graph(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut and listed here, run by hand with ais_bench, imported with the shape file that ``info`` writes."""
    use_standins(monkeypatch)
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 300, (7, 9, 12)).astype(np.float32))
    sitk.WriteImage(image, str(tmp_path / "a_0000.nii.gz"))
    folder, work = str(bundle.folder), tmp_path / "work"
    assert main(["preprocess", folder, str(tmp_path / "a_0000.nii.gz"), str(work), "--no-tta", "--quiet"]) == 0
    assert main(["info", str(work), "--all-shape", "a"]) == 0
    by_ais_bench(bundle, Worklist.load(work), tmp_path)
    words = [folder, str(tmp_path / "a_0000.nii.gz"), str(work / "info" / "all_shape.txt")]
    options = ["--results", str(tmp_path / "result"), "--no-tta", "--copy", "--json", "--quiet"]
    capsys.readouterr()
    assert main(["import-tiles", *words, str(tmp_path / "imported"), *options, "--tool", "benchmark"]) == 2
    assert "_0.bin holds" in capsys.readouterr().err
    assert main(["import-tiles", *words, str(tmp_path / "imported"), *options]) == 0
    assert '"ais_bench"' in capsys.readouterr().out
    for path in (tmp_path / "result").rglob("*.bin"):
        if not path.name.endswith("_1.bin"):
            path.unlink()
    assert main(["import-tiles", *words, str(tmp_path / "again"), *options]) == 2
    assert "none of the files of one input holds" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["infer", "postprocess"])
def test_an_empty_work_folder_is_wrong_usage(
    stage: str, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WorklistWriter(tmp_path / "work", header_for(bundle.spec, {"step_size": 0.5, "tta": False}, ["0"]))
    output = [str(tmp_path / "out")] if stage == "postprocess" else ["--engine", "onnxruntime"]
    assert main([stage, str(bundle.folder), str(tmp_path / "work"), *output, "--quiet"]) == 2
    assert "holds no" in capsys.readouterr().err


def test_answers_that_cannot_be_right_stay_where_they_are(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one too, though it is the one the numbering would be read from."""
    use_standins(monkeypatch)
    worklist = work_folder(tmp_path / "work", bundle.spec, 5)
    by_msame(bundle, worklist, tmp_path)
    spoiled = [path for item in worklist.items()[:2] for path in (tmp_path / "result").rglob(f"{item.stem}_output_*")]
    for path in spoiled:
        np.full(path.stat().st_size // 4, np.nan if path in spoiled[:5] else 0, np.float32).tofile(path)
    report = adopt_outputs(bundle, tmp_path / "work", tmp_path / "result")
    assert report.outputs == 3
    assert "the answers to 2 of 5 inputs cannot be used" in report.notes[0]
    assert all(path.exists() for path in spoiled)
    infer = [
        "infer",
        str(bundle.folder),
        str(tmp_path / "work"),
        "--engine",
        "onnxruntime",
        "--engine-option",
        "norms=native",
    ]
    assert main([*infer, "--threads", "1", "--quiet"]) == 0
    check_answers(bundle, worklist, "0")
