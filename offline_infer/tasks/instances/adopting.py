"""Somebody else's ``.onnx`` of a detector in, a verified bundle out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from offline_infer import graph as passes
from offline_infer.bundles import bundle as bundles
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.repeats import making
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import ExportError, OfflineInferError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.exporting.adopted_detectors import (
    CONVENTIONS,
    AdoptedGraph,
    Convention,
    Suppression,
    adopt_graph,
)
from offline_infer.exporting.materials import save_made
from offline_infer.files import sha256_file
from offline_infer.spec import FoldSource, GraphRecord, OutputSpec, Pixels, Source
from offline_infer.tasks.instances.class_names import model_classes, read_class_names
from offline_infer.tasks.instances.exporting import FOLD, fixed_outputs, usable_engines
from offline_infer.tasks.instances.judging import judge, sample_inputs
from offline_infer.tasks.instances.spec import DETS, LABELS, MASKS, InstancesSpec, MaskRule, Padding, Scaling


@dataclass(frozen=True)
class Preparation:
    """What the graph's author did to an image; None takes what the convention usually does.

    Attributes:
        mean, std: per channel, in units of ``scale``.
        scale: pixels are divided by it first.
        order: ``rgb`` or ``bgr``.
        long_side, short_side: see :class:`~offline_infer.tasks.instances.spec.Scaling`; 0 for none.
        divisor: sides are padded to a multiple of it.
        score: detections at or below this are left out.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    scale: float | None = None
    order: str | None = None
    long_side: int | None = None
    short_side: int | None = None
    divisor: int | None = None
    score: float | None = None


def adopt(graph: Path, output: Path, options: Mapping[str, str], *, overwrite: bool, sink: Sink) -> Bundle:
    """Make a bundle of a foreign graph.

    Args:
        options: by the names of ``ADOPT_OPTIONS``.

    Raises:
        UsageError: an option that is wrong or missing, or ``output`` is taken.
        ExportError: the graph is none of the known kinds, or it does not run.
    """
    sides = {name: _whole(options, name) for name in ("long_side", "short_side", "divisor")}
    preparation = Preparation(
        mean=_triple(options, "mean"),
        std=_triple(options, "std"),
        scale=_number(options, "scale"),
        order=options.get("order"),
        score=_number(options, "min_score"),
        **sides,
    )
    limit = _whole(options, "limit")
    try:
        return adopt_detector(
            graph,
            output,
            classes=read_class_names(Path(options["classes"])) if "classes" in options else None,
            convention=options.get("convention"),
            preparation=preparation,
            limit=100 if limit is None else limit,
            overwrite=overwrite,
            sink=sink,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"the preparation of images is impossible: {where}: {first['msg']}") from error


