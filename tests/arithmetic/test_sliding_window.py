"""Tiles, mirrors, Gaussian maps and the rolling sums."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_infer.arithmetic.sliding_window import (
    RollingAccumulator,
    cut_tile,
    gaussian_map,
    lay_tiles,
    mirror_code,
    mirror_sets,
    tile_starts,
)
from offline_infer.spec import Gaussian


@given(size=st.integers(1, 300), patch=st.integers(1, 64), step=st.floats(0.05, 1.0))
def test_starts_cover_the_axis_without_gaps(size: int, patch: int, step: float) -> None:
    size = max(size, patch)
    starts = tile_starts(size, patch, step)
    assert starts[0] == 0
    assert starts[-1] == size - patch
    assert all(0 <= b - a <= patch for a, b in itertools.pairwise(starts))


def test_half_steps_round_to_even() -> None:
    # An odd patch of 7 has a step of 3.5: facts recorded from nnU-Net v1.
    assert tile_starts(14, 7, 0.5) == (0, 4, 7)
    assert tile_starts(137, 96, 0.5) == (0, 41)


def test_two_dimensional_patch_visits_every_slice() -> None:
    grid = lay_tiles((3, 40, 20), (32, 32), 0.5)
    assert grid.patch == (1, 32, 32)
    assert grid.starts[0] == (0, 1, 2)
    assert grid.pad == ((0, 0), (0, 0), (6, 6))
    assert len(list(grid)) == len(grid) == 6


def test_padding_puts_the_smaller_half_first() -> None:
    assert lay_tiles((5, 9, 9), (8, 9, 9), 0.5).pad[0] == (1, 2)


def test_mirror_order_and_code() -> None:
    assert mirror_sets((0, 1, 2), 3) == ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    assert mirror_sets((0, 1), 2) == ((), (1,), (2,), (1, 2))
    assert [mirror_code(m) for m in ((), (2,), (1,), (1, 2), (0,), (0, 2), (0, 1), (0, 1, 2))] == list(range(8))


def test_gaussian_has_no_zero_weight_even_in_half_precision() -> None:
    half = gaussian_map((64, 64, 64), Gaussian(peak=10.0, dtype="float16"))
    assert half.dtype == np.float16
    assert half.min() > 0
    assert half.max() == 10
    assert half[32, 32, 32] == 10


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 23), st.integers(1, 17), st.integers(1, 17)),
    patch=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    step=st.floats(0.2, 1.0),
    seed=st.integers(0, 99),
)
def test_rolling_sum_equals_whole_volume_sum(
    shape: tuple[int, int, int], patch: tuple[int, int, int], step: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = lay_tiles(shape, patch, step)
    weights = rng.random(patch).astype(np.float32) + np.float32(0.1)
    slabs: list[np.ndarray] = []
    rolling = RollingAccumulator(grid, 2, weights, "float32", lambda slab: slabs.append(slab.copy()))
    total, count = np.zeros((2, *grid.padded_shape)), np.zeros(grid.padded_shape)
    for start in grid:
        prediction = rng.random((2, *patch)).astype(np.float32)
        rolling.add(start, prediction)
        box = tuple(slice(a, a + n) for a, n in zip(start, patch, strict=True))
        total[(slice(None), *box)] += prediction * weights
        count[box] += weights
    rolling.finish()
    inner = tuple(slice(low, low + n) for (low, _), n in zip(grid.pad, shape, strict=True))
    whole = (total / count)[(slice(None), *inner)]
    np.testing.assert_allclose(np.concatenate(slabs, axis=1), whole, rtol=1e-5)


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    patch=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
)
def test_cut_tile_equals_padding_then_slicing(shape: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    grid = lay_tiles(shape, patch, 0.5)
    padded = np.pad(array, ((0, 0), *grid.pad))
    out = np.full((2, *patch), 7, np.float32)
    for start in grid:
        cut_tile(array, grid, start, out)
        box = tuple(slice(a, a + n) for a, n in zip(start, patch, strict=True))
        np.testing.assert_array_equal(out, padded[(slice(None), *box)])


@pytest.mark.parity
@pytest.mark.parametrize("case", ["003_case_aniso", "003_case_border", "010_rcase_3mm"])
def test_v2_gaussian_and_tiles_are_the_frameworks(goldens: Path, case: str) -> None:
    folder = goldens / "v2" / "expected" / "intermediates" / case
    recorded = np.load(folder / "gaussian_fp16.npz")["gaussian"]
    np.testing.assert_array_equal(gaussian_map(recorded.shape, Gaussian(peak=10.0, dtype="float16")), recorded)
    meta = json.loads((folder / "meta.json").read_text())
    grid = lay_tiles(meta["preprocessed_shape"][1:], meta["patch_size"], meta["tile_step_size"])
    assert [[list(pair) for pair in _boxes(start, grid.patch)] for start in grid] == meta["tiles"]


@pytest.mark.parity
def test_v1_gaussian_and_starts_are_the_frameworks(goldens: Path) -> None:
    folder = goldens / "v1" / "expected" / "ctborder_fold0"
    recorded = np.load(folder / "intermediates" / "gaussian.npz")["gaussian"]
    np.testing.assert_array_equal(gaussian_map(recorded.shape, Gaussian()), recorded)
    run = json.loads((folder / "run.json").read_text())
    grid = lay_tiles(run["preprocessed_shape"][1:], run["patch_size"], 0.5)
    assert [list(starts) for starts in grid.starts] == run["steps"]


def _boxes(start: tuple[int, ...], patch: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(a, a + n) for a, n in zip(start, patch, strict=True)]
