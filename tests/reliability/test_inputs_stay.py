"""Inputs are never replaced, nothing is written outside its folder, altered graphs and other settings are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_orderly, run
from conv_bundle import PATCH, conv_bundle, negate_weights
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

from offline_infer.bundles.bundle import save
from offline_infer.cli import main
from offline_infer.folders import RECORDS
from offline_infer.tasks.records import MANIFEST

SHAPE = (10, 14, 18)
FAKE = ["--engine", "fake", "--quiet"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), folder), folder)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *words: str) -> None:
    capsys.readouterr()
    assert_orderly(main(arguments), capsys.readouterr().err, *words, statuses=(2,))


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan_0000.nii.gz"])
@pytest.mark.parametrize("source", [".", "{name}"])
@pytest.mark.parametrize("target", [".", "below", "{name}"])
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--keep"]])
def test_a_source_is_never_replaced(
    name: str,
    source: str,
    target: str,
    more: list[str],
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "in"
    write_case(folder, "scan", shape=SHAPE)
    if name == "scan.nii.gz":
        (folder / "scan_0000.nii.gz").rename(folder / name)
    before = tree(folder)
    place, wanted = (folder / part.format(name=name) for part in (source, target))
    capsys.readouterr()
    status = main(["predict", str(bundle), str(place), str(wanted), *FAKE, *more])
    said = capsys.readouterr().err
    assert before.items() <= tree(folder).items()
    if place.is_dir() or wanted == place:
        assert_orderly(status, said, statuses=(2,))
    elif status:  # scan.nii.gz gives scan.nii.gz; scan_0000.nii.gz may lie beside its result
        assert_orderly(status, said, "would be replaced", statuses=(2,))


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--keep"]])
def test_stage_by_stage_no_source_is_replaced_either(
    more: list[str], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The work folder remembers what its tiles were cut from."""
    folder, work = tmp_path / "in", str(tmp_path / "work")
    write_case(folder, "scan", shape=SHAPE)
    (folder / "scan_0000.nii.gz").rename(folder / "scan.nii.gz")
    (tmp_path / "link").symlink_to(folder)
    before = tree(folder)
    assert main(["preprocess", str(bundle), str(folder / "scan.nii.gz"), work, "--quiet"]) == 0
    assert main(["infer", str(bundle), work, *FAKE]) == 0
    for target in (folder, tmp_path / "link"):
        refused(capsys, ["postprocess", str(bundle), work, str(target), "--quiet", *more], "would be replaced")
    assert tree(folder) == before


def test_a_report_replaces_no_bundle_and_no_record_it_reads(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "in", "a", shape=SHAPE)
    assert main(["predict", str(bundle), str(tmp_path / "in"), str(tmp_path / "out"), *FAKE]) == 0
    shutil.copytree(tmp_path / "out", tmp_path / "labels")
    record = tmp_path / "summary.json"
    mean = {"0": {"Dice": 0.99}, "1": {"Dice": 0.9}}
    record.write_text(json.dumps({"results": {"mean": mean, "all": [{"test": "a", "reference": "a", **mean}]}}))
    before = tree(tmp_path)
    target = str(bundle / "bundle.json")
    refused(capsys, ["compare", str(tmp_path / "out"), str(tmp_path / "labels"), "-o", target], "part of a bundle")
    refused(capsys, ["benchmark", str(bundle), "--engines", "fake", "-o", target], "part of a bundle")
    refused(capsys, ["guide-tables", "--precision", f"NPU={record}", "-o", str(record)], "one of the files to read")
    assert tree(tmp_path) == before


def test_a_reference_is_never_replaced(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path / "in", "a", shape=SHAPE)
    assert main(["predict", str(bundle), str(tmp_path / "in"), str(tmp_path / "out"), *FAKE]) == 0
    shutil.copytree(tmp_path / "out", tmp_path / "labels")
    before = tree(tmp_path / "labels")
    for command in ("evaluate", "compare"):
        target = str(tmp_path / "labels" / "a.nii.gz")
        refused(capsys, [command, str(tmp_path / "out"), str(tmp_path / "labels"), "-o", target, "--quiet"], "a.nii.gz")
    assert tree(tmp_path / "labels") == before


