"""The tools' own figures, from texts as the guides and the tools' sources show them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline_infer.ascend.figures import (
    DevicePerformance,
    combine,
    devices_per_card,
    parse_ais_bench,
    parse_benchmark,
    parse_msame,
    parse_pure,
    percentile,
    read_file,
    read_folder,
)
from offline_infer.errors import UsageError

PERF = """[e2e] throughputRate: 0.221, latency: 4524886.88
[data read] throughputRate: 0.2345, moduleLatency: 4264.39
[preprocess] throughputRate: 0.2344, moduleLatency: 4266.2
[inference] throughputRate: 0.23, Interface throughputRate: 0.2361, moduleLatency: 4347.8
[postprocess] throughputRate: 0.229, moduleLatency: 4366.8
"""
PURE = "ave_throughputRate = 0.235349samples/s, ave_latency = 4249.14ms\n"


def test_the_guides_figure_for_the_310_card() -> None:
    """0.235349 samples/s on a device are 0.9414 on a card of four: the figure the guide's table gives."""
    part = parse_pure(PURE, 0)
    assert part is not None
    assert part.latency_ms["mean"] == 4249.14
    record = combine([part], "Ascend310")
    assert round(record.per_card, 4) == 0.9414
    assert record.per_device == 0.235349
    assert record.latency_ms == 4249.14
    assert combine([part], "Ascend310P3").per_card == 0.235349
    assert [devices_per_card(soc) for soc in ("Ascend310", "Ascend310P3", "Ascend910B4")] == [4, 1, 1]
    assert json.loads(json.dumps(record.to_json()))["rule"] == "per card = mean per device x 4"
    # The console writes colons.
    console = parse_pure("[INFO] ave_throughputRate: 0.235349samples/s, ave_latency: 4249.14ms", 0)
    assert console is not None
    assert console.throughput == part.throughput


def test_a_dataset_run_of_benchmark_counts_the_interface_rate() -> None:
    part = parse_benchmark(PERF, 2)
    assert part is not None
    assert (part.throughput, part.end_to_end, part.latency_ms["mean"]) == (0.2361, 0.221, 4347.8)
    assert set(part.stages) == {"e2e", "data read", "preprocess", "inference", "postprocess"}
    assert combine([part], "Ascend310").per_card == pytest.approx(4 * 0.2361)
    assert parse_benchmark("nothing of this kind\n", 0) is None


def test_msame_prints_a_line_per_run_and_the_first_one_warms_up() -> None:
    text = (
        "Inference time: 30.0 ms\nInference time: 10.0 ms\nInference time: 14.0ms\n"
        "Inference average time : 18.00 ms\nInference average time without first time: 12.00 ms\n"
    )
    part = parse_msame(text, 1)
    assert part is not None
    assert part.latency_ms == {"mean": 12.0, "min": 10.0, "max": 14.0, "median": 10.0, "p99": 14.0, "first": 30.0}
    assert part.throughput == pytest.approx(1000 / 12)
    assert part.samples == 2
    only = parse_msame("Inference average time without first time: 12.00 ms\n", 0)
    assert only is not None
    assert only.latency_ms == {"mean": 12.0}
    assert parse_msame("[ERROR] no such file\n", 0) is None


def _summary(files: object, **more: object) -> str:
    compute = {"min": 9.0, "max": 12.0, "mean": 10.0, "median": 10.0, "percentile(99%)": 11.9, "count": 5}
    return json.dumps({"filesinfo": files, "NPU_compute_time": compute, "throughput": 100.0, **more})


def test_ais_bench_summaries_of_both_kinds() -> None:
    nested = {"0": {"infiles": [["a.bin"]], "outfiles": ["x/a_0.bin"]}}
    flat = {"0": {"infiles": ["a.bin"], "outfiles": ["x/a_0.bin"]}}
    for files in (nested, flat):
        part = parse_ais_bench(_summary(files), 0)
        assert part is not None
        assert part.kind == "dataset"
        assert part.latency_ms == {"min": 9.0, "max": 12.0, "mean": 10.0, "median": 10.0, "p99": 11.9}
        assert part.samples == 5
        assert part.throughput == 100.0
    pure = parse_ais_bench(_summary({"0": {"infiles": [["pure_infer_data"]], "outfiles": []}}), 0)
    assert pure is not None
    assert pure.kind == "pure"
    # With a pipeline of several threads there are fewer figures.
    few = parse_ais_bench(json.dumps({"filesinfo": flat, "NPU_compute_time": {"mean": 8.0, "count": 3}}), 0)
    assert few is not None
    assert few.throughput == 125.0
    with pytest.raises(UsageError, match="not a JSON summary"):
        parse_ais_bench('{"filesinfo": {', 0, "run_summary.json")
    assert parse_ais_bench("[]", 0) is None


def test_devices_are_joined_by_what_adds_up() -> None:
    def part(device: int, throughput: float, samples: int) -> DevicePerformance:
        return DevicePerformance("msame", "dataset", device, throughput, {"mean": 1000 / throughput}, samples)

    # 30 runs at 10 per second and 10 at 5 take 5 seconds: 8 per second, not the mean of the rates.
    record = combine([part(1, 10.0, 30), part(0, 4.0, 7), part(1, 5.0, 10)], "Ascend310P3")
    assert [device.device for device in record.devices] == [0, 1]
    assert record.devices[1].throughput == pytest.approx(8.0)
    assert record.devices[1].samples == 40
    assert record.devices[1].latency_ms["mean"] == pytest.approx(125.0)
    assert record.total == pytest.approx(12.0)
    assert record.per_device == pytest.approx(6.0)


def test_figures_of_different_kinds_are_not_joined_and_none_is_an_error(tmp_path: Path) -> None:
    dataset, pure = parse_benchmark(PERF, 0), parse_pure(PURE, 0)
    assert dataset is not None
    assert pure is not None
    with pytest.raises(UsageError, match="cannot be joined"):
        combine([dataset, pure], None)
    with pytest.raises(UsageError, match="no performance figures"):
        combine([], None)
    with pytest.raises(UsageError, match="no such folder"):
        read_folder(tmp_path / "result")


def test_a_result_folder_made_by_hand_is_read(tmp_path: Path) -> None:
    """As the guide leaves it: four devices, and a pure run beside."""
    result = tmp_path / "result"
    for device in range(4):
        (result / f"dumpOutput_device{device}").mkdir(parents=True)
        (result / f"perf_vision_batchsize_1_device_{device}.txt").write_text(PERF)
    (result / "PureInfer_perf_of_nnunetplusplus_in_device_0.txt").write_text(PURE)
    record = read_folder(tmp_path, "Ascend310")
    assert [device.device for device in record.devices] == [0, 1, 2, 3]
    assert record.total == pytest.approx(4 * 0.2361)
    assert record.per_card == pytest.approx(4 * 0.2361)
    assert read_folder(tmp_path, "Ascend310", kind="pure").per_device == 0.235349
    ais = tmp_path / "ais" / "device3_0_summary.json"  # several devices of one v2024 run
    ais.parent.mkdir()
    ais.write_text(_summary({"0": {"infiles": ["a.bin"], "outfiles": ["a_0.bin"]}}))
    part = read_file(ais)
    assert part is not None
    assert part.device == 3


def test_percentiles_are_values_of_the_list() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0
    assert percentile(list(map(float, range(1, 101))), 99) == 99.0
    assert percentile([7.0], 99) == 7.0
