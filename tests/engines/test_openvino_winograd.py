"""Convolutions with fewer multiplications: the matrices, each operator on parts, whole networks, the option."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.engines.openvino.norms import make_norms_exact
from offline_infer.engines.openvino.winograd import choice
from offline_infer.engines.openvino.winograd import plan as planning
from offline_infer.engines.openvino.winograd.cut import Cut
from offline_infer.engines.openvino.winograd.layers import Layer, find_layers, fold_constants
from offline_infer.engines.openvino.winograd.measuring import layer_facts, least_seconds, measure
from offline_infer.engines.openvino.winograd.plan import LEAST_GFLOP, fixed_plan, measured_plan
from offline_infer.engines.openvino.winograd.rewrite import rewrite
from offline_infer.engines.openvino.winograd.transforms import OUTPUTS, kernel_factors, transform
from offline_infer.errors import EngineUnavailable

onnx = pytest.importorskip("onnx")
ov = pytest.importorskip("openvino")
ops = pytest.importorskip("openvino.opset13")

CHANNELS = 8
CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}


# ---- the matrices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", OUTPUTS)
def test_the_transforms_give_the_convolution_exactly(m: int) -> None:
    rows = transform(m)
    for output in range(m):
        for tap in range(3):
            for place in range(m + 2):
                found = sum(
                    (rows.outputs[output][j] * rows.kernel[j][tap] * rows.inputs[j][place] for j in range(m + 2)),
                    Fraction(0),
                )
                assert found == (place == output + tap)


@pytest.mark.parametrize("m", OUTPUTS)
@pytest.mark.parametrize("axis", [2, 3])
def test_weights_are_transformed_along_their_axis(m: int, axis: int) -> None:
    weights = np.random.default_rng(0).standard_normal((2, 3, 3, 3, 3), np.float32)
    factors = kernel_factors(weights, axis, m)
    assert len(factors) == m + 2
    for row, factor in zip(transform(m).kernel, factors, strict=True):
        parts = [float(row[tap]) * weights.take(tap, axis).astype(np.float64) for tap in range(3)]
        np.testing.assert_allclose(factor.squeeze(axis), np.sum(parts, axis=0), rtol=1e-6, atol=1e-7)


# ---- graphs ----------------------------------------------------------------------------------------------------------


class Net:
    """A graph under construction; the same seed gives the same weights."""

    def __init__(self, *sizes: int, channels: int = CHANNELS) -> None:
        self.image = ops.parameter([1, channels, *sizes], np.float32)
        self.rank = len(sizes)
        self._rng = np.random.default_rng(3)

    def conv(self, source: Any, channels: int, kernel: Sequence[int], stride: Sequence[int] | None = None) -> Any:
        ones, pads = [1] * self.rank, [size // 2 for size in kernel]
        weights = self._weights(channels, source.get_output_shape(0)[1], *kernel)
        answer = ops.convolution(source, weights, list(stride or ones), pads, pads, ones)
        return ops.add(answer, self._weights(1, channels, *ones))

    def block(self, source: Any, channels: int, kernel: Sequence[int], stride: Sequence[int] | None = None) -> Any:
        """Convolution, instance norm with scale and bias, LeakyReLU."""
        ones = [1] * self.rank
        axes = ops.constant(np.arange(2, 2 + self.rank))
        normed = ops.mvn(self.conv(source, channels, kernel, stride), axes, True, 1e-5, "inside_sqrt")
        scaled = ops.multiply(normed, self._weights(1, channels, *ones))
        shifted = ops.add(scaled, self._weights(1, channels, *ones))
        return ops.prelu(shifted, ops.constant(np.array([0.01], np.float32)))

    def up(self, source: Any, channels: int, factors: Sequence[int]) -> Any:
        weights = self._weights(source.get_output_shape(0)[1], channels, *factors)
        none, ones = [0] * self.rank, [1] * self.rank
        return ops.convolution_backprop_data(source, weights, list(factors), None, none, none, ones)

    def _weights(self, *shape: int) -> Any:
        scale = np.float32(np.sqrt(max(np.prod(shape[1:]), 1)))
        return ops.constant(self._rng.standard_normal(shape, np.float32) / scale)


Build = Callable[[], Any]


def answers(model: Any, image: np.ndarray) -> list[np.ndarray]:
    make_norms_exact(model)
    found = ov.Core().compile_model(model, "CPU", CONFIG)(image)
    return [np.array(found[index]) for index in range(len(model.outputs))]


def check_same(build: Build, m: int, *, depth: int | None = None, changed: bool = True, shift: float = 0.0) -> int:
    """The graph that ``build`` makes and its rewrite give the same answers; how many layers were rewritten."""
    direct, model = build(), build()
    layers = find_layers(model)
    plan = fixed_plan(layers, m)
    cuts = plan.cuts if depth is None else {axis: Cut(axis, depth) for axis in plan.cuts}
    before = [node.get_type_name() for node in model.get_ops()].count("Convolution")
    rewrite(model, plan.chosen, plan.layers, cuts)
    after = [node.get_type_name() for node in model.get_ops()].count("Convolution")
    assert (before != after) == changed
    image = shift + np.random.default_rng(1).standard_normal([int(n) for n in direct.inputs[0].shape], np.float32)
    for mine, reference in zip(answers(model, image), answers(direct, image), strict=True):
        assert mine.shape == reference.shape
        np.testing.assert_allclose(mine, reference, atol=1e-4 * max(float(reference.std()), 1e-3))
    return len(plan.chosen)


@pytest.mark.parametrize("m", OUTPUTS)
@pytest.mark.parametrize("size", range(1, 10))
def test_every_depth_odd_ones_included(m: int, size: int) -> None:
    def build() -> Any:
        net = Net(size, 6, 5)
        return ov.Model([net.conv(net.image, 5, (3, 3, 3))], [net.image])

    assert check_same(build, m, depth=1, changed=size >= m) == (size >= m)


@pytest.mark.parametrize("m", OUTPUTS)
@pytest.mark.parametrize(("size", "depth"), [(8, 2), (12, 3), (20, 2), (20, 4), (24, 4)])
def test_parts_of_several_planes(m: int, size: int, depth: int) -> None:
    def build() -> Any:
        net = Net(size, 5)
        return ov.Model([net.block(net.block(net.image, 8, (3, 3)), 9, (3, 3))], [net.image])

    check_same(build, m, depth=depth)


@pytest.mark.parametrize("shift", [0.0, 300.0])
@pytest.mark.parametrize("size", [5, 7, 8])
def test_norms_over_all_parts(size: int, shift: float) -> None:
    """Also where a channel's mean is large beside its standard deviation."""

    def build() -> Any:
        net = Net(size, 6, 5)
        inner = net.block(net.image, 8, (3, 3, 3))
        return ov.Model([net.block(inner, 8, (3, 3, 3)), net.conv(inner, 3, (1, 1, 1))], [net.image])

    check_same(build, 4, shift=shift)


