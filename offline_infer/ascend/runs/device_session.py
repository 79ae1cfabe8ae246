"""One run of an external tool on one device: started, watched, and its outputs taken over as they appear."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from offline_infer.ascend.compiled import Compiled
from offline_infer.ascend.figures import DevicePerformance
from offline_infer.ascend.tools import Program, SessionJob, Tool
from offline_infer.engines.om.answers import Fault
from offline_infer.files import read_json, write_json
from offline_infer.processes import read_log, start, stop, terminate
from offline_infer.staging.judging import AnswerJudge, told
from offline_infer.staging.outputs import OutputEntry, OutputsManifest, Writer
from offline_infer.staging.work_folder import safe_name
from offline_infer.staging.worklist import Item, Worklist, output_bytes

SESSION_FILE = "session.json"
LOG_FILE = "tool.log"
_FOLDER_MODE = 0o750
_SHARED_WRITE = stat.S_IWGRP | stat.S_IWOTH
_HOPELESS = 4  # outputs of the wrong size, and none of the right one, before a session is given up
_HOPELESS_S = 5.0


@dataclass
class Collector:
    """Takes complete output files over into the work folder and lists them in the manifest.

    A file counts when its size is that of a complete output; the tools write front to back, so nothing is missing then.
    """

    worklist: Worklist
    manifest: OutputsManifest
    fold: str
    compiled: Compiled
    writer: Writer
    drop_redundant: bool
    judge: AnswerJudge
    doubtful: dict[str, Fault] = field(default_factory=dict)
    """Stem -> what is wrong with its answer; whoever reads it for a session empties it."""

    def sizes(self) -> list[int]:
        """Size of each output of the OM."""
        return [output_bytes(output) for output in self.compiled.outputs]

    def take(self, found: Sequence[tuple[Path, Item, int]]) -> int:
        """Move complete outputs, each (file, item, OM output), into the work folder; returns how many are needed.

        Needed outputs whose numbers cannot be right are deleted and noted as doubtful.
        """
        entries = []
        for path, item, output in found:
            meaning = self.compiled.outputs[output]
            position = self.compiled.positions[output]
            keep = self.worklist.header.outputs[position].keep
            file = f"outputs/fold_{safe_name(self.fold)}/{self.writer.file_name(item.stem, position)}"
            try:
                if not keep and self.drop_redundant:
                    path.unlink()
                    continue
                if keep and (fault := self.judge.fault(path, item, meaning)) is not None:
                    self.doubtful[item.stem] = fault
                    path.unlink()
                    continue
                target = self.worklist.work / file
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
            except FileNotFoundError:
                continue  # 'clean' was quicker
            entries.append(
                OutputEntry(
                    item=item.index,
                    fold=self.fold,
                    output=position,
                    file=file,
                    bytes=output_bytes(meaning),
                    dtype=meaning.dtype,
                    keep=keep,
                    judged=keep,
                )
            )
        self.manifest.append(entries)
        return sum(entry.keep for entry in entries)


@dataclass
class Scan:
    """What lies in a session's output folder: complete files, and the sizes of others that have an output's name."""

    complete: list[tuple[Path, Item, int]] = field(default_factory=list)
    wrong: dict[str, int] = field(default_factory=dict)


class DeviceSession:
    """A tool running on a device.

    Attributes:
        items: the shard, by the stem the tool sees.
        done: items of which every needed output was taken over.
        problem: why it failed, once it has ended; None: no problem.
        ended: whether it has ended.
    """

    def __init__(
        self, tool: Tool, program: Program, job: SessionJob, items: Mapping[str, Item], collector: Collector
    ) -> None:
        self.tool = tool
        self.job = job
        self.items = dict(items)
        self.done = 0
        self.problem: str | None = None
        self.ended = False
        self.seconds = 0.0
        self.performance: DevicePerformance | None = None
        self._program = program
        self._collector = collector
        self._process: subprocess.Popen[bytes] | None = None
        self._names = {
            tool.file_name(stem, output): (item, output)
            for stem, item in self.items.items()
            for output in range(len(collector.compiled.outputs))
        }
        linked = job.input_folder.parent == job.folder
        self._links = {item.index: job.input_folder / f"{stem}.bin" for stem, item in items.items()} if linked else {}
        self._left = {item.index: self._needed() for item in self.items.values()}
        self._sign: tuple[int, ...] = ()
        self._sign_of_life = self._begun = self._well = time.monotonic()
        self._wrong: dict[str, int] = {}
        self._doubtful: dict[str, Fault] = {}

    @property
    def log(self) -> Path:
        """What the tool printed."""
        return self.job.folder / LOG_FILE

    def start(self) -> None:
        """Start the tool.

        Raises:
            ToolError: it cannot be started.
        """
        self.tool.prepare(self.job)
        command = self.tool.command(self._program, self.job)
        self._process = start(command, cwd=self.job.folder, log=self.log, environment=self._program.environ())
        write_json(self.job.folder / SESSION_FILE, self._record(command, self._process.pid))
        self._sign_of_life = self._begun = self._well = time.monotonic()

    def poll(self, stall_timeout_s: float, timeout_s: float | None = None) -> int:
        """Look after the tool once; takes finished outputs over. Returns the number of items answered so far."""
        if self.ended or self._process is None:
            return self._seen(0)
        status = self._process.poll()
        scan = self.scan()
        if status is not None:
            self._finish(status)
            return self._seen(0)
        self._release_links(scan)
        waiting = len(scan.complete)
        if self.tool.collect_while_running:
            self._take(scan.complete)
            waiting = 0
        now = time.monotonic()
        if len(self._doubtful) >= _HOPELESS and not self.done:
            self.abort(told(self._doubtful, len(self.items)))  # every answer so far is unusable
            return self._seen(0)
        if len(scan.wrong) < _HOPELESS or waiting or self.done:
            self._well = now
        self._wrong = scan.wrong
        sign = (self._seen(waiting), len(scan.wrong), _size(self.log))
        if sign != self._sign:
            self._sign, self._sign_of_life = sign, now
        if now - self._well > _HOPELESS_S:
            self.abort(self._wrong_size_text())
        elif timeout_s is not None and now - self._begun > timeout_s:
            self.abort(f"it was not ready after {timeout_s:g} s")
        elif now - self._sign_of_life > stall_timeout_s:
            self.abort(f"no output and no message for {stall_timeout_s:g} s")
        return self._seen(waiting)

    def ask_to_end(self) -> None:
        """Send the tool's processes SIGTERM and return at once."""
        if self._process is not None and not self.ended:
            terminate(self._process)

    def abort(self, reason: str) -> None:
        """End the tool because of ``reason``; what it finished is kept."""
        if self._process is not None and not self.ended:
            stop(self._process)
            self._finish(None, reason)

    def scan(self) -> Scan:
        """Sort the files in the output folder."""
        folder = self.tool.outputs(self.job)
        return Scan() if folder is None else scan_folder(folder, self._names, self._collector.sizes())

    def _finish(self, status: int | None, reason: str | None = None) -> None:
        assert self._process is not None
        stop(self._process)  # helpers it may have left behind
        self.ended = True
        self.seconds = time.monotonic() - self._begun
        self._use_summary()
        scan = self.scan()
        self._take(scan.complete)
        self._wrong = scan.wrong
        text = read_log(self.log)
        self.problem = reason or self.tool.problem(status, text) or self._incomplete()
        self.performance, _ = self.tool.performance(self.job, text)

    def _incomplete(self) -> str | None:
        missing = [item.stem for item in self.items.values() if self._left[item.index] > 0]
        if self._doubtful:
            return told(self._doubtful, len(self.items))
        if not missing:
            return None
        if self._wrong:
            return f"it reported success, but {self._wrong_size_text()}"
        count = f"{len(missing)} of {len(self.items)} inputs"
        return f"it reported success, but outputs of {count} are missing (first: {missing[0]})"

    def _wrong_size_text(self) -> str:
        name, size = next(iter(self._wrong.items()))
        expected = self._collector.sizes()[self._names[name][1]]
        hint = ""
        if size * 2 == expected:
            hint = "; half the size: does the OM give float16, unlike its record? compile it again"
        return f"{len(self._wrong)} outputs have a wrong size (first: {name}, {size} bytes, expected {expected}{hint})"

    def _take(self, found: Sequence[tuple[Path, Item, int]]) -> None:
        header = self._collector.worklist.header
        self._collector.doubtful.clear()
        self._collector.take(found)
        self._doubtful |= self._collector.doubtful
        for _, item, output in found:
            if item.stem in self._collector.doubtful:
                continue
            if header.outputs[self._collector.compiled.positions[output]].keep:
                self._left[item.index] -= 1
        self.done = sum(left <= 0 for left in self._left.values())

    def _release_links(self, scan: Scan) -> None:
        """Remove links to inputs that were answered: to whoever sums up file sizes they look like twice the disk."""
        for _, item, _ in scan.complete:
            link = self._links.pop(item.index, None)
            if link is not None:
                link.unlink(missing_ok=True)

    def _use_summary(self) -> None:
        """Prefer the tool's own word on which file is whose to the rule its names follow."""
        table = self.tool.written(self.job)
        if table is None:
            return
        for stem, paths in table.items():
            if stem in self.items and len(paths) == len(self._collector.compiled.outputs):
                for output, path in enumerate(paths):
                    self._names[path.name] = (self.items[stem], output)

    def _needed(self) -> int:
        positions = self._collector.compiled.positions
        return sum(self._collector.worklist.header.outputs[position].keep for position in positions)

    def _seen(self, waiting: int) -> int:
        outputs = max(len(self._collector.compiled.outputs), 1)
        return min(len(self.items), self.done + waiting // outputs)

    def _record(self, command: Sequence[str], pid: int) -> dict[str, Any]:
        born = None
        with suppress(psutil.Error):
            born = psutil.Process(pid).create_time()
        return {
            "pid": pid,
            "born": born,
            "tool": self.tool.name,
            "device": self.job.device,
            "fold": self._collector.fold,
            "om_sha256": self._collector.compiled.record.sha256,
            "command": list(command),
            "items": {stem: item.index for stem, item in self.items.items()},
        }


def scan_folder(folder: Path, names: Mapping[str, tuple[Item, int]], sizes: Sequence[int]) -> Scan:
    """Sort the files of an output folder into complete outputs and those of another size."""
    scan = Scan()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name not in names:
                    continue
                item, output = names[entry.name]
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_size == sizes[output]:
                        scan.complete.append((Path(entry.path), item, output))
                    else:
                        scan.wrong[entry.name] = status.st_size
    except (FileNotFoundError, NotADirectoryError):
        pass
    return scan


def session_stems(items: Sequence[Item]) -> dict[str, Item]:
    """A stem for each item that every tool gives back unchanged, and that no two items share.

    ``ais_bench`` cuts names at the first dot, ``msame`` at the last: names with dots are replaced by a number.
    """
    return {(f"item_{item.index:08d}" if "." in item.stem else item.stem): item for item in items}


def link_inputs(worklist: Worklist, items: Mapping[str, Item], folder: Path) -> tuple[Path, ...]:
    """Hard links to the items' bins in a folder of their own (no symbolic links: some tools refuse them).

    Where the file system has no hard links, the bins are copied.
    """
    folder.mkdir(mode=_FOLDER_MODE)
    paths = []
    for stem, item in items.items():
        source, target = worklist.path(item), folder / f"{stem}.bin"
        unshare(source)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                raise
            shutil.copyfile(source, target)
        paths.append(target)
    return tuple(paths)


def unshare(path: Path) -> None:
    """Take away others' right to write a file of ours: newer tools refuse such files."""
    status = path.stat()
    if status.st_mode & _SHARED_WRITE and status.st_uid == os.geteuid():
        path.chmod(stat.S_IMODE(status.st_mode) & ~_SHARED_WRITE)


def recover(folder: Path, tool: Tool, collector: Collector) -> int:
    """Take over what a killed run left in a session folder: ends its tool if it still runs, keeps complete outputs.

    Returns:
        Number of needed outputs that were taken over; 0 where the session was of another tool, fold or OM.
    """
    try:
        record = read_json(folder / SESSION_FILE)
        pid, born, stems = int(record["pid"]), record["born"], dict(record["items"])
        same = (record["tool"], record["fold"], record["om_sha256"]) == (
            tool.name,
            collector.fold,
            collector.compiled.record.sha256,
        )
        device = int(record["device"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    end_leftover(folder, pid, born)
    if not same:
        return 0
    by_index = {item.index: item for item in collector.worklist.items()}
    items = {stem: by_index[index] for stem, index in stems.items() if index in by_index}
    job = SessionJob(folder, collector.compiled.path, (), folder / "inputs", device, (0, 0))
    place = tool.outputs(job)
    names = {
        tool.file_name(stem, output): (item, output)
        for stem, item in items.items()
        for output in range(len(collector.compiled.outputs))
    }
    return collector.take(scan_folder(place, names, collector.sizes()).complete) if place is not None else 0


def end_leftover(folder: Path, pid: int, born: object) -> None:
    """End the process group of a tool that outlived its run.

    The birth time tells it from a later process, and its working folder from one that the session never started: whoever wrote
    the session's file does not decide which process ends.
    """
    if not isinstance(born, int | float):
        return
    with suppress(psutil.Error, ProcessLookupError, PermissionError, OverflowError, ValueError):
        process = psutil.Process(pid)
        if abs(process.create_time() - born) < 1.0 and Path(process.cwd()) == folder.resolve():
            os.killpg(pid, 9)
            process.wait(5)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
