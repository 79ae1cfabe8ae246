"""A bundle: a folder with ``bundle.json``, one ONNX graph per fold, and compiled artefacts. Nothing in it is executed.

A graph made by ``export`` carries the same specification in its own metadata, so a lone ``.onnx`` is a bundle too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from offline_infer.bundles.manifest import MANIFEST, SIGNATURE, write_manifest
from offline_infer.bundles.onnx_metadata import graph_sha256, read_metadata
from offline_infer.digests import digest_of
from offline_infer.errors import BundleError, Remedy, UsageError
from offline_infer.files import is_partial, replacing_folder, sha256_file, write_json
from offline_infer.graph.admission import LIMITS
from offline_infer.spec import SCHEMA_VERSION, BundleSpec, CompiledRecord, GraphRecord, OutputSpec, VolumeSpec

BUNDLE_FILE = "bundle.json"
COMPILED = "compiled"
"""Folder of compiled artefacts and their logs; a failed compile leaves only a log there."""
BILL = "bom.cdx.json"
"""Bill of materials: the software that made the bundle, as CycloneDX lists it. It is listed in the manifest and read by nothing."""
PRECISION_CHECKS = "precision_checks.json"
"""What is known of the precisions; no part of the bundle proper (see :mod:`offline_infer.bundles.precision_checks`)."""
QUANTIZATION = "quantization.json"
"""How the INT8 graphs were made and judged (see :mod:`offline_infer.bundles.kept_records`)."""
TUNING = "tuning.json"
"""Settings that were chosen on labelled cases, with the measurements (see :mod:`offline_infer.bundles.kept_records`)."""
SPEC_KEY = "offline_infer.spec"
"""Metadata key of the specification (JSON, without ``graphs`` and ``compiled``) in an ONNX file."""
GRAPH_KEY = "offline_infer.graph"
"""Metadata key of ``{"fold": ..., "precision": ..., "opset": ..., "graph_sha256": ...}`` in an ONNX file."""

SpecOf = Callable[[str], type[BundleSpec]]
"""Task name, as the ``task`` field has it -> the type of its specifications; raises BundleError where it is unknown."""

_LARGEST_JSON = 1 << 24  # 16 MiB; a specification has a few kilobytes
_SHOWN = 5  # faults listed in one message


def volumes_only(task: str) -> type[BundleSpec]:
    """The default :data:`SpecOf`; :func:`offline_infer.tasks.registry.open_bundle` knows every task."""
    if task != "volume":
        raise BundleError(f"a bundle of the task {task!r}, where a volume model is needed")
    return VolumeSpec


@dataclass(frozen=True)
class Bundle:
    """A validated bundle.

    Attributes:
        folder: where its files are.
        spec: what it says.
        lone: the ``.onnx`` file, where the bundle is one file without ``bundle.json``.
    """

    folder: Path
    spec: BundleSpec
    lone: Path | None = None

    @classmethod
    def load(cls, path: Path | str, *, verify_hashes: bool = False, spec_of: SpecOf = volumes_only) -> Bundle:
        """Read and check a bundle folder, its ``bundle.json``, or a lone ``.onnx`` made by ``export``.

        Args:
            path: folder or file.
            verify_hashes: also read every file and compare its SHA-256.
            spec_of: which tasks are understood.

        Raises:
            BundleError: missing, damaged, of another schema version, or not self-contained; the message names file and
                field.
        """
        given = Path(path)
        if given.is_dir():
            bundle = _load_folder(given, spec_of)
        elif given.name == BUNDLE_FILE and given.is_file():
            bundle = _load_folder(given.parent, spec_of)
        elif given.suffix.lower() == ".onnx" and given.is_file():
            bundle = _load_lone(given, spec_of)
        elif given.exists():
            raise BundleError(
                f"{given} is not a bundle; expected a folder with {BUNDLE_FILE}, or an .onnx made by export"
            )
        else:
            raise BundleError(f"{given} does not exist; expected a bundle folder, or an .onnx made by export")
        if verify_hashes:
            bundle.check_hashes()
        return bundle

    @property
    def folds(self) -> tuple[str, ...]:
        """Folds that have a graph, in the order of the file."""
        return tuple(dict.fromkeys(graph.fold for graph in self.spec.graphs))

    @property
    def output(self) -> OutputSpec:
        """The first output that is kept: the network's logits."""
        return next(output for output in self.spec.outputs if output.keep)

    def graph(self, fold: str, precision: str = "fp32") -> GraphRecord:
        """The graph of a fold.

        Where the fold has a single graph besides an INT8 one and ``fp32`` or ``bf16`` is asked for, it is that graph whatever
        its precision: an engine can compute a half-precision graph in a wider type, but never the other way round.

        Raises:
            UsageError: no such graph; the message lists what there is.
        """
        mine = [graph for graph in self.spec.graphs if graph.fold == fold]
        if not mine:
            raise UsageError(f"{self.name}: no fold {fold!r}; this bundle has {', '.join(self.folds)}")
        for graph in mine:
            if graph.precision == precision:
                return graph
        wide = [graph for graph in mine if graph.precision != "int8"]
        if len(wide) == 1 and precision in ("fp32", "bf16"):
            return wide[0]
        legal = ", ".join(graph.precision for graph in mine)
        if precision == "int8":
            raise UsageError(f"{self.name}: fold {fold} has no int8 graph, only {legal}", remedy="quantize")
        raise UsageError(
            f"{self.name}: fold {fold} has no {precision} graph, only {legal}",
            remedy=Remedy("export-precision", {"precision": precision}),
        )

    def graph_path(self, fold: str, precision: str = "fp32") -> Path:
        """Path of the ONNX file of a fold; see :meth:`graph`."""
        record = self.graph(fold, precision)
        return self.lone if self.lone is not None else self.folder / record.file

    def compiled_path(self, record: CompiledRecord) -> Path:
        """Path of a compiled artefact of this bundle."""
        return self.folder / record.file

    @property
    def name(self) -> str:
        """What to call this bundle in a message."""
        return str(self.lone if self.lone is not None else self.folder)

    def check_hashes(self) -> None:
        """Compare every file with its recorded SHA-256, and every artefact with the graph it was compiled from.

        Raises:
            BundleError: a file was changed, or an artefact belongs to an older graph.
        """
        if self.lone is not None:
            return  # a lone file's record was made from the file itself
        faults = []
        for field, record in _records(self.spec):
            actual = sha256_file(self.folder / record.file)
            if actual != record.sha256:
                faults.append(f"{field}.sha256: {record.file} is {actual[:12]}..., recorded {record.sha256[:12]}...")
        recorded = {graph.file: graph.sha256 for graph in self.spec.graphs}
        for i, artefact in enumerate(self.spec.compiled):
            if artefact.graph_sha256 != recorded[artefact.graph]:
                faults.append(
                    f"compiled[{i}].graph_sha256: {artefact.file} was made from another {artefact.graph}; compile again"
                )
        _refuse(
            self.folder / BUNDLE_FILE, faults, "the files were changed after export; export or copy the bundle again"
        )


