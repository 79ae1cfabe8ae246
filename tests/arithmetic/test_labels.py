"""Softmax, sigmoid and label decisions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from offline_infer.arithmetic.labels import (
    HALF_LOGIT,
    decide,
    label_dtype,
    label_table,
    probabilities,
    sigmoid,
    softmax,
    winners,
)
from offline_infer.spec import Aggregation, Labels

LOGITS = Aggregation(domain="logits")
SIGMOID = Aggregation(domain="logits", activation="sigmoid")
PROBABILITIES = Aggregation(domain="probabilities", activation="sigmoid")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax_and_sigmoid_are_stable_and_leave_their_input_alone(dtype: type) -> None:
    values = np.array([[1000.0, -1000.0, 0.0, 3.5], [-1000.0, 1000.0, 0.0, -2.25], [0.0, 0.0, 0.0, 8.0]], dtype)
    before = values.copy()
    with np.errstate(all="raise", under="ignore"):
        soft, logistic = softmax(values), sigmoid(values)
    assert soft.dtype == logistic.dtype == np.float32
    assert np.allclose(soft, special.softmax(values.astype(np.float64), axis=0), rtol=0, atol=1e-6)
    assert np.allclose(logistic, special.expit(values.astype(np.float64)), rtol=0, atol=1e-6)
    assert np.array_equal(values, before)


def test_probabilities_follow_domain_and_activation() -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    assert np.array_equal(probabilities(values, LOGITS), softmax(values))
    assert np.array_equal(probabilities(values, SIGMOID), sigmoid(values))
    assert np.array_equal(probabilities(values, PROBABILITIES), values)


def test_first_of_equal_classes_wins_and_its_label_is_written() -> None:
    values = np.array([[1.0, 5.0, 2.0, 0.0], [3.0, 5.0, 2.0, 0.0], [3.0, 1.0, 7.0, 0.0]], np.float32)
    labels = Labels(names={}, channel_values=(0, 7, 300))
    result = decide(values, labels, LOGITS)
    assert result.tolist() == [7, 0, 300, 0]
    assert result.dtype == np.uint16


@pytest.mark.parametrize("channels", [1, 2, 7, 254, 255, 300])
def test_winners_are_argmax(channels: int) -> None:
    values = np.random.default_rng(1).integers(0, 9, (channels, 40, 30)).astype(np.float16)  # many ties
    assert np.array_equal(winners(values, None), values.argmax(axis=0))


def test_regions_are_written_in_their_order_and_only_above_one_half() -> None:
    labels = Labels(names={}, regions_class_order=(1, 2, 3))
    values = np.array([[0.9, 0.9, 0.2, 0.5], [0.1, 0.9, 0.2, 0.5], [0.1, 0.1, 0.6, 0.5]], np.float32)
    assert decide(values, labels, PROBABILITIES).tolist() == [1, 2, 3, 0]
    assert decide(values, Labels(names={}, regions_class_order=(3, 1, 2)), PROBABILITIES).tolist() == [3, 1, 2, 0]


def test_region_logits_are_compared_as_torch_would_compare_their_sigmoid() -> None:
    torch = pytest.importorskip("torch")
    bits = int(HALF_LOGIT.view(np.uint32))
    near = np.arange(bits - 300, bits + 300, dtype=np.uint32).view(np.float32)
    halves = np.arange(-8, 8).astype(np.float16) * np.float16(6e-8)
    far = np.linspace(-30, 30, 1001, dtype=np.float32)
    labels = Labels(names={}, regions_class_order=(1,))
    for values in (near, halves, far):
        expected = torch.sigmoid(torch.from_numpy(values).float()).numpy() > 0.5
        assert np.array_equal(decide(values[None], labels, SIGMOID), expected)


def test_label_dtype_holds_the_largest_label_of_the_model() -> None:
    assert label_dtype(Labels(names={}, channel_values=(0, 254))) == np.uint8
    assert label_dtype(Labels(names={}, channel_values=(0, 255))) == np.uint16
    assert label_dtype(Labels(names={}, regions_class_order=(1, 900))) == np.uint16
    assert label_table(Labels(names={}, regions_class_order=(1, 900))).tolist() == [0, 1, 900]
