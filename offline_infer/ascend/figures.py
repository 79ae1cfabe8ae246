"""What the inference tools say about their speed, read into one record.

Each tool reports in its own way: ``benchmark`` writes text files under ``result/``, ``msame`` prints a line per run,
``ais_bench`` writes a JSON summary. All are about the same figure: network runs per second on one device, without disk
and without host copies. A card's figure is the device's times the number of devices on the card - four for Ascend 310,
one for every other - as the published guides compute it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from offline_infer.errors import UsageError

Kind = Literal["dataset", "pure"]


@dataclass(frozen=True)
class DevicePerformance:
    """One device's figures from one run of a tool.

    Attributes:
        tool: ``benchmark``, ``msame``, ``ais_bench`` or ``engine``.
        kind: ``dataset``: real inputs; ``pure``: the tool's own, no data read.
        device: number of the device.
        throughput: network runs per second, without disk and host copies.
        latency_ms: of one network run: ``mean`` and, where known, ``min``, ``max``, ``median``, ``p99``, ``first``.
        samples: network runs counted, where known.
        end_to_end: inputs per second with reading and writing, where known.
        stages: the tool's other figures as it named them.
        source: file the figures are from.
    """

    tool: str
    kind: Kind
    device: int
    throughput: float
    latency_ms: Mapping[str, float]
    samples: int | None = None
    end_to_end: float | None = None
    stages: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "tool": self.tool,
            "kind": self.kind,
            "device": self.device,
            "throughput_per_s": self.throughput,
            "latency_ms": dict(self.latency_ms),
            "samples": self.samples,
            "end_to_end_per_s": self.end_to_end,
            "stages": dict(self.stages),
            "source": self.source,
        }
        return {name: value for name, value in record.items() if value not in (None, {}, "")}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> DevicePerformance:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: something is missing or of another type.
        """
        return cls(
            tool=str(record["tool"]),
            kind="pure" if record["kind"] == "pure" else "dataset",
            device=int(record["device"]),
            throughput=float(record["throughput_per_s"]),
            latency_ms={str(name): float(value) for name, value in record["latency_ms"].items()},
            samples=record.get("samples"),
            end_to_end=record.get("end_to_end_per_s"),
            stages=record.get("stages", {}),
            source=str(record.get("source", "")),
        )


@dataclass(frozen=True)
class PerformanceRecord:
    """The figures of a run over one or several devices.

    Attributes:
        soc: chip, or None when not known; decides the number of devices per card.
        devices: per device, in order of number, several runs of one device joined.
    """

    soc: str | None
    devices: tuple[DevicePerformance, ...]

    @property
    def per_device(self) -> float:
        """Network runs per second of one device, mean over the devices."""
        return sum(device.throughput for device in self.devices) / len(self.devices)

    @property
    def card_factor(self) -> int:
        """Devices on one card."""
        return devices_per_card(self.soc or "")

    @property
    def per_card(self) -> float:
        """Network runs per second of one card, as the published guides compute it."""
        return self.per_device * self.card_factor

    @property
    def total(self) -> float:
        """Network runs per second of all devices together."""
        return sum(device.throughput for device in self.devices)

    @property
    def latency_ms(self) -> float:
        """Mean time of one network run, mean over the devices."""
        return sum(device.latency_ms["mean"] for device in self.devices) / len(self.devices)

    def to_text(self) -> str:
        """For people: one line."""
        count = f"{len(self.devices)} device{'s' if len(self.devices) != 1 else ''}"
        return (
            f"{self.latency_ms:.6g} ms a run; {self.per_device:.6g} runs/s per device, {self.per_card:.6g} per card "
            f"(x {self.card_factor}), {self.total:.6g} on {count}; network only, without disk"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "soc": self.soc,
            "latency_ms": self.latency_ms,
            "throughput_per_device_per_s": self.per_device,
            "throughput_per_card_per_s": self.per_card,
            "throughput_total_per_s": self.total,
            "devices_per_card": self.card_factor,
            "rule": f"per card = mean per device x {self.card_factor}"
            + ("" if self.soc else " (chip not known; Ascend310 cards carry 4 devices)"),
            "devices": [device.to_json() for device in self.devices],
        }


def combine(parts: Iterable[DevicePerformance], soc: str | None) -> PerformanceRecord:
    """One record from the figures of several sessions; sessions of one device are joined, weighted by their samples.

    Raises:
        UsageError: there are no figures, or dataset and pure runs are mixed.
    """
    by_device: dict[int, list[DevicePerformance]] = {}
    kinds = set()
    for part in parts:
        by_device.setdefault(part.device, []).append(part)
        kinds.add((part.tool, part.kind))
    if not by_device:
        raise UsageError("no performance figures were found; expected perf_*.txt, PureInfer_*.txt or *_summary.json")
    if len(kinds) > 1:
        shown = ", ".join(f"{tool} ({kind})" for tool, kind in sorted(kinds))
        raise UsageError(f"figures of different kinds cannot be joined: {shown}; read them one by one")
    return PerformanceRecord(soc, tuple(_join(by_device[device]) for device in sorted(by_device)))


