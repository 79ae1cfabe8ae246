"""What the engine's options are called in OpenVINO, and whether the processor can do what they ask for."""

from __future__ import annotations

import os
from typing import Any

from offline_infer.engines.base import EngineOptions, Norms
from offline_infer.errors import EngineUnavailable
from offline_infer.threads import engine_threads

HINTS = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16")}
OWN_OPTIONS = ("output", "norms", "convolution")
"""Entries of ``EngineOptions.extra`` that are not the plugin's."""
_OWN = {
    "INFERENCE_PRECISION_HINT": "precision",
    "INFERENCE_NUM_THREADS": "threads",
    "CACHE_DIR": "cache",
    "DEVICE_ID": "device",
}


def config_of(options: EngineOptions, capabilities: list[str]) -> dict[str, str]:
    """OpenVINO's properties for these options."""
    if options.precision not in HINTS:
        raise EngineUnavailable(f"openvino: unknown precision {options.precision!r}; legal: {', '.join(HINTS)}")
    hint, capability = HINTS[options.precision]
    if capability not in capabilities:
        raise EngineUnavailable(_lacks(options.precision, capabilities))
    if options.threads < 0:
        raise EngineUnavailable(f"openvino: threads is {options.threads}; 0 means all cores")
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    if threads := engine_threads(options.threads):
        config["INFERENCE_NUM_THREADS"] = str(threads)
        if threads < (os.cpu_count() or 1):
            # Pinned threads start at the first core in every process: workers side by side would share those.
            config["ENABLE_CPU_PINNING"] = "NO"
    for key, value in options.extra.items():
        if key in OWN_OPTIONS:
            continue
        if key in _OWN:
            raise EngineUnavailable(f"openvino: {key} is set by the option {_OWN[key]}; use that")
        config[key] = value
    return config


def around(options: EngineOptions, capabilities: list[str]) -> str:
    """What the layers around INT8 ones compute in: as asked for where the processor has it, else float32."""
    return options.around if HINTS[options.around][1] in capabilities else "fp32"


def int8_name(around: str) -> str:
    """What a session calls INT8 among layers of another precision."""
    return "int8" if around == "fp32" else f"int8+{around}"


def norms_of(options: EngineOptions) -> Norms:
    """``exact`` or ``native``. In float16 the plugin's own kernel stays."""
    default = "native" if options.precision == "fp16" else "exact"
    norms = options.extra.get("norms", default)
    if norms not in ("exact", "native") or (norms == "exact" and default != "exact"):
        raise EngineUnavailable(
            f"openvino: norms is {norms!r} at {options.precision}; legal: native, and exact in fp32 and bf16"
        )
    return Norms("exact" if norms == "exact" else "native")


def check_precision(compiled: Any, precision: str) -> None:
    names = {"float32": "fp32", "f32": "fp32", "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "f16": "fp16"}
    got = compiled.get_property("INFERENCE_PRECISION_HINT")
    name = str(got.to_string() if hasattr(got, "to_string") else got)
    if names.get(name, name) != precision:
        raise EngineUnavailable(f"openvino: {precision} was asked for, OpenVINO would compute in {name}; use fp32")


def _lacks(precision: str, capabilities: list[str]) -> str:
    can = [name for name, (_, capability) in HINTS.items() if capability in capabilities]
    return (
        f"openvino: this processor has no {precision} arithmetic (it has {', '.join(can)}); "
        "use one of those; a half-precision bundle also runs in fp32"
    )
