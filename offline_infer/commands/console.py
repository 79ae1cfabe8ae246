"""Sinks for progress events: a bar for people, JSON lines for programs."""

from __future__ import annotations

import atexit
import json
from typing import TextIO

from offline_infer.commands.printable import printable
from offline_infer.commands.remedies import advise
from offline_infer.events import Event, Sink


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


def terminal() -> Sink:
    """A progress bar per case and a line for whatever finished or failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    bars.start()
    atexit.register(bars.stop)  # gives the cursor back, whatever ends the program
    tasks: dict[tuple[str, str | None], TaskID] = {}

    def write(event: Event) -> None:
        key = (event.stage, event.case)
        if event.kind == "progress":
            if key not in tasks:
                tasks[key] = bars.add_task(escape(printable(f"{event.stage} {event.case or ''}")), total=event.total)
            bars.update(tasks[key], completed=event.done, total=event.total)
            if event.done == event.total:
                bars.remove_task(tasks.pop(key))
                if not tasks:
                    bars.refresh()
        elif event.kind in ("case-failed", "case-skipped", "case-finished", "note", "forecast"):
            colour = {"case-failed": "red", "case-finished": "green"}.get(event.kind, "yellow")
            shown = {name: value for name, value in event.data.items() if not isinstance(value, dict)}
            facts = advise(" ".join(f"{name}={value}" for name, value in shown.items()))
            # Names and reasons come from files: they are text, whatever brackets and control characters they hold.
            words = escape(printable(f"{event.stage} {event.case or ''} {facts}"))
            console.print(f"[{colour}]{event.kind}[/{colour}] {words}", highlight=False)

    return write
