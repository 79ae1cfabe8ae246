"""How the results of a run are made, as their records say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offline_infer._version import __version__
from offline_infer.bundles.fingerprint import fingerprint
from offline_infer.bundles.opening import compiled_for
from offline_infer.engines.base import get_engine
from offline_infer.images.cases import CaseFiles
from offline_infer.predict.model import Model
from offline_infer.tasks.records import Provenance, ResultRecord, SourceFile, joined, source_files
from offline_infer.tasks.settings import RunSettings


class Provenances:
    """The provenance of each case of a run.

    Attributes:
        common: what does not depend on the case: the fields of a provenance but its sources.
    """

    def __init__(self, model: Model, settings: RunSettings, previous_folder: Path | None) -> None:
        self._model, self._previous_folder = model, previous_folder
        precision = get_engine(model.engine).graph_precision(model.options.precision)
        found = {fold: compiled_for(model.bundle, fold, model.engine, model.options) for fold in model.folds}
        compiled = {fold: artefact for fold, artefact in found.items() if artefact is not None}
        self.common: dict[str, Any] = {
            "task": model.spec.task,
            "model": fingerprint(model.spec),
            "graphs": {fold: model.bundle.graph(fold, precision).sha256 for fold in model.folds},
            "compiled": {fold: artefact.sha256 for fold, artefact in compiled.items()},
            "settings": {
                **asdict(settings),
                "options": dict(settings.options),
                **_arithmetic(model),
                **_first_stage(model, previous_folder),
            },
            "engine": model.engine,
            "device": model.options.device.partition(":")[0],
            # What an artefact computes in was settled when it was compiled.
            "precision": joined(each.precision for each in compiled.values()) or model.options.precision,
        }

    def sources(self, case: CaseFiles, known: ResultRecord | None = None) -> tuple[SourceFile, ...]:
        """The case's files with their hashes.

        Raises:
            OSError: a file cannot be read.
        """
        model = self._model
        return source_files(model.task.sources(case, model.spec, self._previous_folder), known)

    def of(
        self, case: CaseFiles, sources: Sequence[SourceFile] | None = None, known: ResultRecord | None = None
    ) -> Provenance:
        """How this run makes the result of a case.

        Args:
            sources: its files, where they were hashed already.
            known: an earlier record, so that unchanged files need not be hashed again.
        """
        files = tuple(sources) if sources is not None else self.sources(case, known)
        return Provenance(**self.common, sources=files)

    @property
    def versions(self) -> dict[str, str]:
        """Of the program and the engine's library; opens the engine."""
        info = self._model.session_info
        return {"offline_infer": __version__, info.engine: info.version}


def _arithmetic(model: Model) -> dict[str, Any]:
    """An engine option that changes what the network computes in the last digits, where it was given."""
    way = model.options.extra.get("convolution", "direct")
    return {} if way == "direct" else {"convolution": way}


def _first_stage(model: Model, folder: Path | None) -> dict[str, Any]:
    """Which first stage of a cascade is run; a folder's label maps are among the case's files."""
    if model.previous is None or folder is not None:
        return {}
    return {"first_stage": fingerprint(model.previous.spec)}
