"""The command line of ``atc``: which options are set here, which may be added, and which exclude each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offline_infer.errors import UsageError
from offline_infer.files import sha256_file

PRECISION_MODES = (
    "force_fp16",
    "force_fp32",
    "cube_fp16in_fp32out",
    "allow_fp32_to_fp16",
    "must_keep_origin_dtype",
    "allow_mix_precision",
    "allow_mix_precision_fp16",
    "allow_mix_precision_bf16",
    "allow_fp32_to_bf16",
)
PRECISION_MODES_V2 = (
    "fp16",
    "origin",
    "cube_fp16in_fp32out",
    "mixed_float16",
    "mixed_bfloat16",
    "cube_hif8",
    "mixed_hif8",
)
LOG_LEVELS = ("debug", "info", "warning", "error", "null")

_OURS = frozenset({"framework", "model", "output", "input_shape", "soc_version"})
_OWN_OPTION = {"input_format": "--input-format", "out_nodes": "--out-nodes"}
_REFUSED = {
    "mode": "compile converts; run atc yourself for its other modes",
    "input_shape_range": "this bundle has a fixed shape",
    "dynamic_batch_size": "this bundle has a fixed shape, batch 1",
    "dynamic_image_size": "this bundle has a fixed shape",
    "dynamic_dims": "this bundle has a fixed shape",
    "insert_op_conf": "AIPP makes the input 8-bit; volumes are float",
    "auto_tune_mode": "newer releases removed it; tune with the aoe program",
    "op_select_impl_mode": "atc spells it --op_select_implmode; op_select_impl_mode is ONNX Runtime's option",
}
_FILES = frozenset(
    {
        "keep_dtype",
        "customize_dtypes",
        "modify_mixlist",
        "op_precision_mode",
        "fusion_switch_file",
        "compression_optimize_conf",
    }
)
"""Options that name a file; the tool runs in a folder of its own, so their paths are made absolute."""

Dtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Flags:
    """The options besides model and output.

    Attributes:
        arguments: as given to ``atc``.
        recorded: as written into the bundle: files by name and SHA-256 instead of this machine's paths.
        input_dtype, output_dtype: what the OM takes and gives, where an option changes it.
    """

    arguments: tuple[str, ...]
    recorded: tuple[str, ...]
    input_dtype: Dtype | None
    output_dtype: Dtype | None


def build_flags(
    soc: str,
    input_name: str,
    input_shape: Sequence[int],
    *,
    input_format: str | None = None,
    precision_mode: str | None = None,
    precision_mode_v2: str | None = None,
    out_nodes: str | None = None,
    extra: Sequence[str] = (),
    log_level: str = "error",
) -> Flags:
    """Put the command line together.

    Args:
        input_format: ``NCDHW``, ``NCHW`` or ``ND``; None decides by the number of axes.
        extra: further options, each ``--name=value``, passed through unless they contradict the others.

    Raises:
        UsageError: a value that is not legal, options that exclude each other, or an option that is set here.
    """
    added = _parse_extra(extra)
    precision_mode = _once("precision_mode", precision_mode, added)
    precision_mode_v2 = _once("precision_mode_v2", precision_mode_v2, added)
    log_level = added.pop("log", log_level)
    if precision_mode and precision_mode_v2:
        raise UsageError("--precision-mode and --precision-mode-v2 exclude each other; leave one out")
    _choice("--precision-mode", precision_mode, PRECISION_MODES)
    _choice("--precision-mode-v2", precision_mode_v2, PRECISION_MODES_V2)
    _choice("--log", log_level, LOG_LEVELS)
    if "optypelist_for_implmode" in added and "op_select_implmode" not in added:
        raise UsageError("--optypelist_for_implmode works only together with --op_select_implmode")
    chosen = input_format or {4: "NCHW", 5: "NCDHW"}.get(len(input_shape), "ND")
    _choice("--input-format", chosen, ("NCHW", "NCDHW", "ND"))
    if {"NCHW": 4, "NCDHW": 5}.get(chosen, len(input_shape)) != len(input_shape):
        raise UsageError(f"--input-format {chosen} does not fit an input of {len(input_shape)} axes")
    values = {
        "framework": "5",
        "input_format": chosen,
        "input_shape": f"{input_name}:{','.join(str(size) for size in input_shape)}",
        "soc_version": soc,
        "log": log_level,
        "precision_mode": precision_mode,
        "precision_mode_v2": precision_mode_v2,
        "out_nodes": out_nodes,
    }
    plain = [f"--{name}={value}" for name, value in values.items() if value is not None]
    arguments, recorded = [*plain], [*plain]
    for name, value in added.items():
        if name in _FILES:
            path = Path(value).absolute()
            if not path.is_file():
                raise UsageError(f"--{name}={value}: no such file")
            arguments.append(f"--{name}={path}")
            recorded.append(f"--{name}={path.name}#{sha256_file(path)[:16]}")
        else:
            arguments.append(f"--{name}={value}")
            recorded.append(f"--{name}={value}")
    return Flags(tuple(arguments), tuple(recorded), _input_dtype(added, input_name), _output_dtype(added))


def _parse_extra(extra: Sequence[str]) -> dict[str, str]:
    added: dict[str, str] = {}
    for word in extra:
        match = re.fullmatch(r"--([A-Za-z][A-Za-z0-9_]*)=(.*)", word, re.DOTALL)
        if match is None:
            raise UsageError(f"extra option {word!r}: expected --name=value as atc takes it")
        name, value = match[1], match[2]
        if name in _OURS:
            raise UsageError(f"--{name} is set by compile itself; leave it out")
        if name in _OWN_OPTION:
            raise UsageError(f"--{name}: use compile's own option {_OWN_OPTION[name]}")
        if name in _REFUSED:
            raise UsageError(f"--{name}: {_REFUSED[name]}")
        if name in added:
            raise UsageError(f"--{name} stands twice")
        added[name] = value
    return added


def _once(name: str, given: str | None, added: dict[str, str]) -> str | None:
    other = added.pop(name, None)
    if given is not None and other is not None:
        raise UsageError(f"--{name} stands twice")
    return given if given is not None else other


def _choice(name: str, value: str | None, legal: Sequence[str]) -> None:
    if value is not None and value not in legal:
        raise UsageError(f"{name} {value!r}: legal values: {', '.join(legal)}")


def _input_dtype(added: dict[str, str], input_name: str) -> Dtype | None:
    nodes = added.get("input_fp16_nodes")
    if nodes is None:
        return None
    if [node for node in nodes.split(";") if node] != [input_name]:
        raise UsageError(f"--input_fp16_nodes={nodes}: the graph's input is called {input_name}")
    return "float16"


def _output_dtype(added: dict[str, str]) -> Dtype | None:
    kind = added.get("output_type")
    if kind is None:
        return None
    if kind not in ("FP32", "FP16"):
        raise UsageError(f"--output_type={kind}: expected FP32 or FP16, which then holds for all outputs")
    return "float32" if kind == "FP32" else "float16"
