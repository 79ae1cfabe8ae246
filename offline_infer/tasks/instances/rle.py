"""Binary masks as runs, in the form of the COCO data set: columns first, zeros first.

A mask of an object in a photograph of twelve megapixels takes kilobytes this way, so every mask of an image can be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import UsageError

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
MAX_PIXELS = 1 << 31


@dataclass(frozen=True, eq=False)
class Runs:
    """A mask.

    Attributes:
        height, width: of the image.
        starts, ends: half-open runs of ones as positions in column order (x * height + y), ascending and apart.
    """

    height: int
    width: int
    starts: Counts
    ends: Counts

    @property
    def area(self) -> int:
        """Number of pixels in the mask."""
        return int((self.ends - self.starts).sum())

    def box(self) -> tuple[int, int, int, int]:
        """Smallest box (x0, y0, x1, y1), half open, that holds the mask; zeros for an empty one."""
        if not len(self.starts):
            return (0, 0, 0, 0)
        first, last = self.starts, self.ends - 1
        columns = (int(first[0] // self.height), int(last[-1] // self.height) + 1)
        if (first // self.height != last // self.height).any():  # a run goes on in the next column
            return (columns[0], 0, columns[1], self.height)
        return (columns[0], int((first % self.height).min()), columns[1], int((last % self.height).max()) + 1)

    def crop(self) -> tuple[Mask, int, int]:
        """The mask inside its box (y, x) bool, and the box's top and left."""
        x0, y0, x1, y1 = self.box()
        return self._window(x0, x1)[y0:y1], y0, x0

    def mask(self) -> Mask:
        """The whole mask (height, width)."""
        return self._window(0, self.width)

    def _window(self, x0: int, x1: int) -> Mask:
        steps = np.zeros((x1 - x0) * self.height + 1, np.int8)
        steps[self.starts - x0 * self.height] = 1
        steps[self.ends - x0 * self.height] -= 1
        filled = np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
        return filled.reshape(x1 - x0, self.height).T

    def shared(self, other: Runs) -> int:
        """Pixels both masks have."""
        if self.ends.size == 0 or other.ends.size == 0:
            return 0
        # Ones of the other mask before a position: a step function of its runs.
        return int((other.before(self.ends) - other.before(self.starts)).sum())

    def before(self, positions: Counts) -> Counts:
        """Pixels of the mask before each position."""
        lengths = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        index = np.searchsorted(self.starts, positions, side="right")
        whole: Counts = lengths[index]
        beyond = np.where(index > 0, np.maximum(self.ends[np.maximum(index, 1) - 1] - positions, 0), 0)
        return np.asarray(whole - beyond, np.int64)

    def to_coco(self) -> dict[str, Any]:
        """COCO's compressed form: ``size`` and ``counts`` as text."""
        edges = np.stack([self.starts, self.ends], axis=1).ravel()
        counts = np.diff(np.concatenate([[0], edges, [self.height * self.width]]))
        if counts[-1] == 0 and len(counts) > 1:
            counts = counts[:-1]
        return {"size": [self.height, self.width], "counts": compress(counts)}


def runs_of_crop(crop: Mask, top: int, left: int, height: int, width: int) -> Runs:
    """Runs of a mask that is false outside a window (y, x) whose top-left pixel is given."""
    rows, columns = crop.shape
    edged = np.zeros((columns, rows + 2), np.int8)
    edged[:, 1:-1] = crop.T
    steps = np.diff(edged, axis=1)
    column, row = np.nonzero(steps == 1)
    starts = (column + left) * height + top + row
    column, row = np.nonzero(steps == -1)
    ends = (column + left) * height + top + row
    return _joined(starts.astype(np.int64), ends.astype(np.int64), height, width)


def runs_of_mask(mask: Mask) -> Runs:
    """Runs of a whole mask (y, x)."""
    return runs_of_crop(mask, 0, 0, *mask.shape)


def check_size(height: int, width: int) -> None:
    """Refuse an image's size that no mask is kept for.

    Raises:
        UsageError: no pixels, or too many.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        shown = " x ".join(
            str(side) if abs(side) < 10**12 else f"about 10^{len(str(abs(side))) - 1}" for side in (width, height)
        )
        raise UsageError(f"an image of {shown} pixels; expected from 1 to {MAX_PIXELS:,}")


def runs_of_counts(counts: Counts, height: int, width: int) -> Runs:
    """Runs of COCO's list of counts: zeros, ones, zeros, ...

    Raises:
        UsageError: they do not add up to the image.
    """
    check_size(height, width)
    pixels = height * width
    # A count beyond the image would let the sum wrap around, and come out right.
    if counts.ndim != 1 or (counts < 0).any() or (counts > pixels).any() or int(counts.sum()) != pixels:
        raise UsageError(f"a run-length mask does not add up to {width} x {height} pixels; the file is damaged")
    edges = np.cumsum(counts)
    if len(edges) % 2:
        edges = edges[:-1]
    starts, ends = edges[0::2], edges[1::2]
    real = ends > starts
    return _joined(starts[real], ends[real], height, width)


def runs_of_coco(record: Any) -> Runs:
    """Read COCO's run-length form, compressed or as a list.

    Raises:
        UsageError: damaged.
    """
    try:
        height, width = (int(side) for side in record["size"])
        counts = record["counts"]
        if isinstance(counts, str):
            return runs_of_counts(expand(counts), height, width)
        return runs_of_counts(np.asarray(counts, np.int64), height, width)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"a run-length mask is damaged: {error!r}") from error


def compress(counts: Counts) -> str:
    """COCO's text for a list of counts: differences to the count two before, five bits a character."""
    values = np.array(counts, np.int64)
    values[3:] -= np.asarray(counts, np.int64)[1:-2]
    rows, open_rows = [], np.ones(len(values), bool)
    while open_rows.any():
        bits = values & 0x1F
        values = values >> 5
        more = np.where(bits & 0x10, values != -1, values != 0)
        rows.append(np.where(open_rows, bits + np.where(more, 0x20, 0) + 48, 0))
        open_rows &= more
    letters = np.stack(rows, axis=1).ravel() if rows else np.zeros(0, np.int64)
    return letters[letters > 0].astype(np.uint8).tobytes().decode("ascii")


def expand(text: str) -> Counts:
    """The counts of COCO's text.

    Raises:
        ValueError: the text is not of that form.
    """
    letters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if letters.size and (letters.min() < 0 or letters.max() > 63 or letters[-1] & 0x20):
        raise ValueError("not the text of a run-length mask")
    last = np.flatnonzero((letters & 0x20) == 0)
    first = np.concatenate([[0], last[:-1] + 1]) if last.size else last
    lengths = last - first + 1
    if lengths.size and lengths.max() > 7:
        raise ValueError("a count is too large")
    place = np.arange(letters.size) - np.repeat(first, lengths)
    parts = (letters & 0x1F) << (5 * place)
    values = np.add.reduceat(parts, first) if first.size else np.zeros(0, np.int64)
    values -= np.where(letters[last] & 0x10, np.int64(1) << (5 * lengths), 0)
    for parity in (1, 0):  # each count from the third on is a difference to the one two before
        chain = values[2 - parity :: 2] if parity else values[2::2]
        chain[:] = np.cumsum(chain)
    return values


def _joined(starts: Counts, ends: Counts, height: int, width: int) -> Runs:
    """Runs with those that touch made one."""
    if len(starts) > 1:
        apart = starts[1:] != ends[:-1]
        starts = starts[np.concatenate([[True], apart])]
        ends = ends[np.concatenate([apart, [True]])]
    return Runs(height, width, starts, ends)