def save(spec: BundleSpec, folder: Path | str) -> Bundle:
    """Write ``bundle.json`` into a folder whose files are there already, atomically, and load the result.

    Raises:
        BundleError: the specification is inconsistent or names a missing file; an older ``bundle.json`` is left as it
            was.
    """
    place = Path(folder)
    _refuse(place / BUNDLE_FILE, [*_inconsistencies(spec), *_file_faults(spec, place)], "nothing was written")
    try:
        # Not mode="json": that would silently write NaN as null.
        write_json(place / BUNDLE_FILE, spec.model_dump())
        write_manifest(place, _digests(spec, place))
    except ValueError as error:
        raise BundleError(
            f"{place / BUNDLE_FILE}: a figure is NaN or infinite, which JSON cannot hold ({error})"
        ) from error
    return Bundle(place, spec)


@contextmanager
def creating(output: Path | str, *, overwrite: bool = False, spec_of: SpecOf = volumes_only) -> Iterator[Path]:
    """Yield a temporary folder beside ``output``; when the block ends with a valid bundle in it, it becomes ``output``.

    Until then an older bundle stays intact, and on any exception nothing is left behind.

    Raises:
        UsageError: ``output`` exists and is not an empty folder, and is not a bundle or ``overwrite`` was not given; or
            it holds files that are not the bundle's own.
        BundleError: the block did not make a valid bundle.
    """
    target = Path(output)
    _refuse_target(target, overwrite)
    try:
        with replacing_folder(target, overwrite=overwrite) as folder:
            yield folder
            Bundle.load(folder, spec_of=spec_of)
    except FileExistsError as error:
        raise UsageError(f"{target} was created by another process meanwhile; choose another folder") from error


