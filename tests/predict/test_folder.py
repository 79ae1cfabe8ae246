"""Many cases: order, overlap, estimates, what a lack of memory changes, failures that stay alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

from offline_infer.bundles.bundle import save
from offline_infer.engines.base import get_engine
from offline_infer.errors import EngineFailed, EngineUnavailable, UsageError
from offline_infer.events import Event
from offline_infer.images.cases import CaseFiles
from offline_infer.predict import folder as runner
from offline_infer.predict.folder import FolderJob, predict_folder
from offline_infer.predict.model import Model, load
from offline_infer.tasks.settings import RunSettings


@pytest.fixture
def model(tmp_path: Path) -> Model:
    folder = tmp_path / "bundle"
    folder.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), folder), folder)
    return load(folder, engine="fake", threads=2)


@pytest.fixture
def cases(tmp_path: Path) -> list[CaseFiles]:
    return [write_case(tmp_path / "in", f"case{i}", seed=i) for i in range(3)]


def test_every_case_is_forecast_and_reported_in_order(model: Model, cases: list[CaseFiles], tmp_path: Path) -> None:
    events: list[Event] = []
    report = predict_folder(model, FolderJob(cases, tmp_path / "out"), RunSettings(), events.append)
    assert [case.case for case in report.cases] == ["case0", "case1", "case2"]
    estimate = next(event for event in events if event.kind == "estimate")
    assert estimate.data["peak_without_engine"] > estimate.data["parts"]["slab"] > 0
    for case in report.cases:
        assert case.memory["read_ahead"]
        assert not case.memory["spill"]
    assert set(report.to_json()["cases"][0]["memory"]) >= {"prepare", "infer", "finish", "engine_estimate"}


def test_an_engine_that_is_not_installed_leaves_no_folder(
    model: Model, cases: list[CaseFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(get_engine("fake")), "available", lambda self: "its library is not installed")
    with pytest.raises(EngineUnavailable, match="fake: its library is not installed"):
        predict_folder(model, FolderJob(cases, tmp_path / "out"), RunSettings())
    assert not (tmp_path / "out").exists()


def test_the_next_case_is_prepared_during_inference(
    model: Model, cases: list[CaseFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = {case.case_id: threading.Event() for case in cases}
    real_make, real_infer = runner.prepare_case, runner.infer
    order = iter(cases)

    def make(task, case: CaseFiles, *arguments, **named):  # type: ignore[no-untyped-def]
        begun[case.case_id].set()
        return real_make(task, case, *arguments, **named)

    def infer(*arguments, **named):  # type: ignore[no-untyped-def]
        number = cases.index(next(order))
        if number + 1 < len(cases):
            assert begun[cases[number + 1].case_id].wait(10), "the next case was not begun while this one ran"
        return real_infer(*arguments, **named)

    monkeypatch.setattr(runner, "prepare_case", make)
    monkeypatch.setattr(runner, "infer", infer)
    predict_folder(model, FolderJob(cases, tmp_path / "out"), RunSettings()).raise_failures()


def test_with_too_little_memory_nothing_is_read_ahead_and_the_result_is_the_same(
    model: Model, cases: list[CaseFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_folder(model, FolderJob(cases, tmp_path / "plenty"), RunSettings()).raise_failures()
    running = threading.Event()
    real_make, real_infer = runner.prepare_case, runner.infer

    def make(*arguments, **named):  # type: ignore[no-untyped-def]
        assert not running.is_set(), "a case was prepared while another was inferred"
        return real_make(*arguments, **named)

    def infer(*arguments, **named):  # type: ignore[no-untyped-def]
        running.set()
        try:
            return real_infer(*arguments, **named)
        finally:
            running.clear()

    monkeypatch.setattr(runner, "prepare_case", make)
    monkeypatch.setattr(runner, "infer", infer)
    monkeypatch.setattr(runner, "room_left", lambda limit: 0)
    report = predict_folder(model, FolderJob(cases, tmp_path / "tight"), RunSettings())
    report.raise_failures()
    assert all(case.memory["spill"] and not case.memory["read_ahead"] for case in report.cases)
    for case in cases:
        name = f"{case.case_id}.nii.gz"
        assert (tmp_path / "tight" / name).read_bytes() == (tmp_path / "plenty" / name).read_bytes()


def test_a_limit_that_cannot_be_kept_is_refused_before_any_work(
    model: Model, cases: list[CaseFiles], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"the largest case, \w+, takes \d+ MB more .* the least is \d+ MB") as caught:
        predict_folder(model, FolderJob(cases, tmp_path / "out", memory=100_000_000), RunSettings())
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    least = int(str(caught.value).split("the least is ")[1].split()[0])
    # What it says is possible is possible, with a little room for what this process holds by now.
    report = predict_folder(model, FolderJob(cases, tmp_path / "out", memory=(least + 64) * 1_000_000), RunSettings())
    report.raise_failures()


@pytest.mark.parametrize("tight", [False, True])
def test_an_unreadable_case_fails_alone(
    model: Model, cases: list[CaseFiles], tmp_path: Path, tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tight:
        monkeypatch.setattr(runner, "room_left", lambda limit: 0)
    broken = tmp_path / "in" / "broken_0000.nii.gz"
    broken.write_bytes(b"not an image")
    todo = [cases[0], CaseFiles("broken", (broken,)), cases[1]]
    report = predict_folder(model, FolderJob(todo, tmp_path / "out"), RunSettings())
    assert [case.status for case in report.cases] == ["done", "failed", "done"]
    assert "broken_0000.nii.gz" in report.failures["broken"]


def test_the_callers_job_is_left_as_it_is(model: Model, cases: list[CaseFiles], tmp_path: Path) -> None:
    job = FolderJob(cases[:1], tmp_path / "out")
    predict_folder(model, job, RunSettings())
    again = predict_folder(model, replace(job, existing="compare"), RunSettings())
    assert again.cases[0].status == "skipped"


def test_the_previous_case_is_finished_during_inference(
    model: Model, cases: list[CaseFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferring = [threading.Event() for _ in cases]
    real_infer = runner.infer
    count = iter(range(len(cases)))

    def infer(*arguments, **named):  # type: ignore[no-untyped-def]
        number = next(count)
        inferring[number].set()
        last = real_infer(*arguments, **named)

        def finish():  # type: ignore[no-untyped-def]
            if number + 1 < len(cases):
                assert inferring[number + 1].wait(10), "the next case was not begun while this one was finished"
            return last()

        return finish

    monkeypatch.setattr(runner, "infer", infer)
    report = predict_folder(model, FolderJob(cases, tmp_path / "out"), RunSettings())
    report.raise_failures()
    assert [list(case.seconds) for case in report.cases] == [["read", "prepare", "infer", "finish", "write"]] * 3


def test_a_case_that_cannot_be_finished_fails_alone(
    model: Model, cases: list[CaseFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_infer = runner.infer
    count = iter(range(len(cases)))

    def infer(*arguments, **named):  # type: ignore[no-untyped-def]
        finish = real_infer(*arguments, **named)

        def broken():  # type: ignore[no-untyped-def]
            raise EngineFailed("no number")

        return broken if next(count) == 1 else finish

    monkeypatch.setattr(runner, "infer", infer)
    report = predict_folder(model, FolderJob(cases, tmp_path / "out"), RunSettings())
    assert [case.status for case in report.cases] == ["done", "failed", "done"]
    assert report.failures == {"case1": "no number"}
