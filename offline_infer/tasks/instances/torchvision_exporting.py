"""A state dict of torchvision's Mask R-CNN in, a verified bundle out, where torchvision loads.

torchvision exports its network itself; from there the graph goes the way of every adopted one, and is compared with the
network it was made from instead of with another engine only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offline_infer.bundles.bundle import Bundle
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import ExportError
from offline_infer.events import Event, Sink
from offline_infer.exporting.adopted_detectors import adopt_graph
from offline_infer.exporting.torchvision_detectors import load_network, network_answer, stock_graph, version
from offline_infer.tasks.extensions import ExportRequest
from offline_infer.tasks.instances.adopting import Preparation, spec_of_adopted, write_adopted
from offline_infer.tasks.instances.class_names import model_classes, read_class_names
from offline_infer.tasks.instances.geometry import InstanceGeometry
from offline_infer.tasks.instances.judging import agreement, sample_inputs, verdict
from offline_infer.tasks.instances.result import Instances, read_outputs
from offline_infer.tasks.instances.rle import runs_of_mask
from offline_infer.tasks.instances.spec import DETS, LABELS, MASKS, InstancesSpec

if TYPE_CHECKING:
    from torch import nn

_SIZES = ((256, 320), (333, 217))
"""Of the images the graph is tried with: none is the one it was traced with."""


def export_torchvision(request: ExportRequest, shapes: Mapping[str, tuple[int, ...]], sink: Sink) -> Bundle:
    """Export torchvision's Mask R-CNN.

    Args:
        request: its model is a state dict.
        shapes: of its entries.

    Raises:
        ExportError: torchvision cannot be imported, or the graph does not give the network's answer.
        CheckpointError: the weights belong to another network.
        UsageError: names that do not fit, or the output is taken.
    """
    options, path = request.options, request.model
    builder = Path(options["builder"]) if "builder" in options else None
    network = load_network(path, dict(shapes), builder)
    heads: Any = network.roi_heads
    graph = stock_graph(network, request.how.opset)
    adopted = adopt_graph(graph, convention="torchvision", limit=int(heads.detections_per_img))
    count = shapes["roi_heads.box_predictor.cls_score.weight"][0] - 1
    given = read_class_names(Path(options["classes"])) if "classes" in options else None
    if given is None and not any(path.with_suffix(ending).is_file() for ending in (".json", ".txt")):
        given = tuple(f"class_{index}" for index in range(1, count + 1))
        sink(
            Event("note", "export", data={"text": "the weights name no classes; they are called class_1, class_2, ..."})
        )
    names = model_classes(given, path, graph, count)
    spec = spec_of_adopted(path, adopted, names, Preparation(score=float(heads.score_thresh)))
    spec = spec.model_copy(
        update={
            "source": spec.source.model_copy(
                update={"framework_version": version(), "trainer": "MaskRCNN", "network": type(network).__name__}
            )
        }
    )

    def verify(file: Path, own: InstancesSpec, engines: Sequence[str]) -> dict[str, Any]:
        return _verified(network, file, own, engines) if request.how.verify else {"passed": False, "engines": []}

    return write_adopted(adopted, spec, request.output, verify, overwrite=request.how.overwrite, sink=sink)


def _verified(network: nn.Module, file: Path, spec: InstancesSpec, engines: Sequence[str]) -> dict[str, Any]:
    """Compare the objects every engine finds with the network's own, masks in the images' pixels.

    Raises:
        ExportError: an engine refuses the graph or finds others.
    """
    images = [sample_inputs(spec, 1, size)[0].clip(0, 1) for size in _SIZES]
    expected = [_objects(network_answer(network, image[0])) for image in images]
    records: list[dict[str, Any]] = []
    for name in engines:
        options = EngineOptions(outputs=(DETS, LABELS, MASKS), control_flow=spec.control_flow)
        with get_engine(name).open(file, options) as session:
            answers = [session.run_all(image) for image in images]
            engine_version = session.info.version
        found = [
            agreement(own, read_outputs(answer, InstanceGeometry(own.size, own.size, own.size), spec))
            for own, answer in zip(expected, answers, strict=True)
        ]
        told = verdict(found)
        if told["status"] != "ok":
            raise ExportError(f"{name} does not give the network's answer: {told['reason']}; nothing was written")
        records.append({"engine": name, "version": engine_version, **told})
    return {"passed": True, "engines": records}


def _objects(answer: Mapping[str, npt.NDArray[Any]]) -> Instances:
    """torchvision's answer; its masks are probabilities that reach one half where the object is."""
    masks = answer["masks"]
    return Instances(
        (masks.shape[1], masks.shape[2]),
        np.asarray(answer["boxes"], np.float32),
        np.asarray(answer["scores"], np.float32),
        answer["labels"].astype(np.int64) - 1,
        tuple(runs_of_mask(mask >= 0.5) for mask in masks),
    )
