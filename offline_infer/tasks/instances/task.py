"""The task ``instances``: each call of the protocol leads to the module that does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import Session
from offline_infer.errors import EngineFailed, ImageError, UsageError
from offline_infer.events import Sink
from offline_infer.images.cases import CaseFiles, CaseList
from offline_infer.images.decoding import pillow, read_image, upright_size
from offline_infer.tasks.base import (
    Allocate,
    Answers,
    EvaluationRequest,
    Finish,
    FloatArray,
    PreviousStage,
    Progress,
    Scores,
)
from offline_infer.tasks.instances.cases import list_images
from offline_infer.tasks.instances.drawing import draw_case
from offline_infer.tasks.instances.geometry import InstanceGeometry, fit, geometry_from_json
from offline_infer.tasks.instances.judging import judge, sample_inputs
from offline_infer.tasks.instances.network_input import network_input
from offline_infer.tasks.instances.options import MASKS, OPTIONS, OVERLAY, shown_score
from offline_infer.tasks.instances.result import Instances, kept_rows, read_outputs
from offline_infer.tasks.instances.scoring import evaluate
from offline_infer.tasks.instances.spec import InstancesSpec
from offline_infer.tasks.instances.writing import result_files, write_result
from offline_infer.tasks.memory import MemoryEstimate
from offline_infer.tasks.settings import RunSettings, TaskOption
from offline_infer.threads import Team

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image (y, x, c) uint8 in the model's channel order, and how it fits the network."""

    pixels: Bytes
    geometry: InstanceGeometry


@dataclass(frozen=True)
class PreparedImage:
    """The network's input (1, c, y, x); None once emptied."""

    input: FloatArray | None
    geometry: InstanceGeometry

    def emptied(self) -> PreparedImage:
        return PreparedImage(None, self.geometry)


@dataclass(frozen=True)
class ImageLayout:
    """One item: the whole image."""

    geometry: InstanceGeometry
    channels: int
    groups: int = 1
    per_group: int = 1

    @property
    def extent(self) -> tuple[int, ...]:
        return self.geometry.network

    def shape(self, group: int) -> tuple[int, ...]:
        return (self.channels, *self.geometry.network)

    def record(self, group: int, position: int) -> dict[str, Any]:
        mode = "letterbox" if self.geometry.scaled != self.geometry.size else "pad"
        return {"mode": mode, **self.geometry.to_json()}

    def name(self, group: int, position: int) -> str:
        return "image"


@dataclass(frozen=True)
class ImageCutter:
    """Gives the one input."""

    prepared: PreparedImage

    def load(self, group: int) -> None:
        return None

    def input(self, position: int) -> FloatArray:
        assert self.prepared.input is not None, "the prepared image was emptied"
        return self.prepared.input


@dataclass(frozen=True)
class Found:
    """A case's result: what was found, and where the image is."""

    instances: Instances
    geometry: InstanceGeometry


class ImageCollector:
    """Takes the one answer of an image."""

    def __init__(self, geometry: InstanceGeometry, spec: InstancesSpec, folds: int) -> None:
        if folds != 1:
            raise UsageError(f"{folds} folds: the objects of several detectors cannot be averaged; name one fold")
        self._geometry, self._spec = geometry, spec
        self._kept: dict[str, npt.NDArray[Any]] = {}

    def take(self, group: int, position: int, fold: int, answers: Answers) -> None:
        # Copied, because the arrays are the engine's buffers; pasting waits until the engine works on the next image.
        self._kept = kept_rows(answers, self._spec)

    def finish(self) -> Found:
        if not self._kept:
            raise EngineFailed("the image was never answered")
        return Found(read_outputs(self._kept, self._geometry, self._spec), self._geometry)


