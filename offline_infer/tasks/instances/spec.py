"""What a bundle says about a detector with masks, beside what every bundle says.

Whatever the model was, its graph has three outputs of fixed shape: ``dets (K, 5)`` with x0, y0, x1, y1 in pixels of the
graph's input and the score, ``labels (K)`` from 0, and ``masks (K, m, m)``. Rows with a score of 0 hold nothing.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from offline_infer.spec import BundleSpec, Count, Pixels, Positive, Record

DETS, LABELS, MASKS = "dets", "labels", "masks"
"""Names of the three outputs."""

Probability = Annotated[float, Field(ge=0, le=1)]


class Scaling(Record):
    """How an image's size becomes that of the network's input.

    ``long_side``, ``short_side``: the image is scaled, keeping its aspect ratio, to the largest size at which its longer
    side is at most the first and its shorter side at most the second; None leaves it as it is.
    ``inside``: instead of both, a (height, width) that the scaled image must not exceed, however it lies.
    ``enlarge``: whether small images are scaled up.
    ``rounding``: of the scaled sides, ``nearest`` (halves up) or ``floor``.
    """

    long_side: Count | None = None
    short_side: Count | None = None
    inside: tuple[Count, Count] | None = None
    enlarge: bool = True
    rounding: Literal["nearest", "floor"] = "nearest"

    @model_validator(mode="after")
    def _both_or_neither(self) -> Scaling:
        if (self.long_side is None) != (self.short_side is None):
            raise ValueError("long_side and short_side must both be given, or neither")
        if self.inside is not None and self.long_side is not None:
            raise ValueError("give long_side and short_side, or inside, not both")
        return self


class Padding(Record):
    """What surrounds the scaled image in the network's input.

    ``divisor``: the sides are filled up to a multiple of it. ``canvas``: the fixed (height, width) of a graph that takes
    no other; then ``divisor`` does not matter.
    ``place``: the image lies at the top-left ``corner`` or in the ``centre``.
    ``value``: of the padding, after normalisation.
    ``validity_channel``: a further channel tells the network where the image is (1) and where it is not (0).
    """

    divisor: Count = 1
    canvas: tuple[Count, Count] | None = None
    place: Literal["corner", "centre"] = "corner"
    value: float = 0.0
    validity_channel: bool = False


class MaskRule(Record):
    """How an object's mask is read.

    ``activation``: what turns the graph's values into probabilities.
    ``frame``: a mask covers its object's ``box``, or the network's whole ``input``.
    ``paste``: how a mask is stretched over its box. ``continuous``: bilinear, box corners as they are, zero outside.
    ``integer_box``: as torchvision does, over the box rounded to whole pixels.
    ``cut``: a mask over the input is cut to the pixels its box touches (``touched``), or to those whose coordinates lie in the
    box (``within``), as Ultralytics does.
    ``empty``: objects whose mask holds no pixel are ``kept`` or ``dropped``.
    ``threshold``: a pixel belongs to the object where its probability is at least this (``above``: strictly above).
    """

    activation: Literal["none", "sigmoid"] = "sigmoid"
    frame: Literal["box", "input"] = "box"
    paste: Literal["continuous", "integer_box"] = "continuous"
    cut: Literal["touched", "within"] = "touched"
    empty: Literal["kept", "dropped"] = "kept"
    threshold: Probability = 0.5
    above: bool = False


class InstancesSpec(BundleSpec):
    """Everything a run of a detector needs to know.

    ``classes``: names in the order of the labels.
    ``limit``: K, the rows of the outputs. ``mask_size``: m; -1 for masks as large as the input.
    ``score_floor``: the graph itself leaves out detections at or below this.
    """

    control_flow: ClassVar[frozenset[str]] = frozenset({"If"})
    """Torchvision's graphs branch on whether anything was found."""
    task: Literal["instances"] = "instances"
    pixels: Pixels
    scaling: Scaling = Scaling()
    padding: Padding = Padding()
    mask: MaskRule = MaskRule()
    classes: tuple[str, ...] = Field(min_length=1)
    limit: Count
    mask_size: Annotated[int, Field(ge=-1)]
    score_floor: Probability = 0.05
    scale_limit: Positive = 64.0
    """Largest enlargement of an image; more is taken for a mistake."""

    @model_validator(mode="after")
    def _consistent(self) -> InstancesSpec:
        if (self.mask_size == -1) != (self.mask.frame == "input") or self.mask_size == 0:
            raise ValueError("mask_size is the side of masks that cover boxes, and -1 for masks that cover the input")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        return self

    @property
    def input_channels(self) -> int:
        """Channels of the graph's input."""
        return self.pixels.channels + (1 if self.padding.validity_channel else 0)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the graph's input, (1, c, y, x)."""
        return (1, self.input_channels, *(self.padding.canvas or (-1, -1)))
