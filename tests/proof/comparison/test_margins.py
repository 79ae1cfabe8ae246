"""Margins are looked up in the axes the probabilities lie in, whatever axes the label map is stored in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_samples import DIRECTIONS, save
from specimens import tiny_spec

from offline_infer.arithmetic.geometry import CaseGeometry
from offline_infer.images import read_labels
from offline_infer.nnunet_files.probabilities import write_probabilities
from offline_infer.proof.comparison.margins import find_probabilities, largest_difference, margins_at


def predicted(folder: Path, reader: str, direction: np.ndarray, margins: np.ndarray) -> Path:
    """A label map and probabilities beside it whose two best classes are ``margins`` (z, y, x, as stored) apart."""
    path = save(folder / "case.nii.gz", np.zeros(margins.shape, np.uint8), direction)
    # The margin of each voxel travels through the reader as a label of its own.
    numbers = save(
        folder / "numbers.nii.gz", np.arange(margins.size, dtype=np.uint16).reshape(margins.shape), direction
    )
    turned, frame = read_labels(numbers, reader)
    values = margins.reshape(-1)[turned]
    whole = CaseGeometry(frame, tuple((0, n) for n in frame.shape), frame.shape, frame.spacing, (0, 1, 2))  # type: ignore[arg-type]
    probabilities = np.stack([0.5 + values / 2, 0.5 - values / 2, np.zeros_like(values)]).astype(np.float32)
    write_probabilities(folder / "case", probabilities, whole, tiny_spec().model_copy(update={"reader": reader}))
    return path


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("name", sorted(DIRECTIONS))
def test_margins_of_turned_images(tmp_path: Path, reader: str, name: str) -> None:
    margins = np.random.default_rng(0).random((5, 6, 7))
    path = predicted(tmp_path, reader, DIRECTIONS[name], margins)
    file = find_probabilities(path, margins.shape)
    assert file is not None
    places = np.argwhere(margins >= 0)
    np.testing.assert_allclose(margins_at(file, places), margins.reshape(-1), atol=1e-6)


def test_arrays_in_different_axes_are_not_compared_voxel_by_voxel(tmp_path: Path) -> None:
    margins = np.random.default_rng(0).random((6, 6, 6))
    files = [
        find_probabilities(predicted(tmp_path / reader, reader, DIRECTIONS["identity"], margins), margins.shape)
        for reader in ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient")
    ]
    plain, turned, other = files
    assert plain is not None
    assert turned is not None
    assert other is not None
    assert largest_difference(plain, turned) is None
    assert largest_difference(turned, other) == {"max": 0.0, "mean": 0.0}
