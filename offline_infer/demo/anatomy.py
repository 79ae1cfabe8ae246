"""The abdomen of a phantom: organs as surfaces, painted from the skin inwards. Lengths in mm, values in HU.

What a network could mistake for liver is there on purpose: spleen, kidneys, stomach, pancreas, heart and muscle have
similar values; the gall bladder next to the liver looks like a large tumour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offline_infer.arithmetic.smoothing import gaussian
from offline_infer.demo.canvas import Canvas, Float, Slices, capsule, ellipsoid, smooth_union

FAT = -102.0
Box = Slices


@dataclass(frozen=True)
class Patient:
    """What the draws of one seed have in common across organs."""

    scale: float
    half_width: float
    half_depth: float
    exponent: float
    fat: float
    wall: float
    right_dome: float
    left_dome: float
    spine_y: float
    muscle: float
    liver: float
    vein: float
    aorta: float
    spleen: float
    cortex: float
    medulla: float


def draw_patient(rng: np.random.Generator) -> Patient:
    """Build and contrast phase. ``vein`` is what the liver's veins have above its tissue."""
    half_width = float(rng.uniform(138, 164))
    half_depth = half_width * float(rng.uniform(0.68, 0.76))
    right_dome = float(rng.uniform(70, 84))
    u = [float(v) for v in rng.uniform(0, 1, 6)]
    phase = float(rng.random())
    if phase < 0.12:  # before contrast medium
        values = (56 + 10 * u[0], -16.0, 38 + 8 * u[1], 44 + 10 * u[2], 34.0, 30.0)
    elif phase < 0.25:  # arterial
        values = (66 + 16 * u[0], 8 + 17 * u[1], 240 + 100 * u[2], 100 + 30 * u[3], 160 + 50 * u[4], 80.0)
    else:  # portal venous
        values = (86 + 24 * u[0], 30 + 30 * u[1], 140 + 45 * u[2], 100 + 28 * u[3], 165 + 40 * u[4], 125 + 35 * u[5])
    liver, vein, aorta, spleen, cortex, medulla = values
    return Patient(
        scale=half_width / 150,
        half_width=half_width,
        half_depth=half_depth,
        exponent=float(rng.uniform(2.15, 2.5)),
        fat=float(rng.uniform(7, 19)),
        wall=float(rng.uniform(10, 14)),
        right_dome=right_dome,
        left_dome=right_dome - float(rng.uniform(6, 16)),
        spine_y=half_depth - float(rng.uniform(50, 57)),
        muscle=float(rng.uniform(48, 62)),
        liver=liver,
        vein=vein,
        aorta=aorta,
        spleen=spleen,
        cortex=cortex,
        medulla=medulla,
    )


@dataclass(frozen=True)
class Trunk:
    """Surfaces the organs are fitted into, over the whole grid.

    Attributes:
        depth: below the skin along the ray to the body's axis, positive inside.
        angle: of that ray, radians; pi/2 is the back.
        fat: thickness of the fat under the skin.
        cavity: surface of the room inside the body wall.
        spine: surface of the vertebral column.
        right, left: height z of the two halves of the diaphragm over (x, y).
    """

    depth: Float
    angle: Float
    fat: Float
    cavity: Float
    spine: Float
    right: Float
    left: Float


def draw_trunk(c: Canvas, p: Patient, rng: np.random.Generator) -> Trunk:
    """Skin, wall, spine and diaphragm."""
    waist = 1 + 0.035 * np.cos((c.z - rng.uniform(-20, 60)) / 70)
    ax, ay = c.x / (p.half_width * waist), c.y / (p.half_depth * waist)
    rho = (np.abs(ax) ** p.exponent + np.abs(ay) ** p.exponent) ** (1 / p.exponent)
    angle = np.arctan2(ay, ax)
    back = np.clip(np.sin(angle), 0, 1)
    rho /= 1 + rng.uniform(0, 0.02) * np.cos(2 * angle) + rng.uniform(0, 0.015) * np.cos(3 * angle)
    rho *= 1 + 0.05 * back**6 * np.exp(-((c.x / 22) ** 2))  # the furrow over the spine
    depth = np.hypot(c.x, c.y) * (1 / np.maximum(rho, 1e-3) - 1)
    fat = p.fat * (1 + 0.4 * np.cos(angle) ** 2 + 0.2 * back + 0.15 * c.field(70, rng))
    wall = p.wall * (1 + 0.7 * back**2)
    domes = []
    for side, top in ((-1, p.right_dome), (1, p.left_dome)):
        bulge = ((c.x - side * 0.46 * p.half_width) / (0.56 * p.half_width)) ** 2
        bulge += ((c.y + 6) / (0.86 * p.half_depth)) ** 2
        domes.append(np.asarray(top - 92 + 92 * np.sqrt(np.clip(1 - bulge, 0, 1)), np.float32))
    flat = (c.x, c.y, np.zeros_like(c.z))
    return Trunk(
        depth=np.asarray(depth, np.float32),
        angle=np.asarray(angle, np.float32),
        fat=np.asarray(fat, np.float32),
        cavity=np.asarray(fat + wall - depth, np.float32),
        spine=ellipsoid(flat, (0, p.spine_y, 0), (22 * p.scale, 17 * p.scale, 1)),
        right=domes[0],
        left=domes[1],
    )


