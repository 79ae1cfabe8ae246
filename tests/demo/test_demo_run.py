"""The demonstration in a plain install, and a run that goes on where it was interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from offline_infer.bundles.bundle import Bundle
from offline_infer.checkpoints import read_checkpoint
from offline_infer.cli import main
from offline_infer.demo import run
from offline_infer.demo.phantom import make_phantom, write_phantom_case
from offline_infer.errors import ExportError, UsageError
from offline_infer.tasks.records import write_manifest
from offline_infer.workflow import Journey, Outcome

PLAIN = "import sys\nfor name in ('torch', 'onnx', 'matplotlib', 'scipy', 'jinja2', 'onnxruntime'): sys.modules[name] = None\n"


def test_the_shipped_bundle_is_the_shipped_checkpoint() -> None:
    bundle = Bundle.load(run.demo_bundle(), verify_hashes=True)
    source = read_checkpoint(run.demo_checkpoint()).spec
    assert bundle.spec.source.folds == source.source.folds
    assert bundle.spec.labels == source.labels
    assert bundle.spec.window == source.window
    assert (bundle.folder / "MANIFEST.sha256").is_file()  # inspect --verify compares every file with it
    assert all((graph.verification or {}).get("passed") for graph in bundle.spec.graphs)


def test_without_torch_the_bundle_is_copied_and_a_retry_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "demo"
    journeys: list[Journey] = []

    def interrupted(journey: Journey, sink: object) -> Outcome:
        journeys.append(journey)
        assert (journey.output / "bundle" / "bundle.json").is_file()
        raise ExportError("interrupted")

    monkeypatch.setattr(run, "travel", interrupted)
    monkeypatch.setattr(run, "can_export", lambda: False)
    with pytest.raises(ExportError):
        run.run_demo(output, cases=1)
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
    assert len(stamps) == 2
    with pytest.raises(ExportError):  # not refused because the folder exists
        run.run_demo(output, cases=1)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")} == stamps
    with pytest.raises(ExportError):
        run.run_demo(output, cases=1, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")} != stamps
    assert len(journeys) == 3


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="left alone"):
            run.run_demo(tmp_path, overwrite=overwrite)
    assert (tmp_path / "precious").read_text() == "x"


@pytest.mark.slow
def test_the_demonstration_runs_without_any_optional_package(tmp_path: Path) -> None:
    # A short, coarse scan: the full-sized cases are those of `make demo`.
    code = f"""{PLAIN}
from functools import partial
from offline_infer.cli import main
from offline_infer.demo import run
run.make_phantom = partial(run.make_phantom, in_plane_mm=3.0, slice_mm=5.0, coverage_mm=60.0)
sys.exit(main(['demo', '-o', {str(tmp_path / "d")!r}, '--cases', '1']))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "liver" in done.stdout
    assert "no picture was drawn" in done.stderr
    assert (tmp_path / "d" / "summary.json").is_file()
    assert not (tmp_path / "d" / "overlay.png").exists()
    slices = json.loads((tmp_path / "d" / "summary.slices.json").read_text())
    assert all(plane["png"] for plane in slices["cases"][0]["planes"])  # the image lies behind the outlines


def test_labels_of_a_v1_model_are_named_by_the_run_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantom = make_phantom(1)
    write_phantom_case(tmp_path / "images", tmp_path / "labels", "case", phantom)
    spec = Bundle.load(run.demo_bundle()).spec
    write_manifest(tmp_path / "labels", {"task": spec.task, "labels": spec.label_table()}, [])
    assert main(["evaluate", str(tmp_path / "labels"), str(tmp_path / "labels"), "-o", str(tmp_path / "s.json")]) == 0
    assert "tumour" in capsys.readouterr().out
    details = json.loads((tmp_path / "s.details.json").read_text())
    assert [row["name"] for row in details["labels"]] == ["liver", "tumour"]
