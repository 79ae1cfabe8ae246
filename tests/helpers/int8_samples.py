"""Small bundles whose weights are made by hand, and cases for them: a network that knows its task, and one that knows nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_samples import save as save_image
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.bundles.bundle import Bundle, save
from offline_infer.files import sha256_file

PATCH = (8, 16, 16)
_WIDTH = 8


def threshold_bundle(folder: Path, *, random: bool = False) -> Bundle:
    """A bundle of two classes: what is brighter than the training mean, or, with random weights, nothing in particular."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = with_outputs(tiny_spec(patch=PATCH, classes=2))
    bundle = save(with_graphs(spec, folder), folder)
    path = bundle.graph_path("0")
    path.write_bytes(graph_bytes(random))
    record = bundle.spec.graphs[0].model_copy(update={"sha256": sha256_file(path)})
    return save(bundle.spec.model_copy(update={"graphs": (record,)}), folder)


def graph_bytes(random: bool = False) -> bytes:
    """Three convolutions and two activations; with hand-made weights they carry the voxel's own value to the end."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    rng = np.random.default_rng(0)
    first, second = np.zeros((_WIDTH, 1, 3, 3, 3), np.float32), np.zeros((_WIDTH, _WIDTH, 3, 3, 3), np.float32)
    last = np.zeros((2, _WIDTH, 1, 1, 1), np.float32)
    first[:, 0, 1, 1, 1] = np.linspace(0.5, 1.5, _WIDTH)
    second[:, :, 1, 1, 1] = np.eye(_WIDTH) + 0.01
    last[1] = 1.0
    if random:
        first, second, last = (rng.normal(size=each.shape).astype(np.float32) for each in (first, second, last))
    weights = {"w1": first, "w2": second, "w3": last}
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a1"], pads=[1] * 6),
        helper.make_node("LeakyRelu", ["a1"], ["r1"], alpha=0.5),
        helper.make_node("Conv", ["r1", "w2"], ["a2"], pads=[1] * 6),
        helper.make_node("LeakyRelu", ["a2"], ["r2"], alpha=0.5),
        helper.make_node("Conv", ["r2", "w3"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", 1, [1, 1, *PATCH])
    logits = helper.make_tensor_value_info("logits", 1, [1, 2, *PATCH])
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [image], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def write_cases(images: Path, labels: Path | None = None, count: int = 4, *, bright: float = 250.0) -> None:
    """Boxes brighter than what is around them, with a little noise, in the model's own spacing."""
    images.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        truth = np.zeros((10, 20, 20), np.uint8)
        truth[2:8, 4 + number : 14, 5:15] = 1
        values = np.where(truth, bright, -50.0) + rng.normal(0, 5, truth.shape)
        save_image(images / f"case{number}_0000.nii.gz", values.astype(np.float32), spacing=(1.5, 1.5, 1.5))
        if labels is not None:
            labels.mkdir(parents=True, exist_ok=True)
            save_image(labels / f"case{number}.nii.gz", truth, spacing=(1.5, 1.5, 1.5))
