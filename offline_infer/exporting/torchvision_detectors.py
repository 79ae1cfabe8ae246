"""torchvision's Mask R-CNN: the network a state dict belongs to, the graph torchvision itself exports, and its answers.

torchvision is imported here and nowhere else; its wheels load beside the torch they were built with only.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offline_infer import graph as passes
from offline_infer.errors import ExportError, UsageError
from offline_infer.exporting.own_models import execute_file, load_checkpoint
from offline_infer.exporting.torch_export import import_torch, write_onnx

if TYPE_CHECKING:
    from torch import nn

BUILDER = "build"
"""The function of a user's file that gives the network."""
OUTPUTS = ("boxes", "labels", "scores", "masks")
_CLASS_SCORES = "roi_heads.box_predictor.cls_score.weight"
_MARK = "roi_heads.mask_predictor.mask_fcn_logits.weight"
_TRACED = (3, 160, 224)


def is_mask_rcnn(names: Collection[str]) -> bool:
    """Whether weights of these names are a Mask R-CNN of torchvision."""
    return _MARK in names and _CLASS_SCORES in names


def load_network(path: Path, shapes: dict[str, tuple[int, ...]], builder: Path | None) -> nn.Module:
    """The network with its weights, in evaluation mode.

    Args:
        path: the state dict; it is read by the closed unpickler.
        shapes: of its entries.
        builder: Python file whose function ``build()`` gives the network; None builds torchvision's own with a
            ResNet-50, in the version the weights' names tell.

    Raises:
        ExportError: torchvision cannot be imported, or the user's file cannot be executed.
        UsageError: the file has no such function, or its result is no Mask R-CNN of torchvision.
        CheckpointError: the weights are those of another network.
    """
    detection = _torchvision("torchvision.models.detection")
    network = standard_network(detection, shapes) if builder is None else _built(detection, builder)
    load_checkpoint(network, path)
    network.eval()
    return network


def stock_graph(network: nn.Module, opset: int) -> Any:
    """The graph as torchvision exports it: ``image`` (3, y, x) of any size to :data:`OUTPUTS`, boxes in image pixels.

    Raises:
        ExportError: torch cannot trace it.
    """
    torch = import_torch()
    # Noise alone may show no object, and the branch for that would be all the tracer sees.
    example = torch.rand(_TRACED, generator=torch.Generator().manual_seed(0))
    axes = {"image": {1: "height", 2: "width"}, **{name: {0: "objects"} for name in OUTPUTS}}
    written = write_onnx(network, [example], opset, "image", OUTPUTS, axes)
    return passes.onnx_package().load_from_string(written)


def network_answer(network: nn.Module, image: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """What the network says of an image (3, y, x), by the names of :data:`OUTPUTS`; masks are (n, y, x) probabilities."""
    torch = import_torch()
    with torch.inference_mode():
        found = network([torch.from_numpy(image)])[0]
    answer = {name: found[name].numpy() for name in OUTPUTS}
    answer["masks"] = answer["masks"][:, 0]
    return answer


def version() -> str:
    """Of torchvision."""
    return str(_torchvision("torchvision").__version__)


def _torchvision(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # built for another torch: "operator torchvision::nms does not exist"
        text = " ".join(str(error).split())[:200]
        raise ExportError(
            f"this is a Mask R-CNN of torchvision, and torchvision cannot be imported here ({text}); install the one built for "
            "this torch, or write its .onnx where it loads and adopt that (offline-infer adopt MODEL.onnx --task instances)"
        ) from error


def standard_network(detection: Any, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """torchvision's own Mask R-CNN with a ResNet-50, in the version that the names and shapes of its weights tell.

    Args:
        detection: the module ``torchvision.models.detection``.

    Raises:
        UsageError: the weights have another backbone.
    """
    if "backbone.body.layer4.2.conv3.weight" not in shapes or shapes["backbone.body.conv1.weight"][0] != 64:
        raise UsageError(
            "the weights are a Mask R-CNN of torchvision on another backbone than its ResNet-50; name a Python file whose "
            f"function {BUILDER}() returns the network (--builder FILE)"
        )
    second = "roi_heads.box_head.0.0.weight" in shapes
    make = detection.maskrcnn_resnet50_fpn_v2 if second else detection.maskrcnn_resnet50_fpn
    network: nn.Module = make(weights=None, weights_backbone=None, num_classes=shapes[_CLASS_SCORES][0])
    if "backbone.body.bn1.num_batches_tracked" not in shapes:
        _freeze(network)
    return network


def _freeze(network: nn.Module) -> None:
    """Put torchvision's frozen normalisation, which has no counter, where its pretrained networks have it."""
    torch, ops = import_torch(), _torchvision("torchvision.ops")
    for name, module in list(network.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            parent = network.get_submodule(name.rpartition(".")[0])
            # The published weights were trained with no addend to the variance.
            setattr(parent, name.rpartition(".")[2], ops.FrozenBatchNorm2d(module.num_features, eps=0.0))


def _built(detection: Any, builder: Path) -> nn.Module:
    if not builder.is_file():
        raise UsageError(f"{builder}: no such file")
    function = getattr(execute_file(builder), BUILDER, None)
    if not callable(function):
        raise UsageError(f"{builder}: has no function {BUILDER}() that returns the network")
    try:
        network = function()
    except Exception as error:
        raise ExportError(f"{builder}: {BUILDER}() failed ({type(error).__name__}: {error})") from error
    if not isinstance(network, detection.MaskRCNN):
        raise UsageError(f"{builder}: {BUILDER}() returned a {type(network).__name__}, not a MaskRCNN of torchvision")
    found: nn.Module = network
    return found
