"""{models} x {datasets} x {attack, strength} as one resumable loop: attack, predict, evaluate, one row.

A point that is done has its row in ``rows/``; the same command does the others. Tables, curves and TensorBoard runs are
made from the rows at the end, so a killed sweep loses at most the point in hand.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.errors import CaseError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import read_json, replacing_folder, write_json, write_text
from offline_infer.folders import held
from offline_infer.images.decoding import pillow, read_image
from offline_infer.proof.csv_tables import safe_text
from offline_infer.spec import Pixels
from offline_infer.tasks.image.attacks import ATTACKS, Attack, seed_of
from offline_infer.tasks.image.datasets import NEGATIVE, ImageSet, check_sizes, find_sets, safe_name
from offline_infer.tasks.image.evaluation.evaluate import NOT_AVAILABLE, EvaluationOptions, ImageScores, evaluate_folder
from offline_infer.tasks.image.sweep_pictures import pictures_of, write_pictures
from offline_infer.tasks.image.tensorboard import EventFile

STAGE = "sweep"
PICTURES, TENSORBOARD = "pictures", "tensorboard"
BASELINE = "none"
"""Attack of the points that have none."""
Predict = Callable[[Path, Path, Path], None]
"""(bundle, source, folder for the results): runs a model; raises CasesFailed where images failed."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    bundle: Path
    step: int
    dataset: str
    attack: str
    strength: float

    @property
    def key(self) -> str:
        """Its name in file names."""
        return _plain(f"{self.bundle.name}__{self.dataset}__{self.attack}_{self.strength:g}")


@dataclass(frozen=True)
class SweepJob:
    """What to sweep over.

    Attributes:
        bundles: models, one for each checkpoint.
        references: a dataset in any layout with references; several sets are swept one by one.
        output: folder for everything.
        grid: attack -> strengths; strength 0 is the baseline, which is always run, once.
        attacks: the attacks there are.
        seed: of random attacks.
        evaluation: how to evaluate.
        keep_predictions: keep masks and attacked images; else a point leaves its row only.
    """

    bundles: Sequence[Path]
    references: Path
    output: Path
    grid: Mapping[str, Sequence[float]]
    attacks: Mapping[str, Attack]
    seed: int = 0
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    keep_predictions: bool = False


def read_grid(path: Path, attacks: Mapping[str, Attack] = ATTACKS) -> dict[str, list[float]]:
    """A ``grid.json``: attack -> list of strengths.

    Raises:
        UsageError: not readable, or an attack that does not exist.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds {type(value).__name__}; expected attacks with lists of strengths")
    for name, strengths in value.items():
        if name not in attacks:
            raise UsageError(f"{path}: unknown attack {name!r}; legal: {', '.join(attacks)}")
        if not isinstance(strengths, list) or not all(_is_number(strength) for strength in strengths):
            raise UsageError(f"{path}: {name}: expected a list of numbers from 0 up, not {strengths!r}")
    return {name: [float(strength) for strength in strengths] for name, strengths in value.items()}


def run_sweep(job: SweepJob, predict: Predict, sink: Sink = silent) -> list[dict[str, Any]]:
    """Run every point that is not done yet, then write the tables.

    Returns:
        One row per point, in order; failed images are counted in it.

    Raises:
        UsageError: a dataset, a grid or a model that is wrong, or another process is at work there; before any work.
    """
    sets = find_sets(job.references, pair_by=job.evaluation.pair_by, need_masks=True)
    problems = check_sizes(sets)
    if problems:
        shown = "; ".join(list(problems.values())[:5])
        raise UsageError(f"{len(problems)} images cannot be evaluated: {shown}")
    points = _points(job, sets)
    if len({point.key for point in points}) < len(points):
        raise UsageError("two models or sets give files of the same name; rename one")
    with held(job.output, STAGE):
        return _run_points(job, points, {one.name: one for one in sets}, predict, sink)


def _run_points(
    job: SweepJob, points: Sequence[Point], by_name: Mapping[str, ImageSet], predict: Predict, sink: Sink
) -> list[dict[str, Any]]:
    rows = []
    for done, point in enumerate(points):
        path = job.output / "rows" / f"{point.key}.json"
        row = _known_row(path, job, point)
        if row is None:
            row = _run_point(job, point, by_name[point.dataset], predict)
            write_json(path, row)
        rows.append(row)
        sink(Event("progress", STAGE, point.key, done + 1, len(points)))
    write_tables(job.output, rows)
    return rows


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``sweep.json``, ``sweep.csv``, and a TensorBoard run with curves and pictures for each dataset and attack."""
    write_json(folder / "sweep.json", {"kind": "offline_infer.sweep", "rows": list(rows)})
    names = list(dict.fromkeys(name for row in rows for name in row["measures"]))
    head = ("model", "step", "dataset", "attack", "strength", "protocol", "images", "failed")
    table = [[*(row[name] for name in head), *(row["measures"].get(name) for name in names)] for row in rows]
    write_rows(folder / "sweep.csv", [[*head, *names], *table])
    _write_curves(folder, rows)


