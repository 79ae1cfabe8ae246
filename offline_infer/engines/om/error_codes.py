"""The coded errors of ``atc`` and of the Ascend run time: what each means and the way out.

A coded line begins with the code; newer releases put a process id and a time between the code and the text, so nothing
behind the code is relied on. Python failures inside ``atc`` carry it as ``'errCode': 'E90003'`` amid a line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from offline_infer.errors import Remedy


@dataclass(frozen=True)
class Explanation:
    """One error found in a tool's output.

    Attributes:
        code: as printed, e.g. ``E90003``; for errors known by their text, a word such as ``python``.
        meaning: what it says, one clause.
        way_out: what to do, one sentence.
        line: the line it was found in.
    """

    code: str
    meaning: str
    way_out: str
    line: str = ""

    def sentence(self) -> str:
        """``E90003 (operator template constraint): use another CANN release ...``, with the tool's own reason if it gave one."""
        own = own_words(self.line, self.code)
        said = f'{self.meaning}: "{own}"' if own else self.meaning
        return f"{self.code} ({said}): {self.way_out}"


_OTHER_CANN = "try another CANN release (5.0.3 and 5.1.RC1 convert where 5.0.4 fails)"
_KERNELS = (
    "install the operator (kernels/ops) package of the target chip, which is separate from CANN 8.5 on, "
    "or the operator does not exist on this chip"
)
_EXCLUSIVE = "leave out one of the two options"
_NAMES = "the name must be one of the graph's inputs or outputs"
_GEARS = (
    "a gear list has 2 to 100 different sizes, and the shape has -1 in its place; this package compiles fixed shapes"
)
_FILES = "check that the file exists, is readable, and that its path has no blanks"
_PARSER = "the graph's opset may be too new for this release " + str(Remedy("export-lower-opset"))
_PYTHON = (
    "atc runs Python inside: source set_env.sh, use a Python the CANN release supports (8.1: 3.7 to 3.10) with numpy "
    "below 2, and install decorator, attrs, psutil, sympy, protobuf, scipy, cloudpickle in that Python"
)
_LOGS = "look into $HOME/ascend/log/debug/plog " + str(Remedy("log-compiler"))
_NORMALISATION = f"{_OTHER_CANN} " + str(Remedy("decompose-norms"))

CODES: dict[str, tuple[str, str]] = {
    "E10001": (
        "an option has a value that is not allowed",
        "correct the option that is named, or leave it out: releases differ in the options and values they take",
    ),
    "E10002": ("the input shape is malformed", "write name:d,d,d,d,d and quote it"),
    "E10007": (
        "a required option is missing or wrong",
        "have this program run atc: it sets what is required",
    ),
    "E10009": ("two options exclude each other", _EXCLUSIVE),
    "E10011": ("the input shape is malformed", "write name:d,d,d,d,d and quote it"),
    "E10016": ("a node named in an option is not in the graph", _NAMES),
    "E10019": ("the gears of a dynamic option are wrong", _GEARS),
    "E10035": ("too few or too many gears", _GEARS),
    "E10036": ("a gear stands twice", _GEARS),
    "E10041": (
        "the model cannot be loaded",
        "the file is damaged or too new; compare it with its recorded digest",
    ),
    "E10047": ("two options exclude each other", _EXCLUSIVE),
    "E10049": (
        "the shape has another number of dimensions than the model",
        "use the shape of the bundle; export and compile again",
    ),
    "E10052": (
        "the AIPP configuration is invalid",
        "leave out --insert_op_conf: it is for 8-bit camera images, not for volumes",
    ),
    "E10054": ("a required option is empty", "give it a value or leave it out"),
    "E10055": ("the operation is not supported", "leave out the option named in the line"),
    "E10056": ("two options exclude each other", _EXCLUSIVE),
    "E10410": ("a file is missing", _FILES),
    "E10501": ("an operator has no description in this release", f"{_OTHER_CANN}; {_PARSER}"),
    "E11017": ("an output node is not in the graph", _NAMES),
    "E16002": ("no ONNX parser for an operator", _PARSER),
    "E19010": ("no ONNX parser for an operator", _PARSER),
    "EZ9010": ("no ONNX parser for an operator", _PARSER),
    "E19999": ("an inner error", _LOGS),
    "EZ9999": ("an inner error", _LOGS),
    "EZ0501": ("an operator has no description in this release", f"{_OTHER_CANN}; {_PARSER}"),
    "EZ3002": ("an operator type is not supported", _KERNELS),
    "EZ3003": ("no kernel and no engine found for an operator", _KERNELS),
    "E40000": ("a Python module could not be loaded", _PYTHON),
    "EC0010": ("a Python module could not be loaded", _PYTHON),
    "E90003": ("a template constraint of an operator", _NORMALISATION),
    "EL0003": (
        "a wrong argument when opening a device",
        "does the device exist (npu-smi info)? With ASCEND_RT_VISIBLE_DEVICES set, ids begin again at 0",
    ),
    "507033": (
        "the device could not be opened",
        "is it free and healthy (npu-smi info)? may this user use it (group HwHiAiUser)?",
    ),
    "507011": (
        "the model failed while running",
        "the run-time CANN must not be older than the one that compiled; compile again on this machine",
    ),
    "207001": ("the device has too little memory", "end other programs on the device (npu-smi info)"),
    "500001": ("an inner error of the run time", f"often a Python module is missing; {_LOGS}"),
    "500002": (
        "an inner error of the run time, often an OM made for another chip or release",
        "compile for this chip with a CANN not newer than the one that runs",
    ),
}
"""Code -> (meaning, way out)."""

