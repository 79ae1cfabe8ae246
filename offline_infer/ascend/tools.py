"""The three inference tools: how each is found, started, and read.

================  =============================  ==================================  ======================
tool              inputs                         outputs of one input                says success by
================  =============================  ==================================  ======================
``benchmark``     info file                      ``result/dumpOutput_device<N>/``    exit status 0
                                                 ``<stem>_<k>.bin``, k from 1
``msame``         folder                         ``<out>/<time stamp>/``             ``Execute sample success``
                                                 ``<stem>_output_<i>.bin``, from 0
``ais_bench``     folder                         ``<out>/run/<stem>_<i>.bin``,       exit status 0
                                                 from 0; ``<out>/run_summary.json``
================  =============================  ==================================  ======================

No tool is believed: what counts are the output files and their sizes. Each session has one device, a folder of its own
as working directory, and is given absolute paths.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from offline_infer.ascend.figures import (
    DevicePerformance,
    ais_bench_files,
    parse_ais_bench,
    parse_benchmark,
    parse_msame,
)
from offline_infer.engines.om.error_codes import sentences
from offline_infer.errors import EngineUnavailable, Remedy, UsageError
from offline_infer.processes import ask, describe_status, find_program, last_lines

RUN = "run"
"""Name of the output folder ``ais_bench`` is asked to make."""
_NAME_IT = Remedy("name-tool")


@dataclass(frozen=True)
class Program:
    """How a tool is started.

    Attributes:
        command: the first words of its command line.
        environment: additions to the environment.
        generation: ``v2023``, ``v2024`` or ``unknown`` for ``ais_bench``; empty for the others.
    """

    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    generation: str = ""

    def environ(self) -> dict[str, str] | None:
        """The whole environment for the process; None: as it is."""
        return {**os.environ, **dict(self.environment)} if self.environment else None


@dataclass(frozen=True)
class SessionJob:
    """One run of a tool on one device.

    Attributes:
        folder: working directory, the session's own.
        model: the OM, absolute.
        inputs: files in order; what they are called decides the names of the outputs.
        input_folder: folder that holds exactly ``inputs``; for tools that take folders.
        device: number.
        size: (width, height) for the info file.
    """

    folder: Path
    model: Path
    inputs: tuple[Path, ...]
    input_folder: Path
    device: int
    size: tuple[int, int]


class Tool(Protocol):
    """What is particular to a tool."""

    name: str
    takes_folder: bool
    """Inputs are given as a folder rather than as a list."""
    safe_paths: re.Pattern[str]
    """Paths the tool can be given."""
    collect_while_running: bool
    """Whether finished outputs may be moved away before the tool has ended."""

    def find(self, path: Path | None) -> Program:
        """How to start it.

        Raises:
            EngineUnavailable, UsageError: it is not there.
        """
        ...

    def prepare(self, job: SessionJob) -> None:
        """Write what the tool reads besides the inputs."""
        ...

    def command(self, program: Program, job: SessionJob) -> list[str]:
        """The whole command line."""
        ...

    def outputs(self, job: SessionJob) -> Path | None:
        """The folder the outputs are in, or None while there is none."""
        ...

    def file_name(self, stem: str, output: int) -> str:
        """Name of the OM's ``output`` (0-based) for the input ``<stem>.bin``."""
        ...

    def problem(self, status: int | None, log: str) -> str | None:
        """Why the session cannot count as a success, or None."""
        ...

    def performance(self, job: SessionJob, log: str) -> tuple[DevicePerformance | None, Path | None]:
        """The figures of a finished session, and the file they stand in."""
        ...

    def written(self, job: SessionJob) -> Mapping[str, Sequence[Path]] | None:
        """Input stem -> output files in order, where the tool itself says so."""
        ...