def embedded(
    spec: BundleSpec, fold: str, precision: str, opset: int, graph_sha256: str | None = None
) -> dict[str, str]:
    """The metadata entries that make an ONNX file a bundle of its own.

    Args:
        graph_sha256: of the graph's serialised message. A file cannot hold its own digest, but it can hold that of its graph:
            weights that were exchanged or damaged are then noticed in a lone file too.
    """
    plain = spec.model_copy(update={"graphs": (), "compiled": ()})
    graph: dict[str, str | int] = {"fold": fold, "precision": precision, "opset": opset}
    if graph_sha256 is not None:
        graph["graph_sha256"] = graph_sha256
    return {
        SPEC_KEY: json.dumps(plain.model_dump(), separators=(",", ":"), allow_nan=False),
        GRAPH_KEY: json.dumps(graph, separators=(",", ":")),
    }


def recorded_graph_sha256(entries: Mapping[str, str]) -> str | None:
    """The digest of its own graph that an ONNX file's metadata hold; None where they hold none.

    Raises:
        BundleError: the entry is damaged.
    """
    recorded = _json_object(entries.get(GRAPH_KEY, "{}").encode(), GRAPH_KEY).get("graph_sha256")
    return None if recorded is None else str(recorded)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _load_folder(folder: Path, spec_of: SpecOf) -> Bundle:
    file = folder / BUNDLE_FILE
    if not file.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {BUNDLE_FILE}; make one with 'offline-infer export'")
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise BundleError(f"{file} has {file.stat().st_size:,} bytes; a specification has a few thousand")
        text = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror or error}") from error
    spec = _parse(text, file, spec_of)
    _refuse(file, [*_inconsistencies(spec), *_file_faults(spec, folder)], "export or copy the bundle again")
    return Bundle(folder, spec)


def _load_lone(path: Path, spec_of: SpecOf) -> Bundle:
    metadata = read_metadata(path)
    if SPEC_KEY not in metadata.entries:
        raise BundleError(
            f"{path} carries no specification (metadata key {SPEC_KEY}), so its pre- and post-processing are unknown; "
            "use a file made by 'offline-infer export'"
        )
    where = f"{path} [{SPEC_KEY}]"
    spec = _parse(metadata.entries[SPEC_KEY].encode(), where, spec_of)
    about = _json_object(metadata.entries.get(GRAPH_KEY, "{}").encode(), f"{path} [{GRAPH_KEY}]")
    try:
        record = GraphRecord(  # a missing or wrong entry is refused here
            # The file may have been renamed to anything; a record's name has to be a plain one.
            file=path.name if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", path.name) else "graph.onnx",
            fold=about.get("fold", ""),
            precision=about.get("precision", ""),
            opset=metadata.opset,
            sha256=digest_of(path),
        )
    except ValidationError as error:
        raise BundleError(f"{path} [{GRAPH_KEY}]: {_first_faults(error)}; export it again") from error
    recorded = recorded_graph_sha256(metadata.entries)
    if recorded is not None and recorded != graph_sha256(path, metadata.graph):
        raise BundleError(
            f"{path} was changed after it was exported: its graph is not the one that it was recorded with; copy or export "
            "it again"
        )
    spec = spec.model_copy(update={"graphs": (record,), "compiled": ()})
    _refuse(where, _inconsistencies(spec), "export it again")
    return Bundle(path.parent, spec, lone=path)


