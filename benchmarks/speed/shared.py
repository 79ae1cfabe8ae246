"""What the scripts on both sides need: the image, the stand-in answers, clocks. NumPy only; runs in either environment."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

REPORT = "SPEED-REPORT "


def synthetic_ct(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A body of smooth tissue in air, (z, y, x) int16 in HU, with 12 HU of noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(max(shape[0] // 16, 2), 24, 24)).astype(np.float32)
    out = np.empty(shape, np.int16)
    _, y, x = np.meshgrid([0], np.linspace(-1, 1, shape[1]), np.linspace(-1, 1, shape[2]), indexing="ij")
    body = (x[0] / 0.85) ** 2 + (y[0] / 0.65) ** 2 < 1
    rows, columns = _linear(24, shape[1]), _linear(24, shape[2])
    along = _linear(len(coarse), shape[0])
    for z in range(shape[0]):
        smooth = rows @ np.tensordot(along[z], coarse, 1) @ columns.T
        plane = np.where(body, 40 + 90 * smooth, -1000) + rng.normal(scale=12, size=shape[1:]).astype(np.float32)
        out[z] = np.clip(plane, -1024, 1500)
    return out


def stand_in_answer(classes: int, patch: tuple[int, int, int], seed: int = 1) -> np.ndarray:
    """Logits (1, k, *patch) with smooth objects: what both sides are given instead of a network's answer, at no cost."""
    rng = np.random.default_rng(seed)
    maps = [_linear(max(size // 12, 2), size) for size in patch]
    out = np.empty((1, classes, *patch), np.float32)
    for k in range(classes):
        values = rng.normal(size=[m.shape[1] for m in maps]).astype(np.float32)
        values = np.einsum("za,abc->zbc", maps[0], values)
        values = np.einsum("yb,zbc->zyc", maps[1], values)
        out[0, k] = 5 * np.einsum("xc,zyc->zyx", maps[2], values)
    out[0, 0] += 5
    return out


def _linear(n_in: int, n_out: int) -> np.ndarray:
    place = np.linspace(0, n_in - 1, n_out)
    low = np.minimum(place.astype(int), n_in - 2)
    matrix = np.zeros((n_out, n_in), np.float32)
    matrix[np.arange(n_out), low] = 1 - (place - low)
    matrix[np.arange(n_out), low + 1] += place - low
    return matrix


def peak_rss() -> int:
    """Bytes; the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rss() -> int:
    """Bytes resident now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


class Stages:
    """Wall and processor seconds per stage, and the peak resident size after it."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self._mark()

    def _mark(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self, name: str, without: float = 0.0) -> None:
        """End a stage; ``without``: seconds in it that do not count."""
        self.rows[name] = {
            "wall_s": round(time.perf_counter() - self._wall - without, 4),
            "cpu_s": round(time.process_time() - self._cpu, 4),
            "peak_rss": peak_rss(),
        }
        self._mark()


def report(result: dict[str, Any]) -> None:
    """The last line of a script: its result for the one that started it."""
    sys.stdout.write(REPORT + json.dumps(result) + "\n")
    sys.stdout.flush()


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
