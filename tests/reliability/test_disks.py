"""Disks that are full, read-only or gone, clocks that jump, and memory that runs out: a clean stop, then the same command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command_line import LIMIT_S, assert_orderly, run, start
from kill_routes import ROUTES, Job, half_written, results
from killing import finish, programs
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.bundles.bundle import save
from offline_infer.cli import main
from offline_infer.errors import DiskBudgetError, ImageError
from offline_infer.files import is_partial, replacing
from offline_infer.images import write_labels
from offline_infer.proof.evaluation.pool import raise_if_fatal

CASES = 5
SHAPE = (10, 14, 18)
ENGINE = ["--engine", "fake", "--quiet"]
DISK = 1 << 20


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, bytes]]:
    """A bundle, its cases, and the results of an undisturbed run."""
    folder = tmp_path_factory.mktemp("job")
    bundle = folder / "bundle"
    bundle.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), bundle), bundle)
    for number in range(CASES):
        write_case(folder / "in", f"case_{number}", shape=SHAPE, seed=number)
    assert main(["predict", str(bundle), str(folder / "in"), str(folder / "out"), *ENGINE]) == 0
    return bundle, folder / "in", maps(folder / "out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        options = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
        mounted = subprocess.run(options, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz") if not is_partial(path)}


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk up to some bytes; returns the file that does it."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return ballast


def command(route: str, job: tuple[Path, Path, dict[str, bytes]], work: Path, out: Path) -> list[str]:
    bundle, images, _ = job
    if route == "predict":
        return ["predict", str(bundle), str(images), str(out), *ENGINE]
    return ["staged", str(bundle), str(images), str(work), str(out), "--scratch", "3MB", *ENGINE]


@pytest.mark.parametrize("route", ["predict", "staged"])
def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(
    route: str, job: tuple[Path, Path, dict[str, bytes]], small_disk: Path, tmp_path: Path
) -> None:
    out = small_disk / "out"
    arguments = command(route, job, tmp_path / "work", out)
    ballast = fill(small_disk, leave=8 * 4096)  # a result and its record take some blocks
    assert_orderly(*run(arguments), "disk", statuses=(2,))
    finished = maps(out)
    assert len(finished) < CASES
    assert finished.items() <= job[2].items()
    assert not [path for path in out.rglob("*") if is_partial(path)]
    ballast.unlink()
    assert run(arguments) == (0, "")
    assert maps(out) == job[2]


def test_a_work_folder_on_a_disk_that_is_too_small_is_refused_before_it_is_filled(
    job: tuple[Path, Path, dict[str, bytes]], small_disk: Path, tmp_path: Path
) -> None:
    fill(small_disk, leave=30_000)
    bundle, images, _ = job
    status = run(["preprocess", str(bundle), str(images), str(small_disk / "work"), "--quiet"])
    assert_orderly(*status, "disk", statuses=(2,))
    status = run(command("staged", job, small_disk / "rounds", tmp_path / "out"))
    assert_orderly(*status, statuses=(2, 3))
    assert shutil.disk_usage(small_disk).free > 0


def write_megabyte(target: Path) -> None:
    """Write numbers that do not compress, 1.2 MB, in the format of the target's ending."""
    labels = np.random.default_rng(0).integers(0, 250, (20, 200, 300)).astype(np.uint8)
    if target.suffix == ".npy":
        with replacing(target) as temporary, temporary.open("wb") as stream:
            np.save(stream, labels)
    elif target.suffix == ".npz":
        with replacing(target) as temporary:
            np.savez_compressed(temporary, labels=labels)
    else:
        unit = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
        write_labels(target, labels, ImageGeometry(labels.shape, (1.0,) * 3, (0.0,) * 3, unit, (1.0,) * 3))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".tif", ".npy", ".npz"])