class Benchmark:
    """``benchmark.x86_64`` and ``benchmark.aarch64``."""

    name = "benchmark"
    takes_folder = False
    safe_paths = re.compile(r"[^\s=]+")  # blanks separate the fields of an info line
    collect_while_running = True

    def find(self, path: Path | None) -> Program:
        name = f"benchmark.{machine()}"
        purpose, remedy = (
            "the vendor's benchmark tool",
            f"get it for this machine and put it on PATH {_NAME_IT}",
        )
        return Program((_locate(path, name, purpose, remedy),))

    def prepare(self, job: SessionJob) -> None:
        width, height = job.size
        lines = [f"{index} {path} {width} {height}\n" for index, path in enumerate(job.inputs)]
        (job.folder / "inputs.info").write_text("".join(lines), encoding="utf-8")

    def command(self, program: Program, job: SessionJob) -> list[str]:
        return [
            *program.command,
            "-model_type=vision",
            f"-device_id={job.device}",
            "-batch_size=1",
            f"-om_path={job.model}",
            f"-input_text_path={job.folder / 'inputs.info'}",
            f"-input_width={job.size[0]}",
            f"-input_height={job.size[1]}",
            "-output_binary=True",
            "-useDvpp=False",
        ]

    def outputs(self, job: SessionJob) -> Path | None:
        return job.folder / "result" / f"dumpOutput_device{job.device}"

    def file_name(self, stem: str, output: int) -> str:
        return f"{stem}_{output + 1}.bin"

    def problem(self, status: int | None, log: str) -> str | None:
        return _status_problem(status, log)

    def performance(self, job: SessionJob, log: str) -> tuple[DevicePerformance | None, Path | None]:
        for place in (job.folder / "result", job.folder):
            for path in sorted(place.glob(f"perf_*device_{job.device}.txt")):
                text = path.read_text(encoding="utf-8", errors="replace")
                return parse_benchmark(text, job.device, path.name), path
        return None, None

    def written(self, job: SessionJob) -> Mapping[str, Sequence[Path]] | None:
        return None


class Msame:
    """``msame``: ends with status 0 even for wrong options, and may pass over a failing file."""

    name = "msame"
    takes_folder = True
    safe_paths = re.compile(r"[^\s,;=]+")  # commas separate inputs
    collect_while_running = True

    def find(self, path: Path | None) -> Program:
        return Program((_locate(path, "msame", "msame", f"build it and put it on PATH {_NAME_IT}"),))

    def prepare(self, job: SessionJob) -> None:
        (job.folder / "out").mkdir(exist_ok=True)  # older releases do not make it

    def command(self, program: Program, job: SessionJob) -> list[str]:
        return [
            *program.command,
            "--model",
            str(job.model),
            "--input",
            str(job.input_folder),
            "--output",
            str(job.folder / "out"),
            "--outfmt",
            "BIN",
            "--device",
            str(job.device),
        ]

    def outputs(self, job: SessionJob) -> Path | None:
        # The folder is called after the time, with numbers that are not padded: take the one that is there.
        stamped = sorted(path for path in (job.folder / "out").glob("*") if path.is_dir())
        return stamped[-1] if stamped else None

    def file_name(self, stem: str, output: int) -> str:
        return f"{stem}_output_{output}.bin"

    def problem(self, status: int | None, log: str) -> str | None:
        reason = _status_problem(status, log)
        if reason is None and "Execute sample success" not in log:
            return _with_log("it ended without saying 'Execute sample success'", log)
        return reason

    def performance(self, job: SessionJob, log: str) -> tuple[DevicePerformance | None, Path | None]:
        return parse_msame(log, job.device), None

    def written(self, job: SessionJob) -> Mapping[str, Sequence[Path]] | None:
        return None


class AisBench:
    """``ais_bench``, as a program, as ``python -m ais_bench``, or as the older ``ais_infer.py``."""

    name = "ais_bench"
    takes_folder = True
    safe_paths = re.compile(r"[A-Za-z0-9_./-]+")
    collect_while_running = False  # its summary says which file is whose: wait for it

    def find(self, path: Path | None) -> Program:
        program = _find_ais_bench(path)
        status, text = ask_help(program)
        if status != 0 and (known := sentences(text)):
            raise EngineUnavailable(f"{' '.join(program.command)} does not start: {known}")
        generation = "unknown" if status != 0 else "v2024" if "--divide_input" in text else "v2023"
        return Program(program.command, program.environment, generation)

    def prepare(self, job: SessionJob) -> None:
        (job.folder / "out").mkdir(mode=0o750, exist_ok=True)

    def command(self, program: Program, job: SessionJob) -> list[str]:
        return [
            *program.command,
            "--model",
            str(job.model),
            "--input",
            str(job.input_folder),
            "--output",
            str(job.folder / "out"),
            "--output_dirname",
            RUN,
            "--outfmt",
            "BIN",
            "--device",
            str(job.device),
        ]

    def outputs(self, job: SessionJob) -> Path | None:
        return job.folder / "out" / RUN

    def file_name(self, stem: str, output: int) -> str:
        return f"{stem}_{output}.bin"

    def problem(self, status: int | None, log: str) -> str | None:
        return _status_problem(status, log)

    def performance(self, job: SessionJob, log: str) -> tuple[DevicePerformance | None, Path | None]:
        path = _summary(job)
        if path is None:
            return None, None
        text = path.read_text(encoding="utf-8", errors="replace")
        return parse_ais_bench(text, job.device, path.name), path

    def written(self, job: SessionJob) -> Mapping[str, Sequence[Path]] | None:
        path = _summary(job)
        if path is None:
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        except (ValueError, RecursionError):
            return None  # ended while it wrote the summary: names have to do
        table: dict[str, list[Path]] = {}
        for inputs, outputs in ais_bench_files(record if isinstance(record, dict) else {}):
            if len(inputs) == 1:  # several inputs in one run: sizes are wrong, nothing of it can be used
                table[Path(inputs[0]).name.removesuffix(".bin")] = [job.folder / name for name in outputs]
        return table or None


