"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_TELLING = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")


def machine_facts(threads: int) -> dict[str, Any]:
    """Processor, cores, memory and load."""
    model, flags = platform.processor(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() == "flags":
                flags = set(value.split())
        total = Path("/proc/meminfo").read_text().split()[1]
    except OSError:
        total = "0"
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "flags": [flag for flag in _TELLING if flag in flags],
        "memory_gib": round(int(total) / 2**20, 1),
        "system": platform.platform(),
        "load_at_start": [round(value, 1) for value in os.getloadavg()],
    }


def versions_of(python: Path) -> dict[str, str]:
    """Versions of the libraries that matter in an environment."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "names = ('offline-infer', 'nnunetv2', 'torch', 'openvino', 'onnxruntime', 'numpy', 'scipy', 'scikit-image', 'SimpleITK')\n"
        "found = {'python': platform.python_version()}\n"
        "for name in names:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    import json

    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