def paint_wall(c: Canvas, p: Patient, t: Trunk, rng: np.random.Generator) -> None:
    """Skin, fat, muscle, and the fat of the mesentery with its small vessels."""
    c.paint(-t.depth, 15.0)
    c.paint(2.0 - t.depth, FAT + 5 * c.field(16, rng))
    c.paint(t.fat - t.depth, p.muscle - 8)
    c.paint(t.fat + 3.0 - t.depth, -30.0)  # fat between the layers of the wall
    c.paint(t.fat + 4.2 - t.depth, p.muscle)
    strands = np.clip(c.field(8, rng) - 1.1, 0, 1.4)
    c.paint(t.cavity, FAT + 80 * strands)


def paint_spine(c: Canvas, p: Patient, t: Trunk, rng: np.random.Generator) -> None:
    """Vertebrae with discs, arches and processes, the muscles along them, and the ribs."""
    s = p.scale
    phase = float(rng.uniform(0, 30))
    marrow = float(rng.uniform(150, 230))
    flat = (c.x, c.y, np.zeros_like(c.z))
    for side in (-1, 1):  # erector spinae
        muscle = ellipsoid(flat, (side * 36 * s, p.spine_y + 26 * s, 0), (30 * s, 19 * s, 1), (0, 0, side * 0.25))
        c.paint(np.maximum(muscle, t.fat + 2 - t.depth), p.muscle + 5 * c.field(7, rng))
    u = np.mod(c.z + phase, 30) - 15  # 0 in the middle of a vertebra
    disc = 11.5 - np.abs(u)
    column = t.spine + 1.5 * (disc > 0) * (1 - (u / 12) ** 2)
    c.paint(column, 95.0)
    bone = np.maximum(column, -disc)
    c.paint(bone, 480.0)
    c.paint(bone + 2.2, marrow + 35 * c.field(4, rng))
    arch = ellipsoid(flat, (0, p.spine_y + 24 * s, 0), (17 * s, 13 * s, 1))
    c.paint(np.maximum(arch, np.abs(u + 2) - 12), 430.0)
    c.paint(arch + 4, 150.0)
    process = np.maximum(np.abs(c.x) - 3.2 * s, np.abs(c.y - p.spine_y - 44 * s) - 12 * s)
    c.paint(np.maximum(process, np.abs(u + 4 - 0.2 * (c.y - p.spine_y - 40)) - 8), 420.0)
    wings = np.maximum(np.abs(np.abs(c.x) - 30 * s) - 13 * s, np.abs(c.y - p.spine_y - 19 * s) - 3.5)
    c.paint(np.maximum(wings, np.abs(u) - 5), 380.0)
    c.paint(ellipsoid(flat, (0, p.spine_y + 23 * s, 0), (10 * s, 8 * s, 1)), 25.0)  # the canal
    # Ribs run in the wall and fall from the spine to the front; in front there is cartilage, below the margin nothing.
    forward = np.abs(np.abs(t.angle - np.pi / 2) - np.pi * (t.angle < -np.pi / 2) * 2)
    along = np.where(forward > np.pi, 2 * np.pi - forward, forward)
    v = np.mod(c.z + 36 * along + phase, 29) - 14.5
    middle = t.cavity + 5.0
    rib = (np.sqrt((v / 6.2) ** 2 + (middle / 4.0) ** 2) - 1) * 4.5
    margin = 12 - c.z + 55 * (along - 1.1) * (along > 1.1) - 60 * (along < 1.1)
    rib = np.maximum(rib, 0.6 * margin)
    rib = np.where(along < 0.35, 5.0, rib)
    c.paint(rib, np.where(along > 2.2, 110.0, 620.0))
    c.paint(rib + 2.2, np.where(along > 2.2, 100.0, 260.0))


