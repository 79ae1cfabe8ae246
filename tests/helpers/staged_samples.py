"""A small model, cases on disk and a network of closed form, for tests of the staged route."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import SimpleITK as sitk
from specimens import tiny_spec, with_outputs

from offline_infer.arithmetic.sliding_window import cut_tile
from offline_infer.engines.base import FloatArray, SessionInfo
from offline_infer.errors import EngineFailed
from offline_infer.events import Sink, silent
from offline_infer.images import read_image
from offline_infer.images.cases import CaseFiles
from offline_infer.predict.streaming import infer
from offline_infer.spec import ComponentRule, OutputSpec, VolumeSpec
from offline_infer.staging.postprocessing import PostprocessJob, postprocess_stage
from offline_infer.staging.preprocessing import PreprocessJob, preprocess_stage
from offline_infer.tasks.reports import RunReport
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.aggregation import TileCollector
from offline_infer.tasks.volume.deciding import Segmentation
from offline_infer.tasks.volume.preparing import PreparedCase, prepare
from offline_infer.tasks.volume.task import TASK
from offline_infer.threads import Team

FIVE_HEADS = ("class", "head_1", "head_2", "head_3", "head_4")


def staged_spec(
    *,
    folds: Sequence[str] = ("0",),
    patch: Sequence[int] = (8, 12, 16),
    heads: Sequence[str] = ("logits",),
    channels: int = 1,
) -> VolumeSpec:
    """A model whose graphs need not exist, with a component rule."""
    spec = with_outputs(tiny_spec(folds=folds, patch=patch, channels=channels), heads)
    return spec.model_copy(update={"postprocessing": (ComponentRule(labels=(1,), connectivity="face"),)})


def write_case(
    folder: Path, case: str, shape: Sequence[int] = (10, 14, 20), seed: int = 0, channels: int = 1, spacing: float = 1.5
) -> CaseFiles:
    """A case of smooth structures in CT-like numbers, one NIfTI file per channel."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for channel in range(channels):
        noise = np.random.default_rng(seed * 7 + channel).normal(size=shape)
        smooth = sum(np.roll(noise, shift, axis) for axis in range(3) for shift in (-2, -1, 0, 1, 2))
        image = sitk.GetImageFromArray((80 + 60 * smooth / np.std(smooth)).astype(np.float32))
        image.SetSpacing([spacing] * 3)
        image.SetOrigin([10.0, -20.0, 30.0])
        path = folder / f"{case}_{channel:04d}.nii.gz"
        sitk.WriteImage(image, str(path))
        paths.append(path)
    return CaseFiles(case, tuple(paths))


class RampSession:
    """Answers that depend on a voxel's place in the tile and on the fold, so that order and mirroring matter."""

    def __init__(self, spec: VolumeSpec, fold: int = 0, fail_at: int | None = None, nan_at: int | None = None) -> None:
        grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in spec.patch_size), indexing="ij")
        self._ramp = sum(0.3 * (i + 1 + fold) * g for i, g in enumerate(grids)).astype(np.float32)  # type: ignore[union-attr]
        self._classes = spec.labels.channels
        self._fold = fold
        self._fail_at = fail_at
        self._nan_at = nan_at
        self.calls = 0
        self.info = SessionInfo("ramp", "1", "cpu", "fp32", spec.input_shape, tuple(o.name for o in spec.outputs))

    def run(self, batch: FloatArray) -> FloatArray:
        call, self.calls = self.calls, self.calls + 1
        if call == self._fail_at:
            raise EngineFailed("ramp: was to fail")
        answer = self._logits(batch[0])[None]
        if call == self._nan_at:
            answer[..., 0] = np.nan
        return answer

    def answer(self, batch: FloatArray) -> dict[str, FloatArray]:
        return {self.info.output_names[0]: self.run(batch)}

    def run_all(self, batch: FloatArray) -> dict[str, FloatArray]:
        """The kept head first; every other head is a different array of the same shape."""
        first = self.run(batch)
        return {name: first - 5 * i * np.arange(self._classes, dtype=np.float32).reshape(1, -1, *[1] * (first.ndim - 2))
                for i, name in enumerate(self.info.output_names)}  # fmt: skip

    def close(self) -> None:
        pass

    def __enter__(self) -> RampSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _logits(self, tile: FloatArray) -> FloatArray:
        value = tile.mean(axis=0) + self._ramp
        return np.stack([k * value * (1 + 0.1 * self._fold) - k * k / 2 for k in range(self._classes)]).astype(
            np.float32
        )


