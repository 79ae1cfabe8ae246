"""The task ``image``: each call of the protocol leads to the module that does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offline_infer.engines.base import Session
from offline_infer.errors import UsageError
from offline_infer.events import Sink
from offline_infer.files import write_json
from offline_infer.images.cases import CaseFiles, CaseList
from offline_infer.images.decoding import pillow
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
from offline_infer.tasks.image.case import (
    ImageFrame,
    ImageResult,
    LoadedImage,
    PreparedImage,
    from_memory,
    prepare,
    read,
    read_frame,
)
from offline_infer.tasks.image.collecting import ImageCollector
from offline_infer.tasks.image.datasets import find_sets
from offline_infer.tasks.image.evaluation.evaluate import EvaluationOptions, evaluate_folder
from offline_infer.tasks.image.geometry import fit
from offline_infer.tasks.image.items import ImageCutter, ImageLayout
from offline_infer.tasks.image.judging import agreement_of_masks, draw_case, judge, mean_change, sample_inputs
from offline_infer.tasks.image.memory import estimate_image
from offline_infer.tasks.image.options import OPTIONS, OVERSIZE
from offline_infer.tasks.image.spec import ImageSpec
from offline_infer.tasks.image.sweeping import write_rows
from offline_infer.tasks.image.writing import SCORES, result_files, soft_floats, write_result, write_score_lists
from offline_infer.tasks.memory import MemoryEstimate
from offline_infer.tasks.reports import refuse_unusable
from offline_infer.tasks.settings import RunSettings, TaskOption
from offline_infer.threads import Team


@dataclass(frozen=True, eq=False)
class SoftMask:
    """What the Python interface gives for an image.

    Attributes:
        array: (y, x) float32 probabilities at the image's own size; None for models without a mask.
        score: probability that the image holds a region at all; None for models without a score.
    """

    array: FloatArray | None
    score: float | None


class ImageTask:
    """One image, one soft mask, perhaps a score."""

    name = "image"
    spec_type = ImageSpec
    label_maps = False
    options: tuple[TaskOption, ...] = OPTIONS

    # ---- cases -------------------------------------------------------------------------------------------------------

    def list_cases(self, source: Path, spec: ImageSpec) -> CaseList:
        pillow()  # what no image can be read without is missed before a folder is made
        sets = find_sets(source)
        cases = tuple(CaseFiles(item.stem, (item.image,)) for one in sets for item in one.items)
        return CaseList(cases, notes=tuple(note for one in sets for note in one.notes))

    def sources(self, case: CaseFiles, spec: ImageSpec, previous_folder: Path | None) -> tuple[Path, ...]:
        return tuple(case.channels)

    def read_frame(self, case: CaseFiles, spec: ImageSpec) -> ImageFrame:
        return read_frame(case.channels[0], spec)

    def read(self, case: CaseFiles, spec: ImageSpec) -> LoadedImage:
        return read(case.channels[0], spec)

    def load(self, source: Any, spec: ImageSpec) -> LoadedImage:
        return from_memory(source, spec)

    def previous(self, case: CaseFiles | None, loaded: LoadedImage, spec: ImageSpec, stage: PreviousStage) -> None:
        return None

    def prepare(
        self, loaded: LoadedImage, spec: ImageSpec, previous: Any, *, threads: int, consume: bool
    ) -> PreparedImage:
        return prepare(loaded, spec)

    # ---- items -------------------------------------------------------------------------------------------------------

    def item_settings(self, spec: ImageSpec, settings: RunSettings) -> dict[str, Any]:
        return {"oversize": settings.option(OVERSIZE)}

    def with_item_settings(self, settings: RunSettings, chosen: Mapping[str, Any]) -> RunSettings:
        return replace(settings, options={**settings.options, "oversize": str(chosen["oversize"])})

    def geometry_from_json(self, record: Mapping[str, Any], spec: ImageSpec) -> ImageFrame:
        return ImageFrame.from_json(record)

    def layout(self, geometry: ImageFrame, spec: ImageSpec, settings: RunSettings) -> ImageLayout:
        return ImageLayout.of(geometry, spec, settings)

    def expected_layout(self, case: CaseFiles, spec: ImageSpec, settings: RunSettings, *, exact: bool) -> ImageLayout:
        return ImageLayout.of(self.read_frame(case, spec), spec, settings)

    def cutter(self, prepared: PreparedImage, layout: ImageLayout, spec: ImageSpec, team: Team) -> ImageCutter:
        return ImageCutter(prepared, layout, spec)

    def collector(
        self,
        geometry: ImageFrame,
        spec: ImageSpec,
        settings: RunSettings,
        folds: int,
        *,
        team: Team,
        allocate: Allocate | None,
    ) -> ImageCollector:
        placed = fit(geometry.size, spec, settings.option(OVERSIZE))
        return ImageCollector(geometry, placed, spec, settings, folds)

    def run_on_device(
        self,
        prepared: PreparedImage,
        spec: ImageSpec,
        sessions: Sequence[Session],
        settings: RunSettings,
        *,
        team: Team,
        allocate: Allocate | None,
        progress: Progress | None,
    ) -> Finish | None:
        return None

    def estimate_memory(
        self,
        frame: ImageFrame,
        spec: ImageSpec,
        settings: RunSettings,
        folds: int,
        *,
        graph_bytes: int,
        geometry: ImageFrame | None,
        threads: int,
    ) -> MemoryEstimate:
        return estimate_image(frame, spec, settings, graph_bytes)

    # ---- results -----------------------------------------------------------------------------------------------------

    def answer(self, result: ImageResult, spec: ImageSpec) -> SoftMask:
        return SoftMask(soft_floats(result) if result.mask is not None else None, result.score)

    def result_files(self, folder: Path, case_id: str, spec: ImageSpec, settings: RunSettings) -> list[Path]:
        return result_files(folder, case_id, spec, settings)

    def write(self, result: ImageResult, folder: Path, case_id: str, spec: ImageSpec, settings: RunSettings) -> Path:
        return write_result(result, folder, case_id, spec, settings)

    def write_shared_files(
        self, folder: Path, spec: ImageSpec, shares: Mapping[int, Sequence[str]], parts: int
    ) -> Sequence[str]:
        return write_score_lists(folder, shares, parts) if any((folder / SCORES).glob("*.json")) else ()

    def describe(self, result: ImageResult, spec: ImageSpec) -> dict[str, Any]:
        facts: dict[str, Any] = {"mode": result.placed.mode, "size": list(result.frame.size)}
        if result.score is not None:
            facts["score"] = result.score
        if result.mask is not None:
            facts["positive"] = round(float((result.mask > 0.5).mean()), 6)
        return facts

    # ---- proof -------------------------------------------------------------------------------------------------------

    def evaluate(self, request: EvaluationRequest, spec: ImageSpec | None, sink: Sink) -> Scores:
        given = {name: value for name, value in request.options.items() if name not in ("csv", "jobs")}
        found = evaluate_folder(request.predictions, request.references, EvaluationOptions.of(given), sink)
        if request.options.get("csv") is not None:
            write_rows(Path(request.options["csv"]), found.rows())
        if request.output is not None:
            write_json(request.output, found.summary)
        return found

    def agreement(
        self, case_id: str, mine: Path, reference: Path, spec: ImageSpec, settings: RunSettings
    ) -> CaseAgreement:
        if spec.mask is None:
            raise UsageError("this model gives no mask whose Dice could be compared, only a score")
        a, b = (self.result_files(folder, case_id, spec, settings)[0] for folder in (mine, reference))
        return agreement_of_masks(a, b)

    def referenced(self, labels: Path) -> frozenset[str]:
        return frozenset(item.stem for one in find_sets(labels, need_masks=True) for item in one.items)

    def case_scores(self, predictions: Path, labels: Path, spec: ImageSpec) -> dict[str, float]:
        found = evaluate_folder(predictions, labels, EvaluationOptions(allow_missing=True))
        refuse_unusable(found.failed)
        rows = [row for told in found.summary["sets"].values() for row in told["items"] if "F1" in row]
        return {row["case"]: 1.0 if row["F1"] is None else float(row["F1"]) for row in rows}

    def draw(
        self, case: CaseFiles, predictions: Path, references: Path | None, spec: ImageSpec, picture: Path, title: str
    ) -> None:
        draw_case(case, predictions, references, picture, title)

    def sample_inputs(self, case: CaseFiles | None, spec: ImageSpec, count: int, threads: int) -> list[FloatArray]:
        return sample_inputs(case, spec, count)

    def judge(self, answers: Sequence[Answers], reference: Sequence[Answers] | None, spec: ImageSpec) -> dict[str, Any]:
        return judge(answers, reference, spec)

    def change(self, answers: Sequence[Answers], reference: Sequence[Answers], spec: ImageSpec) -> float:
        return mean_change(answers, reference, spec)


TASK = ImageTask()
