"""What makes two bundles the same model."""

from __future__ import annotations

import hashlib
import json

from offline_infer.spec import BundleSpec


def fingerprint(spec: BundleSpec) -> str:
    """SHA-256 over what decides the network's numbers: the specification and the full-precision graphs' hashes.

    Compiled artefacts, verification records and graphs of other precisions may be added to a bundle without making it
    another model.
    """
    record = spec.model_dump(mode="json", exclude={"compiled", "graphs", "made_with"})
    record["graphs"] = sorted((graph.fold, graph.sha256) for graph in spec.graphs if graph.precision == "fp32")
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