_SOC = "give the chip's exact name: 'Ascend' + the Name column of 'npu-smi info'"
_TEXTS: tuple[tuple[str, str, str, str], ...] = (
    (
        "unknown command line flag",
        "option",
        "the tool does not know an option",
        "leave the option out, or spell it as this release's --help does",
    ),
    (
        "unrecognized option",
        "option",
        "the tool does not know an option",
        "leave the option out, or spell it as this release's --help does",
    ),
    (
        "tuple_reduce_sum",
        "E90003",
        "a reduction kernel is missing in this release (seen on CANN 5.0.4)",
        _NORMALISATION,
    ),
    ("FrameLocalsProxy", "python", "this CANN release cannot work with the Python it runs in (3.11 or newer)", _PYTHON),
    (
        "libascend_hal.so",
        "driver",
        "no driver on this machine",
        "without one put <install>/<arch>-linux/devlib on LD_LIBRARY_PATH; scripts/set_env.sh does so",
    ),
    ("No parser is registered", "parser", "no ONNX parser for an operator", _PARSER),
    ("no parser registered", "parser", "no ONNX parser for an operator", _PARSER),
    ("No space left on device", "disk", "the disk is full", "free space " + str(Remedy("work-in-rounds"))),
    ("find no cann path", "environment", "the CANN environment is not set", "source scripts/set_env.sh first"),
    (
        "No module named 'aclruntime'",
        "python",
        "ais_bench's native half is missing",
        "install the aclruntime wheel for this Python",
    ),
    ("No module named ais_bench", "python", "ais_bench is not installed in this Python", "install the ais_bench wheel"),
)
"""Errors known by a piece of their text rather than by a code."""

_LINE_START = re.compile(r"^\s*([EW][A-Z]?\d{4,5})\b")
_ERROR_CODE = re.compile(r"errCode['\"]?\s*[:=]\s*['\"]?([EW][A-Z]?\d{4,5})")
_NUMBER = re.compile(r"(?<![\w.])(5070(?:33|11)|207001|50000[12])(?![\w.])")


def explain(text: str) -> list[Explanation]:
    """The known errors in a tool's output, in order of appearance, each code once; warnings (``W...``) are left out.

    An ``E...`` code that the table does not have is listed too, with its own line as meaning.
    """
    found: dict[str, Explanation] = {}
    for raw in text.splitlines():
        line = raw.strip()
        for code in _codes(line):
            if code.startswith("W") or code in found:
                continue
            meaning, way_out = CODES.get(code) or _by_family(code, line)
            if code == "E10001" and "soc_version" in line:
                way_out = _SOC
            found[code] = Explanation(code, meaning, way_out, line)
        for piece, code, meaning, way_out in _TEXTS:
            if piece.lower() in line.lower() and code not in found:
                found[code] = Explanation(code, meaning, way_out, line)
    return list(found.values())


def sentences(text: str, limit: int = 3) -> str:
    """The explanations of a tool's output as one text; empty when nothing is known."""
    return "; ".join(explanation.sentence() for explanation in explain(text)[:limit])


def own_words(line: str, code: str) -> str:
    """What a tool says itself in a coded line, without the code, process id and time; empty where it says nothing more."""
    text = re.sub(r"^\[(?:ERROR|WARN|INFO)\]\s*", "", line.strip())
    if not re.match(rf"{re.escape(code)}\b", text):
        return ""  # the code was found amid other words, which explain less than the table
    text = re.sub(r"^\w+\s*:?\s*", "", text)
    text = re.sub(r"^\[PID:\s*\d+\]\s*[\d.:-]*\s*", "", text).strip()
    return _short(text) if re.search(r"[A-Za-z]{3}", text) else ""


def warnings(text: str) -> list[str]:
    """Coded warning lines (``W1...``)."""
    return [line.strip() for line in text.splitlines() if (match := _LINE_START.match(line)) and match[1][0] == "W"]


def _codes(line: str) -> list[str]:
    codes = []
    if match := _LINE_START.match(line):
        codes.append(match[1])
    codes += _ERROR_CODE.findall(line)
    codes += _NUMBER.findall(line)
    return codes


def _by_family(code: str, line: str) -> tuple[str, str]:
    """For codes without an entry: ``E13...`` are about files and environment variables, the rest speaks for itself."""
    return (
        ("a file or an environment variable is wrong", _FILES) if code.startswith("E130") else ("no known code", _LOGS)
    )


def _short(line: str) -> str:
    return line if len(line) <= 160 else line[:157] + "..."
