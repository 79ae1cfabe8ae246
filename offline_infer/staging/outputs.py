"""The outputs manifest of a staged run: which file holds which output of which item, and who wrote it.

Tools number the outputs of a graph differently, some from 0, some from 1: ``tile_1.bin`` is the final head for one tool
and another head of the same shape for the next. Nothing here reads meaning from a suffix: an entry says the output's
0-based position *in graph order*, and the writer's own numbering base is kept beside it.

``outputs.jsonl`` is appended to, under a lock and flushed, so that a run that dies loses at most its last line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from offline_infer.errors import UsageError
from offline_infer.locks import locked
from offline_infer.spec import Record
from offline_infer.staging.work_folder import inside

OUTPUTS_FILE = "outputs.jsonl"
Natural = Annotated[int, Field(ge=0)]
OutputKey = tuple[int, str, int]
"""(item, fold, output)."""


class Writer(Record):
    """Who wrote the entries that follow it in the file.

    Attributes:
        tool: ``engine`` (in this process), ``benchmark``, ``msame``, ``ais_bench``.
        base: the number the tool gives to the graph's first output.
        pattern: file name of one output; ``{stem}`` is the input's without ``.bin``, ``{number}`` the tool's number.
        folder: where in the work folder it writes; files below it are named by this writer's pattern.
        compiled: fold -> SHA-256 of the compiled artefact it ran instead of the graph.
        details: tool version, device, command; for the record only.
    """

    kind: Literal["writer"] = "writer"
    tool: str
    base: Literal[0, 1]
    pattern: str
    folder: str = "outputs"
    compiled: dict[str, str] = Field(default_factory=dict)
    details: dict[str, str] = Field(default_factory=dict)

    def file_name(self, stem: str, output: int) -> str:
        """Name of the file that holds the graph's ``output`` (0-based) for the input ``<stem>.bin``."""
        return self.pattern.format(stem=stem, number=output + self.base)


WRITERS: Mapping[str, Writer] = {
    "engine": Writer(tool="engine", base=0, pattern="{stem}_output_{number}.bin"),
    "benchmark": Writer(tool="benchmark", base=1, pattern="{stem}_{number}.bin"),
    "msame": Writer(tool="msame", base=0, pattern="{stem}_output_{number}.bin"),
    "ais_bench": Writer(tool="ais_bench", base=0, pattern="{stem}_{number}.bin"),
}
"""How each tool names the outputs of one input. Exact names only."""


class OutputEntry(Record):
    """One output array in one file: raw little-endian C order, no header.

    Attributes:
        item: index of the item in the worklist.
        fold: the fold whose network answered, one of the worklist's.
        output: 0-based position in graph order, whatever the tool calls it.
        file: path inside the work folder, ``/`` separated.
        bytes: size of the complete file.
        dtype: of the numbers in the file.
        keep: false for heads that inference does not need; ``clean`` may delete those.
        judged: somebody has looked at its numbers; false in files of older releases.
    """

    kind: Literal["output"] = "output"
    item: Natural
    fold: str
    output: Natural
    file: str
    bytes: Natural
    dtype: Literal["float32", "float16", "int64", "int32"]
    keep: bool
    judged: bool = False

    @property
    def key(self) -> OutputKey:
        return (self.item, self.fold, self.output)


_LINE: TypeAdapter[Writer | OutputEntry] = TypeAdapter(Annotated[Writer | OutputEntry, Field(discriminator="kind")])


class OutputsManifest:
    """The manifest of one work folder. Later entries replace earlier ones of the same item, fold and output."""

    def __init__(self, work: Path, entries: dict[OutputKey, OutputEntry], writers: tuple[Writer, ...]) -> None:
        self.work = work
        self.entries = entries
        self.writers = writers

    @classmethod
    def load(cls, work: Path | str) -> OutputsManifest:
        """Read the manifest; an absent file is an empty manifest, an unfinished last line is ignored.

        Raises:
            UsageError: a line in the middle is damaged.
        """
        folder = Path(work)
        path = folder / OUTPUTS_FILE
        entries: dict[OutputKey, OutputEntry] = {}
        writers: list[Writer] = []
        data = path.read_bytes() if path.exists() else b""
        complete = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                record = _LINE.validate_json(line)
            except ValidationError as error:
                raise UsageError(
                    f"{path}, line {number} is damaged; delete that line and run infer again (it redoes what is lost)"
                ) from error
            if isinstance(record, Writer):
                writers.append(record)
            else:
                entries[record.key] = record
        return cls(folder, entries, tuple(writers))

    def append(self, entries: Iterable[OutputEntry], writer: Writer | None = None) -> None:
        """Add entries (and, first, who wrote them), flushed to disk; safe with several processes appending.

        The files must be complete before they are listed here.

        Raises:
            UsageError: an entry's file lies outside the work folder.
        """
        records: list[Writer | OutputEntry] = [] if writer is None else [writer]
        for entry in entries:
            inside(self.work, entry.file)
            records.append(entry)
            self.entries[entry.key] = entry
        if writer is not None:
            self.writers = (*self.writers, writer)
        append_lines(self.work / OUTPUTS_FILE, (record.model_dump_json() for record in records))

    def get(self, item: int, fold: str, output: int) -> OutputEntry | None:
        """The entry of that output, or None."""
        return self.entries.get((item, fold, output))

    def path(self, entry: OutputEntry) -> Path:
        """Where the entry's file is; checked to lie inside the work folder."""
        return inside(self.work, entry.file)

    def is_complete(self, entry: OutputEntry) -> bool:
        """Whether the file is there with its full size."""
        try:
            return self.path(entry).stat().st_size == entry.bytes
        except OSError:
            return False

    def complete(self, item: int, fold: str, output: int) -> OutputEntry | None:
        """The entry of that output if its file is there with its full size, else None."""
        entry = self.get(item, fold, output)
        return entry if entry is not None and self.is_complete(entry) else None

    def __iter__(self) -> Iterator[OutputEntry]:
        return iter(self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append whole lines to a JSON-lines file and flush; a torn last line left by a killed process is cut off first."""
    text = "".join(line + "\n" for line in lines).encode()
    if not text:
        return
    with locked(path, wait=math.inf, make=True) as handle:
        end = os.lseek(handle, 0, os.SEEK_END)
        if end and os.pread(handle, 1, end - 1) != b"\n":
            os.ftruncate(handle, _last_line_end(handle, end))
            os.lseek(handle, 0, os.SEEK_END)
        view = memoryview(text)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)


def _last_line_end(handle: int, end: int) -> int:
    """Offset just behind the last newline before ``end``."""
    step = 1 << 16
    while end > 0:
        first = max(0, end - step)
        found = os.pread(handle, end - first, first).rfind(b"\n")
        if found >= 0:
            return first + found + 1
        end = first
    return 0
