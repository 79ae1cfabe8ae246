"""An engine on this machine's processor that says what a graph really answers, for doubts about a device's answer."""

from __future__ import annotations

from pathlib import Path

from offline_infer.engines.base import EngineOptions, Session, get_engine
from offline_infer.errors import OfflineInferError

REFERENCES = ("openvino", "onnxruntime")
"""Engines that compute in float32 on the processor, in order of preference."""


def open_reference(graph: Path, *, outputs: tuple[str, ...] = (), threads: int = 0) -> Session | None:
    """The graph in the first reference engine that works here, or None where there is none."""
    for name in REFERENCES:
        try:
            engine = get_engine(name)
            if engine.available() is None:
                return engine.open(graph, EngineOptions(threads=threads, outputs=outputs))
        except OfflineInferError:
            continue  # the next one, or none: the caller then has to do without
    return None
