"""Bundles: what is accepted, what is refused and how readable the refusal is, and that writing is all or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from specimens import onnx_bytes, tiny_spec, with_graphs, with_outputs

from offline_infer.bundles import bundle as bundles
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.onnx_metadata import read_metadata
from offline_infer.errors import BundleError, UsageError
from offline_infer.files import sha256_file
from offline_infer.spec import CompiledRecord, VolumeSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid bundle with two folds and a compiled artefact."""
    place = tmp_path / "liver"
    place.mkdir()
    spec = with_graphs(with_outputs(tiny_spec(folds=("0", "1"))), place)
    (place / "compiled").mkdir()
    (place / "compiled" / "fold_0.om").write_bytes(b"om")
    artefact = CompiledRecord(
        file="compiled/fold_0.om",
        graph="fold_0.onnx",
        graph_sha256=spec.graphs[0].sha256,
        sha256=sha256_file(place / "compiled" / "fold_0.om"),
        soc="Ascend310P3",
        tool="atc",
    )
    bundles.save(spec.model_copy(update={"compiled": (artefact,)}), place)
    return place


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "bundle.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Set record[path[0]][path[1]]... = path[-1]."""

    def change(record: Any) -> None:
        for step in path[:-2]:
            record = record[step]
        record[path[-2]] = path[-1]

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: Any) -> None:
        for step in path[:-1]:
            record = record[step]
        del record[path[-1]]

    return change


def test_round_trip(folder: Path) -> None:
    bundle = Bundle.load(folder, verify_hashes=True)
    assert bundle.folder == folder
    assert bundle.folds == ("0", "1")
    assert bundle.output.name == "logits"
    assert bundle.graph_path("1") == folder / "fold_1.onnx"
    assert bundle.compiled_path(bundle.spec.compiled[0]) == folder / "compiled" / "fold_0.om"
    assert Bundle.load(folder / "bundle.json").spec == bundle.spec
    before = (folder / "bundle.json").read_bytes()
    assert bundles.save(bundle.spec, folder).spec == bundle.spec
    assert (folder / "bundle.json").read_bytes() == before


def test_unknown_fold_and_precision_list_the_legal_ones(folder: Path) -> None:
    bundle = Bundle.load(folder)
    with pytest.raises(UsageError, match=r"no fold '7'; this bundle has 0, 1"):
        bundle.graph_path("7")
    with pytest.raises(UsageError, match=r"fold 0 has no fp16 graph, only fp32 .*export-precision precision=fp16"):
        bundle.graph_path("0", "fp16")


