"""The GPU benchmark's one command, tried on the CPU: every kind of row that needs no other environment."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from small_networks import network
from specimens import tiny_spec, with_outputs

from offline_infer.bundles import bundle as bundles
from offline_infer.files import sha256_file
from offline_infer.spec import GraphRecord

pytest.importorskip("onnxruntime")


def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "speed" / "gpu.py"
    specification = importlib.util.spec_from_file_location("gpu_benchmark", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_benchmark_runs_and_a_row_that_fails_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    spec = with_outputs(tiny_spec())
    graph = network(folder / "fold_0.onnx", spec)
    record = GraphRecord(file=graph.name, fold="0", precision="fp32", opset=17, sha256=sha256_file(graph))
    bundles.save(spec.model_copy(update={"graphs": (record,)}), folder)
    arguments = [str(folder), "--device", "cpu", "--times", "2", "--rounds", "1", "--case", "10", "14", "18"]
    arguments += ["--mirror-batch", "1", "8", "--only", "fp32", "--work", str(tmp_path / "out")]
    assert script().main(arguments) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "gpu_results.json").read_text())["rows"]}
    assert rows["torch fp32"]["failed"] == "not measured: --checkpoint was not given"
    tile = rows["onnxruntime cpu fp32"]
    assert len(tile["resident_s"]) == len(tile["host_s"]) == 2
    assert set(tile["mirrors_s"]) == {"1", "8"}
    assert rows["onnxruntime cpu fp32, stitch=host"]["stitching"] == "host"
    device = rows["onnxruntime cpu fp32, stitch=device"]
    assert device["stitching"] == "device, mirrors a call: 1"
    assert device["labels_equal"] == 1
    told = (tmp_path / "out" / "gpu_results.md").read_text()
    assert "### Whole case" in told
    assert "say nothing about a GPU" in told
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []
