"""The software that made a bundle: what a graph's answer may depend on."""

from __future__ import annotations

import importlib.metadata
import platform

from offline_infer._version import __version__

PACKAGES = (
    "torch",
    "onnx",
    "numpy",
    "scipy",
    "pydantic",
    "dynamic-network-architectures",
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-cann",
)


def made_with() -> dict[str, str]:
    """Package -> version, sorted by name; packages that are not installed are left out."""
    found = {"offline-infer": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(sorted(found.items()))
