"""A recorded answer that is asked again before an engine is trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.bundles.bundle import Bundle, save
from offline_infer.bundles.canary import KEY, ask_canary, canary_input, make_canary, require_canary
from offline_infer.bundles.opening import open_fold
from offline_infer.engines.base import EngineOptions
from offline_infer.engines.fake import fake_logits
from offline_infer.errors import BundleError, EngineUnavailable

Array = np.ndarray[Any, Any]


def bundle_with(folder: Path, change: Callable[[Array], Array] = lambda logits: logits, **record: Any) -> Bundle:
    """A bundle for the fake engine whose recorded answer is the fake network's, changed."""
    folder.mkdir()
    spec = with_graphs(with_outputs(tiny_spec()), folder)
    image = canary_input(spec.input_shape)
    made = make_canary(image, {"logits": change(fake_logits(image, 3))}) | record
    graphs = tuple(graph.model_copy(update={"verification": {KEY: made}}) for graph in spec.graphs)
    save(spec.model_copy(update={"graphs": graphs}), folder)
    return Bundle.load(folder)


def test_the_recorded_answer_is_found_again(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "b")
    with open_fold(bundle, "0", "fake", EngineOptions()) as session:
        result = require_canary(bundle, "0", "fp32", session)
    assert result is not None
    assert result.passed
    assert result.difference == 0
    assert result.values == 64 * 3
    assert "fold 0 on fake 1: max |difference| 0 over 192 recorded values" in str(result)


@pytest.mark.parametrize(
    ("change", "measure"),
    [(lambda logits: logits + 0.1, "max"), (lambda logits: -logits, "max"), (lambda logits: logits[:, ::-1], "max")],
)
def test_another_answer_is_refused_with_the_figure(
    tmp_path: Path, change: Callable[[Array], Array], measure: str
) -> None:
    bundle = bundle_with(tmp_path / "b", change)
    with open_fold(bundle, "0", "fake", EngineOptions()) as session:
        with pytest.raises(EngineUnavailable, match=measure + r" \|difference\| [0-9.e-]+ over 192 recorded values"):
            require_canary(bundle, "0", "fp32", session)
        result = ask_canary(bundle, "0", "fp32", session)
    assert result is not None
    assert not result.passed


def test_reduced_precision_is_given_more_room(tmp_path: Path) -> None:
    """Some parts in a hundred are what rounding to eight bits does; a wrong network is further away than that."""
    near = bundle_with(tmp_path / "near", lambda logits: logits * np.float32(1.02))
    far = bundle_with(tmp_path / "far", lambda logits: -logits)
    with open_fold(near, "0", "fake", EngineOptions(precision="bf16")) as session:
        result = require_canary(near, "0", "fp32", session)
        assert result is not None
        assert result.measure == "relative distance"
        with pytest.raises(EngineUnavailable, match="relative distance 2 "):
            require_canary(far, "0", "fp32", session)


def test_nan_never_passes(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "b")
    with open_fold(bundle, "0", "fake", EngineOptions(extra={"nan_at": "0"})) as session:
        result = ask_canary(bundle, "0", "fp32", session)
        assert result is not None
        assert np.isnan(result.difference)
        assert not result.passed


def test_bundles_without_a_canary(tmp_path: Path) -> None:
    spec = with_graphs(with_outputs(tiny_spec()), tmp_path)
    bundle = save(spec, tmp_path)
    with open_fold(bundle, "0", "fake", EngineOptions()) as session:
        assert require_canary(bundle, "0", "fp32", session) is None


def test_damaged_records(tmp_path: Path) -> None:
    for number, record in enumerate(
        [
            {"outputs": {}},
            {"seed": "x"},
            {"outputs": {"logits": {"shape": [1, 3, 8, 12, 16], "points": [], "values": []}}},
        ]
    ):
        bundle = bundle_with(tmp_path / str(number), **record)
        with (
            open_fold(bundle, "0", "fake", EngineOptions()) as session,
            pytest.raises(BundleError, match="canary of fold 0 is damaged"),
        ):
            ask_canary(bundle, "0", "fp32", session)
    outside = {"logits": {"shape": [1, 3, 8, 12, 16], "points": [10**9], "values": [[0.0, 0.0, 0.0]]}}
    for name, record, words in [
        ("other", {"input_sha256": "0" * 64}, "NumPy .* draws other random numbers"),
        ("outside", {"outputs": outside}, "outside the output"),
    ]:
        bundle = bundle_with(tmp_path / name, **record)
        with (
            open_fold(bundle, "0", "fake", EngineOptions()) as session,
            pytest.raises(BundleError, match=words),
        ):
            ask_canary(bundle, "0", "fp32", session)


def test_open_sizes_get_a_size() -> None:
    assert canary_input((1, 3, -1, -1)).shape == (1, 3, 64, 64)
    np.testing.assert_array_equal(canary_input((1, 1, 4)), canary_input((1, 1, 4)))
