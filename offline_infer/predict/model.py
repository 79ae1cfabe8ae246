"""A bundle that is ready to answer: the object behind ``offline_infer.load`` and behind every command that runs a network."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.opening import open_fold
from offline_infer.bundles.precision_checks import Check, Standing, UnverifiedPrecision, standing, subject_of
from offline_infer.engines.base import EngineOptions, Session, SessionInfo, get_engine
from offline_infer.errors import UsageError
from offline_infer.images import Image, read_image, write_labels
from offline_infer.predict.memory import Scratch, choose_method, forecast_case, room_left
from offline_infer.predict.streaming import segment
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.volume.aggregation import RunSettings
from offline_infer.tasks.volume.preparing import prepare

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LabelMap:
    """A segmentation in its image's own grid.

    Attributes:
        array: (z, y, x), uint8 or uint16; 0 is background.
        frame: shape, spacing (z, y, x) in mm, origin and direction (ITK, LPS) of the image it belongs to.
        names: label name -> value, or -> values for a region.
        probabilities: (k, z, y, x) float32 over the image's non-zero box ``crop``, or None unless asked for.
        crop: that box, ((z0, z1), (y0, y1), (x0, x1)), half-open.
    """

    array: npt.NDArray[np.unsignedinteger]
    frame: ImageGeometry
    names: dict[str, Any]
    probabilities: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    crop: tuple[tuple[int, int], ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, (z, y, x)."""
        return self.frame.spacing

    def save(self, path: str | Path) -> Path:
        """Write the label map; the ending decides the format. The file appears only when it is complete."""
        write_labels(Path(path), self.array, self.frame)
        return Path(path)


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
        self.folds = tuple(folds) if folds else bundle.folds
        unknown = [fold for fold in self.folds if fold not in bundle.folds]
        if unknown:
            raise UsageError(
                f"{bundle.folder}: no fold {', '.join(unknown)}; this bundle has {', '.join(bundle.folds)}"
            )
        get_engine(engine)
        self._sessions: list[Session] = []
        self._standing = Standing()
        self._checks: tuple[Check, ...] = ()
        self._told = False

    @property
    def spec(self) -> VolumeSpec:
        """What the bundle says about its network."""
        return self.bundle.spec

    @property
    def sessions(self) -> Sequence[Session]:
        """One opened session per fold; opens them at the first call.

        Raises:
            EngineUnavailable: the engine or device is missing.
            UsageError: the precision has failed its comparison with float32.
        """
        if not self._sessions:
            graph_precision = get_engine(self.engine).graph_precision(self.options.precision)
            with ExitStack() as opened:
                self._sessions = [
                    opened.enter_context(open_fold(self.bundle, fold, self.engine, self.options)) for fold in self.folds
                ]
                opened.pop_all()
            subjects = [
                subject_of(session.info, fold, self.bundle.graph(fold, graph_precision).sha256)
                for fold, session in zip(self.folds, self._sessions, strict=True)
            ]
            try:
                self._standing = standing(self.bundle, subjects, unverified=self.unverified, further=self._checks)
            except UsageError:
                self._close_sessions()
                raise
        return self._sessions

    @property
    def precision_standing(self) -> Standing:
        """What is known of the precision that is really running; opens the engine."""
        _ = self.sessions
        return self._standing

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
        image: str | Path | Sequence[str | Path] | Image,
        *,
        settings: RunSettings | None = None,
        previous: npt.NDArray[np.integer] | None = None,
        progress: Progress | None = None,
        memory: int | None = None,
    ) -> LabelMap:
        """Segment one image.

        Args:
            image: a file, the files of all channels in the model's order, a DICOM series folder, or an :class:`Image` - array
                (c, z, y, x) in the image's own unit (HU for CT), with its geometry.
            settings: step size, mirroring and the like; default as the framework predicts.
            previous: for a cascade's second stage, the first stage's label map (z, y, x); default: the stage given as ``previous``.
            progress: called with (tiles done, tiles in all).
            memory: bytes the process may take, None = what the machine has free. Where a case needs more, its sums go to a
                scratch file in the folder for temporary files; the result is the same.

        Returns:
            The label map in the image's own grid.

        Raises:
            ImageError, GeometryError: the image cannot be read or does not fit the model.
            EngineFailed: the engine failed or answered with NaN.
        """
        ours = not isinstance(image, Image)
        if not isinstance(image, Image):
            paths = [Path(image)] if isinstance(image, (str, Path)) else [Path(part) for part in image]
            image = read_image(paths, self.spec.reader, channels=len(self.spec.channels))
        settings = settings if settings is not None else RunSettings()
        if self.spec.previous_stage is not None and previous is None and self.previous is not None:
            previous = self.previous.predict(image, settings=settings).array
        threads = self.options.threads
        prepared = prepare(image.array, image.geometry, self.spec, previous, threads=threads, consume=ours)
        frame = image.geometry
        del image  # where nobody else holds it, its voxels are let go
        sessions = self.sessions
        self.tell_precision(lambda note: warnings.warn(note, UnverifiedPrecision, stacklevel=4))
        outlook = forecast_case(
            self.spec, frame, settings, len(self.folds), cropped=prepared.geometry.cropped_shape, threads=threads
        )
        # The prepared array is there already and counted in the room that is left.
        method = choose_method(outlook, None, room_left(memory) + outlook.prepared)
        with Scratch(Path(tempfile.gettempdir())) as scratch:
            allocate = scratch if method.spill else None
            result = segment(prepared, self.spec, sessions, settings, progress, threads=threads, allocate=allocate)
        return LabelMap(
            array=result.labels,
            frame=frame,
            names=dict(self.spec.labels.names),
            probabilities=result.probabilities,
            crop=prepared.geometry.crop,
        )

    def close(self) -> None:
        """Close the engine's sessions. May be called twice."""
        self._close_sessions()
        if self.previous is not None:
            self.previous.close()

    def _close_sessions(self) -> None:
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
    options = EngineOptions(
        device=device,
        precision=precision,
        threads=threads,
        cache=Path(cache) if cache is not None else None,
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
            unverified=unverified,
        )
        if previous
        else None
    )
    return Model(
        Bundle.load(Path(path)), engine=engine, options=options, folds=folds, previous=first, unverified=unverified
    )