def test_equal_voxels_have_no_variance() -> None:
    def build() -> Any:
        net = Net(8, 6, 6)
        return ov.Model([net.block(net.conv(net.image, 8, (1, 1, 1)), 8, (3, 3, 3))], [net.image])

    model = build()
    plan = fixed_plan(find_layers(model), 4)
    rewrite(model, plan.chosen, plan.layers, plan.cuts)
    image = np.full((1, CHANNELS, 8, 6, 6), 7.5, np.float32)
    (mine,), (reference,) = answers(model, image), answers(build(), image)
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, reference, atol=1e-4)


def plain_unet(sizes: Sequence[int], kernels: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]) -> Build:
    def build() -> Any:
        net = Net(*sizes, channels=1)
        x, skips = net.image, []
        for level, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
            x = net.block(net.block(x, 8 << level, kernel, stride), 8 << level, kernel)
            skips.append(x)
        for level in range(len(kernels) - 2, -1, -1):
            x = ops.concat([net.up(x, 8 << level, strides[level + 1]), skips[level]], 1)
            x = net.block(net.block(x, 8 << level, kernels[level]), 8 << level, kernels[level])
        return ov.Model([net.conv(x, 3, [1] * len(sizes)), net.conv(skips[-1], 2, [1] * len(sizes))], [net.image])

    return build