def _parse(text: bytes, where: Path | str, spec_of: SpecOf) -> BundleSpec:
    """A specification from JSON; exact types only."""
    record = _json_object(text, where)
    version = record.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        if version is None:
            raise BundleError(f"{where}: schema_version is missing; this is not a bundle's specification")
        raise BundleError(
            f"{where}: schema_version is {version!r}, this program reads {SCHEMA_VERSION}; "
            "export the checkpoint again, or use the program version the bundle was made with"
        )
    task = record.get("task", "volume")
    if not isinstance(task, str):
        raise BundleError(f"{where}: task is {task!r}, expected a name")
    try:
        return spec_of(task).model_validate_json(text, strict=True)
    except ValidationError as error:
        raise BundleError(f"{where}: {_first_faults(error)}; export or copy the bundle again") from error


def _json_object(text: bytes, where: Path | str) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
        return record

    def no_constants(name: str) -> Any:
        raise ValueError(f"{name} is not a number JSON knows")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constants)
    except UnicodeDecodeError as error:
        raise BundleError(f"{where} is not UTF-8 text; copy or export the bundle again") from error
    except json.JSONDecodeError as error:
        raise BundleError(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "copy or export the bundle again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not a specification: {error}; copy or export the bundle again") from error
    if not isinstance(value, dict):
        raise BundleError(f"{where} holds a JSON {type(value).__name__}, expected an object")
    return value


# ---- checks: each gives a list of "field: what is wrong" -------------------------------------------------------------


def _inconsistencies(spec: BundleSpec) -> list[str]:
    """What pydantic cannot see: records that contradict each other."""
    faults = []
    if not spec.graphs:
        faults.append("graphs: the bundle holds no graph")
    faults += _absurd(spec)
    kept = [output for output in spec.outputs if output.keep]
    names = [output.name for output in spec.outputs]
    if not kept:
        faults.append("outputs: no output is kept")
    if len(set(names)) != len(names):
        faults.append(f"outputs: a name stands twice in {names}")
    faults += spec.contradictions()
    sources = {fold.fold for fold in spec.source.folds}
    taken: set[tuple[str, str]] = set()
    for i, graph in enumerate(spec.graphs):
        if graph.fold not in sources:
            faults.append(f"graphs[{i}].fold: {graph.fold!r} is not among source.folds ({', '.join(sorted(sources))})")
        if (graph.fold, graph.precision) in taken:
            faults.append(f"graphs[{i}]: fold {graph.fold} has two {graph.precision} graphs")
        taken.add((graph.fold, graph.precision))
    files = [record.file for _, record in _records(spec)]
    faults += [f"{file} is listed twice" for file in sorted({file for file in files if files.count(file) > 1})]
    known = {graph.file for graph in spec.graphs}
    faults += [
        f"compiled[{i}].graph: {artefact.graph} is not a graph of this bundle"
        for i, artefact in enumerate(spec.compiled)
        if artefact.graph not in known
    ]
    return faults


def _absurd(spec: BundleSpec) -> list[str]:
    """Figures that are well-formed but that no run could survive: memory for them would be requested before anything fails."""
    faults = []
    shapes = {"input": spec.input_shape, **{f"outputs.{output.name}": output.shape for output in spec.outputs}}
    for where, shape in shapes.items():
        if math.prod(size for size in shape if size > 0) > LIMITS.values or len(shape) > LIMITS.rank:
            faults.append(
                f"{where}: a shape of {len(shape)} axes and more than {LIMITS.values:,} values is not a network's"
            )
    return faults