TOOLS: dict[str, Tool] = {tool.name: tool for tool in (Benchmark(), Msame(), AisBench())}
"""Tool name -> tool. Exact names only."""


def get_tool(name: str) -> Tool:
    """The tool of that name.

    Raises:
        UsageError: no such tool; the message lists the legal names.
    """
    if name not in TOOLS:
        raise UsageError(f"unknown tool {name!r}; legal names: {', '.join(TOOLS)}")
    return TOOLS[name]


def machine() -> str:
    """This machine as the benchmark tool's name ends: ``x86_64`` or ``aarch64``."""
    name = platform.machine()
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(name, name)


def ask_help(program: Program) -> tuple[int | None, str]:
    """``--help`` of a tool; importing the native half may take some seconds."""
    if program.environment:
        assignments = [f"{name}={value}" for name, value in program.environment]
        return ask(["env", *assignments, *program.command, "--help"], timeout_s=60)
    return ask([*program.command, "--help"], timeout_s=60)


# ---- finding ---------------------------------------------------------------------------------------------------------


def _locate(path: Path | None, name: str, purpose: str, remedy: str) -> str:
    """A program by explicit path (the file, or the folder it is in), else on PATH, else in the working directory."""
    if path is not None:
        given = path / name if path.is_dir() else path
        return find_program(given.absolute(), purpose=purpose, remedy=remedy)
    try:
        return find_program(name, purpose=purpose, remedy=remedy)
    except EngineUnavailable:
        here = Path.cwd() / name  # the guides put the tool beside the model
        if here.is_file():
            return find_program(here, purpose=purpose, remedy=remedy)
        raise


def _find_ais_bench(path: Path | None) -> Program:
    remedy = f"install the aclruntime and ais_bench wheels; a program, a Python, or ais_infer.py will do {_NAME_IT}"
    if path is not None:
        if path.is_dir():
            if (path / "ais_bench" / "__main__.py").is_file() or (path / "ais_bench" / "__init__.py").is_file():
                old = os.environ.get("PYTHONPATH")
                return Program(
                    (sys.executable, "-m", "ais_bench"),
                    (("PYTHONPATH", str(path.absolute()) + (os.pathsep + old if old else "")),),
                )
            return Program((find_program((path / "ais_bench").absolute(), purpose="ais_bench", remedy=remedy),))
        if path.suffix == ".py" and path.is_file():
            return Program((sys.executable, str(path.absolute())))
        program = find_program(path.absolute(), purpose="ais_bench", remedy=remedy)
        if re.fullmatch(r"(python|pypy)[\d.]*", path.name):
            return Program((program, "-m", "ais_bench"))
        return Program((program,))
    try:
        return Program((find_program("ais_bench", purpose="ais_bench", remedy=remedy),))
    except EngineUnavailable:
        for python in dict.fromkeys((sys.executable, "python3")):
            # Only asks whether the module is there; nothing of it is run.
            question = "import importlib.util as u, sys; sys.exit(u.find_spec('ais_bench') is None)"
            if ask([python, "-c", question])[0] == 0:
                return Program((python, "-m", "ais_bench"))
        raise


# ---- reading ---------------------------------------------------------------------------------------------------------


def _summary(job: SessionJob) -> Path | None:
    """The summary lies beside the output folder; some releases spell it ``sumary``."""
    for name in (f"{RUN}_summary.json", f"{RUN}_sumary.json"):
        path = job.folder / "out" / name
        if path.is_file():
            return path
    return None


def _status_problem(status: int | None, log: str) -> str | None:
    return None if status == 0 else _with_log(describe_status(status), log)


def _with_log(reason: str, log: str) -> str:
    """A reason with what the tool's output explains, or else its last lines."""
    detail = sentences(log) or last_lines(log)
    return f"{reason}: {detail}" if detail else reason