CUBE, FLAT, TWO = (3, 3, 3), (1, 3, 3), (2, 2, 2)


@pytest.mark.parametrize("m", OUTPUTS)
@pytest.mark.parametrize(
    ("sizes", "kernels", "strides"),
    [
        ((16, 8, 8), [CUBE] * 3, [(1, 1, 1), TWO, TWO]),
        ((12, 12, 8), [CUBE] * 2, [(1, 1, 1), TWO]),
        ((5, 16, 16), [FLAT, CUBE], [(1, 1, 1), (1, 2, 2)]),
        ((16, 24), [(3, 3)] * 3, [(1, 1), (2, 2), (2, 2)]),
    ],
    ids=["cube", "twelve", "anisotropic", "2d"],
)
def test_whole_u_nets(m: int, sizes: Sequence[int], kernels: list[Any], strides: list[Any]) -> None:
    assert check_same(plain_unet(sizes, kernels, strides), m) > 3


def test_residual_blocks() -> None:
    """Sums of two ways, pooling beside a strided convolution, a gate for each channel, operators that stay whole."""

    def build() -> Any:
        net = Net(8, 8, 6)
        x = net.block(net.image, 8, CUBE)
        x = ops.relu(ops.add(x, net.block(net.block(x, 8, CUBE), 8, CUBE)))
        gate = ops.sigmoid(ops.reduce_mean(x, ops.constant(np.array([2, 3, 4])), keep_dims=True))
        x = ops.multiply(gate, x)
        pooled = ops.avg_pool(x, [2] * 3, [0] * 3, [0] * 3, [2] * 3, True)
        y = ops.add(net.conv(pooled, 16, (1, 1, 1)), net.block(net.block(x, 16, CUBE, TWO), 16, CUBE))
        return ov.Model([ops.clamp(net.up(ops.elu(y, 1.0), 3, TWO), -5.0, 5.0), ops.softmax(x, 1)], [net.image])

    check_same(build, 4)
    check_same(build, 2, depth=2)


def test_dense_skips() -> None:
    """A net of nested skips, as UNet++ has them."""

    def build() -> Any:
        net = Net(8, 8, 8, channels=1)
        top = net.block(net.image, 8, CUBE)
        low = net.block(net.block(top, 16, CUBE, TWO), 16, CUBE)
        middle = net.block(ops.concat([top, net.up(low, 8, TWO)], 1), 8, CUBE)
        low = net.block(low, 16, CUBE)
        last = net.block(ops.concat([top, middle, net.up(low, 8, TWO)], 1), 8, CUBE)
        return ov.Model([net.conv(last, 2, (1, 1, 1))], [net.image])

    check_same(build, 4)


def test_names_of_outputs_stay() -> None:
    net = Net(8, 6, 6)
    answer = net.conv(net.image, 8, CUBE)
    answer.output(0).set_names({"logits"})
    model = ov.Model([answer], [net.image])
    plan = fixed_plan(find_layers(model), 4)
    rewrite(model, plan.chosen, plan.layers, plan.cuts)
    assert model.outputs[0].get_names() == {"logits"}


@pytest.mark.parametrize("what", ["groups", "open", "dilated", "padding"])
def test_other_convolutions_stay(what: str) -> None:
    image = ops.parameter([1, 8, -1 if what == "open" else 8, 8, 8], np.float32)
    weights = np.ones((2, 4, 4, 3, 3, 3) if what == "groups" else (8, 8, 3, 3, 3), np.float32)
    make = ops.group_convolution if what == "groups" else ops.convolution
    pads, dilation = [0 if what == "padding" else 1] * 3, [2 if what == "dilated" else 1] * 3
    model = ov.Model([make(image, ops.constant(weights), [1] * 3, pads, pads, dilation)], [image])
    assert find_layers(model) == []


