"""The command line: parse, call, print. Every command's work is a function elsewhere.

Exit status: 0 all done; 1 an internal error; 2 wrong usage, checkpoint, bundle or tool; 3 some cases failed, the others are
complete; 128 + N interrupted by signal N (130: Ctrl-C, 143: SIGTERM).
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from offline_infer._version import __version__
from offline_infer.commands import (
    ascend,
    bench,
    bundle,
    data,
    evaluate,
    export,
    proof,
    quantize,
    run,
    stages,
    statistics,
    tasks,
)
from offline_infer.commands.common import refuse_replacing
from offline_infer.commands.printable import forgive_encodings, printable
from offline_infer.commands.remedies import advise
from offline_infer.errors import CasesFailed, OfflineInferError
from offline_infer.interruption import Terminated, termination_as_interrupt

GROUPS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "from a checkpoint to results",
        (
            ("export", "offline-infer export nnUNetTrainer__nnUNetPlans__3d_fullres -o liver_bundle"),
            ("predict", "offline-infer predict liver_bundle images results"),
            ("run", "offline-infer run model_folder images out --labels labels"),
            ("inspect", "offline-infer inspect liver_bundle --verify"),
            ("sign", "offline-infer sign liver_bundle --key private.pem"),
            ("demo", "offline-infer demo"),
        ),
    ),
    (
        "stage by stage, and on Ascend devices",
        (
            ("compile", "offline-infer compile liver_bundle --soc Ascend310P3"),
            ("preprocess", "offline-infer preprocess liver_bundle images work"),
            ("info", "offline-infer info work --shards 4"),
            ("infer", "offline-infer infer liver_bundle work --tool ais_bench --devices 0,1,2,3"),
            ("clean", "offline-infer clean work --apply"),
            ("postprocess", "offline-infer postprocess liver_bundle work results"),
            ("staged", "offline-infer staged liver_bundle images work results --scratch 20GB"),
        ),
    ),
    (
        "proof",
        (
            ("evaluate", "offline-infer evaluate results labels"),
            ("compare", "offline-infer compare results framework_results"),
            ("benchmark", "offline-infer benchmark liver_bundle --input image_0000.nii.gz"),
            ("quantize", "offline-infer quantize liver_bundle --cases images --labels labels"),
            ("tune", "offline-infer tune liver_bundle --cases images --labels labels"),
            ("report", "offline-infer report results -o report.html"),
            ("ensemble", "offline-infer ensemble results_a results_b -o joined --bundle liver_bundle"),
            ("statistics", "offline-infer statistics results -o volumes.csv"),
        ),
    ),
    (
        "models of one's own, and robustness",
        (
            ("init", "offline-infer init my_model"),
            ("model-options", "offline-infer model-options my_model"),
            ("adopt", "offline-infer adopt model.onnx --task image -o bundle"),
            ("sweep", "offline-infer sweep bundle --references datasets.json --grid grid.json -o sweep"),
        ),
    ),
    ("data and the machine", (("doctor", "offline-infer doctor"),)),
)
"""Every command with an example, by what it is for; a command that is not named here stands in the last group."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, which never guesses an abbreviated option, and shows every default."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _WithDefaults, **settings})

    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"{self.prog}: error: {message}; see {self.prog} --help\n"))


class _WithDefaults(argparse.HelpFormatter):
    """Help that names the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        plain = action.default not in (None, False, True, argparse.SUPPRESS, [], ()) and action.option_strings
        if text and plain and "default" not in text:
            shown = action.default if not isinstance(action.default, tuple) else ",".join(map(str, action.default))
            return f"{text} (default {shown})".replace("%", "%%")
        return text


class _MainParser(Parser):
    """The parser of the whole command line; its help lists the commands in groups."""

    commands: Mapping[str, argparse.ArgumentParser]

    def format_help(self) -> str:
        named = {name for _, group in GROUPS for name, _ in group}
        others = tuple((name, f"{self.prog} {name} --help") for name in self.commands if name not in named)
        groups = [*GROUPS[:-1], (GROUPS[-1][0], (*GROUPS[-1][1], *others))]
        lines = [f"usage: {self.prog} COMMAND ...", "", str(self.description), ""]
        for title, group in groups:
            lines.append(f"{title}:")
            for name, example in group:
                if name in self.commands:
                    lines += [f"  {name:<14}{self.commands[name].description or ''}", f"                $ {example}"]
            lines.append("")
        return "\n".join([*lines, f"{self.prog} COMMAND --help shows a command's options.", str(self.epilog), ""])


def _suggest(word: str, legal: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, legal, n=1)
    return f"; did you mean {near[0]}" if near else ""


def _parse(parser: _MainParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with a suggestion where a command or an option is misspelt."""
    first = arguments[0] if arguments else ""
    if not arguments:
        parser.print_help()
        parser.exit(2)
    if first and not first.startswith("-") and first not in parser.commands:
        legal = list(parser.commands)
        parser.error(f"unknown command {first!r}{_suggest(first, legal)}; there are: {', '.join(legal)}")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = parser.commands[options.command]
        legal = [name for action in command._actions for name in action.option_strings]
        command.error(f"unrecognized arguments: {' '.join(unknown)}{_suggest(unknown[0].partition('=')[0], legal)}")
    return options