def lungs(c: Canvas, p: Patient, t: Trunk) -> Float:
    """Surface of both lungs."""
    middle = 17 + 15 * np.clip(-c.y / p.half_depth, -0.4, 1)
    dome = np.where(c.x < 0, t.right, t.left)
    return np.asarray(
        np.maximum.reduce([dome - c.z, t.cavity + 1.5, middle - np.abs(c.x), 9 - t.spine]), dtype=np.float32
    )


def paint_chest(c: Canvas, p: Patient, t: Trunk, surface: Float, rng: np.random.Generator) -> list[tuple[Box, Float]]:
    """Lungs with vessels, and the lower part of the heart in its fat; returned as in :func:`paint_organs`."""
    vessels = gaussian(rng.standard_normal(c.shape).astype(np.float32), 0.9)
    bright = np.clip(vessels / vessels.std() - 1.5, 0, 2.0)
    c.paint(surface, -870 + 330 * bright)
    top = p.left_dome
    carve: list[tuple[Box, Float]] = []
    for centre, radii, value in (
        ((14, -36, top + 18), (58, 43, 34), FAT + 15),
        ((16, -35, top + 20), (52, 37, 30), p.muscle + 0.35 * p.aorta),
        ((30, -36, top + 22), (25, 20, 21), 0.9 * p.aorta),
    ):
        box = c.around(centre, 66)
        if box is not None:
            shape = ellipsoid(c.at(box), centre, radii, (0.0, 0.4, -0.5))
            c.paint(np.maximum(shape, t.cavity[box] + 3), value, box)
            carve.append((box, shape))
    return carve


def paint_bowel(c: Canvas, p: Patient, t: Trunk, rng: np.random.Generator) -> None:
    """Loops of bowel in the lower, anterior part: fluid, stool, contrast medium; gas above fluid."""
    for number in range(64):
        colon = number % 4 == 0
        low, high = ((15, 14, 16), (27, 22, 36)) if colon else ((11, 11, 12), (19, 17, 30))
        radii = [float(v) * p.scale for v in rng.uniform(low, high)]
        place = rng.uniform((-0.62, -0.64, -150), (0.68, 0.3, -40))
        if place[0] > 0.1:
            place[2] += 34
        if colon:
            place[0] = np.sign(place[0]) * rng.uniform(0.52, 0.66)
        centre = (place[0] * p.half_width, place[1] * p.half_depth, place[2])
        turn = rng.uniform(-0.9, 0.9, 3)
        content = float(rng.choice([25.0, 45.0, 12.0, 35.0, 190.0]))
        gas = rng.random() < (0.65 if colon else 0.25)
        level = float(rng.uniform(-0.7, 0.3))
        mottle = float(rng.uniform(15, 70)) if colon else 6.0
        draws = np.random.default_rng(rng.integers(2**32))
        box = c.around(centre, max(radii) + 4)
        if box is None:
            continue
        loop = np.maximum(ellipsoid(c.at(box), centre, radii, turn), t.cavity[box] + 2)
        c.paint(loop, 68.0, box)
        c.paint(loop + 2.6, content + mottle * np.clip(c.field(6, draws, box), -1.5, 1), box)
        if gas:  # gas rises to the front: the patient lies on the back
            c.paint(np.maximum(loop + 3, c.y[box] - centre[1] - level * radii[1]), -940.0, box)