class QueueingRamp(RampSession):
    """Takes inputs ahead, as a session that spreads them over devices; notes how many were on their way at most."""

    depth = 3

    def __init__(self, spec: VolumeSpec, fold: int = 0) -> None:
        super().__init__(spec, fold)
        self.on_their_way = self.most = 0

    def submit(self, batch: FloatArray) -> _Pending:
        self.on_their_way += 1
        self.most = max(self.most, self.on_their_way)
        return _Pending(self, self.answer(batch))


class _Pending:
    def __init__(self, session: QueueingRamp, answers: dict[str, FloatArray]) -> None:
        self._session = session
        self._answers = answers

    def result(self) -> dict[str, FloatArray]:
        return self._answers

    def release(self) -> None:
        self._session.on_their_way -= 1


def sessions_for(spec: VolumeSpec) -> dict[str, RampSession]:
    return {fold.fold: RampSession(spec, number) for number, fold in enumerate(spec.source.folds)}


def prepared_case(spec: VolumeSpec, case: CaseFiles) -> PreparedCase:
    image = read_image(case.channels, spec.reader)
    return prepare(image.array, image.geometry, spec, threads=1)


def direct(spec: VolumeSpec, case: CaseFiles, settings: RunSettings) -> Segmentation:
    """The answer without any file in between: a plain loop over the collector."""
    prepared = prepared_case(spec, case)
    sessions = list(sessions_for(spec).values())
    collector = TileCollector(spec, prepared.geometry, settings, len(sessions), team=Team(1))
    layout = collector.layout
    tile = np.empty((spec.input_channels, *layout.grid.patch), np.float32)
    for start in layout.grid:
        cut_tile(prepared.array, layout.grid, start, tile)
        for fold, session in enumerate(sessions):
            for mirror in layout.mirrors:
                turned = np.flip(tile, tuple(axis + 1 for axis in mirror))
                batch = np.ascontiguousarray(turned).reshape(spec.input_shape)
                collector.add(start, fold, mirror, session.run(batch)[0])
    return collector.finish()


def segment(
    prepared: PreparedCase, spec: VolumeSpec, sessions: Sequence[Any], settings: RunSettings, *more: Any, **options: Any
) -> Segmentation:
    """The streaming run of a prepared case, to its end."""
    result = infer(TASK, prepared, spec, sessions, settings, *more, **options)()
    assert isinstance(result, Segmentation)
    return result


def preprocess(
    spec: VolumeSpec,
    cases: Sequence[CaseFiles],
    work: Path,
    settings: RunSettings,
    folds: Sequence[str],
    *,
    sink: Sink = silent,
    **options: Any,
) -> RunReport:
    return preprocess_stage(spec, PreprocessJob(cases, work, folds, **options), settings, sink)


def postprocess(
    spec: VolumeSpec,
    work: Path,
    output: Path,
    *,
    settings: RunSettings | None = None,
    sink: Sink = silent,
    **options: Any,
) -> RunReport:
    return postprocess_stage(spec, PostprocessJob(work, output, **options), settings, sink)


def five_heads(spec: VolumeSpec) -> VolumeSpec:
    """The same model with five outputs, of which the first is kept."""
    first = spec.outputs[0]
    outputs = tuple(
        OutputSpec(name=n, dtype="float32", shape=first.shape, keep=i == 0) for i, n in enumerate(FIVE_HEADS)
    )
    return spec.model_copy(update={"outputs": outputs})