def _file_faults(spec: BundleSpec, folder: Path) -> list[str]:
    """Files that are missing, empty, or reached through a link that leaves the folder."""
    faults = []
    root = folder.resolve()
    for field, record in _records(spec):
        path = folder / record.file
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            faults.append(f"{field}.file: {record.file} is missing")
            continue
        if not real.is_relative_to(root):
            faults.append(
                f"{field}.file: {record.file} is a link out of the bundle; copy the bundle with links resolved (cp -rL)"
            )
        elif not real.is_file():
            faults.append(f"{field}.file: {record.file} is not a file")
        elif real.stat().st_size == 0:
            faults.append(f"{field}.file: {record.file} is empty")
    return faults


def _records(spec: BundleSpec) -> list[tuple[str, GraphRecord | CompiledRecord]]:
    """Every record that names a file, with its field path."""
    graphs: list[tuple[str, GraphRecord | CompiledRecord]] = [(f"graphs[{i}]", g) for i, g in enumerate(spec.graphs)]
    return graphs + [(f"compiled[{i}]", c) for i, c in enumerate(spec.compiled)]


def _digests(spec: BundleSpec, folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a bundle: as recorded, and of what no record covers."""
    digests = {record.file: record.sha256 for _, record in _records(spec)}
    logs = {item.log for item in spec.compiled if item.log is not None}
    others = ({BUNDLE_FILE, BILL, QUANTIZATION, TUNING} | logs) - set(digests)
    return digests | {name: sha256_file(folder / name) for name in others if (folder / name).is_file()}


def _refuse(where: Path | str, faults: list[str], remedy: str) -> None:
    if faults:
        more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise BundleError(f"{where}: {'; '.join(faults[:_SHOWN])}{more}; {remedy}")


def _first_faults(error: ValidationError) -> str:
    parts = []
    for fault in error.errors(include_url=False, include_context=False)[:_SHOWN]:
        field = ""
        for step in fault["loc"]:
            field += f"[{step}]" if isinstance(step, int) else f".{step}" if field else str(step)
        given = fault.get("input")
        shown = f" (found {given!r:.60})" if isinstance(given, (str, int, float, bool)) or given is None else ""
        if fault["type"] == "missing":
            shown = ""
        message = fault["msg"].removeprefix("Value error, ")
        parts.append(f"{field or 'whole file'}: {message[:1].lower()}{message[1:]}{shown}")
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f" (and {more} more)" if more > 0 else "")


def _top_names(text: bytes, where: Path) -> set[str]:
    """Names at the top of the folder that the specification lists, of whatever task it is.

    Raises:
        BundleError: not a specification.
    """
    record = _json_object(text, where)
    entries = [entry for key in ("graphs", "compiled") for entry in record.get(key, ())]
    if record.get("schema_version") != SCHEMA_VERSION or not all(isinstance(entry, dict) for entry in entries):
        raise BundleError(f"{where} is not a specification of this version")
    return {str(entry.get("file")).split("/")[0] for entry in entries}


def _refuse_target(target: Path, overwrite: bool) -> None:
    """Refuse to make a bundle where something else is, or would be lost."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder for the bundle")
    present = {entry.name for entry in target.iterdir() if not is_partial(entry)}
    if not present:
        return
    if BUNDLE_FILE not in present:
        raise UsageError(f"{target} holds other files and is not a bundle; choose another folder")
    if not overwrite:
        raise UsageError(f"{target} already holds a bundle", remedy="overwrite-bundle")
    try:
        own = _top_names((target / BUNDLE_FILE).read_bytes(), target)
    except (BundleError, OSError) as error:
        raise UsageError(
            f"{target}: {BUNDLE_FILE} cannot be read, so what may be deleted is unknown; remove the folder yourself"
        ) from error
    ours = {BUNDLE_FILE, BILL, COMPILED, PRECISION_CHECKS, QUANTIZATION, TUNING, MANIFEST, SIGNATURE}
    foreign = sorted(present - own - ours)
    if foreign:
        raise UsageError(
            f"{target} holds files that are not the bundle's ({', '.join(foreign[:_SHOWN])}); move them away first"
        )
