"""Sinks for progress events: sentences and one bar for people, short lines for logs, JSON lines for programs."""

from __future__ import annotations

import atexit
import json
from typing import Any, TextIO

from offline_infer.commands.printable import printable
from offline_infer.commands.remedies import advise
from offline_infer.events import Event, Sink

_COLOURS = {"case-failed": "red", "case-finished": "green"}


def json_lines(stream: TextIO) -> Sink:
    """One JSON object a line. Progress is thinned to every twentieth so that logs stay readable."""

    def write(event: Event) -> None:
        within = event.kind == "progress" and event.total and event.done not in (1, event.total)
        if within and (event.done or 0) % max((event.total or 0) // 20, 1):
            return
        record = {key: advise(value) if isinstance(value, str) else value for key, value in event.to_json().items()}
        stream.write(json.dumps(record, default=str) + "\n")
        stream.flush()

    return write


def plain_lines(stream: TextIO) -> Sink:
    """A short line for whatever finished, failed or is worth a word; no progress within a case."""

    def write(event: Event) -> None:
        text = sentence(event)
        if text:
            stream.write(printable(text) + "\n")
            stream.flush()

    return write


def terminal() -> Sink:
    """One bar that says which case and how far, and a sentence for whatever finished or failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, transient=True)
    bars.start()
    atexit.register(bars.stop)  # gives the cursor back, whatever ends the program
    bar = bars.add_task("", visible=False)
    count = _CaseCount()

    def write(event: Event) -> None:
        count.see(event)
        if event.kind == "progress":
            words = escape(printable(f"{event.stage} {count.text(event)}".strip()))
            bars.update(bar, description=words, completed=event.done, total=event.total, visible=True)
            if event.done == event.total:
                bars.reset(bar, visible=False)
            return
        text = sentence(event)
        if text:
            # Names and reasons come from files: they are text, whatever brackets and control characters they hold.
            colour = _COLOURS.get(event.kind, "default")
            console.print(f"[{colour}]{escape(printable(text))}[/{colour}]", highlight=False)

    return write


class _CaseCount:
    """Which case of how many is under way."""

    def __init__(self) -> None:
        self._total = 0
        self._seen: dict[str, int] = {}

    def see(self, event: Event) -> None:
        if event.kind == "stage-started":
            self._total, self._seen = event.total or 0, {}
        if event.kind in ("case-started", "case-skipped", "case-failed") and event.case is not None:
            self._seen.setdefault(event.case, len(self._seen) + 1)

    def text(self, event: Event) -> str:
        if event.case is None:
            return ""
        number = self._seen.get(event.case)
        place = f"case {number}/{self._total} " if number and self._total else ""
        return f"{place}{event.case}"


def sentence(event: Event) -> str:
    """What an event says to a person; empty where there is nothing to say."""
    case = f"{event.case}: " if event.case else ""
    data = event.data
    if event.kind == "case-finished":
        return f"{case}done{_taken(data.get('seconds'))}"
    if event.kind == "case-skipped":
        return f"{case}finished before, skipped"
    if event.kind == "case-failed":
        return f"{case}failed: {advise(str(data.get('reason', 'no reason given')))}"
    if event.kind == "forecast":
        return _disk_forecast(data)
    if event.kind == "estimate":
        return _memory_estimate(data)
    if event.kind == "note":
        return f"{case}{_note(data)}" if _note(data) else ""
    return ""


def _taken(seconds: Any) -> str:
    if isinstance(seconds, dict):
        seconds = sum(value for value in seconds.values() if isinstance(value, (int, float)))
    return f" in {seconds:.1f} s" if isinstance(seconds, (int, float)) and seconds else ""


def _note(data: dict[str, Any]) -> str:
    for name in ("text", "note"):
        if isinstance(data.get(name), str):
            return advise(data[name])
    plain = {name: value for name, value in data.items() if isinstance(value, (str, int, float))}
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def _disk_forecast(data: dict[str, Any]) -> str:
    if "peak_bytes" in data:
        return f"needs {_size(data['peak_bytes'])} of disk, {_size(data.get('free_bytes', 0))} are free"
    return ""


def _memory_estimate(data: dict[str, Any]) -> str:
    if "peak_without_engine" in data:
        need = data["peak_without_engine"] + data.get("engine_estimate", 0)
        slower = "" if data.get("read_ahead", True) else "; cases will not overlap, to save memory"
        return f"the largest case needs about {_size(need)} of memory, {_size(data.get('room', 0))} are free{slower}"
    return ""


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
