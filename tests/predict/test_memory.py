"""The memory estimate: arithmetic, the choice of a method, and the peak a real process reaches."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.arithmetic import half_precision as half_sums
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.bundles.bundle import save
from offline_infer.errors import CaseError
from offline_infer.predict import memory as module
from offline_infer.predict.memory import Method, SpillFile, choose_method, refuse_hopeless, room_left
from offline_infer.predict.model import load
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.memory import estimate_case

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from offline_infer.images.cases import CaseFiles
from offline_infer.engines import fake
from offline_infer.engines.base import SessionInfo
from offline_infer.predict.model import load
from offline_infer.predict.folder import FolderJob, predict_folder
from offline_infer.tasks.settings import RunSettings

def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

bundle, image, output, accumulate, tta, memory = sys.argv[1:]
events = []
class Session:
    # Answers at no cost with the same smooth objects, so that nearly all memory is the pipeline's own.

    def __init__(self, spec):
        blocks = np.random.default_rng(1).normal(size=(spec.labels.channels, *(n // 16 for n in spec.patch_size)))
        self.logits = np.kron(blocks, np.ones((1, 16, 16, 16))).astype(np.float32)[None]
        self.info = SessionInfo("none", "1", "cpu", "fp32", spec.input_shape, ("logits",))

    def answer(self, batch):
        return {"logits": self.logits}

    def close(self):
        pass


fake.register()
with load(bundle, engine="fake", threads=2) as model:
    model.use_sessions([Session(model.spec)] * len(model.folds))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, so that imports do not count
    before = kib("VmRSS:")
    job = FolderJob([CaseFiles("c", (Path(image),))], Path(output), memory=int(memory) or None)
    report = predict_folder(model, job, RunSettings(tta=tta == "tta", accumulate=accumulate), events.append)
    report.raise_failures()
    print(json.dumps({
        "grown": (kib("VmHWM:") - before) * 1024,
        "memory": report.cases[0].memory,
        "estimate": next(e.data for e in events if e.kind == "estimate"),
    }))
"""


def frame(shape: tuple[int, int, int], spacing: float = 1.5) -> ImageGeometry:
    return ImageGeometry(shape, (spacing,) * 3, (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1), (spacing,) * 3)


def test_the_slab_does_not_grow_with_the_length_of_the_volume() -> None:
    spec = tiny_spec(patch=(16, 32, 32), classes=20)
    short = estimate_case(spec, frame((64, 64, 64)), RunSettings(), 1)
    long = estimate_case(spec, frame((640, 64, 64)), RunSettings(), 1)
    assert long.slab == short.slab
    assert long.parts["image"] == 10 * short.parts["image"]


def test_many_half_precision_sums_take_half_the_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec(patch=(16, 32, 32))
    few = estimate_case(spec, frame((64, 64, 64)), RunSettings(accumulate="float16"), 1)
    monkeypatch.setattr(half_sums, "WIDE_BYTES", 2**10)
    half = estimate_case(spec, frame((64, 64, 64)), RunSettings(accumulate="float16"), 1)
    single = estimate_case(spec, frame((64, 64, 64)), RunSettings(accumulate="float32"), 1)
    assert single.slab == few.slab == 2 * half.slab


def test_the_method_gives_up_reading_ahead_first_and_memory_last() -> None:
    case = estimate_case(tiny_spec(patch=(16, 32, 32)), frame((64, 64, 64)), RunSettings(), 1)
    assert choose_method(case, case, case.beside(case)) == Method()
    assert choose_method(case, case, case.beside(case) - 1) == Method(read_ahead=False)
    assert choose_method(case, None, case.alone) == Method()
    assert choose_method(case, case, case.alone - 1) == Method(read_ahead=False, spill=True)


def test_the_next_case_counts_only_while_the_engine_runs() -> None:
    case = replace(estimate_case(tiny_spec(), frame((40, 40, 40)), RunSettings(), 1), engine=0)
    large = replace(case, prepare=10 * case.alone)
    assert case.beside(large) == max(case.infer, case.finish) + large.prepare
    assert case.beside(None) == case.alone


def test_a_limit_counts_what_the_process_holds_already() -> None:
    assert room_left(1) == 0
    assert 0 < room_left(2**50) < 2**50


