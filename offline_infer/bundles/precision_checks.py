"""What is known about a bundle's precisions: ``precision_checks.json``, beside ``bundle.json``.

``benchmark`` compares every engine and precision with float32 on tiles of a real image and keeps the judgement here;
whatever runs the network afterwards looks it up. A row holds for one engine, library version, processor, device,
precision, way of normalising, fold and graph: on another machine, or after an update, nothing is known.

The file is no part of the bundle proper: no digest covers it, a bundle is complete without it, and a damaged one counts as
absent. No image, path or case name is written into it, only a checksum of the tiles.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from offline_infer.bundles.bundle import PRECISION_CHECKS, Bundle
from offline_infer.engines.base import SessionInfo
from offline_infer.errors import UsageError
from offline_infer.files import read_json, write_json
from offline_infer.spec import Record, Sha256

KIND = "offline_infer.precision_checks"
SCHEMA_VERSION = 1
GOOD_DICE = 0.999
"""A foreground Dice against float32 below this is reported to the user."""

_LARGEST_FILE = 1 << 22  # 4 MiB
_ROWS_PER_SUBJECT = 16
_SHOWN = 200  # characters of a fault

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Word = Annotated[str, Field(max_length=300)]


class UnverifiedPrecision(UserWarning):
    """The running precision was never compared with float32, or the comparison was doubtful."""


class Subject(Record):
    """What a check holds for: everything the arithmetic depends on."""

    engine: Word
    library: Word
    processor: Word
    device: Word
    precision: Word
    norms: Word
    fold: Word
    graph_sha256: Sha256


class Check(Subject):
    """One judgement.

    ``source``: ``image`` for tiles of a real image; ``noise`` proves nothing but is kept for the record. ``tiles_sha256``:
    of the tiles' bytes. ``reference``: engine whose float32 answers were the measure. ``max_abs_logit_difference`` is None
    where it is not a number.
    """

    status: Literal["ok", "failed"]
    reason: Annotated[str, Field(max_length=2000)] | None = None
    reference: Word | None = None
    label_agreement: Share | None = None
    foreground_dice: Share | None = None
    max_abs_logit_difference: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    tiles: Annotated[int, Field(gt=0)]
    tiles_sha256: Sha256
    source: Literal["image", "noise"]
    date: Word

    @property
    def subject(self) -> Subject:
        """The part that must agree with what is running."""
        return Subject(**{name: getattr(self, name) for name in Subject.model_fields})

    @property
    def compared(self) -> bool:
        """Whether this is a comparison with float32 where float32 finds something in a real image."""
        return self.source == "image" and self.foreground_dice is not None


@dataclass(frozen=True)
class Checks:
    """The rows of a file; ``problem`` says why there are none where a file is there."""

    rows: tuple[Check, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Standing:
    """What is known about the running precision: the rows that apply to it, and notes for the user."""

    rows: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Folds whose precision was never compared with float32."""

    def to_json(self) -> list[dict[str, Any]]:
        return [row.model_dump(mode="json") for row in self.rows]


def checks_path(bundle: Bundle) -> Path:
    """Where a bundle's checks are kept; for a lone ``.onnx``, beside it under its own name."""
    if bundle.lone is not None:
        return bundle.lone.with_name(f"{bundle.lone.name}.{PRECISION_CHECKS}")
    return bundle.folder / PRECISION_CHECKS


def subject_of(info: SessionInfo, fold: str, graph_sha256: str) -> Subject:
    """What is really running, as a session says it."""
    processor = info.processor or _processor()
    return Subject(
        engine=info.engine,
        library=info.version,
        processor=processor[:300],
        device=info.device,
        precision=info.precision,
        norms=info.norms.mode if info.norms is not None else "",
        fold=fold,
        graph_sha256=graph_sha256,
    )


def read_checks(bundle: Bundle) -> Checks:
    """The checks of a bundle. Never raises: what cannot be understood is named in ``problem`` and counts as absent."""
    path = checks_path(bundle)
    try:
        record = read_json(path, largest=_LARGEST_FILE)
    except FileNotFoundError:
        return Checks()
    except (OSError, ValueError) as error:
        return Checks(problem=f"{path} cannot be read ({str(error)[:_SHOWN]})")
    if not isinstance(record, dict) or record.get("kind") != KIND:
        return Checks(problem=f"{path} is not a record of checks")
    if record.get("schema_version") != SCHEMA_VERSION:
        return Checks(problem=f"{path} is of version {record.get('schema_version')!r:.50}, expected {SCHEMA_VERSION}")
    rows = record.get("checks")
    if not isinstance(rows, list):
        return Checks(problem=f"{path} holds no list of checks")
    try:
        return Checks(tuple(Check.model_validate_json(json.dumps(row), strict=True) for row in rows))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(step) for step in fault["loc"])
        return Checks(problem=f"{path} is damaged ({where}: {fault['msg'][:_SHOWN]})")


