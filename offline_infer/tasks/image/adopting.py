"""A graph that somebody else exported becomes a bundle: looked at, described, run on every engine, copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from offline_infer import graph as passes
from offline_infer.bundles.bundle import Bundle
from offline_infer.errors import ExportError, UsageError
from offline_infer.events import Sink
from offline_infer.exporting.named_outputs import GraphJob, output_spec, write_adopted
from offline_infer.files import sha256_file
from offline_infer.spec import IMAGENET_MEAN, IMAGENET_STD, FoldSource, Pixels, Source
from offline_infer.tasks.image.adopt_options import ADOPT_OPTIONS
from offline_infer.tasks.image.own_model import drawn_inputs, judge_outputs, parse_size
from offline_infer.tasks.image.spec import ImageSpec, MaskOutput, ScoreOutput


def adopt(graph: Path, output: Path, options: Mapping[str, str], *, overwrite: bool, sink: Sink) -> Bundle:
    """Make a bundle of a foreign graph.

    Args:
        options: by the names of ``ADOPT_OPTIONS``.

    Raises:
        BundleError: the graph is damaged or not admitted.
        UsageError: an option that is wrong or missing.
        ExportError: the engines do not agree, or the answers are no probabilities.
    """
    model = passes.load_model(graph)  # looked at before it is read
    facts = passes.inspect_graph(model)
    if len(facts.inputs) != 1:
        raise UsageError(f"{graph}: has {len(facts.inputs)} inputs; expected one image")
    port = facts.inputs[0]
    pixels = pixels_of(options)
    height, width = _size(port, options, graph)
    shape = (1, pixels.channels, height, width)
    _check_input(port, shape, graph)
    if height > 0:
        model = passes.fix_shapes(model, shape)
    mask, score = _outputs(passes.inspect_graph(model).outputs, options, graph)
    wanted = [output.name for output in (mask, score) if output is not None]
    spec = _spec(graph, options, pixels, (height, width), port.name, mask, score)
    spec = spec.model_copy(
        update={
            "outputs": tuple(
                output_spec(found, keep=found.name in wanted) for found in passes.inspect_graph(model).outputs
            )
        }
    )
    edge = -(-256 // spec.multiple_of) * spec.multiple_of
    probes = drawn_inputs((height, width) if height > 0 else (edge, edge), pixels)
    job = GraphJob(output, facts.opset, overwrite=overwrite)
    return write_adopted(spec, model, probes, job, lambda a, b: judge_outputs(a, b, spec), sink)


def pixels_of(options: Mapping[str, str]) -> Pixels:
    """Normalisation from options.

    Raises:
        UsageError: not numbers, or not one for each channel.
    """
    gray = options.get("order", "rgb") == "gray"
    fields: dict[str, Any] = {
        "mean": _numbers(options, "mean", (0.5,) if gray else IMAGENET_MEAN),
        "std": _numbers(options, "std", (0.5,) if gray else IMAGENET_STD),
        "scale": _numbers(options, "scale", (255.0,))[0],
        **{name: options[name] for name in ("order", "sixteen_bit", "exif") if name in options},
    }
    try:
        return Pixels(**fields)
    except ValidationError as error:
        raise UsageError(f"the normalisation is impossible: {error.errors()[0]['msg']}") from error


def _spec(
    graph: Path,
    options: Mapping[str, str],
    pixels: Pixels,
    size: tuple[int, int],
    input_name: str,
    mask: MaskOutput | None,
    score: ScoreOutput | None,
) -> ImageSpec:
    source = Source(
        framework="onnx",
        trainer="unknown",
        plans_name="none",
        dataset="unknown",
        configuration="adopted",
        network=graph.stem,
        folds=(FoldSource(fold="0", checkpoint=graph.name, sha256=sha256_file(graph)),),
    )
    any_size = size[0] < 0
    try:
        return ImageSpec(
            source=source,
            input_name=input_name,
            height=size[0],
            width=size[1],
            geometry="pad" if any_size else options.get("geometry", "resize"),  # type: ignore[arg-type]
            multiple_of=_whole(options, "multiple_of", 1),
            pixels=pixels,
            mask=mask,
            score=score,
        )
    except ValidationError as error:
        raise UsageError(f"{graph}: {error.errors()[0]['msg']}") from error


def _outputs(
    ports: tuple[passes.Port, ...], options: Mapping[str, str], graph: Path
) -> tuple[MaskOutput | None, ScoreOutput | None]:
    maps = [port.name for port in ports if port.shape is not None and len(port.shape) >= 3]
    values = [port.name for port in ports if port.shape is not None and len(port.shape) < 3]
    mask = _named("mask", options, maps, [port.name for port in ports], graph)
    score = _named("score", options, values, [port.name for port in ports], graph)
    if mask is None and score is None:
        raise UsageError(f"{graph}: neither a mask nor a score is named among its outputs {', '.join(maps + values)}")
    legal = {option.name: option for option in ADOPT_OPTIONS}
    fields: list[dict[str, Any]] = []
    for kind in ("mask", "score"):
        activation = options.get(f"{kind}_activation", "none")
        if activation not in legal[f"{kind}_activation"].choices:
            raise UsageError(f"unknown activation {activation!r}; legal: none, sigmoid, softmax")
        fields.append({"activation": activation, "channel": _whole(options, f"{kind}_channel", 0)})
    return (
        MaskOutput(name=mask, **fields[0]) if mask is not None else None,
        ScoreOutput(name=score, **fields[1]) if score is not None else None,
    )


def _named(kind: str, options: Mapping[str, str], likely: list[str], names: list[str], graph: Path) -> str | None:
    given = options.get(kind, "")
    if given == "none":
        return None
    if given:
        if given not in names:
            raise UsageError(f"{graph}: has no output {given!r}; it has {', '.join(names)}")
        return given
    if len(likely) > 1:
        raise UsageError(f"{graph}: which output is the {kind}? It has {', '.join(likely)}; name it, or none")
    return likely[0] if likely else None


def _size(port: passes.Port, options: Mapping[str, str], graph: Path) -> tuple[int, int]:
    shape = port.shape
    if shape is None or len(shape) != 4:
        raise UsageError(
            f"{graph}: its input {port.name!r} has shape {shape}; expected (batch, channels, height, width)"
        )
    fixed = tuple(size if isinstance(size, int) else None for size in shape[2:])
    if options.get("size"):
        wanted = parse_size(options["size"])
        clash = [have for have, want in zip(fixed, wanted, strict=True) if have is not None and have != want]
        if clash:
            raise UsageError(f"{graph}: its input is {fixed[0]} x {fixed[1]} (height x width), not {options['size']}")
        return wanted
    if fixed[0] is None or fixed[1] is None:
        raise UsageError(f"{graph}: takes images of any size; name the size it was trained for, or 'any'")
    return fixed[0], fixed[1]


def _check_input(port: passes.Port, shape: tuple[int, ...], graph: Path) -> None:
    assert port.shape is not None
    if port.dtype != "float32":
        raise UsageError(f"{graph}: its input is {port.dtype}; expected float32")
    for name, have, want in zip(("batch", "channel"), port.shape, shape, strict=False):
        if isinstance(have, int) and have != want:
            raise UsageError(f"{graph}: its input has the {name} size {have}; expected {want}")
    if shape[2] < 0 and port.shape[0] != 1:
        raise ExportError(f"{graph}: batch and size are both open; export it with a batch of 1, or name a size")


def _numbers(options: Mapping[str, str], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    text = options.get(name, "")
    try:
        return tuple(float(part) for part in text.split(",")) if text else default
    except ValueError as error:
        raise UsageError(f"{name} {text!r}: expected numbers joined by commas") from error


def _whole(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name} {text!r}: expected a whole number")
    return int(text)
