"""Matching, average precision and tables: the recorded figures, and the policies at the edges."""

from __future__ import annotations

import csv
import json
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from instance_samples import box_mask, make_found, write_voc_tree
from PIL import Image

from offline_infer.errors import UsageError
from offline_infer.events import silent
from offline_infer.files import write_json
from offline_infer.tasks.instances.average_precision import VocPrecision
from offline_infer.tasks.instances.matching import match
from offline_infer.tasks.instances.palette import voc_palette
from offline_infer.tasks.instances.references import (
    VOC_CLASSES,
    Reference,
    class_numbers,
    open_references,
    read_indices,
)
from offline_infer.tasks.instances.result import Instances
from offline_infer.tasks.instances.rle import runs_of_mask
from offline_infer.tasks.instances.scoring import evaluate
from offline_infer.tasks.instances.writing import read_record, record_of, write_result

SIZE = (40, 60)
VOC = tuple(VOC_CLASSES)


def reference(*masks: np.ndarray, labels=None, void=None) -> Reference:
    return Reference(
        size=SIZE,
        masks=tuple(runs_of_mask(mask) for mask in masks),
        labels=tuple(labels or [14] * len(masks)),
        crowds=(False,) * len(masks),
        ids=tuple(range(1, len(masks) + 1)),
        void=None if void is None else runs_of_mask(void),
    )


def test_pairs_have_the_largest_total_not_the_greedy_one() -> None:
    # IoU rows (.9, .6, 0), (.8, .1, 0): greedy takes .9 + .1, the best total is .6 + .8.
    objects = [box_mask(SIZE, 0, 0, 10, 20), box_mask(SIZE, 0, 0, 10, 25)]
    found = make_found([box_mask(SIZE, 0, 0, 10, 21), box_mask(SIZE, 0, 0, 10, 12)], [0.9, 0.8])
    result = match(found, (14, 14), reference(*objects))
    assert [row.prediction for row in result.rows] == [1, 0]


def test_fewer_more_and_no_predictions() -> None:
    objects = [box_mask(SIZE, 0, 0, 10, 10), box_mask(SIZE, 20, 20, 30, 30)]
    none = match(make_found([], []), (), reference(*objects))
    assert [row.iou for row in none.rows] == [0, 0]
    assert none.bg_iou == pytest.approx(2200 / 2400)
    one = match(make_found([objects[1]], [0.9]), (14,), reference(*objects))
    assert [row.prediction for row in one.rows] == [None, 0]
    assert one.mean_iou == pytest.approx(0.5, abs=1e-6)
    extra = box_mask(SIZE, 0, 40, 5, 50)
    more = match(make_found([objects[0], extra, objects[1]], [0.9, 0.8, 0.7]), (14,) * 3, reference(*objects))
    assert more.invented == (1,)
    assert more.mean_iou == pytest.approx(1, abs=1e-6)
    assert more.bg_iou == pytest.approx(1, abs=1e-6)  # a prediction without partner costs nothing


def test_an_image_without_objects_has_no_mean() -> None:
    result = match(make_found([box_mask(SIZE, 0, 0, 5, 5)], [0.9]), (14,), reference())
    assert result.mean_iou is None
    assert result.invented == (0,)
    assert result.mean_iou_with_bg == pytest.approx(1, abs=1e-6)


def test_class_aware_pairs_agree_in_class() -> None:
    mask = box_mask(SIZE, 0, 0, 10, 10)
    found = make_found([mask, box_mask(SIZE, 0, 0, 10, 8)], [0.9, 0.8], [0, 1])
    blind = match(found, (11, 14), reference(mask))
    aware = match(found, (11, 14), reference(mask), class_aware=True)
    assert (blind.rows[0].prediction, aware.rows[0].prediction) == (0, 1)
    assert match(found, (11, -1), reference(mask), class_aware=True).rows[0].prediction is None


