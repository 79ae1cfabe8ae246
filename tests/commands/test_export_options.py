"""What ``export`` takes on the command line about the checkpoint itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_samples import v1_folder

from offline_infer.bundles.bundle import Bundle
from offline_infer.checkpoints.digests import sha256
from offline_infer.cli import main

pytest.importorskip("torch")

WEIGHTS = "fold_0/model_final_checkpoint.model"


def test_labels_and_the_expected_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = v1_folder(tmp_path, legacy=True)
    command = ["export", str(folder), "-o", str(tmp_path / "b"), "--no-verify", "--labels", "liver=1", "tumour=2"]
    assert main([*command, "--expect-sha256", "0" * 64]) == 2
    told = capsys.readouterr().err
    assert (
        "it is not the file that was published; get the file from its publisher again, or correct --expect-sha256"
        in told
    )
    assert not (tmp_path / "b").exists()
    assert main([*command, "--expect-sha256", sha256(folder / WEIGHTS)]) == 0
    assert Bundle.load(tmp_path / "b").spec.labels.names == {"background": 0, "liver": 1, "tumour": 2}


def test_wrong_labels_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(v1_folder(tmp_path)), "-o", str(tmp_path / "b"), "--labels"]
    assert main([*command, "liver=1"]) == 2
    assert "this model has 1, 2; name every one with --labels NAME=VALUE" in capsys.readouterr().err
    assert main([*command, "liver=1", "liver=2"]) == 2
    assert "one name to several values" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "liver"])
    assert "write NAME=VALUE, for example liver=1" in capsys.readouterr().err


def test_a_note_names_the_option_that_protects_old_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = v1_folder(tmp_path, legacy=True)
    assert main(["export", str(folder), "-o", str(tmp_path / "b"), "--no-verify"]) == 0
    assert f"--expect-sha256 {sha256(folder / WEIGHTS)}" in " ".join(capsys.readouterr().err.split())
