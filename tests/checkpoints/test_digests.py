"""Digests of checkpoint files: recorded, compared before anything is interpreted."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_samples import v1_folder, v2_folder
from hostile_checkpoints import PAYLOADS
from test_archive import pack

from offline_infer.checkpoints import read_checkpoint
from offline_infer.checkpoints.digests import sha256
from offline_infer.errors import CheckpointError, UsageError

pytest.importorskip("torch")

WEIGHTS = "fold_0/model_final_checkpoint.model"
OTHER = "0" * 64


def test_a_changed_weight_of_a_legacy_file_is_noticed_by_its_digest_alone(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path, legacy=True)
    published = sha256(folder / WEIGHTS)
    good = read_checkpoint(folder, expect_sha256=[published.upper()])
    data = bytearray((folder / WEIGHTS).read_bytes())
    weight = good.load_weights("0")["seg_outputs.0.weight"]
    data[data.index(weight.tobytes()) + 3] ^= 0x80
    (folder / WEIGHTS).write_bytes(bytes(data))
    changed = read_checkpoint(folder)
    assert (changed.load_weights("0")["seg_outputs.0.weight"] != weight).any()
    with pytest.raises(CheckpointError, match=rf"expected {published}; it is not the file that was published"):
        read_checkpoint(folder, expect_sha256=[f"sha256:{published}"])


def test_the_digest_is_compared_before_the_file_is_interpreted(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path)
    (folder / WEIGHTS).write_bytes(PAYLOADS["REDUCE"])
    with pytest.raises(CheckpointError, match="it is not the file that was published"):
        read_checkpoint(folder, expect_sha256=[OTHER])


def test_every_fold_that_is_used_has_to_be_among_the_expected(tmp_path: Path) -> None:
    folder = v2_folder(tmp_path, folds=("fold_0", "fold_1"))
    digests = [sha256(folder / f"fold_{fold}/checkpoint_final.pth") for fold in (0, 1)]
    read_checkpoint(folder, expect_sha256=digests)
    read_checkpoint(folder, folds=["1"], expect_sha256=digests[1:])
    with pytest.raises(CheckpointError, match=r"fold_0.checkpoint_final\.pth has the SHA-256"):
        read_checkpoint(folder, expect_sha256=digests[1:])


def test_an_archive_may_be_expected_as_a_whole(tmp_path: Path) -> None:
    v2_folder(tmp_path / "models")
    packed = pack(tmp_path / "models", tmp_path / "model.zip")
    assert read_checkpoint(packed, expect_sha256=[sha256(packed)]).spec.source.folds
    with pytest.raises(CheckpointError, match="it is not the file that was published"):
        read_checkpoint(packed, expect_sha256=[OTHER])


def test_something_else_than_a_digest_is_a_wrong_option(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        read_checkpoint(v1_folder(tmp_path), expect_sha256=["abc"])


def test_every_file_that_was_read_is_recorded(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path / "one", folds=("fold_0", "fold_1"))
    files = read_checkpoint(folder).spec.source.files
    assert [file.path for file in files] == [f"fold_{n}/model_final_checkpoint.model.pkl" for n in (0, 1)] + [
        "plans.pkl"
    ]
    assert all(file.sha256 == sha256(folder / file.path) for file in files)
    files = read_checkpoint(v2_folder(tmp_path / "two")).spec.source.files
    assert [file.path for file in files] == ["plans.json", "dataset.json"]


def test_weights_without_checksums_are_said_to_have_none(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path / "old", legacy=True)
    (note,) = [note for note in read_checkpoint(folder).notes if "checksum" in note]
    assert sha256(folder / WEIGHTS) in note
    assert not read_checkpoint(folder, expect_sha256=[sha256(folder / WEIGHTS)]).notes
    assert not read_checkpoint(v1_folder(tmp_path / "new")).notes


def test_a_file_that_changes_between_reading_and_loading_is_refused(tmp_path: Path) -> None:
    folder = v2_folder(tmp_path)
    description = read_checkpoint(folder)
    path = folder / "fold_0/checkpoint_final.pth"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        description.load_weights("0")


# ---- names for labels ----


def test_labels_are_named_at_export(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path)
    names = read_checkpoint(folder, labels={"tumour": 2, "liver": 1}).spec.labels.names
    assert names == {"background": 0, "liver": 1, "tumour": 2}
    assert list(names) == ["background", "liver", "tumour"]
    (folder / "dataset.json").write_text('{"labels": {"0": "background", "1": "a", "2": "b"}}')
    assert read_checkpoint(folder, labels={"liver": 1, "tumour": 2, "background": 0}).spec.labels.names["liver"] == 1
    assert read_checkpoint(folder).spec.labels.names == {"background": 0, "a": 1, "b": 2}


@pytest.mark.parametrize(
    "labels",
    [
        {"liver": 1},
        {"liver": 1, "tumour": 3},
        {"liver": 1, "tumour": 2, "x": 3},
        {"": 1, "b": 2},
        {"a\n": 1, "b": 2},
        {"background": 1, "b": 2},
        {"a": 1, "b": 1},
    ],
)
def test_labels_have_to_name_every_class_once(tmp_path: Path, labels: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"do not name every foreground label once; this model has 1, 2 .*name-labels"):
        read_checkpoint(v1_folder(tmp_path), labels=labels)


def test_nnunet_v2_needs_no_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"names its labels in dataset\.json"):
        read_checkpoint(v2_folder(tmp_path), labels={"liver": 1, "tumour": 2})
