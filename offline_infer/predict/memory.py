"""How much memory a case will take, before it is read, and what to do where that is too much.

Every large array of the streaming road is listed here with its size. What the engine takes for itself - weights, activations,
its output - is estimated apart from that, or measured once it has run.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import psutil

from offline_infer.arithmetic.geometry import ImageGeometry, permute, resampled_shape
from offline_infer.arithmetic.half_precision import sum_bytes
from offline_infer.arithmetic.labels import label_dtype
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.settings import RunSettings, sum_dtype
from offline_infer.tasks.volume.aggregation import case_grid, case_mirrors
from offline_infer.threads import worker_count

_FLOAT = 4
_RESAMPLING_PLANES = 64
"""Planes in flight while an image is resampled (input blocks, ring, output blocks)."""
_SURFACE_BYTES = 48
"""Per voxel of a fine plane, candidate class and thread, while labels are decided; more classes than a few seldom meet."""
_KEPT_BY_MALLOC = 16 * 2**20
"""Per thread: small temporaries that the allocator keeps for the next ones."""
_ENGINE_CHANNELS = 128
"""Full-size feature maps an engine holds at once in a U-Net of 32 features: 64 at a skip connection and as many in work."""


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes at the three heights of a case, above the program with its engine opened.

    Attributes:
        prepare: while the image is read, resampled and normalised.
        prepared: what stays of that until the case is finished.
        infer: during inference, ``prepared`` included, the engine's own memory excluded.
        finish: while the label map (and the probabilities) are put together and written, ``prepared`` included.
        engine: estimate of the engine's own working memory: weights, activations, output.
        slab: part of ``infer`` that can be moved to a scratch file: the sums of the slab in work.
        parts: the larger items by name.
    """

    prepare: int
    prepared: int
    infer: int
    finish: int
    engine: int
    slab: int
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def alone(self) -> int:
        """Peak of one case by itself, the engine included while it runs."""
        return max(self.prepare, self.infer + self.engine, self.finish + self.engine)

    @property
    def alone_without_engine(self) -> int:
        """Peak of one case by itself, above the engine's own."""
        return max(self.prepare, self.infer, self.finish)

    @property
    def behind(self) -> int:
        """What finishing takes beside the next case: the last slab, until it is decided, and the label map."""
        return self.finish - self.prepared + self.slab

    def beside(self, following: MemoryForecast | None, previous: MemoryForecast | None = None) -> int:
        """Peak while the next case is prepared and the previous one finished at the same time."""
        ahead = following.prepare if following is not None else 0
        before = previous.behind if previous is not None else 0
        return max(self.prepare + before, max(self.infer, self.finish) + self.engine + ahead + before)

    def to_json(self) -> dict[str, Any]:
        return {
            "prepare": self.prepare,
            "infer": self.infer,
            "finish": self.finish,
            "peak_without_engine": self.alone_without_engine,
            "engine_estimate": self.engine,
            "parts": self.parts,
        }


