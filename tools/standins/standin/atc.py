"""STAND-IN for ``atc``: checks options and graph as the manual says, wraps the ONNX graph into a stand-in OM."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from standin import BANNER, om, words
from standin.faults import fault, faults_for, hang

FLAGS = words(
    """framework model output input_format input_shape input_shape_range dynamic_batch_size dynamic_image_size
    dynamic_dims out_nodes output_type input_fp16_nodes insert_op_conf soc_version precision_mode precision_mode_v2
    op_select_implmode optypelist_for_implmode op_precision_mode keep_dtype customize_dtypes modify_mixlist log
    op_compiler_cache_mode op_compiler_cache_dir debug_dir check_report status_check is_weight_clip external_weight
    buffer_optimize fusion_switch_file disable_reuse_memory deterministic enable_small_channel virtual_type
    host_env_os host_env_cpu display_model_info optimization_switch jit_compile mode om weight op_name_map"""
)
SOCS = words(
    """Ascend310 Ascend310P1 Ascend310P3 Ascend310B1 Ascend310B4 Ascend910A Ascend910B1 Ascend910B2
    Ascend910B2C Ascend910B3 Ascend910B4 Ascend910ProA Ascend910ProB"""
)
CHOICES = {
    "log": {"debug", "info", "warning", "error", "null"},
    "precision_mode": {
        "force_fp16", "force_fp32", "cube_fp16in_fp32out", "allow_fp32_to_fp16", "must_keep_origin_dtype",
        "allow_mix_precision", "allow_mix_precision_fp16", "allow_mix_precision_bf16", "allow_fp32_to_bf16",
    },
    "precision_mode_v2": {
        "fp16", "origin", "cube_fp16in_fp32out", "mixed_float16", "mixed_bfloat16", "cube_hif8", "mixed_hif8",
    },
    "op_select_implmode": {
        "high_precision", "high_performance", "high_precision_for_all", "high_performance_for_all",
    },
    "input_format": {"NCHW", "NCDHW", "ND"},
    "op_compiler_cache_mode": {"disable", "enable", "force"},
    "buffer_optimize": {"l2_optimize", "l1_optimize", "off_optimize"},
}  # fmt: skip
EXCLUSIVE = (
    ("precision_mode", "precision_mode_v2", "E10056"),
    ("dynamic_batch_size", "dynamic_image_size", "E10009"),
    ("dynamic_batch_size", "dynamic_dims", "E10009"),
    ("dynamic_image_size", "dynamic_dims", "E10009"),
    ("optypelist_for_implmode", None, "E10047"),
)
PATHS = ("model", "output", "debug_dir", "check_report")
NEWEST_OPSET = 18


class RefusedError(Exception):
    """A coded error."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")


