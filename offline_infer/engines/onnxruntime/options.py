"""What a user asks of ONNX Runtime, in the library's own words: providers with their options, session options."""

from __future__ import annotations

from typing import Any

from offline_infer.engines.base import EngineOptions
from offline_infer.engines.compiled_cache import open_cache
from offline_infer.errors import EngineUnavailable
from offline_infer.threads import engine_threads

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "npu": "CANNExecutionProvider",
}
_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_OPTIONS = ("output", "provider", "optimization", "norms", "stitch", "mirror_batch")


def device_of(options: EngineOptions) -> tuple[str, int]:
    """Kind of provider and device index."""
    name, _, number = options.device.partition(":")
    wanted = options.extra.get("provider")
    if name not in ("cpu", "cuda", "npu") or (number and not number.isdecimal()) or (name == "cpu" and number):
        raise EngineUnavailable(f"onnxruntime: unknown device {options.device!r}; legal: cpu, cuda:N, npu:N")
    legal = {"cpu": ("cpu",), "cuda": ("cuda", "tensorrt"), "npu": ("npu",)}[name]
    if wanted is not None and wanted not in legal:
        raise EngineUnavailable(f"onnxruntime: no provider {wanted!r} for {options.device}; legal: {', '.join(legal)}")
    return wanted or name, int(number or 0)


def chain(kind: str, index: int, options: EngineOptions) -> list[Any]:
    """Providers with their options, in order of preference; the CPU is never among an accelerator's."""
    own = {key.removeprefix("provider."): value for key, value in options.extra.items() if key.startswith("provider.")}
    if kind == "cpu":
        return [(PROVIDERS["cpu"], own)] if own else [PROVIDERS["cpu"]]
    # TF32 keeps 10 of float32's 23 bits; the default of the provider is to use it.
    # Shapes are fixed: every convolution's algorithms are tried once, at the first call, with all the workspace they want.
    cuda = {
        "device_id": str(index),
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
    }
    if kind == "cuda":
        return [(PROVIDERS["cuda"], {**cuda, **own})]
    if kind == "tensorrt":
        tensorrt = {"device_id": str(index)}
        if options.precision == "fp16":
            tensorrt["trt_fp16_enable"] = "1"
        # TensorRT trusts what it finds in its cache, so only a folder of the user's own, or one named as shared, is given.
        if open_cache(options.cache, shared=options.shared_cache)[0] is not None:
            tensorrt |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(options.cache),
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(options.cache),
            }
        return [(PROVIDERS["tensorrt"], {**tensorrt, **own}), (PROVIDERS["cuda"], cuda)]
    cann = {
        "device_id": str(index),
        "enable_cann_graph": "1",
        "dump_om_model": "0",  # it would leave .om files in the working folder
        "precision_mode": "force_fp16" if options.precision == "fp16" else "must_keep_origin_dtype",
        "op_select_impl_mode": "high_precision",
    }
    return [(PROVIDERS["npu"], {**cann, **own})]


def session_options(ort: Any, options: EngineOptions, kind: str) -> Any:
    if options.threads < 0:
        raise EngineUnavailable(f"onnxruntime: threads is {options.threads}; 0 means all cores")
    level = options.extra.get("optimization", "all")
    if level not in _LEVELS:
        raise EngineUnavailable(f"onnxruntime: unknown optimization {level!r}; legal: {', '.join(_LEVELS)}")
    session = ort.SessionOptions()
    session.log_severity_level = 3  # errors; they reach us as exceptions
    session.intra_op_num_threads = engine_threads(options.threads)
    session.inter_op_num_threads = 1
    session.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    session.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
    entries = {}
    if kind != "cpu":
        entries["session.disable_cpu_ep_fallback"] = "1"  # no part of the graph on the CPU either
    for key, value in options.extra.items():
        if key.startswith("session."):
            entries[key] = value
        elif key not in _OPTIONS and not key.startswith("provider."):
            raise EngineUnavailable(
                f"onnxruntime: unknown option {key!r}; legal: {', '.join(_OPTIONS)}, provider.KEY, session.KEY"
            )
    for key, value in entries.items():
        session.add_session_config_entry(key, value)
    return session


def stitching(kind: str, options: EngineOptions) -> tuple[bool, int]:
    """Whether answers stay on the device, and how many mirrors go in one call there."""
    stitch = options.extra.get("stitch", "device" if kind in ("cuda", "tensorrt") else "host")
    if stitch not in ("device", "host") or (stitch == "device" and kind == "npu"):
        raise EngineUnavailable(
            f"onnxruntime: stitch is {stitch!r} on {options.device}; legal: host, and device except on npu"
        )
    images = options.extra.get("mirror_batch", "1")
    if not images.isdecimal() or int(images) < 1:
        raise EngineUnavailable(f"onnxruntime: mirror_batch is {images!r}, expected a whole number from 1 on")
    return stitch == "device", int(images)
