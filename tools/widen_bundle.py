"""Widen a small trained bundle to a larger network that computes the same function.

    python tools/widen_bundle.py offline_infer/demo/bundle wide_bundle --factor 8 --most 320

A network of full size that is also trained is what speed and Dice have to be measured on together, and training one takes
days. So every channel of a small trained network is copied until its layer has the wanted width, and the weights that read
the copies are shared out among them: the method of Chen, Goodfellow and Shlens (Net2Net, ICLR 2016, "Net2WiderNet"). Instance
norms and activations treat the copies alike, so the answers stay what they were, up to rounding.

``--noise`` makes the copies differ: every weight is multiplied by 1 + noise * a normal draw. Without it, copies of a channel
would round alike, and INT8 would be no harder on the wide network than on the narrow one.

Convolutions, transposed ones, instance norms, activations and concatenations along the channels are understood: the U-Nets of
nnU-Net. Needs ``onnx``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from offline_infer.bundles.bundle import Bundle, creating, embedded, save
from offline_infer.files import sha256_file
from offline_infer.graph.model import graph_sha256, load_model, opset, save_model, set_metadata
from offline_infer.spec import GraphRecord

Copies = npt.NDArray[np.int64]
"""Channel of the wide network -> channel of the narrow one that it copies."""
_ALIKE = {"LeakyRelu", "Relu", "Identity"}


class Widener:
    """Walks a graph from the input on and knows, for every tensor, which channel copies which.

    Args:
        factor: of the number of channels of every layer but the input and the outputs.
        most: channels of a layer.
        noise: standard deviation of the factors of the weights.
    """

    def __init__(self, model: Any, factor: int, most: int, noise: float, seed: int = 0) -> None:
        self._model, self._factor, self._most, self._noise = model, factor, most, noise
        self._random = np.random.default_rng(seed)
        self._weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        self._new: dict[str, npt.NDArray[np.float32]] = {}
        self._copies: dict[str, Copies] = {}

    def widen(self) -> Any:
        """The wide model.

        Raises:
            ValueError: an operator that is not understood.
        """
        graph = self._model.graph
        for port in graph.input:
            self._copies[port.name] = np.arange(port.type.tensor_type.shape.dim[1].dim_value)
        ends = {port.name for port in graph.output}
        for node in graph.node:
            self._copies[node.output[0]] = self._node(node, node.output[0] in ends)
        wide = onnx.ModelProto()
        wide.CopyFrom(self._model)
        del wide.graph.initializer[:], wide.graph.value_info[:]
        arrays = {**self._weights, **self._new}
        wide.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
        onnx.checker.check_model(wide)
        return wide

    def _node(self, node: Any, is_end: bool) -> Copies:
        if node.op_type in ("Conv", "ConvTranspose"):
            return self._convolution(node, is_end)
        before = self._copies[node.input[0]]
        if node.op_type in _ALIKE:
            return before
        if node.op_type == "InstanceNormalization":
            for name in node.input[1:]:
                self._new[name] = self._weights[name][before]
            return before
        if node.op_type == "Concat" and onnx.helper.get_node_attr_value(node, "axis") == 1:
            joined, first = [], 0
            for name in node.input:
                joined.append(self._copies[name] + first)
                first += int(self._copies[name].max()) + 1
            return np.concatenate(joined)
        raise ValueError(
            f"{node.op_type} is not understood: only what the U-Nets of nnU-Net are made of can be widened"
        )

    def _convolution(self, node: Any, is_end: bool) -> Copies:
        before, name = self._copies[node.input[0]], node.input[1]
        weight = self._weights[name]
        if node.op_type == "ConvTranspose":  # (in, out, ...)
            weight = weight.swapaxes(0, 1)
        narrow = weight.shape[0]
        width = narrow if is_end else max(narrow, min(narrow * self._factor, self._most))
        after: Copies = np.arange(width) % narrow
        shared = weight[after][:, before] / np.bincount(before)[before].reshape(1, -1, *[1] * (weight.ndim - 2))
        shared *= 1 + self._noise * self._random.standard_normal(shared.shape)
        if node.op_type == "ConvTranspose":
            shared = shared.swapaxes(0, 1)
        self._new[name] = np.ascontiguousarray(shared, np.float32)
        for bias in node.input[2:]:
            self._new[bias] = self._weights[bias][after]
        return after


def widen_bundle(source: Path, target: Path, factor: int, most: int, noise: float) -> Bundle:
    """A bundle of the wide network; what was verified of the narrow one is left behind."""
    bundle = Bundle.load(source)
    with creating(target) as folder:
        graphs = []
        for fold in bundle.folds:
            narrow = bundle.graph(fold)
            wide = Widener(load_model(bundle.graph_path(fold)), factor, most, noise).widen()
            about: Mapping[str, str] = embedded(bundle.spec, fold, "fp32", opset(wide), graph_sha256(wide))
            save_model(set_metadata(wide, about), folder / narrow.file)
            digest = sha256_file(folder / narrow.file)
            graphs.append(GraphRecord(file=narrow.file, fold=fold, opset=narrow.opset, sha256=digest))
        save(bundle.spec.model_copy(update={"graphs": tuple(graphs), "compiled": ()}), folder)
    return Bundle.load(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--factor", type=int, default=8, help="of the channels (default 8)")
    parser.add_argument("--most", type=int, default=320, help="channels of a layer (default 320)")
    parser.add_argument("--noise", type=float, default=0.02, help="relative, of every weight (default 0.02)")
    options = parser.parse_args()
    made = widen_bundle(options.bundle, options.output, options.factor, options.most, options.noise)
    print(f"{made.folder}: {sum(path.stat().st_size for path in made.folder.glob('*.onnx')) >> 20} MiB")


if __name__ == "__main__":
    main()
