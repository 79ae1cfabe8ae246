"""Outputs of a tool that was run by hand, from the lists of ``info`` or the bins of a work folder, taken into that folder.

The published guides run the tool in a terminal per device; what it writes lies wherever it was started, under names that
say which input but not which output. They are found by name, the output is identified by running one input through the graph,
and what was taken over is listed as if the tool had been run by ``infer``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.fingerprint import fingerprint
from offline_infer.bundles.opening import checked_graph
from offline_infer.engines.om.answers import Fault
from offline_infer.errors import UsageError
from offline_infer.staging.judging import AnswerJudge, told
from offline_infer.staging.numbering import FileKind, decide_by_graph
from offline_infer.staging.outputs import OutputEntry, OutputsManifest, Writer
from offline_infer.staging.work_folder import safe_name
from offline_infer.staging.worklist import Item, Worklist, output_bytes

ADOPTED = "outputs"
_INPUTS_TRIED = 4


@dataclass(frozen=True)
class AdoptReport:
    """What was taken over.

    Attributes:
        outputs: taken over, of ``needed``; those that were there before are not counted.
        numbering: what the needed output is called, e.g. ``<input>_1.bin``, and how that is known.
        other: files of the same inputs that inference does not need; they were left where they are.
        wrong_size: files that are truncated or of another model.
    """

    outputs: int
    needed: int
    numbering: str
    evidence: str
    other: int = 0
    wrong_size: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "wrong_size": list(self.wrong_size), "notes": list(self.notes)}


def adopt_outputs(bundle: Bundle, work: Path | str, results: Path, *, fold: str | None = None) -> AdoptReport:
    """Take over the outputs below a folder that belong to the items of a work folder.

    Complete files are moved (copied where they lie on another disk); everything else stays where it is.

    Args:
        results: any folder above the tool's output folders, e.g. ``result``.
        fold: whose network answered; needed where the work folder has several.

    Raises:
        UsageError: the folder was made for another model, nothing belongs to its items, or the numbering is in doubt.
    """
    worklist = Worklist.load(work)
    chosen = _check(bundle, worklist, results, fold)
    position = worklist.header.kept[0]
    found = _find(results, worklist)
    if not found:
        raise UsageError(
            f"{results} holds no outputs of the items in {work} (<input>_<n>.bin or <input>_output_<n>.bin)"
        )
    kind, evidence = _numbering(bundle, worklist, chosen, worklist.header.outputs[position].name, found)
    manifest = OutputsManifest.load(worklist.work)
    writer = Writer(
        tool="adopted",
        base=0,
        pattern="{stem}_output_{number}.bin",
        details={"numbering": _name(kind), "evidence": evidence},
    )
    wanted = [
        (item, files[kind])
        for item in worklist.items()
        if kind in (files := found.get(item.index, {})) and manifest.complete(item.index, chosen, position) is None
    ]
    judge = AnswerJudge(bundle, worklist, chosen)
    try:
        entries, wrong, unusable = _move(wanted, worklist, chosen, writer, judge)
    finally:
        judge.close()
    manifest.append(entries, writer)
    missing = sum(manifest.complete(item.index, chosen, position) is None for item in worklist.items())
    return AdoptReport(
        outputs=len(entries),
        needed=len(worklist.items()),
        numbering=_name(kind),
        evidence=evidence,
        other=sum(len(files) - (kind in files) for files in found.values()),
        wrong_size=tuple(wrong),
        notes=(
            *((told(unusable, len(wanted)),) if unusable else ()),
            *((f"{missing} outputs are still missing; infer does what is missing",) if missing else ()),
        ),
    )


def _check(bundle: Bundle, worklist: Worklist, results: Path, fold: str | None) -> str:
    """The fold that answered.

    Raises:
        UsageError: the folder was made for another model, needs several outputs, or does not tell the fold.
    """
    header = worklist.header
    if header.fingerprint != fingerprint(bundle.spec):
        raise UsageError(f"{worklist.work} was made for another model than {bundle.name}")
    if not results.is_dir():
        raise UsageError(f"{results} is not a folder; name the folder the tool wrote its outputs into")
    if len(header.kept) != 1:
        raise UsageError("this model needs several outputs of the graph; run the tool through 'infer --tool'")
    chosen = fold if fold is not None else header.folds[0] if len(header.folds) == 1 else None
    if chosen is None or chosen not in header.folds:
        raise UsageError(f"say which fold answered: {', '.join(header.folds)}")
    return chosen


def _move(
    wanted: Sequence[tuple[Item, Path]], worklist: Worklist, fold: str, writer: Writer, judge: AnswerJudge
) -> tuple[list[OutputEntry], list[str], dict[str, Fault]]:
    """Move complete outputs into the work folder.

    Returns:
        Their entries, the names of files whose size is wrong, and the stems of those whose numbers cannot be right.
    """
    position = worklist.header.kept[0]
    single = output_bytes(worklist.header.outputs[position].model_copy(update={"dtype": "float32"}))
    entries: list[OutputEntry] = []
    wrong: list[str] = []
    unusable: dict[str, Fault] = {}
    for item, source in wanted:
        size = source.stat().st_size
        if size not in (single, single // 2):
            wrong.append(source.name)
            continue
        dtype: Literal["float32", "float16"] = "float32" if size == single else "float16"
        meaning = worklist.header.outputs[position].model_copy(update={"dtype": dtype})
        fault = judge.fault(source, item, meaning)
        if fault == "flat":  # a suspicion: asked twice, the graph decides
            fault = judge.fault(source, item, meaning)
        if fault is not None:
            unusable[item.stem] = fault
            continue
        file = f"{ADOPTED}/fold_{safe_name(fold)}/{writer.file_name(item.stem, position)}"
        target = worklist.work / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
        entries.append(
            OutputEntry(
                item=item.index,
                fold=fold,
                output=position,
                file=file,
                bytes=size,
                dtype=dtype,
                keep=True,
                judged=True,
            )
        )
    return entries, wrong, unusable


def _find(results: Path, worklist: Worklist) -> dict[int, dict[FileKind, Path]]:
    """Item -> kind -> file, of everything below a folder that is called after an item's bin.

    Raises:
        UsageError: two files are the same output of the same input.
    """
    stems: dict[str, Item] = {item.stem: item for item in worklist.items()}
    # ais_bench cuts names at the first dot; where that is still unique, it is understood.
    cut = Counter(stem.partition(".")[0] for stem in stems)
    stems |= {short: item for stem, item in stems.items() if cut[short := stem.partition(".")[0]] == 1}
    found: dict[int, dict[FileKind, Path]] = {}
    own = worklist.work.resolve()
    for place, folders, names in os.walk(results, followlinks=False):
        if Path(place).resolve() in (own / "inputs", own / "outputs"):
            folders.clear()
            continue
        folders.sort()
        for name in sorted(names):
            match = re.fullmatch(r"(?P<stem>.+?)(?P<style>_output)?_(?P<number>\d{1,2})\.bin", name, re.DOTALL)
            path = Path(place) / name
            if match is None or match["stem"] not in stems or path.is_symlink():
                continue
            kind = ("output" if match["style"] else "plain", int(match["number"]))
            twin = found.setdefault(stems[match["stem"]].index, {}).setdefault(kind, path)
            if twin != path:
                raise UsageError(f"{twin} and {path} are the same output of the same input; name the folder of one run")
    return found


def _numbering(
    bundle: Bundle, worklist: Worklist, fold: str, output: str, found: dict[int, dict[FileKind, Path]]
) -> tuple[FileKind, str]:
    """Which file is the needed output, and how that is known.

    Raises:
        UsageError: no input is left, no engine can answer one, or none of some inputs decides.
    """
    present = [item for item in worklist.items() if item.index in found and worklist.path(item).is_file()]
    if not present:
        raise UsageError(f"the bins of {worklist.work} are gone; without one of them the outputs cannot be told apart")
    for item in present[:_INPUTS_TRIED]:
        batch = np.fromfile(worklist.path(item), item.dtype).astype(np.float32).reshape(1, *item.shape)
        try:
            kind = decide_by_graph(checked_graph(bundle, fold), output, batch, found[item.index])
        except UsageError:  # a device in trouble, or an input whose answers are all alike
            if item is present[:_INPUTS_TRIED][-1]:
                raise
            continue
        if kind is None:
            break
        return kind, f"{item.stem} through {bundle.graph(fold).file}"
    raise UsageError("telling the outputs apart needs an engine on this machine: pip install openvino, or onnxruntime")


def _name(kind: FileKind) -> str:
    style, number = kind
    return f"<input>_output_{number}.bin" if style == "output" else f"<input>_{number}.bin"