def test_a_single_half_precision_graph_also_serves_wider_arithmetic(tmp_path: Path) -> None:
    bundles.save(with_graphs(with_outputs(tiny_spec()), tmp_path, precision="fp16"), tmp_path)
    bundle = Bundle.load(tmp_path)
    for precision in ("fp16", "fp32", "bf16"):
        assert bundle.graph("0", precision).precision == "fp16"
    with pytest.raises(UsageError, match="no int8 graph"):
        bundle.graph("0", "int8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("schema_version", 2), ["schema_version is 2", "reads 1", "export the checkpoint again"]),
        (put("schema_version", "1"), ["schema_version is '1'"]),
        (put("schema_version", True), ["schema_version is True"]),
        (drop("schema_version"), ["schema_version is missing"]),
        (put("colour", "red"), ["colour", "extra inputs"]),
        (put("channels", 0, "colour", "red"), ["channels[0].colour"]),
        (put("channels", []), ["channels", "at least 1"]),
        (put("channels", 0, "scheme", "magic"), ["channels[0].scheme", "'ct'", "'magic'"]),
        (put("channels", 0, "intensity", None), ["channels[0]", "needs intensity figures"]),
        (put("channels", 0, "intensity", "mean", "80"), ["channels[0].intensity.mean", "valid number", "'80'"]),
        (put("patch_size", [8, 12]), ["patch_size and spacing"]),
        (put("patch_size", [8, 12, 0]), ["patch_size[2]", "greater than 0"]),
        (put("patch_size", [8, 12, "16"]), ["patch_size[2]", "valid integer"]),
        (put("spacing", [1.0, 1.0, -1.0]), ["spacing[2]"]),
        (put("spacing", [1.0, 1.0, 1e-320]), ["spacing[2]"]),
        (put("spacing", [1e30, 1.0, 1.0]), ["spacing[0]"]),
        (put("patch_size", [10**6, 10**6, 10**6]), ["input: a shape of 5 axes and more than"]),
        (put("patch_size", [10**400, 1, 1]), ["input: a shape of 5 axes and more than"]),
        (put("outputs", 0, "shape", [1, 3, 10**9, 10**9, 1]), ["outputs.logits: a shape of 5 axes"]),
        (put("labels", "channel_values", [0, 1, 10**400]), ["labels.channel_values[2]"]),
        (put("labels", "channel_values", [0, 1, -1]), ["labels.channel_values[2]"]),
        (put("transpose_forward", [0, 0, 1]), ["transpose_forward", "permutation"]),
        (put("window", "mirror_axes", [5]), ["window.mirror_axes[0]"]),
        (put("window", "step_size", 0), ["window.step_size"]),
        (put("aggregation", "domain", "votes"), ["aggregation.domain"]),
        (put("resampling", "order", 9), ["resampling.order"]),
        (put("source", "folds", []), ["source.folds"]),
        (drop("source", "trainer"), ["source.trainer", "field required"]),
        (drop("labels"), ["labels", "field required"]),
        (put("normalize_after_resampling", "no"), ["normalize_after_resampling"]),
        (put("graphs", []), ["graphs", "holds no graph"]),
        (put("graphs", 0, "sha256", "abc"), ["graphs[0].sha256"]),
        (put("graphs", 0, "precision", "fp8"), ["graphs[0].precision", "'fp8'"]),
        (put("graphs", 0, "file", "../fold_0.onnx"), ["graphs[0].file"]),
        (put("graphs", 0, "file", "/etc/passwd"), ["graphs[0].file"]),
        (put("file_ending", "/../../victim/x.nii.gz"), ["file_ending"]),
        (put("file_ending", ".nii.gz\n"), ["file_ending"]),
        (put("file_ending", ".exe"), ["file_ending"]),
        (put("graphs", 0, "file", "a/../../x"), ["graphs[0].file"]),
        (put("graphs", 0, "file", "fold_0.onnx\n"), ["graphs[0].file"]),
        (put("graphs", 0, "file", "other.onnx"), ["graphs[0].file", "other.onnx is missing"]),
        (put("graphs", 0, "fold", "9"), ["graphs[0].fold", "'9' is not among source.folds (0, 1)"]),
        (put("graphs", 1, "fold", "0"), ["fold 0 has two fp32 graphs"]),
        (put("graphs", 1, "file", "fold_0.onnx"), ["fold_0.onnx is listed twice"]),
        (put("outputs", []), ["outputs", "no output is kept"]),
        (put("outputs", 0, "keep", False), ["no output is kept"]),
        (put("outputs", 0, "shape", [1, 3, 8, 12, 17]), ["outputs.logits.shape", "(1, 3, 8, 12, 16)"]),
        (put("labels", "channel_values", [0, 1]), ["outputs.logits.shape", "(1, 2, 8, 12, 16)"]),
        (put("compiled", 0, "file", "compiled/none.om"), ["compiled[0].file", "missing"]),
        (put("compiled", 0, "graph", "fold_7.onnx"), ["compiled[0].graph", "not a graph of this bundle"]),
        (put("compiled", 0, "file", "compiled"), ["compiled[0].file", "not a file"]),
    ],
)
def test_a_damaged_field_is_named(folder: Path, change: Callable[[dict[str, Any]], None], words: list[str]) -> None:
    edit(folder, change)
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    message = str(caught.value)
    assert "bundle.json" in message
    for word in words:
        assert word.lower() in message.lower(), message
    assert "pydantic" not in message
    assert "\n" not in message.replace("'fold_0.onnx\\n'", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ["not JSON", "line 1"]),
        (b'{"schema_version": 1,', ["not JSON", "line 1, column"]),
        (b"\xff\xfe\x00", ["not UTF-8"]),
        (b"[1]", ["a JSON list", "expected an object"]),
        (b'{"schema_version": 1, "schema_version": 1}', ["'schema_version' stands twice"]),
        (b'{"schema_version": NaN}', ["NaN"]),
        (b"[" * 200_000, ["not a specification"]),
        (b" " * ((1 << 24) + 1), ["bytes"]),
    ],
)
def test_a_damaged_json_file_is_explained(folder: Path, text: bytes, words: list[str]) -> None:
    (folder / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    for word in words:
        assert word in str(caught.value)
    assert str(folder / "bundle.json") in str(caught.value)


def test_many_faults_are_counted_not_poured_out(folder: Path) -> None:
    edit(folder, lambda record: record.update({f"extra{i}": i for i in range(12)}))
    with pytest.raises(BundleError, match=r"\(and 7 more\)"):
        Bundle.load(folder)


def test_missing_and_empty_files(folder: Path) -> None:
    (folder / "fold_1.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"graphs\[1\].file: fold_1.onnx is empty"):
        Bundle.load(folder)
    (folder / "fold_1.onnx").unlink()
    with pytest.raises(BundleError, match=r"graphs\[1\].file: fold_1.onnx is missing"):
        Bundle.load(folder)


def test_hashes_are_checked_on_request(folder: Path) -> None:
    data = bytearray((folder / "fold_1.onnx").read_bytes())
    data[0] ^= 1
    (folder / "fold_1.onnx").write_bytes(data)
    Bundle.load(folder)
    with pytest.raises(BundleError, match=r"graphs\[1\].sha256: fold_1.onnx is"):
        Bundle.load(folder, verify_hashes=True)


def test_an_artefact_of_an_older_graph_is_found(folder: Path) -> None:
    edit(folder, put("compiled", 0, "graph_sha256", "1" * 64))
    with pytest.raises(BundleError, match=r"compiled\[0\].graph_sha256.*compile again"):
        Bundle.load(folder, verify_hashes=True)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_may_not_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(b"secret")
    (folder / "fold_0.onnx").unlink()
    (folder / "fold_0.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"graphs\[0\].file: fold_0.onnx is a link out of the bundle"):
        Bundle.load(folder)
    (folder / "fold_0.onnx").unlink()
    (folder / "fold_0.onnx").symlink_to("fold_0.onnx")
    with pytest.raises(BundleError, match="missing"):
        Bundle.load(folder)
    (folder / "fold_0.onnx").unlink()
    (folder / "real.onnx").write_bytes(b"graph0")
    (folder / "fold_0.onnx").symlink_to("real.onnx")
    Bundle.load(folder)
    (tmp_path / "link").symlink_to(folder)
    Bundle.load(tmp_path / "link")


@pytest.mark.parametrize(
    ("name", "words"), [("nothing", "does not exist"), ("empty", "has no bundle.json"), ("x.txt", "is not a bundle")]
)
def test_what_is_not_a_bundle(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(BundleError, match=words):
        Bundle.load(tmp_path / name)


def test_save_refuses_and_keeps_the_old_file(folder: Path) -> None:
    before = (folder / "bundle.json").read_bytes()
    spec = Bundle.load(folder).spec
    with pytest.raises(BundleError, match="holds no graph"):
        bundles.save(spec.model_copy(update={"graphs": (), "compiled": ()}), folder)
    graph = spec.graphs[0].model_copy(update={"verification": {"max_diff": float("nan")}})
    with pytest.raises(BundleError, match="NaN"):
        bundles.save(spec.model_copy(update={"graphs": (graph, spec.graphs[1])}), folder)
    assert (folder / "bundle.json").read_bytes() == before


# ---- a lone .onnx ----------------------------------------------------------------------------------------------------


def lone(path: Path, spec: VolumeSpec, **changes: str) -> Path:
    entries = bundles.embedded(spec, "1", "fp32", 17)
    path.write_bytes(onnx_bytes({"other": "x", **entries, **changes}))
    return path


@pytest.mark.parametrize("name", ["a.onnx", "Leber & Milz.onnx", ".hidden.onnx", "A.ONNX"])
def test_lone_file(tmp_path: Path, name: str) -> None:
    spec = with_outputs(tiny_spec(folds=("0", "1")))
    path = lone(tmp_path / name, spec)
    bundle = Bundle.load(path, verify_hashes=True)
    assert bundle.folds == ("1",)
    assert bundle.graph_path("1") == path
    assert bundle.spec.graphs[0].sha256 == sha256_file(path)
    assert bundle.spec.graphs[0].opset == 17
    assert bundle.spec.model_copy(update={"graphs": ()}) == spec


def test_lone_file_faults(tmp_path: Path) -> None:
    spec = with_outputs(tiny_spec(folds=("0", "1")))
    path = tmp_path / "a.onnx"
    path.write_bytes(onnx_bytes({}))
    with pytest.raises(BundleError, match="carries no specification"):
        Bundle.load(path)
    with pytest.raises(BundleError, match="schema_version is 3"):
        Bundle.load(lone(path, spec, **{bundles.SPEC_KEY: '{"schema_version": 3}'}))
    with pytest.raises(BundleError, match=r"\[offline_infer.graph\]: precision"):
        Bundle.load(lone(path, spec, **{bundles.GRAPH_KEY: '{"fold": "1"}'}))
    with pytest.raises(BundleError, match=r"graphs\[0\].fold: '5'"):
        Bundle.load(lone(path, spec, **{bundles.GRAPH_KEY: '{"fold": "5", "precision": "fp32"}'}))
    with pytest.raises(BundleError, match="outputs"):
        Bundle.load(lone(path, tiny_spec(folds=("1",))))


def test_a_cut_or_foreign_file_is_never_a_traceback(tmp_path: Path) -> None:
    spec = with_outputs(tiny_spec(folds=("0", "1")))
    whole = lone(tmp_path / "a.onnx", spec).read_bytes()
    path = tmp_path / "cut.onnx"
    for end in [0, 1, 2, 3, 5, 50, 204, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(BundleError, match=r"cut\.onnx"):
            Bundle.load(path)
    rng = random.Random(0)
    for _ in range(300):
        path.write_bytes(rng.randbytes(rng.randrange(200)))
        with pytest.raises(BundleError):
            Bundle.load(path)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(BundleError):
            Bundle.load(path)


def test_metadata_agrees_with_the_onnx_package(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    value = helper.make_tensor_value_info("x", 1, [1, 2])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value], [helper.make_tensor_value_info("y", 1, [1, 2])]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", 13)]
    )
    helper.set_model_props(model, {"a": "ü" * 300, "b": "", "offline_infer.spec": "{}"})
    onnx.save(model, tmp_path / "m.onnx")
    metadata = read_metadata(tmp_path / "m.onnx")
    assert metadata.opset == 13
    assert metadata.entries == {"a": "ü" * 300, "b": "", "offline_infer.spec": "{}"}


def test_reading_a_bundle_loads_nothing_heavy(folder: Path, tmp_path: Path) -> None:
    path = lone(tmp_path / "a.onnx", with_outputs(tiny_spec(folds=("0", "1"))))
    code = (
        "import sys; from offline_infer.bundles.bundle import Bundle; "
        f"Bundle.load({str(folder)!r}); Bundle.load({str(path)!r}); "
        "print([m for m in ('onnx', 'torch', 'openvino', 'onnxruntime', 'SimpleITK', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


# ---- making a bundle -------------------------------------------------------------------------------------------------


def make(target: Path, *, overwrite: bool = False, classes: int = 3, fail: BaseException | None = None) -> None:
    with bundles.creating(target, overwrite=overwrite) as folder:
        bundles.save(with_graphs(with_outputs(tiny_spec(classes=classes)), folder), folder)
        if fail is not None:
            raise fail


def test_creating_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out" / "b"
    with pytest.raises(KeyboardInterrupt):
        make(target, fail=KeyboardInterrupt())
    assert list(target.parent.iterdir()) == []
    make(target)
    assert Bundle.load(target, verify_hashes=True).spec.labels.channels == 3
    assert [p.name for p in target.parent.iterdir()] == ["b"]


def test_an_existing_bundle_needs_overwrite_and_survives_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "b"
    make(target)
    with pytest.raises(UsageError, match="overwrite-bundle"):
        make(target, classes=4)
    with pytest.raises(RuntimeError):
        make(target, classes=4, overwrite=True, fail=RuntimeError())
    assert Bundle.load(target).spec.labels.channels == 3
    make(target, classes=4, overwrite=True)
    assert Bundle.load(target).spec.labels.channels == 4
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_other_peoples_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "bundle.json").write_text("{")
    for name, words in [("thesis", "not a bundle"), ("file", "is a file"), ("damaged", "remove the folder yourself")]:
        with pytest.raises(UsageError, match=words):
            make(tmp_path / name, overwrite=True)
    target = tmp_path / "b"
    make(target)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        make(target, overwrite=True)
    assert (target / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")


def test_an_invalid_bundle_is_not_put_in_place(tmp_path: Path) -> None:
    def make_nothing() -> None:
        with bundles.creating(tmp_path / "b") as folder:
            (folder / "fold_0.onnx").write_bytes(b"x")

    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        make_nothing()
    assert list(tmp_path.iterdir()) == []
