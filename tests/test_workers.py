"""Processes that make calls: what happens to a call whose process dies, is stopped or never begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from offline_infer.workers import WorkerDied, in_processes

ONE_AND_THREE = {"1": 10, "3": 30}


def _harmed_once(number: int, marks: Path, harm: str) -> int:
    """The process that is first to come to number 2 is harmed."""
    if number == 2 and not (marks / "harmed").exists():
        (marks / "harmed").touch()
        if harm == "exit":
            os._exit(9)
        os.kill(os.getpid(), getattr(signal, harm))
    return number * 10


class _HarmedOnArrival:
    """Kills the first process that receives it, before the call begins."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def __reduce__(self) -> tuple[object, ...]:
        return _arrive, (self.marks,)


def _arrive(marks: Path) -> int:
    return _harmed_once(2, marks, "SIGKILL") // 10


def _tenfold(number: int) -> int:
    return number * 10


def _always_killed(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * 10


@pytest.mark.parametrize("harm", ["exit", "SIGKILL", "SIGSEGV", "SIGSTOP"])
def test_a_call_whose_process_is_harmed_once_is_made_again(harm: str, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    calls = {str(number): (number, tmp_path, harm) for number in (1, 2, 3)}
    silent_s = 2 if harm == "SIGSTOP" else 600
    answers = dict(
        in_processes(
            _harmed_once, calls, 2, silent_s=silent_s, repeated=lambda name, reason: told.append((name, reason))
        )
    )
    assert answers == {**ONE_AND_THREE, "2": 20}
    assert "2" in [name for name, _ in told]
    expected = {"exit": "exit status 9", "SIGSTOP": "did nothing for 2 s"}.get(harm, harm)
    assert expected in dict(told)["2"]


def test_a_process_that_dies_before_its_call_begins_is_replaced(tmp_path: Path) -> None:
    calls = {"1": (1,), "2": (_HarmedOnArrival(tmp_path),), "3": (3,)}
    assert dict(in_processes(_tenfold, calls, 2)) == {**ONE_AND_THREE, "2": 20}


def test_a_call_whose_process_dies_twice_is_given_up_and_the_others_are_made() -> None:
    answers = dict(in_processes(_always_killed, {str(number): (number,) for number in (1, 2, 3)}, 2))
    given_up = answers.pop("2")
    assert isinstance(given_up, WorkerDied)
    assert "SIGKILL" in str(given_up)
    assert answers == ONE_AND_THREE


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notice is Linux's")
def test_no_process_outlives_the_program_even_while_it_is_busy(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from offline_infer.workers import in_processes\n"
        "def sleep(number):\n"
        "    print(number, flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(in_processes(sleep, {'1': (1,), '2': (2,)}, 2))\n"
    )
    run = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert {run.stdout.readline(), run.stdout.readline()} == {b"1\n", b"2\n"}  # both are busy
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 2
    run.kill()
    run.wait()
    until = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < until
        time.sleep(0.02)
    run.stdout.close()
