"""The software that made a bundle: what a graph's answer may depend on, as CycloneDX lists it.

The list holds this program, Python, and every installed distribution that the program's own requirements lead to, those of
its extras for exporting and for the engines among them. It is worked out from what the packages declare, not from what is loaded,
so that two exports in one environment list the same. It carries no date, no serial number and no path: the same checkpoint and
versions give the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from offline_infer._version import __version__
from offline_infer.bundles import bundle as bundles
from offline_infer.bundles.bundle import BILL, Bundle
from offline_infer.files import write_json
from offline_infer.spec import BundleSpec

ROOTS = (
    "numpy", "simpleitk", "nibabel", "pydicom", "pydantic", "rich", "psutil", "connected-components-3d", "threadpoolctl",
    "openvino", "torch", "onnx", "dynamic-network-architectures", "onnxruntime", "onnxruntime-gpu", "onnxruntime-cann",
    "pillow", "scipy", "pycocotools",
)  # fmt: skip
"""What this program requires to run, to export and to verify; a test compares them with ``pyproject.toml``."""
SUMMARY = (
    "torch", "onnx", "numpy", "scipy", "pydantic", "dynamic-network-architectures", "openvino", "onnxruntime",
    "onnxruntime-gpu", "onnxruntime-cann",
)  # fmt: skip
"""Packages whose versions stand in ``bundle.json`` as well."""

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True)
class Installed:
    """An installed distribution; ``requires``: normalised names, without extras that nobody asked for."""

    version: str
    requires: tuple[str, ...]


def save_made(spec: BundleSpec, folder: Path) -> Bundle:
    """Write the bill of materials and ``bundle.json`` into a folder whose graphs are there already.

    Raises:
        BundleError: see :func:`offline_infer.bundles.bundle.save`.
    """
    spec = spec.model_copy(update={"made_with": made_with()})
    write_json(folder / BILL, bill_of_materials(spec, distributions()))
    return bundles.save(spec, folder)


def made_with() -> dict[str, str]:
    """Package -> version, sorted by name; packages that are not installed are left out."""
    present = distributions()
    versions = {name: present[name].version for name in SUMMARY if name in present}
    return dict(sorted({"offline-infer": __version__, "python": platform.python_version(), **versions}.items()))


@cache
def distributions() -> Mapping[str, Installed]:
    """Normalised name -> distribution, of :data:`ROOTS` and of all they require, as far as it is installed.

    Found once a process: every field of a distribution is read from its files anew.
    """
    found: dict[str, Installed] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = Installed(distribution.version, _required(distribution.requires or ()))
        waiting += found[name].requires
    return MappingProxyType(dict(sorted(found.items())))


def bill_of_materials(spec: BundleSpec, found: Mapping[str, Installed]) -> dict[str, Any]:
    """A CycloneDX 1.5 document: the model, the programs that made it, and what each of them requires."""
    this = _library("offline-infer", __version__)
    python = {"type": "platform", "bom-ref": "python", "name": "python", "version": platform.python_version()}
    refs = {name: _library(name, each.version)["bom-ref"] for name, each in found.items()}
    requires = {this["bom-ref"]: [refs[name] for name in ROOTS if name in refs]}
    requires |= {refs[name]: [refs[one] for one in each.requires if one in refs] for name, each in found.items()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": spec.source.trainer,
                "hashes": [{"alg": "SHA-256", "content": one} for one in sorted({f.sha256 for f in spec.source.folds})],
                "components": [
                    {
                        "type": "data",
                        "bom-ref": graph.file,
                        "name": graph.file,
                        "hashes": [{"alg": "SHA-256", "content": graph.sha256}],
                    }
                    for graph in spec.graphs
                ],
            }
        },
        "components": [this, python, *(_library(name, each.version) for name, each in found.items())],
        "dependencies": [
            {"ref": "model", "dependsOn": [this["bom-ref"], "python"]},
            *({"ref": ref, "dependsOn": sorted(set(needs))} for ref, needs in requires.items()),
        ],
    }


def _library(name: str, version: str) -> dict[str, str]:
    """A component; its reference is the package URL (https://github.com/package-url/purl-spec), which tools look holes up by."""
    url = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _required(lines: Iterable[str]) -> tuple[str, ...]:
    names = (_REQUIREMENT.match(line) for line in lines if "extra ==" not in line.partition(";")[2])
    return tuple(sorted({re.sub(r"[-_.]+", "-", name[1]).lower() for name in names if name}))
