"""A precision that computes wrongly is noticed before it is used."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from offline_infer.engines.base import EngineOptions, Session, SessionInfo, get_engine
from offline_infer.engines.self_test import ALLOWED, check_arithmetic
from offline_infer.errors import EngineUnavailable
from offline_infer.graph.admission import admit
from offline_infer.graph.tiny import single_operator


class Wrong:
    """A session whose answers are those of another one, spoilt."""

    def __init__(self, session: Session, spoil: Any) -> None:
        self._session = session
        self._spoil = spoil

    @property
    def info(self) -> SessionInfo:
        return self._session.info

    def run(self, batch: Any) -> Any:
        return self._spoil(self._session.run(batch).copy())

    def __enter__(self) -> Wrong:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()


@pytest.fixture(params=["openvino", "onnxruntime"])
def name(request: pytest.FixtureRequest) -> str:
    reason = get_engine(request.param).available()
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


def opened(name: str, path: Path) -> Any:
    return get_engine(name).open(path, EngineOptions(threads=1))


@pytest.mark.parametrize("half", [False, True])
def test_right_arithmetic_passes(name: str, half: bool) -> None:
    distance = check_arithmetic("test", lambda path: opened(name, path), half_graph=half)
    assert distance < (1e-3 if half else 1e-5)


def swapped(answer: Any) -> Any:
    return np.ascontiguousarray(answer[:, ::-1])


def scaled(answer: Any) -> Any:
    return answer * np.float32(1.1)


def emptied(answer: Any) -> Any:
    answer[:, : answer.shape[1] // 4] = 0
    return answer


def not_a_number(answer: Any) -> Any:
    answer[0, 0, 0] = np.nan
    return answer


@pytest.mark.parametrize("spoil", [swapped, scaled, emptied, not_a_number])
def test_wrong_arithmetic_is_refused_with_the_figure(name: str, spoil: Any) -> None:
    with pytest.raises(EngineUnavailable, match=r"test: Conv is computed wrongly.*(is [0-9.]+ of|is nan of)"):
        check_arithmetic("test", lambda path: Wrong(opened(name, path), spoil), half_graph=False)  # type: ignore[arg-type,return-value]


def test_reduced_precision_passes_where_the_processor_has_it(tmp_path: Path) -> None:
    engine = get_engine("openvino")
    if engine.available() is not None:
        pytest.skip(str(engine.available()))
    weight = np.ones((2, 2, 1, 1), np.float32)
    graph = tmp_path / "g.onnx"
    graph.write_bytes(single_operator("Conv", (1, 2, 4, 4), weight, (1, 2, 4, 4)))
    for precision in ("bf16", "fp16"):
        try:
            session = engine.open(graph, EngineOptions(threads=1, precision=precision))
        except EngineUnavailable as error:
            if f"no {precision} arithmetic" not in str(error):
                raise
            continue  # the processor lacks it; nothing was computed wrongly
        session.close()


def test_rounding_to_eight_bits_is_allowed_for(tmp_path: Path) -> None:
    """What bfloat16 does at worst to these answers, computed here, is well inside what is allowed."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((64, 192)).astype(np.float32), rng.standard_normal((192, 48)).astype(np.float32)

    def cut(values: Any) -> Any:
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)

    expected = a @ b
    assert np.linalg.norm(cut(cut(a) @ cut(b)) - expected) / np.linalg.norm(expected) < ALLOWED / 3


def test_graphs_written_by_hand_are_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    data = single_operator(
        "Conv", (1, 2, 6, 6), np.ones((3, 2, 3, 3), np.float32), (1, 3, 4, 4), {"kernel_shape": (3, 3)}
    )
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    (tmp_path / "g.onnx").write_bytes(data)
    assert admit(tmp_path / "g.onnx").operators == {"Conv": 1}
