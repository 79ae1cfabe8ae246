"""Items answered by external tools on several devices: numbering, failures of every known kind, resuming, figures."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ascend_specimens import STANDINS, check_answers, tiny_bundle, use_standins, work_folder

from offline_infer import processes as process
from offline_infer.ascend.compile import CompileOptions, compile_bundle
from offline_infer.ascend.figures import read_folder
from offline_infer.ascend.runs import device_runs
from offline_infer.ascend.runs.device_runs import DeviceRunner, doubts, run_tool, share
from offline_infer.ascend.runs.device_session import end_leftover, session_stems
from offline_infer.bundles.bundle import Bundle
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.engines.om.npu_smi import Device, DeviceQuery
from offline_infer.errors import DiskBudgetError, EngineUnavailable, ToolError, UsageError
from offline_infer.events import Event
from offline_infer.proof.report.inputs import recognise
from offline_infer.staging.clean import clean_outputs
from offline_infer.staging.inferring import infer_stage
from offline_infer.staging.outputs import OutputsManifest
from offline_infer.staging.worklist import Worklist, WorklistWriter, header_for

SOC = "Ascend310P3"
TOOLS = ("benchmark", "msame", "ais_bench")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Compiled bundles, made once: ``compiled(heads=5, folds=("0", "1"), out_nodes=...)``."""
    made: dict[tuple[Any, ...], Path] = {}

    def bundle(
        heads: int = 1,
        folds: tuple[str, ...] = ("0",),
        soc: str = SOC,
        flags: tuple[str, ...] = (),
        out_nodes: Any = None,
    ) -> Bundle:
        key = (heads, folds, soc, flags, out_nodes)
        if key not in made:
            folder = tmp_path_factory.mktemp("bundle") / "tiny"
            tiny_bundle(folder, heads=heads, folds=folds)
            with pytest.MonkeyPatch.context() as patch:
                use_standins(patch)
                compile_bundle(folder, soc, CompileOptions(extra_flags=flags, out_nodes=out_nodes))
            made[key] = folder
        return Bundle.load(made[key])

    return bundle


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_answers_every_item_on_several_devices(
    tool: str, compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 7)
    events: list[Event] = []
    report = run_tool(bundle, tmp_path / "work", tool=tool, devices=(0, 1, 3), sink=events.append)
    check_answers(bundle, worklist, "0")
    assert [(session.device, session.items, session.done) for session in report.sessions] == [
        (0, 2, 2),
        (1, 2, 2),
        (3, 3, 3),
    ]
    assert report.answers == 7
    assert report.reused == 0
    assert not report.excluded
    progress = [event for event in events if event.kind == "progress"]
    assert progress
    assert progress[-1].done == progress[-1].total == 7
    assert not (tmp_path / "work" / "sessions").exists(), "session folders were left behind"
    # The figures of all devices in one record, and readable again from the kept files.
    assert report.performance is not None
    assert [entry.device for entry in report.performance.devices] == [0, 1, 3]
    again = read_folder(tmp_path / "work" / "perf", report.soc)
    assert again.total == pytest.approx(report.performance.total, rel=1e-5)
    record = json.loads((tmp_path / "work" / "perf" / "performance.json").read_text())
    assert record["throughput_total_per_s"] == pytest.approx(report.performance.total)
    # A second run has nothing to do.
    second = run_tool(bundle, tmp_path / "work", tool=tool, devices=(0, 1, 3))
    assert second.reused == 7
    assert not second.sessions


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("drop", [False, True])
def test_five_heads_are_told_apart_by_the_manifest_not_by_a_suffix(
    tool: str, drop: bool, compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled(heads=5)
    worklist = work_folder(tmp_path / "work", bundle.spec, 4)
    run_tool(bundle, tmp_path / "work", tool=tool, devices=(0, 1), drop_redundant=drop)
    check_answers(bundle, worklist, "0", outputs=1 if drop else 5)
    files = sorted(path.name for path in (tmp_path / "work" / "outputs").rglob("*.bin"))
    assert len(files) == (4 if drop else 20)
    if not drop:
        report = clean_outputs(tmp_path / "work", apply=True)
        assert report.files == 16
        assert report.kept == 4
        check_answers(bundle, worklist, "0")
        # What was cleaned is not missed.
        assert not run_tool(bundle, tmp_path / "work", tool=tool, devices=(0,)).sessions


@pytest.mark.parametrize("tool", TOOLS)
def test_a_trimmed_om_gives_its_output_the_right_place(
    tool: str, compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled(heads=3, out_nodes="head_2;class")
    worklist = work_folder(tmp_path / "work", bundle.spec, 3)
    run_tool(bundle, tmp_path / "work", tool=tool, devices=(0,))
    check_answers(bundle, worklist, "0")
    manifest = OutputsManifest.load(tmp_path / "work")
    assert {(entry.output, entry.keep) for entry in manifest} == {(0, True), (2, False)}


def test_folds_do_not_get_into_each_others_way(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled(folds=("0", "1"))
    worklist = work_folder(tmp_path / "work", bundle.spec, 3)
    run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0, 1))
    check_answers(bundle, worklist, "0")
    check_answers(bundle, worklist, "1")


FAILURES = [
    ("crash-after:1 device:2", "ended by SIGKILL"),
    ("hang:1 device:2", "no output and no message"),
    ("missing-outputs:2 device:2", "are missing"),
    ("wrong-size:2 device:2", "wrong size"),
    ("exit-after:1 device:2", "exit status 1: 507011"),
    ("disk-full:1 device:2", "the disk is full"),
    ("exit0-without-success device:2", "without|missing"),
]
NONSENSE = [("nan", "NaN"), ("zeros", "the same number"), ("overflow", "65504")]


def in_turn(faults: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Each fault of the next tool; with ``OFFLINE_INFER_EVERY_TOOL=1`` every fault of every tool."""
    if os.environ.get("OFFLINE_INFER_EVERY_TOOL"):
        return [(tool, *fault) for fault in faults for tool in TOOLS]
    return [(TOOLS[number % len(TOOLS)], *fault) for number, fault in enumerate(faults)]


@pytest.mark.parametrize(("tool", "rule", "said"), in_turn(FAILURES))
def test_one_of_four_devices_fails_and_the_others_finish_its_work(
    tool: str, rule: str, said: str, compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, fail=rule)
    monkeypatch.setattr(process, "_GRACE_S", 0.2)
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 12)
    events: list[Event] = []
    report = run_tool(
        bundle, tmp_path / "work", tool=tool, devices=(0, 1, 2, 3), stall_timeout_s=4.0, sink=events.append
    )
    check_answers(bundle, worklist, "0")
    failed = [session for session in report.sessions if session.problem]
    assert [session.device for session in failed] == [2]
    assert re.search(said, failed[0].problem or "")
    # The rest went to the others, not to the device that had just failed.
    assert all(session.device != 2 for session in report.sessions if session.round == 2)
    assert sum(session.done for session in report.sessions) == 12
    notes = [event.data["text"] for event in events if event.kind == "note"]
    assert any("device 2 failed" in text for text in notes)
    assert (tmp_path / "work" / failed[0].log).is_file(), "the log of the failed session"
    assert not _running(str(tmp_path))


def test_a_device_that_fails_twice_is_not_used_again(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, fail="crash-after:0 device:1")
    bundle = compiled(folds=("0", "1"))
    runner = DeviceRunner(bundle, tool="benchmark", devices=(0, 1))
    for number in range(2):
        worklist = work_folder(tmp_path / f"work{number}", bundle.spec, 4)
        report = runner.run(tmp_path / f"work{number}")
        check_answers(bundle, worklist, "0")
        check_answers(bundle, worklist, "1")
    # Two failures in the first folder (one per fold); in the second folder the device is left out.
    assert report.excluded == (1,)
    assert {session.device for session in report.sessions} == {0}


def test_a_tool_that_ends_badly_after_its_last_output_is_named_but_not_left_out(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled()
    script = tmp_path / "tool"
    script.write_text(f'#!/bin/sh\n"{STANDINS / "bin" / "msame"}" "$@"\nexit 5\n')
    script.chmod(0o755)
    runner = DeviceRunner(bundle, tool="msame", devices=(0,), tool_path=script)
    for number in range(3):
        worklist = work_folder(tmp_path / f"work{number}", bundle.spec, 2)
        report = runner.run(tmp_path / f"work{number}")
        check_answers(bundle, worklist, "0")
    assert report.excluded == ()
    assert (report.sessions[0].problem or "").startswith("exit status 5")


def test_a_device_that_recovers_gets_a_second_chance(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, fail="crash-after:2 times:1", state=str(tmp_path))
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 5)
    report = run_tool(bundle, tmp_path / "work", tool="msame", devices=(0,))
    check_answers(bundle, worklist, "0")
    assert [session.done for session in report.sessions] == [2, 3]


def test_where_no_device_is_left_what_is_missing_is_said_and_kept(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, fail="crash-after:1")
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 12)
    with pytest.raises(ToolError, match=r"no device is left, and outputs of \d+ of 12 items are missing") as caught:
        run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0, 1))
    assert "device 0: ended by SIGKILL" in str(caught.value)
    assert "perf/benchmark_fold_0" in str(caught.value)
    use_standins(monkeypatch)
    report = run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0, 1))
    assert report.reused == 4, "what the crashing sessions had finished was done again"
    check_answers(bundle, worklist, "0")


def test_a_model_for_another_chip_fails_with_its_reason(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, soc="Ascend910B3")
    bundle = compiled()
    work_folder(tmp_path / "work", bundle.spec, 2)
    with pytest.raises(UsageError, match="the devices are Ascend910B3"):
        run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0,))
    with pytest.raises(ToolError, match="an OM made for another chip"):  # named by the user, refused by the run time
        run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0,), soc=SOC)


def test_outputs_of_another_dtype_are_recognised(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    half = compiled(flags=("--output_type=FP16", "--input_fp16_nodes=image"))
    work_folder(tmp_path / "single", half.spec, 2)
    with pytest.raises(UsageError, match=r"the bins .* are float32, the OM .* takes float16"):
        run_tool(half, tmp_path / "single", tool="ais_bench", devices=(0,))
    worklist = work_folder(tmp_path / "half", half.spec, 3, dtype="float16")
    run_tool(half, tmp_path / "half", tool="ais_bench", devices=(0,))
    check_answers(half, worklist, "0", atol=1e-2)
    assert {entry.dtype for entry in OutputsManifest.load(tmp_path / "half")} == {"float16"}


def test_an_om_that_answers_in_half_precision_unannounced_is_stopped(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, fail="wrong-size:99")
    bundle = compiled()
    work_folder(tmp_path / "work", bundle.spec, 6)
    with pytest.raises(ToolError, match="half the size: does the OM give float16"):
        run_tool(bundle, tmp_path / "work", tool="msame", devices=(0,))


@pytest.mark.parametrize("generation", ["v2023", "v2024"])
@pytest.mark.parametrize("how", ["program", "folder", "python"])
def test_both_generations_of_ais_bench_however_they_are_installed(
    generation: str, how: str, compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, generation=generation)
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 4)
    for item in worklist.items():
        worklist.path(item).chmod(0o664)  # as with a umask of 0002; v2024 refuses files that others may write
    (tmp_path / "work" / "inputs").chmod(0o775)
    path = {"program": None, "folder": STANDINS / "python", "python": Path(sys.executable)}[how]
    if how == "python":
        monkeypatch.setenv("PYTHONPATH", str(STANDINS / "python"))
    # One device is given the folder of bins itself, several get folders of links.
    devices = (0,) if how == "folder" else (0, 1)
    report = run_tool(bundle, tmp_path / "work", tool="ais_bench", devices=devices, tool_path=path)
    assert report.generation == generation
    check_answers(bundle, worklist, "0")


def test_ais_bench_without_its_summary_is_read_by_names(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, fail="no-summary")
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 3)
    report = run_tool(bundle, tmp_path / "work", tool="ais_bench", devices=(0,))
    check_answers(bundle, worklist, "0")
    assert report.performance is None


@pytest.mark.parametrize("tool", TOOLS)
def test_names_with_dots_do_not_collide(
    tool: str, compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 3)
    # As a folder of tiles from elsewhere may have them: equal up to the first dot.
    record = next((tmp_path / "work" / "cases").iterdir())
    text = record.read_text()
    for number, item in enumerate(worklist.items()):
        new = f"inputs/a.{number}.bin"
        worklist.path(item).rename(tmp_path / "work" / new)
        text = text.replace(item.file, new)
    record.write_text(text)
    worklist = Worklist.load(tmp_path / "work")
    assert [item.stem for item in worklist.items()] == ["a.0", "a.1", "a.2"]
    assert all("." not in stem for stem in session_stems(worklist.items()))
    run_tool(bundle, tmp_path / "work", tool=tool, devices=(0, 1))
    check_answers(bundle, worklist, "0")


def test_a_killed_run_is_taken_up_where_it_was(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves the tool alive until its guardian ends it: the next run waits for none and keeps what was finished."""
    use_standins(monkeypatch, fail="hang:3")
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 6)
    code = (
        "from offline_infer.bundles.bundle import Bundle; from offline_infer.ascend.runs.device_runs import run_tool;"
        f"run_tool(Bundle.load({str(bundle.folder)!r}), {str(tmp_path / 'work')!r}, tool='ais_bench', devices=(0,))"
    )
    run = subprocess.Popen([sys.executable, "-c", code])
    _wait(lambda: len(list((tmp_path / "work").glob("sessions/*/out/run/*.bin"))) >= 3)
    run.send_signal(signal.SIGKILL)
    run.wait()
    use_standins(monkeypatch)
    report = run_tool(bundle, tmp_path / "work", tool="ais_bench", devices=(0,))
    assert report.reused == 3
    assert [session.items for session in report.sessions] == [3]
    check_answers(bundle, worklist, "0")
    assert not _running(str(tmp_path))


def test_an_interrupted_run_ends_its_tools(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, seconds="0.3")
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 40)

    def interrupt(event: Event) -> None:
        if event.kind == "progress" and (event.done or 0) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0, 1), sink=interrupt)
    assert not _running(str(tmp_path))
    monkeypatch.delenv("OFFLINE_INFER_STANDIN_SECONDS")
    report = run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0, 1))
    assert 2 <= report.reused < 40
    check_answers(bundle, worklist, "0")


