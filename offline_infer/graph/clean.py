"""Passes that make a graph smaller without changing what it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from offline_infer.errors import ExportError
from offline_infer.graph.model import (
    Model,
    copy,
    drop,
    onnx_package,
    refuse_subgraphs,
    replace_inputs,
    replace_nodes,
)


def clean(model: Model) -> Model:
    """All passes of this module, and no doc strings (they hold the exporting machine's paths) or stale shapes."""
    new = prune(merge_equal_initializers(fold_identity(constants_to_initializers(model))))
    new.doc_string = new.graph.doc_string = ""
    for item in [*new.graph.node, *new.graph.input, *new.graph.output, *new.graph.initializer]:
        item.ClearField("doc_string")
    for node in new.graph.node:
        del node.metadata_props[:]
    del new.graph.value_info[:]
    return new


def select_outputs(model: Model, names: Sequence[str]) -> Model:
    """Make ``names``, in this order, the only outputs, and drop what only the others needed.

    Raises:
        ExportError: the graph has no such output.
    """
    present = {output.name: output for output in model.graph.output}
    for name in names:
        if name not in present:
            raise ExportError(f"the graph has no output {name!r}; it has {', '.join(present)}")
    if not names or len(set(names)) != len(names):
        raise ExportError(f"outputs to keep: {list(names)}; expected one or more different names")
    chosen = []
    for name in names:
        value = onnx_package().ValueInfoProto()
        value.CopyFrom(present[name])
        chosen.append(value)
    new = copy(model)
    del new.graph.output[:]
    new.graph.output.extend(chosen)
    return prune(new)


def rename_outputs(model: Model, names: Sequence[str]) -> Model:
    """Call the outputs ``names``, in their order.

    Raises:
        ExportError: not one name for each output, or a name is taken by another tensor.
    """
    refuse_subgraphs(model)
    new = copy(model)
    old = [output.name for output in new.graph.output]
    if len(set(old)) != len(old) or len(names) != len(old) or len(set(names)) != len(names):
        raise ExportError(f"the graph has the outputs {old}, which cannot be called {list(names)}")
    taken = {name for node in new.graph.node for name in (*node.output, *node.input)}
    taken |= {value.name for value in new.graph.input}
    clashes = [name for before, name in zip(old, names, strict=True) if name != before and name in taken]
    if clashes:
        raise ExportError(f"an output cannot be called {clashes[0]!r}: another tensor of the graph has that name")
    table = dict(zip(old, names, strict=True))
    for node in new.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = table.get(name, name)
    replace_inputs(new.graph.node, table)
    for value in [*new.graph.output, *new.graph.value_info]:
        value.name = table.get(value.name, value.name)
    return new


def prune(model: Model) -> Model:
    """Drop nodes, weights and shapes that no output needs. Inputs stay."""
    refuse_subgraphs(model)
    new = copy(model)
    needed = {output.name for output in new.graph.output}
    alive = []
    for node in reversed(new.graph.node):
        keep = any(name in needed for name in node.output)
        alive.append(keep)
        if keep:
            needed.update(name for name in node.input if name)
    drop(new.graph.node, alive[::-1])
    drop(new.graph.initializer, [tensor.name in needed for tensor in new.graph.initializer])
    made = {name for node in new.graph.node for name in node.output}
    drop(new.graph.value_info, [value.name in made for value in new.graph.value_info])
    return new


def fold_identity(model: Model) -> Model:
    """Remove Identity nodes; one stays where an output is an input, a weight, or another output."""
    refuse_subgraphs(model)
    new = copy(model)
    outputs = {output.name for output in new.graph.output}
    fixed = outputs | {value.name for value in new.graph.input} | {tensor.name for tensor in new.graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in new.graph.node:
        replace_inputs([node], renamed)
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
            kept.append(node)
            continue
        source, target = node.input[0], node.output[0]
        if target not in outputs:
            renamed[target] = source
        elif source in fixed:
            kept.append(node)
        else:
            # The producer takes over the output's name; whoever read the old name reads the new one.
            for earlier in kept:
                for i, name in enumerate(earlier.output):
                    if name == source:
                        earlier.output[i] = target
            replace_inputs(kept, {source: target})
            renamed = {key: target if value == source else value for key, value in renamed.items()}
            renamed[source] = target
            fixed.add(target)
    replace_nodes(new, kept)
    return new


def constants_to_initializers(model: Model) -> Model:
    """Turn Constant nodes that hold a tensor into weights."""
    refuse_subgraphs(model)
    new = copy(model)
    outputs = {output.name for output in new.graph.output}
    keep = []
    for node in new.graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        constant = node.op_type == "Constant" and value is not None and node.output[0] not in outputs
        keep.append(not constant)
        if constant and value is not None:
            tensor = new.graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
    drop(new.graph.node, keep)
    return new


def merge_equal_initializers(model: Model) -> Model:
    """Keep one of several equal weights (the first), and let all their readers share it."""
    refuse_subgraphs(model)
    numpy_helper = onnx_package().numpy_helper
    new = copy(model)
    pinned = {value.name for value in [*new.graph.input, *new.graph.output]}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    keep = []
    for tensor in new.graph.initializer:
        if tensor.name in pinned:
            keep.append(True)
            continue
        content = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).digest()
        name = first.setdefault((tensor.data_type, tuple(tensor.dims), content), tensor.name)
        keep.append(name == tensor.name)
        if name != tensor.name:
            renamed[tensor.name] = name
    replace_inputs(new.graph.node, renamed)
    drop(new.graph.initializer, keep)
    return new