def test_void_pixels_are_background_or_nothing() -> None:
    mask, void = box_mask(SIZE, 0, 0, 10, 10), box_mask(SIZE, 0, 10, 10, 20)
    found = make_found([mask | void], [0.9])
    assert match(found, (14,), reference(mask, void=void)).rows[0].iou == pytest.approx(0.5, abs=1e-6)
    ignored = match(found, (14,), reference(mask, void=void), void="ignore")
    assert ignored.rows[0].iou == pytest.approx(1, abs=1e-6)
    assert ignored.bg_iou == pytest.approx(1, abs=1e-6)


def test_the_palette_is_vocs() -> None:
    palette = voc_palette()
    assert palette[[1, 3, 15, 20, 255]].tolist() == [
        [128, 0, 0],
        [128, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


def test_class_names_of_coco_and_voc_meet() -> None:
    assert class_numbers(("tv", "Airplane", "zebra"), VOC_CLASSES) == (19, 0, -1)
    with pytest.raises(UsageError, match="class-blind"):
        class_numbers(("zebra",), VOC_CLASSES)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A tree of two images and results for them."""
    objects = np.zeros(SIZE, np.uint8)
    objects[5:15, 5:15], objects[20:30, 20:40], objects[19, 20:40] = 3, 7, 255
    classes = np.where(objects == 3, 15, np.where(objects == 7, 12, objects)).astype(np.uint8)
    tree = write_voc_tree(tmp_path / "voc", {"a": (objects, classes), "b": (np.zeros_like(objects),) * 2})
    results = tmp_path / "results"
    results.mkdir()
    found = make_found([objects == 3, objects == 7], [0.9, 0.6], [0, 1])
    write_result(found, results, "a", ("person", "dog"), score=0.5, masks=True)
    write_result(make_found([box_mask(SIZE, 0, 0, 4, 4)], [0.8]), results, "b", ("person", "dog"), score=0.5)
    return tree, results


def test_an_evaluation_writes_tables_and_a_summary(small: tuple[Path, Path], tmp_path: Path) -> None:
    tree, results = small
    output = tmp_path / "scores" / "summary.json"
    scores = evaluate(results, tree, output, {"pictures": "yes"}, silent)
    assert scores.failed == {}
    summary = json.loads(output.read_text())
    assert summary == scores.summary
    assert summary["counts"] == {
        "images": 2,
        "images_without_objects": 1,
        "objects": 2,
        "matched": 2,
        "missed": 0,
        "invented": 1,
        "failed": 0,
    }
    assert summary["over_objects"]["iou"] == pytest.approx(1, abs=1e-6)
    assert summary["average_precision"]["voc_area_iou0.5"]["ap"]["dog"] == 1
    assert [row["id"] for row in summary["images"]["a"]["objects"]] == [3, 7]
    rows = list(csv.DictReader((output.parent / "objects.csv").open()))
    assert len(rows) == 2
    assert rows[0]["num objects"] == "2"
    assert (output.parent / "pictures" / "a_predict.png").is_file()
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.load_workbook(output.parent / "objects.xlsx")
    assert book.sheetnames == ["objects", "images", "summary"]
    assert [cell.value for cell in book["objects"][1]] == list(rows[0])
    assert book["objects"][2][3].value == pytest.approx(1, abs=1e-6)
    assert book["images"][2][12].hyperlink.target == "pictures/a_matches.png"


def test_colour_masks_are_turned_back_only_if_they_are_vocs(small: tuple[Path, Path], tmp_path: Path) -> None:
    tree, _ = small
    truth = open_references(tree).read("a")
    from PIL import Image

    path = tree / "SegmentationObject" / "a.png"
    coloured = Image.open(path).convert("RGB")
    coloured.save(path)
    again = open_references(tree).read("a")
    assert again.ids == truth.ids == (3, 7)
    assert again.labels == truth.labels == (14, 11)
    coloured.putpixel((0, 0), (1, 2, 3))
    coloured.save(path)
    with pytest.raises(Exception, match="not Pascal VOC's"):
        open_references(tree).read("a")


def test_one_bad_image_fails_alone(small: tuple[Path, Path]) -> None:
    tree, results = small
    (results / "b.json").write_text("{")
    scores = evaluate(results, tree, None, {}, silent)
    assert list(scores.failed) == ["b"]
    assert scores.summary is not None
    assert scores.summary["counts"]["images"] == 1
    (results / "b.json").unlink()
    assert "missing" in evaluate(results, tree, None, {}, silent).failed["b"]


@pytest.mark.parametrize("wrong", [{"above": 2}, {"above": "x"}, {"match": "loose"}, {"void": "x"}, {"lesions": []}])
def test_options_without_sense_are_refused(small: tuple[Path, Path], wrong: dict) -> None:
    with pytest.raises(UsageError):
        evaluate(small[1], small[0], None, wrong, silent)


def test_class_names_unknown_to_the_references(small: tuple[Path, Path]) -> None:
    tree, results = small
    for name in ("a", "b"):
        found, _ = read_record(results / f"{name}.json")
        write_json(results / f"{name}.json", record_of(found, name, ("x1", "x2")))
    scores = evaluate(results, tree, None, {}, silent)
    assert scores.summary is not None
    assert scores.summary["counts"]["matched"] == 2
    with pytest.raises(UsageError, match="none of the model's classes"):
        evaluate(results, tree, None, {"match": "class-aware"}, silent)


def test_results_survive_writing_and_label_images_show_the_best_on_top(tmp_path: Path) -> None:
    from PIL import Image

    low, high = box_mask(SIZE, 0, 0, 20, 20), box_mask(SIZE, 10, 10, 30, 30)
    found = make_found([high, low, box_mask(SIZE, 35, 35, 38, 38)], [0.9, 0.8, 0.2], [1, 0, 0])
    write_result(found, tmp_path, "a", ("person", "dog"), score=0.5, masks=True)
    again, classes = read_record(tmp_path / "a.json")
    assert classes == ("person", "dog")
    np.testing.assert_array_equal(again.scores, found.scores)
    assert all((x.mask() == y.mask()).all() for x, y in zip(again.masks, found.masks, strict=True))
    objects = np.array(Image.open(tmp_path / "a_objects.png"))
    assert objects[15, 15] == 1
    assert objects[5, 5] == 2
    assert objects[36, 36] == 0
    assert np.array(Image.open(tmp_path / "a_classes.png"))[15, 15] == 2
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "a_object000_dog.png",
        "a_object001_person.png",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "x"},
        {"height": 7},
        {"classes": []},
        {"detections": [{"score": 1}]},
        {"detections": 5},
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, change: dict) -> None:
    record = record_of(make_found([box_mask(SIZE, 0, 0, 4, 4)], [0.9]), "a", ("person",))
    write_json(tmp_path / "a.json", {**record, **change})
    with pytest.raises(UsageError, match=r"a\.json"):
        read_record(tmp_path / "a.json")


def test_coco_annotations(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    runs = runs_of_mask(box_mask(SIZE, 20, 20, 30, 40)).to_coco()
    content = {
        "images": [{"id": 5, "file_name": "x/a.jpg", "height": 40, "width": 60}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 1, "iscrowd": 0, "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]]},
            {"id": 2, "image_id": 5, "category_id": 18, "iscrowd": 1, "segmentation": runs},
        ],
    }
    write_json(tmp_path / "instances.json", content)
    truth = open_references(tmp_path / "instances.json")
    assert truth.classes == ("person", "dog")
    read = truth.read("a")
    assert (read.labels, read.crowds) == ((0, 1), (False, True))
    assert read.masks[0].area == 100
    found = make_found([read.masks[0].mask(), box_mask(SIZE, 22, 22, 28, 28)], [0.9, 0.8], [0, 1])
    (tmp_path / "out").mkdir()
    write_result(found, tmp_path / "out", "a", ("person", "dog"), score=0.5)
    summary = evaluate(tmp_path / "out", tmp_path / "instances.json", None, {}, silent).summary
    assert summary is not None
    assert summary["counts"]["objects"] == 1  # the crowd takes no part in matching
    assert summary["average_precision"]["coco_segm"]["AP"] == pytest.approx(1)
    for damage in ({"annotations": [{"id": 1, "image_id": 9, "category_id": 1}]}, {"images": 4}, {"categories": None}):
        write_json(tmp_path / "bad.json", {**content, **damage})
        with pytest.raises(UsageError, match=r"bad\.json"):
            open_references(tmp_path / "bad.json")


# ---- recorded figures ------------------------------------------------------------------------------------------------


def recorded(folder: Path, name: str) -> Instances:
    expected = np.load(folder / "expected" / f"{name}.npz")
    shape = expected["masks_shape"]
    masks = np.unpackbits(expected["masks_packed"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    size = (int(expected["image_size"][0]), int(expected["image_size"][1]))
    dets = expected["dets"]
    return Instances(size, dets[:, :4], dets[:, 4], expected["labels"], tuple(runs_of_mask(mask) for mask in masks))


@pytest.mark.parity
def test_the_recorded_table_and_average_precision(goldens: Path, tmp_path: Path) -> None:
    folder = goldens / "instances" / "voc"
    tree = folder / "VOC2012"
    for name in open_references(tree).names():
        write_json(tmp_path / f"{name}.json", record_of(recorded(folder, name), name, VOC))
    output = tmp_path / "scores" / "summary.json"
    summary = evaluate(tmp_path, tree, output, {}, silent).summary
    assert summary is not None
    expected = list(csv.DictReader((folder / "expected/table.csv").open()))
    found = list(csv.DictReader((output.parent / "objects.csv").open()))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        assert {k: v for k, v in ours.items() if k in list(ours)[:3]} == {k: theirs[k] for k in list(ours)[:3]}
        for column in list(ours)[3:]:
            assert ours[column] == theirs[column] == "" or float(ours[column]) == pytest.approx(
                float(theirs[column]), abs=2e-6
            )
    wanted = json.loads((folder / "expected/ap.json").read_text())["all detections (score > 0.05)"]
    for name, figures in summary["average_precision"].items():
        if name == "coco_segm":
            assert figures["AP"] == pytest.approx(wanted[name]["AP"], abs=1e-9)
        else:
            assert figures["map"] == pytest.approx(wanted[name]["map"], abs=1e-9)
            assert figures["ap"] == pytest.approx(wanted[name]["ap"], abs=1e-9)
    pairs = json.loads((folder / "expected/matching.json").read_text())
    for name, image in summary["images"].items():
        ours = [[row["index"], row["prediction"]] for row in image["objects"] if row["prediction"] is not None]
        assert ours == pairs[name]["pairs"]


@pytest.mark.parity
def test_the_recorded_label_images_of_matched_predictions(goldens: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = goldens / "instances" / "voc"
    names = open_references(folder / "VOC2012").names()
    for name in names:
        write_json(tmp_path / f"{name}.json", record_of(recorded(folder, name), name, VOC))
    evaluate(tmp_path, folder / "VOC2012", tmp_path / "scores" / "summary.json", {"pictures": True}, silent)
    for name in names:
        ours = np.array(Image.open(tmp_path / "scores" / "pictures" / f"{name}_predict.png"))
        np.testing.assert_array_equal(ours, np.array(Image.open(folder / "expected" / f"{name}_predict.png")))


def test_a_palette_in_another_order_is_turned_back(tmp_path: Path) -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 1:4], labels[4, 5], labels[0] = 3, 9, 255
    path = tmp_path / "a.png"
    picture = Image.fromarray(labels)
    picture.putpalette(voc_palette().ravel().tolist())
    picture.convert("RGB").quantize(16).save(path)  # numbers the colours afresh
    assert set(np.unique(np.array(Image.open(path)))) == {0, 1, 2, 3}
    np.testing.assert_array_equal(read_indices(path), labels)
    picture.putpalette([value for index in range(256) for value in (index, index, index)])
    picture.save(path)  # another palette altogether: the numbers count
    np.testing.assert_array_equal(read_indices(path), labels)


def plain_precision(images: list, label: int, threshold: float, eleven: bool) -> float | None:
    """Average precision of one class written the long way, with whole masks: (masks, scores, labels, objects, classes)."""
    total = sum(classes.count(label) for *_, classes in images)
    marked = []
    for masks, scores, labels, objects, classes in images:
        free = {index for index, kind in enumerate(classes) if kind == label}
        own = set(free)
        for index in sorted(range(len(masks)), key=lambda i: -scores[i]):
            if labels[index] != label:
                continue
            ious = {o: (masks[index] & objects[o]).sum() / (masks[index] | objects[o]).sum() for o in own}
            best = max(ious, key=lambda o: ious[o], default=None)
            right = best is not None and ious[best] >= threshold and best in free
            if right:
                free.discard(best)
            marked.append((scores[index], right))
    if total == 0:
        return None
    marked.sort(key=lambda pair: -pair[0])
    points, hits = [], 0
    for number, (_, right) in enumerate(marked, start=1):
        hits += right
        points.append((hits / total, hits / number))
    best_from = lambda recall: max((p for r, p in points if r >= recall), default=0.0)  # noqa: E731
    if eleven:
        return sum(best_from(level) for level in np.arange(0, 1.1, 0.1)) / 11
    recalls = [0.0, *sorted({r for r, _ in points if r > 0})]
    return sum((b - a) * best_from(b) for a, b in pairwise(recalls))


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_and_pairs_against_the_long_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, images, ours = (18, 22), [], VocPrecision(3)

    def rectangles(count: int) -> list[np.ndarray]:
        corners = [(int(rng.integers(0, 12)), int(rng.integers(0, 16))) for _ in range(count)]
        return [box_mask(size, y, x, y + int(rng.integers(2, 7)), x + int(rng.integers(2, 7))) for y, x in corners]

    for _ in range(8):
        objects = rectangles(int(rng.integers(0, 5)))
        classes = [int(rng.integers(0, 3)) for _ in objects]
        masks = [np.roll(mask, int(rng.integers(-1, 2)), 1) for mask in objects if rng.random() < 0.8]
        masks += rectangles(int(rng.integers(0, 3)))
        labels = [int(rng.integers(0, 3)) if index >= len(classes) else classes[index] for index in range(len(masks))]
        scores = rng.permutation(1000)[: len(masks)] / 1000 + 0.0001
        found = make_found(masks, scores, labels) if masks else make_found([], [])
        order = np.argsort(-found.scores)
        found = Instances(
            size, found.boxes[order], found.scores[order], found.labels[order], tuple(found.masks[i] for i in order)
        )
        ids = sorted(rng.permutation(254)[: len(objects)].tolist())  # not contiguous
        runs = tuple(runs_of_mask(mask) for mask in objects)
        reference = Reference(size, runs, tuple(classes), (False,) * len(objects), tuple(ids))
        ours.add(found, found.labels.tolist(), reference)
        images.append((masks, list(scores), labels, objects, classes))
        result = match(found, tuple(found.labels.tolist()), reference)
        best = max(
            (
                sum(result.iou[row, column] for row, column in zip(rows, columns, strict=False))
                for rows in permutations(range(len(objects)))
                for columns in permutations(range(len(masks)), min(len(objects), len(masks)))
            ),
            default=0.0,
        ) if len(masks) <= 6 else None  # fmt: skip
        if best is not None:
            assert sum(row.iou for row in result.rows) == pytest.approx(best)
    for threshold in (0.5, 0.7):
        for eleven in (False, True):
            _, values = ours.figures(threshold, eleven_points=eleven)
            expected = [plain_precision(images, label, threshold, eleven) for label in range(3)]
            assert values == pytest.approx(expected)
