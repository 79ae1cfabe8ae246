"""Synthetic abdominal CT: a patient who does not exist, drawn from a seed.

The demonstration needs CT volumes that anybody may use and a reference that is exactly right. A phantom is a set of
implicit surfaces in patient space (:mod:`offline_infer.demo.anatomy`) sampled on an image grid
(:mod:`offline_infer.demo.canvas`). The grid may be flipped or tilted; the anatomy stays where it belongs, so the liver
is on the patient's right whatever the direction cosines say.

The surfaces are painted with edges as wide as a voxel (partial volume), then blurred by a point spread and a slice
profile, then noise is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.smoothing import gaussian
from offline_infer.demo import anatomy
from offline_infer.demo.anatomy import Patient, Trunk
from offline_infer.demo.canvas import Canvas, Float, capsule, ellipsoid, rotation
from offline_infer.images.frame import require_unicode

LIVER = 1
TUMOUR = 2
AIR = -1000.0
LOWEST, HIGHEST = -1024, 3071
FRAMES: tuple[Sequence[float], ...] = ((1, 1, 1), (-1, -1, 1), (1, 1, -1), (-1, 1, 1), (1, -1, 1), (1, 1, 1))
"""Signs of the image's axes in LPS: as stored by most tools, RAS, feet first, and mirror images."""


@dataclass(frozen=True)
class Phantom:
    """A synthetic CT with its reference segmentation.

    Attributes:
        ct: (z, y, x), int16, Hounsfield units.
        labels: (z, y, x), uint8: 0 background, 1 liver, 2 tumour.
        spacing: mm, ITK order (x, y, z).
        origin: mm, ITK order, LPS.
        direction: nine numbers, row-major, ITK.
    """

    ct: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]


def make_phantom(
    seed: int,
    *,
    in_plane_mm: float | None = None,
    slice_mm: float | None = None,
    coverage_mm: float | None = None,
    tumours: int | None = None,
) -> Phantom:
    """One phantom; the same arguments give the same voxels.

    Args:
        seed: everything the other arguments leave open is drawn from it; 0 or more.
        in_plane_mm: spacing along x and y; drawn from 1.5 to 2.0 (a clinical scan has 0.7 to 0.95, and takes longer).
        slice_mm: spacing along z; one of 2, 2.5, 3, 4 and 5.
        coverage_mm: length of the scan along z; drawn from 176 to 206.
        tumours: how many; drawn from 0 to 5.

    Raises:
        ValueError: a length that is not a sensible number of millimetres, or a negative seed or number of tumours.
    """
    for name, value in (("in_plane_mm", in_plane_mm), ("slice_mm", slice_mm), ("coverage_mm", coverage_mm)):
        if value is not None and not 0.3 <= value <= 1000:
            raise ValueError(f"{name} is {value}; expected millimetres between 0.3 and 1000")
    if seed < 0 or (tumours is not None and tumours < 0):
        raise ValueError(f"seed is {seed} and tumours is {tumours}; expected 0 or more")
    rng = np.random.default_rng([1303, seed])
    patient = anatomy.draw_patient(rng)
    canvas = _draw_grid(rng, patient, in_plane_mm, slice_mm, coverage_mm)
    trunk = anatomy.draw_trunk(canvas, patient, rng)
    lung = anatomy.lungs(canvas, patient, trunk)

    anatomy.paint_wall(canvas, patient, trunk, rng)
    anatomy.paint_bowel(canvas, patient, trunk, rng)
    carve = anatomy.paint_organs(canvas, patient, trunk, rng)
    carve += anatomy.paint_chest(canvas, patient, trunk, lung, rng)
    carve += anatomy.paint_great_vessels(canvas, patient, rng)
    liver = anatomy.liver_surface(canvas, patient, trunk, lung, rng)
    for box, surface in carve:
        liver[box] = np.maximum(liver[box], -surface)
    anatomy.paint_spine(canvas, patient, trunk, rng)
    labels = _paint_liver(canvas, patient, liver, rng, tumours)
    canvas.paint(anatomy.table_surface(canvas, patient), -120.0)

    ct = _scan(canvas, trunk, rng)
    return Phantom(ct, labels, canvas.spacing, canvas.origin, tuple(float(v) for v in canvas.direction.ravel()))


def write_phantom_case(images: Path, labels: Path | None, case_id: str, phantom: Phantom) -> tuple[Path, Path | None]:
    """Write ``<images>/<case_id>_0000.nii.gz`` and ``<labels>/<case_id>.nii.gz`` (nnU-Net's naming); make the folders.

    Returns:
        The two paths; the second is None where no folder for labels is given.

    Raises:
        ImageError: a path that is not UTF-8.
    """
    images.mkdir(parents=True, exist_ok=True)
    image_file = images / f"{case_id}_0000.nii.gz"
    _write(image_file, phantom.ct, phantom)
    if labels is None:
        return image_file, None
    labels.mkdir(parents=True, exist_ok=True)
    label_file = labels / f"{case_id}.nii.gz"
    _write(label_file, phantom.labels, phantom)
    return image_file, label_file


def _write(path: Path, array: npt.NDArray[Any], phantom: Phantom) -> None:
    """Under another name first, so that a file with the right name is complete."""
    import SimpleITK

    require_unicode(path)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(phantom.spacing)
    image.SetOrigin(phantom.origin)
    image.SetDirection(phantom.direction)
    partial = path.with_name(f".partial-{path.name}")
    SimpleITK.WriteImage(image, str(partial), useCompression=True, compressionLevel=4)
    partial.replace(path)


