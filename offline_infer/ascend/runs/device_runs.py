"""The items of a work folder answered by an external tool on several devices at once.

Every device gets a contiguous share and a session of its own. A session that dies, stops answering or leaves outputs
out loses only what it had not finished: the rest is shared among the healthy devices. A device that fails
twice is not used again. What counts as an answer is a file of the right size; the manifest says whose it is.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from offline_infer.ascend.compiled import Compiled, select
from offline_infer.ascend.figures import DevicePerformance, combine
from offline_infer.ascend.limits import STALL_TIMEOUT_S
from offline_infer.ascend.runs.device_report import DeviceRunReport, SessionReport, record_run
from offline_infer.ascend.runs.device_session import (
    Collector,
    DeviceSession,
    link_inputs,
    recover,
    session_stems,
    unshare,
)
from offline_infer.ascend.tools import Program, SessionJob, Tool, get_tool
from offline_infer.bundles.artefacts import precision_of
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.fingerprint import fingerprint
from offline_infer.engines.om.npu_smi import DeviceQuery, list_devices
from offline_infer.errors import DiskBudgetError, ToolError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.interruption import termination_as_interrupt
from offline_infer.locks import locked_or_refused
from offline_infer.staging.disk_budget import free_bytes, size_text
from offline_infer.staging.judging import AnswerJudge, forget_unusable, tell_unusable
from offline_infer.staging.outputs import WRITERS, OutputsManifest
from offline_infer.staging.work_folder import safe_name
from offline_infer.staging.worklist import Item, Worklist, output_bytes
from offline_infer.tasks.records import joined

SESSIONS = "sessions"
PERFORMANCE_FILE = "perf/performance.json"
FAILURES_ALLOWED = 1
"""A device that fails more often is not used again."""

_LONGEST_PAUSE_S = 1.0


@dataclass
class DeviceRunner:
    """Runs a tool over work folders; remembers failing devices from one folder to the next, for runs in rounds.

    Attributes:
        bundle: with an OM for every fold of the work folders.
        tool: ``benchmark``, ``msame`` or ``ais_bench``.
        devices: numbers.
        tool_path: the program, or the folder it is in; None: looked for on PATH.
        soc: chip, where the bundle has OMs for several.
        stall_timeout_s: a session that produces no output and prints nothing for this long is ended.
        timeout_s: a session is ended after this time even if it makes progress; None: no limit.
        drop_redundant: delete outputs inference does not need as soon as they are complete.
        failures: device -> reasons of its failures.
    """

    bundle: Bundle
    tool: str
    devices: Sequence[int] = (0,)
    tool_path: Path | None = None
    soc: str | None = None
    stall_timeout_s: float = STALL_TIMEOUT_S
    timeout_s: float | None = None
    drop_redundant: bool = False
    sink: Sink = silent
    failures: dict[int, list[str]] = field(default_factory=dict)
    _compiled: dict[str, Compiled] = field(default_factory=dict)
    _program: Program | None = None
    _query: DeviceQuery | None = None

    def compiled(self, fold: str) -> Compiled:
        """The OM of a fold; see :func:`offline_infer.ascend.compiled.select`."""
        if self._query is None:
            self._query = list_devices()
            for text in doubts(self._query, self.devices):
                self.sink(Event("note", "infer", data={"text": text}))
        if fold not in self._compiled:
            self._compiled[fold] = select(self.bundle, fold, self.soc, self._query, self.devices)
        return self._compiled[fold]

    def writes_redundant(self, folds: Sequence[str]) -> bool:
        """Whether the OMs give outputs that inference does not need: they take disk until they are cleaned."""
        return any(not output.keep for fold in folds for output in self.compiled(fold).outputs)

    def precision(self, folds: Sequence[str]) -> str:
        """What the OMs compute in."""
        return joined(precision_of(self.compiled(fold).record) for fold in folds)

    def run(self, work: Path | str) -> DeviceRunReport:
        """Answer every item of a work folder that has no complete answer yet.

        Raises:
            UsageError: the folder, the OM or the paths do not fit, or another run is using the folder.
            EngineUnavailable: the tool is not there.
            DiskBudgetError: the outputs will not fit the disk.
            ToolError: no device is left, and outputs are missing; the message says which.
        """
        folder = Path(work).resolve()
        tool = get_tool(self.tool)
        _check_devices(self.devices)
        worklist = Worklist.load(folder)
        if worklist.header.fingerprint != fingerprint(self.bundle.spec):
            raise UsageError(
                f"{folder} was made for another model than {self.bundle.name}; preprocess into a new folder"
            )
        if not worklist.items():
            raise UsageError(f"{folder} holds no items to answer; preprocess cases into it first")
        if self._program is None:
            self._program = tool.find(self.tool_path)
        with _only_run(folder) as sessions, termination_as_interrupt():
            return _FolderRun(self, tool, self._program, worklist, sessions).run()

    @property
    def excluded(self) -> tuple[int, ...]:
        """Devices that failed too often."""
        return tuple(device for device in self.devices if len(self.failures.get(device, ())) > FAILURES_ALLOWED)


def run_tool(bundle: Bundle, work: Path | str, **settings: Any) -> DeviceRunReport:
    """Answer the items of one work folder; settings as in :class:`DeviceRunner` (``tool``, ``devices``, ...)."""
    return DeviceRunner(bundle, **settings).run(work)


class _FolderRun:
    """One work folder; see :meth:`DeviceRunner.run`."""

    def __init__(self, runner: DeviceRunner, tool: Tool, program: Program, worklist: Worklist, place: Path) -> None:
        self._runner = runner
        self._tool = tool
        self._program = program
        self._worklist = worklist
        self._place = place
        self._manifest = OutputsManifest.load(worklist.work)
        self._reports: list[SessionReport] = []
        self._figures: list[DevicePerformance] = []
        self._socs: set[str] = set()
        self._reused = 0
        self._total = len(worklist.items()) * len(worklist.header.folds)
        self._done = 0

    def run(self) -> DeviceRunReport:
        """Fold by fold; what was done is recorded even if the rest fails."""
        started = time.monotonic()
        try:
            for fold in self._worklist.header.folds:
                self._run_fold(fold)
        finally:
            report = self._report(time.monotonic() - started)
            if self._reports:
                record_run(self._worklist.work / PERFORMANCE_FILE, report)
        return report

    def _run_fold(self, fold: str) -> None:
        compiled = self._runner.compiled(fold)
        self._socs.add(compiled.record.soc)
        self._check(compiled)
        collector = self._collector(fold, compiled)
        try:
            self._complete_fold(fold, compiled, collector)
        finally:
            collector.judge.close()

    def _complete_fold(self, fold: str, compiled: Compiled, collector: Collector) -> None:
        """What earlier runs left is taken over where it can be used; the rest is done."""
        for leftover in sorted(self._place.glob(f"fold_{safe_name(fold)}_*")):
            recover(leftover, self._tool, collector)
            shutil.rmtree(leftover, ignore_errors=True)
        unusable = forget_unusable(self._worklist, self._manifest, fold, collector.judge.fault)
        tell_unusable(unusable, self._runner.sink)
        pending = self._pending(fold)
        self._reused += len(self._worklist.items()) - len(pending)
        self._done = self._reused
        if not pending:
            return
        self._check_room(pending, compiled)
        self._manifest.append([], collector.writer)
        self._answer(fold, compiled, collector, pending)

    def _report(self, seconds: float) -> DeviceRunReport:
        soc = ", ".join(sorted(self._socs))
        return DeviceRunReport(
            tool=self._tool.name,
            generation=self._program.generation,
            soc=soc,
            answers=self._total,
            answered=sum(report.done for report in self._reports),
            reused=self._reused,
            seconds=seconds,
            sessions=tuple(self._reports),
            excluded=self._runner.excluded,
            performance=combine(self._figures, soc) if self._figures else None,
            figures=tuple(self._figures),
        )

    def _answer(self, fold: str, compiled: Compiled, collector: Collector, pending: list[Item]) -> None:
        """Rounds until nothing is pending: share, run, and share what is left among the healthy devices."""
        failed_last: set[int] = set()
        number = 0
        while pending:
            living = [device for device in self._runner.devices if device not in self._runner.excluded]
            # A device that has just failed gets a second chance only where no other is left.
            chosen = [device for device in living if device not in failed_last] or living
            if not chosen:
                raise ToolError(self._hopeless(fold, pending))
            number += 1
            shards = share(pending, len(chosen))
            sessions = [
                self._session(fold, number, device, shard, compiled, collector)
                for device, shard in zip(chosen, shards, strict=False)
            ]
            self._run_round(sessions)
            failed_last = set()
            for session in sessions:
                self._note(session, fold, number)
                if session.problem is not None and session.done < len(session.items):
                    failed_last.add(session.job.device)
                shutil.rmtree(session.job.folder, ignore_errors=True)
            pending = self._pending(fold)
            if pending:
                self._refuse_full_disk(pending, compiled)

    def _run_round(self, sessions: Sequence[DeviceSession]) -> None:
        """Start the sessions and look after them until all have ended."""
        pause = 0.02
        before = self._done
        try:
            for session in sessions:
                session.start()
            while not all(session.ended for session in sessions):
                time.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE_S)
                limits = (self._runner.stall_timeout_s, self._runner.timeout_s)
                seen = before + sum(session.poll(*limits) for session in sessions)
                if seen != self._done:
                    self._done = seen
                    self._runner.sink(Event("progress", "infer", None, seen, self._total))
        finally:
            for session in sessions:
                session.ask_to_end()  # all at once, so that they end together
            for session in sessions:
                session.abort("the run was interrupted")
        self._done = before + sum(session.done for session in sessions)

    def _session(
        self, fold: str, number: int, device: int, shard: Sequence[Item], compiled: Compiled, collector: Collector
    ) -> DeviceSession:
        folder = self._place / f"fold_{safe_name(fold)}_{number}_device_{device}_{secrets.token_hex(3)}"
        folder.mkdir(mode=0o750)
        items = session_stems(shard)
        own = self._worklist.work / "inputs"
        # Links are only made where they are needed: they look like twice the disk to whoever sums up file sizes.
        plain = all(stem == item.stem and self._worklist.path(item).parent == own for stem, item in items.items())
        if plain and (not self._tool.takes_folder or _holds_exactly(own, items)):
            inputs, input_folder = tuple(self._worklist.path(item) for item in items.values()), own
            for path in (own, *inputs):
                unshare(path)
        else:
            input_folder = folder / "inputs"
            inputs = link_inputs(self._worklist, items, input_folder)
        shape = self._worklist.header.input_shape
        job = SessionJob(
            folder=folder,
            model=self._model(folder, compiled),
            inputs=inputs,
            input_folder=input_folder,
            device=device,
            size=(shape[-1], shape[-2]),
        )
        if compiled.complete and not self._tool.collect_while_running and plain:
            # Lets 'clean' tell redundant outputs while the tool still writes them.
            place = self._tool.outputs(job)
            assert place is not None
            where = place.relative_to(self._worklist.work).as_posix()
            self._manifest.append([], collector.writer.model_copy(update={"folder": where}))
        return DeviceSession(self._tool, self._program, job, items, collector)

    def _model(self, folder: Path, compiled: Compiled) -> Path:
        """The OM as it is, or a private copy where a tool would refuse its path or its permissions."""
        path = compiled.path.resolve()
        status = path.stat()
        if (
            self._tool.safe_paths.fullmatch(str(path))
            and status.st_uid == os.geteuid()
            and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            return path
        copy = folder / "model.om"
        shutil.copyfile(path, copy)
        copy.chmod(0o640)
        return copy

    def _collector(self, fold: str, compiled: Compiled) -> Collector:
        writer = WRITERS[self._tool.name].model_copy(
            update={
                "compiled": {fold: compiled.record.sha256},
                "details": {
                    "command": " ".join(self._program.command),
                    "generation": self._program.generation,
                    "soc": compiled.record.soc,
                    "device": "npu",
                    "precision": precision_of(compiled.record),
                },
            }
        )
        judge = AnswerJudge(self._runner.bundle, self._worklist, fold)
        return Collector(self._worklist, self._manifest, fold, compiled, writer, self._runner.drop_redundant, judge)

    def _pending(self, fold: str) -> list[Item]:
        kept = self._worklist.header.kept
        return [
            item
            for item in self._worklist.items()
            if any(self._manifest.complete(item.index, fold, output) is None for output in kept)
        ]

    def _note(self, session: DeviceSession, fold: str, number: int) -> None:
        """Keep the session's log and figures, and say how it ended."""
        device = session.job.device
        records = self._worklist.work / "perf"
        records.mkdir(exist_ok=True)
        stem = f"{self._tool.name}_fold_{safe_name(fold)}_round_{number}_device_{device}"
        log = records / f"{stem}.log"
        with suppress(OSError):
            session.log.replace(log)
        figures = self._tool.performance(session.job, "")[1]
        if figures is not None:
            ending = "_summary.json" if figures.suffix == ".json" else ".txt"
            with suppress(OSError):
                figures.replace(records / f"perf_{stem}{ending}")
        if session.performance is not None and session.problem is None:
            self._figures.append(session.performance)
        report = SessionReport(
            fold=fold,
            device=device,
            round=number,
            items=len(session.items),
            done=session.done,
            seconds=round(session.seconds, 3),
            problem=session.problem,
            log=log.relative_to(self._worklist.work).as_posix(),
        )
        self._reports.append(report)
        if session.problem is not None:
            left = len(session.items) - session.done
            if left:  # a tool that ends badly after its last output has done its work
                self._runner.failures.setdefault(device, []).append(session.problem)
            text = f"device {device} failed with {left} of {len(session.items)} items left: {session.problem}"
            self._runner.sink(Event("note", "infer", data={"text": text, **asdict(report)}))

    def _hopeless(self, fold: str, pending: Sequence[Item]) -> str:
        reasons = "; ".join(f"device {device}: {self._runner.failures[device][-1]}" for device in self._runner.excluded)
        logs = ", ".join(report.log for report in self._reports if report.problem)[:400]
        return (
            f"{self._tool.name}: no device is left, and outputs of {len(pending)} of {len(self._worklist)} items are "
            f"missing (fold {fold}, first: {pending[0].stem}); {reasons}; logs in {self._worklist.work}: {logs}; "
            "put it right and run infer again: it does only what is missing"
        )

    def _check(self, compiled: Compiled) -> None:
        """Refuse what would fail only after hours: dtype of the bins, paths a tool cannot take."""
        header = self._worklist.header
        if header.input_dtype != compiled.record.input_dtype:
            raise UsageError(
                f"the bins in {self._worklist.work} are {header.input_dtype}, the OM {compiled.record.file} takes "
                f"{compiled.record.input_dtype}; preprocess with that dtype or compile with it"
            )
        work = str(self._worklist.work)
        if not self._tool.safe_paths.fullmatch(work):
            raise UsageError(
                f"{self._tool.name} cannot be given the path {work!r}: "
                "use a work folder whose path has letters, digits, '_', '-', '.' and '/' only"
            )

    def _check_room(self, pending: Sequence[Item], compiled: Compiled) -> None:
        need = len(pending) * _bytes_per_item(
            compiled, self._runner.drop_redundant and self._tool.collect_while_running
        )
        free = free_bytes(self._worklist.work)
        if need > free:
            raise DiskBudgetError(
                f"{len(pending)} items need {size_text(need)} of disk for their outputs, {self._worklist.work} has "
                f"{size_text(free)} free; free some disk, or export one head only",
                remedy="work-in-rounds",
            )

    def _refuse_full_disk(self, pending: Sequence[Item], compiled: Compiled) -> None:
        """After a failure: another device cannot help if the disk is full."""
        need = _bytes_per_item(compiled, False)
        if free_bytes(self._worklist.work) < need:
            raise DiskBudgetError(
                f"the disk of {self._worklist.work} is full; {len(pending)} items are not answered yet; free some disk "
                "or delete redundant outputs (offline-infer clean), then run infer again: it does only what is missing"
            )


