"""Seeded mutants of a RefineMask checkpoint, in both layouts of ``torch.save``: a clear refusal or weights, nothing else.

``OFFLINE_INFER_MUTANTS=1000`` runs a thousand of each.
"""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from checkpoint_mutants import mutant, mutant_count
from limited import limited
from refinemask_samples import config_text, write_checkpoint

from offline_infer.checkpoints.mmdet.reader import read_refinemask, weight_shapes
from offline_infer.errors import CheckpointError

FOCUS = 4096
"""Weights are the middle of a file; what says how to read them is at its ends."""


@pytest.mark.parametrize("layout", ["zip", "legacy", "configuration"])
def test_mutants_are_refused_or_read(tmp_path: Path, layout: str) -> None:
    path = write_checkpoint(tmp_path / "model.pth")
    if layout == "legacy":
        content = torch.load(path, weights_only=True)
        torch.save(content, path, _use_new_zipfile_serialization=False)
    if layout == "configuration":
        path.with_name("config.py").write_text(config_text())
    limited(_read, path, layout)  # what the mutants are made of is read
    numbers = range(mutant_count(15))
    outcomes = limited(_try_all, path, layout, numbers, cpu_seconds=60 + 3 * len(numbers))
    assert sum(outcomes.values()) == len(numbers)
    print(f"RefineMask {layout}: {dict(outcomes)}")


def _read(path: Path, layout: str) -> None:
    assert weight_shapes(path)
    read_refinemask(path, path.with_name("config.py") if layout == "configuration" else None).load_weights()


def _try_all(path: Path, layout: str, numbers: range) -> Counter[str]:
    """Outcome -> how many mutants had it. Raises AssertionError naming the mutants that did something else."""
    target = path.with_name("config.py") if layout == "configuration" else path
    whole = target.read_bytes()
    seed = zlib.crc32(layout.encode())
    outcomes: Counter[str] = Counter()
    faults = []
    for number in numbers:
        target.write_bytes(mutant(whole, seed, number, None if len(whole) < 4 * FOCUS else FOCUS))
        try:
            _read(path, layout)
            outcomes["read"] += 1
        except CheckpointError as error:
            if len(str(error)) > 3000 or not str(error).isprintable():
                faults.append(f"mutant {number}: a message of absurd length or with control characters")
            outcomes["refused"] += 1
        except Exception as error:
            faults.append(f"mutant {number}: {type(error).__name__}: {error!s:.300}")
    assert not faults, f"{layout}, {len(faults)} of {len(numbers)}: {faults[:5]}"
    return outcomes
