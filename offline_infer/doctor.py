"""What this machine can run, found without starting a network."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from offline_infer._version import __version__
from offline_infer.engines.base import ENGINES, get_engine
from offline_infer.errors import OfflineInferError
from offline_infer.machine import memory_free, memory_total, processors

PACKAGES = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-cann",
    "openvino",
    "SimpleITK",
    "nibabel",
    "numpy",
)


def examine() -> tuple[dict[str, Any], list[str]]:
    """Facts as JSON-able data, and the same as lines for a person."""
    from offline_infer.ascend.toolkit import ascend_report

    packages = {name: _version(name) for name in PACKAGES}
    facts: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "processors_usable": processors(),
        "memory_free": memory_free(),
        "memory_total": memory_total(),
        "packages": packages,
        "engines": {name: _engine(name) for name in ENGINES},
        "telemetry": "off" if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" else "on",
        "ascend": ascend_report(),
    }
    wheels = [name for name in PACKAGES if name.startswith("onnxruntime") and packages[name]]
    if len(wheels) > 1:
        facts["warning"] = f"{' and '.join(wheels)} are both installed and overwrite each other's files; keep one"
    return facts, _lines(facts)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _engine(name: str) -> str:
    try:
        return get_engine(name).available() or "ready"
    except OfflineInferError as error:
        return str(error)


def _lines(facts: dict[str, Any]) -> list[str]:
    from offline_infer.ascend.toolkit import report_lines

    lines = [
        f"offline-infer {facts['version']}, Python {facts['python']}, {facts['system']}",
        f"processors     {facts['processors']}, {facts['processors_usable']} of them for this process",
        f"memory         {facts['memory_total'] / 2**30:.1f} GiB for this process, {facts['memory_free'] / 2**30:.1f} GiB free",
        *(f"engine         {name}: {state}" for name, state in facts["engines"].items()),
        *(f"package        {name} {version or '-'}" for name, version in facts["packages"].items()),
        f"telemetry      {facts['telemetry']}",
    ]
    lines += [f"ascend         {line}" for line in report_lines(facts["ascend"])]
    if "warning" in facts:
        lines.append(f"warning        {facts['warning']}")
    return lines