# ---- the choice ------------------------------------------------------------------------------------------------------


def layer(name: str, sizes: tuple[int, ...], channels: int = 64) -> Layer:
    shape = (1, channels, *sizes)
    return Layer(name, 2, shape, shape, CUBE, (1,) * 3, (1,) * 3, (1,) * 3, (1,) * 3)


def test_a_stage_is_rewritten_where_its_largest_kind_of_layer_gains() -> None:
    layers = [layer("a", (64,) * 3), layer("wide", (64,) * 3, 192), layer("b", (64,) * 3), layer("c", (32,) * 3, 192)]
    times = {"wide": {0: 3.0, 2: 2.0, 4: 2.9}, "c": {0: 1.0, 2: 0.9, 4: 1.5}}
    asked: list[tuple[str, int]] = []

    def measure(one: Layer, cut: Cut, ways: Sequence[int]) -> dict[int, float]:
        asked.extend((one.name, m) for m in ways)
        return {m: times[one.name][m] for m in (0, *ways)}

    plan = measured_plan(layers, measure)
    assert plan.chosen == {"a": 2, "wide": 2, "b": 2}
    assert asked == [("wide", 4), ("wide", 2), ("c", 4), ("c", 2)]  # F(2, 3) only where F(4, 3) does not pay
    assert str(plan) == "3 F(2,3) of 4 layers"


def test_many_small_layers_of_a_kind_outweigh_a_large_one() -> None:
    layers = [layer("large", (64,) * 3, 96), *(layer(f"small {number}", (64,) * 3) for number in range(3))]
    plan = measured_plan(
        layers, lambda one, cut, ways: {0: 2.0 if one.shape[1] == 64 else 1.0, **dict.fromkeys(ways, 1.0)}
    )
    assert len(plan.chosen) == 4


def test_a_stage_with_next_to_nothing_to_do_is_left_alone() -> None:
    layers = [layer("a", (64,) * 3), layer("deep", (4,) * 3, channels=320)]
    plan = measured_plan(layers, lambda one, cut, ways: {0: 2.0, **dict.fromkeys(ways, 1.0)})
    assert plan.chosen == {"a": 4}
    assert fixed_plan(layers, 2).chosen == {"a": 2, "deep": 2}


def test_small_graphs_are_not_measured() -> None:
    small = layer("a", (16,) * 3)
    assert small.gflop < LEAST_GFLOP
    plan = measured_plan([small], lambda one, cut, ways: pytest.fail("measured"))
    assert plan.chosen == {}
    assert str(plan) == "direct"


def test_an_image_is_not_transformed() -> None:
    assert fixed_plan([layer("a", (64,) * 3, channels=4)], 4).chosen == {}


def test_a_graph_from_onnx_is_written_as_one_made_of_operators(tmp_path: Path) -> None:
    """The reader leaves shapes and biases behind nodes that depend on constants alone."""
    model = ov.Core().read_model(graph_file(tmp_path / "g.onnx"))
    assert "ShapeOf" in {node.get_type_name() for node in model.get_ops()}
    fold_constants(model)
    plan = fixed_plan(find_layers(model), 4)
    rewrite(model, plan.chosen, plan.layers, plan.cuts)
    nodes = model.get_ordered_ops()
    assert "ShapeOf" not in {node.get_type_name() for node in nodes}
    # The norm's statistics are those of what the first convolution wrote: no bias and no mean of lines was taken off before.
    (measured, squared) = (
        {node.input_value(0).get_node().get_name() for node in nodes if node.get_type_name() == kind}
        for kind in ("ReduceMean", "ReduceL2")
    )
    assert measured == squared
    # The last convolution's bias is one constant for every part, so that each convolution can add its own.
    biases = [source for node in nodes if node.get_type_name() == "Add" for source in node.input_values()]
    own = [
        source
        for source in biases
        if source.get_node().get_type_name() == "Constant" and list(source.get_shape())[:2] == [1, 8]
    ]
    own = [source for source in own if np.array_equal(np.ravel(source.get_node().data), np.arange(8))]
    assert len(own) == 8
    assert all(len(source.get_target_inputs()) == 1 for source in own)


