"""The same checkpoint and the same versions give the same bundle, to the byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoint_samples import v1_folder, v2_folder

from offline_infer.bundles.bundle import Bundle
from offline_infer.checkpoints.digests import sha256
from offline_infer.export import ExportOptions, export_bundle

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
    assert len(first) == 4  # two graphs, the specification, the manifest


def test_a_bundle_says_what_it_was_made_of_and_with(tmp_path: Path) -> None:
    checkpoint = v2_folder(tmp_path / "model")
    export_bundle(checkpoint, tmp_path / "b", options=ExportOptions(verify=False))
    spec = Bundle.load(tmp_path / "b", verify_hashes=True).spec
    assert spec.source.folds[0].sha256 == sha256(checkpoint / "fold_0/checkpoint_final.pth")
    assert {file.path: file.sha256 for file in spec.source.files} == {
        name: sha256(checkpoint / name) for name in ("plans.json", "dataset.json")
    }
    assert {"torch", "onnx", "numpy", "python", "offline-infer"} <= set(spec.made_with)
