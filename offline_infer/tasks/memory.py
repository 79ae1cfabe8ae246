"""What a case will take of the memory, before it is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the three heights of a case, above the program with its engine opened.

    Attributes:
        prepare: while the image is read, resampled and normalised.
        prepared: what stays of that until the case is finished.
        infer: during inference, ``prepared`` included, the engine's own memory excluded.
        finish: while the label map (and the probabilities) are put together and written, ``prepared`` included.
        engine: estimate of the engine's own working memory: weights, activations, output.
        slab: part of ``infer`` that can be moved to a spill file: the sums of the active slab.
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
    def least(self) -> int:
        """Peak of one case by the most frugal method: by itself, with the sums of the active slab in a spill file."""
        return max(self.prepare, self.infer - self.slab + self.engine, self.finish + self.engine)

    @property
    def behind(self) -> int:
        """What finishing takes beside the next case: the last slab, until it is decided, and the label map."""
        return self.finish - self.prepared + self.slab

    def beside(self, following: MemoryEstimate | None, previous: MemoryEstimate | None = None) -> int:
        """Peak while the next case is prepared and the previous one finished at the same time."""
        ahead = following.prepare if following is not None else 0
        before = previous.behind if previous is not None else 0
        return max(self.prepare + before, max(self.infer, self.finish) + self.engine + ahead + before)

    def after(self, before: MemoryEstimate) -> MemoryEstimate:
        """This case where an earlier stage runs on the image while it is prepared."""
        return replace(self, prepare=max(self.prepare, before.alone + self.parts.get("image", 0)))

    def to_json(self) -> dict[str, Any]:
        return {
            "prepare": self.prepare,
            "infer": self.infer,
            "finish": self.finish,
            "peak_without_engine": self.alone_without_engine,
            "engine_estimate": self.engine,
            "parts": self.parts,
        }