@pytest.mark.parametrize("m", OUTPUTS)
def test_weights_are_counted(m: int) -> None:
    layers = [layer("a", (64,) * 3), layer("image", (64,) * 3, channels=4)]
    plan = fixed_plan(layers, m)
    rest = 4 * 4 / (64 * 64)
    assert plan.weights == pytest.approx(((m + 2) / 3 + rest) / (1 + rest))
    assert fixed_plan([], m).weights == 1.0


# ---- the engine's option ---------------------------------------------------------------------------------------------


def graph_file(path: Path, size: int = 8) -> Path:
    helper, rng = onnx.helper, np.random.default_rng(0)
    weights = [rng.standard_normal((8, 8, 3, 3, 3), np.float32) / 15 for _ in range(2)]
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["x"], pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["x", "s", "b"], ["y"]),
        helper.make_node("LeakyRelu", ["y"], ["z"]),
        helper.make_node("Conv", ["z", "w1", "b0"], ["logits"], pads=[1] * 6),
    ]
    ports = [[helper.make_tensor_value_info(name, 1, [1, 8, size, size, size])] for name in ("image", "logits")]
    values = {"w0": weights[0], "w1": weights[1], "s": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}
    values["b0"] = np.arange(8, dtype=np.float32)
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in values.items()]
    graph = helper.make_graph(nodes, "g", *ports, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def opened(path: Path, way: str | None, cache: Path | None = None, precision: str = "fp32") -> tuple[Any, np.ndarray]:
    extra = {} if way is None else {"convolution": way}
    options = EngineOptions(precision=precision, threads=1, cache=cache, extra=extra)
    with get_engine("openvino").open(path, options) as session:
        image = np.random.default_rng(1).standard_normal(session.info.input_shape, np.float32)
        return session.info, session.run(image).copy()


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> list[Layer]:
    """Every graph is large enough, and each layer that is measured, which goes into the list, gains by half."""
    measured: list[Layer] = []

    def measure(library: Any, core: Any, config: Any, one: Layer, cut: Cut, ways: Sequence[int]) -> dict[int, float]:
        measured.append(one)
        return {0: 2.0, **dict.fromkeys(ways, 1.0)}

    monkeypatch.setattr(planning, "LEAST_GFLOP", 0.0)
    monkeypatch.setattr(choice, "measure", measure)
    return measured


def test_the_option(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx")
    info, direct = opened(path, None)
    assert info.details["convolution"] == "direct"
    for way, told in (("f2", "f2: 2 F(2,3) of 2 layers"), ("f4", "f4: 2 F(4,3) of 2 layers"), ("auto", "direct")):
        info, found = opened(path, way)
        assert info.details["convolution"] == told
        assert info.weights == {"f2": pytest.approx(4 / 3), "f4": 2.0, "auto": 1.0}[way]
        np.testing.assert_allclose(found, direct, atol=1e-4)
        assert np.array_equal(found, direct) == (way == "auto")


def test_an_unknown_way_is_refused(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx")
    with pytest.raises(EngineUnavailable, match="convolution is 'f3'; legal: direct, auto, f2, f4"):
        opened(path, "f3")
    options = EngineOptions(threads=1, extra={"convolution": "f4", "norms": "native"})
    with pytest.raises(EngineUnavailable, match="needs precision fp32 and norms=exact"):
        get_engine("openvino").open(path, options)


def test_without_a_word_it_is_auto_where_the_choice_can_be_kept(tmp_path: Path, pays: list[Layer]) -> None:
    path, cache, open_to_all = graph_file(tmp_path / "g.onnx"), tmp_path / "cache", tmp_path / "open"
    cache.mkdir(mode=0o700)
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for unusable in (None, open_to_all):
        with get_engine("openvino").open(path, EngineOptions(threads=1, cache=unusable)) as session:
            assert session.info.details["convolution"] == "direct"
    assert not pays
    for outcome in ("stored", "hit"):
        with get_engine("openvino").open(path, EngineOptions(threads=1, cache=cache)) as session:
            assert (str(session.info.cache), session.info.details["convolution"]) == (
                outcome,
                "auto: 2 F(4,3) of 2 layers",
            )
    assert len(pays) == 1
    assert (
        opened(path, "auto")[0].details["convolution"] == "auto: 2 F(4,3) of 2 layers"
    )  # asked for: measured each time
    assert len(pays) > 1
    assert opened(path, "direct", cache)[0].details["convolution"] == "direct"


def test_two_that_open_at_once_compute_alike(tmp_path: Path, pays: list[Layer]) -> None:
    path, cache = graph_file(tmp_path / "g.onnx"), tmp_path / "cache"
    cache.mkdir(mode=0o700)

    def outcome(_: int) -> str:
        with get_engine("openvino").open(path, EngineOptions(threads=1, cache=cache)) as session:
            return str(session.info.cache)

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(outcome, range(4))) == ["hit", "hit", "hit", "stored"]
    assert len(pays) == 1


def test_other_precisions_leave_it_off(tmp_path: Path) -> None:
    assert choice.Convolutions(EngineOptions(precision="bf16", extra={"convolution": "auto"})).fact == "direct"
    with pytest.raises(EngineUnavailable, match="legal here: direct, auto"):
        choice.Convolutions(EngineOptions(precision="bf16", extra={"convolution": "f2"}))


def test_the_cache_keeps_the_ways_apart(tmp_path: Path) -> None:
    path, cache = graph_file(tmp_path / "g.onnx"), tmp_path / "cache"
    cache.mkdir(mode=0o700)
    first = {way: opened(path, way, cache) for way in ("direct", "f2", "f4")}
    assert {str(info.cache) for info, _ in first.values()} == {"stored"}
    for way, (info, found) in first.items():
        again, same = opened(path, way, cache)
        assert str(again.cache) == "hit"
        assert again.details["convolution"] == info.details["convolution"]
        assert again.weights == info.weights
        np.testing.assert_array_equal(same, found)


def test_what_was_measured_is_kept(tmp_path: Path, pays: list[Layer]) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    one = graph_file(tmp_path / "one.onnx")
    info, _ = opened(one, "auto", cache)
    assert info.details["convolution"] == "auto: 2 F(4,3) of 2 layers"
    assert len(pays) == 1  # both layers are alike
    again, _ = opened(one, "auto", cache)
    assert (str(again.cache), again.details["convolution"]) == ("hit", info.details["convolution"])
    other = tmp_path / "other.onnx"
    model = onnx.load(one)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((8, 8, 3, 3, 3), np.float32), "w0"))
    onnx.save(model, other)
    assert opened(other, "auto", cache)[0].details["convolution"] == info.details["convolution"]
    assert len(pays) == 1


def test_a_layer_is_measured_both_ways() -> None:
    net = Net(8, 6, 6)
    model = ov.Model([net.conv(net.image, 8, CUBE)], [net.image])
    (found,) = find_layers(model)
    times = measure(ov, ov.Core(), CONFIG, found, Cut(2, 1), [2, 4])
    assert sorted(times) == [0, 2, 4]
    assert min(times.values()) > 0
    assert "name" not in json.loads(json.dumps(layer_facts(found)))


@pytest.mark.parametrize(
    ("share", "found"),
    [(1.0, {0: 1.0, 4: 0.9}), (0.8, {0: 1.0, 4: 0.9}), (0.5, {0: 0.5, 4: 0.2})],
)
def test_a_busy_machine_is_measured_by_the_processors_time(share: float, found: dict[int, float]) -> None:
    times = {0: [(1.0, share), (1.2, 1.2 * share)], 4: [(0.9, 0.2), (2.0, 0.3)]}
    assert least_seconds(times) == pytest.approx(found)
