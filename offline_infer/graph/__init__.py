"""Passes over ONNX graphs: each takes a model and returns a new one; none touches a file unless its name says so.

They need the ``onnx`` package (``pip install 'offline-infer[export]'``); running a bundle does not.
"""

from offline_infer.graph.batched import batched
from offline_infer.graph.clean import (
    clean,
    constants_to_initializers,
    fold_identity,
    merge_equal_initializers,
    prune,
    rename_outputs,
    select_outputs,
)
from offline_infer.graph.facts import GraphFacts, Port, inspect_graph
from offline_infer.graph.half import FLOAT32_OPS, HalfReport, to_float16
from offline_infer.graph.instance_norm import decompose_instance_norm
from offline_infer.graph.model import graph_sha256, load_model, onnx_package, save_model, set_metadata
from offline_infer.graph.shapes import fix_shapes

__all__ = [
    "FLOAT32_OPS",
    "GraphFacts",
    "HalfReport",
    "Port",
    "batched",
    "clean",
    "constants_to_initializers",
    "decompose_instance_norm",
    "fix_shapes",
    "fold_identity",
    "graph_sha256",
    "inspect_graph",
    "load_model",
    "merge_equal_initializers",
    "onnx_package",
    "prune",
    "rename_outputs",
    "save_model",
    "select_outputs",
    "set_metadata",
    "to_float16",
]
