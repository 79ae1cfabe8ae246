"""Class probabilities on disk, in the layout the framework's own ensemble command reads.

nnU-Net v2: ``case.npz`` with ``probabilities`` (k, z, y, x) float32 of the whole image, and ``case.pkl``. nnU-Net v1:
``case.npz`` with ``softmax`` (k, z, y, x) float16 of the *cropped* image, and ``case.pkl`` with the properties that place
it; see ``properties``.
"""

from __future__ import annotations

import pickle  # only to write: reading goes through checkpoints.pickles
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import CaseGeometry
from offline_infer.errors import ImageError
from offline_infer.files import replacing
from offline_infer.nnunet_files.properties import v1_properties, v2_properties
from offline_infer.spec import VolumeSpec

FAST_DEFLATE = 1
"""Compression level: the default takes ten times as long for a few per cent."""


def probability_files(stem: Path) -> list[Path]:
    """The files :func:`write_probabilities` makes for ``folder/case``."""
    return [stem.with_name(stem.name + ".npz"), stem.with_name(stem.name + ".pkl")]


def write_probabilities(
    stem: Path, probabilities: npt.NDArray[np.float32], geometry: CaseGeometry, spec: VolumeSpec
) -> None:
    """Write the probabilities of a finished case beside its label map.

    Args:
        stem: ``folder/case`` without ending.
        probabilities: (k, z, y, x) of the cropped region, image axis order.
    """
    array_file, record_file = probability_files(stem)
    array: npt.NDArray[np.floating[Any]]
    if spec.aggregation.domain == "probabilities":
        name, record = "softmax", v1_properties(geometry)
        array = probabilities.astype(np.float16)
    else:
        name, record = "probabilities", v2_properties(geometry, spec.reader)
        array = whole_image(probabilities, geometry, spec)
    with replacing(record_file) as temporary:
        temporary.write_bytes(pickle.dumps(record, protocol=4))
    with replacing(array_file) as temporary:
        _write_npz(temporary, name, array)


def whole_image(
    probabilities: npt.NDArray[np.float32], geometry: CaseGeometry, spec: VolumeSpec
) -> npt.NDArray[np.float32]:
    """Probabilities (k, z, y, x) of the cropped region, placed in the whole image.

    Outside, a softmax model is certain of background and a region model of nothing, as nnU-Net v2 writes it.
    """
    whole = np.zeros((probabilities.shape[0], *geometry.image.shape), np.float32)
    if spec.labels.regions_class_order is None:
        whole[0] = 1
    box = tuple(slice(first, last) for first, last in geometry.crop)
    whole[(slice(None), *box)] = probabilities
    return whole


def read_npz(path: Path) -> tuple[str, npt.NDArray[np.floating]]:
    """The name and array of a probability file; nothing in it is executed.

    Raises:
        ImageError: missing, truncated, or neither ``probabilities`` nor ``softmax`` inside.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in ("probabilities", "softmax"):
                if name in archive:
                    array = archive[name]
                    if array.ndim != 4 or array.dtype.kind != "f":
                        raise ImageError(
                            f"{path}: {name} is {array.dtype} {array.shape}, expected floating point (k, z, y, x)"
                        )
                    return name, array
            names = ", ".join(archive.files) or "nothing"
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ImageError(
            f"{path}: cannot be read as .npz ({error}); write it again", remedy="save-probabilities"
        ) from error
    raise ImageError(f"{path}: holds {names}, expected 'probabilities' (nnU-Net v2) or 'softmax' (v1)")


def _write_npz(path: Path, name: str, array: npt.NDArray[Any]) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=FAST_DEFLATE, allowZip64=True) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
