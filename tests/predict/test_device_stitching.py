"""Mirrors, sums and stitching on the device, on ONNX Runtime's CPU provider: the same numbers as on the host."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_networks import network
from specimens import tiny_spec, with_outputs
from staged_samples import RampSession, prepared_case, segment, write_case

from offline_infer.arithmetic.sliding_window import lay_tiles
from offline_infer.engines.base import EngineOptions, Session, StitchingSession, StitchRecipe, get_engine
from offline_infer.engines.onnxruntime import device as onnxruntime_device
from offline_infer.errors import EngineFailed, EngineUnavailable, ExportError
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume import on_device
from offline_infer.tasks.volume.deciding import Segmentation
from offline_infer.tasks.volume.preparing import PreparedCase

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def opened(folder: Path, spec: VolumeSpec, device: bool = True, batch: int = 1, **made: Any) -> list[Session]:
    extra = {"stitch": "device" if device else "host", "mirror_batch": str(batch)}
    paths = [network(folder / f"{i}.onnx", spec, seed=i, **made) for i, _ in enumerate(spec.source.folds)]
    return [get_engine("onnxruntime").open(path, EngineOptions(threads=1, extra=extra)) for path in paths]


def both(
    folder: Path, spec: VolumeSpec, prepared: PreparedCase, settings: RunSettings, batch: int = 1, **made: Any
) -> tuple[Segmentation, Segmentation]:
    """The case with stitching on the host and on the device; that it was there is checked."""
    host, device = opened(folder, spec, False, **made), opened(folder, spec, True, batch, **made)
    first = segment(prepared, spec, host, settings)
    second = segment(prepared, spec, device, settings)
    assert [str(session.info.stitching) for session in host] == ["host"] * len(host)
    for session in device:
        assert str(session.info.stitching).startswith("device, mirrors a call:")
        session.close()
    return first, second


def equal(first: Segmentation, second: Segmentation) -> None:
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (first.probabilities is None) == (second.probabilities is None)
    if first.probabilities is not None and second.probabilities is not None:
        np.testing.assert_array_equal(first.probabilities, second.probabilities)


def aggregated(spec: VolumeSpec, **changes: Any) -> VolumeSpec:
    return spec.model_copy(update={"aggregation": spec.aggregation.model_copy(update=changes)})


@pytest.mark.parametrize("folds", [("0",), ("0", "1", "2")])
@pytest.mark.parametrize("accumulate", ["float32", "float16"])
@pytest.mark.parametrize("patch", [(8, 12, 16), (12, 16)])
def test_the_device_gives_the_hosts_bits(
    tmp_path: Path, folds: tuple[str, ...], accumulate: str, patch: tuple[int, ...]
) -> None:
    """Several tiles along every axis, at uneven distances; probabilities kept, which show every bit of the sums."""
    spec = with_outputs(tiny_spec(folds=folds, patch=patch, channels=2))
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=(19, 27, 37), channels=2))
    chosen = RunSettings(accumulate=accumulate, save_probabilities=True)
    host, device = both(tmp_path, spec, prepared, chosen)
    assert len(np.unique(host.labels)) > 1
    equal(host, device)


@pytest.mark.parametrize(
    ("shape", "step", "tta"),
    [((5, 9, 11), None, True), ((8, 12, 16), None, True), ((5, 20, 11), 0.9, False), ((20, 13, 17), 0.25, False)],
)
def test_padding_a_lone_tile_and_other_steps(
    tmp_path: Path, shape: tuple[int, ...], step: float | None, tta: bool
) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=shape))
    equal(*both(tmp_path, spec, prepared, RunSettings(step_size=step, tta=tta, save_probabilities=True)))


def test_no_weights_for_a_lone_tile_of_v1(tmp_path: Path) -> None:
    spec = aggregated(with_outputs(tiny_spec()), accumulate="float32")
    gaussian = spec.window.gaussian.model_copy(update={"apply": "several_tiles", "peak": 1.0, "dtype": "float32"})
    spec = spec.model_copy(update={"window": spec.window.model_copy(update={"gaussian": gaussian})})
    for shape in ((6, 10, 12), (12, 10, 20)):
        prepared = prepared_case(spec, write_case(tmp_path, "a", shape=shape))
        equal(*both(tmp_path, spec, prepared, RunSettings(save_probabilities=True)))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("patch", [(8, 12, 16), (12, 16)])
def test_averaged_probabilities(tmp_path: Path, activation: str, patch: tuple[int, ...]) -> None:
    """Exponentials differ in their last bits."""
    spec = with_outputs(tiny_spec(patch=patch, regions=activation == "sigmoid", folds=("0", "1")))
    spec = aggregated(spec, domain="probabilities", accumulate="float32")
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=(12, 20, 24)))
    host, device = both(tmp_path, spec, prepared, RunSettings(save_probabilities=True))
    assert host.probabilities is not None
    assert device.probabilities is not None
    np.testing.assert_allclose(device.probabilities, host.probabilities, atol=2e-6)
    assert np.mean(host.labels != device.labels) < 1e-3


@pytest.mark.parametrize(("batch", "used"), [(2, 2), (3, 2), (8, 8), (100, 8)])
@pytest.mark.parametrize("patch", [(8, 12, 16), (12, 16)])
def test_batched_mirrors(tmp_path: Path, batch: int, used: int, patch: tuple[int, ...]) -> None:
    spec = with_outputs(tiny_spec(patch=patch, folds=("0", "1")))
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=(10, 20, 24)))
    chosen = RunSettings(accumulate="float32", save_probabilities=True)
    host = segment(prepared, spec, opened(tmp_path, spec, False), chosen)
    sessions = opened(tmp_path, spec, True, batch)
    device = segment(prepared, spec, sessions, chosen)
    used = min(used, 2 ** len(patch))
    assert {str(session.info.stitching) for session in sessions} == {f"device, mirrors a call: {used}"}
    assert host.probabilities is not None
    assert device.probabilities is not None
    np.testing.assert_allclose(device.probabilities, host.probabilities, atol=1e-5)
    assert np.mean(host.labels != device.labels) < 1e-3


def test_a_graph_that_names_its_batch_is_asked_one_by_one(tmp_path: Path) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a"))
    sessions = opened(tmp_path, spec, True, 4, bottleneck="reshape")
    device = segment(prepared, spec, sessions, RunSettings())
    said = str(sessions[0].info.stitching)
    assert said.startswith("device, mirrors a call: 1; one mirror a call: Reshape 'fixed' is not known to treat")
    equal(device, segment(prepared, spec, opened(tmp_path, spec, False, bottleneck="reshape"), RunSettings()))


def test_half_precision_ports(tmp_path: Path) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=(10, 20, 24)))
    equal(*both(tmp_path, spec, prepared, RunSettings(save_probabilities=True), half=True))


def test_constant_tiles_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_outputs(tiny_spec(folds=("0", "1")))
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=(20, 20, 48)))
    prepared.array[:, :, :, :34] = prepared.array.min()
    tiles = len(lay_tiles(prepared.array.shape[1:], spec.patch_size, 0.5))
    calls = []
    plain = onnxruntime_device.OnnxRuntimeStitcher.ask

    def counted(self: Any) -> Any:
        calls.append(self)
        return plain(self)

    monkeypatch.setattr(onnxruntime_device.OnnxRuntimeStitcher, "ask", counted)
    saved = segment(prepared, spec, opened(tmp_path, spec), RunSettings())
    some = len(calls)
    monkeypatch.setattr(on_device, "constant_key", lambda tile: None)
    full = segment(prepared, spec, opened(tmp_path, spec), RunSettings())
    assert len(calls) - some == tiles * 8 * 2
    assert some < 0.7 * tiles * 8 * 2
    equal(saved, full)
    monkeypatch.setattr(on_device, "constant_key", lambda tile: (1,) if np.ptp(tile) == 0 else None)
    monkeypatch.setattr(on_device, "_KEPT_BYTES", 0)
    segment(prepared, spec, opened(tmp_path, spec), RunSettings())
    assert len(calls) - some == 2 * tiles * 8 * 2


def test_the_next_case_uses_what_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_outputs(tiny_spec(folds=("0", "1")))
    first = prepared_case(spec, write_case(tmp_path, "a", shape=(10, 20, 24)))
    second = prepared_case(spec, write_case(tmp_path, "b", shape=(17, 12, 30), seed=3))
    opened_graphs = []
    plain = onnxruntime_device.Origin.open_helper

    def counted(self: Any, graph: bytes) -> Any:
        opened_graphs.append(graph)
        return plain(self, graph)

    monkeypatch.setattr(onnxruntime_device.Origin, "open_helper", counted)
    sessions = opened(tmp_path, spec)
    segment(first, spec, sessions, RunSettings())
    assert len(opened_graphs) == 4  # shared by the folds
    again = segment(second, spec, sessions, RunSettings())
    assert len(opened_graphs) == 4
    other = segment(second, spec, sessions, RunSettings(tta=False, accumulate="float32"))
    assert len(opened_graphs) == 8
    host = opened(tmp_path, spec, False)
    equal(again, segment(second, spec, host, RunSettings()))
    equal(other, segment(second, spec, host, RunSettings(tta=False, accumulate="float32")))


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, method: str, after: int, error: Exception) -> None:
    """Let a helper graph or the network fail at one of its calls."""
    owner = {"ask": onnxruntime_device._Bound, "helper": onnxruntime_device._Helper}[method]
    plain = owner.run
    calls = 0

    def run(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            raise error
        return plain(self, *arguments, **named)

    monkeypatch.setattr(owner, "run", run)


SHORT = RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 77")


@pytest.mark.parametrize(
    ("method", "after", "error", "words"),
    [
        ("ask", 1, SHORT, "no memory left on the device.*of size 77"),
        ("helper", 3, SHORT, "no memory left on the device"),
        ("helper", 1, RuntimeError("no kernel"), "no kernel"),  # at the first tile: the host may still do it
        ("helper", 400, SHORT, "no memory left on the device"),
        ("ask", 30, MemoryError(), "no memory left on the device"),
    ],
)
def test_the_host_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, after: int, error: Exception, words: str
) -> None:
    spec = with_outputs(tiny_spec(folds=("0", "1")))
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=(19, 20, 24)))
    expected = segment(prepared, spec, opened(tmp_path, spec, False), RunSettings())
    sessions = opened(tmp_path, spec)
    seen = []
    with monkeypatch.context() as patch:
        failing(patch, method, after, error)
        result = segment(prepared, spec, sessions, RunSettings(), lambda done, total: seen.append((done, total)))
    equal(result, expected)
    assert seen[-1][0] == seen[-1][1]
    for session in sessions:
        assert str(session.info.stitching).startswith("host: ")
        assert re.search(words, str(session.info.stitching))
    equal(segment(prepared, spec, sessions, RunSettings()), expected)  # tried again with the next case
    assert str(sessions[0].info.stitching).startswith("device")


def test_no_memory_for_the_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a"))
    (session,) = opened(tmp_path, spec)

    def refuse(self: Any, graph: bytes) -> Any:
        raise SHORT

    monkeypatch.setattr(onnxruntime_device.Origin, "open_helper", refuse)
    equal(
        segment(prepared, spec, [session], RunSettings()),
        segment(prepared, spec, opened(tmp_path, spec, False), RunSettings()),
    )
    assert "no memory left on the device" in str(session.info.stitching)


def test_the_host_does_it_without_the_onnx_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a"))
    (session,) = opened(tmp_path, spec)
    monkeypatch.setitem(sys.modules, "onnx", None)
    segment(prepared, spec, [session], RunSettings())
    assert str(session.info.stitching).startswith("host: this needs the onnx package")


def test_another_fault_later_on_is_the_cases_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=(19, 20, 24)))
    failing(monkeypatch, "ask", 30, RuntimeError("CUDA error 700: illegal address"))
    with pytest.raises(EngineFailed, match="illegal address"):
        segment(prepared, spec, opened(tmp_path, spec), RunSettings())


@pytest.mark.parametrize("domain", ["logits", "probabilities"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_is_noticed(tmp_path: Path, domain: str, bad: float) -> None:
    spec = aggregated(with_outputs(tiny_spec()), domain=domain, accumulate="float32")
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=(19, 20, 24)))
    sessions = opened(tmp_path, spec)
    prepared.array[0, 12, 10, 10] = bad
    with pytest.raises(EngineFailed, match="NaN or infinite"):
        segment(prepared, spec, sessions, RunSettings())


def test_a_lone_infinite_logit_is_no_probability(tmp_path: Path) -> None:
    """softmax and sigmoid would hide it."""
    spec = aggregated(with_outputs(tiny_spec(regions=True)), domain="probabilities", accumulate="float32")
    prepared = prepared_case(spec, write_case(tmp_path, "a"))
    with pytest.raises(EngineFailed, match="NaN or infinite"):
        segment(prepared, spec, opened(tmp_path, spec, gain=1e38), RunSettings())


def test_sums_too_large_for_half_precision(tmp_path: Path) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a"))
    with pytest.raises(EngineFailed, match="accumulate-float32"):
        segment(prepared, spec, opened(tmp_path, spec, gain=1e5), RunSettings(accumulate="float16"))
    segment(prepared, spec, opened(tmp_path, spec, gain=1e5), RunSettings(accumulate="float32"))


# ---- the contract ----------------------------------------------------------------------------------------------------


def test_who_can_and_who_cannot(tmp_path: Path) -> None:
    spec = with_outputs(tiny_spec())
    path = network(tmp_path / "g.onnx", spec)
    recipe = StitchRecipe(((),), None, 1, None, "float32")
    assert not isinstance(RampSession(spec), StitchingSession)
    extra = {"shape": ",".join(map(str, spec.input_shape)), "classes": "3"}
    for name, options in [("openvino", {}), ("fake", extra)]:
        with get_engine(name).open(path, EngineOptions(threads=1, extra=options)) as session:
            assert not isinstance(session, StitchingSession)
    engine = get_engine("onnxruntime")
    with engine.open(path, EngineOptions(threads=1)) as session:  # the CPU: only where it is asked for
        assert isinstance(session, StitchingSession)
        assert session.stitcher(recipe) is None
    assert isinstance(session, StitchingSession)
    with pytest.raises(EngineFailed, match="closed"):
        session.stitcher(recipe)
    for wrong, words in [
        ({"stitch": "gpu"}, "stitch is 'gpu' on cpu; legal: host, and device except on npu"),
        ({"mirror_batch": "0"}, "mirror_batch is '0', expected a whole number from 1 on"),
        ({"mirror_batch": "all"}, "mirror_batch is 'all'"),
    ]:
        with pytest.raises(EngineUnavailable, match=words):
            engine.open(path, EngineOptions(threads=1, extra=wrong))


def test_defaults_of_the_devices() -> None:
    from offline_infer.engines.onnxruntime.options import stitching

    assert stitching("cpu", EngineOptions()) == (False, 1)
    for kind in ("cuda", "tensorrt"):
        assert stitching(kind, EngineOptions(device="cuda:0")) == (True, 1)
        chosen = EngineOptions(device="cuda:0", extra={"stitch": "host", "mirror_batch": "4"})
        assert stitching(kind, chosen) == (False, 4)
    assert stitching("npu", EngineOptions(device="npu:0")) == (False, 1)
    with pytest.raises(EngineUnavailable, match="except on npu"):
        stitching("npu", EngineOptions(device="npu:0", extra={"stitch": "device"}))


def test_providers_are_tuned_for_fixed_shapes(tmp_path: Path) -> None:
    from offline_infer.engines.onnxruntime.options import chain

    tensorrt, cuda = chain("tensorrt", 1, EngineOptions(device="cuda:1", precision="fp16", cache=tmp_path))
    assert tensorrt[1]["trt_fp16_enable"] == tensorrt[1]["trt_timing_cache_enable"] == "1"
    assert tensorrt[1]["trt_engine_cache_path"] == tensorrt[1]["trt_timing_cache_path"] == str(tmp_path)
    assert (cuda[1]["device_id"], cuda[1]["cudnn_conv_algo_search"], cuda[1]["use_tf32"]) == ("1", "EXHAUSTIVE", "0")


def test_a_stitcher_that_was_given_up_says_so(tmp_path: Path) -> None:
    spec = with_outputs(tiny_spec())
    (session,) = opened(tmp_path, spec)
    assert isinstance(session, StitchingSession)
    stitcher = session.stitcher(StitchRecipe(((), (0,)), None, 2, None, "float32"))
    assert stitcher is not None
    tile = np.random.default_rng(0).normal(size=spec.input_shape[1:]).astype(np.float32)
    stitcher.load(tile)
    mean = stitcher.weigh(stitcher.answer(None))
    box = stitcher.stitch(None, mean, ((0, 8), (0, 12), (3, 16)))
    turned = np.ascontiguousarray(np.flip(tile, 1))[None]
    expected = session.run(tile[None])[0].copy()
    expected += np.flip(session.run(turned)[0], 1)
    np.testing.assert_array_equal(stitcher.fetch(box), (expected / np.float32(2))[..., 3:])
    stitcher.give_up("no reason")
    assert str(session.info.stitching) == "host: no reason"
    for call in (lambda: stitcher.load(tile), lambda: stitcher.answer(None), lambda: stitcher.weigh(mean)):
        with pytest.raises(EngineFailed, match="given up"):
            call()


# ---- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (("Concat", ["x", "x"], {"axis": 0}), "Concat 'n' works across the images"),
        (("Concat", ["x", "x"], {"axis": -4}), "works across the images"),
        (("Softmax", ["x"], {"axis": 0}), "works across the images"),
        (("Transpose", ["x"], {"perm": [1, 0, 2, 3]}), "is not known to treat"),
        (("ReduceMean", ["x"], {"axes": [0, 2]}), "may work across the images"),
        (("ReduceMean", ["x"], {}), "may work across the images"),
        (("Resize", ["x", "", "", "sizes"], {}), "holds the old number of images"),
    ],
)
def test_graphs_that_cannot_take_a_batch(node: tuple[str, Sequence[str], dict[str, Any]], words: str) -> None:
    from offline_infer.graph import batched

    helper = onnx.helper
    sizes = onnx.numpy_helper.from_array(np.array([1, 2, 4, 4], np.int64), "sizes")
    graph = helper.make_graph(
        [helper.make_node(node[0], node[1], ["y"], name="n", **node[2])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [sizes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ExportError, match=words):
        batched(model, 2)


def test_a_batch_is_its_images_one_by_one(tmp_path: Path) -> None:
    import onnxruntime as ort

    from offline_infer.graph import batched, load_model

    spec = with_outputs(tiny_spec())
    model = load_model(network(tmp_path / "g.onnx", spec))
    new = batched(model, 3)
    assert [value.name for value in new.graph.output] == ["logits"]
    assert not any(node.output[0] == "logits_1" for node in new.graph.node)
    images = np.random.default_rng(0).normal(size=(3, *spec.input_shape[1:])).astype(np.float32)
    one, three = (ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in (model, new))
    together = three.run(None, {"image": images})[0]
    for i in range(3):
        np.testing.assert_allclose(together[i], one.run(["logits"], {"image": images[i : i + 1]})[0][0], atol=1e-5)
    with pytest.raises(ExportError, match="takes 3 images at once already"):
        batched(new, 2)
