"""What became of a run of an external tool over several devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offline_infer.ascend.figures import DevicePerformance, PerformanceRecord, combine
from offline_infer.errors import UsageError
from offline_infer.files import read_json, write_json

KIND = "offline_infer.device_run"


@dataclass(frozen=True)
class SessionReport:
    """One session: which device, how many items, how it ended."""

    fold: str
    device: int
    round: int
    items: int
    done: int
    seconds: float
    problem: str | None
    log: str


@dataclass(frozen=True)
class DeviceRunReport:
    """A run over all devices.

    Attributes:
        answers: needed (items x folds); ``reused`` of them were there before, ``answered`` are new.
        sessions: in order of start.
        excluded: devices that failed too often.
        performance: the tool's own figures, None where it left none.
        figures: the same, session by session.
    """

    tool: str
    generation: str
    soc: str
    answers: int
    answered: int
    reused: int
    seconds: float
    sessions: tuple[SessionReport, ...]
    excluded: tuple[int, ...]
    performance: PerformanceRecord | None
    figures: tuple[DevicePerformance, ...] = ()

    def to_text(self) -> str:
        """For people: what was done, what failed, how fast."""
        lines = [
            f"{self.tool} on {self.soc}: {self.answers} answers, {self.reused} of them were there before, "
            f"in {self.seconds:.1f} s"
        ]
        for session in self.sessions:
            if session.problem:
                left = session.items - session.done
                what = f"failed with {left} of its {session.items} items left" if left else "ended badly, its work done"
                lines.append(f"device {session.device} {what}: {session.problem}")
        if self.excluded:
            lines.append(f"not used again: device {', '.join(map(str, self.excluded))}")
        if self.performance is not None:
            lines.append(self.performance.to_text())
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "tool": self.tool,
            "generation": self.generation or None,
            "soc": self.soc,
            "answers": self.answers,
            "answered": self.answered,
            "reused": self.reused,
            "seconds": round(self.seconds, 3),
            "end_to_end_per_s": self.answered / self.seconds if self.seconds > 0 else None,
            "sessions": [asdict(session) for session in self.sessions],
            "failures": [asdict(session) for session in self.sessions if session.problem],
            "excluded_devices": list(self.excluded),
            "performance": self.performance.to_json() if self.performance else None,
        }


def record_run(path: Path, report: DeviceRunReport) -> None:
    """Write a run to ``perf/performance.json``; one that goes on where an earlier one stopped is added to it.

    The figures stand at the top level, over all sessions of all parts, where ``report`` looks for them. A record of
    another tool or chip, or one that cannot be read, is replaced.
    """
    parts = [report.to_json() | {"figures": [figure.to_json() for figure in report.figures]}]
    parts = [*_earlier(path, report), *parts]
    figures = [figure for part in parts for figure in _figures_of(part)]
    performance = combine(figures, report.soc).to_json() if figures else {}
    sessions = [session for part in parts for session in part["sessions"]]
    seconds = sum(part["seconds"] for part in parts)
    done = sum(part["answered"] for part in parts)
    record = {
        "kind": KIND,
        **performance,
        "tool": report.tool,
        "generation": report.generation or None,
        "soc": report.soc,
        "answers": report.answers,
        "answered": done,
        "seconds": round(seconds, 3),
        "end_to_end_per_s": done / seconds if seconds > 0 else None,
        "sessions": sessions,
        "failures": [session for session in sessions if session["problem"]],
        "excluded_devices": sorted({device for part in parts for device in part["excluded_devices"]}),
        "parts": parts,
    }
    write_json(path, record)


def _earlier(path: Path, report: DeviceRunReport) -> Sequence[dict[str, Any]]:
    """The parts of a record that this run goes on from."""
    try:
        record = read_json(path)
        if (record["kind"], record["tool"], record["soc"]) != (KIND, report.tool, report.soc):
            return ()
        parts: list[dict[str, Any]] = record["parts"]
        for part in parts:  # what is missing is noticed here, not in the middle of the sums
            _figures_of(part)
            _ = [session["problem"] for session in part["sessions"]]
            _ = part["seconds"] + part["answered"] + len(part["excluded_devices"])
        return parts
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        return ()


def _figures_of(part: dict[str, Any]) -> list[DevicePerformance]:
    return [DevicePerformance.from_json(record) for record in part["figures"]]
