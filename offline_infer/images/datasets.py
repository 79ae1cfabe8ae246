"""Getting data sets into the layout nnU-Net expects: Decathlon tasks, and the validation cases of a split.

Both write nothing in place of what is there, can be interrupted, and go on where they stopped.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from offline_infer.checkpoints.pickles.reading import read_pickle
from offline_infer.errors import OfflineInferError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import read_json, replacing
from offline_infer.images.cases import natural_key
from offline_infer.images.formats import TIFF_ENDINGS, VOLUME_ENDINGS, split_ending
from offline_infer.images.nifti import check_complete
from offline_infer.images.split_channels import split_channels
from offline_infer.workers import WorkerDied, in_processes

_TASK = re.compile(r"^Task(?P<number>\d{1,3})_(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)$")
_IMAGE_FOLDERS = ("imagesTr", "imagesTs")
_ENDING = ".nii.gz"
_STAGE = "convert-msd"
Placement = Literal["symlink", "hardlink", "copy"]


@dataclass(frozen=True)
class ConvertedTask:
    """What :func:`convert_msd_task` did.

    Attributes:
        folder: the nnU-Net data set, ``TaskXXX_Name``.
        written: source files converted or copied in this call.
        present: source files that were complete from an earlier call.
        problems: path inside the task -> why it could not be converted; the other files are complete.
    """

    folder: Path
    written: int
    present: int
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PickedCases:
    """What :func:`pick_validation_cases` did: the cases in natural order, and the files it placed or found there."""

    cases: tuple[str, ...]
    placed: int
    present: int


@dataclass(frozen=True)
class _Step:
    """One source file and the files it becomes."""

    source: Path
    folder: Path
    stem: str
    channels: int | None  # None: a label map, copied as it is


def convert_msd_task(
    task_folder: Path, output_folder: Path, overwrite: bool = False, jobs: int = 1, *, sink: Sink = silent
) -> ConvertedTask:
    """Convert a Medical Segmentation Decathlon task to nnU-Net v1's layout, as ``nnUNet_convert_decathlon_task`` does.

    ``Task03_Liver`` becomes ``output_folder/Task003_Liver``: every image is split into one three-dimensional file per
    channel (``liver_0_0000.nii.gz``), labels and ``dataset.json`` are copied. The task folder is only read; hidden
    files (``._liver_0.nii.gz``) are left out. Call it again after an interruption: complete files are kept.

    Args:
        task_folder: holds ``dataset.json``, ``imagesTr``, ``labelsTr`` and usually ``imagesTs``.
        output_folder: where nnU-Net keeps its raw data (``nnUNet_raw_data``).
        overwrite: convert again what is there already.
        jobs: processes.
        sink: receives a ``progress`` event after every file, and ``case-failed`` for a file that cannot be converted.

    Raises:
        UsageError: not a Decathlon task.
    """
    task_folder, output_folder = Path(task_folder), Path(output_folder)
    target = output_folder / _target_name(task_folder)
    description = _description(task_folder)
    if target.resolve() == task_folder.resolve():
        raise UsageError(f"{task_folder}: input and output would be the same folder; choose another output folder")
    steps = _plan(task_folder, target, _channel_count(task_folder, description))
    todo = [step for step in steps if overwrite or not _is_done(step)]
    try:
        for name in ("labelsTr", *_IMAGE_FOLDERS):
            (target / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{target}: cannot be made ({error.strerror or error}); choose another folder") from error
    problems: dict[str, str] = {}
    for done, (step, reason) in enumerate(zip(todo, _run(todo, jobs), strict=True), start=1):
        if reason:
            name = str(step.source.relative_to(task_folder))
            problems[name] = reason
            sink(Event("case-failed", _STAGE, case=name, data={"reason": reason}))
        sink(Event("progress", _STAGE, done=done, total=len(todo)))
    # Last, so that a data set with its description is a complete one.
    if not problems:
        _copy(task_folder / "dataset.json", target / "dataset.json")
    return ConvertedTask(target, len(todo) - len(problems), len(steps) - len(todo), problems)


def pick_validation_cases(
    splits_file: Path,
    fold: int,
    images_folder: Path,
    output_folder: Path,
    *,
    copy_or_link: Placement = "symlink",
    labels_folder: Path | None = None,
    labels_output: Path | None = None,
) -> PickedCases:
    """Put the validation cases of a fold into a folder of their own, ready to be predicted.

    Args:
        splits_file: ``splits_final.pkl`` (nnU-Net v1; read without executing it) or ``splits_final.json`` (v2).
        fold: which entry of it.
        images_folder: the training images, ``<case>_0000<ending>``; all channels are taken.
        output_folder: where they go; made if missing. Files already there are kept if they are the same.
        copy_or_link: symbolic link, hard link or copy.
        labels_folder, labels_output: if given, the cases' reference labels go there too.

    Raises:
        UsageError: no such fold, a case without image or label, or another file in the way. Nothing was placed then.
        CheckpointError: the splits file is damaged, or its pickle asks for something that is refused.
    """
    if copy_or_link not in ("symlink", "hardlink", "copy"):
        raise UsageError(f"unknown way {copy_or_link!r} to place files; legal: symlink, hardlink, copy")
    if (labels_folder is None) != (labels_output is None):
        raise UsageError("labels_folder and labels_output belong together; give both or none")
    cases = validation_cases(Path(splits_file), fold)
    pairs = _pairs(cases, Path(images_folder), Path(output_folder), numbered=True)
    if labels_folder is not None and labels_output is not None:
        pairs += _pairs(cases, Path(labels_folder), Path(labels_output), numbered=False)
    todo = [(source, target) for source, target in pairs if not _already_there(source, target)]
    for source, target in todo:
        _place(source, target, copy_or_link)
    return PickedCases(cases, len(todo), len(pairs) - len(todo))


def validation_cases(splits_file: Path, fold: int) -> tuple[str, ...]:
    """The validation cases of a fold, in natural order.

    Raises:
        UsageError: no such file or fold, or not a list of splits.
        CheckpointError: a damaged or refused pickle.
    """
    splits = _read_splits(splits_file)
    if not isinstance(splits, (list, tuple)) or not splits:
        raise UsageError(f"{splits_file}: expected a list of splits, each with 'train' and 'val'")
    if not 0 <= fold < len(splits):
        raise UsageError(f"{splits_file}: has folds 0 to {len(splits) - 1}; there is no fold {fold}")
    try:
        names = [str(name) for name in splits[fold]["val"]]
    except (KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{splits_file}: fold {fold} has no list of cases under 'val'") from error
    for name in names:
        # A case's name becomes a file name; it must not lead elsewhere.
        if not name or name.startswith(".") or re.search(r"[/\\\0]", name) or not name.isprintable():
            raise UsageError(f"{splits_file}: fold {fold} names a case {name!r}, which is no plain file name")
    if not names:
        raise UsageError(f"{splits_file}: fold {fold} has no validation cases")
    return tuple(sorted(set(names), key=natural_key))


def _target_name(task_folder: Path) -> str:
    match = _TASK.match(task_folder.resolve().name)
    if match is None:
        raise UsageError(f"{task_folder}: a Decathlon task's folder is named TaskXX_Name, e.g. Task03_Liver")
    return f"Task{int(match['number']):03d}_{match['name']}"


def _description(task_folder: Path) -> dict[str, Any]:
    for name in ("imagesTr", "labelsTr"):
        if not (task_folder / name).is_dir():
            raise UsageError(f"{task_folder}: is no Decathlon task, it has no folder {name}")
    path = task_folder / "dataset.json"
    try:
        description = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error}); every Decathlon task has one") from error
    if not isinstance(description, dict):
        raise UsageError(f"{path}: expected a JSON object")
    return description


def _channel_count(task_folder: Path, description: dict[str, Any]) -> int:
    channels = description.get("modality", description.get("channel_names"))
    if not isinstance(channels, dict) or not channels:
        raise UsageError(f"{task_folder / 'dataset.json'}: names no channels under 'modality'")
    return len(channels)


def _plan(task_folder: Path, target: Path, channels: int) -> list[_Step]:
    steps = []
    for name in (*_IMAGE_FOLDERS, "labelsTr"):
        folder = task_folder / name
        files = sorted(folder.glob(f"*{_ENDING}")) if folder.is_dir() else []
        for path in files:
            if not path.name.startswith("."):
                stem = path.name[: -len(_ENDING)]
                steps.append(_Step(path, target / name, stem, None if name == "labelsTr" else channels))
    if not steps:
        raise UsageError(f"{task_folder}: holds no {_ENDING} files in imagesTr, imagesTs or labelsTr")
    return steps


def _targets(step: _Step) -> list[Path]:
    if step.channels is None:
        return [step.folder / f"{step.stem}{_ENDING}"]
    return [step.folder / f"{step.stem}_{channel:04d}{_ENDING}" for channel in range(step.channels)]


def _is_done(step: _Step) -> bool:
    # Every file was written whole and renamed, so being there is enough.
    return all(path.is_file() for path in _targets(step))


def _run(steps: Sequence[_Step], jobs: int) -> Iterator[str | None]:
    """Convert the files in order; yields the reason for each one that failed, else None."""
    if jobs <= 1 or len(steps) <= 1:
        yield from map(_convert, steps)
        return
    found: dict[str, str | WorkerDied | None] = {}
    numbered = {str(number): (step,) for number, step in enumerate(steps)}
    answers = in_processes(_convert, numbered, jobs)
    for number in numbered:
        while number not in found:
            name, answer = next(answers)
            found[name] = answer
        reason = found[number]
        yield f"not converted: {reason}; try again with fewer jobs" if isinstance(reason, WorkerDied) else reason


def _convert(step: _Step) -> str | None:
    """Convert one file; the reason in words if it cannot be done."""
    try:
        if step.channels is None:
            # An interrupted download is noticed here, not in a result.
            check_complete(step.source)
            _copy(step.source, _targets(step)[0])
        else:
            split_channels(step.source, _targets(step))
    except OfflineInferError as error:
        return str(error)
    except OSError as error:
        return f"{step.source}: {error.strerror or error}"
    return None


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _read_splits(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: does not exist; expected splits_final.pkl or splits_final.json")
    if path.suffix == ".pkl":
        return read_pickle(path)
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is neither JSON nor named .pkl ({error})") from error


def _pairs(cases: Sequence[str], source: Path, output: Path, *, numbered: bool) -> list[tuple[Path, Path]]:
    """(source file, target file) for every file of the cases; reports all missing cases at once."""
    if not source.is_dir():
        raise UsageError(f"{source}: is no folder; expected the {'images' if numbered else 'labels'} of the data set")
    if source.resolve() == output.resolve():
        raise UsageError(f"{source}: input and output are the same folder; choose another output folder")
    found: dict[str, list[Path]] = {}
    for path in sorted(source.iterdir()):
        parts = split_ending(path.name)
        if parts is None or path.name.startswith("."):
            continue
        match = re.match(r"^(.+)_\d{4}$", parts[0], re.DOTALL) if numbered else None
        if not numbered:
            found.setdefault(parts[0], []).append(path)
        elif match is not None:
            found.setdefault(match[1], []).append(path)
    for case, paths in found.items():
        beside = source / f"{case}.json"  # a TIFF stack's spacing
        if paths[0].suffix.lower() in TIFF_ENDINGS and beside.is_file():
            paths.append(beside)
    missing = [case for case in cases if case not in found]
    if missing:
        pattern = f"<case>_0000{VOLUME_ENDINGS[0]}" if numbered else f"<case>{VOLUME_ENDINGS[0]}"
        raise UsageError(f"{source}: no file for {', '.join(missing)}; looked for {pattern} and other image endings")
    return [(path, output / path.name) for case in cases for path in found[case]]


def _already_there(source: Path, target: Path) -> bool:
    """Whether the target is this very file, or a copy of the same size and content.

    Raises:
        UsageError: another file is in the way.
    """
    if not os.path.lexists(target):
        return False
    if target.exists() and (target.samefile(source) or _same_content(source, target)):
        return True
    raise UsageError(f"{target}: is in the way and is not {source}; remove it or choose another output folder")


def _same_content(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as two:
        while chunk := one.read(1 << 20):
            if chunk != two.read(1 << 20):
                return False
    return True


def _place(source: Path, target: Path, way: Placement) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if way == "symlink":
            target.symlink_to(source.resolve())
        elif way == "hardlink":
            target.hardlink_to(source.resolve())
        else:
            _copy(source, target)
    except OSError as error:
        raise UsageError(
            f"{target}: cannot be made as a {way} of {source} ({error.strerror or error}); try copy_or_link='copy'"
        ) from error
