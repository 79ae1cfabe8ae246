"""Annotation files and label images made to exhaust or crash: each is refused in words, in bounded memory."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from limited import limited
from PIL import Image

from offline_infer.errors import CaseError, OfflineInferError, UsageError
from offline_infer.tasks.instances.references import VocTree, open_references, read_indices
from offline_infer.tasks.instances.rle import runs_of_coco
from offline_infer.tasks.instances.writing import FORMAT, read_record

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]
MANY_DIGITS = "9" * 400


def annotations(segmentation: Any = SQUARE, **image: Any) -> str:
    """One object of one image, as COCO writes it."""
    return json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 10, "width": 12, **image}],
            "categories": [{"id": 1, "name": "person"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}],
        }
    )


def runs(*counts: float) -> dict[str, Any]:
    return {"size": [10, 12], "counts": list(counts)}


HOSTILE = {
    "an id of 400 digits": annotations().replace('"image_id": 1', f'"image_id": {MANY_DIGITS}'),
    "an infinite id": annotations().replace('"image_id": 1', '"image_id": Infinity'),
    "a height of 400 digits": annotations().replace('"height": 10', f'"height": {MANY_DIGITS}'),
    "a height of 30 digits": annotations(height=10**30),
    "a negative height": annotations(height=-3),
    "no height": annotations(height=0),
    "an infinite height": annotations(height=float("inf")),
    "100,000 x 100,000 pixels": annotations(height=100_000, width=100_000),
    "counts whose sum wraps around": annotations(runs(1 << 62, 1 << 62, 1 << 62, 1 << 62, 120)),
    "a count of 400 digits": annotations(runs(0)).replace("[0]", f"[{MANY_DIGITS}]"),
    "counts in counts": annotations({"size": [10, 12], "counts": [[60, 60]]}),
    "a count that is NaN": annotations(runs(float("nan"), 120)),
    "compressed counts beyond 64 bits": annotations({"size": [10, 12], "counts": "o" * 100_000 + "0"}),
    "brackets": "[" * 100_000,
    "brackets in place of a mask": annotations("x").replace('"x"', "[" * 900 + "]" * 900),
    "a name with an escape sequence": annotations(file_name="\x1b[31m.jpg"),
    "a name of 100,000 letters": annotations(file_name="b" * 100_000),
    "a name that is no text": annotations(file_name="\udcff.jpg"),
}
POLYGONS = {
    "a corner that is NaN": annotations([[float("nan")] * 8]),
    "a corner at infinity": annotations([[float("inf")] * 8]),
    "a corner of 400 digits": annotations([[77, 2, 3, 4, 5, 6]]).replace("77", MANY_DIGITS),
    "a corner at 1e300": annotations([[1e300, 0, -1e300, 5, 3, 1e300]]),
    "corners at the largest numbers": annotations([[1.7e308, 0, -1.7e308, 5, 3, -1.7e308]]),
    "an outline that needs a terabyte": annotations([[0, 0, 1e6, 1e6, -1e6, 1e6] * 3000]),
    "corners that are objects": annotations([[{}] * 6]),
}


@pytest.mark.parametrize("name", [*HOSTILE, *POLYGONS])
def test_a_hostile_annotation_file_is_refused_in_words(tmp_path: Path, name: str) -> None:
    if name in POLYGONS:
        pytest.importorskip("pycocotools")
    path = tmp_path / "annotations.json"
    path.write_text({**HOSTILE, **POLYGONS}[name])
    with pytest.raises(OfflineInferError) as refused:
        limited(_read, path)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def _read(path: Path) -> None:
    references = open_references(path)
    references.read(references.names()[0])


def test_a_damaged_image_of_an_annotation_file_fails_alone(tmp_path: Path) -> None:
    """What one image says wrongly of its size must not stop the evaluation of the others."""
    path = tmp_path / "annotations.json"
    path.write_text(annotations(height=0))
    with pytest.raises(CaseError, match="12 x 0 pixels"):
        open_references(path).read("a")


def test_counts_that_wrap_around_are_no_mask() -> None:
    with pytest.raises(UsageError, match="does not add up"):
        runs_of_coco(runs((1 << 63) - 1, (1 << 63) - 1, 122))


@pytest.mark.parametrize("height", [MANY_DIGITS, "0", "-4", "1e999", "99999999999999999999"])
def test_a_hostile_result_is_refused_in_words(tmp_path: Path, height: str) -> None:
    record = {"format": FORMAT, "height": 77, "width": 12, "classes": ["person"], "detections": []}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record).replace("77", height))
    with pytest.raises(UsageError, match=r"a\.json"):
        read_record(path)


def test_label_images_that_promise_too_much(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for side, colours in ((100_000, 3), (2**31 - 1, 0), (13_000, 2)):
        path.write_bytes(_png(side, colours))
        with pytest.raises(CaseError, match=r"a\.png"):
            limited(read_indices, path)


def test_an_image_name_is_no_pattern(tmp_path: Path) -> None:
    for folder in ("SegmentationObject", "JPEGImages"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / folder / "**.png")
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / folder / "a.png")
    assert VocTree(tmp_path).picture("**") == tmp_path / "JPEGImages" / "**.png"


def _png(side: int, colours: int) -> bytes:
    """A PNG whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
