"""Engines: the same answer from each, clear refusals, nothing left behind, no telemetry."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.bundles import bundle as bundles
from offline_infer.engines import fake
from offline_infer.engines.base import Engine, EngineOptions, Norms, get_engine
from offline_infer.errors import BundleError, EngineFailed, EngineUnavailable, UsageError

onnx = pytest.importorskip("onnx")
REAL = ["openvino", "onnxruntime"]
SHAPE = (1, 2, 6, 8, 10)


@pytest.fixture(params=REAL)
def engine(request: pytest.FixtureRequest) -> Engine:
    return usable(request.param)


def usable(name: str) -> Engine:
    chosen = get_engine(name)
    reason = chosen.available()
    if reason is not None:
        pytest.skip(reason)
    return chosen


def conv_graph(path: Path, *, shape: tuple[Any, ...] = SHAPE, dtype: int = 1, outputs: int = 2, **props: str) -> Path:
    """Conv 3x3x3 -> LeakyRelu -> two heads (3 and 2 channels), fixed weights."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(5)
    kind = np.float32 if dtype == 1 else np.float16
    rank = len(shape) - 2
    weights = {
        "w": rng.standard_normal((4, 2, *(3,) * rank)),
        "a": rng.standard_normal((3, 4, *(1,) * rank)),
        "b": rng.standard_normal((2, 4, *(1,) * rank)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["x"], pads=[1] * 2 * rank),
        helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.01),
        helper.make_node("Conv", ["y", "a"], ["logits"]),
        helper.make_node("Conv", ["y", "b"], ["logits_1"]),
    ]
    graph = helper.make_graph(
        nodes[: 2 + outputs],
        "g",
        [helper.make_tensor_value_info("image", dtype, list(shape))],
        [
            helper.make_tensor_value_info("logits", dtype, [1, 3, *shape[2:]]),
            helper.make_tensor_value_info("logits_1", dtype, [1, 2, *shape[2:]]),
        ][:outputs],
        [
            numpy_helper.from_array(array.astype(kind), name)
            for name, array in weights.items()
            if outputs > 1 or name != "b"
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if props:
        helper.set_model_props(model, props)
    onnx.save(model, path)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return conv_graph(tmp_path / "g.onnx")


def batch(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(image: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The graph in plain NumPy."""
    rng = np.random.default_rng(5)
    w, a, b = rng.standard_normal((4, 2, 3, 3, 3)), rng.standard_normal((3, 4)), rng.standard_normal((2, 4))
    padded = np.pad(image[0].astype(np.float64), [(0, 0), (1, 1), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(1, 2, 3))
    x = np.einsum("czyxijk,ocijk->ozyx", windows, w)
    y = np.where(x < 0, 0.01 * x, x)
    return {
        "logits": np.einsum("czyx,oc->ozyx", y, a)[None],
        "logits_1": np.einsum("czyx,oc->ozyx", y, b)[None],
    }


def test_the_answer_is_right_and_the_buffer_is_used_again(engine: Engine, graph: Path) -> None:
    with engine.open(graph, EngineOptions(threads=1)) as session:
        assert session.info.input_shape == SHAPE
        assert session.info.output_names == ("logits", "logits_1")
        assert session.info.engine == engine.name
        first = session.run(batch(0))
        assert first.dtype == np.float32
        np.testing.assert_allclose(first, reference(batch(0))["logits"], atol=2e-5)
        second = session.run(batch(1))
        assert second is first
        np.testing.assert_allclose(second, reference(batch(1))["logits"], atol=2e-5)
        everything = session.run_all(batch(2))
        assert list(everything) == ["logits", "logits_1"]
        session.run(batch(3))
        for name, expected in reference(batch(2)).items():
            np.testing.assert_allclose(everything[name], expected, atol=2e-5)


def test_an_input_changed_in_place_and_a_read_only_one(engine: Engine, graph: Path) -> None:
    image = batch(0)
    with engine.open(graph, EngineOptions(threads=1)) as session:
        session.run(image)
        image[:] = batch(1)
        np.testing.assert_allclose(session.run(image), reference(batch(1))["logits"], atol=2e-5)
        frozen = batch(2)
        frozen.flags.writeable = False
        np.testing.assert_allclose(session.run(frozen), reference(batch(2))["logits"], atol=2e-5)
        np.testing.assert_allclose(session.run(batch(3)), reference(batch(3))["logits"], atol=2e-5)


def test_an_output_by_name(engine: Engine, graph: Path) -> None:
    with engine.open(graph, EngineOptions(threads=1, extra={"output": "logits_1"})) as session:
        np.testing.assert_allclose(session.run(batch(0)), reference(batch(0))["logits_1"], atol=2e-5)
    with pytest.raises(EngineUnavailable, match="no output 'x'; it has logits, logits_1"):
        engine.open(graph, EngineOptions(extra={"output": "x"}))


def test_several_outputs_by_name(engine: Engine, graph: Path) -> None:
    with engine.open(graph, EngineOptions(threads=1, outputs=("logits_1", "logits"))) as session:
        assert session.info.kept == ("logits_1", "logits")
        for seed in (0, 1):
            answer = session.answer(batch(seed))
            assert list(answer) == ["logits_1", "logits"]
            for name, expected in reference(batch(seed)).items():
                np.testing.assert_allclose(answer[name], expected, atol=2e-5)
        np.testing.assert_allclose(session.run(batch(2)), reference(batch(2))["logits_1"], atol=2e-5)
    with engine.open(graph, EngineOptions(threads=1)) as session:
        assert session.info.kept == ("logits",)
        assert list(session.answer(batch(0))) == ["logits"]
    with pytest.raises(EngineUnavailable, match="no output 'y'"):
        engine.open(graph, EngineOptions(outputs=("logits", "y")))


def test_graphs_that_leave_sizes_open(engine: Engine, tmp_path: Path) -> None:
    """The same graph for every height and width, and the same answer as with fixed sizes."""
    path = conv_graph(tmp_path / "open.onnx", shape=(1, 2, "height", "width"))
    with engine.open(path, EngineOptions(threads=1, outputs=("logits", "logits_1"))) as session:
        assert session.info.input_shape == (1, 2, -1, -1)
        for sizes in [(16, 12), (9, 31), (16, 12), (1, 1)]:
            image = batch(sum(sizes), (1, 2, *sizes))
            fixed = conv_graph(tmp_path / "fixed.onnx", shape=image.shape)
            with engine.open(fixed, EngineOptions(threads=1)) as other:
                expected = other.run_all(image)
            for name, array in session.answer(image).items():
                np.testing.assert_allclose(array, expected[name], atol=2e-5)
            np.testing.assert_allclose(session.run(image), expected["logits"], atol=2e-5)
        for wrong in [(1, 3, 4, 4), (1, 2, 0, 4), (2, 2, 4, 4), (1, 2, 4)]:
            with pytest.raises(EngineFailed, match=r"the graph takes \(1, 2, -1, -1\)"):
                session.run(np.zeros(wrong, np.float32))


def test_norms_of_open_sizes_stay_native_and_say_so(tmp_path: Path) -> None:
    path = norm_graph(tmp_path / "g.onnx", (1, 1, "height", "width"))
    with usable("openvino").open(path, EngineOptions(threads=1)) as session:
        assert session.info.norms == Norms("native", "1 normalisations have open sizes")
        image = batch(0, (1, 1, 20, 30))
        expected = (image - image.mean()) / np.sqrt(image.var() + 1e-5) * 1.5 + 0.25
        np.testing.assert_allclose(session.run(image), expected, atol=1e-4)


def boxes_graph(path: Path) -> Path:
    """Boxes of an image (1, 5, n): four coordinates and a score each; the indices that non-maximum suppression keeps."""
    helper, constant = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("Slice", ["image", "zero", "four", "axis"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["image", "four", "five", "axis"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["chosen"]),
        helper.make_node("Identity", ["boxes"], ["kept_boxes"]),
    ]
    numbers = {"zero": [0], "four": [4], "five": [5], "axis": [1], "most": [10]}
    weights = [constant(np.array(value, np.int64), name) for name, value in numbers.items()]
    weights.append(constant(np.array([0.5], np.float32), "overlap"))
    ports = [
        helper.make_tensor_value_info("image", 1, [1, 5, "boxes"]),
        helper.make_tensor_value_info("chosen", 7, ["found", 3]),
        helper.make_tensor_value_info("kept_boxes", 1, [1, "boxes", 4]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_outputs_of_unknown_length_and_whole_numbers(engine: Engine, tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    image = np.ascontiguousarray(np.concatenate([boxes.T, scores])[None])
    with engine.open(boxes_graph(tmp_path / "g.onnx"), EngineOptions(threads=1, outputs=("chosen",))) as session:
        answer = session.answer(image)["chosen"]
        assert answer.dtype == np.int64
        np.testing.assert_array_equal(answer, [[0, 0, 0], [0, 0, 2]])
        far = image.copy()
        far[0, :4, 1] += 100
        assert len(session.answer(far)["chosen"]) == 3
        np.testing.assert_array_equal(session.run_all(far)["kept_boxes"][0, 1], [100, 100, 110, 109])


def test_several_threads_share_a_session(engine: Engine, graph: Path) -> None:
    """Calls from several threads queue, and no thread's answer is overwritten by another's."""
    wrong: list[int] = []

    def ask(seed: int) -> None:
        expected = reference(batch(seed))["logits"]
        for _ in range(10):
            answer = session.run(batch(seed))
            meeting.wait(60)  # every thread has been answered before any answer is looked at
            if not np.allclose(answer, expected, atol=2e-5):
                wrong.append(seed)
            meeting.wait(60)

    meeting = threading.Barrier(4)
    with engine.open(graph, EngineOptions(threads=1)) as session, ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(ask, seed) for seed in range(4)]:
            done.result()
    assert wrong == []


def test_two_dimensional_graphs(engine: Engine, tmp_path: Path) -> None:
    path = conv_graph(tmp_path / "g.onnx", shape=(1, 2, 16, 12))
    with engine.open(path, EngineOptions(threads=1)) as session:
        assert session.run(batch(0, (1, 2, 16, 12))).shape == (1, 3, 16, 12)


def test_half_precision_ports_are_converted(engine: Engine, tmp_path: Path) -> None:
    path = conv_graph(tmp_path / "g.onnx", dtype=10)
    with engine.open(path, EngineOptions(threads=1)) as session:
        for seed in (0, 1):
            answer = session.run(batch(seed))
            assert answer.dtype == np.float32
            np.testing.assert_allclose(answer, reference(batch(seed))["logits"], atol=0.15)
        assert session.run_all(batch(0))["logits_1"].dtype == np.float32


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (batch(0, (1, 2, 6, 8, 11)), r"shape \(1, 2, 6, 8, 11\), the graph takes \(1, 2, 6, 8, 10\)"),
        (batch(0).astype(np.float64), "float64, expected float32"),
        (batch(0).astype(">f4"), "expected float32"),
        (batch(0)[:, :, ::-1], "not C-contiguous"),
        (batch(0).tolist(), "is a list"),
    ],
)
def test_wrong_inputs_are_refused(graph: Path, image: Any, words: str) -> None:
    for name in REAL:
        with usable(name).open(graph, EngineOptions(threads=1)) as session, pytest.raises(EngineFailed, match=words):
            session.run(image)
    extra = {"shape": "1,2,6,8,10", "classes": "3"}
    with (
        get_engine("fake").open(graph, EngineOptions(extra=extra)) as session,
        pytest.raises(EngineFailed, match=words),
    ):
        session.run(image)


def test_a_closed_session_says_so(engine: Engine, graph: Path) -> None:
    session = engine.open(graph, EngineOptions(threads=1))
    answer = session.run(batch(0))
    session.close()
    session.close()
    np.testing.assert_allclose(answer, reference(batch(0))["logits"], atol=2e-5)
    for call in (session.run, session.run_all):
        with pytest.raises(EngineFailed, match="closed"):
            call(batch(0))


def test_damaged_and_unfit_graphs(engine: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing, empty, text, cut = (tmp_path / name for name in ("no.onnx", "empty.onnx", "text.onnx", "cut.onnx"))
    empty.write_bytes(b"")
    text.write_bytes(b"hello world, this is no graph")
    cut.write_bytes(conv_graph(tmp_path / "g.onnx").read_bytes()[:500])
    for path, words in [
        (missing, "does not exist"),
        (empty, "is empty"),
        (text, "is not a complete ONNX file"),
        (cut, "is not a complete ONNX file"),
    ]:
        with pytest.raises(BundleError, match=words) as caught:
            engine.open(path, EngineOptions(threads=1))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_graph_with_two_inputs(engine: Engine, tmp_path: Path) -> None:
    helper = onnx.helper
    values = [helper.make_tensor_value_info(name, 1, [1, 1, 4, 4]) for name in ("a", "b", "c")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "g", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    with pytest.raises(BundleError, match="2 inputs"):
        engine.open(tmp_path / "g.onnx", EngineOptions(threads=1))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("openvino", {"device": "cuda:0"}, "no device 'cuda:0'.*onnxruntime"),
        ("openvino", {"precision": "int4"}, "unknown precision 'int4'; legal: fp32, bf16, fp16"),
        ("openvino", {"threads": -1}, "0 means all cores"),
        ("openvino", {"extra": {"NO_SUCH_PROPERTY": "1"}}, "NO_SUCH_PROPERTY"),
        ("openvino", {"extra": {"INFERENCE_NUM_THREADS": "1"}}, "set by the option threads"),
        ("onnxruntime", {"device": "gpu"}, "unknown device 'gpu'; legal: cpu, cuda:N, npu:N"),
        ("onnxruntime", {"device": "cuda:x"}, "unknown device"),
        ("onnxruntime", {"device": "cpu:0"}, "unknown device"),
        ("onnxruntime", {"precision": "bf16"}, "legal: fp32, fp16"),
        ("onnxruntime", {"precision": "fp16"}, "export the checkpoint in fp16"),
        ("onnxruntime", {"threads": -1}, "0 means all cores"),
        ("onnxruntime", {"extra": {"colour": "red"}}, "unknown option 'colour'"),
        ("onnxruntime", {"extra": {"optimization": "more"}}, "legal: none, basic, extended, all"),
        ("onnxruntime", {"extra": {"provider": "tensorrt"}}, "no provider 'tensorrt' for cpu"),
    ],
)
def test_unavailable_options(graph: Path, name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineUnavailable, match=words):
        usable(name).open(graph, EngineOptions(**options))


def test_unknown_engine_lists_the_names() -> None:
    with pytest.raises(UsageError, match="openvino"):
        get_engine("Openvino")


# ---- exact norms -----------------------------------------------------------------------------------------------------


def norm_graph(path: Path, shape: tuple[Any, ...]) -> Path:
    helper = onnx.helper
    node = helper.make_node("InstanceNormalization", ["image", "s", "b"], ["logits"], name="n", epsilon=1e-5)
    weights = [onnx.numpy_helper.from_array(np.array([v], np.float32), n) for n, v in (("s", 1.5), ("b", 0.25))]
    ports = [[helper.make_tensor_value_info(name, 1, list(shape))] for name in ("image", "logits")]
    graph = helper.make_graph([node], "g", *ports, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("shape", [(1, 1, 64, 96, 96), (1, 1, 700, 800)])
def test_norms_are_exact_on_large_tiles(engine: Engine, tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Half the tile is air, clipped to one value: float32 sums in a row go astray there."""
    image = np.random.default_rng(0).normal(5.3, 0.2, shape).astype(np.float32)
    image[:, :, : shape[2] // 2] = 4.7
    wide = image.astype(np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5) * 1.5 + 0.25
    path = norm_graph(tmp_path / "g.onnx", shape)
    with engine.open(path, EngineOptions(threads=1)) as session:
        assert session.info.norms == Norms("exact")
        exact = np.abs(session.run(image) - expected).max()
    with engine.open(path, EngineOptions(threads=1, extra={"norms": "native"})) as session:
        assert session.info.norms == Norms("native")
        assert np.abs(session.run(image) - expected).max() < 0.1
    assert exact < 5e-5  # the native sums give 5e-4 to 4e-3 here
    with pytest.raises(EngineUnavailable, match="norms is 'no'"):
        engine.open(path, EngineOptions(extra={"norms": "no"}))


def test_onnxruntime_works_without_the_onnx_package(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with usable("onnxruntime").open(graph, EngineOptions(threads=1)) as session:
        assert str(session.info.norms).startswith("native: this needs the onnx package")
        np.testing.assert_allclose(session.run(batch(0)), reference(batch(0))["logits"], atol=2e-5)


# ---- OpenVINO --------------------------------------------------------------------------------------------------------


def test_openvino_refuses_a_precision_the_processor_lacks(graph: Path) -> None:
    module = usable("openvino")
    with module.open(graph, EngineOptions(threads=1)) as session:
        capabilities = session.info.details["capabilities"]
    for precision, name in [("bf16", "BF16"), ("fp16", "FP16")]:
        if name in capabilities:
            with module.open(graph, EngineOptions(threads=1, precision=precision)) as session:
                assert session.info.precision == precision
                difference = np.abs(session.run(batch(0)) - reference(batch(0))["logits"]).max()
                assert 0 < difference < 0.5
        else:
            with pytest.raises(EngineUnavailable, match=f"no {precision} arithmetic"):
                module.open(graph, EngineOptions(threads=1, precision=precision))


def test_openvino_checks_what_was_compiled() -> None:
    from offline_infer.engines.openvino.settings import check_precision

    class Compiled:
        def get_property(self, name: str) -> str:
            return "bf16"

    with pytest.raises(EngineUnavailable, match="fp16 was asked for, OpenVINO would compute in bf16"):
        check_precision(Compiled(), "fp16")


def test_openvino_cache_hits_and_survives_damage(graph: Path, tmp_path: Path) -> None:
    module = usable("openvino")
    options = EngineOptions(threads=1, cache=tmp_path / "cache")

    def state() -> str:
        with module.open(graph, options) as session:
            np.testing.assert_allclose(session.run(batch(0)), reference(batch(0))["logits"], atol=2e-5)
            return str(str(session.info.cache))

    assert state() == "stored"
    assert state() == "hit"
    (stored,) = (tmp_path / "cache").iterdir()
    data = bytearray(stored.read_bytes())
    for damaged in (data[:40], b"", b"x" * 100, bytes(data[:-5]) + b"\0\0\0\0\0"):
        stored.write_bytes(damaged)
        assert state() == "stored"
        assert state() == "hit"
    with module.open(graph, EngineOptions(threads=2, cache=tmp_path / "cache")) as session:
        assert str(session.info.cache) == "stored"
    conv_graph(graph, outputs=1)
    with module.open(graph, options) as session:
        assert str(session.info.cache) == "stored"
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_openvino_works_without_a_writable_cache(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    options = EngineOptions(threads=1, cache=tmp_path / "file" / "cache")
    with usable("openvino").open(graph, options) as session:
        assert str(session.info.cache).startswith("not stored")
        np.testing.assert_allclose(session.run(batch(0)), reference(batch(0))["logits"], atol=2e-5)


def _open_and_run(graph: str, cache: str, rounds: int, answers: Any) -> None:
    for seed in range(rounds):
        with get_engine("openvino").open(Path(graph), EngineOptions(threads=1, cache=Path(cache))) as session:
            answers.put((seed, session.run(batch(seed)).copy()))


def test_openvino_cache_in_parallel_processes(graph: Path, tmp_path: Path) -> None:
    usable("openvino")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    arguments = (str(graph), str(tmp_path / "cache"), 4, answers)
    workers = [context.Process(target=_open_and_run, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    got = [answers.get(timeout=60) for _ in range(12)]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    for seed, answer in got:
        np.testing.assert_allclose(answer, reference(batch(seed))["logits"], atol=2e-5)
    assert len(list((tmp_path / "cache").iterdir())) == 1


# ---- ONNX Runtime ----------------------------------------------------------------------------------------------------


def test_onnxruntime_never_answers_on_the_cpu_instead(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = usable("onnxruntime")
    import onnxruntime as ort

    from offline_infer.engines.onnxruntime import engine as ours

    for device, provider, wheel in [
        ("cuda:0", "CUDAExecutionProvider", "onnxruntime-gpu"),
        ("npu:1", "CANNExecutionProvider", "onnxruntime-cann"),
    ]:
        if provider in ort.get_available_providers():
            continue
        with pytest.raises(EngineUnavailable, match=f"{device} needs {provider}.*pip install {wheel}"):
            module.open(graph, EngineOptions(device=device))
        # A library that claims to have the provider and then answers on the CPU all the same.
        with monkeypatch.context() as patch:
            patch.setattr(ort, "get_available_providers", lambda p=provider: [p, "CPUExecutionProvider"])
            with pytest.raises(EngineUnavailable, match=r"asked for, but the session runs on|cannot be opened on"):
                module.open(graph, EngineOptions(device=device))
    monkeypatch.setattr(ours, "installed_wheels", lambda: ("onnxruntime", "onnxruntime-gpu"))
    with pytest.raises(EngineUnavailable, match="onnxruntime and onnxruntime-gpu are installed together"):
        module.open(graph, EngineOptions(device="cuda:0"))


def test_onnxruntime_provider_options() -> None:
    from offline_infer.engines.onnxruntime import options as onnxruntime_options

    def chain(**options: Any) -> list[Any]:
        chosen = EngineOptions(**options)
        return onnxruntime_options.chain(*onnxruntime_options.device_of(chosen), chosen)

    assert chain() == ["CPUExecutionProvider"]
    ((name, cuda),) = chain(device="cuda:1")
    assert (name, cuda["device_id"], cuda["use_tf32"]) == ("CUDAExecutionProvider", "1", "0")
    names = [name for name, _ in chain(device="cuda", extra={"provider": "tensorrt", "provider.trt_x": "7"})]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    ((name, cann),) = chain(device="npu:3", extra={"provider.op_select_impl_mode": "high_performance"})
    assert name == "CANNExecutionProvider"
    assert cann["dump_om_model"] == "0"
    assert cann["precision_mode"] == "must_keep_origin_dtype"
    assert cann["op_select_impl_mode"] == "high_performance"


def test_onnxruntime_takes_fp16_where_the_graph_is_fp16(tmp_path: Path) -> None:
    props = {bundles.GRAPH_KEY: '{"fold":"0","precision":"fp16","opset":17}'}
    path = conv_graph(tmp_path / "g.onnx", dtype=10, **props)
    with usable("onnxruntime").open(path, EngineOptions(threads=1, precision="fp16")) as session:
        assert session.info.precision == "fp16"


def test_wheels_are_listed() -> None:
    from offline_infer.engines.onnxruntime.engine import installed_wheels

    assert set(installed_wheels()) <= {"onnxruntime", "onnxruntime-gpu", "onnxruntime-cann"}


# ---- nothing is left behind, nothing phones home --------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_no_telemetry_and_no_files(name: str, graph: Path, tmp_path: Path) -> None:
    usable(name)
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    code = f"""
import sys, socket
def refuse(*args, **kwargs):
    raise AssertionError("network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import numpy as np
from pathlib import Path
from offline_infer.engines.base import EngineOptions, get_engine
engine = get_engine({name!r})
heavy = [m for m in ("openvino", "onnxruntime", "torch", "onnx") if m in sys.modules]
assert not heavy, heavy
with engine.open(Path({str(graph)!r}), EngineOptions(threads=1)) as session:
    session.run(np.zeros({SHAPE!r}, np.float32))
import os
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
assert sys.modules.get("openvino_telemetry") is None
others = [m for m in ("openvino", "onnxruntime", "torch", "onnx") if m in sys.modules]
assert [m for m in others if m != "onnx"] == [{name!r}], others
"""
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    environment.pop("CI", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
    assert list(home.rglob("*")) == []
    assert list(work.rglob("*")) == []


# ---- the fake --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_bundle(tmp_path: Path) -> bundles.Bundle:
    folder = tmp_path / "b"
    folder.mkdir()
    spec = with_outputs(tiny_spec(patch=(4, 5, 6), channels=2, classes=4, previous=(1, 2)))
    return bundles.save(with_graphs(spec, folder), folder)


def test_fake_reads_its_shape_from_the_bundle(fake_bundle: bundles.Bundle) -> None:
    with get_engine("fake").open(fake_bundle.graph_path("0"), EngineOptions()) as session:
        assert session.info.input_shape == (1, 4, 4, 5, 6)
        image = batch(0, (1, 4, 4, 5, 6))
        np.testing.assert_array_equal(session.run(image), fake.fake_logits(image, 4))
        expected = np.clip(np.round(image.mean(axis=1)), 0, 3)
        np.testing.assert_array_equal(session.run(image).argmax(axis=1), expected)


def test_fake_is_equivariant_and_linear() -> None:
    image = batch(0, (1, 2, 4, 5, 6))
    flipped = fake.fake_logits(np.ascontiguousarray(image[:, :, ::-1]), 3)
    np.testing.assert_array_equal(flipped[:, :, ::-1], fake.fake_logits(image, 3))


def test_fake_faults(tmp_path: Path) -> None:
    engine = get_engine("fake")
    base = {"shape": "1,1,2,2,2", "classes": "2"}
    image = batch(0, (1, 1, 2, 2, 2))
    with engine.open(tmp_path / "g", EngineOptions(extra={**base, "fail_at": "1", "nan_at": "2"})) as session:
        assert np.isfinite(session.run(image)).all()
        with pytest.raises(EngineFailed, match="call 1"):
            session.run(image)
        assert np.isnan(session.run(image)).any()
        assert np.isfinite(session.run(image)).all()
    with pytest.raises(EngineUnavailable, match=r"no bundle\.json near"):
        engine.open(tmp_path / "a" / "g", EngineOptions())
    for extra, words in [
        ({"colour": "red"}, "unknown option 'colour'"),
        ({**base, "device_exists": "no"}, "no device 'cpu'"),
        ({**base, "shape": "1,x"}, "whole numbers"),
    ]:
        with pytest.raises(EngineUnavailable, match=words):
            engine.open(tmp_path / "g", EngineOptions(extra=extra))
