"""The report of an evaluation of objects: figures, close-ups in their order, and records with holes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from instance_samples import box_mask, make_found, write_voc_tree

from offline_infer.events import silent
from offline_infer.proof.report.page import write_report
from offline_infer.tasks.instances.close_ups import KEPT
from offline_infer.tasks.instances.scoring import evaluate
from offline_infer.tasks.instances.writing import write_result

SIZE = (40, 60)


def evaluated(folder: Path, *, empty: bool = False) -> Path:
    """Two images: one with a good and a poor pair, one with a missed and an invented object (or with no object at all)."""
    first, second = (np.zeros(SIZE, np.uint8) for _ in range(2))
    first[5:15, 5:15], first[20:30, 30:50], second[30:36, 40:50] = 1, 7, 3
    if empty:
        first, second = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    tree = write_voc_tree(folder / "voc", {"a": (first, first), "b": (second, second)})
    found = make_found([box_mask(SIZE, 5, 5, 15, 15), box_mask(SIZE, 20, 30, 30, 38)], [0.9, 0.8], [0, 6])
    classes = tuple(f"class {index}" for index in range(20))
    write_result(found, folder / "results", "a", classes, score=0.5)
    other = make_found([box_mask(SIZE, 2, 2, 8, 9)], [0.7], [4]) if not empty else make_found([], [])
    if empty:
        other = type(other)(SIZE, other.boxes, other.scores, other.labels, other.masks)
    write_result(other, folder / "results", "b", classes, score=0.5)
    scores = evaluate(folder / "results", tree, folder / "scores" / "summary.json", {"pictures": "yes"}, silent)
    assert not scores.failed
    return folder / "scores"


def test_the_worst_come_first_with_their_contours(tmp_path: Path) -> None:
    scores = evaluated(tmp_path)
    worst = json.loads((scores / "worst_objects.json").read_text())["objects"]
    assert [entry["sort"] for entry in worst] == ["matched", "matched", "matched"]  # one to one, whatever the overlap
    assert [entry["image"] for entry in worst] == ["b", "a", "a"]
    assert worst[0]["iou"] == 0 < worst[1]["iou"] < worst[2]["iou"]
    result = write_report([scores], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert not result.problems
    assert page.index("Objects found") < page.index("Pairs that overlap least")
    assert page.count("data:image/png;base64,") >= 3
    assert "taken for" in page


def test_missed_and_invented_objects_have_sections_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    evaluated(folder)
    evaluate(folder / "results", folder / "voc", folder / "strict" / "summary.json",
             {"pictures": "yes", "min_iou": "0.1"}, silent)  # fmt: skip
    write_report([folder / "strict"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.index("Pairs that overlap least") < page.index("Missed objects") < page.index("Invented objects")


def test_references_without_objects_are_shown(tmp_path: Path) -> None:
    result = write_report([evaluated(tmp_path, empty=True)], tmp_path / "report.html")
    assert not result.problems
    assert "Invented objects" in (tmp_path / "report.html").read_text()


def test_a_record_with_a_hole_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    scores = evaluated(tmp_path)
    record = json.loads((scores / "worst_objects.json").read_text())
    record["objects"][0]["png"] = "no picture"
    (scores / "worst_objects.json").write_text(json.dumps(record))
    result = write_report([scores], tmp_path / "report.html")
    assert any("worst_objects.json" in problem for problem in result.problems)


def test_only_the_worst_are_kept(tmp_path: Path) -> None:
    objects = np.zeros(SIZE, np.uint8)
    for index in range(20):
        objects[2 * index : 2 * index + 1, : 10 + 2 * index] = index + 1
    tree = write_voc_tree(tmp_path / "voc", {"a": (objects, np.minimum(objects, 20))})
    write_result(type(make_found([], []))(SIZE, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ()),
                 tmp_path / "results", "a", ("aeroplane",), score=0.5)  # fmt: skip
    evaluate(tmp_path / "results", tree, tmp_path / "s" / "summary.json", {"pictures": "yes"}, silent)
    kept = json.loads((tmp_path / "s" / "worst_objects.json").read_text())["objects"]
    assert [entry["object"] for entry in kept] == list(range(19, 19 - KEPT["missed"], -1))  # the largest first
