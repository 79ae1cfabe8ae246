"""Networks of one's own: a Python file with the class, any trainer's checkpoint with the weights.

The file is the user's own code and is executed, as any training script is; the checkpoint is untrusted and is read by
the closed unpickler. The class may be marked with :func:`register_model`::

    from offline_infer.exporting.own_models import register_model

    @register_model
    class MyModel(nn.Module):
        def __init__(self, width: int = 8, residual: bool = True) -> None: ...
        def forward(self, image, mask=None, label=None, **kwargs):
            return {"pred_mask": ..., "pred_label": ...}
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from offline_infer.checkpoints.pickles.torch_file import open_torch_file
from offline_infer.checkpoints.state_dict import state_dict
from offline_infer.errors import CheckpointError, ExportError, UsageError

if TYPE_CHECKING:
    from torch import nn

MODEL_FILE = "mymodel.py"
"""What the file is called in a folder that holds a model."""
WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "network_weights")
"""Where trainers keep the state dict in their checkpoints; else the checkpoint is the state dict itself."""

_MARK = "__offline_infer_model__"
_Class = TypeVar("_Class", bound=type)


@overload
def register_model(cls: _Class) -> _Class: ...
@overload
def register_model(*, name: str) -> Callable[[_Class], _Class]: ...
def register_model(cls: _Class | None = None, *, name: str | None = None) -> Any:
    """Mark a class as a model of its file, under its own name or another."""

    def mark(marked: _Class) -> _Class:
        setattr(marked, _MARK, name or marked.__name__)
        return marked

    return mark if cls is None else mark(cls)


def load_model_class(path: Path, name: str | None = None) -> type[nn.Module]:
    """The model class of a Python file, or of the ``mymodel.py`` of a folder. The file is executed.

    Args:
        name: of the class, registered or not; needed where the file registers several.

    Raises:
        UsageError: no such file or class, or several and no name.
        ExportError: the file cannot be executed.
    """
    from torch import nn

    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file}: does not exist; expected a Python file with a model class")
    module = execute_file(file)
    classes: list[type[nn.Module]] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]
    # A mark is inherited; only one's own counts.
    registered: dict[str, type[nn.Module]] = {str(vars(cls)[_MARK]): cls for cls in classes if _MARK in vars(cls)}
    if name is not None:
        by_name: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in classes}
        by_name.update(registered)
        if name not in by_name:
            raise UsageError(f"{file}: has no model {name!r}; it has {', '.join(sorted(map(str, by_name))) or 'none'}")
        return by_name[name]
    if len(registered) == 1:
        return next(iter(registered.values()))
    found = ", ".join(sorted(str(known) for known in (registered or {cls.__name__: cls for cls in classes})))
    if registered:
        raise UsageError(f"{file}: registers several models, {found}; say which")
    raise UsageError(
        f"{file}: registers no model; put @register_model before the class, or say which class it is ({found or 'none'})"
    )


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Put a checkpoint's weights into a network, strictly. No code of the file is executed.

    Raises:
        CheckpointError: not a checkpoint, or its weights do not fit; missing and unexpected names are listed.
    """
    from offline_infer.networks import load_weights

    file = open_torch_file(path)
    content = file.content
    if isinstance(content, Mapping):
        for key in WEIGHT_KEYS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    try:
        load_weights(network, file.arrays(state_dict(content, str(path))))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def inference_network(network: nn.Module) -> nn.Module:
    """The network as image -> (mask, score), whatever its ``forward`` wants and returns.

    Arguments that ``forward`` demands beside the image are filled in: ``mask`` and ``edge_mask`` with zeros,
    ``shape_mask`` with ones, ``label`` with zeros, shapes with the input's. What computes a loss from them has no
    influence on the outputs and is not in the exported graph. A result may be a dict with ``pred_mask`` and
    ``pred_label``, a tensor (the mask), or a sequence of mask and score. A score without a batch axis gets one.

    Raises:
        ExportError: ``forward`` demands something else.
    """
    from torch import nn

    wanted = _demanded(network)

    class InferenceNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Any) -> Any:
            return _outputs(self.network(**{name: make(image) for name, make in wanted.items()}), image.shape[0])

    return InferenceNetwork().eval()


