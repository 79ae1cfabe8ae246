"""Which file endings exist, and which of nnU-Net's readers reads which. Opens no file, but for DICOM's magic bytes."""

from __future__ import annotations

from pathlib import Path

from offline_infer.errors import UsageError

VOLUME_ENDINGS: tuple[str, ...] = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".gipl")
NIFTI_ENDINGS: tuple[str, ...] = (".nii.gz", ".nii")
META_ENDINGS: tuple[str, ...] = (".mha", ".mhd")
TIFF_ENDINGS: tuple[str, ...] = (".tif", ".tiff")
FLAT_ENDINGS: tuple[str, ...] = (".png", ".bmp", ".jpg", ".jpeg", *TIFF_ENDINGS)
DICOM_ENDINGS: tuple[str, ...] = (".dcm", ".ima")
IMAGE_ENDINGS: tuple[str, ...] = (*VOLUME_ENDINGS, *FLAT_ENDINGS, *DICOM_ENDINGS)
"""Every ending that can be read, by one reader or another."""

WRITABLE_ENDINGS: tuple[str, ...] = (".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".png", ".bmp", *TIFF_ENDINGS)
"""Endings a label map can have: no lossy format, and none that is spread over two files (.mhd)."""

READERS: dict[str, tuple[str, ...]] = {
    "SimpleITKIO": (*VOLUME_ENDINGS, *DICOM_ENDINGS),
    "SimpleITKIOWithReorient": (*VOLUME_ENDINGS, *DICOM_ENDINGS),
    "NibabelIO": (*VOLUME_ENDINGS, *DICOM_ENDINGS),
    "NibabelIOWithReorient": (*VOLUME_ENDINGS, *DICOM_ENDINGS),
    "NaturalImage2DIO": FLAT_ENDINGS,
    "Tiff3DIO": TIFF_ENDINGS,
}
"""nnU-Net's reader classes -> endings read here. nnU-Net's own lists are shorter; DICOM is ours."""

_BY_LENGTH = tuple(sorted(IMAGE_ENDINGS, key=len, reverse=True))


def split_ending(name: str) -> tuple[str, str] | None:
    """``liver_1.nii.gz`` -> (``liver_1``, ``.nii.gz``), the ending in lower case; None if the ending is unknown."""
    lower = name.lower()
    for ending in _BY_LENGTH:
        if lower.endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)], ending
    return None


def ending_of(path: Path) -> str:
    """The known ending of a path in lower case, or an empty string."""
    parts = split_ending(path.name)
    return parts[1] if parts else ""


def sibling_endings(file_ending: str) -> tuple[str, ...]:
    """Endings that may stand in for a model's own: other volume formats, or other two-dimensional formats."""
    ending = file_ending.lower()
    if ending in TIFF_ENDINGS:
        return TIFF_ENDINGS
    if ending in FLAT_ENDINGS:
        return FLAT_ENDINGS
    return VOLUME_ENDINGS if ending in VOLUME_ENDINGS else (ending,)


def reader_endings(reader: str) -> tuple[str, ...]:
    """Endings a reader accepts.

    Raises:
        UsageError: not one of nnU-Net's readers; the message lists them.
    """
    if reader not in READERS:
        raise UsageError(f"unknown image reader {reader!r}; the known ones are {', '.join(READERS)}")
    return READERS[reader]


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its ending, or by the magic bytes after the preamble where it has no known ending."""
    ending = ending_of(path)
    if ending:
        return ending in DICOM_ENDINGS
    try:
        with path.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError:
        return False


def dicom_candidates(folder: Path) -> list[Path]:
    """DICOM files directly in a folder, sorted by name; hidden files and ``DICOMDIR`` are left out."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.name.upper() != "DICOMDIR" and path.is_file() and is_dicom(path)
    ]
