"""The task ``volume``: each call of the protocol leads to the module that does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.arithmetic.geometry import CaseGeometry, ImageGeometry
from offline_infer.engines.base import Session
from offline_infer.errors import UsageError
from offline_infer.events import Sink
from offline_infer.images import Image, read_geometry, read_image
from offline_infer.images.cases import CaseFiles, CaseList, find_cases
from offline_infer.nnunet_files.dataset_files import write_framework_files
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.base import (
    Allocate,
    Answers,
    CaseAgreement,
    EvaluationRequest,
    Finish,
    FloatArray,
    PreviousStage,
    Progress,
    Scores,
)
from offline_infer.tasks.memory import MemoryEstimate
from offline_infer.tasks.settings import RunSettings, TaskOption
from offline_infer.tasks.volume.aggregation import TileCollector
from offline_infer.tasks.volume.deciding import Segmentation
from offline_infer.tasks.volume.drawing import draw_case
from offline_infer.tasks.volume.judging import judge, mean_change, noise_tiles, real_tiles
from offline_infer.tasks.volume.label_map import LabelMap
from offline_infer.tasks.volume.memory import estimate_case
from offline_infer.tasks.volume.on_device import stitch_on_device
from offline_infer.tasks.volume.options import OPTIONS
from offline_infer.tasks.volume.preparing import PreparedCase, prepare
from offline_infer.tasks.volume.reading import cropped_shape, load_image, previous_file, previous_labels
from offline_infer.tasks.volume.scoring import agreement_of_label_maps, case_scores, evaluate_label_maps, referenced
from offline_infer.tasks.volume.tiles import TileCutter, TileLayout, network_grid, step_size
from offline_infer.tasks.volume.writing import result_files, write_result
from offline_infer.threads import Team


class VolumeTask:
    """Volumes cut into tiles; a two-dimensional network sees the slices of a volume."""

    name = "volume"
    spec_type = VolumeSpec
    label_maps = True
    options: tuple[TaskOption, ...] = OPTIONS

    # ---- cases -------------------------------------------------------------------------------------------------------

    def list_cases(self, source: Path, spec: VolumeSpec) -> CaseList:
        return find_cases(source, len(spec.channels), spec.file_ending)

    def sources(self, case: CaseFiles, spec: VolumeSpec, previous_folder: Path | None) -> tuple[Path, ...]:
        if spec.previous_stage is None or previous_folder is None:
            return tuple(case.channels)
        return (*case.channels, previous_file(case, spec, previous_folder))

    def read_frame(self, case: CaseFiles, spec: VolumeSpec) -> ImageGeometry:
        return read_geometry(case.channels, spec.reader)

    def read(self, case: CaseFiles, spec: VolumeSpec) -> Image:
        return read_image(case.channels, spec.reader, channels=len(spec.channels))

    def load(self, source: Any, spec: VolumeSpec) -> Image:
        return load_image(source, spec)

    def previous(self, case: CaseFiles | None, loaded: Image, spec: VolumeSpec, stage: PreviousStage) -> Any:
        return previous_labels(case, loaded, spec, stage)

    def prepare(self, loaded: Image, spec: VolumeSpec, previous: Any, *, threads: int, consume: bool) -> PreparedCase:
        return prepare(loaded.array, loaded.geometry, spec, previous, threads=threads, consume=consume)

    # ---- items -------------------------------------------------------------------------------------------------------

    def item_settings(self, spec: VolumeSpec, settings: RunSettings) -> dict[str, Any]:
        return {"step_size": step_size(spec, settings), "tta": settings.tta}

    def with_item_settings(self, settings: RunSettings, chosen: Mapping[str, Any]) -> RunSettings:
        return replace(settings, step_size=float(chosen["step_size"]), tta=bool(chosen["tta"]))

    def geometry_from_json(self, record: Mapping[str, Any], spec: VolumeSpec) -> CaseGeometry:
        try:
            return CaseGeometry.from_json(record)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"a case's geometry record is damaged ({error}); preprocess into a new folder") from error

    def layout(self, geometry: CaseGeometry, spec: VolumeSpec, settings: RunSettings) -> TileLayout:
        return TileLayout.of(spec, geometry.network_shape, settings)

    def expected_layout(self, case: CaseFiles, spec: VolumeSpec, settings: RunSettings, *, exact: bool) -> TileLayout:
        if exact:
            image = self.read(case, spec)
            grid = network_grid(spec, image.geometry, cropped_shape(image))
        else:
            grid = network_grid(spec, self.read_frame(case, spec))
        return TileLayout.of(spec, grid.shape, settings)

    def cutter(self, prepared: PreparedCase, layout: TileLayout, spec: VolumeSpec, team: Team) -> TileCutter:
        return TileCutter(prepared.array, layout, spec.input_shape, team)

    def collector(
        self,
        geometry: CaseGeometry,
        spec: VolumeSpec,
        settings: RunSettings,
        folds: int,
        *,
        team: Team,
        allocate: Allocate | None,
    ) -> TileCollector:
        return TileCollector(spec, geometry, settings, folds, team=team, allocate=allocate)

    def run_on_device(
        self,
        prepared: PreparedCase,
        spec: VolumeSpec,
        sessions: Sequence[Session],
        settings: RunSettings,
        *,
        team: Team,
        allocate: Allocate | None,
        progress: Progress | None,
    ) -> Finish | None:
        return stitch_on_device(prepared, spec, sessions, settings, progress, team=team, allocate=allocate)

    def estimate_memory(
        self,
        frame: ImageGeometry,
        spec: VolumeSpec,
        settings: RunSettings,
        folds: int,
        *,
        graph_bytes: int,
        geometry: CaseGeometry | None,
        threads: int,
    ) -> MemoryEstimate:
        cropped = geometry.cropped_shape if geometry is not None else None
        return estimate_case(spec, frame, settings, folds, graph_bytes=graph_bytes, cropped=cropped, threads=threads)

    # ---- results -----------------------------------------------------------------------------------------------------

    def answer(self, result: Segmentation, spec: VolumeSpec) -> LabelMap:
        return LabelMap(
            array=result.labels,
            frame=result.geometry.image,
            names=dict(spec.labels.names),
            probabilities=result.probabilities,
            crop=result.geometry.crop,
        )

    def result_files(self, folder: Path, case_id: str, spec: VolumeSpec, settings: RunSettings) -> list[Path]:
        return result_files(folder, case_id, spec, settings)

    def write(self, result: Segmentation, folder: Path, case_id: str, spec: VolumeSpec, settings: RunSettings) -> Path:
        return write_result(result, folder, case_id, spec)

    def write_shared_files(
        self, folder: Path, spec: VolumeSpec, shares: Mapping[int, Sequence[str]], parts: int
    ) -> Sequence[str]:
        write_framework_files(folder, spec)
        return ()

    def describe(self, result: Segmentation, spec: VolumeSpec) -> dict[str, Any]:
        values, counts = np.unique(result.labels, return_counts=True)
        return {"voxels": {int(value): int(count) for value, count in zip(values, counts, strict=True)}}

    # ---- proof -------------------------------------------------------------------------------------------------------

    def evaluate(self, request: EvaluationRequest, spec: VolumeSpec | None, sink: Sink) -> Scores:
        return evaluate_label_maps(request, spec, sink)

    def agreement(
        self, case_id: str, mine: Path, reference: Path, spec: VolumeSpec, settings: RunSettings
    ) -> CaseAgreement:
        a, b = (self.result_files(folder, case_id, spec, settings)[0] for folder in (mine, reference))
        return agreement_of_label_maps(a, b)

    def referenced(self, labels: Path) -> frozenset[str]:
        return referenced(labels)

    def case_scores(self, predictions: Path, labels: Path, spec: VolumeSpec) -> dict[str, float]:
        return case_scores(predictions, labels, spec)

    def draw(
        self, case: CaseFiles, predictions: Path, references: Path | None, spec: VolumeSpec, picture: Path, title: str
    ) -> None:
        draw_case(case, predictions, references, spec, picture, title)

    def sample_inputs(self, case: CaseFiles | None, spec: VolumeSpec, count: int, threads: int) -> list[FloatArray]:
        return real_tiles(case, spec, count, threads) if case is not None else noise_tiles(spec, count)

    def judge(
        self, answers: Sequence[Answers], reference: Sequence[Answers] | None, spec: VolumeSpec
    ) -> dict[str, Any]:
        return judge(_kept(answers), _kept(reference) if reference is not None else None, spec)

    def change(self, answers: Sequence[Answers], reference: Sequence[Answers], spec: VolumeSpec) -> float:
        return mean_change(_kept(answers), _kept(reference), spec)


def _kept(answers: Sequence[Answers]) -> list[FloatArray]:
    """The one output that each answer holds."""
    return [next(iter(answer.values())) for answer in answers]


TASK = VolumeTask()