# ---- pure ------------------------------------------------------------------------------------------------------------


def share(items: Sequence[Item], count: int) -> list[list[Item]]:
    """Contiguous, ordered shares that do not overlap and differ by one item at most; empty ones are left out."""
    count = min(count, len(items))
    return [list(items[i * len(items) // count : (i + 1) * len(items) // count]) for i in range(count)]


def doubts(query: DeviceQuery, devices: Sequence[int]) -> list[str]:
    """What npu-smi says against the chosen devices; the tool decides, since device numbers may be remapped."""
    known = {device.device: device for device in query.devices}
    if not known:
        return []
    found = [
        f"device {device} is not among those npu-smi lists ({', '.join(map(str, known))})"
        for device in devices
        if device not in known
    ]
    found += [
        f"device {device}: npu-smi reports its health as {known[device].health}"
        for device in devices
        if device in known and known[device].health.upper() != "OK"
    ]
    return found


def _bytes_per_item(compiled: Compiled, kept_only: bool) -> int:
    return sum(output_bytes(output) for output in compiled.outputs if output.keep or not kept_only)


def _holds_exactly(folder: Path, items: dict[str, Item]) -> bool:
    """Whether the folder's files are the items' bins and nothing else."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries} == {f"{stem}.bin" for stem in items}


def _check_devices(devices: Sequence[int]) -> None:
    if not devices or min(devices) < 0 or max(devices) > 255 or len(set(devices)) != len(devices):
        raise UsageError(f"devices {list(devices)}: expected different numbers from 0 to 255")


@contextmanager
def _only_run(work: Path) -> Iterator[Path]:
    """The folder for sessions, held against a second run on the same work folder; removed when it is empty at the end.

    Raises:
        UsageError: another run is using the folder.
    """
    place = work / SESSIONS
    place.mkdir(mode=0o750, exist_ok=True)
    with locked_or_refused(place, f"another infer is using {work}; wait for it, or name another folder"):
        try:
            yield place
        finally:
            with suppress(OSError):
                place.rmdir()  # stays if sessions of an interrupted run are in it
