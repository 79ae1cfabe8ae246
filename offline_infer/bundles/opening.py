"""The one way from a bundle to a running network: the file is compared with its record before an engine opens it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from offline_infer.bundles.artefacts import compiled_graphs
from offline_infer.bundles.bundle import Bundle
from offline_infer.digests import FileState, digest_of, state_of
from offline_infer.engines.base import CompiledEngine, EngineOptions, Session, get_engine
from offline_infer.engines.compiled import CompiledGraph
from offline_infer.errors import BundleError


def open_fold(bundle: Bundle, fold: str, engine: str, options: EngineOptions) -> Session:
    """Open the graph of a fold on an engine.

    What the bundle knows is filled in: the outputs that are kept, the control flow its task allows, what is computed around
    INT8 layers, and compiled artefacts.

    Args:
        engine: exact name.
        options: ``outputs`` where others than the bundle's kept ones are wanted.

    Raises:
        BundleError: the graph is missing, was changed since it was recorded, is not admitted (see
            :mod:`offline_infer.graph.admission`), or takes another input than the bundle says.
        EngineUnavailable, UsageError: see :func:`offline_infer.engines.base.get_engine` and ``Engine.open``.
    """
    chosen = get_engine(engine)
    record = bundle.graph(fold, chosen.graph_precision(options.precision))
    path = bundle.graph_path(fold, record.precision)
    state = check_recorded(path, record.sha256)
    options = replace(
        options,
        outputs=options.outputs or bundle.spec.kept_outputs,
        control_flow=bundle.spec.control_flow,
        around=record.around,
        compiled=options.compiled or compiled_graphs(bundle, fold),
    )
    session = chosen.open(path, options)
    try:
        if _state(path) != state:
            raise BundleError(f"{path} was changed while it was opened; copy or export the bundle again")
        expected = tuple(bundle.spec.input_shape)
        if session.info.input_shape != expected:
            raise BundleError(
                f"{path} takes an input of shape {session.info.input_shape}, the bundle says {expected}; "
                "export the bundle again"
            )
    except BaseException:
        session.close()
        raise
    return session


def compiled_for(bundle: Bundle, fold: str, engine: str, options: EngineOptions) -> CompiledGraph | None:
    """What an engine would run instead of a fold's graph; None for an engine that runs the graph itself.

    Raises:
        BundleError, EngineUnavailable, UsageError: see :class:`offline_infer.engines.base.CompiledEngine`.
    """
    chosen = get_engine(engine)
    if not isinstance(chosen, CompiledEngine):
        return None
    graph = bundle.graph(fold, chosen.graph_precision(options.precision))
    return chosen.chosen(graph.file, replace(options, compiled=options.compiled or compiled_graphs(bundle, fold)))


def checked_graph(bundle: Bundle, fold: str, precision: str = "fp32") -> Path:
    """The path of a fold's graph, for whoever opens it otherwise than by :func:`open_fold`.

    Raises:
        UsageError: no such graph.
        BundleError: it is missing or was changed since it was recorded.
    """
    path = bundle.graph_path(fold, precision)
    check_recorded(path, bundle.graph(fold, precision).sha256)
    return path


def check_recorded(path: Path, sha256: str) -> FileState:
    """Compare a file of a bundle with its recorded digest; unchanged files are not read twice.

    Returns:
        The state the file was compared in.

    Raises:
        BundleError: it is missing or was changed; the message names both digests.
    """
    state = _state(path)
    try:
        actual = digest_of(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    if actual != sha256:
        raise BundleError(
            f"{path} was changed after it was recorded: its SHA-256 is {actual[:16]}..., the bundle says "
            f"{sha256[:16]}...; it was not opened. Copy or export the bundle again"
        )
    return state


def _state(path: Path) -> FileState:
    try:
        return state_of(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
