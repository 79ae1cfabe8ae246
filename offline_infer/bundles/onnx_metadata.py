"""Read an ONNX file's key-value metadata and opset without the ``onnx`` package.

An ONNX file is one protocol-buffers message, ``ModelProto``. Only its top level is walked; the graph (nearly all of the
file) is skipped, or hashed where it is asked for. Field numbers are those of ONNX's published ``onnx.proto``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from offline_infer.errors import BundleError
from offline_infer.graph.operators import DOMAINS
from offline_infer.graph.wire import BYTES, Field, Walker, WireError, mapped

_IR_VERSION, _GRAPH, _OPSET_IMPORT, _METADATA = 1, 7, 8, 14  # fields of ModelProto
_LONGEST_KEY = 1 << 16
_LONGEST_ENTRY = 1 << 26  # no metadata entry of ours comes near 64 MiB; more is damage
_MOST_FIELDS = 100_000
_CHUNK = 1 << 20


@dataclass(frozen=True)
class OnnxMetadata:
    """What stands beside the graph.

    Attributes:
        opset: of the default operator domain.
        entries: ``metadata_props``; of equal keys the last one counts.
        graph: where the graph's message lies in the file: its first byte and the byte behind its last.
    """

    opset: int
    entries: dict[str, str]
    graph: tuple[int, int]


def read_metadata(path: Path) -> OnnxMetadata:
    """Walk the top level of an ONNX file.

    Raises:
        BundleError: the file is missing, cut short, or not ONNX.
    """
    entries: dict[str, str] = {}
    opset = 0
    graph: tuple[int, int] | None = None
    seen: set[int] = set()
    try:
        with mapped(path) as data:
            walker = Walker(data, _MOST_FIELDS)
            for part in walker.fields(0, len(data)):
                if part.number == _METADATA:
                    entry = _pair(walker, part)
                    entries[_text(walker, entry.get(1), _LONGEST_KEY)] = _text(walker, entry.get(2), _LONGEST_ENTRY)
                elif part.number == _OPSET_IMPORT:
                    entry = _pair(walker, part)
                    if _text(walker, entry.get(1), _LONGEST_KEY) in DOMAINS:
                        opset = entry[2].value if 2 in entry else 0
                elif part.number == _GRAPH and part.kind == BYTES:
                    graph = (part.start, part.end)
                seen.add(part.number)
    except WireError as damage:
        raise BundleError(f"{path} is not a complete ONNX file ({damage}); copy or export it again") from damage
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    if graph is None or _IR_VERSION not in seen:
        raise BundleError(f"{path} is not an ONNX file: it holds no graph")
    return OnnxMetadata(opset, entries, graph)


def graph_sha256(path: Path, graph: tuple[int, int]) -> str:
    """SHA-256 of the graph's message, weights and all, without what stands beside it in the file.

    Args:
        graph: where it lies; see :class:`OnnxMetadata`.

    Raises:
        BundleError: the file cannot be read.
    """
    digest = hashlib.sha256()
    first, last = graph
    try:
        with path.open("rb") as stream:
            stream.seek(first)
            while first < last and (chunk := stream.read(min(_CHUNK, last - first))):
                digest.update(chunk)
                first += len(chunk)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _pair(walker: Walker, part: Field) -> dict[int, Field]:
    """The fields of a small message; of repeated ones the last."""
    if part.kind != BYTES:
        raise WireError(f"field {part.number} holds no message")
    return {field.number: field for field in walker.fields(part.start, part.end)}


def _text(walker: Walker, part: Field | None, longest: int) -> str:
    return "" if part is None else walker.text(part, longest)