def test_a_full_disk_is_recognised_behind_a_library_that_does_not_name_it(ending: str, small_disk: Path) -> None:
    target = small_disk / f"case{ending}"
    with pytest.raises((ImageError, OSError)) as failed:
        write_megabyte(target)
    with pytest.raises(DiskBudgetError, match="the disk is full while working on case a"):
        raise_if_fatal(failed.value, "a", "predict")
    assert not target.exists()
    assert not [path for path in small_disk.iterdir() if is_partial(path)]


@pytest.mark.parametrize("name", ["probabilities", "ensemble", "image", "sweep"])
@pytest.mark.parametrize("harm", ["full", "read-only"])
def test_a_disk_that_takes_no_more_stops_every_route_and_the_same_command_goes_on(
    name: str, harm: str, small_disk: Path, tmp_path: Path
) -> None:
    route = next(route for route in ROUTES if route.name == name)
    with programs(tmp_path) as server:
        route.prepare(Job(server, tmp_path))
        place = small_disk / "place"
        (arguments,) = route.commands(tmp_path, place)
        finish(server, arguments, route.environment)
        wanted = results(route, place)
        shutil.rmtree(place)
        if harm == "full":
            ballast = fill(small_disk, leave=2 * 4096)  # less than the files of three cases
        else:
            place.mkdir()
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        server.start(arguments, route.environment)
        status = server.wait()
        assert status is not None
        assert_orderly(status, server.said(), statuses=(2,))
        assert not half_written(place, wanted, route)
        assert not [path for path in small_disk.rglob("*") if is_partial(path)]
        if harm == "full":
            ballast.unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        finish(server, arguments, route.environment)
        assert results(route, place) == wanted


