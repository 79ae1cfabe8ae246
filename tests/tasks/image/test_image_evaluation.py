"""A folder of predictions against a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photo_samples import disc, save, write_list, write_pairs

from offline_infer.errors import UsageError
from offline_infer.tasks.image.evaluation.evaluate import NOT_AVAILABLE, EvaluationOptions, evaluate_folder


def perfect(folder: Path, sizes: list[tuple[int, int]], scores: bool = True) -> Path:
    for number, (height, width) in enumerate(sizes):
        save(folder / "pred" / f"p{number}.png", disc(height, width, number).astype(np.uint8) * 255)
    if scores:
        table = {f"p{number}.png": 0.9 for number in range(len(sizes))}
        (folder / "pred_label_combined.json").write_text(json.dumps(table))
    return folder


def test_perfect_masks_score_one(tmp_path: Path) -> None:
    sizes = [(20, 30), (31, 17)]
    references, predictions = write_pairs(tmp_path / "Set", sizes), perfect(tmp_path / "out", sizes)
    found = evaluate_folder(predictions, references)
    told = found.summary["sets"]["Set"]
    assert told["pixel"]["quoted"] == {"F1": 1, "F1_best": 1, "IOU": 1, "AUC": 1, "Accuracy": 1}
    assert told["pixel"]["micro"]["AUC_error_at_most"] == 0
    assert (told["image"]["F1"], told["image"]["AUC"]) == (1, None)
    assert (told["images"], told["used"], told["manipulated"]) == (2, 2, 2)
    assert found.failed == {}
    assert "[benco]" in found.table()
    json.dumps(found.summary, allow_nan=False)


def test_a_measure_the_model_cannot_have_is_not_available(tmp_path: Path) -> None:
    references = write_pairs(tmp_path / "Set", [(20, 30)])
    masks = evaluate_folder(perfect(tmp_path / "masks", [(20, 30)], scores=False), references)
    assert masks.summary["sets"]["Set"]["image"] == NOT_AVAILABLE
    assert NOT_AVAILABLE in masks.table()
    only_scores = tmp_path / "scores"
    only_scores.mkdir()
    (only_scores / "pred_label_combined.json").write_text('{"p0.png": 0.2}')
    told = evaluate_folder(only_scores, references).summary["sets"]["Set"]
    assert told["pixel"] == NOT_AVAILABLE
    assert told["image"]["Accuracy"] == 0


def test_authentic_images_do_not_pull_the_mean_down(tmp_path: Path) -> None:
    write_pairs(tmp_path / "Set", [(20, 30), (20, 30)])
    entries = [("Set/Tp/p0.png", "Set/Gt/p0.png"), ("Set/Tp/p1.png", "Negative")]
    predictions = perfect(tmp_path / "out", [(20, 30), (20, 30)])
    save(predictions / "pred" / "p1.png", np.zeros((20, 30), np.uint8))
    told = evaluate_folder(predictions, write_list(tmp_path / "l.json", entries)).summary["sets"]["l"]
    assert told["pixel"]["quoted"]["F1"] == 1
    assert told["pixel"]["macro_authentic_as_zero"]["F1"] == 0.5
    assert (told["pixel"]["used"], told["used"], told["manipulated"]) == (1, 2, 1)


def test_what_is_missing_or_of_another_size_fails_by_name(tmp_path: Path) -> None:
    sizes = [(20, 30)] * 3
    references, predictions = write_pairs(tmp_path / "Set", sizes), perfect(tmp_path / "out", sizes)
    (predictions / "pred" / "p0.png").unlink()
    save(predictions / "pred" / "p1.png", np.zeros((10, 15), np.uint8))
    found = evaluate_folder(predictions, references)
    assert "there is no prediction for p0.png" in found.failed["p0"]
    assert "15 x 10 pixels, its reference" in found.failed["p1"]
    assert found.summary["sets"]["Set"]["used"] == 1


def test_trufor_leaves_the_border_out(tmp_path: Path) -> None:
    references = write_pairs(tmp_path / "Set", [(90, 90)])
    predictions = tmp_path / "out"
    grown = np.zeros((90, 90), bool)
    region = disc(90, 90)
    grown[1:] = region[:-1]  # one pixel off
    save(predictions / "pred" / "p0.png", grown.astype(np.uint8) * 255)
    strict = evaluate_folder(predictions, references).summary["sets"]["Set"]["pixel"]["quoted"]["F1"]
    kind = evaluate_folder(predictions, references, EvaluationOptions(protocol="trufor"))
    assert strict < 1
    assert kind.summary["sets"]["Set"]["pixel"]["quoted"]["F1"] == 1
    assert "[trufor]" in kind.table()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"protocol": "casia"}, "benco, trufor"),
        ({"size": "big"}, "own, network"),
        ({"pair_by": "x"}, "name, order"),
        ({"threshold": 1.0}, "below 1"),
        ({"colour": 1}, "unknown options colour"),
    ],
)
def test_options_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EvaluationOptions.of(given)


def test_a_damaged_score_list_is_refused(tmp_path: Path) -> None:
    references, predictions = write_pairs(tmp_path / "Set", [(20, 30)]), perfect(tmp_path / "out", [(20, 30)])
    for text in ("[]", "{", '{"p0.png": "1"}', '{"p0.png": NaN}', '{"p0.png": 1.5}'):
        (predictions / "pred_label_combined.json").write_text(text)
        with pytest.raises(UsageError, match="pred_label_combined"):
            evaluate_folder(predictions, references)


@pytest.mark.parity
@pytest.mark.parametrize("run", ["setA_resize128", "setA_pad256"])
def test_the_originals_figures_and_the_right_ones(goldens: Path, tmp_path: Path, run: str) -> None:
    root = goldens / "images"
    told = json.loads((root / "expected" / "metrics" / f"{run}_checkpoint-11.json").read_text())
    maps = np.load(root / "expected" / f"probabilities_{run}_checkpoint-11.npz")
    sizes = {
        i["name"]: i["origin_shape"]
        for i in json.loads((root / "expected/inputs" / run / "index.json").read_text())["items"]
    }
    (tmp_path / "network").mkdir()
    (tmp_path / "pred").mkdir()
    (tmp_path / "pred" / "x.png").touch()
    scores = {}
    for item in told["right"]["items"]:
        name, edge = item["name"], 128 if "resize" in run else 256
        size = sizes[name]
        mode = "resize" if "resize" in run else "crop"
        content = [edge, edge] if mode == "resize" else [min(edge, n) for n in size]
        soft = maps[name].reshape(edge, edge)
        np.savez(tmp_path / "network" / f"{Path(name).stem}.npz", mask=soft, size=size, content=content, mode=mode)
        scores[name] = item["score"]
    (tmp_path / "pred_label_combined.json").write_text(json.dumps(scores))
    references = root / "data" / "setA"

    upstream = evaluate_folder(tmp_path, references, EvaluationOptions(as_upstream=True)).summary["sets"]["setA"]
    epoch = told["as_upstream"]["epoch"]
    for name in ("F1", "IOU", "Accuracy", "AUC"):
        assert upstream["pixel"]["quoted"][name] == pytest.approx(epoch[f"pixel-level {name}"], abs=1e-5), name
    for name in ("F1", "Accuracy", "AUC"):
        assert upstream["image"][name] == pytest.approx(epoch[f"image-level {name}"], abs=1e-6), name

    right = evaluate_folder(tmp_path, references, EvaluationOptions(size="network")).summary["sets"]["setA"]
    expected = told["right"]["network_size"]
    for name, value in expected["tampered_only"].items():
        assert right["pixel"]["macro"][name] == pytest.approx(value, abs=1e-6), name
    for name in ("F1", "Accuracy", "AUC"):
        assert right["image"][name] == pytest.approx(told["right"]["image_level"][name], abs=1e-6), name
    assert right["pixel"]["used"] == expected["n_tampered"]
