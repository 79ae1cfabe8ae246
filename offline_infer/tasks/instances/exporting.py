"""A checkpoint in, a verified bundle out: which kind it is, and how a RefineMask is exported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer import graph as passes
from offline_infer.bundles import bundle as bundles
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.repeats import making
from offline_infer.checkpoints.digests import checked_sha256
from offline_infer.checkpoints.mmdet.reader import RefineMaskCheckpoint, read_refinemask, weight_shapes
from offline_infer.engines.base import get_engine
from offline_infer.errors import ExportError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.exporting.detectors import DetectorShapes, torch_answers, trace_detector, verify_detector
from offline_infer.exporting.materials import save_made
from offline_infer.exporting.torch_export import require_packages
from offline_infer.exporting.torchvision_detectors import is_mask_rcnn
from offline_infer.files import sha256_file
from offline_infer.spec import FoldSource, GraphRecord, OutputSpec, Pixels, Source
from offline_infer.tasks.extensions import ExportRequest
from offline_infer.tasks.instances.export_options import REFINEMASK_ONLY, TORCHVISION_ONLY
from offline_infer.tasks.instances.judging import judge, sample_inputs
from offline_infer.tasks.instances.spec import DETS, LABELS, MASKS, InstancesSpec, MaskRule, Padding, Scaling

if TYPE_CHECKING:
    from torch import nn

ENGINES = ("openvino", "onnxruntime")
FOLD = "0"
"""A detector is one network; bundles call it fold 0."""


def export(request: ExportRequest, sink: Sink = silent) -> Bundle:
    """``export`` for a ``.pth``: a Mask R-CNN of torchvision, else a RefineMask (see :func:`export_refinemask`).

    Raises:
        UsageError: an option that is wrong or that detectors do not have.
        CheckpointError: the checkpoint cannot be read, or is not the expected one.
    """
    require_packages()
    if request.arguments:
        raise UsageError(f"{request.model}: its weights describe the network; leave out --set")
    canvas = _canvas(request.options["canvas"]) if "canvas" in request.options else None
    checked_sha256(request.model, request.expect_sha256)
    shapes = weight_shapes(request.model)
    torchvision = is_mask_rcnn(shapes)
    _refuse_foreign_options(request, REFINEMASK_ONLY if torchvision else TORCHVISION_ONLY, torchvision)
    if torchvision:
        from offline_infer.tasks.instances.torchvision_exporting import export_torchvision

        return export_torchvision(request, shapes, sink)
    config, how = request.options.get("config"), request.how
    if config is not None and not Path(config).is_file():
        raise UsageError(f"{config}: no such file")
    return export_refinemask(
        request.model,
        request.output,
        config=config,
        canvas=canvas,
        opset=how.opset,
        verify=how.verify,
        overwrite=how.overwrite,
        sink=sink,
    )


def _refuse_foreign_options(request: ExportRequest, foreign: Sequence[str], torchvision: bool) -> None:
    given = next((name for name in foreign if name in request.options), None)
    if given is not None:
        kind = "a Mask R-CNN of torchvision" if torchvision else "a RefineMask"
        raise UsageError(f"{request.model}: --{given} does not apply to {kind}")


def _canvas(text: str) -> tuple[int, int] | None:
    """``1344x1344`` (height x width), or ``any``."""
    if text == "any":
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise UsageError(f"canvas {text!r}: expected height x width such as 1344x1344, or any")
    return int(match[1]), int(match[2])


def export_refinemask(
    checkpoint: Path | str,
    output: Path | str,
    *,
    config: Path | str | None = None,
    canvas: tuple[int, int] | None = None,
    opset: int = 17,
    verify: bool = True,
    overwrite: bool = False,
    sink: Sink = silent,
) -> Bundle:
    """Export a RefineMask checkpoint of mmdetection to a bundle.

    Args:
        checkpoint: the ``.pth``.
        output: the bundle's folder; it appears only when everything is done and verified.
        config: the training's configuration (JSON, or Python that is parsed but never run) where the checkpoint has none.
        canvas: (height, width), multiples of 32, of the only input the graph takes, for devices with fixed shapes; the
            padding is masked, so the answers stay. None: any size.
        opset: 16 or 17.
        verify: compare the graph with the network on every installed engine.
        overwrite: replace an existing bundle.
        sink: told about progress.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ExportError: the graph could not be made, or does not give the network's answer.
        UsageError: ``output`` is taken.
    """
    from offline_infer.networks import load_weights
    from offline_infer.networks.refinemask import build_refinemask

    found = read_refinemask(Path(checkpoint), None if config is None else Path(config))
    for note in found.notes:
        sink(Event("note", "export", data={"text": note}))
    if canvas is not None and (min(canvas) < 32 or any(side % found.image.divisor for side in canvas)):
        raise ExportError(f"canvas {canvas}: both sides must be multiples of {found.image.divisor}")
    network = build_refinemask(found.settings)
    load_weights(network, found.load_weights())
    network.canvas = network.every_row = canvas is not None
    spec = refinemask_spec(found, canvas)
    return write_bundle(spec, network, output, opset=opset, verify=verify, overwrite=overwrite, sink=sink)


def refinemask_spec(found: RefineMaskCheckpoint, canvas: tuple[int, int] | None) -> InstancesSpec:
    """The specification of a checkpoint's bundle, its graphs not filled in."""
    image, settings = found.image, found.settings
    limit, side = settings.detections.limit, settings.mask_head.stage_sizes[-1]
    return InstancesSpec(
        source=Source(
            framework="mmdetection",
            framework_version=found.framework_version,
            trainer="RefineMask",
            plans_name=found.config_name,
            dataset=f"{settings.classes} classes",
            configuration=f"r{settings.depth}",
            network="RefineMask",
            folds=(FoldSource(fold=FOLD, checkpoint=found.path.name, sha256=sha256_file(found.path)),),
        ),
        pixels=Pixels(mean=image.mean, std=image.std, scale=1.0, exif="applied", sixteen_bit="high_byte"),
        scaling=Scaling(long_side=image.long_side, short_side=image.short_side),
        padding=Padding(divisor=image.divisor, canvas=canvas, validity_channel=True),
        mask=MaskRule(threshold=image.mask_threshold),
        classes=found.classes,
        limit=limit,
        mask_size=side,
        score_floor=settings.detections.score,
        outputs=fixed_outputs(limit, side),
    )


