"""A tiny bundle with a real ONNX graph, and an environment in which the stand-ins are the Ascend tools."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from specimens import tiny_spec

from offline_infer.bundles.bundle import Bundle, save
from offline_infer.files import sha256_file
from offline_infer.spec import GraphRecord, OutputSpec, VolumeSpec
from offline_infer.staging.worklist import (
    CaseRecord,
    Item,
    OutputsManifest,
    Worklist,
    WorklistWriter,
    header_for,
)
from offline_infer.tasks.volume.tiles import tile_name

REPOSITORY = Path(__file__).resolve().parents[2]
STANDINS = REPOSITORY / "tools" / "standins"
PATCH = (4, 6, 8)
CLASSES = 3


def use_standins(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Put the stand-ins on PATH, run by this Python; e.g. ``fail="crash-after:2 device:1"``, ``soc=...``."""
    for name in list(os.environ):
        if name.startswith("OFFLINE_INFER_STANDIN_"):
            monkeypatch.delenv(name)
    interpreter = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([str(STANDINS / "bin"), interpreter, os.environ["PATH"]]))
    # The graph as it is: answers are compared with ONNX Runtime's own, bit by bit.
    for name, value in {"norms": "native", **settings}.items():
        monkeypatch.setenv(f"OFFLINE_INFER_STANDIN_{name.upper()}", value)


def use_binding(monkeypatch: pytest.MonkeyPatch, binding: str, **settings: str) -> None:
    """Have the stand-in of one binding installed: ``v2023``, ``v2024`` (ais_bench) or ``acl``."""
    if binding != "acl":
        settings = {"generation": binding, **settings}
    use_standins(monkeypatch, **settings)
    monkeypatch.syspath_prepend(str(STANDINS / ("pyacl" if binding == "acl" else "python")))


def graph_bytes(heads: int = 1, opset: int = 13, scale: float = 1.0) -> bytes:
    """A small convolutional net (1, 1, z, y, x) -> heads of (1, 3, z, y, x), each head different."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    numbers = np.random.default_rng(0)
    weights = {
        "stem_weight": numbers.normal(size=(4, 1, 3, 3, 3)) * scale,
        "norm_scale": np.ones(4),
        "norm_bias": np.zeros(4),
        **{f"head_{i}_weight": numbers.normal(size=(CLASSES, 4, 1, 1, 1)) for i in range(heads)},
    }
    nodes = [
        helper.make_node("Conv", ["image", "stem_weight"], ["stem"], name="Conv_0", pads=[1] * 6, kernel_shape=[3] * 3),
        helper.make_node("InstanceNormalization", ["stem", "norm_scale", "norm_bias"], ["normed"], name="Norm_0"),
        helper.make_node("LeakyRelu", ["normed"], ["active"], name="Relu_0", alpha=0.01),
        *(
            helper.make_node("Conv", ["active", f"head_{i}_weight"], [output_name(i)], name=f"Head_{i}")
            for i in range(heads)
        ),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [value("image", onnx.TensorProto.FLOAT, [1, 1, *PATCH])],
        [value(output_name(i), onnx.TensorProto.FLOAT, [1, CLASSES, *PATCH]) for i in range(heads)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def output_name(head: int) -> str:
    return "class" if head == 0 else f"head_{head}"


def tiny_bundle(folder: Path, *, heads: int = 1, folds: Sequence[str] = ("0",), opset: int = 13) -> Bundle:
    """A bundle folder with a real graph per fold."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = tiny_spec(patch=PATCH, classes=CLASSES, folds=folds)
    shape = (1, CLASSES, *PATCH)
    outputs = tuple(OutputSpec(name=output_name(i), dtype="float32", shape=shape, keep=i == 0) for i in range(heads))
    graphs = []
    for number, fold in enumerate(folds):
        file = folder / f"fold_{fold}.onnx"
        file.write_bytes(graph_bytes(heads, opset, scale=1.0 + number))
        graphs.append(GraphRecord(file=file.name, fold=fold, opset=opset, sha256=sha256_file(file)))
    return save(spec.model_copy(update={"outputs": outputs, "graphs": tuple(graphs)}), folder)


def work_folder(work: Path, spec: VolumeSpec, tiles: int, *, case: str = "liver_3", dtype: str = "float32") -> Worklist:
    """A work folder with one case of ``tiles`` random tiles, unmirrored."""
    header = header_for(spec, {"step_size": 0.5, "tta": False}, [graph.fold for graph in spec.graphs], dtype)  # type: ignore[arg-type]
    writer = WorklistWriter(work, header)
    numbers = np.random.default_rng(1)
    first = writer.next_index
    items = []
    for index in range(tiles):
        start = (0, 0, 4 * index)
        file = f"inputs/{case}_{tile_name(start, PATCH, 0)}.bin"
        data = numbers.normal(size=(1, *PATCH)).astype(dtype).tobytes()
        (work / file).write_bytes(data)
        items.append(
            Item(
                index=first + index,
                case=case,
                file=file,
                geometry={"mode": "tile", "start": list(start), "mirror": 0},
                shape=(1, *PATCH),
                dtype=dtype,  # type: ignore[arg-type]
                bytes=len(data),
                crc32=zlib.crc32(data),
            )
        )
    writer.add(
        CaseRecord(
            case_id=case,
            safe_name=case,
            files=(),
            geometry={},
            network_shape=(4, 6, 4 * tiles + 4),
            items=tiles,
            first_item=first,
        ),
        items,
    )
    return Worklist.load(work)


def answers_by_onnxruntime(bundle: Bundle, worklist: Worklist, fold: str) -> dict[int, list[np.ndarray]]:
    """What the graph answers to every item: item index -> all outputs."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(bundle.graph_path(fold)), options, providers=["CPUExecutionProvider"])
    found = {}
    for item in worklist.items():
        data = np.fromfile(worklist.path(item), item.dtype).astype(np.float32).reshape(1, *item.shape)
        found[item.index] = session.run(None, {"image": data})
    return found


def check_answers(bundle: Bundle, worklist: Worklist, fold: str, *, atol: float = 0.0, outputs: int = 1) -> None:
    """Compare every listed output with what the graph answers; every needed one must be there."""
    manifest = OutputsManifest.load(worklist.work)
    expected = answers_by_onnxruntime(bundle, worklist, fold)
    for item in worklist.items():
        for output in range(outputs):
            entry = manifest.complete(item.index, fold, output)
            assert entry is not None, f"{item.stem}, fold {fold}, output {output}: no complete file"
            got = np.fromfile(manifest.path(entry), entry.dtype).astype(np.float32).reshape(1, CLASSES, *PATCH)
            np.testing.assert_allclose(got, expected[item.index][output], rtol=0, atol=atol)
