"""What a figure means: the conventions that published tables differ in, under the names they are quoted by."""

from __future__ import annotations

from dataclasses import dataclass

from offline_infer.errors import UsageError


@dataclass(frozen=True)
class Protocol:
    """Conventions of an evaluation.

    Attributes:
        name: printed beside every number.
        border: (erode, dilate) kernel sizes of the border left out around a region, or None.
        modes: of ``origin``, ``reverse`` and ``double``, the one a table quotes.
        description: one sentence for readers of the summary.
    """

    name: str
    border: tuple[int, int] | None
    mode: str
    description: str


PROTOCOLS = {
    "benco": Protocol(
        "benco",
        None,
        "origin",
        "IMDL-BenCo: every pixel counts, threshold 0.5, mean over the images with a manipulated pixel",
    ),
    "trufor": Protocol(
        "trufor",
        (15, 11),
        "double",
        "TruFor: a border around each region is left out (eroded by 15, dilated by 11 pixels), the larger of the score "
        "and that of the inverted mask, at threshold 0.5 and at each image's best, mean over the images with a "
        "manipulated pixel",
    ),
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UsageError: there is none; the message lists the legal names.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol {name!r}; legal: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
