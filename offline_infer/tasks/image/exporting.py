"""``export`` for a model of one's own: options as text become an :class:`OwnModel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from offline_infer.bundles.bundle import Bundle
from offline_infer.checkpoints.digests import checked_sha256
from offline_infer.errors import UsageError
from offline_infer.events import Sink, silent
from offline_infer.exporting.torch_export import require_packages
from offline_infer.spec import Pixels
from offline_infer.tasks.extensions import ExportRequest
from offline_infer.tasks.image.adopting import pixels_of
from offline_infer.tasks.image.own_model import OwnModel, export_own_model, parse_size


def export(request: ExportRequest, sink: Sink = silent) -> Bundle:
    """Export a model of one's own; its Python file is executed, its checkpoint is not.

    Raises:
        UsageError: the weights are not named, or an option is wrong.
        CheckpointError: the weights do not fit, or are not the expected ones.
        ExportError: the graph could not be made, or does not give the model's answer.
    """
    require_packages()
    options = request.options
    weights = Path(options.get("weights", ""))
    if not options.get("weights"):
        raise UsageError(f"{request.model}: a model of one's own needs its trained weights, --weights FILE")
    if not weights.exists():
        raise UsageError(f"{weights}: no such file or folder")
    checked_sha256(weights, request.expect_sha256)
    height, width = parse_size(options.get("size", "512"))
    model = OwnModel(
        code=request.model,
        checkpoint=weights,
        name=options.get("model"),
        arguments=request.arguments,
        height=height,
        width=width,
        geometry="pad" if height < 0 or options.get("geometry") == "pad" else "resize",
        pixels=_pixels(options),
        multiple_of=_multiple(options.get("multiple_of", "1")),
        activation=options.get("activation", "none"),  # type: ignore[arg-type]
    )
    how = request.how
    return export_own_model(
        model, request.output, opset=how.opset, verify=how.verify, overwrite=how.overwrite, sink=sink
    )


def _pixels(options: Mapping[str, str]) -> Pixels:
    names = ("pixel_mean", "pixel_std", "pixel_scale", "order", "sixteen_bit", "exif")
    return pixels_of({name.removeprefix("pixel_"): options[name] for name in names if name in options})


def _multiple(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1 << 14:
        raise UsageError(f"multiple_of {text!r}: expected a whole number from 1 to {1 << 14}")
    return int(text)
