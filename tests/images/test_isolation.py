"""Reading in a child process: the same images, and a crash, a hang or a bomb costs one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from image_samples import DIRECTIONS, dicom_series, save, voxels

from offline_infer.errors import GeometryError, ImageError, UsageError
from offline_infer.images import read_geometry, read_image, read_labels
from offline_infer.images.isolation import can_isolate, current_reader, isolated_readers

pytestmark = pytest.mark.skipif(not can_isolate(), reason="this system has no shared memory that can be passed on")


@pytest.fixture
def isolated() -> Iterator[None]:
    with isolated_readers() as is_isolated:
        assert is_isolated
        yield
    assert current_reader() is None


def children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "reader_process" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_the_same_image_and_frame(tmp_path: Path, reader: str) -> None:
    paths = [save(tmp_path / f"a_000{i}.nii.gz", voxels(seed=i), DIRECTIONS["oblique"]) for i in range(2)]
    here, frame = read_image(paths, reader, channels=2), read_geometry(paths, reader)
    labels, label_frame = read_labels(save(tmp_path / "l.nii.gz", voxels(dtype=np.uint8)), reader)
    with isolated_readers():
        there = read_image(paths, reader, channels=2)
        assert read_geometry(paths, reader) == frame
        same_labels, same_frame = read_labels(tmp_path / "l.nii.gz", reader)
        assert len(children()) == 1  # used again
    assert not children()
    assert (there.geometry, there.notes) == (here.geometry, here.notes)
    assert there.array.dtype == np.float32
    assert there.array.flags.c_contiguous
    assert there.array.flags.writeable
    np.testing.assert_array_equal(there.array, here.array)
    np.testing.assert_array_equal(same_labels, labels)
    assert (same_labels.dtype, same_frame) == (labels.dtype, label_frame)
    there.array[0, 0, 0, 0] += 1  # it outlives the child


def test_a_series(tmp_path: Path, isolated: None) -> None:
    folder = dicom_series(tmp_path / "a", voxels((4, 20, 30)), [(0, 0, 2.5 * i) for i in range(4)])
    assert read_image([folder], "SimpleITKIO").array.shape == (1, 4, 20, 30)


def test_refusals_are_the_same(tmp_path: Path, isolated: None) -> None:
    path = save(tmp_path / "a.nii.gz", voxels())
    with pytest.raises(GeometryError, match="the model expects 3"):
        read_image([path], "SimpleITKIO", channels=3)
    with pytest.raises(UsageError, match="unknown image reader"):
        read_image([path], "OtherIO")
    with pytest.raises(ImageError, match="does not exist"):
        read_image([tmp_path / "b.nii.gz"], "SimpleITKIO")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ImageError, match="too early"):
        read_image([path], "SimpleITKIO")
    with pytest.raises(UsageError, match="no image file"):
        read_image([], "SimpleITKIO")


def test_a_child_that_is_killed_costs_one_file(tmp_path: Path, isolated: None) -> None:
    path = save(tmp_path / "a.nii.gz", voxels())
    read_image([path], "SimpleITKIO")
    (child,) = children()
    os.kill(child.pid, signal.SIGSEGV)
    while child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with pytest.raises(ImageError, match=r"a\.nii\.gz: the process that read it crashed \(SIGSEGV\)"):
        read_image([path], "SimpleITKIO")
    assert read_image([path], "SimpleITKIO").array.shape == (1, 7, 9, 11)


def test_a_file_whose_child_is_killed_once_is_read_again(tmp_path: Path, isolated: None) -> None:
    path = save(tmp_path / "a.nii.gz", voxels())
    expected = read_image([path], "SimpleITKIO").array
    children()[0].kill()
    np.testing.assert_array_equal(read_image([path], "SimpleITKIO").array, expected)


def test_a_file_that_kills_its_child_is_given_up(tmp_path: Path, isolated: None) -> None:
    path = save(tmp_path / "a.nii.gz", voxels())
    over = threading.Event()

    def kill() -> None:
        while not over.is_set():
            for child in children():
                child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(ImageError, match=r"a\.nii\.gz: the process that read it crashed \(SIGKILL\)"):
            read_image([path], "SimpleITKIO")
    finally:
        over.set()
        killer.join()


def test_a_file_that_takes_for_ever_is_given_up(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels())
    with isolated_readers(seconds=20):
        read_image([path], "SimpleITKIO")
    with isolated_readers(seconds=0.001), pytest.raises(ImageError, match="took more than"):
        read_image([path], "SimpleITKIO")
    assert not children()


def test_threads_have_a_child_each(tmp_path: Path, isolated: None) -> None:
    paths = [save(tmp_path / f"{i}.nii.gz", voxels((20, 40, 50), seed=i)) for i in range(6)]
    meet = threading.Barrier(2)

    def read(i: int) -> np.ndarray:
        if i < 2:
            meet.wait()
        return read_image([paths[i]], "SimpleITKIO").array

    with ThreadPoolExecutor(2) as pool:
        for i, array in enumerate(pool.map(read, range(6))):
            np.testing.assert_array_equal(array[0], voxels((20, 40, 50), seed=i).astype(np.float32))
    assert len(children()) <= 2


STUCK = """
import ctypes, sys

def stuck(event, arguments):
    if event == "open" and "endless" in str(arguments[0]):
        ctypes.PyDLL(None).sleep(300)  # without letting go of the interpreter

sys.addaudithook(stuck)
"""
READS = """
import pathlib, sys
from offline_infer.images import read_image
from offline_infer.images.isolation import isolated_readers

with isolated_readers():
    read_image([pathlib.Path(sys.argv[1])], "SimpleITKIO")
    print("ready", flush=True)
    read_image([pathlib.Path(sys.argv[2])], "SimpleITKIO")
"""


def test_a_reader_that_is_stuck_in_native_code_ends_with_its_parent(tmp_path: Path) -> None:
    easy, endless = save(tmp_path / "easy.nii.gz", voxels()), save(tmp_path / "endless.nii.gz", voxels())
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    search = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", READS, str(easy), str(endless)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": search}) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(parent.pid).children()
        assert "reader_process" in " ".join(child.cmdline())
        until = time.monotonic() + 60
        before = child.cpu_times()
        while (now := child.cpu_times()) != before and time.monotonic() < until:
            before = now
            time.sleep(0.2)
        time.sleep(0.5)
        assert parent.poll() is None  # it waits for the child
        parent.kill()
    try:
        gone, _ = psutil.wait_procs([child], timeout=30)
        assert gone
    finally:
        if child.is_running():
            child.kill()


def test_the_end_of_the_thread_that_started_a_child_does_not_end_the_child(tmp_path: Path, isolated: None) -> None:
    path = save(tmp_path / "a.nii.gz", voxels())
    thread = threading.Thread(target=read_image, args=([path], "SimpleITKIO"))
    thread.start()
    thread.join()
    (child,) = children()
    assert read_image([path], "SimpleITKIO").array.shape == (1, 7, 9, 11)
    assert children() == [child]