def test_a_case_that_no_method_can_hold_is_refused_and_one_that_fits_is_not() -> None:
    most = psutil.virtual_memory().total + psutil.swap_memory().total
    refuse_hopeless(most // 2, held=most // 4)
    with pytest.raises(CaseError, match=r"at least .* MB beside the .* MB of the program"):
        refuse_hopeless(most // 2, held=most)


def test_scratch_arrays_are_zero_and_leave_no_file(tmp_path: Path) -> None:
    with SpillFile(tmp_path) as allocate:
        array = allocate((3, 5), np.dtype(np.float16))
        assert not array.any()
        array[:] = 1
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_sums_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with SpillFile(tmp_path) as allocate:
        array = allocate((3, 5), np.dtype(np.float32))
    assert not isinstance(array, np.memmap)
    assert not array.any()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    spec = with_graphs(with_outputs(tiny_spec(patch=(64, 96, 96), classes=4)), folder)
    save(spec, folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be started anew on Linux only")
@pytest.mark.parametrize(
    ("accumulate", "tta", "spacing"), [("float32", "no", 1.5), ("float16", "no", 1.2), ("float32", "tta", 1.7)]
)
def test_a_process_grows_as_forecast(bundle: Path, tmp_path: Path, accumulate: str, tta: str, spacing: float) -> None:
    found = _run(bundle, tmp_path, accumulate, tta, spacing, 0)
    # The stand-in engine's own memory was taken before the growth was measured.
    assert found["memory"]["peak_without_engine"] == pytest.approx(found["grown"], rel=0.2)
    assert found["estimate"]["peak_without_engine"] == found["memory"]["peak_without_engine"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be started anew on Linux only")
@pytest.mark.parametrize(
    ("patch", "classes", "regions", "folds", "accumulate", "tta", "spacing"),
    [
        ((32, 128, 64), 9, False, ("0",), "float32", "no", 1.3),
        ((48, 64, 160), 24, False, ("0",), "float16", "no", 1.1),
        ((96, 96, 96), 5, True, ("0",), "float32", "no", 2.1),
        ((64, 80, 96), 3, False, ("0", "1", "2"), "float32", "no", 1.5),
        ((64, 96, 80), 6, False, ("0", "1"), "float16", "tta", 1.4),
    ],
)
def test_other_models_grow_as_forecast_too(
    tmp_path: Path,
    patch: tuple[int, ...],
    classes: int,
    regions: bool,
    folds: tuple[str, ...],
    accumulate: str,
    tta: str,
    spacing: float,
) -> None:
    """Chosen after the estimate and its constants, to check them."""
    folder = tmp_path / "other"
    folder.mkdir()
    spec = tiny_spec(patch=patch, classes=classes, regions=regions, folds=folds)
    save(with_graphs(with_outputs(spec), folder), folder)
    found = _run(folder, tmp_path, accumulate, tta, spacing, 0)
    assert found["memory"]["peak_without_engine"] == pytest.approx(found["grown"], rel=0.2)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be started anew on Linux only")
def test_too_little_memory_changes_the_method_not_the_result(bundle: Path, tmp_path: Path) -> None:
    plenty = _run(bundle, tmp_path, "float32", "no", 1.5, 0)
    refused = _attempt(bundle, tmp_path, "float32", "no", 1.5, 2**20, "refused")
    least = re.search(r"the least is (\d+) MB", refused.stderr)
    assert refused.returncode != 0
    assert least is not None, refused.stderr
    # A little more than the least, because a process does not hold the same to the byte twice.
    little = _run(bundle, tmp_path, "float32", "no", 1.5, int(float(least[1]) * 1.03e6), "tight")
    assert not plenty["memory"]["spill"]
    assert little["memory"]["spill"]
    files = [tmp_path / name / "c.nii.gz" for name in ("out", "tight")]
    assert files[0].read_bytes() == files[1].read_bytes()
    names = sorted(p.name for p in (tmp_path / "tight").iterdir())
    assert names == [".offline_infer", "c.nii.gz", "offline_infer_run.json"]


def _run(
    bundle: Path, tmp_path: Path, accumulate: str, tta: str, spacing: float, memory: int, name: str = "out"
) -> dict[str, Any]:
    done = _attempt(bundle, tmp_path, accumulate, tta, spacing, memory, name)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _attempt(
    bundle: Path, tmp_path: Path, accumulate: str, tta: str, spacing: float, memory: int, name: str
) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "c_0000.nii"
    # Objects of sixteen voxels: labels change at their surfaces, not at every voxel.
    blocks = np.random.default_rng(0).normal(size=(9, 20, 20))
    image = sitk.GetImageFromArray((300 + 250 * np.kron(blocks, np.ones((16, 16, 16)))).astype(np.int16))
    image.SetSpacing([spacing] * 3)
    sitk.WriteImage(image, str(path))
    arguments = [str(bundle), str(path), str(tmp_path / name), accumulate, tta, str(memory)]
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_weights_that_the_engine_has_more_of_are_forecast(bundle: Path) -> None:
    """Convolutions with fewer multiplications have up to twice the weights."""
    frame = ImageGeometry(
        (40, 40, 40), (1.0,) * 3, (0.0,) * 3, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (1.0,) * 3
    )
    with load(bundle, engine="fake") as model:
        size = sum((bundle / graph.file).stat().st_size for graph in model.spec.graphs if graph.fold in model.folds)
        before = model.estimate_memory(frame, RunSettings())
        info = replace(model.session_info, weights=1.5)
        model.use_sessions([SimpleNamespace(info=info, close=lambda: None)] * len(model.folds))
        after = model.estimate_memory(frame, RunSettings())
    assert before is not None
    assert after is not None
    assert size > 0
    assert after.engine - before.engine == 2 * (int(1.5 * size) - size)