def read_folder(folder: Path | str, soc: str | None = None, kind: Kind = "dataset") -> PerformanceRecord:
    """The figures of a ``result`` folder of ``benchmark``, an output folder of ``ais_bench``, or ``msame`` logs.

    Args:
        folder: where the tool (or ``infer``) left its performance files; sub-folders are looked into.
        soc: chip, for the per-card figure.
        kind: which of dataset and pure runs to read.

    Raises:
        UsageError: no such folder, or no figures of that kind in it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise UsageError(f"{place}: no such folder; name the folder the tool left its performance files in")
    found = [read_file(path) for path in sorted(place.rglob("*")) if path.is_file() and _looks_like_figures(path)]
    return combine([part for part in found if part is not None and part.kind == kind], soc)


def read_file(path: Path | str) -> DevicePerformance | None:
    """The figures in one file, by its name; None when it holds none. The device comes from the name."""
    place = Path(path)
    text = place.read_text(encoding="utf-8", errors="replace")
    device = _device_of(place)
    name = place.name
    if name.endswith("summary.json"):
        return parse_ais_bench(text, device, name)
    if name.startswith("PureInfer"):
        return parse_pure(text, device, name)
    if name.startswith("perf_"):
        return parse_benchmark(text, device, name)
    return parse_msame(text, device, name) if name.endswith(".log") else None


# ---- the tools' own forms --------------------------------------------------------------------------------------------

_FIGURE = r"([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)"
_STAGE = re.compile(r"\[(?P<stage>[\w ]+)\]\s*(?P<rest>.*)")
_PAIR = re.compile(rf"([A-Za-z][A-Za-z_ ]*?)\s*[:=]\s*{_FIGURE}")


def parse_benchmark(text: str, device: int, source: str = "") -> DevicePerformance | None:
    """``perf_vision_batchsize_B_device_N.txt``: a line per stage, ``[inference] throughputRate: x, Interface ...``.

    The network's rate is the *Interface throughputRate* of the inference stage; ``[e2e]`` is with reading and writing.
    """
    stages: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if match := _STAGE.search(line):
            values = {name.strip(): float(value) for name, value in _PAIR.findall(match["rest"])}
            if values:
                stages[match["stage"].strip()] = values
    network = stages.get("inference") or stages.get("infer")
    if not network:
        return None
    rate = network.get("Interface throughputRate") or network.get("throughputRate")
    if not rate:
        return None
    return DevicePerformance(
        tool="benchmark",
        kind="dataset",
        device=device,
        throughput=rate,
        latency_ms={"mean": network.get("moduleLatency", 1000 / rate)},
        end_to_end=stages.get("e2e", {}).get("throughputRate"),
        stages=stages,
        source=source,
    )


def parse_pure(text: str, device: int, source: str = "") -> DevicePerformance | None:
    """``PureInfer_perf_of_<om>_in_device_N.txt``: ``ave_throughputRate = x samples/s, ave_latency = y ms``."""
    rate = re.search(rf"ave_throughputRate\s*[:=]\s*{_FIGURE}\s*samples/s", text)
    if not rate or not float(rate[1]):
        return None
    latency = re.search(rf"ave_latency\s*[:=]\s*{_FIGURE}\s*ms", text)
    value = float(rate[1])
    return DevicePerformance(
        tool="benchmark",
        kind="pure",
        device=device,
        throughput=value,
        latency_ms={"mean": float(latency[1]) if latency else 1000 / value},
        source=source,
    )


def parse_msame(text: str, device: int, source: str = "") -> DevicePerformance | None:
    """What ``msame`` printed: ``Inference time: x ms`` per run. The first run warms up and is left out of the mean."""
    times = [float(value) for value in re.findall(rf"Inference time\s*:\s*{_FIGURE}\s*ms", text)]
    stated = re.search(rf"Inference average time without first time\s*:\s*{_FIGURE}\s*ms", text)
    plain = re.search(rf"Inference average time\s*:\s*{_FIGURE}\s*ms", text)
    counted = times[1:] if len(times) > 1 else times
    if counted:
        latency = describe(counted)
    elif stated or plain:
        latency = {"mean": float((stated or plain)[1])}  # type: ignore[index]
    else:
        return None
    if times:
        latency["first"] = times[0]
    if not latency["mean"]:
        return None
    return DevicePerformance(
        tool="msame",
        kind="dataset",
        device=device,
        throughput=1000 / latency["mean"],
        latency_ms=latency,
        samples=len(counted) or None,
        source=source,
    )


def parse_ais_bench(text: str, device: int, source: str = "") -> DevicePerformance | None:
    """``<dirname>_summary.json``: ``NPU_compute_time`` in ms and ``throughput``, both without host copies and disk.

    Raises:
        UsageError: the file is not JSON.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: not a JSON summary ({error}); was ais_bench ended while it wrote?") from error
    compute = record.get("NPU_compute_time") if isinstance(record, dict) else None
    if not isinstance(compute, dict) or not compute.get("mean"):
        return None
    names = {"mean": "mean", "min": "min", "max": "max", "median": "median", "percentile(99%)": "p99"}
    latency = {ours: float(compute[theirs]) for theirs, ours in names.items() if theirs in compute}
    return DevicePerformance(
        tool="ais_bench",
        kind="dataset" if any(inputs for inputs, _ in ais_bench_files(record)) else "pure",
        device=device,
        throughput=float(record.get("throughput") or 1000 / latency["mean"]),
        latency_ms=latency,
        samples=int(compute["count"]) if "count" in compute else None,
        stages={name: record[name] for name in ("H2D_latency", "D2H_latency") if name in record},
        source=source,
    )