def write_rows(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """A CSV file; what is None is "not available", and text that a spreadsheet would take for a formula is quoted."""
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    write_text(path, text.getvalue())


def write_attacked(one: ImageSet, attack: Attack, strength: float, seed: int, folder: Path) -> Path:
    """The images of a set, attacked, as PNG files with a list of pairs; returns the list.

    Names and stems stay those of the set, so that results can be compared image by image. A folder that exists is
    complete and taken as it is.
    """
    list_path = folder / "list.json"
    if list_path.is_file():
        return list_path
    with replacing_folder(folder) as place:
        pairs = []
        for item in one.items:
            image = read_image(item.image, Pixels())
            damaged = attack.apply(image, strength, seed_of(item.name, attack.name, strength, seed))
            if damaged.shape != image.shape or damaged.dtype != np.uint8:
                raise UsageError(f"attack {attack.name} gave {damaged.dtype} {damaged.shape} for {image.shape} uint8")
            name = f"{item.stem.removeprefix(f'{safe_name(one.name)}__')}.png"
            pillow().fromarray(damaged).save(place / name, compress_level=1)
            pairs.append([name, NEGATIVE if item.mask is None else str(item.mask.absolute())])
        write_json(place / "list.json", pairs)
    return list_path


def _points(job: SweepJob, sets: Sequence[ImageSet]) -> list[Point]:
    points = []
    for position, bundle in enumerate(job.bundles):
        step = _step_of(bundle.name, position)
        for one in sets:
            points.append(Point(bundle, step, one.name, BASELINE, 0.0))
            for attack, strengths in job.grid.items():
                points += [Point(bundle, step, one.name, attack, strength) for strength in strengths if strength]
    return points


def _run_point(job: SweepJob, point: Point, one: ImageSet, predict: Predict) -> dict[str, Any]:
    folder = job.output / "points" / point.key
    if point.attack == BASELINE:
        source = folder / "source" / "list.json"
        pairs = [[str(i.image.absolute()), NEGATIVE if i.mask is None else str(i.mask.absolute())] for i in one.items]
        write_json(source, pairs)
    else:
        attacked = job.output / "attacked" / _plain(f"{point.dataset}__{point.attack}_{point.strength:g}")
        source = write_attacked(one, job.attacks[point.attack], point.strength, job.seed, attacked)
    results = folder / "results"
    failed: dict[str, str] = {}
    try:
        predict(point.bundle, source, results)
    except CaseError as error:
        failed["run"] = str(error)
    found = evaluate_folder(results, source, job.evaluation)
    write_pictures(job.output / PICTURES / point.key, find_sets(source)[0], results)
    row = _row(job, point, found)
    if not job.keep_predictions:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def _row(job: SweepJob, point: Point, found: ImageScores) -> dict[str, Any]:
    (told,) = found.summary["sets"].values()
    measures: dict[str, float | None] = {}
    for kind, values in (("pixel", told["pixel"]), ("image", told["image"])):
        if values == NOT_AVAILABLE:
            continue
        shown = values["quoted"] if kind == "pixel" else values
        measures |= {f"{kind}-level {name}": value for name, value in shown.items() if name != "used"}
    return {
        "key": point.key,
        "model": point.bundle.name,
        "step": point.step,
        "dataset": point.dataset,
        "attack": point.attack,
        "strength": point.strength,
        "protocol": found.summary["protocol"]["name"],
        "images": told["used"],
        "failed": len(found.failed),
        "failures": found.failed,
        "measures": measures,
        "made_with": _made_with(job, point),
    }


def _made_with(job: SweepJob, point: Point) -> dict[str, Any]:
    """What a row depends on; a row made with anything else is made anew."""
    bundle = point.bundle / "bundle.json"
    stamp = bundle.stat().st_mtime_ns if bundle.is_file() else 0
    references = job.references.absolute()
    return {"evaluation": asdict(job.evaluation), "seed": job.seed, "bundle": stamp, "references": str(references)}


def _known_row(path: Path, job: SweepJob, point: Point) -> dict[str, Any] | None:
    try:
        row = read_json(path)
    except (OSError, ValueError):
        return None
    whole = isinstance(row, dict) and (row.get("key"), row.get("made_with")) == (point.key, _made_with(job, point))
    return row if whole and isinstance(row.get("measures"), dict) else None


def _write_curves(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One run for each dataset: checkpoints as steps; one for each dataset, model and attack: strengths as steps."""
    place_of = {row["key"]: folder / PICTURES / row["key"] for row in rows}
    runs: dict[str, list[tuple[str, int, float]]] = {}
    pictures: dict[str, list[tuple[str, int, Path]]] = {}
    for row in rows:
        points = [(f"{name}".replace(" ", "_"), value) for name, value in row["measures"].items() if value is not None]
        if row["attack"] == BASELINE:
            curves = runs.setdefault(_plain(row["dataset"]), [])
            curves += [(f"checkpoints/{name}", row["step"], value) for name, value in points]
            pictures.setdefault(_plain(row["dataset"]), []).append(("checkpoints", row["step"], place_of[row["key"]]))
            attacks = {r["attack"] for r in rows if r["attack"] != BASELINE}
        else:
            attacks = {row["attack"]}
        for attack in sorted(attacks):
            run, strength = _plain(f"{row['dataset']}__{row['model']}__{attack}"), int(row["strength"])
            curves = runs.setdefault(run, [])
            curves += [(f"robustness/{name}", strength, value) for name, value in points]
            pictures.setdefault(run, []).append(("robustness", strength, place_of[row["key"]]))
    with replacing_folder(folder / TENSORBOARD, overwrite=True) as place:  # runs of an earlier call would show twice
        for run, found in runs.items():
            with EventFile(place / run) as events:
                for tag, step, value in found:
                    events.scalar(tag, step, value)
                for tag, step, source in pictures[run]:
                    for name, png, height, width in pictures_of(source):
                        events.picture(f"{tag}/{name}", step, png, height, width)


def _step_of(name: str, position: int) -> int:
    """The number in a checkpoint's name (``checkpoint-92`` -> 92), else its place in the list."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 10 else position


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text).lstrip(".") or "_"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def _cell(value: Any) -> Any:
    """A value of a table; text is made harmless."""
    if value is None:
        return NOT_AVAILABLE
    return safe_text(value) if isinstance(value, str) else value
