"""``offline-infer compare BUNDLE [OTHER] --layers A B``: two engines, two precisions or two bundles, tensor by tensor."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.commands.common import (
    check_report_places,
    existing,
    say,
    sink_for,
)
from offline_infer.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offline_infer.bundles.bundle import Bundle
    from offline_infer.proof.comparison.layers import Side


def compare_layers(options: argparse.Namespace) -> dict[str, Any]:
    """Compare, print where the two part, and write the record and the picture."""
    from offline_infer.files import write_json
    from offline_infer.proof.comparison import layers

    bundle = _bundle(options.a, options.fold)
    other = _bundle(options.b, options.fold) if options.b is not None else bundle
    if options.output is not None and options.output.suffix != ".json":
        raise UsageError(
            f"{options.output}: name a file that ends with .json; the picture is written beside it as .svg"
        )
    if options.output is not None:
        check_report_places(options.output, options.output.with_suffix(".svg"), inputs=options.input or ())
    first, second = (_side(found, text, options) for found, text in zip((bundle, other), options.layers, strict=True))
    found = layers.compare_layers(
        first, second, _input(bundle, options.input), tolerance=options.layer_tolerance, sink=sink_for(options)
    )
    say(options, layers.layers_text(found))
    record = found.to_json()
    if options.output is not None:
        write_json(options.output, record)
        picture = options.output.with_suffix(".svg")
        layers.write_growth_picture(picture, found)
        say(options, f"written: {options.output}, {picture}")
    return record


def _bundle(path: Path, fold: str | None) -> Bundle:
    """A bundle that has the fold.

    Raises:
        UsageError: it has not.
    """
    from offline_infer.tasks.opening import open_bundle

    bundle = open_bundle(existing(path))
    if fold is not None and fold not in bundle.folds:
        raise UsageError(f"{bundle.folder}: no fold {fold}; this bundle has {', '.join(bundle.folds)}")
    return bundle


def _side(bundle: Bundle, text: str, options: argparse.Namespace) -> Side:
    """``engine`` or ``engine:precision``, on a fold's graph, default the first.

    An engine that runs compiled graphs gets the bundle's, and the devices.
    """
    from offline_infer.bundles.artefacts import compiled_graphs
    from offline_infer.bundles.opening import checked_graph
    from offline_infer.engines.base import PRECISIONS, CompiledEngine, EngineOptions, get_engine
    from offline_infer.proof.comparison.layers import Side

    engine, _, precision = text.partition(":")
    precision = precision or "fp32"
    legal = [name for name in PRECISIONS if name != "int8"]  # an INT8 graph has tensors of its own
    if precision not in legal:
        raise UsageError(f"--layers {text!r}: unknown precision {precision!r}; legal names: {', '.join(legal)}")
    fold = options.fold if options.fold is not None else bundle.folds[0]
    graph = checked_graph(bundle, fold, get_engine(engine).graph_precision(precision))
    chosen = EngineOptions(precision=precision, threads=options.threads)
    if isinstance(get_engine(engine), CompiledEngine):
        devices = ",".join(map(str, options.devices or (0,)))
        chosen = replace(chosen, device=f"npu:{devices}", compiled=compiled_graphs(bundle, fold))
    return Side(engine, graph, chosen)


def _input(bundle: Bundle, files: list[Path] | None) -> npt.NDArray[np.float32]:
    """An input of the network: an array in a .npy file, a tile of a case, or smooth noise."""
    import numpy as np

    if files and len(files) == 1 and files[0].suffix == ".npy":
        try:
            array = np.load(existing(files[0]), allow_pickle=False)
        except ValueError as error:
            raise UsageError(f"{files[0]}: not an array without objects ({error})") from error
        return np.ascontiguousarray(array, np.float32)
    from offline_infer.images.cases import CaseFiles
    from offline_infer.tasks.registry import get_task

    case = CaseFiles("input", tuple(existing(path) for path in files)) if files else None
    return get_task(bundle.spec.task).sample_inputs(case, bundle.spec, 1, 0)[0]
