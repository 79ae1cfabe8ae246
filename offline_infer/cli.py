"""The command line: parse, call, print. Every command's work is a function elsewhere.

Exit status: 0 all done; 1 an internal error; 2 wrong usage, checkpoint, bundle or tool; 3 some cases failed, the others are
complete; 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from offline_infer._version import __version__
from offline_infer.commands import ascend, bench, data, evaluate, model, proof, run, stages, statistics
from offline_infer.commands.printable import forgive_encodings, printable
from offline_infer.commands.remedies import advise
from offline_infer.errors import CasesFailed, OfflineInferError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which never guesses an abbreviated option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"{self.prog}: error: {message}; see {self.prog} --help\n"))


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="offline-infer",
        description="Take a trained segmentation checkpoint to any accelerator, and prove it is still the same model.",
        epilog="exit status: 0 all done, 1 internal error, 2 wrong usage, 3 some cases failed (the others are complete)",
    )
    parser.add_argument("--version", action="version", version=f"offline-infer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for module in (model, run, stages, ascend, bench, evaluate, proof, statistics, data):
        module.register(commands)
    for command in commands.choices.values():
        shared = command.add_argument_group("output")
        shared.add_argument("--json", action="store_true", help="print one machine-readable object on standard output")
        shared.add_argument("--quiet", action="store_true", help="no progress")
        shared.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    forgive_encodings()
    parser = build_parser()
    options = parser.parse_args(arguments)
    name = f"{parser.prog} {options.command}"
    try:
        result = options.function(options)
    except OfflineInferError as error:
        if options.traceback:
            traceback.print_exc()
        _report_error(name, error, options.json)
        return error.exit_status
    except KeyboardInterrupt:
        print(
            f"{name}: interrupted; finished results are complete, the same command goes on from there", file=sys.stderr
        )
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if options.traceback:
            traceback.print_exc()
        _report_error(name, OfflineInferError(_explain(error)), options.json)
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
