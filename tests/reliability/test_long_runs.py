"""Memory, file descriptors and threads do not grow with the number of predictions.

A short run by default; ``OFFLINE_INFER_SOAK=2000 python -m pytest tests/reliability/test_long_runs.py`` makes two thousand, and
two hundred cases in one run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

from offline_infer.bundles.bundle import save

PREDICTIONS = int(os.environ.get("OFFLINE_INFER_SOAK", "80"))
SCRIPT = """
import json, sys, threading, os
from pathlib import Path
import psutil
import offline_infer
from offline_infer.engines import fake
fake.register()
bundle, image, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
process, rows = psutil.Process(), []
with offline_infer.load(bundle, engine="fake", threads=2) as model:
    for number in range(count):
        model.predict(image)
        rows.append((process.memory_info().rss, process.num_fds(), threading.active_count()))
print(json.dumps(rows))
"""


CASES = """
import json, sys, threading
from pathlib import Path
import psutil
from offline_infer.engines import fake
from offline_infer.predict.folder import FolderJob, predict_folder
from offline_infer.predict.model import load
from offline_infer.tasks.settings import RunSettings
fake.register()
process, rows = psutil.Process(), []
def note(event):
    if event.kind == "case-finished":
        rows.append((process.memory_info().rss, process.num_fds(), threading.active_count()))
with load(sys.argv[1], engine="fake", threads=2) as model:
    found = model.task.list_cases(Path(sys.argv[2]), model.spec)
    predict_folder(model, FolderJob(found.cases, Path(sys.argv[2]).with_name("out")), RunSettings(), note)
print(json.dumps(rows))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["predictions", "cases"])
def test_the_last_quarter_needs_what_the_second_needed(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), folder), folder)
    if kind == "predictions":
        image = write_case(tmp_path / "in", "a", shape=(40, 60, 60)).channels[0]
        arguments = [sys.executable, "-c", SCRIPT, str(folder), str(image), str(PREDICTIONS)]
    else:
        for number in range(max(24, PREDICTIONS // 10)):
            write_case(tmp_path / "in", f"case_{number:04d}", shape=(8, 14, 18), seed=number)
        arguments = [sys.executable, "-c", CASES, str(folder), str(tmp_path / "in")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    quarter = len(rows) // 4
    second, last = rows[quarter : 2 * quarter], rows[-quarter:]
    for column, name in enumerate(("resident memory", "file descriptors", "threads")):
        before, after = (sum(row[column] for row in part) / len(part) for part in (second, last))
        assert after <= 1.05 * before, f"{name} grew from {before:g} to {after:g}"
