"""Rounds on a disk budget: same label maps, the budget is kept and measured, nothing is left behind."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from staged_samples import FIVE_HEADS, RampSession, direct, five_heads, sessions_for, staged_spec, write_case

from offline_infer.errors import DiskBudgetError, ToolError, UsageError
from offline_infer.events import Event
from offline_infer.images import read_labels
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import VolumeSpec
from offline_infer.staging import disk_budget as scratch
from offline_infer.staging import rounds as rounds_module
from offline_infer.staging.clean import clean_outputs
from offline_infer.staging.disk_budget import (
    CaseCost,
    DiskMeter,
    ItemCost,
    case_cost,
    size_text,
    split_rounds,
    used_bytes,
)
from offline_infer.staging.inferring import infer_stage
from offline_infer.staging.outputs import WRITERS, OutputEntry, OutputsManifest
from offline_infer.staging.rounds import RoundsJob, run_in_rounds
from offline_infer.staging.worklist import Worklist, header_for
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.task import TASK
from offline_infer.tasks.volume.tiles import TileLayout

SETTINGS = RunSettings()


@pytest.fixture
def cases(tmp_path: Path) -> list[CaseFiles]:
    return [
        write_case(tmp_path / "images", "liver_2", (18, 14, 20), seed=1),
        write_case(tmp_path / "images", "b", seed=2),
    ]


def _budget(spec: VolumeSpec, tiles: int, *, all_outputs: bool = False) -> int:
    header = header_for(spec, TASK.item_settings(spec, SETTINGS), [fold.fold for fold in spec.source.folds])
    cost = case_cost("x", header, TileLayout.of(spec, (18, 14, 20), SETTINGS), all_outputs)
    return tiles * cost.group_bytes + scratch.ROUND_OVERHEAD


@pytest.mark.parametrize("folds", [("0",), ("0", "1")])
def test_rounds_give_the_same_labels_within_the_budget(
    tmp_path: Path, cases: list[CaseFiles], folds: tuple[str, ...]
) -> None:
    spec = staged_spec(folds=folds)
    budget = _budget(spec, 3)
    events: list[Event] = []
    job = RoundsJob(
        cases,
        tmp_path / "work",
        tmp_path / "out",
        budget,
        lambda work: infer_stage(work, sessions_for(spec)),
        threads=1,
    )
    report = run_in_rounds(spec, job, SETTINGS, folds, sink=events.append)
    report.raise_failures()
    for case in cases:
        labels = read_labels(tmp_path / "out" / f"{case.case_id}.nii.gz")[0]
        np.testing.assert_array_equal(labels, direct(spec, case, SETTINGS).labels)
    assert report.facts["rounds"] == {"liver_2": 6, "b": 3}
    # The peak was really measured: more than the bins of one tile, less than the budget.
    item = 8 * 12 * 16 * 4
    assert 8 * item * (1 + 3 * len(folds)) < report.facts["peak_bytes"] <= budget
    assert list((tmp_path / "work" / "rounds").iterdir()) == []
    record = json.loads((tmp_path / "work" / "perf" / "scratch.json").read_text())
    assert record["peak_bytes"] == report.facts["peak_bytes"]
    kinds = [event.kind for event in events]
    assert kinds.index("forecast") < kinds.index("progress")
    forecast = next(event for event in events if event.kind == "forecast").data
    assert forecast["peak_bytes"] <= budget < forecast["bytes"]


def test_five_heads_are_counted_while_the_tool_writes_them(tmp_path: Path, cases: list[CaseFiles]) -> None:
    spec = five_heads(staged_spec())
    budget = _budget(spec, 2, all_outputs=True)
    freed: list[int] = []

    def tool(work: Path) -> None:
        worklist, session, writer = Worklist.load(work), RampSession(spec), WRITERS["benchmark"]
        (work / "perf" / "perf_vision.txt").write_text("[e2e] throughputRate: 1")
        entries = []
        for item in worklist.items():
            batch = np.fromfile(worklist.path(item), "<f4").reshape(worklist.header.input_shape)
            for position, array in enumerate(session.run_all(batch).values()):
                path = work / "outputs" / writer.file_name(item.stem, position)
                array.astype("<f4").tofile(path)
                entries.append(
                    OutputEntry(
                        item=item.index, fold="0", output=position, file=f"outputs/{path.name}",
                        bytes=array.nbytes, dtype="float32", keep=position == 0,
                    )
                )  # fmt: skip
        OutputsManifest.load(work).append(entries, writer)
        # "clean" on the folder above finds the round that is being worked on.
        freed.append(clean_outputs(tmp_path / "work", apply=True).files)
        assert len(entries) == len(FIVE_HEADS) * len(worklist)

    job = RoundsJob(cases[:1], tmp_path / "work", tmp_path / "out", budget, tool, all_outputs=True, threads=1)
    report = run_in_rounds(spec, job, SETTINGS, ["0"])
    report.raise_failures()
    labels = read_labels(tmp_path / "out" / "liver_2.nii.gz")[0]
    np.testing.assert_array_equal(labels, direct(spec, cases[0], SETTINGS).labels)
    assert report.facts["peak_bytes"] <= budget
    assert sum(freed) == 4 * 16 * 8
    # What the tool measured outlives its round.
    assert len(list((tmp_path / "work" / "perf" / "rounds").glob("liver_2_*/perf_vision.txt"))) == len(freed)


def test_a_stopped_run_redoes_the_case_in_hand(tmp_path: Path, cases: list[CaseFiles]) -> None:
    spec = staged_spec()
    calls = 0

    def dies(work: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        infer_stage(work, sessions_for(spec))

    job = RoundsJob(cases, tmp_path / "work", tmp_path / "out", _budget(spec, 2), dies, threads=1)
    with pytest.raises(KeyboardInterrupt):
        run_in_rounds(spec, job, SETTINGS, ["0"])
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    # A killed process cannot tidy up: its round is still there.
    (tmp_path / "work" / "rounds" / "left").mkdir(parents=True)
    report = run_in_rounds(spec, job, SETTINGS, ["0"])
    report.raise_failures()
    assert report.named("done") == ("liver_2", "b")
    calls = 7
    assert run_in_rounds(spec, job, SETTINGS, ["0"]).named("skipped") == ("liver_2", "b")
    assert calls == 7


def test_a_failing_case_fails_alone_and_a_failing_tool_stops(tmp_path: Path, cases: list[CaseFiles]) -> None:
    spec = staged_spec()

    def forgets(work: Path) -> None:
        worklist = Worklist.load(work)
        shard = worklist.items()[:-1] if worklist.cases[0].case_id == "liver_2" else worklist.items()
        infer_stage(work, sessions_for(spec), items=shard)

    job = RoundsJob(
        cases, tmp_path / "work", tmp_path / "out", _budget(spec, 3), forgets, problems={"lost": "no file"}, threads=1
    )
    report = run_in_rounds(spec, job, SETTINGS, ["0"])
    assert set(report.failures) == {"lost", "liver_2"}
    assert "1 of 16 network outputs are missing" in report.failures["liver_2"]
    assert report.named("done") == ("b",)

    def breaks(work: Path) -> None:
        (work / "perf" / "tool.log").write_text("segmentation fault")
        raise ToolError("benchmark ended with status 139")

    broken = RoundsJob(cases, tmp_path / "work", tmp_path / "out", _budget(spec, 3), breaks, existing="overwrite")
    with pytest.raises(ToolError, match=r"status 139 \(logs and timing records are kept in .*rounds/liver_2_1\)"):
        run_in_rounds(spec, broken, SETTINGS, ["0"])
    assert list((tmp_path / "work" / "rounds").iterdir()) == []
    assert (tmp_path / "work" / "perf" / "rounds" / "liver_2_1" / "tool.log").read_text() == "segmentation fault"


def test_budgets_that_cannot_be_kept_are_refused_at_once(
    tmp_path: Path, cases: list[CaseFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = staged_spec()
    job = RoundsJob(cases, tmp_path / "work", tmp_path / "out", _budget(spec, 1) - 1, lambda work: None)
    with pytest.raises(DiskBudgetError, match=r"a tile with its mirrors .* and its outputs needs"):
        run_in_rounds(spec, job, SETTINGS, ["0"])
    job = RoundsJob(cases, tmp_path / "work", tmp_path / "out", 10**12, lambda work: None)
    monkeypatch.setattr(scratch, "free_bytes", lambda place: 50_000)
    with pytest.raises(DiskBudgetError, match=r"lower the budget to at most 50\.0 kB"):
        run_in_rounds(spec, job, SETTINGS, ["0"])


def test_other_programs_use_the_disk_too(
    tmp_path: Path, cases: list[CaseFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = staged_spec()
    job = RoundsJob(
        cases[:1],
        tmp_path / "work",
        tmp_path / "out",
        10**9,
        lambda work: infer_stage(work, sessions_for(spec)),
        threads=1,
    )
    monkeypatch.setattr(rounds_module, "free_bytes", lambda place: _budget(spec, 6))
    assert run_in_rounds(spec, job, SETTINGS, ["0"]).facts["rounds"] == {"liver_2": 3}


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, cases: list[CaseFiles]) -> None:
    spec = staged_spec()

    def again(work: Path) -> None:
        with pytest.raises(UsageError, match="another process"):
            run_in_rounds(spec, job, SETTINGS, ["0"])
        infer_stage(work, sessions_for(spec))

    job = RoundsJob(cases[1:], tmp_path / "work", tmp_path / "out", 10**9, again, threads=1)
    run_in_rounds(spec, job, SETTINGS, ["0"]).raise_failures()


def test_a_whole_liver_goes_through_twenty_gigabytes() -> None:
    """The forecast for 512 x 512 x 500 voxels at 0.75 x 0.75 x 1 mm with the published model: five heads, 8 mirrors."""
    item = ItemCost(input=128**3 * 4, kept=3 * 128**3 * 4, transient=4 * 3 * 128**3 * 4)
    cost = CaseCost("liver", groups=7 * 7 * 7, per_group=8, item=item)
    assert 300e9 < cost.total < 400e9
    rounds = split_rounds(cost, 20 * 10**9)
    assert all((last - first) * cost.group_bytes <= 20 * 10**9 for first, last in rounds)
    assert [first for first, _ in rounds[1:]] == [last for _, last in rounds[:-1]]
    assert (rounds[0][0], rounds[-1][1]) == (0, cost.groups)


@pytest.mark.parametrize("tiles", [1, 7, 27, 100])
@pytest.mark.parametrize("fit", [1, 2, 3, 10, 200])
def test_rounds_cover_everything_once(tiles: int, fit: int) -> None:
    cost = CaseCost("x", tiles, 8, ItemCost(4096, 8192, 0))
    rounds = split_rounds(cost, fit * cost.group_bytes + scratch.ROUND_OVERHEAD)
    assert [tile for first, last in rounds for tile in range(first, last)] == list(range(tiles))
    lengths = [last - first for first, last in rounds]
    assert max(lengths) <= fit
    assert max(lengths) - min(lengths) <= 1


def test_the_meter_sees_files_that_come_and_go(tmp_path: Path) -> None:
    with DiskMeter(tmp_path, interval=60) as meter:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_bytes(bytes(100_000))
        (tmp_path / "link").symlink_to("/usr")
        meter.sample()
        (tmp_path / "a" / "x").unlink()
        assert meter.sample() < 50_000
    assert 100_000 <= meter.peak < 150_000
    assert used_bytes(tmp_path / "nowhere") == 0


def test_the_meter_sees_what_nobody_told_it_of(tmp_path: Path) -> None:
    with DiskMeter(tmp_path) as meter:
        (tmp_path / "x").write_bytes(bytes(300_000))
        deadline = time.monotonic() + 5
        while meter.peak < 300_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        (tmp_path / "x").unlink()
    assert meter.peak >= 300_000


def test_sizes_are_written_as_disks_count() -> None:
    assert [size_text(n) for n in (5, 1500, 20 * 10**9)] == ["5 B", "1.5 kB", "20.0 GB"]
