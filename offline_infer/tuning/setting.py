"""One way to run a bundle, and the grid of those that are worth a try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from offline_infer.bundles.bundle import TUNING, Bundle
from offline_infer.bundles.kept_records import read_record
from offline_infer.errors import BundleError, UsageError
from offline_infer.tasks.settings import RunSettings


@dataclass(frozen=True)
class Setting:
    """What may be changed for speed.

    Attributes:
        precision: of the engine.
        mirrors: mirror and average, as the model does.
        step: tile step as a fraction of the patch; None: the model's own.
        folds: networks that are averaged.
    """

    precision: str
    mirrors: bool
    step: float | None
    folds: tuple[str, ...]

    def run_settings(self, base: RunSettings) -> RunSettings:
        """``base`` with this step and these mirrors."""
        return replace(base, tta=self.mirrors, step_size=self.step)

    def to_json(self) -> dict[str, Any]:
        """Plain data; :func:`setting_of` reads it back."""
        return {"precision": self.precision, "mirrors": self.mirrors, "step": self.step, "folds": list(self.folds)}

    def __str__(self) -> str:
        step = "the model's step" if self.step is None else f"step {self.step:g}"
        mirrors = "mirrors" if self.mirrors else "no mirrors"
        return f"{self.precision}, {mirrors}, {step}, fold{'s' if len(self.folds) > 1 else ''} {'+'.join(self.folds)}"


def grid(
    bundle: Bundle, precisions: Sequence[str], steps: Sequence[float], *, mirrored: bool, all_folds: Sequence[str]
) -> Iterator[Setting]:
    """Settings to measure, the framework's own way first.

    Args:
        precisions: besides ``fp32``; ``int8`` is left out where the bundle has no such graphs.
        steps: besides the model's own.
        mirrored: the model mirrors.
        all_folds: in the order in which they are left out from the end.
    """
    whole = Setting("fp32", mirrored, None, tuple(all_folds))
    yield whole
    int8 = {graph.fold for graph in bundle.spec.graphs if graph.precision == "int8"}
    fewer = [tuple(all_folds), *([tuple(all_folds[:1])] if len(all_folds) > 1 else [])]
    wanted = dict.fromkeys(("fp32", *precisions))
    for precision, mirrors, step, folds in product(
        wanted, (True, False) if mirrored else (False,), (None, *steps), fewer
    ):
        setting = Setting(precision, mirrors, step, folds)
        if setting != whole and (precision != "int8" or set(folds) <= int8):
            yield setting


def setting_of(record: Mapping[str, Any]) -> Setting:
    """A setting from plain data.

    Raises:
        BundleError: it is none.
    """
    try:
        step = record["step"]
        setting = Setting(
            str(record["precision"]),
            bool(record["mirrors"]),
            None if step is None else float(step),
            tuple(str(fold) for fold in record["folds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"a tuned setting is damaged ({error})") from error
    setting.run_settings(RunSettings())  # refuses an impossible step
    return setting


def tuned_setting(bundle: Bundle) -> tuple[str, Setting]:
    """The engine and the setting that ``tune`` has chosen for a bundle.

    Raises:
        UsageError: none was chosen.
        BundleError: the record is damaged, or was made for other graphs.
    """
    record = read_record(bundle, TUNING)
    if record is None:
        raise UsageError(f"{bundle.name} holds no tuned setting", remedy="tune")
    if record.get("graphs") != graph_digests(bundle):
        raise BundleError(f"{bundle.name}: its graphs are not those that were tuned; tune again")
    return str(record["engine"]), setting_of(record["chosen"])


def graph_digests(bundle: Bundle) -> dict[str, str]:
    """File -> SHA-256 of every graph."""
    return {graph.file: graph.sha256 for graph in bundle.spec.graphs}
