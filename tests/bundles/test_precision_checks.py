"""What is known of a bundle's precisions: kept by benchmark, looked up by whatever runs the network."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specimens import onnx_bytes, tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

import offline_infer
from offline_infer.benchmark import BenchmarkJob, benchmark, verify_once
from offline_infer.bundles import bundle as bundles
from offline_infer.bundles.bundle import PRECISION_CHECKS, Bundle, save
from offline_infer.bundles.precision_checks import (
    Check,
    UnverifiedPrecision,
    checks_path,
    keep_checks,
    read_checks,
    standing,
    subject_of,
)
from offline_infer.cli import main
from offline_infer.engines.base import Norms, SessionInfo
from offline_infer.engines.fake import FakeSession
from offline_infer.errors import UsageError
from offline_infer.events import Event
from offline_infer.images.cases import CaseFiles
from offline_infer.predict.model import load
from offline_infer.tasks.registry import get_task

INFO = SessionInfo(
    "fake", "1", "cpu", "bf16", (1, 1, 8, 12, 16), ("logits",), processor="P", norms=Norms("native", "no reason")
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), folder), folder)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_case(tmp_path / "in", "a", shape=(20, 30, 40)).channels[0]


@pytest.fixture
def broken_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine answers NaN in bfloat16."""
    honest = FakeSession.answer

    def answer(self: FakeSession, batch: Any) -> Any:
        answers = honest(self, batch)
        if self.info.precision == "bf16":
            for array in answers.values():
                array[..., 0] = np.nan
        return answers

    monkeypatch.setattr(FakeSession, "answer", answer)


