"""A four-dimensional NIfTI file into one three-dimensional file per channel, the frame kept."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from offline_infer.errors import ImageError
from offline_infer.images import itk, nifti
from offline_infer.images.writing import whole_file


def split_channels(source: Path, targets: Sequence[Path]) -> None:
    """Write channel ``i`` of ``source`` to ``targets[i]``, as nnU-Net's Decathlon converter does.

    The channels are the fourth axis of the file. A three-dimensional file is one channel and is copied byte for byte.
    The last target is written last, and each atomically: where all exist, all are complete.

    Raises:
        ImageError: not readable, damaged, or another number of channels than targets.
        GeometryError: impossible spacing or direction.
    """
    header = nifti.read_header(source)
    found = header.dims[3] if len(header.dims) == 4 else 1
    if len(header.dims) not in (3, 4) or found != len(targets):
        raise ImageError(
            f"{source}: has dimensions {header.dims}, but its data set has {len(targets)} channels per image; expected "
            f"{'three dimensions' if len(targets) == 1 else f'a fourth dimension of {len(targets)}'}"
        )
    nifti.check_complete(source)
    if len(header.dims) == 3:
        with whole_file(targets[0]) as temporary:
            shutil.copyfile(source, temporary)
        return
    image = itk.read_image(source)
    voxels = sitk.GetArrayViewFromImage(image)
    direction = np.asarray(image.GetDirection()).reshape(4, 4)[:3, :3]
    for channel, target in enumerate(targets):
        volume = sitk.GetImageFromArray(voxels[channel])
        volume.SetSpacing(image.GetSpacing()[:3])
        volume.SetOrigin(image.GetOrigin()[:3])
        volume.SetDirection(direction.ravel().tolist())
        with whole_file(target) as temporary:
            itk.write_image(temporary, volume)
