"""Classes of ``dynamic_network_architectures``, built from nnU-Net v2's plans.

Plans name classes by dotted path. Such a name is never imported directly: network classes come from that package's
architecture modules and arguments from ``torch.nn`` or its building blocks, all listed here.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

from torch import nn

from offline_infer.checkpoints.description import NetworkDescription
from offline_infer.errors import CheckpointError

PACKAGE = "dynamic_network_architectures"
ARCHITECTURE_MODULES = ("unet", "primus", "resnet", "vgg")
"""Modules that network classes are looked for in. A class that moved between them is still found by its name."""
BLOCK_MODULES = ("residual", "simple_conv_blocks", "regularization", "patch_encode_decode", "eva")

IMPORTS_KEY = "_kw_requires_import"
"""Key of ``NetworkDescription.arguments`` that lists which other arguments are names of classes."""


def build_dynamic(description: NetworkDescription, deep_supervision: bool) -> nn.Module:
    """The network with its own random weights.

    Args:
        description: ``class_name`` dotted, ``arguments`` the plans' keyword arguments plus :data:`IMPORTS_KEY`.
        deep_supervision: passed on if the class accepts it; heads then come as a list, the final one first.

    Raises:
        CheckpointError: a class outside the closed set.
        ImportError: the package is not installed.
    """
    arguments: dict[str, Any] = dict(description.arguments)
    for name in arguments.pop(IMPORTS_KEY, ()):
        if arguments.get(name) is not None:
            arguments[name] = argument_class(str(arguments[name]), name)
    network = network_class(description.class_name)
    parameters = inspect.signature(network).parameters
    if "deep_supervision" in parameters:
        arguments["deep_supervision"] = deep_supervision
    outputs = "num_classes" if "num_classes" in parameters else "output_channels"
    arguments |= {"input_channels": description.input_channels, outputs: description.output_channels}
    built = network(**arguments)
    assert isinstance(built, nn.Module)
    return built


def network_class(dotted: str) -> type[nn.Module]:
    """The network class of that name.

    Raises:
        CheckpointError: no such class among the package's architectures.
    """
    if not dotted.startswith(f"{PACKAGE}."):
        raise CheckpointError(f"the plans ask for the network class {dotted!r}; only classes of {PACKAGE} are built")
    found = _find(dotted, "architectures", ARCHITECTURE_MODULES)
    if found is not None:
        return found
    raise CheckpointError(
        f"the plans ask for the network class {dotted!r}, which the installed {PACKAGE} does not have; "
        f"looked in its architectures {', '.join(ARCHITECTURE_MODULES)}"
    )


def argument_class(dotted: str, argument: str) -> type[nn.Module]:
    """The class an argument such as ``conv_op`` names.

    Raises:
        CheckpointError: neither a layer of ``torch.nn`` nor a building block of the package.
    """
    short = dotted.rsplit(".", 1)[-1]
    if dotted.startswith("torch.nn."):
        candidate = nn.__dict__.get(short)
        if inspect.isclass(candidate) and issubclass(candidate, nn.Module):
            return candidate
    elif dotted.startswith(f"{PACKAGE}.building_blocks."):
        found = _find(dotted, "building_blocks", BLOCK_MODULES)
        if found is not None:
            return found
    raise CheckpointError(
        f"the plans' network argument {argument} names {dotted!r}; only layers of torch.nn and building blocks of "
        f"{PACKAGE} are accepted"
    )


def _find(dotted: str, folder: str, modules: tuple[str, ...]) -> type[nn.Module] | None:
    """The class of that name in the module the name mentions, else in another of ``modules``.

    Raises:
        ImportError: the package, or something the mentioned module needs, is not installed.
    """
    mentioned, short = dotted.split(".")[-2:]
    if mentioned in modules:
        found = _class_of(importlib.import_module(f"{PACKAGE}.{folder}.{mentioned}"), short)
        if found is not None:
            return found
    importlib.import_module(f"{PACKAGE}.{folder}")
    for name in modules:
        try:
            module = importlib.import_module(f"{PACKAGE}.{folder}.{name}")
        except Exception:  # noqa: S112 - a module that cannot be loaded here cannot be where the class has moved to
            continue
        found = _class_of(module, short)
        if found is not None:
            return found
    return None


def _class_of(module: ModuleType, short: str) -> type[nn.Module] | None:
    """A network class that this very module defines (re-exported names do not count), or None."""
    candidate = module.__dict__.get(short)
    if inspect.isclass(candidate) and issubclass(candidate, nn.Module) and candidate.__module__ == module.__name__:
        return candidate
    return None
