"""A model of one's own, or a graph somebody else exported, to a verified bundle for images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.normalization import normalization_table
from offline_infer.bundles.bundle import Bundle
from offline_infer.errors import UsageError
from offline_infer.events import Sink, silent
from offline_infer.exporting.named_outputs import GraphJob, export_named
from offline_infer.files import sha256_file
from offline_infer.spec import FoldSource, Pixels, Source
from offline_infer.tasks.image.spec import Activation, ImageSpec, MaskOutput, ScoreOutput

FloatArray = npt.NDArray[np.float32]

SEED = 0
_MARGIN = 1e-3  # a pixel may flip only where the probability is this close to one half


@dataclass(frozen=True)
class OwnModel:
    """A model of one's own.

    Attributes:
        code: Python file with the class, or a folder with ``mymodel.py``.
        checkpoint: any trainer's file with its weights.
        name: of the class, where the file holds several.
        arguments: of its constructor, as text.
        height, width: of the network's input; -1 for a network that takes any size.
        geometry, pixels, multiple_of: see :class:`ImageSpec`.
        activation: what makes probabilities of its outputs.
    """

    code: Path
    checkpoint: Path
    name: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    height: int = 512
    width: int = 512
    geometry: Literal["resize", "pad"] = "resize"
    pixels: Pixels = field(default_factory=Pixels)
    multiple_of: int = 1
    activation: Activation = "none"


def export_own_model(
    model: OwnModel,
    output: Path,
    *,
    opset: int = 17,
    verify: bool = True,
    overwrite: bool = False,
    sink: Sink = silent,
) -> Bundle:
    """Export a model of one's own to a verified bundle. Its Python file is executed; its checkpoint is not.

    Raises:
        UsageError: no such model, or wrong options.
        CheckpointError: the weights do not fit.
        ExportError: the graph could not be made, or does not give the model's answer.
    """
    from offline_infer.exporting.constructor_options import constructor_arguments
    from offline_infer.exporting.own_models import (
        build,
        inference_network,
        load_checkpoint,
        load_model_class,
        output_names,
    )
    from offline_infer.exporting.torch_export import import_torch

    torch = import_torch()
    cls = load_model_class(model.code, model.name)
    network = build(cls, constructor_arguments(cls, model.arguments))
    load_checkpoint(network, model.checkpoint)
    wrapped = inference_network(network)
    probes = probe_images(model)
    names = output_names(wrapped, torch.from_numpy(next(iter(probes.values()))))
    spec = ImageSpec(
        source=Source(
            framework="torch",
            framework_version=str(torch.__version__),
            trainer="own",
            plans_name="none",
            dataset="none",
            configuration=model.geometry,
            network=cls.__name__,
            folds=(FoldSource(fold="0", checkpoint=model.checkpoint.name, sha256=sha256_file(model.checkpoint)),),
        ),
        height=model.height,
        width=model.width,
        geometry=model.geometry,
        multiple_of=model.multiple_of,
        pixels=model.pixels,
        mask=MaskOutput(name="mask", activation=model.activation) if "mask" in names else None,
        score=ScoreOutput(name="score", activation=model.activation) if "score" in names else None,
    )
    job = GraphJob(output, opset, verify, overwrite, free_axes=model.height < 0)
    return export_named(spec, wrapped, names, probes, job, lambda a, b: judge_outputs(a, b, spec), sink)


def probe_images(model: OwnModel) -> dict[str, FloatArray]:
    """Inputs (1, c, y, x) on which an export is compared: a drawn photograph, and noise."""
    size = (model.height, model.width) if model.height > 0 else _example_size(model.multiple_of)
    probes = drawn_inputs(size, model.pixels)
    if model.height < 0:  # another size shows a size that was taken for a constant
        larger = (size[0] + model.multiple_of, size[1] + 2 * model.multiple_of)
        probes["larger"] = drawn_inputs(larger, model.pixels)["photograph"]
    return probes


def drawn_inputs(size: tuple[int, int], pixels: Pixels) -> dict[str, FloatArray]:
    """Normalised inputs of a size: shapes on a gradient with sensor noise, and pure noise. Always the same."""
    rng = np.random.default_rng(SEED)
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / height, x / width
    picture = np.stack([80 + 100 * x, 60 + 90 * y, 120 - 60 * x * y], axis=2)
    for centre_y, centre_x, radius, colour in ((0.3, 0.3, 0.2, 40), (0.65, 0.6, 0.25, 220), (0.8, 0.2, 0.1, 130)):
        picture[(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] = colour
    photograph = np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
    noise = rng.integers(0, 256, picture.shape, dtype=np.uint8)
    table = normalization_table(pixels)
    return {
        name: np.stack([table[c][image[:, :, c]] for c in range(pixels.channels)])[None]
        for name, image in (("photograph", photograph), ("noise", noise))
    }


def judge_outputs(
    reference: Mapping[str, npt.NDArray[Any]], answer: Mapping[str, npt.NDArray[Any]], spec: ImageSpec
) -> tuple[dict[str, Any], str | None]:
    """How an answer differs from the reference, and why it is refused, if it is.

    Compared as probabilities: the largest difference of masks and scores, and the pixels that change sides of one half
    with how far they were from it.
    """
    from offline_infer.tasks.image.collecting import mask_probabilities, score_probability

    figures: dict[str, Any] = {}
    if spec.mask is not None:
        left, right = mask_probabilities(reference, spec.mask), mask_probabilities(answer, spec.mask)
        if left.shape != right.shape:
            return figures, f"the mask has shape {right.shape}, the network's {left.shape}"
        flipped = (left > 0.5) != (right > 0.5)
        margin = float(np.abs(left - 0.5)[flipped].max(initial=0))
        figures |= {
            "voxels": int(left.size),
            "flips": int(flipped.sum()),
            "flip_margin": margin if flipped.any() else None,
            "max_diff": float(np.abs(left - right).max()),
        }
        if figures["max_diff"] > _MARGIN or margin > _MARGIN:
            return figures, f"masks differ by up to {figures['max_diff']:.3g}, and {figures['flips']} pixels flip"
    if spec.score is not None:
        gap = abs(score_probability(reference, spec.score) - score_probability(answer, spec.score))
        figures["score_diff"] = gap
        if gap > _MARGIN:
            return figures, f"scores differ by {gap:.3g}"
    return figures, None


def _example_size(multiple: int) -> tuple[int, int]:
    edge = -(-128 // multiple) * multiple
    return edge, edge


def parse_size(text: str) -> tuple[int, int]:
    """``512``, ``384x512`` (height x width) or ``any`` -> (height, width).

    Raises:
        UsageError: none of these.
    """
    if text == "any":
        return -1, -1
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= 1 << 14 for part in parts):
        raise UsageError(f"size {text!r}: expected a number of pixels, height x width such as 384x512, or any")
    return int(parts[0]), int(parts[-1])
