"""The worklist of a staged run: the on-disk contract between cutting, inferring and putting together.

A work folder holds

=================  ==========================================================================================
``WORK_MARKER``    says that the folder is ours; ``clean`` refuses any other folder
``worklist.jsonl``  header, then per case its record and its items; derived from ``cases/``
``cases/``         one ``.jsonl`` per case, absent or complete: the truth about cases and items
``inputs/``        one raw ``.bin`` per item, little-endian, C order, (c, *patch), no batch axis, no header
``info/``          input lists for external tools, whole and in shards
``outputs/``       what the network answered
``perf/``          timing records
``outputs.jsonl``  which file holds which output (:mod:`offline_infer.staging.outputs`)
=================  ==========================================================================================

A bin does not describe itself: its place, shape, dtype and checksum are recorded here. Item indices are unique in the folder
and never used twice; they may have gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError

from offline_infer.bundles.fingerprint import fingerprint
from offline_infer.errors import UsageError
from offline_infer.files import is_partial, plain_name, printable, read_utf8, write_text
from offline_infer.spec import BundleSpec, Extent, OutputSpec, Record
from offline_infer.staging.outputs import OUTPUTS_FILE, WRITERS, OutputEntry, OutputsManifest, Writer
from offline_infer.staging.work_folder import WORK_MARKER, inside, is_work_folder, mark_work_folder, safe_name
from offline_infer.tasks.records import SourceFile

__all__ = [
    "OUTPUTS_FILE",
    "WORKLIST_FILE",
    "WORK_MARKER",
    "WRITERS",
    "CaseRecord",
    "Item",
    "OutputEntry",
    "OutputsManifest",
    "Worklist",
    "WorklistHeader",
    "WorklistWriter",
    "Writer",
    "header_for",
    "inside",
    "is_work_folder",
    "mark_work_folder",
    "output_bytes",
    "safe_name",
]

WORKLIST_FILE = "worklist.jsonl"
FOLDERS = ("cases", "inputs", "info", "outputs", "perf")

Natural = Annotated[int, Field(ge=0)]
BinDtype = Literal["float32", "float16"]
_LARGEST = 256 << 20  # bytes of a list; an item has some hundred


def _plain(case_id: str) -> str:
    try:
        return plain_name(case_id, "case id")
    except UsageError as error:
        raise ValueError(str(error)) from error


class Item(Record):
    """One network input.

    Attributes:
        index: unique in the work folder.
        case: the case id.
        file: path inside the work folder, e.g. ``inputs/liver_3_0_128_0_128_0_128_0.bin``.
        geometry: how the item was made, as its task says it, with a ``mode``; the way back.
        shape: without the batch axis, e.g. (c, *patch).
        bytes, crc32: of the whole file.
    """

    kind: Literal["item"] = "item"
    index: Natural
    case: str
    file: str
    geometry: dict[str, Any]
    shape: tuple[Natural, ...]
    dtype: BinDtype
    bytes: Natural
    crc32: Natural

    @property
    def stem(self) -> str:
        """File name without folder and ``.bin``: what external tools build their output names from."""
        return Path(self.file).name.removesuffix(".bin")


class CaseRecord(Record):
    """One case of the worklist.

    Attributes:
        case_id: as the user knows it.
        safe_name: what stands for it in file names.
        files: what it was made from, in order; ``sources`` tells whether they changed since.
        geometry: ``CaseGeometry.to_json()``; the way back to the image.
        network_shape: of the array that the items are cut from (a volume's: spatial, network order, before padding).
        items: how many.
        first_item: index of the first; the case's items are consecutive.
    """

    kind: Literal["case"] = "case"
    case_id: Annotated[str, AfterValidator(_plain)]
    safe_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    files: tuple[str, ...]
    sources: tuple[SourceFile, ...] = ()
    geometry: dict[str, Any]
    network_shape: tuple[Natural, ...]
    items: Natural
    first_item: Natural


class WorklistHeader(Record):
    """What all cases of a work folder share.

    Attributes:
        fingerprint: of the model, see :func:`fingerprint`.
        folds: the folds that are to answer, in order.
        settings: ``RunSettings`` as JSON (step size, tta, ...).
        input_name, input_shape: of the graph, batch axis first; ``input_dtype`` is the dtype of the bins.
        outputs: of the graph, in graph order; index 0 is the final head.
    """

    kind: Literal["header"] = "header"
    schema_version: Literal[1] = 1
    task: str
    fingerprint: str
    folds: tuple[str, ...] = Field(min_length=1)
    settings: dict[str, Any]
    input_name: str
    input_shape: tuple[Extent, ...]
    input_dtype: BinDtype = "float32"
    outputs: tuple[OutputSpec, ...] = Field(min_length=1)

    def item_bytes(self, shape: Sequence[int]) -> int:
        """Size of an input bin of that shape (no batch axis)."""
        return math.prod(shape) * np.dtype(self.input_dtype).itemsize

    @property
    def kept(self) -> tuple[int, ...]:
        """Positions of the outputs inference needs."""
        return tuple(index for index, output in enumerate(self.outputs) if output.keep)


class Worklist:
    """A work folder's header, cases and items, read back.

    Attributes:
        cases: in the order in which they were added.
    """

    def __init__(self, work: Path, header: WorklistHeader, cases: Sequence[CaseRecord], items: Sequence[Item]) -> None:
        self.work = work
        self.header = header
        self.cases = tuple(cases)
        self._items = tuple(items)
        self._by_case: dict[str, list[Item]] = {case.case_id: [] for case in cases}
        for item in self._items:
            self._by_case[item.case].append(item)

    @classmethod
    def load(cls, work: Path | str) -> Worklist:
        """Read a work folder.

        Raises:
            UsageError: not a work folder, or a damaged record; the message names the file.
        """
        folder = Path(work)
        header = _read_header(folder)
        paths = sorted((folder / "cases").glob("*.jsonl"))
        found = [_read_case(path) for path in paths if not is_partial(path)]
        found.sort(key=lambda pair: pair[0].first_item)
        return cls(folder, header, [case for case, _ in found], [item for _, items in found for item in items])

    def items(self, case: str | None = None) -> tuple[Item, ...]:
        """All items in order, or those of one case.

        Raises:
            UsageError: no such case.
        """
        if case is None:
            return self._items
        if case not in self._by_case:
            raise UsageError(f"no case {case!r} in {self.work}; there are: {', '.join(self._by_case) or 'none'}")
        return tuple(self._by_case[case])

    def case(self, case_id: str) -> CaseRecord | None:
        """The record of that case, or None."""
        return next((case for case in self.cases if case.case_id == case_id), None)

    def refuse_other_model(self, spec: BundleSpec) -> None:
        """
        Raises:
            UsageError: the folder was made for another model.
        """
        if self.header.fingerprint != fingerprint(spec):
            raise UsageError(f"{self.work} was made for another model than this bundle; preprocess into a new folder")

    def path(self, item: Item) -> Path:
        """The item's bin; checked to lie inside the work folder."""
        return inside(self.work, item.file)

    def output_bytes(self, output: int) -> int:
        """Size in bytes of a complete file of that output of one item, in the graph's own dtype."""
        return output_bytes(self.header.outputs[output])

    def __len__(self) -> int:
        return len(self._items)


class WorklistWriter:
    """Adds cases to a work folder, each complete or not at all; an existing folder of the same run is continued."""

    def __init__(self, work: Path | str, header: WorklistHeader) -> None:
        """
        Raises:
            UsageError: the folder holds something else, or a run with another model or other settings.
        """
        self.work = Path(work)
        if not is_work_folder(self.work):
            mark_work_folder(self.work)
        for name in FOLDERS:
            (self.work / name).mkdir(exist_ok=True)
        if (self.work / WORKLIST_FILE).exists():
            _same_run(self.work, _read_header(self.work), header)
        self.header = header
        write_text(self.work / WORKLIST_FILE, header.model_dump_json() + "\n")
        listed = Worklist.load(self.work)
        self.cases = {case.case_id: case for case in listed.cases}
        self._next = max((case.first_item + case.items for case in listed.cases), default=0)
        # Outputs of a case that was since removed may still be listed: their item numbers are not given out again.
        known = OutputsManifest.load(self.work)
        self._next = max(self._next, max((entry.item + 1 for entry in known), default=0))
        self._derive()

    @property
    def next_index(self) -> int:
        """Index the next item gets."""
        return self._next

    def add(self, case: CaseRecord, items: Sequence[Item]) -> None:
        """List a case whose bins are all on disk.

        Raises:
            UsageError: the id, its safe name or its numbering is already taken or does not fit.
        """
        indices = [item.index for item in items]
        if case.first_item < self._next or indices != list(range(case.first_item, case.first_item + case.items)):
            raise UsageError(f"case {case.case_id!r}: its items must be numbered on from {self._next}")
        if any(other.safe_name == case.safe_name for other in self.cases.values()):
            raise UsageError(f"case {case.case_id!r}: the name {case.safe_name!r} is already taken in {self.work}")
        lines = (record.model_dump_json() for record in (case, *items))
        write_text(self._case_file(case), "".join(line + "\n" for line in lines))
        self.cases[case.case_id] = case
        self._next = case.first_item + case.items
        self._derive()

    def remove(self, case_id: str, delete_inputs: bool = True) -> None:
        """Take a case out of the list, then (by default) delete its bins."""
        case = self.cases.pop(case_id)
        path = self._case_file(case)
        _, items = _read_case(path)
        path.unlink()
        self._derive()
        if delete_inputs:
            for item in items:
                inside(self.work, item.file).unlink(missing_ok=True)

    def _case_file(self, case: CaseRecord) -> Path:
        return self.work / "cases" / f"{case.safe_name}.jsonl"

    def _derive(self) -> None:
        """Write ``worklist.jsonl`` anew from the header and ``cases/``."""
        ordered = sorted(self.cases.values(), key=lambda case: case.first_item)
        parts = [self.header.model_dump_json() + "\n"]
        parts += [_text(self._case_file(case)) for case in ordered]
        write_text(self.work / WORKLIST_FILE, "".join(parts))


def output_bytes(output: OutputSpec) -> int:
    """Size of one complete output file."""
    return int(np.prod(output.shape, dtype=np.int64)) * np.dtype(output.dtype).itemsize


def _same_run(work: Path, old: WorklistHeader, new: WorklistHeader) -> None:
    """Refuse to mix runs in one folder."""
    was, now = old.model_dump(), new.model_dump()
    other = [name for name in was if was[name] != now[name]]
    if other:
        what = "another model" if "fingerprint" in other else "other settings"
        shown = "; ".join(f"{name} was {_short(was[name])}, is {_short(now[name])}" for name in other)
        raise UsageError(f"{work} was made with {what} ({shown}); name a new folder or use the same settings")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_header(work: Path) -> WorklistHeader:
    if not work.is_dir():
        raise UsageError(f"work folder {work} does not exist; run preprocess first")
    path = work / WORKLIST_FILE
    if not is_work_folder(work) or not path.is_file():
        raise UsageError(f"{work} is not the work folder of a staged run (no {WORKLIST_FILE}); run preprocess first")
    try:
        return WorklistHeader.model_validate_json(_text(path).partition("\n")[0])
    except ValidationError as error:
        raise _damaged(path, error) from error


def _read_case(path: Path) -> tuple[CaseRecord, list[Item]]:
    first, *others = _text(path).splitlines() or [""]
    try:
        case = CaseRecord.model_validate_json(first)
        items = [Item.model_validate_json(line) for line in others]
    except ValidationError as error:
        raise _damaged(path, error) from error
    if len(items) != case.items or not _consecutive(case, items):
        raise UsageError(
            f"{path} is damaged: it lists {len(items)} items, {case.items} were expected;"
            " delete it and preprocess again"
        )
    return case, items


def _text(path: Path) -> str:
    try:
        return read_utf8(path, largest=_LARGEST)
    except (OSError, ValueError) as error:
        raise UsageError(f"{printable(path)} cannot be read ({error}); delete it and preprocess again") from error


def _consecutive(case: CaseRecord, items: Iterable[Item]) -> bool:
    return all(
        item.case == case.case_id and item.index == index for index, item in enumerate(items, start=case.first_item)
    )


def _damaged(path: Path, error: ValidationError) -> UsageError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return UsageError(
        f"{path} is damaged or of another version ({where + ': ' if where else ''}{first['msg']}); "
        "preprocess again into a new folder"
    )


def header_for(
    spec: BundleSpec, settings: Mapping[str, Any], folds: Sequence[str], dtype: BinDtype = "float32"
) -> WorklistHeader:
    """The header of a run of that model.

    Raises:
        UsageError: the model's outputs are not known, or none is kept.
    """
    if not spec.outputs or not any(output.keep for output in spec.outputs):
        raise UsageError("the bundle names no output to keep; export it again")
    return WorklistHeader(
        task=spec.task,
        fingerprint=fingerprint(spec),
        folds=tuple(folds),
        settings=dict(settings),
        input_name=spec.input_name,
        input_shape=spec.input_shape,
        input_dtype=dtype,
        outputs=spec.outputs,
    )
