"""How much memory a volume will take. Every large array of the streaming route is listed here with its size.

What the engine takes for itself - weights, activations, its output - is estimated separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.arithmetic.half_precision import sum_bytes
from offline_infer.arithmetic.labels import label_dtype
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.memory import MemoryEstimate
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.tiles import case_grid, case_mirrors, network_grid, sum_dtype
from offline_infer.threads import worker_count

_FLOAT = 4
_RESAMPLING_PLANES = 64
"""Planes in flight while an image is resampled (input blocks, ring, output blocks)."""
_SURFACE_BYTES = 48
"""Per voxel of a fine plane, candidate class and thread, while labels are decided; more classes than a few seldom meet."""
_KEPT_BY_MALLOC = 8 * 2**20
"""Per thread: small temporaries that the allocator keeps for the next ones."""
_ENGINE_CHANNELS = 128
"""Full-size feature maps an engine holds at once in a U-Net of 32 features: 64 at a skip connection and as many being computed."""


def estimate_case(
    spec: VolumeSpec,
    frame: ImageGeometry,
    settings: RunSettings,
    folds: int,
    *,
    graph_bytes: int = 0,
    cropped: Sequence[int] | None = None,
    threads: int | None = None,
) -> MemoryEstimate:
    """Estimate one case from its header.

    Args:
        frame: the image's; it is taken as having no empty border, an upper bound, unless ``cropped`` is known.
        folds: how many networks are averaged; their engines are all open.
        graph_bytes: size of the graphs' files together, for the engine's estimate.
        cropped: (z, y, x) of the image without its empty border.
        threads: 0 or None = all cores.

    Raises:
        GeometryError: the image has no voxel at the model's spacing.
    """
    workers = worker_count(threads)
    laid = network_grid(spec, frame, cropped)
    inner, shape = laid.cropped, laid.shape
    whole, fine, coarse = math.prod(frame.shape), math.prod(inner), math.prod(shape)
    channels, classes = len(spec.channels), spec.labels.channels

    image = channels * whole * _FLOAT
    same_grid = tuple(shape) == tuple(inner)
    contiguous = fine == whole and spec.transpose_forward == (0, 1, 2)
    copy = 0 if contiguous else channels * fine * _FLOAT
    mask = fine if any(channel.use_mask for channel in spec.channels) else 0
    resampled = 0 if same_grid else channels * coarse * _FLOAT
    planes = 0 if same_grid else _RESAMPLING_PLANES * max(fine // inner[0], coarse // shape[0]) * _FLOAT
    prepared = spec.input_channels * coarse * _FLOAT
    box = 4 * whole  # finding the non-zero box holds a mask and, to fill its holes, three more
    prepare = image + max(box, copy + mask + resampled + planes) + (prepared if spec.previous_stage else 0)

    grid = case_grid(spec, shape, settings)
    precision = sum_dtype(spec, settings)
    half = precision == "float16"
    lanes = folds if half else 1
    ring = grid.patch[0] * grid.padded_shape[1] * grid.padded_shape[2]
    patch = math.prod(grid.patch)
    slab = lanes * sum_bytes(precision, classes * ring)
    itemsize = slab // (lanes * classes * ring)
    counts = lanes * ring * itemsize
    answers = len(case_mirrors(spec, settings)) * (folds // lanes)
    tiles = classes * patch * _FLOAT * (answers > 1) + 2 * spec.input_channels * patch * _FLOAT
    label_bytes = label_dtype(spec.labels).itemsize
    labels = fine * label_bytes
    plane, fine_plane = coarse // shape[0], fine // inner[0]
    seam = 2 * classes * plane * itemsize + workers * fine_plane * _SURFACE_BYTES * min(classes, 6)
    if half and folds > 1:
        # Slabs that wait for the last fold's: half a patch of all others, or in the end a whole one of the first.
        slab += max((folds - 1) * (grid.patch[0] // 2), grid.patch[0]) * classes * plane * itemsize
    probabilities = classes * fine * _FLOAT if settings.save_probabilities else 0
    if settings.save_probabilities or spec.export.resampling.order > 1:
        seam += 2 * 64 * 2**20
    if spec.export.resampling.order > 1:  # a spline of order 2 and more reaches through the whole map
        seam += 2 * classes * coarse * itemsize + classes * fine * itemsize
    seam += workers * _KEPT_BY_MALLOC
    infer = prepared + slab + counts + tiles + labels + seam + probabilities
    finish = prepared + seam + labels + whole * label_bytes + 2 * probabilities
    engine = folds * (_ENGINE_CHANNELS + classes) * patch * _FLOAT + 2 * graph_bytes
    return MemoryEstimate(
        prepare,
        prepared,
        infer,
        finish,
        engine,
        slab,
        {
            "image": image,
            "box": box,
            "prepared": prepared,
            "slab": slab,
            "tiles": tiles,
            "labels": labels,
            "seam": seam,
        },
    )
