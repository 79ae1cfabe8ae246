"""Failing on request, in the ways the real tools fail.

``OFFLINE_INFER_STANDIN_FAIL`` holds rules separated by ``;``. A rule is one failure mode and whom it concerns::

    crash-after:10 device:2            the run on device 2 dies after ten inputs
    tool:msame missing-outputs:3       msame skips the outputs of the first three inputs and reports success
    hang:5 device:1 times:1            device 1 stops answering after five inputs, the first time it is used

``times:N`` counts uses in the folder ``OFFLINE_INFER_STANDIN_STATE``. A rule that cannot be read ends the stand-in with
status 97, so that a misspelt rule never passes for a success.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

LARGEST_HALF = 65504.0

MODES = {
    "crash-after": "dies by a signal after N inputs",
    "exit-after": "ends with status 1 after N inputs",
    "exit0-without-success": "ends with status 0, with neither the success text nor results",
    "missing-outputs": "leaves out the outputs of the first N inputs, reports success",
    "wrong-size": "writes the outputs of the first N inputs too short, reports success",
    "killed-at": "bindings: is killed by SIGKILL after N inputs",
    "hang": "stops for ever after N inputs, ignoring SIGTERM",
    "disk-full": "after N inputs writes half an output, says 'No space left on device', ends with status 1",
    "no-summary": "ais_bench: no summary file",
    "nan": "answers NaN to the first N inputs",
    "zeros": "answers zeros everywhere to the first N inputs",
    "overflow": "half precision overflows in the answers to the first N inputs",
    "flat": "bindings: answers without a shape",
    "channels-last": "bindings: answers with the axis of the channels moved to the end",
    "helper": "bindings: a helper process is started with the device, as profilers do",
    "short": "bindings: the last output is cut in half",
    "fewer": "bindings: the last output is left out",
    "busy": "bindings: the device cannot be opened (507033)",
    "fail-call": "bindings: call N (from 0) fails with 507011, and its memory is lost",
    "code": "atc: fails with the given error code",
    "success-without-om": "atc: says success and writes nothing",
    "truncated-om": "atc: says success and writes an OM without its end",
    "warn": "atc: succeeds with a coded warning",
}
BAD_RULE = 97


@dataclass(frozen=True)
class Fault:
    """One rule that concerns this tool and device."""

    mode: str
    argument: str

    @property
    def count(self) -> int:
        return int(self.argument or 0)


def faults_for(tool: str, device: int | None = None) -> list[Fault]:
    """The rules that concern a tool on a device; a rule with ``times:N`` is used up by this call."""
    text = os.environ.get("OFFLINE_INFER_STANDIN_FAIL", "")
    found = [_read(rule, tool, device) for rule in text.split(";") if rule.strip()]
    return [fault for fault in found if fault is not None]


def fault(faults: list[Fault], mode: str) -> Fault | None:
    """The first of the faults that has that mode."""
    return next((each for each in faults if each.mode == mode), None)


def before_input(faults: list[Fault], position: int) -> None:
    """Called before input number ``position`` (from 0): crash, end or hang if a rule says so."""
    for each in faults:
        if each.mode == "crash-after" and position >= each.count:
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if each.mode == "exit-after" and position >= each.count:
            print("[ERROR] acl execute model failed, error code is 507011")
            sys.stdout.flush()
            os._exit(1)
        if each.mode == "hang" and position >= each.count:
            hang()


def before_call(faults: list[Fault], call: int) -> None:
    """Called by a binding before call number ``call`` (from 0): crash or hang if a rule says so."""
    for each in faults:
        if each.mode == "crash-after" and call >= each.count:
            os.kill(os.getpid(), signal.SIGSEGV)
        if each.mode == "killed-at" and call >= each.count:
            os.kill(os.getpid(), signal.SIGKILL)
        if each.mode == "hang" and call >= each.count:
            hang()


def spoiled(faults: list[Fault], position: int, data: bytes, dtype: str, *, saturates: bool = True) -> bytes:
    """An answer as it is, or as NaN, zeros or with overflow where a rule says so."""
    for each in faults:
        if each.mode not in ("nan", "zeros", "overflow") or position >= (each.count or position + 1):
            continue
        array = np.frombuffer(data, dtype).copy()
        if each.mode == "overflow":
            array[: max(1, array.size // 8)] = LARGEST_HALF if saturates else np.inf
        else:
            array[:] = np.nan if each.mode == "nan" else 0
        data = array.tobytes()
    return data


def hang() -> NoReturn:
    """Stop for ever; only SIGKILL ends it."""
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def write_output(faults: list[Fault], position: int, path: Path, data: bytes, dtype: str = "float32") -> None:
    """Write one output file of input number ``position``, or leave it out or spoil it as a rule says."""
    data = spoiled(faults, position, data, dtype)
    for each in faults:
        if each.mode == "missing-outputs" and position < each.count:
            return
        if each.mode == "wrong-size" and position < each.count:
            data = data[: len(data) // 2]
        if each.mode == "disk-full" and position >= each.count:
            path.write_bytes(data[: len(data) // 2])
            print(f"[ERROR] write {path.name} failed: No space left on device")
            sys.stdout.flush()
            os._exit(1)
    path.write_bytes(data)


def _read(rule: str, tool: str, device: int | None) -> Fault | None:
    chosen: Fault | None = None
    limit: int | None = None
    concerns = True
    for word in rule.split():
        name, _, value = word.partition(":")
        if name == "device":
            concerns = concerns and device == int(value)
        elif name == "tool":
            concerns = concerns and tool == value
        elif name == "times":
            limit = int(value)
        elif name in MODES and chosen is None:
            chosen = Fault(name, value)
        else:
            _refuse(rule, word)
    if chosen is None:
        _refuse(rule, "no failure mode")
    if not concerns or (limit is not None and not _use_up(rule, limit)):
        return None
    return chosen


def _use_up(rule: str, limit: int) -> bool:
    """Count one use of a rule over all processes; False when it was used ``limit`` times before."""
    folder = os.environ.get("OFFLINE_INFER_STANDIN_STATE")
    if not folder:
        _refuse(rule, "times: needs OFFLINE_INFER_STANDIN_STATE")
    path = Path(folder) / ("".join(char if char.isalnum() else "_" for char in rule) + ".uses")
    with path.open("ab") as stream:  # an append of one byte is atomic; the position tells whose turn it was
        stream.write(b"x")
        stream.flush()
        return stream.tell() <= limit


def _refuse(rule: str, word: str) -> NoReturn:
    print(
        f"stand-in: OFFLINE_INFER_STANDIN_FAIL: cannot read {rule!r} ({word}); modes: {', '.join(MODES)}",
        file=sys.stderr,
    )
    sys.exit(BAD_RULE)
