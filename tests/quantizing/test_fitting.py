"""The rounding of one convolution, judged behind it, against rounding by range and to the nearest."""

from __future__ import annotations

import numpy as np
import pytest

from offline_infer.errors import ExportError
from offline_infer.graph.quantized import Range, Rounding, Window, rounding_by_range, whole_weights
from offline_infer.quantizing.fitting import Samples, candidate_steps, compensated, fitted, windows

KERNEL = Window((3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1),) * 3)
CHANNELS, OUTPUTS = 6, 4
WIDTHS = np.array([0.1, 0.2, 0.2, 0.3, 1.0, 3.0]).reshape(1, -1, 1, 1, 1)


def _smooth(rng: np.random.Generator, size: int = 14) -> np.ndarray:
    """An activation (1, c, z, y, x) as behind a norm and a leaky ReLU: neighbours alike, some channels wider than others."""
    values = rng.normal(size=(1, CHANNELS, size, size, size))
    for axis in (2, 3, 4):
        values = values + np.roll(values, 1, axis) + np.roll(values, 2, axis)
    values *= WIDTHS
    return np.where(values > 0, values, 0.01 * values).astype(np.float32)


def _weight(rng: np.random.Generator) -> np.ndarray:
    """All channels of the activation count alike."""
    return (rng.normal(size=(OUTPUTS, CHANNELS, 3, 3, 3)) / WIDTHS).astype(np.float32)


def _samples(activations: list[np.ndarray]) -> Samples:
    samples = Samples(KERNEL, CHANNELS, len(activations))
    for each in activations:
        samples.add(each)
    return samples


def _error(weight: np.ndarray, rounding: Rounding, rows: np.ndarray) -> float:
    """Variance of what a rounded convolution changes, relative to the variance of what it computes."""
    step = rounding.scale.reshape(-1, 1)
    whole = np.clip(np.rint(rows / step) + rounding.zero, 0, 255) - rounding.zero
    if not rounding.scale.ndim:
        whole = whole * step
    restored = rounding.weight * rounding.weight_scale.reshape(-1, 1, 1, 1, 1)
    exact = rows.reshape(len(rows), -1) @ weight.reshape(OUTPUTS, -1).T
    rounded = whole.reshape(len(rows), -1) @ restored.reshape(OUTPUTS, -1).T
    return float(((rounded - exact).var(axis=0) / exact.var(axis=0)).mean())


def test_a_fitted_rounding_changes_less_than_half_of_what_ranges_change_on_values_not_seen() -> None:
    rng = np.random.default_rng(0)
    weight, seen, unseen = _weight(rng), [_smooth(rng), _smooth(rng)], _smooth(rng)
    found = fitted(weight, _samples(seen), normalized=True)
    by_range = rounding_by_range(weight, Range(min(map(np.min, seen)), max(map(np.max, seen))))
    rows = windows(unseen[0], KERNEL, 2000, rng)
    assert _error(weight, found, rows) < 0.5 * _error(weight, by_range, rows)


def test_compensated_weights_err_less_than_weights_rounded_to_the_nearest() -> None:
    rng = np.random.default_rng(1)
    weight = _weight(rng).reshape(OUTPUTS, -1)
    seen = windows(_smooth(rng)[0], KERNEL, 2000, rng).reshape(2000, -1)
    whole, scale = compensated(weight, seen)
    nearest, _ = whole_weights(weight)
    wrong = [np.square(seen @ (each * scale[:, None] - weight).T).mean() for each in (whole, nearest)]
    assert wrong[0] < 0.6 * wrong[1]
    assert np.abs(whole.astype(int) - nearest).max() >= 1


def test_windows_are_what_a_convolution_reads() -> None:
    rng = np.random.default_rng(2)
    image = rng.normal(size=(2, 9, 8)).astype(np.float32)
    window = Window((3, 2), (2, 1), (2, 1), ((2, 1), (0, 1)))
    padded = np.pad(image, [(0, 0), (2, 1), (0, 1)])
    expected = {padded[:, y : y + 5 : 2, x : x + 2].tobytes() for y in range(0, 8, 2) for x in range(8)}
    found = windows(image, window, 1000, rng)
    assert found.shape == (32, 2, 6)
    assert {each.tobytes() for each in found} == expected


def test_candidates_can_tell_both_ends_of_every_channel_before_they_are_cut() -> None:
    low, high = np.array([-0.1, 0, -4], np.float32), np.array([8, 0.5, 4], np.float32)
    found = list(candidate_steps(low, high, np.ones(3)))
    for scale, zero in found[::4]:
        assert (scale * zero >= -low - 1e-6).all()
        assert (scale * (255 - zero) >= high - 1e-6).all()
    assert all((narrower < wider).all() for (wider, _), (narrower, _) in zip(found[::4], found[1::4], strict=True))


def test_an_activation_without_negative_values_gives_them_no_step() -> None:
    zeros = {zero for _, zero in candidate_steps(np.zeros(2, np.float32), np.ones(2, np.float32), np.ones(2))}
    assert zeros == {0}


def test_an_activation_that_is_zero_everywhere_is_rounded_to_zero() -> None:
    weight = _weight(np.random.default_rng(3))
    found = fitted(weight, _samples([np.zeros((1, CHANNELS, 6, 6, 6), np.float32)]), normalized=True)
    assert np.isfinite(found.weight_scale).all()
    assert found.scale > 0


def test_what_is_not_a_number_is_refused() -> None:
    weight = _weight(np.random.default_rng(4))
    broken = np.full((1, CHANNELS, 6, 6, 6), np.nan, np.float32)
    with pytest.raises(ExportError, match="activation holds NaN"):
        fitted(weight, _samples([broken]), normalized=True)
    with pytest.raises(ExportError, match="weight holds NaN"):
        fitted(weight * np.inf, _samples([_smooth(np.random.default_rng(5), 6)]), normalized=False)