def keep_checks(bundle: Bundle, rows: Sequence[Check]) -> str | None:
    """Merge rows into a bundle's file, atomically. A row replaces the one of the same subject and the same tiles.

    Of one subject the newest rows are kept, and every failed one: a failure stays until the same tiles pass.

    Returns:
        None, or why the rows could not be kept: a bundle may be read-only.
    """
    path = checks_path(bundle)
    known = read_checks(bundle)
    if known.problem is not None and _is_foreign(path):
        return f"{known.problem}; move it away"
    merged = {(row.subject, row.tiles_sha256): row for row in known.rows}
    for row in rows:
        merged.pop((row.subject, row.tiles_sha256), None)  # to the end: the order is that of the checks
        merged[row.subject, row.tiles_sha256] = row
    kept = list(merged.values())
    for subject in {row.subject for row in kept}:
        passed = [row for row in kept if row.subject == subject and row.status == "ok"]
        for row in passed[:-_ROWS_PER_SUBJECT]:
            kept.remove(row)
    record = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "checks": [row.model_dump(mode="json", exclude_none=True) for row in kept],
    }
    try:
        write_json(path, record)
    except OSError as error:
        return f"{path} cannot be written ({error.strerror or error})"
    return None


def rows_of(record: Mapping[str, Any], subjects: Mapping[tuple[str, str], Subject], tiles_sha256: str) -> list[Check]:
    """The rows of a benchmark's record that are worth keeping: comparisons with float32, and failures.

    Args:
        record: of :func:`offline_infer.benchmark.benchmark`.
        subjects: (engine, precision) -> what was running.
        tiles_sha256: of the tiles.
    """
    real = isinstance(record["tiles"]["source"], list)
    reference = next((row["engine"] for row in record["results"] if row.get("reference")), None)
    kept = []
    for row in record["results"]:
        subject = subjects.get((row["engine"], row["precision"]))
        if subject is None or row.get("reference") or (row["status"] == "ok" and "label_agreement" not in row):
            continue
        difference = row.get("max_abs_logit_difference")
        kept.append(
            Check(
                **subject.model_dump(),
                status=row["status"],
                reason=row.get("reason"),
                reference=reference,
                label_agreement=row.get("label_agreement"),
                foreground_dice=row.get("foreground_dice"),
                max_abs_logit_difference=difference,
                tiles=record["tiles"]["count"],
                tiles_sha256=tiles_sha256,
                source="image" if real else "noise",
                date=record["date"],
            )
        )
    return kept


def standing(
    bundle: Bundle, subjects: Sequence[Subject], *, unverified: bool = False, further: Sequence[Check] = ()
) -> Standing:
    """What is known of what is running.

    Args:
        subjects: one per fold.
        unverified: a failed check becomes a note.
        further: rows that count beside those of the bundle.

    Raises:
        UsageError: a check has failed; the message names it.
    """
    found = read_checks(bundle)
    known = [*found.rows, *(row for row in further if row not in found.rows)]
    rows: list[Check] = []
    notes = [f"{found.problem}; it counts as absent"] if found.problem else []
    missing = []
    for subject in subjects:
        mine = [row for row in known if row.subject == subject and row.source == "image"]
        rows += mine
        what = f"{subject.precision} on {subject.engine} {subject.library}, fold {subject.fold}"
        failed = next((row for row in mine if row.status == "failed"), None)
        compared = [row.foreground_dice for row in mine if row.compared and row.foreground_dice is not None]
        if failed is not None:
            text = f"{bundle.name}: {what}: the check of {failed.date} failed: {failed.reason}"
            if not unverified:
                raise UsageError(f"{text}; use --precision fp32, or --unverified to run it nevertheless")
            notes.append(f"{text}; run nevertheless, because of --unverified")
        elif subject.precision != "fp32" and not compared:
            missing.append(subject.fold)
        elif compared and min(compared) < GOOD_DICE:
            notes.append(f"{what}: foreground Dice against float32 was {min(compared):.5f} when it was checked")
    if missing:
        subject = subjects[0]
        notes.append(
            f"{subject.precision} on {subject.engine} was never compared with float32 for this bundle on this machine "
            f"(fold {', '.join(missing)}); run: offline-infer benchmark {bundle.name} --engines {subject.engine} "
            f"--precisions fp32 {subject.precision} --input IMAGE"
        )
    return Standing(tuple(rows), tuple(notes), tuple(missing))


def line_of(row: Check) -> str:
    """A row for people."""
    dice = "-" if row.foreground_dice is None else f"{row.foreground_dice:.5f}"
    said = f"foreground Dice {dice}" if row.status == "ok" else f"FAILED: {row.reason}"
    tiles = f"{row.tiles} tiles of {'an image' if row.source == 'image' else 'noise'}"
    where = f"{row.engine} {row.library} {row.device} ({row.processor})"
    return f"{row.precision} on {where}, fold {row.fold}: {said}, {tiles}, {row.date}"


def _is_foreign(path: Path) -> bool:
    """Whether a file that cannot be parsed may belong to another program or release: JSON, but not of this kind or version."""
    try:
        record = read_json(path, largest=_LARGEST_FILE)
    except (OSError, ValueError):
        return False
    return not isinstance(record, dict) or record.get("kind") != KIND or record.get("schema_version") != SCHEMA_VERSION


def _processor() -> str:
    """The processor's name, where the engine does not say it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