def paint_organs(c: Canvas, p: Patient, t: Trunk, rng: np.random.Generator) -> list[tuple[Box, Float]]:
    """Stomach, spleen, pancreas, kidneys, psoas and gall bladder.

    Returns:
        (box, surface) of those the liver has to give way to.
    """
    s = p.scale
    carve: list[tuple[Box, Float]] = []

    def organ(
        centre: Sequence[float], radii: Sequence[float], turn: Sequence[float], bumps: float, length: float
    ) -> tuple[Box, Float] | None:
        draws = np.random.default_rng(rng.integers(2**32))
        box = c.around(centre, max(radii) + 3 * bumps + 3)
        if box is None:
            return None
        shape = ellipsoid(c.at(box), centre, radii, turn) + bumps * c.field(length, draws, box)
        return box, np.asarray(np.maximum(shape, t.cavity[box] + 3), np.float32)

    u = [float(v) for v in rng.uniform(0, 1, 10)]
    # Stomach: wall, food, gas above it.
    centre = (58 * s, -34 * s, p.left_dome - 34 - 16 * u[0])
    found = organ(centre, (46 * s, (25 + 9 * u[1]) * s, 42), (0.3, 0.4, -0.4), 2.5, 18)
    if found:
        box, shape = found
        shape = np.maximum(shape, c.z[box] - t.left[box] + 4)
        c.paint(shape, 75.0, box)
        c.paint(shape + 4.5, 12 + 30 * u[2] + (2 + 14 * u[3]) * c.field(7, rng, box), box)
        c.paint(np.maximum(shape + 5, c.y[box] - centre[1] + (2 + 14 * u[4]) * s), -950.0, box)
    # Spleen, behind and to the left.
    found = organ((98 * s, 36 * s, p.left_dome - 46 - 16 * u[5]), (27 * s, 45 * s, 48), (0.25, 0.2, 0.5), 2.2, 24)
    if found:
        box, shape = found
        c.paint(np.maximum(shape, c.z[box] - t.left[box] + 4), p.spleen + 3 * c.field(9, rng, box), box)
    # Pancreas: a slanting, lobulated band before the great vessels.
    for x, z in ((-24, -36), (2, -29), (28, -20), (54, -8)):
        found = organ((x * s, (4 + 0.2 * x) * s, z), (21 * s, 10 * s, 12), (0, -0.3, 0.25), 2.5, 7)
        if found:
            c.paint(found[1], 0.6 * p.liver + 22, found[0])
    for side in (-1, 1):
        centre = (side * (60 + 7 * u[6]) * s, 42 * s, -42 - 22 * (side < 0) + 14 * (u[7] - 0.5))
        found = organ(centre, (26 * s, 25 * s, 52), (0.15, side * 0.25, side * 0.5), 1.6, 22)
        if found:
            box, shape = found
            c.paint(shape - 5, FAT, box)
            c.paint(shape, p.cortex, box)
            c.paint(np.maximum(shape + 7, 5 * (0.1 - c.field(10, rng, box))), p.medulla, box)
            hilum = (centre[0] - side * 15 * s, centre[1] - 5 * s, centre[2])
            c.paint(ellipsoid(c.at(box), hilum, (14 * s, 8 * s, 20)), FAT + 25, box)
            carve.append((box, shape - 4))
        flat = (c.x, c.y, np.zeros_like(c.z))
        size = np.clip((10 - c.z) / 90, 0.0, 1.0) * 18 * s  # psoas thickens downwards
        psoas = np.hypot(c.x - side * 36 * s, c.y - p.spine_y - 4) - size
        c.paint(np.where(size > 2, psoas, 9.0), p.muscle + 4.0)
        crus = ellipsoid(flat, (side * 17 * s, p.spine_y - 14 * s, 0), (7 * s, 13 * s, 1), (0, 0, side * 0.5))
        c.paint(np.maximum(crus, -c.z - 30), p.muscle)
    # Gall bladder, in its fossa under the liver.
    found = organ((-40 * s, -40 * s, -36 + 16 * (u[8] - 0.5)), (13, 17, 28), (0.5, 0.3, 0.2), 0.8, 16)
    if found and u[9] < 0.85:
        c.paint(found[1], 60.0, found[0])
        c.paint(found[1] + 1.8, 9.0, found[0])
        carve.append((found[0], found[1] - 1))
    return carve


def paint_great_vessels(c: Canvas, p: Patient, rng: np.random.Generator) -> list[tuple[Box, Float]]:
    """Aorta with the coeliac and mesenteric trunks, inferior vena cava, portal and splenic vein; returned as in
    :func:`paint_organs`."""
    s = p.scale
    blood = p.liver + p.vein
    cava = 0.8 * blood + 0.1 * p.aorta
    front = p.spine_y - 30 * s
    calcified = rng.random() < 0.4
    carve: list[tuple[Box, Float]] = []
    flat = (c.x, c.y, np.zeros_like(c.z))
    aorta = ellipsoid(flat, (9 * s, front, 0), (10.5 * s, 10.5 * s, 1))
    c.paint(aorta - 1.5, p.muscle)
    c.paint(aorta, p.aorta)
    if calcified:
        c.paint(np.maximum(np.abs(aorta) - 0.8, 7 * (1.5 - c.field(12, rng))), 700.0)
    shift = 8 * np.clip(c.z / 60, 0, 1)  # the cava moves forward behind the liver
    ivc = np.hypot((c.x + 24 * s) / 1.25, c.y - front - 2 + shift) - 9 * s
    c.paint(ivc, cava)
    # Behind the cava and beside the spine there is no liver.
    behind = smooth_union(ivc, ellipsoid(flat, (-6 * s, p.spine_y - 12 * s, 0), (30 * s, 24 * s, 1)), 8)
    carve.append((c.everywhere, np.asarray(behind - 0.5, np.float32)))
    tubes = (
        ((9 * s, front, 2), (9 * s, front - 30 * s, -2), 3.5, p.aorta),
        ((9 * s, front, -16), (4 * s, front - 34 * s, -80), 3.8, p.aorta),
        ((-4 * s, front - 30 * s, -80), (-8 * s, -4 * s, -34), 5.0, blood),
        ((-8 * s, -4 * s, -34), (84 * s, 30 * s, p.left_dome - 56), 4.2, blood),
        ((-8 * s, -4 * s, -34), (-34 * s, -6 * s, 6), 6.5, blood),
    )
    for start, end, radius, value in tubes:
        middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        box = c.around(middle, float(np.hypot.reduce(np.subtract(end, start))) / 2 + radius + 3)
        if box is not None:
            c.paint(capsule(c.at(box), start, end, radius * s), value, box)
    return carve


