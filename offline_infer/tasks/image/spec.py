"""What a bundle says about an image model, beside what every bundle says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from offline_infer.spec import BundleSpec, Count, Extent, Pixels, Record

Activation = Literal["none", "sigmoid", "softmax"]
"""What turns an output into probabilities; ``none``: the graph gives probabilities itself."""


class MaskOutput(Record):
    """The output that holds the mask: (1, k, y, x) or (1, y, x) at the network's size, or a fraction of it.

    ``channel``: which of the k channels is the mask.
    """

    name: str
    activation: Activation = "none"
    channel: Annotated[int, Field(ge=0)] = 0


class ScoreOutput(Record):
    """The output that holds the image's score: (1,) or (1, k). ``channel``: which of the k values."""

    name: str
    activation: Activation = "none"
    channel: Annotated[int, Field(ge=0)] = 0


class ImageSpec(BundleSpec):
    """Everything a run of an image model needs to know.

    ``height``, ``width``: of the network's input in pixels; -1 where the graph takes any size, which is then the
    image's own, padded to a multiple of ``multiple_of``.
    ``geometry``: ``resize`` stretches every image to that size; ``pad`` puts it at the top left, unscaled, and fills the
    rest with zeros before normalising.
    ``mask``, ``score``: which outputs hold them; a model has one of them at least.
    """

    task: Literal["image"] = "image"
    height: Extent
    width: Extent
    geometry: Literal["resize", "pad"] = "resize"
    multiple_of: Count = 1
    pixels: Pixels = Pixels()
    mask: MaskOutput | None = None
    score: ScoreOutput | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ImageSpec:
        if self.mask is None and self.score is None:
            raise ValueError("the model has neither a mask nor a score")
        if 0 in (self.height, self.width) or (self.height < 0) != (self.width < 0):
            raise ValueError("height and width must both be positive, or both -1 for a graph that takes any size")
        if self.height < 0 and self.geometry != "pad":
            raise ValueError("resizing needs a height and a width; a graph that takes any size pads")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the graph's input, (1, c, y, x)."""
        return (1, self.pixels.channels, self.height, self.width)

    def facts(self) -> dict[str, str]:
        """What a person may want to know beside source and graphs: heading -> one line."""
        size = "any size" if self.height < 0 else f"{self.width} x {self.height}"
        told = {
            "geometry": f"{self.geometry} to {size}" if self.height > 0 else f"{size}, multiples of {self.multiple_of}",
            "pixels": f"{self.pixels.order}, (value / {self.pixels.scale:g} - {self.pixels.mean}) / {self.pixels.std}",
        }
        for heading, output in (("mask", self.mask), ("score", self.score)):
            if output is not None:
                told[heading] = f"output {output.name}, channel {output.channel}, activation {output.activation}"
        return told

    def contradictions(self) -> list[str]:
        """Fields that are legal one by one but do not fit each other, each as ``field: what is wrong``."""
        kept = self.kept_outputs
        wanted = [(field, output.name) for field, output in (("mask", self.mask), ("score", self.score)) if output]
        return [
            f"{field}: {name!r} is not among the outputs {', '.join(kept)}"
            for field, name in wanted
            if name not in kept
        ]