@pytest.mark.parametrize("name", ["evaluate", "compare", "statistics", "report"])
def test_a_report_for_a_full_disk_is_absent_or_whole(
    name: str,
    job: tuple[Path, Path, dict[str, bytes]],
    small_disk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for file, content in job[2].items():
        (labels / file).write_bytes(content)
    target = small_disk / {"report": "page.html", "statistics": "figures.csv"}.get(name, "figures.json")
    sources = [str(labels)] if name in ("statistics", "report") else [str(labels), str(labels)]
    if name == "report":
        assert main(["evaluate", str(labels), str(labels), "-o", str(labels / "summary.json"), "--quiet"]) == 0
    arguments = [name, *sources, "-o", str(target), "--quiet"]
    ballast = fill(small_disk, leave=0)
    capsys.readouterr()
    assert_orderly(main(arguments), capsys.readouterr().err, "no space left", statuses=(2,))
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast"]
    ballast.unlink()
    assert main(arguments) == 0
    assert target.stat().st_size


@pytest.mark.parametrize("route", ["predict", "staged"])
def test_a_read_only_folder_is_refused_by_name(
    route: str, job: tuple[Path, Path, dict[str, bytes]], small_disk: Path, tmp_path: Path
) -> None:
    out = small_disk / "out"
    out.mkdir()
    arguments = command(route, job, tmp_path / "work", out)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_orderly(*run(arguments), "out", "ead-only file system", statuses=(2,))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert run(arguments) == (0, "")
    assert maps(out) == job[2]


@pytest.mark.parametrize("route", ["predict", "staged"])
def test_a_folder_that_vanishes_stops_the_run(
    route: str, job: tuple[Path, Path, dict[str, bytes]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(route, job, tmp_path / "work", out)
    process = start([*arguments, "--engine-option", "sleep=0.02"])
    try:
        until = time.monotonic() + LIMIT_S
        while not maps(out) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        out.rename(tmp_path / "elsewhere")
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert_orderly(process.returncode, said, "out", statuses=(2,))
    assert maps(tmp_path / "elsewhere").items() <= job[2].items()
    assert not out.exists(), "results of one run lie in two folders"
    assert run(arguments) == (0, "")
    assert maps(out) == job[2]


@pytest.mark.parametrize(
    ("name", "folder", "share"), [("streaming", "out", 0.5), ("streaming", "out", 0.85), ("staged", "work", 0.4)]
)
def test_what_is_written_after_a_folder_vanished_does_not_stay_in_another(
    name: str, folder: str, share: float, tmp_path: Path
) -> None:
    """At a file operation: behind the look whether the folder is still there, and where the list of the run is written."""
    route = next(route for route in ROUTES if route.name == name)
    place, away = tmp_path / "place", tmp_path / "away"
    with programs(tmp_path) as server:
        route.prepare(Job(server, tmp_path))
        (arguments,) = route.commands(tmp_path, place)
        finish(server, arguments, route.environment)
        wanted, moment = results(route, place), int(server.events() * share)
        shutil.rmtree(place)
        server.start(arguments, route.environment, moment, ("move", str(place / folder), str(away)))
        status = server.wait()
        assert status is not None
        assert_orderly(status, server.said(), "removed, replaced or unmounted", statuses=(2,))
        assert not [path for path in (place / folder).rglob("*") if path.is_file()]
        shutil.rmtree(place / folder, ignore_errors=True)
        away.rename(place / folder)
        assert not half_written(place, wanted, route)
        finish(server, arguments, route.environment)
        assert results(route, place) == wanted


@pytest.mark.parametrize("route", ["predict", "staged"])
def test_a_clock_that_jumps_changes_nothing(
    route: str, job: tuple[Path, Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumps = time.time, [0]

    def jumping() -> float:
        jumps[0] += 1
        return real() + (-1) ** jumps[0] * 4e7 * jumps[0]

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: max(int(jumping() * 1e9), 0))
    arguments = command(route, job, tmp_path / "work", tmp_path / "out")
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert maps(tmp_path / "out") == job[2]


LITTLE_MEMORY = """
import os, resource, sys
import offline_infer.predict.folder, offline_infer.staging.rounds, offline_infer.images.nibabel_volume, SimpleITK
from offline_infer.cli import main
from offline_infer.engines import fake
fake.register()
with open("/proc/self/statm") as stream:
    held = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (held + (256 << 20), resource.RLIM_INFINITY))
sys.exit(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a limit on the address space")
@pytest.mark.parametrize("route", ["predict", "staged", "evaluate"])
def test_a_case_that_does_not_fit_the_memory_fails_alone(
    route: str, job: tuple[Path, Path, dict[str, bytes]], tmp_path: Path
) -> None:
    bundle, images, wanted = job
    large = sitk.Image([400, 400, 400], sitk.sitkUInt8)
    large.SetSpacing([1.5] * 3)
    if route == "evaluate":
        for folder in ("labels", "out"):
            (tmp_path / folder).mkdir()
            for file, content in wanted.items():
                (tmp_path / folder / file).write_bytes(content)
            sitk.WriteImage(large, str(tmp_path / folder / "large.nii.gz"))
        arguments = ["evaluate", str(tmp_path / "out"), str(tmp_path / "labels"), "--quiet"]
    else:
        shutil.copytree(images, tmp_path / "in")
        sitk.WriteImage(large, str(tmp_path / "in" / "large_0000.nii.gz"))
        arguments = command(route, (bundle, tmp_path / "in", wanted), tmp_path / "work", tmp_path / "out")
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    status, said = run(arguments, program=LITTLE_MEMORY, environment=environment)
    assert_orderly(status, said, "large", statuses=(3,))
    if route != "evaluate":
        assert maps(tmp_path / "out") == wanted
        os.unlink(tmp_path / "in" / "large_0000.nii.gz")
        write_case(tmp_path / "in", "large", shape=SHAPE, seed=9)
        assert run(arguments) == (0, "")
        assert (
            np.asarray(sitk.GetArrayViewFromImage(sitk.ReadImage(str(tmp_path / "out" / "large.nii.gz")))).shape
            == SHAPE
        )
