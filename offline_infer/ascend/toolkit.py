"""What of the Ascend software is on this machine: toolkit, driver, tools. Used by ``offline-infer doctor``."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offline_infer.engines.om.npu_smi import DeviceQuery, list_devices

_VERSION_FILES = (
    "version.cfg",
    "version.info",
    "{arch}-linux/ascend_toolkit_install.info",
    "{arch}-linux/ascend_nnae_install.info",
    "{arch}-linux/ascend_cann_install.info",
    "ascend_toolkit_install.info",
    "ascend_nnae_install.info",
    "toolkit/version.info",
    "compiler/version.info",
    "runtime/version.info",
    "fwkacllib/version.info",
)
"""Where releases say which they are, relative to the toolkit's folder; the first that answers counts."""


def roots(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Folders CANN is installed under, most telling first: named by the environment, then the usual places."""
    values = os.environ if environment is None else environment
    named = [values[name] for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "CANN_PATH") if values.get(name)]
    usual = ["/usr/local/Ascend"]
    if values.get("HOME"):
        usual.append(f"{values['HOME']}/Ascend")
    return tuple(dict.fromkeys(Path(path) for path in [*named, *usual]))


def find_toolkit(environment: Mapping[str, str] | None = None) -> tuple[Path, str | None] | None:
    """The toolkit's folder and its version (None: not stated), or None when there is none.

    Known layouts: ``cann`` (8.5 on), ``ascend-toolkit/latest`` (5.x to 8.3), ``nnae/latest``, ``nnrt/latest``.
    """
    for root in roots(environment):
        for folder in (
            root / "cann",
            root / "ascend-toolkit" / "latest",
            root / "nnae" / "latest",
            root / "nnrt" / "latest",
        ):
            if folder.is_dir():
                return folder, toolkit_version(folder)
        if any((root / name).is_dir() for name in ("opp", "compiler", "atc", "fwkacllib", "runtime")):
            return root, toolkit_version(root)  # the environment names the toolkit itself
    return None


def toolkit_version(folder: Path) -> str | None:
    """The release a toolkit folder says it is, e.g. ``8.0.RC2``."""
    for name in _VERSION_FILES:
        path = folder / name.format(arch=platform.machine())
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if match := re.search(
            r"(?im)^\s*(?:toolkit_running_|running_|runtime_running_)?version\s*=\s*\[?([^\]\s]+)", text
        ):
            # version.cfg holds several releases as [7.0.0:7.0.0]
            return match[1].split(":")[-1].strip('"')
    return None


def driver_version(root: Path = Path("/usr/local/Ascend")) -> str | None:
    """The NPU driver's version, or None."""
    try:
        text = (root / "driver" / "version.info").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"(?im)^\s*Version\s*=\s*(\S+)", text)
    return match[1] if match else None


def tools_on_path() -> dict[str, str | None]:
    """The programs the Ascend route uses and where they are; None: not found."""
    names = ("atc", f"benchmark.{platform.machine()}", "msame", "ais_bench", "npu-smi")
    found = {name: shutil.which(name) for name in names}
    if found["ais_bench"] is None and any(_module_folders("ais_bench")):
        found["ais_bench"] = f"{sys.executable} -m ais_bench"
    return found


def ascend_report(npu_smi: str = "npu-smi") -> dict[str, Any]:
    """Devices, toolkit, driver and tools of this machine as JSON-able data; never raises for what is absent."""
    query: DeviceQuery = list_devices(npu_smi)
    toolkit = find_toolkit()
    return {
        "devices": [device.to_json() for device in query.devices],
        "devices_problem": query.problem,
        "npu_smi_version": query.version,
        "driver_version": driver_version(),
        "toolkit": str(toolkit[0]) if toolkit else None,
        "toolkit_version": toolkit[1] if toolkit else None,
        "tools": tools_on_path(),
        "environment": {
            name: os.environ[name]
            for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ASCEND_RT_VISIBLE_DEVICES")
            if name in os.environ
        },
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """What :func:`ascend_report` found, for people."""
    lines = []
    for device in report["devices"]:
        used, total = device["memory_mb"] or ("?", "?")
        lines.append(f"device {device['device']}: {device['soc']}, {device['health']}, {used} of {total} MB in use")
    if not lines:
        lines.append(f"devices: none ({report['devices_problem']})")
    toolkit = report["toolkit"]
    version = report["toolkit_version"] or "of unknown version"
    lines.append(f"toolkit: CANN {version} in {toolkit}" if toolkit else "toolkit: none found; see scripts/set_env.sh")
    lines.append(f"driver: {report['driver_version'] or report['npu_smi_version'] or 'none found'}")
    lines += [f"{name}: {path or 'not on PATH'}" for name, path in report["tools"].items()]
    return lines


def _module_folders(name: str) -> Iterator[Path]:
    """Folders a module would be imported from, without importing it."""
    for entry in sys.path:
        folder = Path(entry or ".") / name
        if (folder / "__init__.py").is_file():
            yield folder
