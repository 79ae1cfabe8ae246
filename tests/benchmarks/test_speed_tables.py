"""The tables of the speed benchmark: ratios never stand without the share of the machine's peak."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "speed"))
    monkeypatch.delitem(sys.modules, "render", raising=False)
    import render

    module: ModuleType = render
    return module


def side(seconds: float, tiles: int = 4) -> dict[str, Any]:
    figures = {"median": seconds, "min": seconds, "max": seconds, "n": 1}
    return {"whole_s": figures, "cpu_s": figures, "tiles_s": figures, "runs": [{"tiles_s": [1.0] * tiles}]}


def results(**more: Any) -> dict[str, Any]:
    network = {"Net, mirroring": {"peer": side(16), "fp32": side(8), "bf16": side(4)}}
    return {
        "network": network,
        "tiles": {"Net": {"gflop": 100}},
        "peak_gflops": {"torch": 80.0, "engine": 100.0},
        **more,
    }


def test_every_ratio_comes_with_the_share_of_the_peak(render: ModuleType) -> None:
    assert render.ratio_lines(results()) == [
        "best float32 matrix product of this machine: 100 GFLOP/s",
        "Net, mirroring, fp32: 2.00 times as fast as the peer (peer at 25% of the peak, fp32 at 50%)",
        "Net, mirroring, bf16: 4.00 times as fast as the peer (peer at 25% of the peak, bf16 at 100%)",
    ]


def test_without_a_measured_peak_no_share_is_invented(render: ModuleType) -> None:
    lines = render.ratio_lines(results(peak_gflops={"failed": "no engine"}))
    assert lines[0] == "Net, mirroring, fp32: 2.00 times as fast as the peer"


def test_the_page_holds_the_tables_of_the_recorded_values(render: ModuleType) -> None:
    recorded = json.loads((ROOT / "benchmarks" / "speed" / "results.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert render.tables(recorded) in page


def test_claimed_ranges_hold_the_recorded_ratios(render: ModuleType) -> None:
    recorded = json.loads((ROOT / "benchmarks" / "speed" / "results.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    claimed = re.search(
        r"(\d\.\d) to (\d\.\d)\s+times as fast in float32, (\d\.\d) to (\d\.\d) times in bfloat16", readme
    )
    assert claimed is not None
    for precision, low, high in (("fp32", *claimed.groups()[:2]), ("bf16", *claimed.groups()[2:])):
        for name in ("PlainConvUNet", "PlainConvUNet, mirroring"):
            row = recorded["network"][name]
            ratio = row["peer"]["whole_s"]["median"] / row[precision]["whole_s"]["median"]
            assert float(low) <= round(ratio, 1) <= float(high)


@pytest.mark.parametrize(("direct", "gain"), [([], "| - | 1.00 | - |"), ([6.0], "| 2.00 | 1.00 | 50.0000 % |")])
def test_fewer_multiplications_are_tabled_also_without_direct_ones(
    direct: list[float], gain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "speed"))
    monkeypatch.delitem(sys.modules, "winograd", raising=False)
    import winograd

    rows = {
        way: [{"wall_s": wall, "peak_gib": 1.0} for wall in walls]
        for way, walls in (("direct", direct), ("auto", [3.0]))
    }
    labels = {"direct": np.array([0, 1]), "auto": np.array([0, 0])}
    assert winograd.table(rows, labels)[-1].endswith(gain)
