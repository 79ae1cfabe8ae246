"""offline_infer: take a trained segmentation checkpoint to any accelerator, and prove it is still the same model.

The public Python interface, loaded when first used so that ``import offline_infer`` stays light::

    import offline_infer

    with offline_infer.load("liver_bundle") as model:
        label_map = model.predict("patient_0000.nii.gz")   # LabelMap: array (z, y, x), spacing in mm
        label_map.save("patient.nii.gz")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from offline_infer._version import __version__

# ONNX Runtime from 1.29 on uploads telemetry unless this is set before the library loads; nothing here may phone home.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.exporting.bundles import export_bundle
    from offline_infer.images import Image, read_image
    from offline_infer.predict.batch import predict_folder
    from offline_infer.predict.model import Model, load
    from offline_infer.tasks.settings import RunSettings
    from offline_infer.tasks.volume.label_map import LabelMap

__all__ = [
    "Bundle",
    "Image",
    "LabelMap",
    "Model",
    "RunSettings",
    "__version__",
    "export_bundle",
    "load",
    "predict_folder",
    "read_image",
]

_HOMES = {
    "Bundle": "offline_infer.bundles.bundle",
    "Image": "offline_infer.images",
    "LabelMap": "offline_infer.tasks.volume.label_map",
    "Model": "offline_infer.predict.model",
    "RunSettings": "offline_infer.tasks.settings",
    "export_bundle": "offline_infer.exporting.bundles",
    "load": "offline_infer.predict.model",
    "predict_folder": "offline_infer.predict.batch",
    "read_image": "offline_infer.images",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'offline_infer' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
