"""A bundle that is ready to answer: the object behind ``offline_infer.load`` and behind every command that runs a network."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.canary import require_canary
from offline_infer.bundles.opening import open_fold
from offline_infer.bundles.precision_checks import Check, Standing, UnverifiedPrecision, standing, subject_of
from offline_infer.engines.base import PRECISIONS, EngineOptions, Session, SessionInfo, get_engine
from offline_infer.errors import UsageError
from offline_infer.machine import memory_held
from offline_infer.predict.memory import Method, SpillFile, choose_method, refuse_hopeless, refuse_impossible, room_left
from offline_infer.predict.streaming import infer
from offline_infer.spec import BundleSpec
from offline_infer.tasks.base import Prepared, PreviousStage, Progress
from offline_infer.tasks.memory import MemoryEstimate
from offline_infer.tasks.opening import open_bundle
from offline_infer.tasks.registry import get_task
from offline_infer.tasks.running import prepare_loaded
from offline_infer.tasks.settings import RunSettings, check_options


class Model:
    """An opened bundle. Use as a context manager, or call :meth:`close`.

    The engine is opened at the first prediction, so inspecting a bundle costs nothing.

    Args:
        bundle: the bundle.
        engine: ``openvino`` or ``onnxruntime``; exact names only.
        options: device, precision, threads and cache of the engine.
        folds: which folds to average, default all.
        previous: for the second stage of a cascade, the opened first stage.
        unverified: run a precision even if its comparison with float32 has failed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = "openvino",
        options: EngineOptions | None = None,
        folds: Sequence[str] | None = None,
        previous: Model | None = None,
        unverified: bool = False,
    ) -> None:
        self.bundle = bundle
        self.unverified = unverified
        self.previous = previous
        self.engine = engine
        self.options = options if options is not None else EngineOptions()
        _check_arguments(self.options, folds)
        self.folds = tuple(folds) if folds else bundle.folds
        unknown = [fold for fold in self.folds if fold not in bundle.folds]
        if unknown:
            raise UsageError(
                f"{bundle.folder}: no fold {', '.join(unknown)}; this bundle has {', '.join(bundle.folds)}"
            )
        get_engine(engine)
        self.task = get_task(bundle.spec.task)
        self._opening = threading.Lock()
        self._sessions: list[Session] = []
        self._standing = Standing()
        self._checks: tuple[Check, ...] = ()
        self._told = False

    @property
    def spec(self) -> BundleSpec:
        """What the bundle says about its network."""
        return self.bundle.spec

    @property
    def sessions(self) -> Sequence[Session]:
        """One opened session per fold; opens them at the first call.

        Raises:
            EngineUnavailable: the engine or device is missing.
            UsageError: the precision has failed its comparison with float32.
        """
        with self._opening:
            if not self._sessions:
                self._open()
        return self._sessions

    def _open(self) -> None:
        """Open one session per fold, all of them or none."""
        engine = get_engine(self.engine)
        options = replace(self.options, outputs=self.spec.kept_outputs)
        with ExitStack() as opened:
            subjects = []
            sessions = []
            for fold in self.folds:
                graph = self.bundle.graph(fold, engine.graph_precision(self.options.precision))
                session = opened.enter_context(open_fold(self.bundle, fold, self.engine, options))
                sessions.append(session)
                subjects.append(subject_of(session.info, fold, graph.sha256))
            self._standing = standing(self.bundle, subjects, unverified=self.unverified, further=self._checks)
            self._sessions = sessions
            opened.pop_all()

    def use_sessions(self, sessions: Sequence[Session]) -> None:
        """Answer with these sessions from now on: for measurements and tests.

        They may wrap the model's own, which are not closed here; :meth:`close` closes the given ones. No precision is judged.

        Args:
            sessions: one for each of :attr:`folds`, in that order.

        Raises:
            UsageError: another number of sessions.
        """
        if len(sessions) != len(self.folds):
            raise UsageError(f"{len(sessions)} sessions were given for {len(self.folds)} folds; give one for each fold")
        with self._opening:
            self._sessions = list(sessions)

    @property
    def precision_standing(self) -> Standing:
        """What is known of the precision that is really running; opens the engine."""
        _ = self.sessions
        return self._standing

    def require_canaries(self) -> list[dict[str, Any]]:
        """Ask every fold's session for the answer the bundle has on record; opens the engine.

        Returns:
            What was compared, JSON-able; empty for a bundle that has no such record.

        Raises:
            EngineUnavailable: this machine gives another answer; the message holds the figure.
        """
        precision = get_engine(self.engine).graph_precision(self.options.precision)
        found = []
        for fold, session in zip(self.folds, self.sessions, strict=True):
            result = require_canary(self.bundle, fold, precision, session)
            if result is not None:
                found.append(asdict(result))
        return found

    def add_checks(self, checks: Sequence[Check]) -> None:
        """Judgements made just now, for a bundle that could not keep them; they count when the engine is opened next."""
        self._checks += tuple(checks)

    def tell_precision(self, tell: Callable[[str], None]) -> None:
        """Say once what a user should know of the precision that is running; nothing where it is verified or float32."""
        notes = self.precision_standing.notes
        if not self._told:
            self._told = True
            for note in notes:
                tell(note)

    @property
    def session_info(self) -> SessionInfo:
        """What is really running."""
        return self.sessions[0].info

    def predict(
        self,
        image: Any,
        *,
        settings: RunSettings | None = None,
        previous: Any = None,
        progress: Progress | None = None,
        memory: int | None = None,
    ) -> Any:
        """Run the model on one case.

        Args:
            image: a file, the files of all channels in the model's order, a DICOM series folder, or an image in memory: for a
                volume an :class:`offline_infer.Image` - array (c, z, y, x) in the image's own unit (HU for CT), with its geometry.
            settings: step size, mirroring and the like; default as the framework predicts.
            previous: for a cascade's second stage, the first stage's label map (z, y, x); default: the stage given as ``previous``.
            progress: called with (groups of inputs done, groups in all); a group is a tile of a volume.
            memory: bytes the process may take, None = what the machine has free. Where a case needs more, its sums go to a
                spill file in the folder for temporary files; the result is the same. A limit that no method can keep is refused.

        Returns:
            What the task gives: for a volume the :class:`LabelMap` in the image's own grid.

        Raises:
            ImageError, GeometryError: the image cannot be read or does not fit the model.
            UsageError: an argument that makes no sense; the message names it.
            CaseError: the case needs more memory than there is.
            EngineFailed: the engine failed or answered with NaN.
        """
        if settings is None:
            settings = RunSettings()
        elif not isinstance(settings, RunSettings):
            raise UsageError(f"settings: a {type(settings).__name__}, expected offline_infer.RunSettings")
        check_options(settings, self.task.options, self.task.name)
        ours = isinstance(image, (str, Path)) or (isinstance(image, Sequence) and not hasattr(image, "geometry"))
        loaded = self.task.load(image, self.spec)
        del image
        stage = self.first_stage(settings, memory)
        threads = self.options.threads
        prepared = prepare_loaded(self.task, loaded, self.spec, previous, stage, threads, consume=ours)
        frame = loaded.geometry
        del loaded, previous  # where nobody else holds them, the voxels are freed
        sessions = self.sessions
        self._refuse_impossible(frame, prepared, settings, memory)
        self.tell_precision(lambda note: warnings.warn(note, UnverifiedPrecision, stacklevel=4))
        method = self._method(frame, prepared, settings, memory)
        with SpillFile(Path(tempfile.gettempdir())) as allocate:
            finish = infer(
                self.task,
                prepared,
                self.spec,
                sessions,
                settings,
                progress,
                threads=threads,
                allocate=allocate if method.spill else None,
            )
            return self.task.answer(finish(), self.spec)

    def __repr__(self) -> str:
        return f"Model({self.bundle.name}, engine={self.engine!r}, folds={', '.join(self.folds)})"

    def first_stage(
        self, settings: RunSettings, memory: int | None = None, folder: Path | None = None
    ) -> PreviousStage:
        """Where the results of the first stage of a cascade come from, for a run with these settings.

        Args:
            memory: bytes the process may take; see :meth:`predict`.
            folder: with the first stage's results; they are then not computed.
        """
        first = self.previous
        if folder is not None or first is None:
            return PreviousStage(folder)
        # Only its labels are wanted, with the step and the mirrors of this run.
        plain = replace(settings, save_probabilities=False)
        return PreviousStage(None, lambda loaded: first.predict(loaded, settings=plain, memory=memory))

    def estimate_memory(
        self, frame: Any, settings: RunSettings, geometry: Any = None, *, first_stage: bool = True
    ) -> MemoryEstimate | None:
        """What a case will take, above the program with its engines opened; None where the task cannot say.

        Args:
            frame: of its image.
            geometry: of the prepared case, once it is known.
            first_stage: this process runs the first stage of a cascade, before the case is prepared.
        """
        estimate = self.task.estimate_memory(
            frame,
            self.spec,
            settings,
            len(self.folds),
            graph_bytes=self._weight_bytes(),
            geometry=geometry,
            threads=self.options.threads,
        )
        if estimate is None or not first_stage or self.previous is None:
            return estimate
        before = self.previous.estimate_memory(frame, replace(settings, save_probabilities=False))
        return estimate if before is None else estimate.after(before)

    def _refuse_impossible(self, frame: Any, prepared: Prepared, settings: RunSettings, memory: int | None) -> None:
        """Refuse a limit that this case cannot keep, or a case that the machine cannot hold.

        The case is prepared and held, and the engine may have run before.
        """
        estimate = self.estimate_memory(frame, settings, prepared.geometry, first_stage=False)
        if estimate is not None:
            held = estimate.prepared
            rest = replace(estimate, prepare=0, infer=estimate.infer - held, finish=estimate.finish - held)
            refuse_impossible(memory, rest, "the case", engine_ran=True)
            refuse_hopeless(max(rest.infer - rest.slab, rest.finish), memory_held())

    def _method(self, frame: Any, prepared: Prepared, settings: RunSettings, memory: int | None) -> Method:
        estimate = self.estimate_memory(frame, settings, prepared.geometry, first_stage=False)
        if estimate is None:
            return Method()
        # The prepared array is there already and counted in the room that is left.
        return choose_method(estimate, None, room_left(memory) + estimate.prepared)

    def _weight_bytes(self) -> int:
        """Size of the graphs that are run together; where they are open, with what the engine has made of their weights."""
        files = {graph.fold: graph.file for graph in self.spec.graphs}
        held = [session.info.weights for session in self._sessions] or [1.0] * len(self.folds)
        sizes = [_file_size(self.bundle.folder / files[fold]) if fold in files else 0 for fold in self.folds]
        return int(sum(size * more for size, more in zip(sizes, held, strict=True)))

    def close(self) -> None:
        """Close the engine's sessions. May be called twice."""
        self._close_sessions()
        if self.previous is not None:
            self.previous.close()

    def _close_sessions(self) -> None:
        with self._opening:
            for session in self._sessions:
                session.close()
            self._sessions = []

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    path: str | Path,
    *,
    engine: str = "openvino",
    device: str = "cpu",
    precision: str = "fp32",
    threads: int = 0,
    folds: Sequence[str] | None = None,
    previous: str | Path | None = None,
    cache: str | Path | None = None,
    engine_options: Mapping[str, str] | None = None,
    unverified: bool = False,
    shared_cache: bool = False,
) -> Model:
    """Open a bundle folder or a lone ``.onnx`` file made by ``export``.

    Args:
        path: the bundle.
        engine: ``openvino`` (CPU) or ``onnxruntime``.
        device: ``cpu``, ``cuda:0``, ``npu:0``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        threads: 0 = all cores.
        folds: default all folds of the bundle, averaged as the framework does.
        previous: bundle of the first stage, for a cascade.
        cache: folder for compiled graphs.
        engine_options: options of the engine itself, passed through; an unknown one is refused with the legal names.
        shared_cache: trust compiled graphs that others left in ``cache``; otherwise only this user's own are used.
        unverified: run a precision even if its comparison with float32 (``benchmark``) has failed. One that was never
            compared runs with a warning (:class:`offline_infer.bundles.precision_checks.UnverifiedPrecision`).

    Raises:
        BundleError: the bundle is damaged.
        UsageError: unknown engine or fold.

    Example::

        import offline_infer

        with offline_infer.load("liver_bundle") as model:
            label_map = model.predict("patient_0000.nii.gz")
            label_map.save("patient.nii.gz")
    """
    for name, given in (("path", path), ("previous", previous), ("cache", cache)):
        if not isinstance(given, (str, PathLike)) and (given is not None or name == "path"):
            raise UsageError(f"{name}: a {type(given).__name__}, expected a path")
    options = EngineOptions(
        device=device,
        precision=precision,
        threads=threads,
        cache=Path(cache) if cache is not None else None,
        shared_cache=shared_cache,
        extra=dict(engine_options or {}),
    )
    first = (
        load(
            previous,
            engine=engine,
            device=device,
            precision=precision,
            threads=threads,
            cache=cache,
            engine_options=engine_options,
            unverified=unverified,
            shared_cache=shared_cache,
        )
        if previous
        else None
    )
    return Model(open_bundle(path), engine=engine, options=options, folds=folds, previous=first, unverified=unverified)


def _check_arguments(options: EngineOptions, folds: Any) -> None:
    """Refuse what no model can be opened with.

    Raises:
        UsageError: the message names the argument.
    """
    listed = folds is None or (isinstance(folds, Sequence) and not isinstance(folds, str))
    if not listed or not all(isinstance(fold, str) for fold in folds or ()):
        raise UsageError(f'folds: {folds!r}, expected a list of names such as ["0", "1"]')
    if options.precision not in PRECISIONS:
        raise UsageError(f"precision: {options.precision!r}, legal values are {', '.join(PRECISIONS)}")
    if not isinstance(options.threads, int) or options.threads < 0:
        raise UsageError(f"threads: {options.threads!r}, expected 0 (all cores) or more")


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