def _number(options: Mapping[str, str], name: str) -> float | None:
    if name not in options:
        return None
    try:
        value = float(options[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{name} {options[name]!r}: expected a number")
    return value


def _triple(options: Mapping[str, str], name: str) -> tuple[float, float, float] | None:
    if name not in options:
        return None
    try:
        first, second, third = (float(part) for part in options[name].split(","))
    except ValueError as error:
        raise UsageError(f"{name} {options[name]!r}: expected three numbers joined by commas") from error
    return first, second, third


def _whole(options: Mapping[str, str], name: str) -> int | None:
    if name not in options:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,5}", options[name]):
        raise UsageError(f"{name} {options[name]!r}: expected a whole number from 1 to 999999")
    return int(options[name])


def adopt_detector(
    model: Path | str,
    output: Path | str,
    *,
    classes: Sequence[str] | None = None,
    convention: str | None = None,
    preparation: Preparation | None = None,
    limit: int = 100,
    overwrite: bool = False,
    sink: Sink = silent,
) -> Bundle:
    """Make a bundle of a graph that was exported by somebody else.

    Args:
        model: the ``.onnx``.
        output: the bundle's folder.
        classes: names in the order of the labels; a leading background class is dropped. None takes the graph's own list,
            where its metadata hold one.
        convention: one of :data:`~offline_infer.exporting.adopted_detectors.CONVENTIONS`; None recognises it.
        preparation: how images are prepared, where that is not what the convention usually does.
        limit: rows of the outputs.
        overwrite: replace an existing bundle.
        sink: told about progress.

    Raises:
        ExportError: none of the known kinds, or it does not run.
        UsageError: options that make no sense, or ``output`` is taken.
    """
    path = Path(model)
    if convention is not None and convention not in CONVENTIONS:
        raise UsageError(f"unknown convention {convention!r}; legal: {', '.join(CONVENTIONS)}")
    kind: Convention | None = next((one for one in CONVENTIONS if one == convention), None)
    given = preparation or Preparation()
    original = passes.load_model(path)
    suppression = Suppression() if given.score is None else Suppression(score=given.score)
    adopted = adopt_graph(original, convention=kind, limit=limit, suppression=suppression)
    names = model_classes(classes, path, original, adopted.classes)
    spec = spec_of_adopted(path, adopted, names, given)
    return write_adopted(adopted, spec, output, _verified, overwrite=overwrite, sink=sink)


def write_adopted(
    adopted: AdoptedGraph,
    spec: InstancesSpec,
    output: Path | str,
    verify: Callable[[Path, InstancesSpec, Sequence[str]], dict[str, Any]],
    *,
    overwrite: bool,
    sink: Sink,
) -> Bundle:
    """Write a graph's bundle; it appears only when ``verify`` (the graph's file, its specification, engines) is content.

    Raises:
        ExportError: no engine is installed, or ``verify`` is not content.
        UsageError: ``output`` is taken.
    """
    engines = usable_engines()
    sink(Event("stage-started", "adopt", data={"convention": adopted.convention, "classes": len(spec.classes)}))
    with making(output, spec, overwrite=overwrite, spec_of=_own, sink=sink) as folder:
        opset = passes.inspect_graph(adopted.model).opset
        file = folder / f"fold_{FOLD}.onnx"
        passes.save_model(passes.set_metadata(adopted.model, bundles.embedded(spec, FOLD, "fp32", opset)), file)
        verification = verify(file, spec, engines)
        record = GraphRecord(
            file=file.name, fold=FOLD, opset=opset, sha256=sha256_file(file), verification=verification
        )
        save_made(spec.model_copy(update={"graphs": (record,)}), folder)
    return Bundle.load(output, spec_of=_own)


def spec_of_adopted(path: Path, adopted: AdoptedGraph, names: tuple[str, ...], given: Preparation) -> InstancesSpec:
    """The specification of a graph's bundle: what its convention usually does, but for what was given."""
    pixels, scaling, padding, mask, floor = _usual(adopted)
    pixels = pixels.model_copy(
        update={
            key: getattr(given, key) for key in ("mean", "std", "scale", "order") if getattr(given, key) is not None
        }
    )
    if given.long_side is not None or given.short_side is not None:
        long_side, short_side = given.long_side or given.short_side, given.short_side or given.long_side
        scaling = Scaling(long_side=long_side or None, short_side=short_side or None)
    if given.divisor is not None:
        padding = padding.model_copy(update={"divisor": given.divisor})
    side = adopted.mask_size
    outputs = fixed_outputs(adopted.limit, side)
    if side < 0:  # as many rows as were found
        outputs = tuple(
            OutputSpec(name=name, dtype=one.dtype, shape=(-1, *one.shape[1:]), keep=True)
            for name, one in zip((DETS, LABELS, MASKS), outputs, strict=True)
        )
    return InstancesSpec(
        source=Source(
            framework=adopted.convention if adopted.convention != "fixed" else "onnx",
            trainer="adopted",
            plans_name=path.name,
            dataset=f"{len(names)} classes",
            configuration=adopted.convention,
            network="adopted graph",
            folds=(FoldSource(fold=FOLD, checkpoint=path.name, sha256=sha256_file(path)),),
        ),
        pixels=Pixels.model_validate(pixels.model_dump()),
        scaling=scaling,
        padding=padding,
        mask=mask,
        classes=names,
        limit=adopted.limit,
        mask_size=side,
        score_floor=floor if given.score is None else given.score,
        outputs=outputs,
    )


def _usual(adopted: AdoptedGraph) -> tuple[Pixels, Scaling, Padding, MaskRule, float]:
    """What images and masks usually are in a convention, and the lowest score it gives."""
    canvas, over_input = adopted.canvas, adopted.mask_size < 0
    frame: dict[str, Any] = {"frame": "input"} if over_input else {}
    as_fractions = Pixels(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), exif="applied", sixteen_bit="high_byte")
    inside = Scaling(inside=canvas) if canvas else None  # a graph of one size gets the largest image it holds
    if adopted.convention == "torchvision":
        # The graph scales, normalises and pads by itself.
        mask = MaskRule(activation="none", paste="integer_box", **frame)
        return as_fractions, inside or Scaling(), Padding(canvas=canvas), mask, 0.05
    if adopted.convention == "prototypes":
        scaling = inside or Scaling(long_side=640, short_side=640)
        grey = Padding(divisor=32, canvas=canvas, place="centre", value=114 / 255)
        # Logits are interpolated and compared with 0.
        mask = MaskRule(activation="none", frame="input", cut="within", empty="dropped", threshold=0.0, above=True)
        return as_fractions, scaling, grey, mask, 0.25
    pixels = as_fractions.model_copy(
        update={"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375), "scale": 1.0}
    )
    mask = MaskRule(activation="none", **frame)
    scaling = inside or Scaling(long_side=1333, short_side=800)
    return pixels, scaling, Padding(divisor=32, canvas=canvas), mask, 0.05


def _verified(file: Path, spec: InstancesSpec, engines: Sequence[str]) -> dict[str, Any]:
    """Run the graph on every engine and compare their answers.

    Raises:
        ExportError: no engine runs it, or they disagree.
    """
    inputs = sample_inputs(spec, 1)
    answers, problems = {}, {}
    for name in engines:
        try:
            options = EngineOptions(outputs=(DETS, LABELS, MASKS), control_flow=spec.control_flow)
            with get_engine(name).open(file, options) as session:
                answers[name] = [session.run_all(image) for image in inputs]
        except OfflineInferError as error:
            problems[name] = str(error)
    if not answers:
        told = "; ".join(f"{name}: {reason}" for name, reason in problems.items())
        raise ExportError(f"no engine runs the graph ({told}); nothing was written")
    reference = next(iter(answers.values()))
    records: list[dict[str, Any]] = []
    for name, own in answers.items():
        result = judge(own, reference, spec)
        if result["status"] != "ok":
            raise ExportError(f"{name} gives no usable answer: {result['reason']}; nothing was written")
        records.append({"engine": name, **result})
    records += [{"engine": name, "status": "refused", "reason": reason} for name, reason in problems.items()]
    return {"passed": True, "engines": records}


def _own(task: str) -> type[InstancesSpec]:
    return InstancesSpec