def forecast_case(
    spec: VolumeSpec,
    frame: ImageGeometry,
    settings: RunSettings,
    folds: int,
    *,
    graph_bytes: int = 0,
    engine: int | None = None,
    cropped: Sequence[int] | None = None,
    threads: int | None = None,
) -> MemoryForecast:
    """Forecast one case from its header.

    Args:
        frame: the image's; it is taken as having no empty border, an upper bound, unless ``cropped`` is known.
        folds: how many networks are averaged; their engines are all open.
        graph_bytes: size of the graphs' files together, for the engine's estimate.
        engine: the engine's own need where it was measured.
        cropped: (z, y, x) of the image without its empty border.
        threads: 0 or None = all cores.

    Raises:
        GeometryError: the image has no voxel at the model's spacing.
    """
    workers = worker_count(threads)
    order = spec.transpose_forward
    inner = permute(cropped if cropped is not None else frame.shape, order)
    spacing = permute(frame.spacing, order)
    target = (spacing[0], *spec.spacing) if len(spec.spacing) == 2 else spec.spacing
    shape = inner if spec.resampling.function == "none" else resampled_shape(inner, spacing, target)
    whole, fine, coarse = math.prod(frame.shape), math.prod(inner), math.prod(shape)
    channels, classes = len(spec.channels), spec.labels.channels

    image = channels * whole * _FLOAT
    same_grid = tuple(shape) == tuple(inner)
    contiguous = fine == whole and order == (0, 1, 2)
    copy = 0 if contiguous else channels * fine * _FLOAT
    mask = fine if any(channel.use_mask for channel in spec.channels) else 0
    resampled = 0 if same_grid else channels * coarse * _FLOAT
    planes = 0 if same_grid else _RESAMPLING_PLANES * max(fine // inner[0], coarse // shape[0]) * _FLOAT
    prepared = spec.input_channels * coarse * _FLOAT
    # Finding the non-zero box holds a mask and, to fill its holes, three more.
    prepare = image + max(4 * fine, copy + mask + resampled + planes) + (prepared if spec.previous_stage else 0)

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
    if engine is None:
        engine = folds * (_ENGINE_CHANNELS + classes) * patch * _FLOAT + 2 * graph_bytes
    return MemoryForecast(
        prepare,
        prepared,
        infer,
        finish,
        engine,
        slab,
        {"image": image, "prepared": prepared, "slab": slab, "tiles": tiles, "labels": labels, "seam": seam},
    )


@dataclass(frozen=True)
class Method:
    """How a case is run within the memory there is.

    Attributes:
        read_ahead: the next case is prepared and the previous one finished while this one is inferred.
        spill: the slab in work lies in a scratch file, whose pages the system takes back when it needs them.
    """

    read_ahead: bool = True
    spill: bool = False


def choose_method(
    forecast: MemoryForecast, following: MemoryForecast | None, room: int, previous: MemoryForecast | None = None
) -> Method:
    """The fastest method that fits.

    Args:
        following: of the next case, None for the last one.
        room: bytes that may be taken beyond what the program holds now.
        previous: of the case that may still be in the thread behind, None for the first one.
    """
    if forecast.beside(following, previous) <= room:
        return Method()
    if forecast.alone <= room:
        return Method(read_ahead=False)
    return Method(read_ahead=False, spill=True)


def room_left(limit: int | None = None) -> int:
    """Bytes this process may still take.

    Args:
        limit: for the whole process; None = what the machine, or the container, has free.
    """
    held = int(psutil.Process().memory_info().rss)
    return max((limit if limit is not None else held + free_memory()) - held, 0)


def free_memory() -> int:
    """Bytes the machine has free, or the control group this process is in, whichever is less."""
    free = int(psutil.virtual_memory().available)
    for most, used, inactive in _GROUPS:
        try:
            ceiling = most.read_text().strip()
            taken = int(used.read_text())
            # Cached file pages are given back when they are needed.
            cached = [line.split()[1] for line in inactive.read_text().splitlines() if _is_cache(line)]
        except (OSError, ValueError):
            continue
        if ceiling.isdecimal():
            free = min(free, max(int(ceiling) - taken + sum(map(int, cached)), 0))
    return free


def _is_cache(line: str) -> bool:
    return line.split(" ")[0] in ("inactive_file", "total_inactive_file")


def _groups() -> list[tuple[Path, Path, Path]]:
    root = Path("/sys/fs/cgroup")
    places = [root]
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, inside = line.split(":", 2)
            below = inside.lstrip("/")
            if not controllers:
                places += [root / below, *(root / below).parents]
    except (OSError, ValueError):
        pass
    version_2 = [
        (place / "memory.max", place / "memory.current", place / "memory.stat")
        for place in dict.fromkeys(places)
        if place == root or root in place.parents
    ]
    old = root / "memory"
    return [*version_2, (old / "memory.limit_in_bytes", old / "memory.usage_in_bytes", old / "memory.stat")]


_GROUPS = _groups()


class Scratch:
    """Zeroed arrays in a file that has no name and vanishes with the process. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[IO[bytes]] = []

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """A zeroed array in a file; in memory where the disk has no room either."""
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with the others
        self._files.append(file)
        try:
            # All of it now: a page that finds no disk when it is written would end the process.
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
        except OSError:
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)

    def __enter__(self) -> Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]:
        return self.allocate

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        self._files = []