def build_parser() -> _MainParser:
    """The whole command line."""
    parser = _MainParser(
        prog="offline-infer",
        description="Take a trained segmentation checkpoint to any accelerator, and prove it is still the same model.",
        epilog="exit status: 0 all done, 1 internal error, 2 wrong usage, 3 some cases failed (the others are complete)",
    )
    parser.add_argument("--version", action="version", version=f"offline-infer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for module in (export, bundle, tasks, run, stages, ascend, bench, quantize, evaluate, proof, statistics, data):
        module.register(commands)
    parser.commands = commands.choices
    for command in commands.choices.values():
        shared = command.add_argument_group("output")
        shared.add_argument("--json", action="store_true", help="print one machine-readable object on standard output")
        shared.add_argument("--quiet", action="store_true", help="no progress")
        shared.add_argument(
            "--progress",
            choices=["auto", "plain", "json"],
            default="auto",
            help="on standard error: auto (a bar on a terminal, short lines elsewhere, JSON lines with --json), plain or json",
        )
        shared.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    forgive_encodings()
    parser = build_parser()
    options = _parse(parser, list(sys.argv[1:] if arguments is None else arguments))
    name = f"{parser.prog} {options.command}"
    try:
        with termination_as_interrupt():
            if isinstance(output := getattr(options, "output", None), Path):
                from offline_infer.folders import clear_for

                refuse_replacing(output)
                clear_for(output)
            result = options.function(options)
    except OfflineInferError as error:
        if options.traceback:
            traceback.print_exc()
        _report_error(name, error, options.json)
        return error.exit_status
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Terminated) else signal.SIGINT
        why = "interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}"
        print(f"{name}: {why}; finished results are complete, the same command goes on from there", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if options.traceback:
            traceback.print_exc()
        _report_error(name, OfflineInferError(_explain(error)), options.json)
        return 2
    except MemoryError as error:
        if options.traceback:
            traceback.print_exc()
        why = "not enough memory; finished results are kept, give the same command again where more memory is free"
        _report_error(name, OfflineInferError(f"{why} ({error})" if str(error) else why), options.json)
        return 2
    except Exception:
        traceback.print_exc()
        print(f"{name}: internal error; this is a bug, please report it with the lines above", file=sys.stderr)
        return 1
    if options.json and result is not None:
        print(json.dumps(result, indent=1, default=str))
    return 0


def _explain(error: OSError) -> str:
    """What the operating system would not do, and what to do about it."""
    where = error.filename or "operating system"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{where}: is a file, or lies below one, where a folder is needed; name another place"
    if isinstance(error, PermissionError):
        return f"{where}: permission denied; check its owner and mode, or name another place"
    if error.errno == errno.ENOSPC:
        return (
            f"{where}: no space left on the disk; free some and run the same command again, finished results are kept"
        )
    return f"{where}: {error.strerror or error}"


def _report_error(name: str, error: OfflineInferError, as_json: bool) -> None:
    message = advise(" ".join(str(error).split()))
    print(printable(f"{name}: error: {message}"), file=sys.stderr)
    if as_json:
        record: dict[str, Any] = {"error": type(error).__name__, "message": message, "exit_status": error.exit_status}
        if error.remedies:
            record["remedies"] = [{"code": remedy.code, **remedy.values} for remedy in error.remedies]
        if isinstance(error, CasesFailed):
            record["failures"] = {case: advise(reason) for case, reason in error.failures.items()}
        print(json.dumps(record, indent=1))


if __name__ == "__main__":
    sys.exit(main())
