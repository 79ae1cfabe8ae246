"""Every error this package raises on purpose.

::

    OfflineInferError            something the user can act on; the CLI prints it as one line, without a traceback
    ├── UsageError               a wrong option, path or combination                          (exit status 2)
    ├── CheckpointError          a model folder that is damaged, unknown or refused           (exit status 2)
    │   └── UnsafePickleError    a pickle names something outside the closed table            (exit status 2)
    ├── BundleError              a bundle that is damaged or was made by another version      (exit status 2)
    ├── ExportError              the graph could not be made or did not verify                (exit status 2)
    ├── EngineUnavailable        the engine, its library or its device is not there           (exit status 2)
    ├── ToolError                an external tool (atc, benchmark, ...) failed                (exit status 2)
    ├── DiskBudgetError          the forecast does not fit the budget or the disk             (exit status 2)
    ├── CaseError                one case cannot be processed; the other cases go on          (exit status 3)
    │   ├── ImageError           a file that is missing, truncated or not an image
    │   ├── GeometryError        channels that disagree, impossible spacing, a wrong shape
    │   └── EngineFailed         the engine failed or answered with NaN on this case
    │       └── DeviceMemoryFull the device has no room for it; another way may be open
    └── CasesFailed              raised at the end of a run in which some cases failed        (exit status 3)

A message says what was wrong, where and what was expected. What to do about it is a :class:`Remedy`: a code, because
the same remedy is an argument in Python and an option on the command line, and the library does not know who called it.
The code stands at the end of the text (``... [remedy: export-graph precision=fp16]``), so that it survives being quoted
by another error, sent from another process or written to a record; :func:`spell_out` puts words in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast
from urllib.parse import quote, unquote

RemedyCode = Literal[
    "accumulate-float32",
    "adopt-outputs",
    "allow-unlisted-chip",
    "compile-for-chip",
    "compile-wider",
    "correct-expected-hash",
    "decompose-norms",
    "expect-hash",
    "export-lower-opset",
    "export-precision",
    "export-unverified",
    "install-engine",
    "install-export",
    "install-quantize",
    "install-report",
    "keep-or-overwrite",
    "leave-precision",
    "log-compiler",
    "more-compile-time",
    "name-checkpoint",
    "name-chip",
    "name-compiler",
    "name-configuration",
    "name-folds",
    "name-labels",
    "name-previous-stage",
    "name-temporary-folder",
    "name-tool",
    "overwrite-bundle",
    "run-in-float32",
    "quantize",
    "save-probabilities",
    "tune",
    "work-in-rounds",
]
"""Every remedy the library may name. The command line's words for them are in :mod:`offline_infer.commands.remedies`."""

_MARK = re.compile(r" ?\[remedy: (?P<code>[a-z0-9-]+)(?P<values>(?: [a-z_]+=[^\s\]]*)*)\]")


@dataclass(frozen=True)
class Remedy:
    """What to do about an error.

    Attributes:
        code: which remedy.
        values: what it takes, e.g. ``{"precision": "fp16"}``.
    """

    code: RemedyCode
    values: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        values = "".join(f" {name}={quote(value)}" for name, value in self.values.items())
        return f"[remedy: {self.code}{values}]"


def spell_out(text: str, words: Callable[[Remedy], str]) -> str:
    """The text with every remedy's code replaced by words for it.

    Args:
        text: of an error, or a reason that was recorded.
        words: a clause such as "use --precision fp32", to be joined to the sentence with a semicolon; an empty one
            leaves the remedy out.
    """

    def clause(mark: re.Match[str]) -> str:
        said = words(_remedy(mark))
        return f"; {said}" if said else ""

    return _MARK.sub(clause, text)


def _remedy(mark: re.Match[str]) -> Remedy:
    pairs = (pair.partition("=") for pair in mark["values"].split())
    return Remedy(cast("RemedyCode", mark["code"]), {name: unquote(value) for name, _, value in pairs})


class OfflineInferError(Exception):
    """Base of all errors a user can act on.

    Args:
        message: what was wrong, where, and what was expected.
        remedy: what to do about it, where a code says it; it becomes part of the text.
    """

    exit_status: int = 2

    def __init__(self, message: str = "", *, remedy: Remedy | RemedyCode | None = None) -> None:
        chosen = Remedy(remedy) if isinstance(remedy, str) else remedy
        super().__init__(message if chosen is None else f"{message} {chosen}")

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """The remedies its text names, those of an error it quotes included."""
        return tuple(_remedy(mark) for mark in _MARK.finditer(str(self)))


class UsageError(OfflineInferError):
    """A wrong option, path or combination of options."""


class CheckpointError(OfflineInferError):
    """A checkpoint folder that is damaged, of an unknown kind, or refused."""


class UnsafePickleError(CheckpointError):
    """A pickle asks for a class or function outside the closed table; nothing of it was executed."""


class BundleError(OfflineInferError):
    """A bundle that is damaged, incomplete or of another schema version."""


class ExportError(OfflineInferError):
    """The graph could not be written, or it does not give the same answer as the checkpoint."""


class QuantizationRefused(OfflineInferError):
    """A model in INT8 would not be the same model; the message holds the figure."""


class EngineUnavailable(OfflineInferError):
    """The engine, the library behind it or the requested device is not available."""


class ToolError(OfflineInferError):
    """An external tool failed, hung, or left outputs missing."""


class DiskBudgetError(OfflineInferError):
    """The forecast of scratch disk exceeds the budget or what the disk has free."""


class CaseError(OfflineInferError):
    """One case cannot be processed; other cases are not affected."""

    exit_status = 3


class ImageError(CaseError):
    """A file that is missing, truncated, of the wrong type, or holds NaN or infinite voxels."""


class GeometryError(CaseError):
    """Channels whose geometry disagrees, an impossible spacing, or a shape that does not fit the model."""


class EngineFailed(CaseError):
    """The engine failed on this case, or its answer holds NaN or infinite numbers."""


class DeviceMemoryFull(EngineFailed):
    """The device has no memory left for what was requested; a way that needs less may exist."""


class CasesFailed(OfflineInferError):
    """Some cases of a run failed; the others are complete.

    Attributes:
        failures: case id -> reason.
    """

    exit_status = 3

    def __init__(self, failures: Mapping[str, str], total: int) -> None:
        self.failures = dict(failures)
        self.total = total
        names = ", ".join(sorted(self.failures))
        super().__init__(f"{len(self.failures)} of {total} cases failed ({names}); the others are complete")
