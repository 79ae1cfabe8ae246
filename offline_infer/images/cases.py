"""Which cases a path holds: nnU-Net's file naming, other volume formats, DICOM series.

A case that cannot be used (a channel is missing, two files claim the same channel) is reported by name beside the others
and does not stop them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offline_infer.errors import UsageError
from offline_infer.files import is_unicode, plain_name, printable
from offline_infer.images.formats import (
    DICOM_ENDINGS,
    FLAT_ENDINGS,
    IMAGE_ENDINGS,
    dicom_candidates,
    is_dicom,
    sibling_endings,
    split_ending,
)

_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$", re.DOTALL)
_FIRST = "_0000"
_COLOURS = (3, 4)


@dataclass(frozen=True)
class CaseFiles:
    """One case: its name, which the result files will carry, and one path per channel in the model's order.

    A path may be a folder (a DICOM series); one colour image may stand for several channels.
    """

    case_id: str
    channels: tuple[Path, ...]


@dataclass(frozen=True)
class CaseList:
    """Usable cases in natural order (``liver_3`` before ``liver_12``), and case -> reason for the unusable ones.

    ``notes``: what was resolved on the way and a person should know, a sentence each.
    """

    cases: tuple[CaseFiles, ...]
    problems: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    """A file or DICOM folder with its name taken apart. ``channel`` is None where the name has no suffix."""

    path: Path
    stem: str
    ending: str
    case: str
    channel: int | None


def find_cases(source: Path, channels: int, file_ending: str) -> CaseList:
    """The cases of a file, an nnU-Net image folder, a DICOM series folder, or a folder of DICOM series folders.

    Names are nnU-Net's: ``case_0000.nii.gz``, ``case_0001.nii.gz``, one number per channel. A model with one channel
    also takes files without a number. Beside the model's own ending other formats of the same kind are accepted (any
    volume format for ``.nii.gz``), one per case. Hidden files and other kinds of file are left alone.

    Args:
        source: file or folder.
        channels: how many the model takes.
        file_ending: the model's own, e.g. ``.nii.gz``.

    Raises:
        UsageError: the path does not exist, is no image, or holds nothing that could be a case.
    """
    source = Path(source)
    if not is_unicode(source):
        raise UsageError(f"{printable(source)}: the path is not UTF-8, which the image libraries need; rename it")
    if not source.exists():
        raise UsageError(f"{source}: does not exist; expected an image file or a folder of images")
    try:
        if source.is_dir():
            return _in_folder(source, channels, file_ending)
        return _of_file(source, channels, file_ending)
    except OSError as error:
        raise UsageError(f"{source}: cannot be listed ({error.strerror or error})") from error


def select_part(cases: Sequence[CaseFiles], part: int, parts: int) -> tuple[CaseFiles, ...]:
    """Every ``parts``-th case, beginning with number ``part``: the share of one of several machines or devices.

    Raises:
        UsageError: unless 0 <= part < parts.
    """
    if parts < 1 or not 0 <= part < parts:
        raise UsageError(f"part {part} of {parts}: parts are numbered from 0 to {max(parts, 1) - 1}")
    return tuple(cases[part::parts])


def natural_key(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts digits by value: ``case_9`` before ``case_10``."""
    pieces = re.split(r"(\d+)", text)
    # Equal values in different spelling (7, 07) are told apart by the text itself, which comes last.
    return (*((1, int(piece)) if piece.isdecimal() else (0, piece) for piece in pieces), (0, text))


def _of_file(source: Path, channels: int, file_ending: str) -> CaseList:
    entry = _entry(source, file_ending)
    if entry is None:
        legal = ", ".join((*sibling_endings(file_ending), *DICOM_ENDINGS))
        raise UsageError(f"{source}: is not an image this model reads; expected one of {legal}, or a folder of them")
    if entry.channel is None or channels == 1:
        # A file that was named explicitly is the case, whatever number its name ends with.
        case = entry.stem.removesuffix(_FIRST) or entry.stem
        return _collect({case: [_Entry(source, entry.stem, entry.ending, case, 0)]}, channels)
    siblings = [
        other
        for path in source.parent.iterdir()
        if not path.is_dir()
        and (other := _entry(path, file_ending)) is not None
        and (other.case, other.ending) == (entry.case, entry.ending)
        and other.channel is not None
    ]
    return _collect({entry.case: siblings}, channels)


def _in_folder(folder: Path, channels: int, file_ending: str) -> CaseList:
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    # Not is_file(): a dangling link is a case that fails by name, not one that is silently left out.
    files = [entry for path in visible if not path.is_dir() and (entry := _entry(path, file_ending)) is not None]
    images = [entry for entry in files if not is_dicom(entry.path)]
    slices = len(dicom_candidates(folder)) if _takes_dicom(file_ending) else 0
    if slices and not images:
        case = folder.resolve().name or "case"
        return _collect({case: [_Entry(folder, case, "", case, 0)]}, channels)
    if _takes_dicom(file_ending):
        images += [_taken_apart(path, path.name, "") for path in visible if path.is_dir() and dicom_candidates(path)]
    if not images:
        raise UsageError(_nothing_found(folder, visible, channels, file_ending))
    groups: dict[str, list[_Entry]] = {}
    for entry in images:
        groups.setdefault(entry.case, []).append(entry)
    if channels == 1:
        groups = _one_channel_names(groups)
    found = _collect(groups, channels)
    if slices:
        found.problems[printable(folder.resolve().name)] = (
            f"{slices} DICOM files lie beside image files; move each DICOM series to a folder of its own"
        )
    return found


