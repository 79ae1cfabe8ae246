"""The HTML report: what it shows, what it refuses, and that nothing in it is alive."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from offline_infer.errors import UsageError
from offline_infer.proof.comparison.arrays import compare_arrays
from offline_infer.proof.comparison.differences import Place
from offline_infer.proof.comparison.records import CaseComparison, ComparisonReport, Margins
from offline_infer.proof.report import comparing_speed, sections, write_report
from offline_infer.proof.report.charts import bars, heat, line_plot, strip_plot
from offline_infer.proof.report.registry import KINDS, ORDER, recognise
from offline_infer.proof.report.values import PNG_MAGIC, figure


def summary(dice: list[list[float]], names: list[str] | None = None) -> dict:
    labels = [str(i + 1) for i in range(len(dice[0]))]
    return {
        "foreground_mean": {"Dice": 0.5},
        "mean": {k: {"Dice": float(np.nanmean([row[i] for row in dice]))} for i, k in enumerate(labels)},
        "metric_per_case": [
            {
                "metrics": {k: {"Dice": row[i]} for i, k in enumerate(labels)},
                "prediction_file": f"p/{names[j] if names else f'case_{j}'}.nii.gz",
                "reference_file": "r",
            }
            for j, row in enumerate(dice)
        ],
    }


def put(folder: Path, name: str, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def name_of_kind(content: object) -> str | None:
    kind = recognise(content)
    return None if kind is None else kind.name


class Page(HTMLParser):
    """Tags and text of a page; fails on an unbalanced one."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def comparison() -> dict:
    place = Place(((0, 2), (1, 3), (2, 4)), (1.0, 2.0, 3.0), ((0, 1, 2),), 1, 0, 2.5, 2.5, 1, (1,))
    margins = Margins("b", 1, 0, 0.3, 0.3, 0.3, 0.3, 0.3, 1e-3, 0, 1, ({"voxel": [0, 1, 2], "margin": 0.3},))
    labels = {"1": {"dice": 0.99, "voxels_a": 10, "voxels_b": 11, "ml_a": 0.01, "ml_b": 0.011}}
    bad = CaseComparison("bad", "a/bad", "b/bad", True, ("origin differs",), 1000, 1, labels, (), place, margins)
    good = CaseComparison("good", "a/good", "b/good", True, (), 1000, 0, labels)
    return ComparisonReport("ours", "theirs", 1e-3, (bad, good), ("lonely",), (), {"broken": "not an image"}).to_json()


def test_report_of_everything(tmp_path: Path) -> None:
    run = tmp_path / "run"
    put(run, "summary.json", summary([[0.9, 0.2], [0.8, math.nan], [0.95, 0.4], [0.97, 0.6]]))
    put(run, "comparison.json", comparison())
    array = np.linspace(0, 1, 50).reshape(5, 10)
    put(run, "arrays.json", compare_arrays(array + 1e-3, array, class_axis=1).to_json())
    put(
        run,
        "performance.json",
        {
            "soc": "Ascend310",
            "throughput_total_per_s": 8.0,
            "devices": [{"device": 0, "throughput_per_s": 8.0, "latency_ms": {"mean": 125.0}}],
        },
    )
    put(
        run,
        "stage.json",
        {"stage": "infer", "seconds": 3.5, "cases": [{"case": "x", "status": "failed", "reason": "NaN"}]},
    )
    put(run, "bench.json", {"title": "Tiles", "results": [{"engine": "openvino", "seconds": 1.5, "extra": {"rss": 3}}]})
    put(run, "dataset.json", {"labels": {}})
    (run / "picture.png").write_bytes(PNG_MAGIC + b"rest")
    result = write_report([run], tmp_path / "report.html", title="Liver <1>", names={"1": "liver"})
    assert result.problems == ()
    assert result.shown == 7
    page = page_of(tmp_path / "report.html")
    for words in (
        "Liver <1>",
        "liver (1)",
        "label 2",
        "case_3",
        "0.9500",
        "not rounding",
        "lonely: only in a",
        "Ascend310",
    ):
        assert words in page.text, words
    for words in ("broken: not compared: not an image", "Tiles", "extra rss", "x: NaN", "origin differs"):
        assert words in page.text, words
    assert [value for name, value in page.attributes if name == "class"].count("dot") == 7  # one per defined figure
    assert "img" in page.tags


