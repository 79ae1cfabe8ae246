"""The command line in a process of its own, with the engine for tests, and what an orderly end looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

PROGRAM = """
import sys
from offline_infer.cli import main
from offline_infer.engines import fake
fake.register()
sys.exit(main())
"""
LIMIT_S = 300


def start(arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """Start a command; its standard error is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
        errors="replace",
        start_new_session=True,
    )


def run(
    arguments: Sequence[str], *, program: str = PROGRAM, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command to its end: exit status, and what it wrote to standard error."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        env={**os.environ, **(environment or {})},
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stderr.decode(errors="replace")


def assert_orderly(status: int, said: str, *words: str, statuses: Sequence[int] = (2, 3)) -> None:
    """The command refused or failed in one sentence that holds the words."""
    assert status in statuses, f"exit status {status}: {said}"
    assert "Traceback" not in said, said
    assert "internal error" not in said, said
    errors = [line for line in said.splitlines() if ": error: " in line]
    assert len(errors) == 1, said
    for word in words:
        assert word in said, said
