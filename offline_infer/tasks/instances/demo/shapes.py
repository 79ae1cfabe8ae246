"""Drawn pictures of overlapping shapes, each from a seed, with the exact mask of every shape.

The demonstration needs pictures that anybody may use and references that are exactly right. Shapes are signed distances
(negative inside), painted from back to front with edges as wide as a pixel; a mask is what stays visible of its shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CLASSES = ("disc", "ring", "box", "triangle", "star")
SIZE = (240, 320)
"""Height and width of a picture, in pixels."""
UNITS = 192.0
"""Length of a picture's shorter side in the units shapes are drawn in: one scene looks alike at every size."""
LEAST_VISIBLE = 0.4
"""Of a shape's own area; one that would hide another further than this is not painted."""

Float = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: (y, x, 3) uint8, RGB.
        masks: (y, x) bool, one per shape: its visible part.
        labels: positions in :data:`CLASSES`.
    """

    image: npt.NDArray[np.uint8]
    masks: tuple[Mask, ...]
    labels: tuple[int, ...]


def draw_scene(seed: int, size: tuple[int, int] = SIZE) -> Scene:
    """The picture of a seed (0 or more); the same seed gives the same pixels."""
    rng = np.random.default_rng([2112, seed])
    pixel = UNITS / min(size)
    y, x = np.meshgrid(*((np.arange(side, dtype=np.float32) + 0.5) * pixel for side in size), indexing="ij")
    canvas = _background(y, x, rng)
    masks: list[Mask] = []
    areas: list[int] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(3, 9))):
        label, distance = _draw_shape(y, x, rng)
        own = distance < 0
        if any((mask & ~own).sum() < LEAST_VISIBLE * area for mask, area in zip(masks, areas, strict=True)):
            continue
        masks = [*(mask & ~own for mask in masks), own]
        areas.append(int(own.sum()))
        labels.append(label)
        _paint(canvas, y, x, distance, pixel, rng)
    canvas += rng.normal(0, rng.uniform(1, 5), canvas.shape).astype(np.float32)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, tuple(masks), tuple(labels))


def _background(y: Float, x: Float, rng: np.random.Generator) -> Float:
    """Two colours that run into each other along a direction, with faint waves."""
    angle, waves = rng.uniform(0, 2 * math.pi), rng.uniform(0.02, 0.09, 2)
    along = (x * math.cos(angle) + y * math.sin(angle)) / (x[0, -1] + x[0, 0])
    wave = 7 * np.sin(x * waves[0] + rng.uniform(0, 6)) * np.sin(y * waves[1] + rng.uniform(0, 6))
    first, second = rng.uniform(20, 235, 3), rng.uniform(20, 235, 3)
    blend = np.clip(along + 0.5 - rng.uniform(0, 0.5), 0, 1)[..., None]
    return np.asarray(first * (1 - blend) + second * blend + wave[..., None], np.float32)


def _draw_shape(y: Float, x: Float, rng: np.random.Generator) -> tuple[int, Float]:
    """A shape of any class, somewhere inside the picture: its label and its signed distance in pixels."""
    label = int(rng.integers(len(CLASSES)))
    radius = float(rng.uniform(0.1, 0.27)) * UNITS
    sides = (y[0, 0] + y[-1, 0], x[0, 0] + x[0, -1])
    centre = [float(rng.uniform(0.6 * radius, side - 0.6 * radius)) for side in sides]
    angle = float(rng.uniform(0, 2 * math.pi))
    dy, dx = y - centre[0], x - centre[1]
    across, down = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    return label, _signed_distance(CLASSES[label], down, across, radius, rng)


def _signed_distance(kind: str, y: Float, x: Float, radius: float, rng: np.random.Generator) -> Float:
    """In a frame that is centred on the shape and turned with it."""
    middle = np.hypot(y, x)
    if kind == "disc":
        return np.asarray(middle - radius, np.float32)
    if kind == "ring":
        thickness = float(rng.uniform(0.16, 0.24)) * radius
        return np.asarray(np.abs(middle - radius + thickness) - thickness, np.float32)
    if kind == "box":
        aspect = float(rng.uniform(0.5, 1.0))
        return np.asarray(np.maximum(np.abs(x) - radius, np.abs(y) - radius * aspect), np.float32)
    corners = 3 if kind == "triangle" else 5
    inner = 0.5 if kind == "triangle" else float(rng.uniform(0.42, 0.52))
    return _pointed(y, x, 1.15 * radius, corners, inner)


def _pointed(y: Float, x: Float, radius: float, points: int, inner: float) -> Float:
    """A star with that many points; its hollows lie at ``inner`` of its radius.

    All its edges are mirror images of one: the plane is folded into half a point's sector.
    """
    sector = math.pi / points
    angle = np.abs(np.mod(np.arctan2(y, x) + sector, 2 * sector) - sector)
    distance = np.hypot(y, x)
    px, py = distance * np.cos(angle), distance * np.sin(angle)
    hollow = (radius * inner * math.cos(sector), radius * inner * math.sin(sector))
    edge = (hollow[0] - radius, hollow[1])
    length = math.hypot(*edge)
    return np.asarray(((px - radius) * -edge[1] + py * edge[0]) / -length, np.float32)


def _paint(canvas: Float, y: Float, x: Float, distance: Float, pixel: float, rng: np.random.Generator) -> None:
    """In one colour that differs from what lies under it, shaded, perhaps striped, with a soft shadow beside it."""
    inside = distance < 0
    under = canvas[inside].mean(axis=0) if inside.any() else np.zeros(3)
    colours = rng.uniform(0, 255, (12, 3))
    colour = colours[np.argmax(np.abs(colours - under).sum(axis=1) * rng.uniform(0.6, 1, 12))]
    shadow = np.clip(1 - distance / 9, 0, 1) * (distance > 0) * rng.uniform(0, 0.35)
    canvas *= 1 - shadow[..., None]
    shade = 1 + rng.uniform(-0.12, 0.12) * np.clip(distance / 20 + 1, 0, 1)
    if rng.random() < 0.25:
        shade = shade + 0.12 * np.sign(np.sin((x * rng.uniform(-1, 1) + y) * rng.uniform(0.4, 0.9)))
    cover = np.clip(0.5 - distance / pixel, 0, 1)[..., None]
    canvas[:] = canvas * (1 - cover) + np.clip(colour * shade[..., None], 0, 255) * cover
