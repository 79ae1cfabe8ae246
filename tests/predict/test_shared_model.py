"""One loaded model used from several threads: calls queue, and every thread gets its own answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.bundles.bundle import save
from offline_infer.engines.base import get_engine
from offline_infer.files import sha256_file
from offline_infer.graph.tiny import single_operator
from offline_infer.images import Image
from offline_infer.images.frame import ImageGeometry
from offline_infer.predict.model import load


def bundle_with_a_graph(folder: Path) -> Path:
    """A network of one 3x3x3 convolution."""
    folder.mkdir()
    weight = np.random.default_rng(0).standard_normal((3, 1, 3, 3, 3)).astype(np.float32)
    attributes = {"kernel_shape": (3, 3, 3), "pads": (1,) * 6}
    graph = single_operator("Conv", (1, 1, 8, 12, 16), weight, (1, 3, 8, 12, 16), attributes)
    spec = with_graphs(with_outputs(tiny_spec()), folder)
    path = folder / spec.graphs[0].file
    path.write_bytes(graph)
    record = spec.graphs[0].model_copy(update={"sha256": sha256_file(path)})
    save(spec.model_copy(update={"graphs": (record,)}), folder)
    return folder


def image(seed: int) -> Image:
    shape = (14, 20, 26)
    array = np.random.default_rng(seed).normal(80, 60, (1, *shape)).astype(np.float32)
    frame = ImageGeometry(shape, (1.5,) * 3, (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1), (1.5,) * 3)
    return Image(array, frame)


@pytest.mark.parametrize(
    ("engine", "options"), [("openvino", {}), ("onnxruntime", {}), ("onnxruntime", {"stitch": "device"})]
)
def test_four_threads_predict_at_once(tmp_path: Path, engine: str, options: dict[str, str]) -> None:
    if get_engine(engine).available() is not None:
        pytest.skip(str(get_engine(engine).available()))
    bundle = bundle_with_a_graph(tmp_path / "b")
    if options:
        pytest.importorskip("onnx")
    with load(bundle, engine=engine, threads=1, engine_options=options) as model:
        expected = [model.predict(image(seed)).array for seed in range(4)]
    meeting = threading.Barrier(4)
    with load(bundle, engine=engine, threads=1, engine_options=options) as model, ThreadPoolExecutor(4) as pool:

        def predict(seed: int) -> np.ndarray:
            meeting.wait(60)  # all four find the engine not yet opened
            return np.stack([model.predict(image(seed)).array for _ in range(3)])

        for seed, found in enumerate(pool.map(predict, range(4))):
            for array in found:
                np.testing.assert_array_equal(array, expected[seed])