def liver_surface(c: Canvas, p: Patient, t: Trunk, lung: Float, rng: np.random.Generator) -> Float:
    """Right and left lobe under the diaphragm, hollowed below, with the fissure; neighbours not yet carved out."""
    s = p.scale
    u = [float(v) for v in rng.uniform(0, 1, 12)]
    at = (c.x, c.y, c.z)
    tilt = rng.uniform(-0.15, 0.15, 3)
    right = ellipsoid(at, (-66 * s, 2 * s, -14 + 16 * u[0]), ((62 + 8 * u[1]) * s, 82 * s, 80 + 18 * u[2]), tilt)
    left = ellipsoid(
        at,
        ((8 + 22 * u[3]) * s, -48 * s, p.right_dome - 42 - 12 * u[4]),
        ((60 + 30 * u[5]) * s, 36 * s, 28 + 12 * u[6]),
        (0.2, 0.1 + 0.3 * u[7], -0.1 + 0.3 * u[8]),
    )
    hollow = ellipsoid(at, (38 * s, 26 * s, -56), (76 * s, 72 * s, 68 + 16 * u[9]), (0, -0.35, 0.2))
    bed = ellipsoid(at, (-50 * s, 46 * s, -66), (42 * s, 34 * s, 58), (0.15, -0.3, -0.4))  # of the right kidney
    fissure = ellipsoid(at, (6 * s, -66 * s, -6), (4.0, 32 * s, 42), (0.1, 0.1, -0.3 + 0.4 * u[10]))
    shape = smooth_union(right, left, 16)
    shape = -smooth_union(-shape, smooth_union(hollow, bed, 12), 10)
    shape = np.maximum(shape, -fissure)
    shape += 2.4 * c.field(26, rng) + 0.7 * c.field(11, rng)
    return np.asarray(
        np.maximum.reduce([shape, c.z - np.maximum(t.right, t.left) + 4, t.cavity + 3, 3 - lung, 7 - t.spine]),
        dtype=np.float32,
    )


def vessel_tree(p: Patient, rng: np.random.Generator) -> list[tuple[Float, Float, float]]:
    """Portal vein and hepatic veins inside the liver as tubes: (start, end, radius)."""
    s = p.scale
    tubes: list[tuple[Float, Float, float]] = []

    def grow(start: Float, heading: Float, length: float, radius: float, generation: int) -> None:
        heading = heading / np.linalg.norm(heading)
        bend = heading + 0.25 * rng.standard_normal(3).astype(np.float32)
        end = start + length * bend / np.linalg.norm(bend)
        tubes.append((start, end, radius))
        if generation == 0:
            return
        spread = rng.standard_normal(3).astype(np.float32)
        spread -= heading * float(spread @ heading)
        spread /= np.linalg.norm(spread)
        for sign, share in ((1, rng.uniform(0.75, 0.9)), (-1, rng.uniform(0.55, 0.75))):
            grow(end, heading + sign * rng.uniform(0.45, 0.8) * spread, length * 0.78, radius * share, generation - 1)

    def point(*values: float) -> Float:
        return np.asarray(values, np.float32)

    hilum = point(-34 * s, -6 * s, 6)
    grow(hilum, point(-1, 0.15, 0.1), 34 * s, 5.2 * s, 4)
    grow(hilum, point(0.6, -1, 0.5), 30 * s, 4.4 * s, 3)
    crown = point(-26 * s, 6 * s, p.right_dome - 24)
    for heading in ((-1, 0.3, -0.3), (-0.5, -0.8, -0.3), (0.6, -1, 0.0)):
        grow(crown, point(*heading), 36 * s, 4.2 * s, 3)
    return tubes


def table_surface(c: Canvas, p: Patient) -> Float:
    """The curved plate the patient lies on."""
    sag = p.half_depth + 7 - 0.0011 * c.x**2
    return np.asarray(np.maximum(np.abs(c.y - sag) - 2.2, np.abs(c.x) - 190), np.float32)