def ais_bench_files(summary: Mapping[str, Any]) -> list[tuple[list[str], list[str]]]:
    """The summary's map of files: per network run the input files and the output files, in order of the outputs.

    Input lists may be nested, one list per input of the model. A pure run names ``pure_infer_data``, which is no file.
    """
    table = summary.get("filesinfo")
    runs = []
    for entry in table.values() if isinstance(table, dict) else ():
        if isinstance(entry, dict):
            inputs = [name for name in _flat(entry.get("infiles")) if Path(name).name != "pure_infer_data"]
            runs.append((inputs, _flat(entry.get("outfiles"))))
    return runs


# ---- figures ---------------------------------------------------------------------------------------------------------


def devices_per_card(soc: str) -> int:
    """Devices on one card, for the 'per card' figures: a 310 card carries four devices, any other counts as one."""
    return 4 if soc == "Ascend310" else 1


def describe(times: Sequence[float]) -> dict[str, float]:
    """Mean, extremes, median and 99th percentile (nearest rank) of a non-empty list of times."""
    ordered = sorted(times)
    return {
        "mean": sum(ordered) / len(ordered),
        "min": ordered[0],
        "max": ordered[-1],
        "median": percentile(ordered, 50),
        "p99": percentile(ordered, 99),
    }


def percentile(ordered: Sequence[float], rank: float) -> float:
    """The smallest value of an ascending list that at least ``rank`` per cent of its values do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * rank / 100) - 1)]


def _join(parts: Sequence[DevicePerformance]) -> DevicePerformance:
    """Several sessions of one device as one: rates and means weighted by samples, extremes of extremes."""
    if len(parts) == 1:
        return parts[0]
    weights = [part.samples or 1 for part in parts]
    weight = sum(weights)
    mean = sum(part.latency_ms["mean"] * share for part, share in zip(parts, weights, strict=True)) / weight
    latency = {"mean": mean}
    for name, choose in (("min", min), ("max", max)):
        values = [part.latency_ms[name] for part in parts if name in part.latency_ms]
        if len(values) == len(parts):
            latency[name] = choose(values)
    counted = [part.samples for part in parts if part.samples is not None]
    # Times add up, rates do not: n runs at r per second take n / r seconds.
    seconds = sum(share / part.throughput for part, share in zip(parts, weights, strict=True))
    return DevicePerformance(
        tool=parts[0].tool,
        kind=parts[0].kind,
        device=parts[0].device,
        throughput=weight / seconds,
        latency_ms=latency,
        samples=sum(counted) if len(counted) == len(parts) else None,
        source=", ".join(part.source for part in parts if part.source),
    )


def _flat(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [name for part in value for name in _flat(part)] if isinstance(value, list) else []


def _looks_like_figures(path: Path) -> bool:
    name = path.name
    return (
        (name.startswith(("perf_", "PureInfer")) and name.endswith(".txt"))
        or name.endswith("_summary.json")
        or (name.endswith(".log") and "msame" in name)
    )


def _device_of(path: Path) -> int:
    """The device number in a file's name or in its folder's (``device_0``, ``device0``); 0 where none is named."""
    for part in (path.name, path.parent.name):
        if match := re.search(r"device_?(\d+)", part):
            return int(match[1])
    return 0