def execute_file(file: Path) -> types.ModuleType:
    """Import a file under its own name, its folder first on the import path while it is executed.

    Raises:
        ExportError: the file cannot be executed.
    """
    specification = importlib.util.spec_from_file_location(file.stem, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    before, known = list(sys.path), sys.modules.get(file.stem)
    sys.path.insert(0, str(file.parent.absolute()))
    sys.modules[file.stem] = module  # dataclasses and pickles look their module up
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ExportError(f"{file}: cannot be executed ({type(error).__name__}: {error})") from error
    finally:
        sys.path[:] = before
        if known is not None:
            sys.modules[file.stem] = known
        else:
            sys.modules.pop(file.stem, None)
    return module


def _demanded(network: nn.Module) -> dict[str, Callable[[Any], Any]]:
    """Name of an argument -> what makes it of the image."""
    import torch

    makers: dict[str, Callable[[Any], Any]] = {
        "image": lambda image: image,
        "mask": lambda image: torch.zeros_like(image[:, :1]),
        "edge_mask": lambda image: torch.zeros_like(image[:, :1]),
        "shape_mask": lambda image: torch.ones_like(image[:, :1]),
        "label": lambda image: torch.zeros(image.shape[0], dtype=torch.int64),
        "shape": lambda image: torch.tensor([list(image.shape[2:])] * image.shape[0]),
        "origin_shape": lambda image: torch.tensor([list(image.shape[2:])] * image.shape[0]),
        "original_shape": lambda image: torch.tensor([list(image.shape[2:])] * image.shape[0]),
        "name": lambda image: [""] * image.shape[0],
    }
    parameters = [
        parameter
        for parameter in inspect.signature(network.forward).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if not parameters:
        raise ExportError(f"{type(network).__name__}.forward takes no image")
    first = parameters[0].name
    wanted = {parameter.name for parameter in parameters if parameter.default is parameter.empty} | {first}
    if "image" not in (parameter.name for parameter in parameters):
        makers[first] = makers["image"]
    else:
        wanted = (wanted - {first} | {"image"}) if first not in makers else wanted | {"image"}
    strange = sorted(wanted - set(makers))
    if strange:
        raise ExportError(
            f"{type(network).__name__}.forward demands {', '.join(strange)}, which inference does not have; give them a "
            f"default. Filled in are {', '.join(makers)}"
        )
    return {name: makers[name] for name in wanted}


def _outputs(result: Any, batch: int) -> Any:
    """(mask, score), or the one that there is, of what ``forward`` returned."""
    import torch

    if isinstance(result, Mapping):
        mask, score = result.get("pred_mask"), result.get("pred_label")
    elif isinstance(result, torch.Tensor):
        mask, score = result, None
    elif isinstance(result, Sequence) and 1 <= len(result) <= 2:
        mask, score = result[0], result[1] if len(result) == 2 else None
    else:
        raise ExportError(
            f"forward returned {type(result).__name__}; expected a dict with pred_mask and pred_label, a tensor, or both"
        )
    found = []
    if mask is not None:
        found.append(mask[:, None] if mask.dim() == 3 else mask)
    if score is not None:
        found.append(score.reshape(batch, -1) if score.dim() > 1 and score.shape[-1] > 1 else score.reshape(batch))
    if not found:
        raise ExportError("forward returned neither pred_mask nor pred_label")
    return tuple(found)


def build(cls: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """A network of a class.

    Raises:
        ExportError: its constructor raises, with what it says.
    """
    try:
        return cls(**arguments)
    except Exception as error:  # somebody else's code
        told = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ExportError(f"{cls.__name__}({told}) cannot be made ({type(error).__name__}: {error})") from error


def output_names(network: nn.Module, image: Any) -> tuple[str, ...]:
    """``mask`` and ``score``, as far as the network (:func:`inference_network`) gives them.

    Raises:
        ExportError: it fails on the image, or returns something else.
    """
    import torch

    try:
        with torch.no_grad():
            outputs = network(image)
    except ExportError:
        raise
    except Exception as error:  # somebody else's code
        size = " x ".join(str(size) for size in reversed(image.shape[2:]))
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ExportError(f"forward fails on an image of {size} pixels ({said}); does it need another size?") from error
    return tuple("mask" if output.dim() == 4 else "score" for output in outputs)