def main(arguments: list[str]) -> int:
    """Run; 0 or 255, everything on standard output."""
    if "--help" in arguments or "-h" in arguments:
        print(f"usage: atc <args> {BANNER}\n" + "\n".join(f"  --{flag}" for flag in sorted(FLAGS)))
        return 0
    print("ATC start working now, please wait for a moment.")
    print("...", flush=True)
    faults = faults_for("atc")
    try:
        options = _parse(arguments)
        if fault(faults, "hang"):
            hang()
        if fault(faults, "crash-after"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault(faults, "exit0-without-success"):
            return 0
        if coded := fault(faults, "code"):
            raise _coded(coded.argument)
        if options.get("mode") == "6":
            return _show(Path(options.get("om", "")))
        path = _convert(options, write=not fault(faults, "success-without-om"))
        if fault(faults, "truncated-om"):
            path.write_bytes(path.read_bytes()[:-100])
        if fault(faults, "disk-full"):
            path.write_bytes(path.read_bytes()[:100])
            raise RefusedError(
                "E19999", f"[PID: {os.getpid()}] Inner Error! write {path} failed: No space left on device"
            )
    except RefusedError as error:
        print("ATC run failed, Please check the detail log, Try 'atc --help' for more information")
        print(error, flush=True)
        return 255
    print("ATC run success, welcome to the next use.")
    if fault(faults, "warn"):
        print("W11001: High-priority service of op[InstanceNormalization] is not found, its priority is lowered.")
    return 0


def _show(path: Path) -> int:
    """``--mode=6 --om=FILE``: what an OM says of itself."""
    try:
        model = om.load(path, 0)
    except (om.OmError, ValueError, KeyError) as error:
        raise RefusedError("E10041", f"Failed to load the model from {path}: {error}.") from error
    print(f"=== OM: soc_version {model.meta['soc']}, {len(model.meta['outputs'])} outputs ===")
    print("ATC run success, welcome to the next use.", flush=True)
    return 0


def _coded(code: str) -> RefusedError:
    if code == "E90003":
        return RefusedError(
            "E40000",
            "RuntimeError: ({'errCode': 'E90003', 'detailed_cause': 'tuple_reduce_sum not support'}, "
            "'Compile operator failed, cause: Template constraint, "
            "detailed information: tuple_reduce_sum not support.')",
        )
    if code == "EC0010":
        return RefusedError(
            code,
            "[PID: 77] 2025-01-01-00:00:00.000.000 Failed to import Python module [ModuleNotFoundError: decorator].",
        )
    return RefusedError(code, "an error that was asked for.")


def _parse(arguments: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, sign, value = word.partition("=")
        if not name.startswith("--") or name[2:] not in FLAGS:
            raise RefusedError(
                "E10001", f"Value [{word}] for parameter [{name}] is invalid. Reason: it is not an option of atc."
            )
        if not sign:
            if not waiting:
                raise RefusedError("E10054", f"The required parameter [{name}] is empty.")
            value = waiting.pop(0)
        options[name[2:]] = value
    if options.get("mode") == "6":
        return options
    if "framework" not in options:
        raise RefusedError(
            "E10007",
            "[--framework] is required. The value must be [0(Caffe) or 1(MindSpore) or 3(TensorFlow) or 5(Onnx)].",
        )
    for name in ("model", "output", "soc_version"):
        if not options.get(name):
            raise RefusedError("E10054", f"The required parameter [--{name}] is empty.")
    for name, legal in CHOICES.items():
        if name in options and options[name] not in legal:
            _invalid(name, options[name], f"it must be one of {sorted(legal)}")
    if options["soc_version"] not in SOCS:
        _invalid("soc_version", options["soc_version"], "the soc is unknown")
    if options["framework"] != "5":
        _invalid("framework", options["framework"], "this stand-in converts ONNX only")
    if options.get("mode", "0") != "0":
        raise RefusedError(
            "E10055", f"The operation is not supported. Reason: mode {options['mode']} is not in this stand-in."
        )
    for first, second, code in EXCLUSIVE:
        if second and first in options and second in options:
            raise RefusedError(code, f"[--{first}] and [--{second}] are mutually exclusive.")
    if "optypelist_for_implmode" in options and "op_select_implmode" not in options:
        raise RefusedError("E10047", "[--optypelist_for_implmode] works only together with [--op_select_implmode].")
    for name in PATHS:
        if name in options and not re.fullmatch(r"[A-Za-z0-9_./\u4e00-\u9fff-]+", options[name]):
            _invalid(name, options[name], "the path has characters other than letters, digits, '_', '-', '.', '/'")
    return options


def _invalid(name: str, value: str, reason: str) -> NoReturn:
    raise RefusedError("E10001", f"Value [{value}] for parameter [--{name}] is invalid. Reason: {reason}.")


def _convert(options: dict[str, str], write: bool) -> Path:
    import onnx

    source = Path(options["model"])
    if not source.is_file():
        raise RefusedError("E10410", f"Failed to find the model file [{source}].")
    try:
        model = onnx.load(str(source))
    except Exception as error:
        raise RefusedError("E10041", f"Failed to load the model from {source}.") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset > NEWEST_OPSET:
        raise RefusedError("E19010", f"No parser is registered for Op [Conv, optype [ai.onnx::{opset}::Conv]].")
    foreign = [node for node in model.graph.node if node.domain not in ("", "ai.onnx")]
    if foreign:
        raise RefusedError(
            "E19010",
            f"No parser is registered for Op [{foreign[0].name}, optype [{foreign[0].domain}::{foreign[0].op_type}]].",
        )
    inputs = _inputs(model, options)
    outputs = _outputs(model, options)
    Path("kernel_meta").mkdir(exist_ok=True)
    Path("fusion_result.json").write_text("[]\n")
    Path(options.get("check_report", "check_result.json")).write_text("{}\n")
    suffix = f"_{options.get('host_env_os', 'linux')}_{options['host_env_cpu']}" if "host_env_cpu" in options else ""
    target = Path(options["output"] + suffix + ".om")
    if not target.parent.is_dir():
        raise RefusedError("E13024", f"The folder of [--output] {target.parent} does not exist.")
    meta = {"soc": options["soc_version"], "flags": options, "inputs": inputs, "outputs": outputs}
    if write:
        om.save(target, meta, source.read_bytes())
    return target


def _inputs(model: Any, options: dict[str, str]) -> list[dict[str, Any]]:
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    declared = {value.name: value for value in model.graph.input if value.name not in constants}
    shapes = _shapes(options.get("input_shape", ""))
    half = set(options.get("input_fp16_nodes", "").split(";")) - {""}
    for name in {*shapes, *half}:
        if name not in declared:
            raise RefusedError("E10016", f"Opname [{name}] is not found in the model.")
    if any(size < 1 for shape in shapes.values() for size in shape):
        raise RefusedError("E10055", "The operation is not supported. Reason: this stand-in takes fixed shapes only.")
    entries = []
    for name, value in declared.items():
        own = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        shape = shapes.get(name, own)
        if len(shape) != len(own):
            raise RefusedError(
                "E10049", f"The number of dims [{len(shape)}] of input [{name}] differs from the model's [{len(own)}]."
            )
        if any(known and known != size for known, size in zip(own, shape, strict=True)) or min(shape, default=1) < 1:
            raise RefusedError(
                "E10001", f"Value {shape} for parameter [--input_shape] is invalid. Reason: the model has {own}."
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        entries.append(
            {"name": name, "shape": shape, "graph_dtype": dtype, "dtype": "float16" if name in half else dtype}
        )
    return entries


def _shapes(text: str) -> dict[str, list[int]]:
    shapes = {}
    for part in filter(None, text.split(";")):
        name, sign, sizes = part.rpartition(":")
        if not sign or not re.fullmatch(r"-?\d+(,-?\d+)*", sizes):
            raise RefusedError(
                "E10002", f"Value [{text}] for parameter [--input_shape] is invalid. Reason: expected name:n,c,d,h,w."
            )
        shapes[name] = [int(size) for size in sizes.split(",")]
    return shapes


def _outputs(model: Any, options: dict[str, str]) -> list[dict[str, Any]]:
    import onnx

    inferred = {value.name: value for value in model.graph.output}
    wanted = list(filter(None, options.get("out_nodes", "").split(";")))
    names = []
    for entry in wanted:
        node, sign, index = entry.rpartition(":")
        if sign and index.isdigit():
            match = next((each for each in model.graph.node if each.name == node), None)
            if match is None or int(index) >= len(match.output):
                raise RefusedError("E11017", f"Failed to find output node [{entry}].")
            names.append(match.output[int(index)])
        else:
            names.append(entry)
    for name in names:
        if name not in inferred:
            raise RefusedError("E11017", f"Failed to find output node [{name}].")
    if "output_type" in options and options["output_type"] not in ("FP32", "FP16"):
        _invalid("output_type", options["output_type"], "this stand-in knows FP32 and FP16 for all outputs")
    kind = {"FP32": "float32", "FP16": "float16"}.get(options.get("output_type", ""))
    entries = []
    for name in names or list(inferred):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(inferred[name].type.tensor_type.elem_type).name
        shape = [dimension.dim_value for dimension in inferred[name].type.tensor_type.shape.dim]
        entries.append({"name": name, "dtype": kind or dtype, "shape": shape})
    return entries


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
