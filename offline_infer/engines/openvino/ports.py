"""Inputs and outputs of a graph that OpenVINO has read or compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.engines.base import OPEN, OUTPUT_TYPES, single_input
from offline_infer.engines.ports import Port
from offline_infer.errors import BundleError


def input_port(ports: Any, graph: Path) -> Port:
    """The only input: a number of axes, some of them perhaps open.

    Raises:
        BundleError: not exactly one, of open rank, or not floating point.
    """
    single_input(len(ports), graph)
    port = _port(ports[0])
    if port.shape is None:
        raise BundleError(f"{graph}: the rank of {port.name} is open, expected (n, c, sizes ...); export it again")
    if port.dtype not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise BundleError(f"{graph}: {port.name} is {port.dtype}, expected float32 or float16")
    return port


def output_ports(ports: Any, names: Sequence[str], graph: Path) -> list[Port]:
    found = [replace(_port(port), name=name) for port, name in zip(ports, names, strict=True)]
    for port in found:
        if port.dtype.name not in OUTPUT_TYPES:
            raise BundleError(f"{graph}: {port.name} is {port.dtype}, expected one of {', '.join(OUTPUT_TYPES)}")
    return found


def _port(port: Any) -> Port:
    partial = port.partial_shape
    shape = None
    if not partial.rank.is_dynamic:
        shape = tuple(OPEN if size.is_dynamic else int(size.get_length()) for size in partial)
    return Port(str(port.any_name), shape, np.dtype(port.element_type.to_dtype()))
