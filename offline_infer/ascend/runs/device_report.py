"""What became of a run of an external tool over several devices."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from offline_infer.ascend.figures import PerformanceRecord


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
        answers: needed (items x folds); ``reused`` of them were there before.
        sessions: in order of start.
        excluded: devices that failed too often.
        performance: the tool's own figures, None where it left none.
    """

    tool: str
    generation: str
    soc: str
    answers: int
    reused: int
    seconds: float
    sessions: tuple[SessionReport, ...]
    excluded: tuple[int, ...]
    performance: PerformanceRecord | None

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
            "reused": self.reused,
            "seconds": round(self.seconds, 3),
            "end_to_end_per_s": (self.answers - self.reused) / self.seconds if self.seconds > 0 else None,
            "sessions": [asdict(session) for session in self.sessions],
            "failures": [asdict(session) for session in self.sessions if session.problem],
            "excluded_devices": list(self.excluded),
            "performance": self.performance.to_json() if self.performance else None,
        }
