"""The stand-ins' 'OM': a container with the ONNX graph, run by ONNX Runtime on the CPU in float32."""

from __future__ import annotations

import json
import os
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

MAGIC = b"STANDIN-OM\x00\x01"


class OmError(Exception):
    """The model cannot be loaded or run; ``code`` is the run time's number."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(f"{text}, errorCode is {code}")


@dataclass
class Om:
    """A loaded model.

    Attributes:
        meta: soc, flags, inputs and outputs ({name, shape, dtype}) as ``atc`` wrote them.
    """

    meta: dict[str, Any]
    graph: bytes
    session: Any = field(default=None, repr=False)

    @property
    def input_bytes(self) -> int:
        """Size of the first input."""
        return tensor_bytes(self.meta["inputs"][0])

    def run(self, data: bytes) -> tuple[list[bytes], float]:
        """Outputs in order, and the milliseconds the network took, for a model with one input."""
        return self.run_all([data])

    def run_all(self, data: list[bytes]) -> tuple[list[bytes], float]:
        """Outputs in order, and the milliseconds; one run of bytes per input, told apart by their order alone."""
        feeds = {}
        for entry, given in zip(self.meta["inputs"], data, strict=True):
            if len(given) != tensor_bytes(entry):
                raise OmError(507011, f"input size {len(given)} does not match the model's {tensor_bytes(entry)}")
            array = np.frombuffer(given, np.dtype(entry["dtype"])).reshape(entry["shape"])
            feeds[entry["name"]] = array.astype(entry["graph_dtype"])
        begun = time.perf_counter()
        answers = self._session().run([output["name"] for output in self.meta["outputs"]], feeds)
        spent = 1000 * (time.perf_counter() - begun)
        pairs = zip(answers, self.meta["outputs"], strict=True)
        return [np.ascontiguousarray(answer, dtype=output["dtype"]).tobytes() for answer, output in pairs], spent

    def zeros(self) -> bytes:
        """An input of zeros, for runs without data."""
        return bytes(self.input_bytes)

    def _session(self) -> Any:
        if self.session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = int(os.environ.get("OFFLINE_INFER_STANDIN_THREADS", "1"))
            options.log_severity_level = 3
            graph = _exact_norms(self.graph)
            self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return self.session


def save(path: Path, meta: dict[str, Any], graph: bytes) -> None:
    """Write a model."""
    head = json.dumps({**meta, "graph_bytes": len(graph)}).encode()
    path.write_bytes(MAGIC + struct.pack("<I", len(head)) + head + graph)


def load(path: Path, device: int) -> Om:
    """Load a model onto a device, refusing what the run time would refuse."""
    if not 0 <= device < int(os.environ.get("OFFLINE_INFER_STANDIN_DEVICES", "4")):
        raise OmError(507033, f"open device {device} failed")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OmError(500002, f"load model from file failed, model file is {path} ({error.strerror})") from error
    if not data.startswith(MAGIC):
        raise OmError(500002, f"load model from file failed, {path} is not an offline model")
    (length,) = struct.unpack_from("<I", data, len(MAGIC))
    begin = len(MAGIC) + 4
    meta = json.loads(data[begin : begin + length])
    if len(data) - begin - length != meta.get("graph_bytes", len(data) - begin - length):
        raise OmError(500002, f"load model from file failed, {path} is truncated")
    soc = os.environ.get("OFFLINE_INFER_STANDIN_SOC")
    if soc and meta["soc"] != soc:
        raise OmError(500002, f"load model from file failed, the model is for {meta['soc']}, the device is {soc}")
    return Om(meta, data[begin + length :])


def _exact_norms(graph: bytes) -> bytes:
    """ONNX Runtime's own instance normalisation loses accuracy on volumes; written out, it gives float32's full accuracy.

    This is what the package's engines do on the CPU, so that both routes can be compared label by label.
    ``OFFLINE_INFER_STANDIN_NORMS=native`` leaves the graph alone.
    """
    if os.environ.get("OFFLINE_INFER_STANDIN_NORMS", "exact") == "native":
        return graph
    try:
        import onnx

        from offline_infer.graph import decompose_instance_norm
    except ImportError:
        return graph
    model = onnx.load_from_string(graph)
    if not any(node.op_type == "InstanceNormalization" for node in model.graph.node):
        return graph
    written_out: bytes = decompose_instance_norm(model, axis_by_axis=True).SerializeToString()
    return written_out


def tensor_bytes(entry: dict[str, Any]) -> int:
    return int(np.prod(entry["shape"], dtype=np.int64)) * np.dtype(entry["dtype"]).itemsize


def left_of_run(begun: float) -> float:
    """Seconds until a run that began at ``begun`` (``time.perf_counter``) has taken ``OFFLINE_INFER_STANDIN_SECONDS``.

    A device may be slower than this machine; what this machine computes in its place is part of its time.
    """
    seconds = float(os.environ.get("OFFLINE_INFER_STANDIN_SECONDS", "0"))
    return max(0.0, begun + seconds - time.perf_counter())