@pytest.mark.parametrize("command", ["predict", "preprocess", "staged", "postprocess", "evaluate", "statistics"])
@pytest.mark.parametrize(
    "ending", ["/../../victim/x.nii.gz", "/x.nii.gz", "../x.nii.gz", ".nii.gz/../../x", "\x00.nii.gz"]
)
def test_a_bundles_file_ending_leads_nowhere(
    command: str, ending: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "in", "a", shape=SHAPE)
    (tmp_path / "victim").mkdir()
    record = json.loads((bundle / "bundle.json").read_text())
    record["file_ending"] = ending
    (bundle / "bundle.json").write_text(json.dumps(record))
    before = tree(tmp_path)
    images, work, out = (str(tmp_path / name) for name in ("in", "work", "out"))
    arguments = {
        "predict": ["predict", str(bundle), images, out, *FAKE],
        "preprocess": ["preprocess", str(bundle), images, work],
        "staged": ["staged", str(bundle), images, work, out, "--scratch", "3MB", *FAKE],
        "postprocess": ["postprocess", str(bundle), work, out],
        "evaluate": ["evaluate", images, images, "--bundle", str(bundle)],
        "statistics": ["statistics", images, "--bundle", str(bundle)],
    }[command]
    refused(capsys, arguments, "file_ending")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("ending", ["/../../victim/x.nii.gz", "../x.nii.gz", "/x.nii.gz"])
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_a_data_sets_file_ending_leads_nowhere(
    command: str, ending: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "in", "a", shape=SHAPE)
    assert main(["predict", str(bundle), str(tmp_path / "in"), str(tmp_path / "out"), *FAKE]) == 0
    described = {"labels": {"background": 0, "l1": 1, "l2": 2}, "channel_names": {"0": "CT"}, "numTraining": 1}
    (tmp_path / "out" / "dataset.json").write_text(json.dumps({**described, "file_ending": ending}))
    before = tree(tmp_path)
    capsys.readouterr()
    status = main([command, str(tmp_path / "out"), str(tmp_path / "out"), "--quiet"])
    said = capsys.readouterr().err
    if status:
        assert_orderly(status, said)
    made = tree(tmp_path).keys() - before.keys()
    assert all(name.startswith("out/summary") for name in made)  # where nnU-Net puts it
    assert before.items() <= tree(tmp_path).items()


HOSTILE_NAMES = ["../x", "../../victim/x", "/tmp/offline_infer_x", "..", ".", "a/b", "", "x\x00y", "a\nb"]