class InstancesTask:
    """Images in which every object gets a box, a label and a mask."""

    name = "instances"
    spec_type = InstancesSpec
    label_maps = False
    options: tuple[TaskOption, ...] = OPTIONS

    # ---- cases -------------------------------------------------------------------------------------------------------

    def list_cases(self, source: Path, spec: InstancesSpec) -> CaseList:
        pillow()  # what no image can be read without is missed before a folder is made
        return list_images(source)

    def sources(self, case: CaseFiles, spec: InstancesSpec, previous_folder: Path | None) -> tuple[Path, ...]:
        return tuple(case.channels)

    def read_frame(self, case: CaseFiles, spec: InstancesSpec) -> InstanceGeometry:
        return fit(upright_size(case.channels[0], spec.pixels), spec)

    def read(self, case: CaseFiles, spec: InstancesSpec) -> LoadedImage:
        pixels = read_image(case.channels[0], spec.pixels)
        geometry = fit((pixels.shape[0], pixels.shape[1]), spec)
        return LoadedImage(pixels, replace(geometry, source=str(case.channels[0])))

    def load(self, source: Any, spec: InstancesSpec) -> LoadedImage:
        """A path, or (y, x, 3) uint8 RGB."""
        if isinstance(source, (str, Path)):
            return self.read(CaseFiles(Path(source).stem, (Path(source),)), spec)
        if not isinstance(source, np.ndarray):
            raise UsageError(f"an instance model takes a path or an array (y, x, 3), not a {type(source).__name__}")
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8:
            raise ImageError(f"the image is {source.dtype} {source.shape}; expected uint8 (y, x, 3), RGB")
        pixels = np.ascontiguousarray(source[:, :, ::-1] if spec.pixels.order == "bgr" else source)
        return LoadedImage(pixels, fit((pixels.shape[0], pixels.shape[1]), spec))

    def previous(self, case: CaseFiles | None, loaded: LoadedImage, spec: InstancesSpec, stage: PreviousStage) -> Any:
        return None

    def prepare(
        self, loaded: LoadedImage, spec: InstancesSpec, previous: Any, *, threads: int, consume: bool
    ) -> PreparedImage:
        return PreparedImage(network_input(loaded.pixels, loaded.geometry, spec), loaded.geometry)

    # ---- items -------------------------------------------------------------------------------------------------------

    def item_settings(self, spec: InstancesSpec, settings: RunSettings) -> dict[str, Any]:
        return {}

    def with_item_settings(self, settings: RunSettings, chosen: Mapping[str, Any]) -> RunSettings:
        return settings

    def geometry_from_json(self, record: Mapping[str, Any], spec: InstancesSpec) -> InstanceGeometry:
        return geometry_from_json(record)

    def layout(self, geometry: InstanceGeometry, spec: InstancesSpec, settings: RunSettings) -> ImageLayout:
        return ImageLayout(geometry, spec.input_channels)

    def expected_layout(
        self, case: CaseFiles, spec: InstancesSpec, settings: RunSettings, *, exact: bool
    ) -> ImageLayout:
        return self.layout(self.read_frame(case, spec), spec, settings)

    def cutter(self, prepared: PreparedImage, layout: ImageLayout, spec: InstancesSpec, team: Team) -> ImageCutter:
        return ImageCutter(prepared)

    def collector(
        self,
        geometry: InstanceGeometry,
        spec: InstancesSpec,
        settings: RunSettings,
        folds: int,
        *,
        team: Team,
        allocate: Allocate | None,
    ) -> ImageCollector:
        shown_score(settings)
        return ImageCollector(geometry, spec, folds)

    def run_on_device(
        self,
        prepared: PreparedImage,
        spec: InstancesSpec,
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
        frame: InstanceGeometry,
        spec: InstancesSpec,
        settings: RunSettings,
        folds: int,
        *,
        graph_bytes: int,
        geometry: InstanceGeometry | None,
        threads: int,
    ) -> MemoryEstimate:
        pixels, network = (int(np.prod(size)) for size in (frame.size, frame.network))
        image, item = 3 * pixels, 4 * spec.input_channels * network
        # Pasting holds one mask, two label images of two bytes a pixel, and the runs.
        finish = 24 * pixels
        # A feature pyramid over a ResNet keeps some 600 values for every pixel of its input.
        engine = 2 * graph_bytes + 2400 * network
        return MemoryEstimate(image + 2 * item, item, item, item + finish, engine, 0, {"image": image, "input": item})

    # ---- results -----------------------------------------------------------------------------------------------------

    def answer(self, result: Found, spec: InstancesSpec) -> Instances:
        return result.instances

    def result_files(self, folder: Path, case_id: str, spec: InstancesSpec, settings: RunSettings) -> list[Path]:
        return result_files(folder, case_id, overlay=settings.option(OVERLAY) == "yes")

    def write(self, result: Found, folder: Path, case_id: str, spec: InstancesSpec, settings: RunSettings) -> Path:
        picture = None
        if settings.option(OVERLAY) == "yes":
            if result.geometry.source is None:
                raise ImageError(f"{case_id}: an overlay needs the image's file; it was given in memory")
            picture = read_image(Path(result.geometry.source), spec.pixels)
            picture = picture[:, :, ::-1] if spec.pixels.order == "bgr" else picture
        return write_result(
            result.instances,
            folder,
            case_id,
            spec.classes,
            score=shown_score(settings),
            masks=settings.option(MASKS) == "yes",
            overlay_image=picture,
        )

    def write_shared_files(
        self, folder: Path, spec: InstancesSpec, shares: Mapping[int, Sequence[str]], parts: int
    ) -> Sequence[str]:
        return ()

    def describe(self, result: Found, spec: InstancesSpec) -> dict[str, Any]:
        found = result.instances
        counts = np.bincount(found.labels, minlength=len(spec.classes))
        return {
            "detections": len(found),
            "best_score": round(float(found.scores[0]), 6) if len(found) else None,
            "classes": {spec.classes[index]: int(count) for index, count in enumerate(counts) if count},
        }

    # ---- proof -------------------------------------------------------------------------------------------------------

    def evaluate(self, request: EvaluationRequest, spec: InstancesSpec | None, sink: Sink) -> Scores:
        return evaluate(request.predictions, request.references, request.output, request.options, sink)

    def draw(
        self,
        case: CaseFiles,
        predictions: Path,
        references: Path | None,
        spec: InstancesSpec,
        picture: Path,
        title: str,
    ) -> None:
        draw_case(case, predictions, picture)

    def sample_inputs(self, case: CaseFiles | None, spec: InstancesSpec, count: int, threads: int) -> list[FloatArray]:
        if case is None:
            return sample_inputs(spec, count)
        prepared = self.prepare(self.read(case, spec), spec, None, threads=threads, consume=True)
        return [prepared.input] if prepared.input is not None else []

    def judge(
        self, answers: Sequence[Answers], reference: Sequence[Answers] | None, spec: InstancesSpec
    ) -> dict[str, Any]:
        return judge(answers, reference, spec)


TASK = InstancesTask()
