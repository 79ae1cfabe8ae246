"""The readers' axes as records: round trip, earlier releases, damage."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from offline_infer.arithmetic.axes import (
    AffineAxes,
    Axes,
    FileAxes,
    PictureAxes,
    Turn,
    TurnedAxes,
    axes_from_json,
    ras_affine,
)
from offline_infer.arithmetic.geometry import CaseGeometry, ImageGeometry
from offline_infer.errors import GeometryError

DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
TURN = Turn((2, 0, 1), (True, False, True))
AFFINE = ((1.0, 0.25, 0.0, 5.0), (0.0, 1.0, 0.0, -3.0), (0.0, 0.0, 2.0, 1.0), (0.0, 0.0, 0.0, 1.0))
STORED = {"spacing": [1.0, 2.0, 3.0], "origin": [5.0, -3.0, 1.0], "direction": list(DIRECTION)}

CASES: list[tuple[Axes, dict[str, Any]]] = [
    (FileAxes(), {}),
    (FileAxes(), {"dicom_series": "1.2.3"}),
    (FileAxes(2), {"dimensions": 2}),
    (PictureAxes(), {"flat": True}),
    (AffineAxes(AFFINE), {"affine": [list(row) for row in AFFINE]}),
    (AffineAxes(AFFINE, TURN), {"affine": [list(row) for row in AFFINE], "turn": TURN.to_json()}),
    (TurnedAxes(TURN, (1.0, 2.0, 3.0), (5.0, -3.0, 1.0), DIRECTION), {"turn": TURN.to_json(), "stored": STORED}),
]


def frame(axes: Axes) -> ImageGeometry:
    return ImageGeometry((4, 5, 6), (2.0, 1.0, 1.0), (5.0, -3.0, 1.0), DIRECTION, (1.0, 1.0, 2.0), axes=axes)


@pytest.mark.parametrize(("axes", "bag"), CASES, ids=lambda value: type(value).__name__)
def test_round_trip_and_the_bag_of_earlier_releases(axes: Axes, bag: dict[str, Any]) -> None:
    record = json.loads(json.dumps(frame(axes).to_json()))
    assert ImageGeometry.from_json(record) == frame(axes)
    del record["axes"]
    assert ImageGeometry.from_json({**record, "extra": bag}) == frame(axes)


def damaged_records() -> list[dict[str, Any]]:
    """Copies of a good record, one thing wrong in each."""
    good = CaseGeometry(frame(CASES[-1][0]), ((0, 4), (0, 5), (0, 6)), (4, 5, 6), (2.0, 1.0, 1.0), (0, 1, 2)).to_json()

    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [path] * bool(path) + [place for key, part in inner for place in places(part, (*path, key))]

    bad = []
    for place, wrong in itertools.product(places(good), (None, {}, [], "x", float("nan"), 10**400, -7)):
        if wrong == -7 and place[-2:][0] in ("origin", "direction"):
            continue  # a number like any other there
        record = json.loads(json.dumps(good))
        target = record
        for key in place[:-1]:
            target = target[key]
        before, target[place[-1]] = target[place[-1]], wrong
        if not isinstance(before, str | bool):
            bad.append(record)
    return bad


def test_a_damaged_record_is_refused() -> None:
    records = damaged_records()
    assert len(records) > 300
    for record in records:
        with pytest.raises(GeometryError):
            CaseGeometry.from_json(record)


def test_unknown_kind() -> None:
    with pytest.raises(GeometryError, match="unknown kind"):
        axes_from_json({"kind": "spherical"})


def test_affine_of_a_frame() -> None:
    affine = np.asarray(ras_affine((1.0, 2.0, 3.0), (10.0, 20.0, 30.0), DIRECTION))
    np.testing.assert_array_equal(affine @ [1, 1, 1, 1], [-11.0, -22.0, 33.0, 1.0])


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((False, True), repeat=3)))
def test_codes_of_a_turn(axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> None:
    turn = Turn(axes, flips)
    assert Turn.from_codes(turn.stored_codes) == turn
