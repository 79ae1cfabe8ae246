"""ONNX to OM through ``atc``: into the bundle, or not at all.

``atc`` prints everything to standard output and leaves files in its working directory: it runs in a folder of its own,
in a process group of its own, with a time limit. It is believed only if it says so, ends with status 0, and a new
``.om`` is there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline_infer.ascend.flags import Flags, build_flags
from offline_infer.ascend.limits import COMPILE_TIMEOUT_S
from offline_infer.ascend.preflight import ATC_PATH, Preflight, check_graph, resolve_outputs
from offline_infer.ascend.socs import check_soc
from offline_infer.ascend.toolkit import toolkit_version
from offline_infer.bundles.bundle import COMPILED, Bundle, save
from offline_infer.engines.om.error_codes import explain, sentences, warnings
from offline_infer.errors import BundleError, Remedy, ToolError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import is_partial, replacing, sha256_file, write_text
from offline_infer.guardian import GUARDIAN
from offline_infer.interruption import termination_as_interrupt
from offline_infer.processes import (
    Finished,
    describe_status,
    end_leftovers,
    find_program,
    last_lines,
    read_log,
    run,
)
from offline_infer.scratch import held
from offline_infer.spec import CompiledRecord, GraphRecord, OutputSpec
from offline_infer.tasks.opening import open_bundle

SUCCESS = "ATC run success"
DECOMPOSED = "decompose-instance-norm"
_STAGE = "compile"
_NAME_IT = Remedy("name-compiler")
_MORE_TIME = Remedy("more-compile-time")
_LOOK_S = 600.0
_PRIVATE = "offline_infer_atc_"
_OPTION_CODES = frozenset({"E10001", "E10007", "E10054", "E10055", "option"})
"""What ``atc`` says of an option or a mode it does not know."""
_OM_MODE = 0o640  # newer tools refuse models that others may write


@dataclass(frozen=True)
class CompileOptions:
    """How graphs are compiled.

    Attributes:
        graph_precision: which graph of a fold, ``fp32`` or ``fp16``.
        precision_mode, precision_mode_v2: what ``atc`` computes in; they exclude each other; default is float16.
        out_nodes: outputs to keep, ``name;name`` or ``node:index;...``; None: all of the graph.
        extra_flags: further options of ``atc``, each ``--name=value``.
        input_format: ``NCDHW``, ``NCHW`` or ``ND``; None decides by the number of axes.
        decompose_instance_norm: write InstanceNormalization out in elementary operators first.
        allow_unlisted_soc: accept a chip name this release does not know.
        overwrite: compile even if the bundle holds this very OM.
        atc: the program, by name or path.
        timeout_s: per graph.
    """

    graph_precision: str = "fp32"
    precision_mode: str | None = None
    precision_mode_v2: str | None = None
    out_nodes: str | None = None
    extra_flags: Sequence[str] = ()
    input_format: str | None = None
    decompose_instance_norm: bool = False
    allow_unlisted_soc: bool = False
    overwrite: bool = False
    atc: str = "atc"
    timeout_s: float = COMPILE_TIMEOUT_S


@dataclass(frozen=True)
class Compilation:
    """One OM.

    Attributes:
        record: as it stands in the bundle.
        reused: it was there already, made from the same graph with the same tool and flags.
        advice: of the look at the graph; ``warnings``: coded warning lines of ``atc``.
    """

    record: CompiledRecord
    fold: str
    reused: bool
    seconds: float
    advice: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_text(self) -> str:
        """For people: one line."""
        if self.reused:
            return f"fold {self.fold}: {self.record.file} is up to date"
        return f"fold {self.fold}: {self.record.file} for {self.record.soc} in {self.seconds:.1f} s"

    def to_json(self) -> dict[str, Any]:
        return {
            **self.record.model_dump(mode="json"),
            "fold": self.fold,
            "reused": self.reused,
            "seconds": round(self.seconds, 3),
            "advice": list(self.advice),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _Job:
    """Everything about one conversion that is known before it starts."""

    bundle: Bundle
    graph: GraphRecord
    soc: str
    atc: str
    tool_version: str | None
    flags: Flags
    preflight: Preflight
    outputs: tuple[OutputSpec, ...]
    model: Any
    passes: tuple[str, ...]
    timeout_s: float

    @property
    def stem(self) -> str:
        return f"{Path(self.graph.file).stem}.{self.soc}"

    def describes(self, record: CompiledRecord) -> bool:
        """Whether a record is of just this conversion."""
        return (record.graph, record.graph_sha256, record.soc, record.flags, record.passes, record.tool_version) == (
            self.graph.file,
            self.graph.sha256,
            self.soc,
            self.flags.recorded,
            self.passes,
            self.tool_version,
        )


def compile_bundle(
    bundle_folder: Path | str,
    soc: str,
    options: CompileOptions | None = None,
    *,
    fold: str | None = None,
    sink: Sink = silent,
) -> tuple[Compilation, ...]:
    """Compile the graphs of a bundle for a chip and record the OMs in it.

    A bundle holds one OM per graph and chip; another one for the same replaces it.

    Args:
        soc: exact chip name, e.g. ``Ascend310P3``.
        options: what ``atc`` does, and how; None: the defaults.
        fold: one fold; None: all.

    Raises:
        UsageError: a wrong option, or a graph that cannot be converted.
        EngineUnavailable: ``atc`` is missing.
        BundleError: the bundle is damaged, or its graph is not the recorded one.
        ToolError: ``atc`` failed; the message explains its error codes and names the log.
    """
    options = options if options is not None else CompileOptions()
    check_soc(soc, allow_unlisted=options.allow_unlisted_soc)
    bundle = open_bundle(bundle_folder)
    if bundle.lone is not None:
        raise UsageError(f"{bundle.name} is a single file; compile needs a bundle folder to put the OM into")
    if fold is not None and fold not in bundle.folds:
        raise UsageError(f"{bundle.name}: no fold {fold!r}; this bundle has {', '.join(bundle.folds)}")
    program = find_program(options.atc, purpose="CANN's graph compiler", remedy=f"source scripts/set_env.sh {_NAME_IT}")
    _sweep(bundle.folder)
    done = []
    for each in bundle.folds if fold is None else (fold,):
        job = _prepare(bundle, bundle.graph(each, options.graph_precision), soc, program, options)
        for sentence in job.preflight.advice:
            sink(Event("note", _STAGE, data={"fold": each, "text": sentence}))
        done.append(_compile(job, options.overwrite, sink))
    return tuple(done)


def _prepare(bundle: Bundle, graph: GraphRecord, soc: str, program: str, options: CompileOptions) -> _Job:
    """Check a graph and collect what its conversion needs."""
    model, passes = _load(bundle, graph, options.decompose_instance_norm)
    preflight = check_graph(model, f"{bundle.name}/{graph.file}", decomposed=bool(passes))
    flags = build_flags(
        soc,
        preflight.input_name,
        preflight.input_shape,
        input_format=options.input_format,
        precision_mode=options.precision_mode,
        precision_mode_v2=options.precision_mode_v2,
        out_nodes=options.out_nodes,
        extra=options.extra_flags,
    )
    return _Job(
        bundle=bundle,
        graph=graph,
        soc=soc,
        atc=program,
        tool_version=version_of(program),
        flags=flags,
        preflight=preflight,
        outputs=resolve_outputs(model, bundle.spec, preflight.facts, options.out_nodes, flags.output_dtype),
        model=model,
        passes=passes,
        timeout_s=options.timeout_s,
    )


def version_of(program: str) -> str | None:
    """The release an ``atc`` belongs to, from the version file of the toolkit around it."""
    folder = Path(program).resolve().parent
    for _ in range(4):  # .../<toolkit>/<arch>-linux/bin/atc, .../<toolkit>/compiler/bin/atc, .../<toolkit>/bin/atc
        if version := toolkit_version(folder):
            return version
        folder = folder.parent
    return None


def _load(bundle: Bundle, graph: GraphRecord, decompose: bool) -> tuple[Any, tuple[str, ...]]:
    """The graph, with instance normalisation written out if asked for."""
    from offline_infer.graph.instance_norm import decompose_instance_norm
    from offline_infer.graph.model import load_model

    path = bundle.folder / graph.file
    if sha256_file(path) != graph.sha256:
        raise BundleError(f"{path} was changed after it was exported; export the checkpoint again")
    model = load_model(path)
    if not decompose:
        return model, ()
    return decompose_instance_norm(model), (DECOMPOSED,)


def _compile(job: _Job, overwrite: bool, sink: Sink) -> Compilation:
    place = job.bundle.folder / COMPILED
    for record in job.bundle.spec.compiled:
        if not overwrite and job.describes(record) and sha256_file(job.bundle.compiled_path(record)) == record.sha256:
            sink(Event("note", _STAGE, data={"fold": job.graph.fold, "text": f"{record.file} is up to date"}))
            return Compilation(record, job.graph.fold, True, 0.0, job.preflight.advice)
    sink(
        Event("stage-started", _STAGE, data={"fold": job.graph.fold, "soc": job.soc, "flags": list(job.flags.recorded)})
    )
    with _private_folder() as folder, termination_as_interrupt():
        log = folder / "atc.log"
        (folder / "out").mkdir()
        _write_graph(job, folder / "graph.onnx")
        command = [job.atc, f"--model={folder / 'graph.onnx'}", f"--output={folder / 'out' / 'model'}"]
        finished = run([*command, *job.flags.arguments], cwd=folder / "out", log=log, timeout_s=job.timeout_s)
        text = read_log(log, limit=1 << 24)
        # The folder was empty: whatever is in it now is new. With options for another host the name may be longer:
        # model_<os>_<arch>.om
        found = sorted((folder / "out").glob("model*.om"))
        reason = _failure(finished, text, found) or _damage(job, found[0], folder)
        if reason is not None:
            kept = place / f"{job.stem}.failed.log"
            write_text(kept, text)
            raise ToolError(f"atc could not compile {job.graph.file} for {job.soc}: {reason}; its log: {kept}")
        write_text(place / f"{job.stem}.log", text)
        record = _take_over(job, found[0], place / f"{job.stem}.om")
    (place / f"{job.stem}.failed.log").unlink(missing_ok=True)
    return Compilation(record, job.graph.fold, False, finished.seconds, job.preflight.advice, tuple(warnings(text)))


def _failure(finished: Finished, text: str, found: Sequence[Path]) -> str | None:
    """Why ``atc`` cannot be believed, or None."""
    if finished.timed_out:
        return f"it was not ready after {finished.seconds:.0f} s {_MORE_TIME}"
    known = sentences(text)
    if finished.status == 0 and SUCCESS in text and len(found) == 1 and found[0].stat().st_size > 0:
        return None
    if finished.status != 0:
        what = describe_status(finished.status)
    elif SUCCESS not in text:
        what = f"it ended with status 0, but without saying {SUCCESS!r}"
    elif len(found) > 1:
        what = f"it left {len(found)} .om files: {', '.join(path.name for path in found)}"
    else:
        what = "it reported success, but no .om is there"
    detail = known or last_lines(text)
    return f"{what}: {detail}" if detail else what


def _damage(job: _Job, made: Path, folder: Path) -> str | None:
    """Have ``atc`` read the OM it has written: a full disk or a kill leaves a torn one behind a success text.

    Releases whose ``atc`` cannot look at an OM (``--mode=6``) say that the option is wrong; the OM then passes.
    """
    log = folder / "look.log"
    finished = run(
        [job.atc, "--mode=6", f"--om={made}"], cwd=folder / "out", log=log, timeout_s=min(job.timeout_s, _LOOK_S)
    )
    if finished.status == 0:
        return None
    text = read_log(log)
    if any(explanation.code in _OPTION_CODES for explanation in explain(text)):
        return None
    detail = sentences(text) or last_lines(text)
    return f"it reported success, but cannot read the OM it wrote ({made.stat().st_size} bytes): {detail}"


def _take_over(job: _Job, made: Path, target: Path) -> CompiledRecord:
    """Put the OM into the bundle and record it; whoever reads meanwhile sees the old state or the new one."""
    with held(job.bundle.folder):
        with replacing(target) as temporary:
            GUARDIAN.watch_path(temporary)
            shutil.copyfile(made, temporary)
            temporary.chmod(_OM_MODE)
        GUARDIAN.forget_path(temporary)
        target.chmod(_OM_MODE)
        record = CompiledRecord(
            file=f"{COMPILED}/{target.name}",
            graph=job.graph.file,
            graph_sha256=job.graph.sha256,
            sha256=sha256_file(target),
            soc=job.soc,
            tool="atc",
            tool_version=job.tool_version,
            flags=job.flags.recorded,
            passes=job.passes,
            input_dtype=job.flags.input_dtype or job.preflight.input_dtype,
            outputs=job.outputs,
            log=f"{COMPILED}/{job.stem}.log",
        )
        spec = open_bundle(job.bundle.folder).spec  # another compile may have added to it meanwhile
        others = tuple(each for each in spec.compiled if each.file != record.file)
        save(spec.model_copy(update={"compiled": (*others, record)}), job.bundle.folder)
    return record


def _write_graph(job: _Job, path: Path) -> None:
    from offline_infer.graph.model import save_model

    if job.passes:
        save_model(job.model, path)
    else:
        shutil.copyfile(job.bundle.folder / job.graph.file, path)


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A temporary folder whose path ``atc`` can be given; deleted at the end.

    Raises:
        UsageError: the place for temporary files has characters ``atc`` does not take.
    """
    base = tempfile.gettempdir()
    if not ATC_PATH.fullmatch(base):
        raise UsageError(
            f"the folder for temporary files, {base!r}, has characters atc does not accept; "
            "set TMPDIR to a path of letters, digits, '_', '-', '.' and '/'"
        )
    with tempfile.TemporaryDirectory(prefix=_PRIVATE, ignore_cleanup_errors=True) as folder, held(Path(folder)):
        GUARDIAN.watch_path(Path(folder))
        yield Path(folder)
    GUARDIAN.forget_path(Path(folder))


def _sweep(bundle: Path) -> None:
    """Clean up after compiles that were killed so thoroughly that nobody else could: compilers, their folders, torn files."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PRIVATE}*"):
        with suppress(OSError):  # another user's, or one that is at work
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with held(folder, wait=False):
                end_leftovers(folder)
                shutil.rmtree(folder, ignore_errors=True)
    if (bundle / COMPILED).is_dir():
        with held(bundle):
            for path in (bundle / COMPILED).glob(".*.om"):  # logs are written without the bundle being held
                if is_partial(path) and path.is_file() and not path.is_symlink():
                    path.unlink(missing_ok=True)
