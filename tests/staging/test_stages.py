"""The staged route: identical to the direct one, resumable, one bad case alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from staged_samples import (
    QueueingRamp,
    RampSession,
    direct,
    five_heads,
    postprocess,
    preprocess,
    sessions_for,
    staged_spec,
    write_case,
)

from offline_infer.errors import CasesFailed, DiskBudgetError, UsageError
from offline_infer.events import Event
from offline_infer.images import read_labels
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import Gaussian, VolumeSpec
from offline_infer.staging import disk_budget as scratch
from offline_infer.staging import preprocessing
from offline_infer.staging.inferring import infer_stage
from offline_infer.staging.outputs import WRITERS, OutputEntry, OutputsManifest
from offline_infer.staging.worklist import Worklist
from offline_infer.tasks.settings import RunSettings

Cases = list[CaseFiles]


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    return [
        write_case(tmp_path / "images", "liver_2", seed=1),
        write_case(tmp_path / "images", "b-1.x", (5, 14, 20), 2),
    ]


def _run(
    spec: VolumeSpec, cases: Cases, work: Path, output: Path, settings: RunSettings | None = None, **options: Any
) -> dict[str, np.ndarray[Any, Any]]:
    chosen = settings if settings is not None else RunSettings()
    folds = [fold.fold for fold in spec.source.folds]
    preprocess(spec, cases, work, chosen, folds, threads=1, **options).raise_failures()
    infer_stage(work, sessions_for(spec), spec=spec).raise_failures()
    postprocess(spec, work, output, settings=chosen).raise_failures()
    return {case.case_id: read_labels(output / f"{case.case_id}.nii.gz")[0] for case in cases}


@pytest.mark.parametrize(
    ("folds", "settings"),
    [
        (("0",), RunSettings()),
        (("0", "1"), RunSettings()),
        (("0", "all"), RunSettings(accumulate="float16")),
        (("0",), RunSettings(step_size=0.75, tta=False)),
        (("0",), RunSettings(postprocess=False)),
    ],
    ids=["plain", "folds", "half", "coarse", "raw"],
)
@pytest.mark.parametrize("domain", ["logits", "probabilities"])
def test_identical_to_the_direct_road(
    tmp_path: Path, cases: Cases, folds: tuple[str, ...], settings: RunSettings, domain: str
) -> None:
    spec = staged_spec(folds=folds)
    if settings.accumulate == "float16":
        gaussian = Gaussian(peak=10, dtype="float16")
        spec = spec.model_copy(update={"window": spec.window.model_copy(update={"gaussian": gaussian})})
    spec = spec.model_copy(update={"aggregation": spec.aggregation.model_copy(update={"domain": domain})})
    found = _run(spec, cases, tmp_path / "work", tmp_path / "out", settings)
    for case in cases:
        expected = direct(spec, case, settings).labels
        assert len(np.unique(expected)) > 1
        np.testing.assert_array_equal(found[case.case_id], expected)


def test_a_two_dimensional_network(tmp_path: Path, cases: Cases) -> None:
    spec = staged_spec(patch=(12, 16))
    found = _run(spec, cases, tmp_path / "work", tmp_path / "out")
    np.testing.assert_array_equal(found["liver_2"], direct(spec, cases[0], RunSettings()).labels)
    item = Worklist.load(tmp_path / "work").items()[0]
    assert item.shape == (1, 12, 16)
    assert item.file == "inputs/liver_2_0_1_0_12_0_16_0.bin"


def test_several_channels_and_probabilities(tmp_path: Path) -> None:
    spec = staged_spec(channels=2)
    case = write_case(tmp_path / "images", "two", channels=2)
    settings = RunSettings(save_probabilities=True)
    found = _run(spec, [case], tmp_path / "work", tmp_path / "out", settings)
    expected = direct(spec, case, settings)
    np.testing.assert_array_equal(found["two"], expected.labels)
    stored = np.load(tmp_path / "out" / "two.npz")["probabilities"]
    assert expected.probabilities is not None
    np.testing.assert_array_equal(stored, expected.probabilities)


def test_a_tile_on_disk_is_what_the_contract_says(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(), tmp_path / "work"
    preprocess(spec, cases[:1], work, RunSettings(), ["0"], threads=1)
    worklist = Worklist.load(work)
    plain, flipped = (
        worklist.items()[0],
        next(i for i in worklist.items() if i.geometry["mirror"] == 5 and i.geometry["start"] == [0, 0, 0]),
    )
    assert plain.file == "inputs/liver_2_0_8_0_12_0_16_0.bin"
    tile = np.fromfile(worklist.path(plain), "<f4").reshape(plain.shape)
    turned = np.fromfile(worklist.path(flipped), "<f4").reshape(flipped.shape)
    np.testing.assert_array_equal(turned, tile[:, ::-1, :, ::-1])
    assert sorted(path.name for path in work.iterdir()) == [
        ".offline-infer-work.json", "cases", "info", "inputs", "outputs", "perf", "worklist.jsonl"
    ]  # fmt: skip


def test_half_size_bins(tmp_path: Path, cases: Cases) -> None:
    spec = staged_spec()
    found = _run(spec, cases, tmp_path / "work", tmp_path / "out", dtype="float16")
    assert {item.bytes for item in Worklist.load(tmp_path / "work").items()} == {8 * 12 * 16 * 2}
    agreement = np.mean(found["liver_2"] == direct(spec, cases[0], RunSettings()).labels)
    assert 0.99 < agreement <= 1


def test_half_size_bins_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    spec = staged_spec()
    raw = spec.channels[0].model_copy(update={"scheme": "none"})
    spec = spec.model_copy(update={"channels": (raw,)})
    case = write_case(tmp_path / "images", "hot", spacing=1.5)
    image = sitk.ReadImage(str(case.channels[0])) * 10000
    sitk.WriteImage(image, str(case.channels[0]))
    report = preprocess(spec, [case], tmp_path / "work", RunSettings(), ["0"], dtype="float16", threads=1)
    assert "float16 cannot hold" in report.failures["hot"]


def test_stages_go_on_where_they_were(tmp_path: Path, cases: Cases) -> None:
    spec, work, out = staged_spec(), tmp_path / "work", tmp_path / "out"
    _run(spec, cases, work, out)
    before = {path: path.stat().st_mtime_ns for path in [*work.rglob("*.bin"), *out.iterdir()]}
    session = RampSession(spec)
    assert preprocess(spec, cases, work, RunSettings(), ["0"]).named("skipped") == ("liver_2", "b-1.x")
    assert infer_stage(work, {"0": session}).named("skipped") == ("liver_2", "b-1.x")
    assert postprocess(spec, work, out).named("skipped") == ("liver_2", "b-1.x")
    assert session.calls == 0
    assert {path: path.stat().st_mtime_ns for path in [*work.rglob("*.bin"), *out.iterdir()]} == before


def test_only_what_is_missing_is_inferred(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(), tmp_path / "work"
    preprocess(spec, cases, work, RunSettings(), ["0"], threads=1)
    first = RampSession(spec, fail_at=21)
    report = infer_stage(work, {"0": first})
    assert report.failures == {"liver_2": "ramp: was to fail"}
    assert report.named("done") == ("b-1.x",)
    damaged = OutputsManifest.load(work).path(OutputsManifest.load(work).entries[(0, "0", 0)])
    damaged.write_bytes(b"short")
    total = len(Worklist.load(work))
    second = RampSession(spec)
    infer_stage(work, {"0": second}).raise_failures()
    assert second.calls == total - (first.calls - 1) + 1
    postprocess(spec, work, tmp_path / "out").raise_failures()
    labels = read_labels(tmp_path / "out" / "liver_2.nii.gz")[0]
    np.testing.assert_array_equal(labels, direct(spec, cases[0], RunSettings()).labels)


def test_a_session_that_queues_gets_inputs_ahead(tmp_path: Path, cases: Cases) -> None:
    spec = staged_spec(folds=("0", "1"))
    preprocess(spec, cases, tmp_path / "work", RunSettings(), ["0", "1"], threads=1)
    sessions = {fold: QueueingRamp(spec, number) for number, fold in enumerate(("0", "1"))}
    told: list[Event] = []
    infer_stage(tmp_path / "work", sessions, spec=spec, sink=told.append).raise_failures()
    assert all(session.most > 1 for session in sessions.values())
    for case in cases:
        steps = [(event.done, event.total) for event in told if event.kind == "progress" and event.case == case.case_id]
        assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)]
    postprocess(spec, tmp_path / "work", tmp_path / "out")
    for case in cases:
        found = read_labels(tmp_path / "out" / f"{case.case_id}.nii.gz")[0]
        np.testing.assert_array_equal(found, direct(spec, case, RunSettings()).labels)


def test_shards_and_folds_one_by_one(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(folds=("0", "1")), tmp_path / "work"
    preprocess(spec, cases, work, RunSettings(), ["0", "1"], threads=1)
    sessions, items = sessions_for(spec), Worklist.load(work).items()
    for fold, session in sessions.items():
        infer_stage(work, {fold: session}, items=items[: len(items) // 3]).raise_failures()
        infer_stage(work, {fold: session}, items=items[len(items) // 3 :]).raise_failures()
    postprocess(spec, work, tmp_path / "out").raise_failures()
    for case in cases:
        labels = read_labels(tmp_path / "out" / f"{case.case_id}.nii.gz")[0]
        np.testing.assert_array_equal(labels, direct(spec, case, RunSettings()).labels)


def test_one_bad_case_fails_alone(tmp_path: Path, cases: Cases) -> None:
    spec, work, out = staged_spec(), tmp_path / "work", tmp_path / "out"
    broken = write_case(tmp_path / "images", "broken")
    broken.channels[0].write_bytes(broken.channels[0].read_bytes()[:500])
    events: list[Event] = []
    report = preprocess(
        spec, [cases[0], broken, cases[1]], work, RunSettings(), ["0"],
        problems={"no_channel": "channel _0000 is missing"}, threads=1, sink=events.append,
    )  # fmt: skip
    assert set(report.failures) == {"broken", "no_channel"}
    assert report.named("done") == ("liver_2", "b-1.x")
    with pytest.raises(CasesFailed, match=r"2 of 4 cases failed \(broken, no_channel\)"):
        report.raise_failures()
    assert {event.case for event in events if event.kind == "case-failed"} == {"broken", "no_channel"}
    assert next(event for event in events if event.kind == "forecast").data["items"] > 0
    bad = RampSession(spec, nan_at=3)
    assert "NaN" in infer_stage(work, {"0": bad}).failures["liver_2"]
    done = postprocess(spec, work, out)
    items = len(Worklist.load(work).items("liver_2"))
    assert done.failures["liver_2"].startswith(f"{items - 3} of {items} network outputs are missing")
    assert "run infer again" in done.failures["liver_2"]
    assert done.named("done") == ("b-1.x",)
    assert [path.name for path in out.glob("*.nii.gz")] == ["b-1.x.nii.gz"]
    json.dumps(done.to_json())


def test_a_changed_image_is_cut_again(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(), tmp_path / "work"
    preprocess(spec, cases, work, RunSettings(), ["0"], threads=1)
    infer_stage(work, sessions_for(spec))
    write_case(tmp_path / "images", "liver_2", seed=9)
    report = preprocess(spec, cases, work, RunSettings(), ["0"], threads=1)
    assert (report.named("done"), report.named("skipped")) == (("liver_2",), ("b-1.x",))
    # Its old outputs are of another image: they must not be used for the new one.
    assert "outputs are missing" in postprocess(spec, work, tmp_path / "out").failures["liver_2"]
    infer_stage(work, sessions_for(spec))
    postprocess(spec, work, tmp_path / "out").raise_failures()
    labels = read_labels(tmp_path / "out" / "liver_2.nii.gz")[0]
    np.testing.assert_array_equal(labels, direct(spec, cases[0], RunSettings()).labels)


def test_inputs_may_be_deleted_once_answered(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(), tmp_path / "work"
    preprocess(spec, cases, work, RunSettings(), ["0"], threads=1)
    infer_stage(work, sessions_for(spec))
    for path in (work / "inputs").iterdir():
        path.unlink()
    assert preprocess(spec, cases, work, RunSettings(), ["0"]).named("skipped") == ("liver_2", "b-1.x")
    postprocess(spec, work, tmp_path / "out").raise_failures()


def test_what_a_killed_preprocess_left_is_swept(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(), tmp_path / "work"
    preprocess(spec, cases[:1], work, RunSettings(), ["0"], threads=1)
    for name in ("gone_0_8_0_12_0_16_0.bin", ".gone_0_8_0_12_0_16_1.bin.77.partial"):
        (work / "inputs" / name).write_bytes(b"x")
    preprocess(spec, cases[:1], work, RunSettings(), ["0"], threads=1)
    assert len(list((work / "inputs").iterdir())) == len(Worklist.load(work))


def test_changed_bins_are_noticed(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(), tmp_path / "work"
    preprocess(spec, cases, work, RunSettings(), ["0"], threads=1)
    worklist = Worklist.load(work)
    path = worklist.path(worklist.items("liver_2")[4])
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert "checksum differs" in infer_stage(work, sessions_for(spec)).failures["liver_2"]


def test_outputs_of_another_model_are_refused(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(), tmp_path / "work"
    preprocess(spec, cases, work, RunSettings(), ["0"], threads=1)
    other = spec.model_copy(update={"spacing": (2.0, 2.0, 2.0)})
    with pytest.raises(UsageError, match="another model"):
        postprocess(other, work, tmp_path / "out")
    with pytest.raises(UsageError, match="another model"):
        infer_stage(work, sessions_for(spec), spec=other)
    with pytest.raises(UsageError, match="made for the folds 0, not for 7"):
        infer_stage(work, {"7": RampSession(spec)})
    with pytest.raises(UsageError, match="the graph takes"):
        infer_stage(work, {"0": RampSession(staged_spec(patch=(8, 8, 8)))})
    with pytest.raises(UsageError, match="other settings"):
        preprocess(spec, cases, work, RunSettings(tta=False), ["0"])


@pytest.mark.parametrize("tool", ["benchmark", "msame", "ais_bench"])
def test_an_external_tool_with_five_heads(tmp_path: Path, cases: Cases, tool: str) -> None:
    spec, work = five_heads(staged_spec()), tmp_path / "work"
    preprocess(spec, cases, work, RunSettings(), ["0"], threads=1)
    worklist, manifest, session = Worklist.load(work), OutputsManifest.load(work), RampSession(five_heads(spec))
    writer, entries = WRITERS[tool], []
    for item in worklist.items():
        batch = np.fromfile(worklist.path(item), "<f4").reshape(worklist.header.input_shape)
        for position, array in enumerate(session.run_all(batch).values()):
            path = work / "outputs" / writer.file_name(item.stem, position)
            path.write_bytes(array.astype("<f4").tobytes())
            entries.append(
                OutputEntry(
                    item=item.index, fold="0", output=position, file=f"outputs/{path.name}",
                    bytes=path.stat().st_size, dtype="float32", keep=position == 0,
                )
            )  # fmt: skip
    manifest.append(entries, writer)
    postprocess(spec, work, tmp_path / "out").raise_failures()
    for case in cases:
        labels = read_labels(tmp_path / "out" / f"{case.case_id}.nii.gz")[0]
        np.testing.assert_array_equal(labels, direct(spec, case, RunSettings()).labels)


def test_half_precision_outputs_are_read(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(), tmp_path / "work"
    preprocess(spec, cases[:1], work, RunSettings(), ["0"], threads=1)
    infer_stage(work, sessions_for(spec))
    manifest = OutputsManifest.load(work)
    for entry in list(manifest):
        path = manifest.path(entry)
        path.write_bytes(np.fromfile(path, "<f4").astype("<f2").tobytes())
        manifest.append([entry.model_copy(update={"bytes": entry.bytes // 2, "dtype": "float16"})])
    postprocess(spec, work, tmp_path / "out").raise_failures()
    labels = read_labels(tmp_path / "out" / "liver_2.nii.gz")[0]
    assert np.mean(labels == direct(spec, cases[0], RunSettings()).labels) > 0.99


def test_outputs_of_a_wrong_size_are_named(tmp_path: Path, cases: Cases) -> None:
    spec, work = staged_spec(), tmp_path / "work"
    preprocess(spec, cases[:1], work, RunSettings(), ["0"], threads=1)
    infer_stage(work, sessions_for(spec))
    manifest = OutputsManifest.load(work)
    entry = manifest.entries[(3, "0", 0)]
    manifest.path(entry).write_bytes(b"1234")
    manifest.append([entry.model_copy(update={"bytes": 4})])
    report = postprocess(spec, work, tmp_path / "out")
    assert "was it made with another model?" in report.failures["liver_2"]


def test_a_full_disk_is_said_before_the_first_byte(
    tmp_path: Path, cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "free_bytes", lambda place: 1000)
    with pytest.raises(DiskBudgetError, match=r"needs .* of scratch disk, .* has 1\.0 kB free"):
        preprocess(staged_spec(), cases, tmp_path / "work", RunSettings(), ["0"], threads=1)
    assert not list((tmp_path / "work" / "inputs").iterdir())


def test_a_disk_that_fills_up_stops_the_run(tmp_path: Path, cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "tile.bin")

    monkeypatch.setattr(preprocessing, "cut_items", full)
    with pytest.raises(DiskBudgetError, match="disk is full while working on case liver_2"):
        preprocess(staged_spec(), cases, tmp_path / "work", RunSettings(), ["0"], threads=1)


def test_a_cascade_takes_its_first_stage_from_a_folder(tmp_path: Path, cases: Cases) -> None:
    from specimens import tiny_spec, with_outputs

    from offline_infer.images import write_labels

    first = staged_spec()
    _run(first, cases[:1], tmp_path / "first", tmp_path / "lowres")
    spec = with_outputs(tiny_spec(previous=(1, 2)))
    report = preprocess(spec, cases[:1], tmp_path / "none", RunSettings(), ["0"], threads=1)
    assert "previous stage" in report.failures["liver_2"]
    report = preprocess(
        spec, cases, tmp_path / "work", RunSettings(), ["0"], threads=1, previous_folder=tmp_path / "lowres"
    )
    assert report.named("done") == ("liver_2",)
    assert "previous stage's label map is missing" in report.failures["b-1.x"]
    worklist = Worklist.load(tmp_path / "work")
    item = worklist.items()[0]
    assert item.shape == (3, 8, 12, 16)
    tile = np.fromfile(worklist.path(item), "<f4").reshape(item.shape)
    labels, frame = read_labels(tmp_path / "lowres" / "liver_2.nii.gz")
    np.testing.assert_array_equal(tile[1:], np.stack([labels[:8, :12, :16] == k for k in (1, 2)]))
    # Another first stage makes the bins stale.
    write_labels(tmp_path / "lowres" / "liver_2.nii.gz", np.zeros_like(labels), frame)
    again = preprocess(
        spec, cases[:1], tmp_path / "work", RunSettings(), ["0"], threads=1, previous_folder=tmp_path / "lowres"
    )
    assert again.named("done") == ("liver_2",)
