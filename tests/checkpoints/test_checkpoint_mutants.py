"""Seeded mutants of every kind of checkpoint file: a clear refusal or a model, never a crash, a hang or a blow-up.

Mutants that once did worse are in ``REGRESSIONS`` and are tried in every run.
"""

from __future__ import annotations

import json
import pickle
import shutil
import zlib
from collections import Counter
from pathlib import Path

import pytest
from checkpoint_mutants import mutant, mutant_count
from checkpoint_samples import v1_folder, v2_folder
from limited import limited

from offline_infer.checkpoints import read_checkpoint
from offline_infer.errors import CheckpointError
from offline_infer.networks import build, load_weights

pytest.importorskip("torch")

INFO = "fold_0/model_final_checkpoint.model.pkl"
WEIGHTS = "fold_0/model_final_checkpoint.model"
FILES = [
    ("v1", INFO),
    ("v1", WEIGHTS),
    ("v1 legacy", WEIGHTS),
    ("v1", "plans.pkl"),
    ("v1", "postprocessing.json"),
    ("v2", "plans.json"),
    ("v2", "dataset.json"),
    ("v2", "fold_0/checkpoint_final.pth"),
    ("v2", "postprocessing.pkl"),
    ("zip", "model.zip"),
]
REGRESSIONS: dict[tuple[str, str], list[int]] = {("v1 legacy", WEIGHTS): [70, 78]}
FOCUS = 4096
"""Weights are the middle of a file; what says how to read them is at its ends."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("good")
    folders = {
        "v1": v1_folder(root / "one"),
        "v1 legacy": v1_folder(root / "old", legacy=True),
        "v2": v2_folder(root / "two"),
    }
    rule = {"for_which_classes": [1, [1, 2]], "min_valid_object_sizes": "{(1,): 20.5, (1, 2): 3}"}
    (folders["v1"] / "postprocessing.json").write_text(json.dumps(rule))
    (folders["v2"] / "postprocessing.pkl").write_bytes(pickle.dumps(([], []), 2))
    return folders


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_mutants_are_refused_or_read(good: dict[str, Path], tmp_path: Path, kind: str, name: str) -> None:
    numbers = [*REGRESSIONS.get((kind, name), []), *range(mutant_count())]
    outcomes = limited(_try_all, good, kind, name, tmp_path, numbers, cpu_seconds=60 + 3 * len(numbers))
    assert sum(outcomes.values()) == len(numbers)
    assert outcomes["refused"] > 0
    print(f"{kind} {name}: {dict(outcomes)}")


def _try_all(good: dict[str, Path], kind: str, name: str, place: Path, numbers: list[int]) -> Counter[str]:
    """Outcome -> how many mutants had it. Raises AssertionError naming the mutants that did something else."""
    folder = place / "model"
    shutil.copytree(good["v2" if kind == "zip" else kind], folder)
    path = folder / name
    if kind == "zip":
        path = Path(shutil.make_archive(str(place / "model"), "zip", folder.parent, "model"))
        folder = path
    whole = path.read_bytes()
    seed = zlib.crc32(f"{kind} {name}".encode())
    outcomes: Counter[str] = Counter()
    faults = []
    for number in numbers:
        path.write_bytes(mutant(whole, seed, number, None if len(whole) < 4 * FOCUS else FOCUS))
        try:
            outcomes[_use(folder)] += 1
        except Exception as error:
            faults.append(f"mutant {number}: {type(error).__name__}: {error!s:.300}")
    assert not faults, f"{kind} {name}, {len(faults)} of {len(numbers)}: {faults[:5]}"
    return outcomes


def _use(folder: Path) -> str:
    """``read`` or ``refused``; any other error is raised, and so is a refusal nobody could read."""
    try:
        description = read_checkpoint(folder)
        network = build(description.network)
        for source in description.spec.source.folds:
            load_weights(network, description.load_weights(source.fold))
    except CheckpointError as error:
        if len(str(error)) > 3000 or not str(error).isprintable():
            raise ValueError(f"a message of absurd length or with control characters: {str(error)!r}") from error
        return "refused"
    return "read"
