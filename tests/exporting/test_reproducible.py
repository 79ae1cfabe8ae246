"""The same checkpoint and the same versions give the same bundle, to the byte."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from checkpoint_samples import v1_folder, v2_folder

from offline_infer.bundles.bundle import BILL, Bundle
from offline_infer.bundles.checking import check_bundle
from offline_infer.checkpoints.digests import sha256
from offline_infer.errors import BundleError
from offline_infer.export import ExportOptions, export_bundle
from offline_infer.exporting.materials import ROOTS

pytest.importorskip("torch")
pytest.importorskip("onnx")


def digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("make", [v1_folder, v2_folder])
def test_two_exports_are_equal_to_the_byte(tmp_path: Path, make: object, precision: str) -> None:
    checkpoint = make(tmp_path / "model", folds=("fold_0", "fold_1"))  # type: ignore[operator]
    options = ExportOptions(precision=precision)
    export_bundle(checkpoint, tmp_path / "first", options=options)
    elsewhere = shutil.copytree(checkpoint, tmp_path / "another place" / checkpoint.parent.name / checkpoint.name)
    export_bundle(elsewhere, tmp_path / "deeper" / "second", options=options)
    first = digests(tmp_path / "first")
    assert first == digests(tmp_path / "deeper" / "second")
    assert len(first) == 5  # two graphs, the specification, the bill of materials, the manifest


def test_a_bundle_says_what_it_was_made_of_and_with(tmp_path: Path) -> None:
    checkpoint = v2_folder(tmp_path / "model")
    export_bundle(checkpoint, tmp_path / "b", options=ExportOptions(verify=False))
    spec = Bundle.load(tmp_path / "b", verify_hashes=True).spec
    assert spec.source.folds[0].sha256 == sha256(checkpoint / "fold_0/checkpoint_final.pth")
    assert {file.path: file.sha256 for file in spec.source.files} == {
        name: sha256(checkpoint / name) for name in ("plans.json", "dataset.json")
    }
    assert {"torch", "onnx", "numpy", "python", "offline-infer"} <= set(spec.made_with)


def test_the_bill_of_materials_lists_what_took_part(tmp_path: Path) -> None:
    export_bundle(v2_folder(tmp_path / "model"), tmp_path / "b", options=ExportOptions(verify=False))
    bill = json.loads((tmp_path / "b" / BILL).read_bytes())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert not {"serialNumber", "timestamp"} & {*bill, *bill["metadata"]}
    listed = {each["name"]: each["version"] for each in bill["components"]}
    for name in ("torch", "onnx", "numpy", "openvino", "sympy"):  # the last one is torch's own requirement
        assert listed[name] == importlib.metadata.version(name)
    known = {"model", *(each["bom-ref"] for each in bill["components"])}
    assert {ref for one in bill["dependencies"] for ref in (one["ref"], *one["dependsOn"])} <= known
    (graph,) = bill["metadata"]["component"]["components"]
    assert graph["hashes"][0]["content"] == sha256(tmp_path / "b" / graph["name"])
    (tmp_path / "b" / BILL).write_text("{}")
    with pytest.raises(BundleError, match=BILL):
        check_bundle(Bundle.load(tmp_path / "b"))


def test_roots_are_what_the_project_requires() -> None:
    with (Path(__file__).resolve().parents[2] / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *(line for name in ("export", "ort", "gpu", "cann", "images") for line in extras[name]),
    ]
    names = {re.split(r"[><=!\[]", line)[0].lower() for line in lines}
    assert names <= set(ROOTS)