def test_the_page_stands_alone_and_does_nothing(tmp_path: Path) -> None:
    put(tmp_path, "summary.json", summary([[0.5]]))
    write_report([tmp_path / "summary.json"], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    page = page_of(tmp_path / "r.html")
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    assert all(not name.startswith("on") for name, _ in page.attributes)
    assert "default-src 'none'" in text


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script><img src=x onerror=1>'
    put(tmp_path, "summary.json", summary([[0.5]], [evil]))
    put(tmp_path, "c.json", {**comparison(), "a": evil})
    write_report([tmp_path], tmp_path / "r.html", title=evil, names={"1": evil})
    page = page_of(tmp_path / "r.html")
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "alert(" in page.text


def test_v1_and_surface_and_problems(tmp_path: Path) -> None:
    v1 = {"results": {"all": [{"0": {"Dice": 0.99}, "1": {"Dice": 0.7}, "test": "x/a.nii.gz"}], "mean": {}}}
    v1["results"]["mean"] = {"0": {"Dice": 0.99}, "1": {"Dice": 0.7}}
    figures = {"HD": 3.0, "HD95": None, "NSD 1 mm": 0.5}
    kinds = {"present": 1, "both empty": 0, "prediction empty": 0, "reference empty": 2}
    surface = {
        "kind": "offline_infer.evaluation.surface_distances",
        "definition": {"HD": "largest"},
        "empty_mask_policy": {"both empty": "left out"},
        "mean": {"1": {**figures, "cases": kinds}},
        "metric_per_case": [{"case": "a", "metrics": {"1": {"masks": "present", **figures}}}],
    }
    problems = {
        "kind": "offline_infer.evaluation_problems",
        "failed": {"b": "truncated"},
        "without_prediction": ["c"],
        "without_reference": ["d"],
        "notes": {"a": ["spacing differs"]},
    }
    for name, content in (("v1.json", v1), ("s.json", surface), ("p.json", problems)):
        put(tmp_path, name, content)
    assert write_report([tmp_path], tmp_path / "out" / "r.html").problems == ()
    text = page_of(tmp_path / "out" / "r.html").text
    for words in ("nnU-Net v1", "3.000", "HD: largest", "both empty: left out", "b: truncated", "c: no prediction"):
        assert words in text, words


def test_what_cannot_be_shown_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    good = put(tmp_path, "summary.json", summary([[0.5]]))
    unknown = put(tmp_path, "unknown.json", {"hello": 1})
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    hollow = put(tmp_path, "hollow.json", {"kind": "offline_infer.comparison", "verdict": "ties"})
    wrong = put(tmp_path, "wrong.json", {**summary([[0.5]]), "mean": {"1": {"Dice": "x"}}})
    fake = tmp_path / "fake.png"
    fake.write_text("no")
    (tmp_path / "empty").mkdir()
    inputs = [good, good, unknown, broken, hollow, wrong, fake, tmp_path / "empty", tmp_path / "absent.json"]
    result = write_report(inputs, tmp_path / "r.html")
    assert result.shown == 1
    assert len(result.problems) == 7
    for name in ("unknown", "broken", "fake", "empty", "absent", "wrong", "hollow"):
        assert sum(name in line.split(":")[0] for line in result.problems) == 1, (name, result.problems)
    text = page_of(tmp_path / "r.html").text
    assert all(line in text for line in result.problems)
    with pytest.raises(UsageError, match=r"unknown\.json: JSON of an unknown kind"):
        write_report([unknown], tmp_path / "none.html")
    with pytest.raises(UsageError, match=r"hollow\.json"):
        write_report([hollow], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_recognition() -> None:
    assert recognise([1]) is None
    assert recognise({"results": []}) is None
    assert name_of_kind({"results": [{"a": 1}]}) == "measurements"
    assert name_of_kind({"metric_per_case": [], "mean": {}}) == "summary"
    # What a record says of itself counts before what it looks like.
    assert name_of_kind({"metric_per_case": [], "mean": {}, "kind": "offline_infer.statistics"}) == "statistics"
    assert name_of_kind({"kind": "offline_infer.of_a_later_release"}) == "record"


def test_every_section_has_its_place_on_the_page() -> None:
    modules = [
        importlib.import_module(f"{sections.__name__}.{m.name}") for m in pkgutil.iter_modules(sections.__path__)
    ]
    modules.append(comparing_speed)
    made = {kind for module in modules for kind in re.findall(r'kind="([a-z_ ]+)"', inspect.getsource(module))}
    assert made == set(ORDER)
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert len({kind.named for kind in KINDS if kind.named}) == sum(bool(kind.named) for kind in KINDS)


def test_curves_over_two_axes() -> None:
    plot = line_plot("precision", {"a": [(0.0, 1.0), (1.0, 0.5)], "b": [(0.5, math.nan)]}, "recall", "precision")
    assert plot is not None
    assert plot.curves == (("a", "0.00,0.00 100.00,83.33"),)  # the axis goes from 0.4 to 1
    assert line_plot("none", {"a": []}, "x", "y") is None


def test_charts() -> None:
    plot = strip_plot({"a": [("x", 0.95), ("y", 0.97), ("z", math.nan)], "b": [("x", math.nan)]})
    assert [len(row.dots) for row in plot.rows] == [2, 0]
    assert plot.ticks[0][1] == "0.9"
    first, second = plot.rows[0].dots
    assert 0 < first.x < second.x < 100
    assert plot.rows[1].mean is None
    assert strip_plot({"a": [("x", 0.1)]}).ticks[0][1] == "0"
    assert [bar.width for bar in bars([("a", 2.0, ""), ("b", 1.0, ""), ("c", math.nan, "")])] == [100.0, 50.0, 0.0]
    assert heat(None) == heat(math.nan) == ""
    assert heat(1.0) != heat(0.9) != heat(0.0)


def test_figures_for_reading() -> None:
    shown = [figure(v) for v in (None, math.nan, 1234567, 0.5, 0.00001, 12345.678, True, math.inf, "x")]
    assert shown == ["-", "-", "1,234,567", "0.5000", "1.00e-05", "12,345.7", "yes", "∞", "x"]


def test_without_jinja_the_message_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match=r"offline-infer\[report\]"):
        write_report([tmp_path], tmp_path / "r.html")


def verified_bundle() -> dict:
    found = {"voxels": 1000, "flips": 3, "flip_margin": 2e-6, "max_diff": 3e-5, "logit_scale": 30.0}
    engines = [{"engine": "openvino", "version": "2026.4.1-229-releases", "inputs": {"anatomy": found}}]
    graph = {"file": "fold_0.onnx", "fold": "0", "precision": "fp32", "sha256": "b" * 64}
    source = {"framework": "nnunet_v2", "trainer": "T", "folds": [{"fold": "0", "checkpoint": "f", "sha256": "a" * 64}]}
    return {
        "source": source,
        "graphs": [{**graph, "verification": {"passed": True, "engines": engines}}],
        "labels": {"names": {"background": 0, "spleen": 1, "both": [1, 2]}},
    }


def checks() -> dict:
    row = {"engine": "openvino", "library": "2026", "precision": "bf16", "fold": "0", "device": "cpu", "processor": "P"}
    figures = {"foreground_dice": 0.99953, "label_agreement": 0.9999, "tiles": 4, "source": "image", "status": "ok"}
    return {"kind": "offline_infer.precision_checks", "checks": [{**row, **figures}]}


def test_the_proof_is_visible(tmp_path: Path) -> None:
    put(tmp_path / "out" / "bundle", "bundle.json", verified_bundle())
    put(tmp_path / "out" / "bundle", "precision_checks.json", checks())
    manifest = {
        "program": "offline_infer",
        "version": "0.2.0",
        "bundle": "out/bundle",
        "source": verified_bundle()["source"],
        "folds": ["0"],
        "settings": {"tta": True},
        "engine": {"name": "openvino", "version": "2026", "precision": "bf16"},
        "cases": [{"case": "x", "status": "done", "tiles": 8, "seconds": {"read": 1.0, "infer": 2.5}}],
    }
    put(tmp_path / "out" / "predictions", "offline_infer_run.json", manifest)
    put(tmp_path / "out", "summary.json", summary([[0.9]]))
    assert write_report([tmp_path / "out"], tmp_path / "r.html").problems == ()
    text = page_of(tmp_path / "r.html").text
    for words in ("verified when exported", "of 1,000 voxel labels", "3.00e-05", "2.00e-06", "0.99953", "a" * 64):
        assert words in text, words
    for words in ("spleen (1)", "What was run", "3.50"):
        assert words in text, words


def test_cases_that_were_made_in_different_ways_are_named(tmp_path: Path) -> None:
    def case(name: str, tta: bool) -> dict:
        record = {"settings": {"tta": tta}, "engine": {"name": "openvino"}, "image_sha256": name * 64}
        return {"case": name, "status": "done", "record": record}

    source = verified_bundle()["source"]
    manifest = {
        "program": "offline_infer",
        "engine": {},
        "source": source,
        "cases": [case("a", True), case("b", False)],
    }
    write_report([put(tmp_path, "offline_infer_run.json", manifest)], tmp_path / "r.html")
    text = page_of(tmp_path / "r.html").text
    assert "the cases were not all made the same way; they differ in settings tta" in text
    assert "openvino" in text
    assert "a" * 64 in text


def benchmark_record() -> dict:
    times = {
        "p5_s": 0.9,
        "p50_s": 1.0,
        "p95_s": 1.2,
        "open_s": 99.0,
        "first_call_s": 2.0,
        "memory_bytes": 1,
        "threads": 2,
    }
    base = {"engine": "openvino", "precision": "fp32", "status": "ok", "library": "2026"}
    return {
        "kind": "offline_infer.benchmark",
        "results": [
            {**base, **times, "reference": True},
            {**base, **times, "p50_s": 0.5, "precision": "bf16", "foreground_dice": 0.9987, "label_agreement": 0.999},
            {"engine": "onnxruntime", "precision": "bf16", "status": "unavailable", "reason": "no such precision"},
        ],
    }


def test_a_benchmark_gives_precision_and_speed_apart(tmp_path: Path) -> None:
    write_report([put(tmp_path, "b.json", benchmark_record())], tmp_path / "r.html")
    page = page_of(tmp_path / "r.html")
    for words in (
        "Precision: every engine",
        "0.99870",
        "Speed of a network call",
        "0.5 s",
        "2.000",
        "no such precision",
    ):
        assert words in page.text, words
    widths = [v for name, v in page.attributes if name == "style" and v is not None and v.startswith("width:")]
    assert widths == ["width:100.0%", "width:50.0%"]  # of the median call, not of opening; none for what did not run


def speed_records(folder: Path) -> list[Path]:
    """A benchmark, an OM tool on a card of four devices, a published-style baseline and whole cases by two precisions."""
    device = {"tool": "msame", "kind": "pure", "throughput_per_s": 5.0, "latency_ms": {"mean": 200.0}}
    performance = {
        "soc": "Ascend310",
        "throughput_per_device_per_s": 5.0,
        "throughput_per_card_per_s": 20.0,
        "throughput_total_per_s": 10.0,
        "devices_per_card": 4,
        "devices": [{**device, "device": number} for number in (0, 1)],
    }
    run = {
        "program": "offline_infer",
        "engine": {},
        "cases": [
            {
                "case": name,
                "status": "done",
                "seconds": {"infer": seconds, "write": 1.0},
                "record": {"engine": "openvino", "precision": precision, "device": "cpu"},
            }
            for name, precision, seconds in (("a", "fp32", 9.0), ("b", "fp32", 19.0), ("c", "bf16", 4.0))
        ],
    }
    fast = json.loads(json.dumps(run))
    for case in fast["cases"]:
        case["seconds"]["infer"], case["record"]["precision"] = 4.0, "bf16"
    return [
        put(folder / "bench", "benchmark.json", benchmark_record()),
        put(folder / "npu", "performance.json", performance),
        put(folder / "npu", "baseline.json", {"average_s": 0.4, "provider": "TensorRT", "device": "tensorrt:0"}),
        put(folder / "first", "offline_infer_run.json", run),
        put(folder / "second", "offline_infer_run.json", fast),
    ]


def test_speed_of_all_records_beside_a_chosen_baseline(tmp_path: Path) -> None:
    files = speed_records(tmp_path)
    write_report(files, tmp_path / "r.html", baseline="TensorRT")
    text = page_of(tmp_path / "r.html").text
    html = (tmp_path / "r.html").read_text()
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr.*?>(.*?)</tr>", html, re.DOTALL)]
    # Of a 0.2 s call on a card of four devices and the baseline's 0.4 s: twice as fast a device, eight times a card.
    assert ["msame Ascend310", "2 devices", "0.200", "0.2 to 0.2", "5.000", "20.000", "2.000", "8.000"] in rows
    assert ["openvino bf16", "-", "0.500", "0.9 to 1.2", "2.000", "2.000", "0.800", "0.800"] in rows
    assert "Speed-up over TensorRT" in text
    assert "8 times" in text
    # Whole cases are compared case by case, among themselves: 10 s with 5 s and 20 s with 5 s.
    assert ["openvino bf16 (second)", "cpu", "3", "5.00", "5 to 5", "3.00", "2"] in rows
    with pytest.raises(UsageError, match="more than one thing has that name; there are openvino fp32"):
        write_report(files, tmp_path / "n.html", baseline="openvino")
    with pytest.raises(UsageError, match="nothing was measured under that name"):
        write_report(files, tmp_path / "n.html", baseline="TPU")
    assert not (tmp_path / "n.html").exists()


def test_one_record_of_speed_is_not_compared_with_itself(tmp_path: Path) -> None:
    write_report(speed_records(tmp_path)[:1], tmp_path / "r.html")
    assert "engines, devices and cards" not in page_of(tmp_path / "r.html").text


def test_of_many_cases_the_worst_stand_first_and_all_can_be_opened(tmp_path: Path) -> None:
    file = put(tmp_path, "summary.json", summary([[0.5 + i / 1000] for i in range(60)]))
    write_report([file], tmp_path / "r.html")
    text = page_of(tmp_path / "r.html").text
    assert "The worst 20 of 60 cases" in text
    assert "All 60 cases" in text
    assert text.count("0.5590") == 2  # the best one, and its mean, stand in the long table alone


def test_a_label_without_a_name_is_called_by_its_number(tmp_path: Path) -> None:
    details = {"kind": "offline_infer.evaluation", "labels": [{"label": "1", "name": None}], "cases": []}
    put(tmp_path, "summary.json", summary([[0.5]]))
    put(tmp_path, "summary.details.json", details)
    write_report([tmp_path], tmp_path / "r.html")
    text = page_of(tmp_path / "r.html").text
    assert "label 1" in text
    assert "None" not in text


def test_many_labels_become_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    figures = rng.uniform(0.5, 1, (4, 118)).tolist()
    write_report([put(tmp_path, "summary.json", summary(figures))], tmp_path / "r.html")
    page = page_of(tmp_path / "r.html")
    assert "label 118" in page.text
    assert page.tags.count("th") < 20


@pytest.mark.parametrize("text", ["1" * 400, "1e999", "-1e999", "NaN", '"x"', "null", "[]", "true"])
def test_absurd_numbers_fail_their_file_alone(tmp_path: Path, text: str) -> None:
    put(tmp_path, "summary.json", summary([[0.5]]))
    plain = json.dumps(summary([[0.123456]]))
    (tmp_path / "odd.json").write_text(plain.replace("0.123456", text))
    (tmp_path / "bench.json").write_text(json.dumps(benchmark_record()).replace("0.9987", text).replace("99.0", text))
    result = write_report([tmp_path], tmp_path / "r.html")
    assert result.shown >= 1
    assert "0.5000" in page_of(tmp_path / "r.html").text


def test_subfolders_are_searched_within_limits(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b" / "c", "summary.json", summary([[0.5]]))
    put(tmp_path / ".hidden", "summary.json", summary([[0.9]]))
    (tmp_path / "a" / "mask.png").write_bytes(PNG_MAGIC)
    (tmp_path / "a" / "overlay.png").write_bytes(PNG_MAGIC)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "null.json").symlink_to("/dev/zero")
    result = write_report([tmp_path], tmp_path / "r.html")
    assert result.shown == 2
    assert page_of(tmp_path / "r.html").tags.count("img") == 1


def test_a_report_replaces_none_of_its_inputs(tmp_path: Path) -> None:
    file = put(tmp_path, "summary.json", summary([[0.5]]))
    with pytest.raises(UsageError, match="one of the files"):
        write_report([file], file)
