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

A message says what was wrong, where, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping


class OfflineInferError(Exception):
    """Base of all errors a user can act on."""

    exit_status: int = 2


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
    """The device has no memory left for what was asked of it; a way that needs less may be open."""


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
