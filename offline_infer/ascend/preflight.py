"""What can be said about a graph before ``atc`` spends minutes on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from offline_infer.errors import Remedy, UsageError
from offline_infer.graph.facts import GraphFacts, inspect_graph
from offline_infer.spec import BundleSpec, OutputSpec

OLDEST_SAFE_OPSET, NEWEST_SAFE_OPSET, NEWEST_OPSET = 11, 13, 17
ATC_PATH = re.compile(r"[A-Za-z0-9_./\u4e00-\u9fff-]+")
"""Characters ``atc`` accepts in paths: letters, digits, ``_ - . /`` and Chinese characters; no blanks."""

Dtype = Literal["float32", "float16"]

_LOWER_OPSET = Remedy("export-lower-opset")
_DECOMPOSE = Remedy("decompose-norms")


@dataclass(frozen=True)
class Preflight:
    """A graph that may be given to ``atc``.

    Attributes:
        input_name, input_shape: of the one input, batch axis first.
        input_dtype: of the graph's input.
        advice: what may go wrong, and what to do about it.
    """

    facts: GraphFacts
    input_name: str
    input_shape: tuple[int, ...]
    input_dtype: Dtype
    advice: tuple[str, ...]


def check_graph(model: Any, name: str, *, decomposed: bool) -> Preflight:
    """Look at a graph.

    Args:
        model: an ONNX file or a model in memory.
        name: what to call it in messages.
        decomposed: whether instance normalisation is written out on the way.

    Raises:
        UsageError: it cannot be converted: open sizes, several inputs, a dtype the tools cannot be fed with.
    """
    facts = inspect_graph(model)
    if facts.dynamic:
        raise UsageError(
            f"{name}: open sizes ({', '.join(facts.dynamic)}); atc and the inference tools are given fixed shapes "
            "here; export the checkpoint again"
        )
    if len(facts.inputs) != 1:
        names = ", ".join(port.name for port in facts.inputs)
        raise UsageError(f"{name}: {len(facts.inputs)} inputs ({names}); the inference tools are fed one file per run")
    for port in (*facts.inputs, *facts.outputs):
        if port.dtype not in ("float32", "float16"):
            raise UsageError(f"{name}: {port.name} is {port.dtype}; expected float32 or float16")
    port = facts.inputs[0]
    if re.search(r"[:;,\s]", port.name):
        raise UsageError(f"{name}: atc cannot be told of an input called {port.name!r}; rename it and export again")
    shape = tuple(int(size) for size in port.shape or () if size is not None)
    return Preflight(
        facts, port.name, shape, cast(Dtype, port.dtype), (*_advice(facts, len(shape), decomposed), *facts.advice)
    )


def resolve_outputs(
    model: Any, spec: BundleSpec, facts: GraphFacts, out_nodes: str | None, dtype: Dtype | None
) -> tuple[OutputSpec, ...]:
    """The outputs the OM will give, in its order.

    Args:
        model: the ONNX model in memory.
        out_nodes: ``--out_nodes``: output names, or ``node:index``, separated by ``;``, not mixed; None: all.
        dtype: of the OM's outputs where ``--output_type`` changes it.

    Raises:
        UsageError: a name is not one of the graph's outputs, or the output inference needs is left out.
    """
    known = {output.name: output for output in spec.outputs}
    graph_outputs = [output.name for output in model.graph.output]
    names = _named_outputs(model, out_nodes) if out_nodes else graph_outputs
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"output {', '.join(unknown)} is not one of the bundle's: {', '.join(known)}")
    lost = [output.name for output in spec.outputs if output.keep and output.name not in names]
    if lost:
        raise UsageError(f"--out-nodes leaves out {', '.join(lost)}, which inference needs")
    own = {port.name: port.dtype for port in facts.outputs}
    return tuple(known[name].model_copy(update={"dtype": dtype or own[name]}) for name in names)


def _named_outputs(model: Any, out_nodes: str) -> list[str]:
    entries = [entry.strip() for entry in out_nodes.split(";") if entry.strip()]
    legal = [output.name for output in model.graph.output]
    if not entries:
        raise UsageError(f"--out-nodes is empty; expected output names ({', '.join(legal)}) or node:index")
    # An output may itself be called "a:0": what is an output's name is one.
    by_node = [entry for entry in entries if entry not in legal and re.fullmatch(r".+:\d+", entry)]
    if by_node and len(by_node) != len(entries):
        raise UsageError(f"--out-nodes {out_nodes!r} mixes output names and node:index; use one of them")
    names = [_output_of_node(model, entry, legal) if by_node else entry for entry in entries]
    for name in names:
        if name not in legal:
            raise UsageError(f"--out-nodes: the graph has no output {name!r}; it has {', '.join(legal)}")
    if len(set(names)) != len(names):
        raise UsageError(f"--out-nodes {out_nodes!r} names an output twice")
    return names


def _output_of_node(model: Any, entry: str, legal: Sequence[str]) -> str:
    node_name, _, index = entry.rpartition(":")
    for node in model.graph.node:
        if node.name == node_name and int(index) < len(node.output):
            return str(node.output[int(index)])
    raise UsageError(f"--out-nodes: the graph has no node output {entry!r}; its outputs are {', '.join(legal)}")


def _advice(facts: GraphFacts, rank: int, decomposed: bool) -> list[str]:
    found = []
    if not OLDEST_SAFE_OPSET <= facts.opset <= NEWEST_OPSET:
        found.append(
            f"opset {facts.opset} is outside {OLDEST_SAFE_OPSET} to {NEWEST_OPSET}, which most releases read; "
            f"change it if atc finds no parser {_LOWER_OPSET}"
        )
    elif facts.opset > NEWEST_SAFE_OPSET:
        found.append(
            f"opset {facts.opset}: releases before CANN 8.3 are safest with {OLDEST_SAFE_OPSET} to "
            f"{NEWEST_SAFE_OPSET}; change it if atc finds no parser {_LOWER_OPSET}"
        )
    if facts.instance_norms and rank == 5 and not decomposed:
        found.append(
            f"{facts.instance_norms} InstanceNormalization nodes on volumes: atc treats them as two-dimensional, some "
            "releases have no kernel (E90003 on 5.0.4) and half-precision statistics lose accuracy; if it fails or the "
            f"comparison is bad, write them out {_DECOMPOSE}"
        )
    return found
