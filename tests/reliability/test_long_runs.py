"""Memory, file descriptors and threads do not grow with the number of predictions, cases or openings.

Short runs of the first kinds by default; ``OFFLINE_INFER_SOAK=4000 python -m pytest -s tests/reliability/test_long_runs.py``
makes four thousand predictions, and of each other kind its share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soaks

PREDICTIONS = int(os.environ.get("OFFLINE_INFER_SOAK", "0"))
SHORT = {"predictions": 80, "cases": 24}
"""Turns in an ordinary run; too few of the other kinds say nothing."""
GROWTH = 1.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", soaks.SOAKS)
def test_the_last_quarter_needs_what_the_second_needed(kind: str, tmp_path: Path) -> None:
    soak = soaks.SOAKS[kind]
    count = round(PREDICTIONS * soak.share) or SHORT.get(kind, 0)
    if not count:
        pytest.skip("takes long: set OFFLINE_INFER_SOAK")
    soak.prepare(tmp_path, count)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, soaks.__file__, kind, str(tmp_path), str(count)], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.monotonic() - begun
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(rows) == count
    quarter = count // 4
    for column, name in enumerate(("resident memory", "file descriptors", "threads")):
        before, after = (_mean(part, column) for part in (rows[quarter : 2 * quarter], rows[-quarter:]))
        print(
            f"{kind}: {count} turns in {seconds:.0f} s: {name} {before:.6g} in the second quarter, {after:.6g} in the last"
        )
        assert after <= GROWTH * before, f"{name} grew from {before:g} to {after:g}"


def _mean(rows: list[list[int]], column: int) -> float:
    return sum(row[column] for row in rows) / len(rows)
