"""The same export again, as after a kill behind its last step: what is there stays, if it is what would be made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoint_samples import v2_folder

from offline_infer.cli import main
from offline_infer.errors import UsageError
from offline_infer.events import Event
from offline_infer.export import ExportOptions, export_bundle

pytest.importorskip("torch")
pytest.importorskip("onnx")

QUICK = ExportOptions(verify=False)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_the_same_command_again_ends_well_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(v2_folder(tmp_path / "model")), "-o", str(tmp_path / "out" / "b")]
    assert main(command) == 0
    before = stamps(tmp_path / "out" / "b")
    capsys.readouterr()
    assert main(command) == 0
    assert "was there, the same checkpoint and settings" in "".join(capsys.readouterr())
    assert stamps(tmp_path / "out" / "b") == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_another_checkpoint_or_setting_is_refused_with_the_difference(tmp_path: Path) -> None:
    model, bundle = v2_folder(tmp_path / "model"), tmp_path / "b"
    export_bundle(model, bundle, options=QUICK)
    before = stamps(bundle)
    for options, told in (
        (ExportOptions(verify=False, opset=16), r"graphs\[0\]\.opset is 17, would be 16"),
        (ExportOptions(verify=False, precision="fp16"), r"graphs\[0\]\.precision is 'fp32', would be 'fp16'"),
        (ExportOptions(), r"graphs\[0\]\.verified is False, would be True"),
    ):
        with pytest.raises(UsageError, match=told):
            export_bundle(model, bundle, options=options)
    other = v2_folder(tmp_path / "other", folds=("fold_0", "fold_1"))
    shutil.copyfile(other / "fold_1" / "checkpoint_final.pth", model / "fold_0" / "checkpoint_final.pth")
    events: list[Event] = []
    with pytest.raises(UsageError, match=r"source\.folds\[0\]\.sha256 is .*overwrite-bundle"):
        export_bundle(model, bundle, options=QUICK, sink=events.append)
    assert not any(event.kind == "progress" for event in events)  # refused before any work
    assert stamps(bundle) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "model", "other"]


@pytest.mark.parametrize("name", ["fold_0.onnx", "bundle.json"])
def test_a_damaged_bundle_is_not_taken_for_done(tmp_path: Path, name: str) -> None:
    model, bundle = v2_folder(tmp_path / "model"), tmp_path / "b"
    export_bundle(model, bundle, options=QUICK)
    with (bundle / name).open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(UsageError, match="damaged"):
        export_bundle(model, bundle, options=QUICK)
    export_bundle(model, bundle, options=ExportOptions(verify=False, overwrite=True))
