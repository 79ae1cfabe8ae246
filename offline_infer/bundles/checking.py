"""Everything about a bundle that can be checked without running it, and a sentence on each check, even when all is well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline_infer.bundles.bundle import GRAPH_KEY, PRECISION_CHECKS, SPEC_KEY, Bundle, recorded_graph_sha256
from offline_infer.bundles.manifest import MANIFEST, check_manifest
from offline_infer.bundles.onnx_metadata import graph_sha256, read_metadata
from offline_infer.bundles.signature import SignatureCheck, check_signature
from offline_infer.errors import BundleError
from offline_infer.graph.admission import admit


@dataclass(frozen=True)
class BundleCheck:
    """What was checked: ``done`` says what agrees, ``open`` what could not be checked and why; ``signature`` if there is one."""

    done: tuple[str, ...]
    open: tuple[str, ...]
    signature: SignatureCheck | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        signature = None if self.signature is None else dict(self.signature.__dict__)
        return {"done": list(self.done), "open": list(self.open), "signature": signature}


def check_bundle(bundle: Bundle, public_key: Path | None = None) -> BundleCheck:
    """Read every file of a bundle and compare it with whatever record of it there is.

    Args:
        public_key: of the signature, where the bundle has to be signed by its owner.

    Raises:
        BundleError: something does not agree, a graph is not admitted, or the bundle is not signed although a key was given.
        UsageError: the key cannot be used.
    """
    done: list[str] = []
    left: list[str] = []
    for graph in bundle.spec.graphs:
        path = bundle.graph_path(graph.fold, graph.precision)
        found = admit(path, control_flow=bundle.spec.control_flow)
        done.append(f"{path.name}: {sum(found.operators.values()):,} operators, all admitted, complete in one file")
    if bundle.lone is not None:
        return _lone(bundle, bundle.lone, public_key, done, left)
    bundle.check_hashes()
    artefacts = len(bundle.spec.compiled)
    done.append(
        f"SHA-256 of {len(bundle.spec.graphs)} graphs and {artefacts} compiled artefacts: as recorded in bundle.json"
    )
    manifest = check_manifest(bundle.folder, frozenset({PRECISION_CHECKS}))
    if manifest is None:
        left.append(f"there is no {MANIFEST}, so bundle.json itself is not covered; bundles exported today have one")
    elif manifest.faults:
        raise BundleError(
            f"{bundle.folder / MANIFEST}: {'; '.join(manifest.faults[:5])}; export or copy the bundle again"
        )
    else:
        done.append(f"SHA-256 of {len(manifest.agreeing)} files, bundle.json among them: as in {MANIFEST}")
        if manifest.unlisted:
            left.append(f"no part of the bundle, and read by nothing: {', '.join(manifest.unlisted[:5])}")
    signature = _signature(bundle, public_key, done, left)
    return BundleCheck(tuple(done), tuple(left), signature)


def _signature(bundle: Bundle, public_key: Path | None, done: list[str], left: list[str]) -> SignatureCheck | None:
    signature = check_signature(bundle.folder, public_key)
    if signature is None:
        if public_key is not None:
            raise BundleError(f"{bundle.folder} is not signed, and a signature by {public_key.name} was asked for")
        left.append("not signed: the digests show accidents, not who made the files")
    elif signature.faults:
        raise BundleError(f"{bundle.folder}: the signature is not good: {'; '.join(signature.faults[:5])}")
    elif signature.checked:
        done.append(f"signed by the key {signature.key[:16]}... over {signature.files} files: good")
    else:
        left.append(
            f"signed by the key {signature.key[:16]}... over {signature.files} files: not checked without its public key"
        )
    return signature


def _lone(bundle: Bundle, path: Path, public_key: Path | None, done: list[str], left: list[str]) -> BundleCheck:
    """What can be said of one file: it cannot hold its own digest, but that of its graph."""
    if public_key is not None:
        raise BundleError(f"{path} is a lone file, which carries no signature; keep it in its bundle")
    metadata = read_metadata(path)
    recorded = recorded_graph_sha256(metadata.entries)
    if recorded is None:
        left.append(f"the file holds no digest of its graph ({GRAPH_KEY}); files exported today do")
    elif recorded == graph_sha256(path, metadata.graph):
        done.append("SHA-256 of the graph, weights and all: as recorded in the file")
    left.append(
        f"the record stands in the file itself ({SPEC_KEY}), so it shows accidents, not intent; compare the file's SHA-256 "
        f"with its bundle's: {bundle.spec.graphs[0].sha256}"
    )
    return BundleCheck(tuple(done), tuple(left), None)
