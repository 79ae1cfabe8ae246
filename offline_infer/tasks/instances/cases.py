"""Which images a path holds: one file, a folder, or a Pascal VOC tree with its list of images."""

from __future__ import annotations

from pathlib import Path

from offline_infer.errors import UsageError
from offline_infer.images.cases import CaseFiles, CaseList, natural_key
from offline_infer.images.decoding import ENDINGS

VOC_LIST = Path("ImageSets") / "Segmentation" / "val.txt"


def list_images(source: Path) -> CaseList:
    """The images of a file, a folder, or a Pascal VOC tree (those of its ``val`` list, else all).

    Files whose names differ only in their endings are reported, because their results would have one name.

    Raises:
        UsageError: the path does not exist or holds no image.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix.lower() not in ENDINGS:
            raise UsageError(f"{source}: is not an image; expected one of {', '.join(ENDINGS)}")
        return CaseList((CaseFiles(source.stem, (source,)),))
    if not source.is_dir():
        raise UsageError(f"{source}: does not exist; expected an image or a folder of images")
    if (source / "JPEGImages").is_dir():
        return _voc(source)
    return _named(_images(source), source)


def voc_ids(root: Path) -> tuple[str, ...] | None:
    """The image names of a tree's ``val`` list; None where it has none.

    Raises:
        UsageError: the list cannot be read, or holds something that is no plain name.
    """
    path = root / VOC_LIST
    if not path.is_file():
        return None
    try:
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    for name in names:
        if name != Path(name).name or name.startswith("."):
            raise UsageError(f"{path}: {name!r} is not the plain name of an image")
    return tuple(dict.fromkeys(names))


def _voc(root: Path) -> CaseList:
    folder = root / "JPEGImages"
    names = voc_ids(root)
    if names is None:
        return _named(_images(folder), folder)
    present: dict[str, list[Path]] = {}
    for path in _images(folder):
        present.setdefault(path.stem, []).append(path)
    missing = {name: f"{VOC_LIST} lists it, but {folder} has no such image" for name in names if name not in present}
    chosen = [path for name in names for path in present.get(name, ())]
    found = _named(chosen, folder)
    return CaseList(found.cases, {**found.problems, **missing})


def _images(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and not path.is_dir()
    ]


def _named(paths: list[Path], folder: Path) -> CaseList:
    if not paths:
        raise UsageError(f"{folder}: holds no image; expected files that end with {', '.join(ENDINGS)}")
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path.stem, []).append(path)
    cases, problems = [], {}
    for name in sorted(by_name, key=natural_key):
        files = sorted(by_name[name])
        if len(files) > 1:
            shown = ", ".join(file.name for file in files)
            problems[name] = f"several images have this name ({shown}); their results would overwrite each other"
        else:
            cases.append(CaseFiles(name, (files[0],)))
    return CaseList(tuple(cases), problems)