def _draw_grid(
    rng: np.random.Generator, p: Patient, in_plane: float | None, slice_mm: float | None, coverage: float | None
) -> Canvas:
    """The image grid: size, spacing, and a frame that may be flipped and tilted."""
    drawn = (rng.uniform(1.5, 2.0), rng.choice([2.0, 2.5, 3.0, 4.0, 5.0]), rng.uniform(176, 206))
    step = round(float(drawn[0] if in_plane is None else in_plane), 4)
    thick = round(float(drawn[1] if slice_mm is None else slice_mm), 4)
    length = float(drawn[2] if coverage is None else coverage)
    field = min(2 * p.half_width + rng.uniform(14, 34), 350.0)
    # Rows may be fewer than columns: a scan cropped to the patient and the table.
    rows = field if rng.random() < 0.6 else max(2 * p.half_depth + 46, field * rng.uniform(0.86, 0.96))
    size = (round(field / step), round(rows / step), max(8, round(length / thick)))
    flips = np.diag(FRAMES[int(rng.integers(len(FRAMES)))])
    tilted = rng.random() < 0.4
    angles = np.radians(rng.uniform(-5, 5, 3)) * tilted
    centre = np.array([rng.uniform(-4, 4), rng.uniform(0, 8), rng.uniform(-14, 0)])
    # The scanner's zero is not the patient's.
    table = np.array([rng.uniform(-20, 20), rng.uniform(-180, -120), rng.uniform(-900, 900)])
    return Canvas(size, (step, step, thick), rotation(angles) @ flips, centre, table, AIR)


def _paint_liver(
    c: Canvas, p: Patient, liver: Float, rng: np.random.Generator, tumours: int | None
) -> npt.NDArray[np.uint8]:
    """Tissue, vessels and tumours of the liver; returns the label map."""
    inside = liver < 0
    labels = inside.astype(np.uint8) * np.uint8(LIVER)
    c.paint(liver, p.liver + 3 * c.field(10, rng) + 4 * c.field(60, rng))
    for start, end, radius in anatomy.vessel_tree(p, rng):
        box = c.around((start + end) / 2, float(np.linalg.norm(end - start)) / 2 + radius + 3)
        if box is not None:
            tube = capsule(c.at(box), start, end, radius)
            c.paint(np.maximum(tube, liver[box] + 1.5), p.liver + p.vein, box)
    drawn = int(rng.choice(6, p=[0.08, 0.2, 0.24, 0.2, 0.16, 0.12]))
    candidates = np.flatnonzero(liver < -5)
    for number in range(drawn if tumours is None else tumours):
        draws = np.random.default_rng([int(rng.integers(2**32)), number])
        if candidates.size == 0:
            break
        spot = np.unravel_index(int(candidates[int(draws.integers(candidates.size))]), c.shape)
        _paint_tumour(c, p, liver, (c.x[spot], c.y[spot], c.z[spot]), draws, labels)
    return labels


def _paint_tumour(
    c: Canvas,
    p: Patient,
    liver: Float,
    centre: tuple[float, float, float],
    rng: np.random.Generator,
    labels: npt.NDArray[np.uint8],
) -> None:
    """A lump 8 to 34 mm across, darker than the liver, some with a bright rim or a necrotic core."""
    radius = float(rng.uniform(4.0, 8.0) if rng.random() < 0.35 else rng.uniform(8.0, 17.0))
    radii = radius * rng.uniform(0.85, 1.18, 3)
    value = float(np.clip(p.liver - rng.uniform(30, 62), 18, 62))
    kind = float(rng.random())
    box = c.around(centre, 1.6 * radius + 6)
    if box is None:
        return
    lump = ellipsoid(c.at(box), centre, radii, rng.uniform(-1, 1, 3))
    lump = lump + 0.09 * radius * c.field(max(5.0, 0.8 * radius), rng, box)
    lump = np.asarray(np.maximum(lump, liver[box]), np.float32)
    if kind < 0.22 and radius > 7:  # enhancing rim, part of the tumour
        c.paint(lump, p.liver + 24, box)
        c.paint(lump + 2.4, value, box)
    else:
        c.paint(lump, value + 3 * c.field(6, rng, box), box)
    if kind > 0.7 and radius > 9:
        c.paint(lump + 0.5 * radius, max(8.0, value - 22), box)
    labels[box][lump < 0] = TUMOUR


def _scan(c: Canvas, t: Trunk, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Blur, noise and the edges of the reconstruction."""
    step, thick = c.spacing[0], c.spacing[2]
    blur = (0.3 if thick > 2 else 0.5, 0.75 / step, 0.75 / step)
    hu = gaussian(c.hu, blur)
    sd = rng.uniform(10, 21)
    grain = rng.uniform(0.9, 1.5) / step  # sd of the kernel, voxels
    white = rng.standard_normal(c.shape).astype(np.float32)
    # Filtered back-projection leaves little low-frequency noise: subtract the wider average.
    noise = gaussian(white, (0.4, grain, grain), truncate=3)
    noise -= 0.6 * gaussian(noise, (0, 1.6 * grain, 1.6 * grain), truncate=3)
    noise *= sd / noise.std()
    # More in the middle of the body, where fewer photons arrive.
    hu += noise * np.clip(0.55 + t.depth / 110, 0.45, 1.2)
    hu += rng.uniform(1, 4) * c.field(120, rng)
    if rng.random() < 0.5:  # nothing is reconstructed outside the circle
        across = [np.linspace(-1, 1, n, dtype=np.float32) for n in c.shape[1:]]
        hu[:, np.hypot(across[0][:, None], across[1][None, :]) > 1.04] = LOWEST
    return np.asarray(np.clip(np.rint(hu), LOWEST, HIGHEST), np.int16)
