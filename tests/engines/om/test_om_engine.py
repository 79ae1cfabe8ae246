"""OMs run in memory on stand-ins of the bindings: answers, faults of every known kind, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from ascend_specimens import CLASSES, PATCH, tiny_bundle, use_binding, use_standins

from offline_infer.ascend.compile import CompileOptions, compile_bundle
from offline_infer.bundles.artefacts import compiled_graphs
from offline_infer.bundles.bundle import Bundle
from offline_infer.engines import queueing
from offline_infer.engines.base import EngineOptions, Session, get_engine
from offline_infer.engines.om import lane
from offline_infer.errors import BundleError, EngineFailed, EngineUnavailable

BINDINGS = ("v2023", "v2024", "acl")
SOC = "Ascend310P3"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Compiled bundles, made once: ``compiled(heads=5)``."""
    made: dict[tuple[object, ...], Path] = {}

    def bundle(heads: int = 1, soc: str = SOC, flags: tuple[str, ...] = (), folds: tuple[str, ...] = ("0",)) -> Bundle:
        key = (heads, soc, flags, folds)
        if key not in made:
            folder = tmp_path_factory.mktemp("bundle") / "tiny"
            tiny_bundle(folder, heads=heads, folds=folds)
            with pytest.MonkeyPatch.context() as patch:
                use_standins(patch)
                compile_bundle(folder, soc, CompileOptions(extra_flags=flags))
            made[key] = folder
        return Bundle.load(made[key])

    return bundle


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 10
    while (left := workers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def workers(of: psutil.Process | None = None) -> list[psutil.Process]:
    """Living workers below a process."""
    found = []
    for child in (of or psutil.Process()).children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "engines.om.worker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def opened(bundle: Bundle, devices: str = "npu:0", fold: str = "0", **extra: str) -> Session:
    options = EngineOptions(device=devices, extra=extra, compiled=compiled_graphs(bundle, fold))
    return get_engine("om").open(bundle.graph_path(fold), options)


def batches(count: int) -> list[np.ndarray]:
    numbers = np.random.default_rng(3)
    return [numbers.normal(size=(1, 1, *PATCH)).astype(np.float32) for _ in range(count)]


def expected(bundle: Bundle, inputs: list[np.ndarray], fold: str = "0") -> list[np.ndarray]:
    with get_engine("onnxruntime").open(
        bundle.graph_path(fold), EngineOptions(threads=1, extra={"norms": "native"})
    ) as session:
        return [session.run(batch).copy() for batch in inputs]


def in_order(session: Session, inputs: list[np.ndarray], keys: list[int | None] | None = None) -> list[np.ndarray]:
    """The answers to inputs that are on their way together."""
    batch = np.empty_like(inputs[0])  # one buffer for all, as predict has

    def make(values: np.ndarray) -> np.ndarray:
        batch[:] = values
        return batch

    found = []
    requests = (
        queueing.Request(number, session, lambda values=values: make(values), keys[number] if keys else None)
        for number, values in enumerate(inputs)
    )
    for number, answer in queueing.in_order(requests):
        assert number == len(found)
        found.append(next(iter(answer.values())).copy())
    return found


@pytest.mark.parametrize("binding", BINDINGS)
def test_answers_are_those_of_the_graph(
    binding: str, compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, binding)
    bundle, inputs = compiled(heads=3), batches(7)
    with opened(bundle, "npu:0,1,2") as session:
        for got, wanted in zip(in_order(session, inputs), expected(bundle, inputs), strict=True):
            np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(session.run(inputs[0]), expected(bundle, inputs[:1])[0])
        everything = session.run_all(inputs[0])
        assert list(everything) == ["class", "head_1", "head_2"]
        assert not np.array_equal(everything["class"], everything["head_1"])
        info = session.info
    assert info.details["binding"] == ("acl" if binding == "acl" else "ais_bench")
    assert info.details["generation"] == ("" if binding == "acl" else binding)
    assert (info.precision, info.processor, info.kept) == ("fp16", SOC, ("class",))


def test_equal_inputs_are_sent_once(compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    use_binding(monkeypatch, "v2024")
    bundle, inputs = compiled(), batches(3)
    row = [0, 1, 1, 1, 2, 1, 0, 2, 2]
    with opened(bundle, "npu:0,1") as session:
        sent: list[float] = []
        submit = session.submit  # type: ignore[attr-defined]
        monkeypatch.setattr(session, "submit", lambda batch: (sent.append(float(batch.flat[0])), submit(batch))[1])
        keys: list[int | None] = [None if index == 0 else index for index in row]
        wanted = expected(bundle, inputs)
        for got, index in zip(in_order(session, [inputs[index] for index in row], keys), row, strict=True):
            np.testing.assert_array_equal(got, wanted[index])
        assert len(sent) == 6  # both without a key; 1, 2, 1 again after 2, 2 again after 1


def test_flipped_views_are_refused(compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    use_binding(monkeypatch, "v2023")
    with opened(compiled()) as session, pytest.raises(EngineFailed, match="C-contiguous"):
        session.run(batches(1)[0][:, :, ::-1])


def test_half_precision_inputs_and_outputs(compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    use_binding(monkeypatch, "v2024")
    bundle = compiled(flags=("--input_fp16_nodes=image", "--output_type=FP16"))
    inputs = batches(2)
    with opened(bundle) as session:
        for got, wanted in zip(in_order(session, inputs), expected(bundle, inputs), strict=True):
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, wanted, atol=0.02)


@pytest.mark.parametrize(
    ("binding", "fault", "reason"),
    [
        # Every binding tells of a failed call, and of numbers too large for half precision, in its own way.
        *((binding, "fail-call:2 device:1", "507011") for binding in BINDINGS),
        *((binding, "overflow device:1", "overflow") for binding in BINDINGS),
        # The rest happens on this side of it.
        ("v2023", "crash-after:2 device:1", "SIGSEGV"),
        ("v2024", "nan device:1", "NaN"),
        ("acl", "zeros device:1", "the same number everywhere"),
        ("v2024", "hang:2 device:1", "no answer within"),
    ],
)
def test_a_bad_device_is_left_out_and_its_work_done_elsewhere(
    binding: str, fault: str, reason: str, compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, binding, fail=fault, seconds="0.01")
    bundle, inputs = compiled(), batches(24)
    with opened(bundle, "npu:0,1", answer_limit="1.5") as session:
        for got, wanted in zip(in_order(session, inputs), expected(bundle, inputs), strict=True):
            np.testing.assert_array_equal(got, wanted)
        left_out = session.info.details["left_out"]
        assert list(left_out) == [1]
        assert reason in left_out[1]


@pytest.mark.parametrize(
    ("binding", "fault", "reason"),
    [
        *((binding, "overflow", "half precision") for binding in BINDINGS),
        ("v2023", "nan", "NaN"),
        ("acl", "zeros", "same number"),
    ],
)
def test_a_lone_device_that_answers_nonsense_is_named(
    binding: str, fault: str, reason: str, compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, binding, fail=fault)
    with opened(compiled(), "npu:2") as session, pytest.raises(EngineFailed, match=f"device 2.*{reason}"):
        session.run(batches(1)[0])


def test_a_constant_input_may_have_a_constant_answer(
    compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, "v2024", fail="zeros")
    with opened(compiled()) as session:
        assert not session.run(np.ones((1, 1, *PATCH), np.float32)).any()


def test_without_a_device_the_error_names_each_with_code_and_remedy(
    compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, "v2024", fail="fail-call:0")
    with opened(compiled(), "npu:0,1") as session, pytest.raises(EngineFailed) as caught:
        session.run(batches(1)[0])
    for piece in ("device 0", "device 1", "507011", "run-time CANN"):
        assert piece in str(caught.value)


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_busy_device_is_not_needed(
    binding: str, compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, binding, fail="busy device:0")
    bundle, inputs = compiled(), batches(5)
    with opened(bundle, "npu:0,1") as session:
        for got, wanted in zip(in_order(session, inputs), expected(bundle, inputs), strict=True):
            np.testing.assert_array_equal(got, wanted)
    with pytest.raises(EngineUnavailable, match=r"device 0.*507033"):
        opened(bundle, "npu:0")


@pytest.mark.parametrize(
    ("fault", "reason"), [("fewer", "1 outputs, expected 2"), ("short", "bytes, expected float32")]
)
def test_answers_that_are_not_what_the_bundle_says_are_refused(
    fault: str, reason: str, compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, "v2023", fail=fault)
    with opened(compiled(heads=2)) as session, pytest.raises(EngineFailed, match=reason):
        session.run(batches(1)[0])


def test_flat_arrays_get_their_shape(compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    use_binding(monkeypatch, "v2023", fail="flat")
    bundle, inputs = compiled(), batches(1)
    with opened(bundle) as session:
        np.testing.assert_array_equal(session.run(inputs[0]), expected(bundle, inputs)[0])


def test_an_answer_in_another_order_of_axes_is_refused(
    compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the right size and type: only its shape tells."""
    use_binding(monkeypatch, "v2024", fail="channels-last")
    with (
        opened(compiled()) as session,
        pytest.raises(EngineFailed, match=r"came in the shape \(1, 4, 6, 8, 3\), expected"),
    ):
        session.run(batches(1)[0])


def test_an_om_whose_input_is_of_another_type_is_refused(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bindings would read two half-precision numbers where one float32 is, or the other way round."""
    use_binding(monkeypatch, "v2024")
    half, single = compiled(flags=("--input_fp16_nodes=image",)), compiled()
    (lie,) = compiled_graphs(single, "0")
    (truth,) = compiled_graphs(half, "0")
    mixed = type(lie)(truth.path, truth.sha256, lie.chip, lie.precision, lie.input, lie.outputs)
    with pytest.raises(EngineUnavailable, match="is float16, 384 bytes; the bundle says float32, 768 bytes"):
        get_engine("om").open(half.graph_path("0"), EngineOptions(device="npu:0", compiled=(mixed,)))


def test_only_the_om_for_the_devices_chip_is_used(
    compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, "acl", soc="Ascend910B4")
    with pytest.raises(EngineUnavailable, match=r"OMs for Ascend310P3, the devices are Ascend910B4"):
        opened(compiled())
    use_binding(monkeypatch, "v2024", soc="Ascend910B4")  # the binding does not tell, npu-smi does
    with pytest.raises(EngineUnavailable, match=r"OMs for Ascend310P3, the devices are Ascend910B4"):
        opened(compiled())


def test_a_changed_om_is_refused(
    compiled: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, "v2024")
    (graph,) = compiled_graphs(compiled(), "0")
    changed = tmp_path / "changed.om"
    changed.write_bytes(graph.path.read_bytes() + b"x")
    lie = type(graph)(changed, graph.sha256, graph.chip, graph.precision, graph.input, graph.outputs)
    with pytest.raises(BundleError, match="was changed"):
        get_engine("om").open(compiled().graph_path("0"), EngineOptions(device="npu:0", compiled=(lie,)))


def test_folds_share_the_workers(compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    use_binding(monkeypatch, "v2023")
    bundle, inputs = compiled(folds=("0", "1")), batches(3)
    with opened(bundle, "npu:0,1") as first, opened(bundle, "npu:0,1", fold="1") as second:
        assert len(workers()) == 2
        for session, fold in ((first, "0"), (second, "1")):
            for got, wanted in zip(in_order(session, inputs), expected(bundle, inputs, fold), strict=True):
                np.testing.assert_array_equal(got, wanted)
        first.close()
        np.testing.assert_array_equal(second.run(inputs[0]), expected(bundle, inputs[:1], "1")[0])


def test_threads_share_a_session(compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    use_binding(monkeypatch, "v2024")
    bundle, inputs = compiled(), batches(8)
    wanted = expected(bundle, inputs)
    wrong: list[int] = []

    def work(session: Session, part: int) -> None:
        for index in range(part, len(inputs), 4):
            if not np.array_equal(session.run(inputs[index]), wanted[index]):
                wrong.append(index)

    with opened(bundle, "npu:0,1") as session:
        threads = [threading.Thread(target=work, args=(session, part)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("devices", ["npu:0", "npu:0,1,2"])
def test_killed_workers_are_replaced(
    devices: str, compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More often than a device may fail: who kills a worker is not the device."""
    use_binding(monkeypatch, "v2024", seconds="0.02")
    bundle, inputs = compiled(), batches(24)
    kills = 0
    with opened(bundle, devices) as session:
        for number, (batch, wanted) in enumerate(zip(inputs, expected(bundle, inputs), strict=True)):
            if number % 6 == 3:
                kills += len(victims := workers())
                for victim in victims:
                    victim.kill()
            np.testing.assert_array_equal(session.run(batch), wanted)
        assert session.info.details["left_out"] == {}
    assert kills >= 4


def test_a_worker_that_is_killed_again_and_again_is_given_up(
    compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, "v2024", fail="killed-at:0")
    monkeypatch.setattr(lane, "KILLS_ALLOWED", 1)
    with opened(compiled()) as session, pytest.raises(EngineFailed, match="SIGKILL"):
        session.run(batches(1)[0])


_PROGRAM = """
import sys, numpy as np
sys.path[:0] = {paths!r}
from offline_infer.bundles.artefacts import compiled_graphs
from offline_infer.bundles.bundle import Bundle
from offline_infer.engines import queueing
from offline_infer.engines.base import EngineOptions, get_engine
bundle = Bundle.load({folder!r})
session = get_engine("om").open(
    bundle.graph_path("0"), EngineOptions(device="npu:0,1", compiled=compiled_graphs(bundle, "0")))
print("ready", flush=True)
while True:
    session.run(np.random.default_rng(0).normal(size={shape!r}).astype(np.float32))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("fault", ["", "hang:3"])
def test_no_worker_outlives_the_program(
    number: signal.Signals, fault: str, compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, "v2023", seconds="0.05", fail=f"{fault}; helper")
    program = _PROGRAM.format(paths=sys.path[:2], folder=str(compiled().folder), shape=(1, 1, *PATCH))
    started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    mine = workers(psutil.Process(started.pid))
    assert len(mine) == 2
    mine += [helper for worker in mine for helper in worker.children()]
    assert len(mine) == 4
    os.kill(started.pid, number)
    started.wait(20)
    started.stdout.close()
    _, alive = psutil.wait_procs(mine, timeout=10)
    assert not [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_without_a_binding_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    use_standins(monkeypatch)
    reason = get_engine("om").available()
    assert reason is not None
    assert "ais_bench" in reason


def test_unknown_options_and_devices_are_refused(
    compiled: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_binding(monkeypatch, "v2024")
    for devices, extra in (
        ("cpu", {}),
        ("npu:0,0", {}),
        ("npu:x", {}),
        ("npu:0", {"binding": "acl"}),
        ("npu:0", {"a": "b"}),
    ):
        with pytest.raises(EngineUnavailable):
            opened(compiled(), devices, **extra)
    with pytest.raises(EngineUnavailable, match=f"{CLASSES}|no OM"):
        get_engine("om").open(compiled().graph_path("0"), EngineOptions(device="npu:0"))