def fixed_outputs(limit: int, side: int) -> tuple[OutputSpec, ...]:
    """The three outputs; ``side`` -1 for masks as large as the input."""
    return (
        OutputSpec(name=DETS, dtype="float32", shape=(limit, 5), keep=True),
        OutputSpec(name=LABELS, dtype="int64", shape=(limit,), keep=True),
        OutputSpec(name=MASKS, dtype="float32", shape=(limit, side, side), keep=True),
    )


def write_bundle(
    spec: InstancesSpec,
    network: nn.Module,
    output: Path | str,
    *,
    opset: int,
    verify: bool,
    overwrite: bool,
    sink: Sink,
) -> Bundle:
    """Trace, verify and write; see :func:`export_refinemask`."""
    engines = usable_engines() if verify else []
    shapes = DetectorShapes(spec.input_channels, spec.padding.canvas, spec.limit, spec.mask_size)
    steps = 1 + (1 + len(engines) if verify else 0)
    sink(Event("stage-started", "export", data={"folds": [FOLD], "precision": "fp32", "opset": opset}))
    with making(output, spec, overwrite=overwrite, spec_of=_own, sink=sink) as folder:
        model = trace_detector(network, shapes, opset)
        model = passes.set_metadata(model, bundles.embedded(spec, FOLD, "fp32", opset))
        path = folder / f"fold_{FOLD}.onnx"
        passes.save_model(model, path)
        facts = passes.inspect_graph(model)
        del model
        sink(Event("progress", "export", done=1, total=steps, data={"fold": FOLD, "step": "graph"}))
        verification: dict[str, Any] | None = None
        if verify:
            # Sizes other than the traced one: whatever the tracer took for a constant shows here.
            inputs = [*sample_inputs(spec, 1), *sample_inputs(spec, 1, (224, 160))]
            reference = torch_answers(network, inputs)
            sink(Event("progress", "export", done=2, total=steps, data={"fold": FOLD, "step": "reference"}))
            records = verify_detector(path, inputs, reference, lambda a, r: judge(a, r, spec), engines)
            sink(Event("progress", "export", done=steps, total=steps, data={"fold": FOLD, "step": "engines"}))
            verification = {"passed": True, "ops": facts.ops, "parameters": facts.parameters, "engines": records}
        record = GraphRecord(
            file=path.name, fold=FOLD, opset=facts.opset, sha256=sha256_file(path), verification=verification
        )
        save_made(spec.model_copy(update={"graphs": (record,)}), folder)
    return Bundle.load(output, spec_of=_own)


def usable_engines() -> Sequence[str]:
    """Engines that can run here.

    Raises:
        ExportError: none; an export that nobody ran is not verified.
    """
    reasons = {name: get_engine(name).available() for name in ENGINES}
    usable = [name for name, reason in reasons.items() if reason is None]
    if not usable:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ExportError(f"no engine to verify the export with ({told}); install one, or export with --no-verify")
    return usable


def _own(task: str) -> type[InstancesSpec]:
    return InstancesSpec