def replaced(value: Any, key: str, name: str) -> Any:
    """The JSON value with another text under every such key."""
    if isinstance(value, dict):
        return {k: name if k == key and isinstance(v, str) else replaced(v, key, name) for k, v in value.items()}
    return [replaced(part, key, name) for part in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle, and a work folder whose items are answered."""
    folder = tmp_path_factory.mktemp("answered")
    bundle = folder / "bundle"
    bundle.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), bundle), bundle)
    write_case(folder / "in", "a", shape=SHAPE)
    assert main(["preprocess", str(bundle), str(folder / "in"), str(folder / "work"), "--quiet"]) == 0
    assert main(["infer", str(bundle), str(folder / "work"), *FAKE]) == 0
    return bundle, folder / "work"


@pytest.mark.parametrize("key", ["case_id", "safe_name", "file", "case"])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_in_a_work_folder_lead_nowhere(
    key: str, name: str, answered: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, pristine = answered
    root = tmp_path / "deep" / "er"
    for command in ("infer", "clean", "postprocess"):
        work = root / command
        shutil.copytree(pristine, work)
        changed = 0
        for path in work.rglob("*.json*"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            made = [json.dumps(replaced(json.loads(line), key, name)) for line in lines if line.strip()]
            changed += made != [json.dumps(json.loads(line)) for line in lines if line.strip()]
            path.write_text("\n".join(made) + "\n")
        if not changed:
            pytest.skip(f"no file of a work folder holds {key}")
        before = tree(tmp_path)
        arguments = {
            "infer": ["infer", str(bundle), str(work), *FAKE],
            "clean": ["clean", str(work), "--apply", "--quiet"],
            "postprocess": ["postprocess", str(bundle), str(work), str(root / "out"), "--quiet"],
        }[command]
        capsys.readouterr()
        status = main(arguments)
        said = capsys.readouterr().err
        if status:
            assert_orderly(status, said)
        now = tree(tmp_path)
        inside = (f"deep/er/{command}/", "deep/er/out/")
        assert {path for path in now if not path.startswith(inside)} == {p for p in before if not p.startswith(inside)}
        assert not Path("/tmp/offline_infer_x.nii.gz").exists()
        if command == "postprocess":
            labels = [path.name for path in (root / "out").glob("*.nii.gz")] if (root / "out").exists() else []
            assert labels in ([], ["a.nii.gz"])


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_negated_weights_are_refused_by_every_command(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a graph once ran under the recorded verification, and every second voxel of its answer was wrong."""
    made = conv_bundle(tmp_path / "bundle")
    bundle = str(made.folder)
    write_case(tmp_path / "in", "a", shape=PATCH)
    images, work, out = (str(tmp_path / name) for name in ("in", "work", "out"))
    how = ["--engine", engine, "--quiet", "--threads", "1"]
    assert main(["preprocess", bundle, images, work, "--quiet"]) == 0
    assert main(["predict", bundle, images, out, *how]) == 0
    negate_weights(made)
    for arguments in (
        ["predict", bundle, images, out, *how, "--overwrite"],
        ["predict", bundle, images, str(tmp_path / "new"), *how],
        ["infer", bundle, work, *how],
        ["staged", bundle, images, str(tmp_path / "rounds"), str(tmp_path / "new"), "--scratch", "3MB", *how],
        ["benchmark", bundle, "--engines", engine, "--precisions", "fp32", "--repeats", "1", "--quiet"],
        ["compare", bundle, "--layers", f"{engine}:fp32", f"{engine}:fp32", "--quiet"],
        ["inspect", bundle, "--verify"],
    ):
        refused(capsys, arguments, "fold_0", "changed")
    assert not list((tmp_path / "new").glob("*.nii.gz"))


def test_results_made_otherwise_are_refused_and_a_mixed_folder_says_so(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        write_case(tmp_path / "in", f"case_{number}", shape=SHAPE, seed=number)
    out = tmp_path / "out"
    command = ["predict", str(bundle), str(tmp_path / "in"), str(out), *FAKE]
    assert main(command) == 0
    first = tree(out)
    refused(capsys, [*command, "--no-tta"], "case_0", "--keep", "--overwrite", "was", "is")
    refused(capsys, [*command, "--step-size", "0.75"], "step_size was not set, is 0.75")
    assert tree(out) == first
    assert main([*command, "--no-tta", "--keep"]) == 0
    assert {name: content for name, content in tree(out).items() if RECORDS not in name} == {
        name: content for name, content in first.items() if RECORDS not in name
    }
    (out / "case_1.nii.gz").unlink()
    assert main([*command, "--no-tta", "--keep"]) == 0  # as after an interruption
    records = {case["case"]: case["record"]["settings"] for case in json.loads((out / MANIFEST).read_text())["cases"]}
    assert records["case_0"] != records["case_1"]
    refused(capsys, command, "1 results", "case_1")
    refused(capsys, [*command, "--no-tta"], "1 results", "case_0")
    assert main([*command, "--overwrite"]) == 0
    records = {case["case"]: case["record"]["settings"] for case in json.loads((out / MANIFEST).read_text())["cases"]}
    assert records["case_0"] == records["case_1"]
    assert main(command) == 0
    write_case(tmp_path / "in", "case_1", shape=SHAPE, seed=7)
    refused(capsys, command, "case_1", "other content")


@pytest.mark.parametrize("name", ["Müller_ß", "患者"])
def test_names_that_the_terminal_cannot_spell(name: str, bundle: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "in", name, shape=SHAPE)
    write_case(tmp_path / "in", f"{name}_broken", shape=SHAPE)
    broken = tmp_path / "in" / f"{name}_broken_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:100])
    spelling = {"PYTHONIOENCODING": "ascii"}
    images, out = str(tmp_path / "in"), str(tmp_path / "out")
    status, said = run(["predict", str(bundle), images, out, "--engine", "fake"], environment=spelling)
    assert_orderly(status, said, "1 of 2 cases failed", statuses=(3,))
    assert said.isascii()
    for command in (["evaluate", out, out, "--json"], ["compare", out, out], ["statistics", out]):
        status, said = run(command, environment=spelling)
        assert status == 0, said
        assert said.isascii()


VICTIMS = [
    "in/a_0000.nii.gz",
    "out/a.nii.gz",
    "out/a.npz",
    "out/offline_infer_run.json",
    "out/dataset.json",
    "out/.offline_infer/a.json",
    "bundle/bundle.json",
]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a bundle, results with probabilities, references and a summary."""
    folder = tmp_path_factory.mktemp("judged")
    bundle = folder / "bundle"
    bundle.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), bundle), bundle)
    write_case(folder / "in", "a", shape=SHAPE)
    out = folder / "out"
    assert main(["predict", str(bundle), str(folder / "in"), str(out), "--save-probabilities", *FAKE]) == 0
    shutil.copytree(out, folder / "labels")
    described = {"labels": {"background": 0, "l1": 1, "l2": 2}, "channel_names": {"0": "CT"}, "numTraining": 1}
    for place in (out / "dataset.json", out / RECORDS / "a.json"):
        place.write_text(json.dumps({**described, "file_ending": ".nii.gz"}))
    summary = str(folder / "summary.json")
    assert main(["evaluate", str(out), str(folder / "labels"), "-o", summary, "--quiet"]) == 0
    return folder


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("way", ["as it is", "through a folder's link"])
def test_a_report_replaces_nothing_but_a_report(
    victim: str, way: str, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record of a benchmark once replaced the patient's scan that it had been measured with."""
    root = tmp_path / "all"
    shutil.copytree(judged, root)
    target = root / victim
    if way != "as it is":
        (tmp_path / "link").symlink_to(target.parent)
        target = tmp_path / "link" / target.name
    before = tree(root)
    out, labels, bundle, image = (str(root / name) for name in ("out", "labels", "bundle", "in/a_0000.nii.gz"))
    for command in (
        ["evaluate", out, labels, "-o", str(target)],
        ["evaluate", out, labels, "-o", str(root / "new.json"), "--csv", str(target)],
        ["compare", out, labels, "-o", str(target)],
        ["report", str(root / "summary.json"), out, "-o", str(target)],
        ["statistics", out, "-o", str(target)],
        ["benchmark", bundle, "--engines", "fake", "--no-record", "--input", image, "-o", str(target)],
        ["guide-tables", "--precision", f"x={root / 'summary.json'}", "-o", str(target)],
    ):
        refused(capsys, [*command, "--quiet"], target.name)
    assert tree(root) == before
    refused(capsys, ["statistics", out, "-o", str(root / "out" / "dataset.csv"), "--quiet"], "dataset.json")
    for _ in range(2):  # an older report may be replaced
        assert main(["compare", out, labels, "-o", str(root / "compared.json"), "--quiet"]) == 0


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--overwrite", "--save-probabilities"]])
def test_an_ensemble_replaces_no_member(
    more: list[str], judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        shutil.copytree(judged / "out", tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "two")
    members = [str(tmp_path / "one"), str(tmp_path / "two")]
    before = tree(tmp_path)
    for output in (tmp_path / "one", tmp_path / "link", tmp_path / "two" / ".." / "two"):
        command = ["ensemble", *members, "-o", str(output), "--bundle", str(judged / "bundle"), "--quiet", *more]
        refused(capsys, command, "one of the members")
    assert tree(tmp_path) == before
