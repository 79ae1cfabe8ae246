"""Opening a bundle of whatever task it is."""

from __future__ import annotations

from pathlib import Path

from offline_infer.bundles.bundle import Bundle
from offline_infer.spec import BundleSpec
from offline_infer.tasks.registry import get_task


def open_bundle(path: Path | str, *, verify_hashes: bool = False) -> Bundle:
    """Open a bundle folder or a lone ``.onnx`` file of any task; see :meth:`Bundle.load`.

    Raises:
        BundleError: damaged, or of an unknown task.
    """
    return Bundle.load(Path(path), verify_hashes=verify_hashes, spec_of=_spec_type)


def _spec_type(task: str) -> type[BundleSpec]:
    return get_task(task).spec_type