def test_two_runs_on_one_folder_are_refused(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled()
    work_folder(tmp_path / "work", bundle.spec, 2)

    def second(event: Event) -> None:
        with pytest.raises(UsageError, match="another infer is using"):
            run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(1,))

    run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0,), sink=second)


def test_what_cannot_work_is_refused_at_once(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled()
    work = tmp_path / "work"
    work_folder(work, bundle.spec, 2)
    with pytest.raises(UsageError, match="legal names: benchmark, msame, ais_bench"):
        run_tool(bundle, work, tool="bench")
    for devices in [(), (0, 0), (-1,), (256,)]:
        with pytest.raises(UsageError, match="different numbers from 0 to 255"):
            run_tool(bundle, work, tool="benchmark", devices=devices)
    with pytest.raises(UsageError, match="another model"):
        run_tool(compiled(heads=2), work, tool="benchmark")
    with pytest.raises(UsageError, match="no such file"):
        run_tool(bundle, work, tool="msame", tool_path=tmp_path / "nothing")
    work_folder(tmp_path / "with blank", bundle.spec, 2)
    for tool in TOOLS:
        with pytest.raises(UsageError, match="cannot be given the path"):
            run_tool(bundle, tmp_path / "with blank", tool=tool)
    monkeypatch.setattr(device_runs, "free_bytes", lambda place: 1000)
    with pytest.raises(DiskBudgetError, match=r"has 1\.0 kB free"):
        run_tool(bundle, work, tool="benchmark")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for tool in ("benchmark", "msame", "ais_bench"):
        with pytest.raises(EngineUnavailable, match="is not on PATH"):
            run_tool(bundle, work, tool=tool)


def test_a_bundle_whose_path_a_tool_refuses_is_copied(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    shutil.copytree(compiled().folder, tmp_path / "my bundle")
    bundle = Bundle.load(tmp_path / "my bundle")
    bundle.compiled_path(bundle.spec.compiled[0]).chmod(0o666)
    worklist = work_folder(tmp_path / "work", bundle.spec, 2)
    run_tool(bundle, tmp_path / "work", tool="ais_bench", devices=(0,))
    check_answers(bundle, worklist, "0")


def test_the_tool_may_lie_beside_the_model(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guides put benchmark.<machine> into the working directory."""
    use_standins(monkeypatch)
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 2)
    name = f"benchmark.{os.uname().machine}"
    script = tmp_path / name
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STANDINS / "bin" / name}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0,))
    check_answers(bundle, worklist, "0")


def test_redundant_outputs_can_be_cleaned_while_ais_bench_runs(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, seconds="0.2")
    bundle = compiled(heads=5)
    worklist = work_folder(tmp_path / "work", bundle.spec, 12)
    cleaned: list[int] = []

    def clean(event: Event) -> None:
        if event.kind == "progress":
            cleaned.append(clean_outputs(tmp_path / "work", apply=True, settle_seconds=0.0).files)

    run_tool(bundle, tmp_path / "work", tool="ais_bench", devices=(0,), sink=clean)
    assert sum(cleaned) > 0
    check_answers(bundle, worklist, "0")


def test_without_hard_links_the_bins_are_copied(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 3)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run_tool(bundle, tmp_path / "work", tool="msame", devices=(0, 1))
    check_answers(bundle, worklist, "0")


def test_doubts_about_devices_are_said_before(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def device(number: int, health: str) -> Device:
        return Device(number, number, 0, "310P3", health, "0000:01:00.0")

    query = DeviceQuery((device(0, "OK"), device(1, "Alarm")))
    assert doubts(query, (0,)) == []
    assert [text.split(":")[0] for text in doubts(query, (1, 7))] == [
        "device 7 is not among those npu-smi lists (0, 1)",
        "device 1",
    ]
    assert doubts(DeviceQuery(), (0, 7)) == []
    # The tool decides: a device that is not there fails, the others do its work.
    use_standins(monkeypatch, devices="2")
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 4)
    events: list[Event] = []
    report = run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0, 7), sink=events.append)
    check_answers(bundle, worklist, "0")
    assert "507033 (the device could not be opened)" in (report.sessions[1].problem or "")
    assert any("device 7 is not among" in event.data.get("text", "") for event in events)


def test_shares_are_ordered_disjoint_and_equal(compiled: Callable[..., Bundle], tmp_path: Path) -> None:
    items = work_folder(tmp_path / "work", compiled().spec, 11).items()
    for count in range(1, 14):
        parts = share(items, count)
        assert [item for part in parts for item in part] == list(items)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert len(parts) == min(count, 11)


def _wait(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def _running(where: str) -> list[list[str]]:
    """Command lines of stand-ins that work on that folder."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(STANDINS) in " ".join(line) and where in " ".join(line)]


@pytest.mark.parametrize(("tool", "fault", "reason"), in_turn(NONSENSE))
def test_a_device_whose_numbers_cannot_be_right_is_named_and_its_work_done_elsewhere(
    tool: str, fault: str, reason: str, compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, fail=f"{fault} device:1")
    bundle = compiled()
    worklist = work_folder(tmp_path / "work", bundle.spec, 8)
    report = run_tool(bundle, tmp_path / "work", tool=tool, devices=(0, 1))
    check_answers(bundle, worklist, "0")
    problems = [session for session in report.sessions if session.problem]
    assert {session.device for session in problems} == {1}
    assert reason in str(problems[0].problem)


def test_answers_of_nonsense_everywhere_end_with_the_reason(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, fail="nan")
    bundle = compiled()
    work_folder(tmp_path / "work", bundle.spec, 3)
    with pytest.raises(ToolError, match=r"device 0: the answers to 3 of 3 inputs cannot be used: .*NaN.*compile"):
        run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0,))
    use_standins(monkeypatch)  # the device is well again: the same command mends it
    run_tool(bundle, tmp_path / "work", tool="benchmark", devices=(0,))
    check_answers(bundle, Worklist.load(tmp_path / "work"), "0")


@pytest.mark.parametrize("how", ["tool", "engine"])
def test_unusable_answers_of_an_older_run_are_done_again(
    how: str, compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody had looked at their numbers: their entries do not say that somebody has."""
    use_standins(monkeypatch)
    bundle, work, told = compiled(), tmp_path / "work", list[Event]()
    work_folder(work, bundle.spec, 4)
    run_tool(bundle, work, tool="msame", devices=(0,))
    manifest = OutputsManifest.load(work)
    manifest.append([entry.model_copy(update={"judged": False}) for entry in list(manifest)])
    spoiled = [manifest.path(entry) for entry in list(manifest)[:2]]
    for path, value in zip(spoiled, (np.nan, 65504.0), strict=True):
        np.full(path.stat().st_size // 4, value, np.float32).tofile(path)
    if how == "tool":
        report = run_tool(bundle, work, tool="msame", devices=(0,), sink=told.append)
        assert (report.reused, report.answered) == (2, 2)
    else:
        with get_engine("onnxruntime").open(
            bundle.graph_path("0"), EngineOptions(threads=1, extra={"norms": "native"})
        ) as session:
            infer_stage(work, {"0": session}, sink=told.append).raise_failures()
    assert any("2 answers of an earlier run cannot be used" in str(event.data.get("text")) for event in told)
    check_answers(bundle, Worklist.load(work), "0")
    assert all(entry.judged for entry in OutputsManifest.load(work))


def test_an_empty_work_folder_is_refused(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch)
    bundle = compiled()
    WorklistWriter(tmp_path / "work", header_for(bundle.spec, {"step_size": 0.5, "tta": False}, ["0"]))
    with pytest.raises(UsageError, match="no items"):
        run_tool(bundle, tmp_path / "work", tool="benchmark")


def test_the_record_of_a_resumed_run_covers_all_its_parts(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = compiled()
    work = tmp_path / "work"
    work_folder(work, bundle.spec, 6)
    use_standins(monkeypatch, fail="exit-after:2")
    with pytest.raises(ToolError):
        run_tool(bundle, work, tool="msame", devices=(0,))
    use_standins(monkeypatch)
    run_tool(bundle, work, tool="msame", devices=(0,))
    next((work / "outputs" / "fold_0").glob("*.bin")).unlink()
    run_tool(bundle, work, tool="msame", devices=(0,))
    record = json.loads((work / "perf" / "performance.json").read_text())
    kind = recognise(record)
    assert kind is not None
    assert kind.name == "performance"
    assert [session["done"] for session in record["sessions"]] == [2, 2, 2, 1]
    assert (len(record["parts"]), record["answered"], len(record["failures"])) == (3, 7, 2)
    assert record["throughput_total_per_s"] > 0


_KILLED = """
import sys
from offline_infer.ascend.runs.device_runs import run_tool
from offline_infer.bundles.bundle import Bundle
run_tool(Bundle.load({bundle!r}), {work!r}, tool="msame", devices=(0, 1))
"""


def test_tools_end_with_a_killed_program(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_standins(monkeypatch, fail="hang:1")
    bundle = compiled()
    work_folder(tmp_path / "work", bundle.spec, 4)
    program = _KILLED.format(bundle=str(bundle.folder), work=str(tmp_path / "work"))
    started = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 30
    tools: list[psutil.Process] = []
    while len(tools) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        with contextlib.suppress(psutil.Error):  # one has ended meanwhile
            tools = [each for each in psutil.Process(started.pid).children() if "msame" in " ".join(each.cmdline())]
    assert len(tools) == 2
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(tools, timeout=15)
    assert not alive


def test_a_foreign_work_folder_does_not_decide_which_process_ends(tmp_path: Path) -> None:
    """A session's file names a process by number and birth; it ends only if it works in that session's folder."""
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True, cwd="/")
    leftover = subprocess.Popen(["sleep", "60"], start_new_session=True, cwd=tmp_path)
    try:
        for process in (sleeper, leftover):
            end_leftover(tmp_path, process.pid, psutil.Process(process.pid).create_time())
        leftover.wait(10)
        assert sleeper.poll() is None
        for pid, born in (
            (10**30, 1.0),
            (-1, 1.0),
            (sleeper.pid, "x"),
            (sleeper.pid, None),
            (sleeper.pid, float("nan")),
        ):
            end_leftover(tmp_path, pid, born)
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        assert sleeper.wait() == -signal.SIGKILL