def refuse_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no tiles can be taken for a comparison."""

    def sample_inputs(*arguments: Any) -> Any:
        raise AssertionError("a precision was compared again")

    monkeypatch.setattr(type(get_task("volume")), "sample_inputs", sample_inputs)


def check(bundle: Path, **changes: Any) -> Check:
    graph = Bundle.load(bundle).spec.graphs[0]
    facts: dict[str, Any] = {
        **subject_of(INFO, "0", graph.sha256).model_dump(),
        "status": "ok",
        "label_agreement": 1.0,
        "foreground_dice": 1.0,
        "max_abs_logit_difference": 0.0,
        "tiles": 4,
        "tiles_sha256": "a" * 64,
        "source": "image",
        "date": "2026-01-01 00:00:00",
    }
    return Check(**{**facts, **changes})


def measure(bundle: Path, image: Path | None, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"engines": ("fake",), "repeats": 1, "keep": True, **changes}
    return benchmark(Bundle.load(bundle), BenchmarkJob(case=CaseFiles("a", (image,)) if image else None, **settings))


def bf16(bundle: Path, **options: Any) -> offline_infer.Model:
    return load(bundle, engine="fake", precision="bf16", **options)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_benchmark_keeps_its_judgement_and_the_bundle_stays_whole(bundle: Path, image: Path) -> None:
    before = (bundle / "bundle.json").read_bytes()
    assert measure(bundle, image)["kept_in_bundle"] is True
    (row,) = read_checks(Bundle.load(bundle, verify_hashes=True)).rows
    assert (row.engine, row.precision, row.fold, row.status, row.source) == ("fake", "bf16", "0", "ok", "image")
    assert row.graph_sha256 == Bundle.load(bundle).spec.graphs[0].sha256
    assert row.foreground_dice == 1
    assert row.reference == "fake"
    assert (bundle / "bundle.json").read_bytes() == before
    assert image.name not in (bundle / PRECISION_CHECKS).read_text()


def test_the_same_tiles_replace_a_row_and_others_add_one(bundle: Path, image: Path, tmp_path: Path) -> None:
    measure(bundle, image)
    measure(bundle, image)
    assert len(read_checks(Bundle.load(bundle)).rows) == 1
    other = write_case(tmp_path / "in", "b", shape=(20, 30, 40), seed=4).channels[0]
    measure(bundle, other)
    measure(bundle, None)
    assert [row.source for row in read_checks(Bundle.load(bundle)).rows] == ["image", "image", "noise"]


def test_nothing_is_kept_where_nothing_was_compared(bundle: Path, image: Path) -> None:
    assert measure(bundle, image, precisions=("bf16",))["kept_in_bundle"] is False
    assert "kept_in_bundle" not in measure(bundle, image, keep=False)
    assert not (bundle / PRECISION_CHECKS).exists()


def test_old_passes_give_way_and_failures_stay(bundle: Path) -> None:
    opened = Bundle.load(bundle)
    failed = check(bundle, status="failed", reason="NaN", tiles_sha256="f" * 64)
    assert keep_checks(opened, [failed]) is None
    for number in range(40):
        keep_checks(opened, [check(bundle, tiles_sha256=f"{number:064d}")])
    rows = read_checks(opened).rows
    assert failed in rows
    assert len(rows) == 17
    assert rows[-1].tiles_sha256 == f"{39:064d}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "not a record of checks"),
        (b'{"kind": "other"}', "not a record of checks"),
        (b'{"kind": "offline_infer.precision_checks", "schema_version": 99}', "version 99"),
        (b'{"kind": "offline_infer.precision_checks", "schema_version": 1}', "no list"),
        (b'{"kind": "offline_infer.precision_checks", "schema_version": 1, "checks": [{"engine": 3}]}', "damaged"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_understood_counts_as_absent(bundle: Path, text: bytes, words: str) -> None:
    (bundle / PRECISION_CHECKS).write_bytes(text)
    found = read_checks(Bundle.load(bundle))
    assert found.rows == ()
    assert found.problem is not None
    assert words in found.problem
    with bf16(bundle) as model:
        notes = model.precision_standing.notes
    assert "counts as absent" in notes[0]
    assert "never compared" in notes[1]


def test_a_damaged_file_is_replaced_and_a_foreign_one_is_not(bundle: Path) -> None:
    opened, place = Bundle.load(bundle), bundle / PRECISION_CHECKS
    place.write_text("{")
    assert keep_checks(opened, [check(bundle)]) is None
    assert len(read_checks(opened).rows) == 1
    place.write_text('{"kind": "other"}')
    assert "move it away" in str(keep_checks(opened, [check(bundle)]))
    assert place.read_text() == '{"kind": "other"}'
    place.unlink()
    place.mkdir()
    assert "cannot be written" in str(keep_checks(opened, [check(bundle)]))
    assert "cannot be read" in str(read_checks(opened).problem)


def test_a_bundle_that_cannot_be_written_is_no_error(
    bundle: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("offline_infer.bundles.precision_checks.write_json", refuse)
    events: list[Event] = []
    record = benchmark(
        Bundle.load(bundle), BenchmarkJob(("fake",), case=CaseFiles("a", (image,)), repeats=1, keep=True), events.append
    )
    assert record["kept_in_bundle"] is False
    assert [row["status"] for row in record["results"]] == ["ok", "ok"]
    (note,) = [event.data["text"] for event in events if event.kind == "note"]
    assert "Permission denied" in note
    with bf16(bundle) as model:  # what was checked just now counts nevertheless
        verify_once(model, CaseFiles("a", (image,)))
        assert model.precision_standing.notes == ()
        assert len(model.precision_standing.rows) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(bundle: Path) -> None:
    bundle.chmod(0o555)
    try:
        assert "cannot be written" in str(keep_checks(Bundle.load(bundle), [check(bundle)]))
    finally:
        bundle.chmod(0o755)


def test_a_lone_graph_has_its_file_beside_it(tmp_path: Path) -> None:
    lone = tmp_path / "model.onnx"
    lone.write_bytes(onnx_bytes(bundles.embedded(with_outputs(tiny_spec()), "0", "fp32", 17)))
    bundle = Bundle.load(lone)
    assert checks_path(bundle) == tmp_path / f"model.onnx.{PRECISION_CHECKS}"
    assert keep_checks(bundle, [check(lone)]) is None
    assert read_checks(Bundle.load(lone)).rows == (check(lone),)


def test_a_bundle_with_checks_can_be_replaced(bundle: Path) -> None:
    keep_checks(Bundle.load(bundle), [check(bundle)])
    with bundles.creating(bundle, overwrite=True) as folder:
        save(with_graphs(with_outputs(tiny_spec()), folder, content=b"another graph"), folder)
    assert read_checks(Bundle.load(bundle)).rows == ()


# ---- looking it up ---------------------------------------------------------------------------------------------------


def test_a_row_holds_for_what_it_was_made_with_only(bundle: Path) -> None:
    opened, row = Bundle.load(bundle), check(bundle)
    keep_checks(opened, [row])
    assert row.norms == "native"  # without the reason
    assert standing(opened, [row.subject]).rows == (row,)
    others: list[dict[str, str]] = [
        {"engine": "openvino"},
        {"library": "2"},
        {"processor": "Q"},
        {"device": "cuda:0"},
        {"precision": "fp16"},
        {"norms": "exact"},
        {"fold": "1"},
        {"graph_sha256": "0" * 64},
    ]
    for change in others:
        found = standing(opened, [row.subject.model_copy(update=change)])
        assert found.rows == ()
        assert "never compared" in found.notes[0]


def test_float32_needs_no_check(bundle: Path) -> None:
    subject = check(bundle, precision="fp32").subject
    assert standing(Bundle.load(bundle), [subject]).notes == ()


@pytest.mark.parametrize("changes", [{"source": "noise"}, {"foreground_dice": None}])
def test_noise_and_tiles_without_structures_prove_nothing(bundle: Path, changes: dict[str, Any]) -> None:
    row = check(bundle, **changes)
    keep_checks(Bundle.load(bundle), [row])
    assert standing(Bundle.load(bundle), [row.subject]).missing == ("0",)


def test_a_low_dice_is_worth_a_word(bundle: Path) -> None:
    row = check(bundle, foreground_dice=0.9987)
    keep_checks(Bundle.load(bundle), [row])
    found = standing(Bundle.load(bundle), [row.subject])
    assert found.missing == ()
    assert "0.99870" in found.notes[0]


def test_one_failure_outweighs_any_pass(bundle: Path) -> None:
    opened = Bundle.load(bundle)
    failed = check(bundle, status="failed", reason="NaN found", tiles_sha256="f" * 64)
    keep_checks(opened, [failed, check(bundle)])
    with pytest.raises(UsageError, match=r"NaN found.*--unverified"):
        standing(opened, [failed.subject])
    assert "nevertheless" in standing(opened, [failed.subject], unverified=True).notes[0]
    keep_checks(opened, [check(bundle, tiles_sha256="f" * 64)])  # the same tiles pass now
    assert standing(opened, [failed.subject]).notes == ()


# ---- what runs the network -------------------------------------------------------------------------------------------


def run_predict(bundle: Path, image: Path, output: Path, *more: str) -> int:
    arguments = ["predict", str(bundle), str(image), str(output), "--engine", "fake", "--precision", "bf16", *more]
    return main([*arguments, "--no-tta", "--progress", "json"])


def notes_of(text: str) -> list[str]:
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [event["text"] for event in events if event["event"] == "note" and "text" in event]


def test_predict_says_once_that_nothing_is_known(
    bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(image.parent, "b", shape=(20, 30, 40), seed=1)
    assert run_predict(bundle, image.parent, tmp_path / "out") == 0
    (note,) = notes_of(capsys.readouterr().err)
    assert "bf16 on fake was never compared with float32" in note
    assert f"benchmark {bundle} --engines fake --precisions fp32 bf16 --input IMAGE" in note
    manifest = json.loads((tmp_path / "out" / "offline_infer_run.json").read_text())
    assert manifest["precision_checks"] == []


def test_predict_is_silent_where_it_was_checked_and_the_manifest_has_the_row(
    bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", str(bundle), "--engines", "fake", "--input", str(image), "--repeats", "1"]
    assert main(arguments) == 0
    assert "kept in the bundle" in capsys.readouterr().out
    assert run_predict(bundle, image, tmp_path / "out") == 0
    assert notes_of(capsys.readouterr().err) == []
    (row,) = json.loads((tmp_path / "out" / "offline_infer_run.json").read_text())["precision_checks"]
    assert (row["precision"], row["foreground_dice"]) == ("bf16", 1.0)


@pytest.mark.usefixtures("broken_half")
def test_a_precision_that_failed_is_refused(
    bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", str(bundle), "--engines", "fake", "--input", str(image), "--quiet"]) == 3
    capsys.readouterr()
    assert run_predict(bundle, image, tmp_path / "out") == 2
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "out" / "a.nii.gz").exists()
    assert run_predict(bundle, image, tmp_path / "out", "--unverified") == 3  # tried, and NaN is met again
    assert "because of --unverified" in notes_of(capsys.readouterr().err)[0]
    assert main(["inspect", str(bundle)]) == 0
    assert "FAILED: the answers hold NaN" in capsys.readouterr().out


def test_no_record_and_the_least_dice(bundle: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["benchmark", str(bundle), "--engines", "fake", "--input", str(image), "--quiet"]
    assert main([*arguments, "--no-record"]) == 0
    assert not (bundle / PRECISION_CHECKS).exists()
    honest = FakeSession.answer

    def shifted(self: FakeSession, batch: Any) -> Any:
        return honest(self, batch + np.float32(0.1) if self.info.precision == "bf16" else batch)

    monkeypatch.setattr(FakeSession, "answer", shifted)
    assert main([*arguments, "--min-dice", "0.2"]) == 0
    assert main([*arguments, "--min-dice", "0.999"]) == 3
    (row,) = read_checks(Bundle.load(bundle)).rows
    assert "at least 0.999 was asked for" in str(row.reason)
    assert row.foreground_dice is not None


def test_the_staged_road_looks_it_up_too(
    bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {"status": "failed", "reason": "was tried"}
    work = tmp_path / "work"
    assert main(["preprocess", str(bundle), str(image), str(work), "--no-tta", "--quiet"]) == 0
    infer = ["infer", str(bundle), str(work), "--engine", "fake", "--precision", "bf16", "--progress", "json"]
    assert main(infer) == 0
    assert "never compared" in notes_of(capsys.readouterr().err)[0]
    with bf16(bundle) as model:
        subject = subject_of(model.session_info, "0", model.spec.graphs[0].sha256)
    keep_checks(Bundle.load(bundle), [check(bundle, **subject.model_dump(), **failed)])
    assert main(infer) == 2
    assert "was tried" in capsys.readouterr().err


def test_verify_precision_compares_once(
    bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_predict(bundle, image, tmp_path / "out", "--verify-precision") == 0
    (note,) = notes_of(capsys.readouterr().err)
    assert "bf16 of fold 0 compared with float32: label agreement 1.00000" in note
    (row,) = read_checks(Bundle.load(bundle)).rows
    assert (row.tiles, row.status) == (2, "ok")
    refuse_sampling(monkeypatch)
    assert run_predict(bundle, image, tmp_path / "out", "--verify-precision", "--overwrite") == 0


@pytest.mark.usefixtures("broken_half")
def test_verify_precision_refuses_what_fails(bundle: Path, image: Path, tmp_path: Path) -> None:
    assert run_predict(bundle, image, tmp_path / "out", "--verify-precision") == 2
    assert not (tmp_path / "out" / "a.nii.gz").exists()
    (row,) = read_checks(Bundle.load(bundle)).rows
    assert row.status == "failed"


def test_the_python_interface_warns_once(bundle: Path, image: Path) -> None:
    with bf16(bundle) as model:
        with pytest.warns(UnverifiedPrecision, match="never compared"):
            model.predict(image)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with load(bundle, engine="fake") as model:
            model.predict(image)
    measure(bundle, image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bf16(bundle) as model:
            model.predict(image)


@pytest.mark.usefixtures("broken_half")
def test_the_python_interface_refuses_and_can_be_overruled(bundle: Path, image: Path) -> None:
    measure(bundle, image)
    with bf16(bundle) as model, pytest.raises(UsageError, match="hold NaN"):
        model.predict(image)
    with bf16(bundle, unverified=True) as model:
        assert "because of --unverified" in model.precision_standing.notes[0]


# ---- float16 in the graph --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written_out", [False, True])
def test_a_half_precision_graph_takes_a_norms_statistics_in_float32(written_out: bool) -> None:
    """By the types of every tensor the norm touches, and by numbers: sums and squares here do not fit float16."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from offline_infer import graph as passes

    helper, shape = onnx.helper, [1, 2, 12, 16, 20]
    tensors = {"w": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1, 1), "s": np.ones(2, np.float32)}
    tensors["b"] = np.zeros(2, np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["x"], name="first"),
        helper.make_node("InstanceNormalization", ["x", "s", "b"], ["y"], name="norm", epsilon=1e-5),
        helper.make_node("Conv", ["y", "w"], ["logits"], name="last"),
    ]
    ports = [[helper.make_tensor_value_info(name, 1, shape)] for name in ("image", "logits")]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    made = helper.make_graph(nodes, "g", *ports, weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    half, _ = passes.to_float16(passes.decompose_instance_norm(model) if written_out else model)

    typed = onnx.shape_inference.infer_shapes(half, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*typed.value_info, *typed.input, *typed.output)}
    types |= {tensor.name: tensor.data_type for tensor in typed.initializer}
    norms = [node for node in typed.node if node.op_type == "InstanceNormalization" or ".norm_" in node.name]
    assert len(norms) == (9 if written_out else 1)
    for node in norms:
        assert {types[name] for name in (*node.input, *node.output)} == {onnx.TensorProto.FLOAT}
    for node in typed.node:
        if node.op_type == "Conv":
            assert types[node.input[0]] == onnx.TensorProto.FLOAT16

    image = (500 + 8 * np.random.default_rng(0).normal(size=shape)).astype(np.float16).astype(np.float32)
    assert image.sum() > 65504
    assert (image**2).mean() > 65504
    session = runtime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"image": image})
    axes = (2, 3, 4)
    wide = image.astype(np.float64)
    expected = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(answer, expected, atol=3e-3)  # rounded to float16 once