def _one_channel_names(groups: dict[str, list[_Entry]]) -> dict[str, list[_Entry]]:
    """For a model with one channel, a number at the end is a channel only if ``_0000`` is there.

    ``scan_2023.nii.gz`` and ``scan_2024.nii.gz`` are then two cases, whereas ``scan_0000`` and ``scan_0001`` are a case
    with a channel too many.
    """
    named: dict[str, list[_Entry]] = {}
    for case, entries in groups.items():
        numbered = any(entry.channel == 0 for entry in entries)
        for entry in entries:
            if entry.channel is None or numbered:
                named.setdefault(case, []).append(entry)
            else:
                named.setdefault(entry.stem, []).append(_Entry(entry.path, entry.stem, entry.ending, entry.stem, None))
    return named


def _collect(groups: dict[str, list[_Entry]], channels: int) -> CaseList:
    cases: list[CaseFiles] = []
    problems: dict[str, str] = {}
    for case in sorted(groups, key=natural_key):
        entries = sorted(groups[case], key=lambda entry: (entry.channel or 0, entry.path.name))
        reason = _unsafe(case) or _problem(entries, channels)
        if reason:
            problems[printable(case)] = reason
        else:
            cases.append(CaseFiles(case, tuple(entry.path for entry in entries)))
    return CaseList(tuple(cases), problems)


def _problem(entries: Sequence[_Entry], channels: int) -> str | None:
    """Why these files are not one case of the model, or None."""
    names = ", ".join(printable(entry.path.name) for entry in entries)
    endings = {entry.ending for entry in entries}
    if len(endings) > 1:
        return f"its files have different endings ({names}); keep one format per case"
    found = [0 if entry.channel is None else entry.channel for entry in entries]
    if len(set(found)) < len(found):
        return f"several files for the same channel ({names}); keep one"
    if channels > 1 and any(entry.channel is None for entry in entries) and not _colours(entries, channels):
        return (
            f"{names}: the model takes {channels} channels, so names must end with _0000, _0001, ... before the ending"
        )
    if found == list(range(channels)) or _colours(entries, channels):
        return None
    missing = [number for number in range(channels) if number not in found]
    if missing:
        wanted = ", ".join(f"_{number:04d}" for number in missing)
        return f"channel {wanted} is missing; the model takes {channels} channels and there is only {names}"
    extra = ", ".join(f"_{number:04d}" for number in found if number >= channels)
    return f"channel {extra} is too many; the model takes {channels} and there are {names}"


def _colours(entries: Sequence[_Entry], channels: int) -> bool:
    """Whether these files can be colour images that hold several channels each; the reader counts them."""
    if entries[0].ending not in FLAT_ENDINGS:
        return False
    numbers = [0 if entry.channel is None else entry.channel for entry in entries]
    return numbers == list(range(len(entries))) and any(channels == len(entries) * each for each in _COLOURS)


def _entry(path: Path, file_ending: str) -> _Entry | None:
    """A file's name taken apart, or None if it is not an image this model may read."""
    parts = split_ending(path.name)
    if parts is not None and parts[1] in sibling_endings(file_ending):
        return _taken_apart(path, *parts)
    if _takes_dicom(file_ending) and path.is_file() and is_dicom(path):
        stem, ending = parts or (path.name, "")
        return _taken_apart(path, stem, ending)
    return None


def _taken_apart(path: Path, stem: str, ending: str) -> _Entry:
    match = _SUFFIX.match(stem)
    if match is None:
        return _Entry(path, stem, ending, stem, None)
    return _Entry(path, stem, ending, match["case"], int(match["channel"]))


def _takes_dicom(file_ending: str) -> bool:
    return file_ending.lower() not in FLAT_ENDINGS


def _unsafe(case: str) -> str | None:
    """Why a case's name cannot become a file name, or None."""
    try:
        plain_name(case, "case's name")
    except UsageError as error:
        return str(error)
    return None


def _nothing_found(folder: Path, visible: Iterable[Path], channels: int, file_ending: str) -> str:
    suffixes = _FIRST if channels == 1 else f"{_FIRST} to _{channels - 1:04d}"
    looked = f"files named <case>{_FIRST}{file_ending} (channels {suffixes})"
    others = [ending for ending in sibling_endings(file_ending) if ending != file_ending]
    if others:
        looked += f", the same with {', '.join(others)}"
    if _takes_dicom(file_ending):
        looked += ", DICOM files, folders with one DICOM series each"
    names = sorted((printable(path.name) for path in visible), key=natural_key)
    if not names:
        return f"{folder}: is empty; looked for {looked}"
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    unread = [name for name in names if (parts := split_ending(name)) and parts[1] in IMAGE_ENDINGS]
    hint = "; these images are of a kind that this model does not read" if unread else ""
    return f"{folder}: holds no case; looked for {looked}; found {len(names)} other entries ({shown}){hint}"
