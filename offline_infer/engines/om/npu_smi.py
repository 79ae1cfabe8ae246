"""Ascend devices as ``npu-smi`` shows them. Parsing is apart from asking, so that it can be tested on recorded tables.

``npu-smi info`` prints two rows per chip: the first with the NPU id and the chip's name, the second with the bus id. On
310 and 310P the second row begins with chip and device number, on 910B with the chip number alone. The number tools
take as device is the *chip logic id*, which ``npu-smi info -m`` lists; NPU ids need not begin at 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from offline_infer.processes import ask

Ask = Callable[[list[str]], tuple[int | None, str]]
"""Runs a query: command -> (exit status or None, text)."""


@dataclass(frozen=True)
class Device:
    """One chip.

    Attributes:
        device: the number tools take (chip logic id).
        npu, chip: numbers of the card and of the chip on it.
        name: as printed, e.g. ``310P3``.
        health: ``OK``, ``Warning``, ``Alarm``, ...
        bus: PCI address.
        power_w: None where not given; with several chips on a card it may be the card's.
        temperature_c: None where not given.
        aicore_percent: load.
        memory_mb: used and total of the memory models live in (HBM where there is one).
    """

    device: int
    npu: int
    chip: int
    name: str
    health: str
    bus: str
    power_w: float | None = None
    temperature_c: float | None = None
    aicore_percent: float | None = None
    memory_mb: tuple[int, int] | None = None

    @property
    def soc(self) -> str:
        """The name ``atc --soc_version`` takes."""
        return soc_of_chip(self.name)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "soc": self.soc}


@dataclass(frozen=True)
class DeviceQuery:
    """What ``npu-smi`` said.

    Attributes:
        devices: in order of their number; empty when there is none.
        version: of npu-smi, which is the driver's.
        problem: why there are no devices, or what could not be read.
    """

    devices: tuple[Device, ...] = ()
    version: str | None = None
    problem: str | None = None


def list_devices(npu_smi: str = "npu-smi", query: Ask = ask) -> DeviceQuery:
    """Ask ``npu-smi`` for the devices of this machine; never raises for an absent or failing program."""
    status, text = query([npu_smi, "info"])
    if status is None:
        return DeviceQuery(problem=f"npu-smi: {text.strip() or 'no answer'}; no Ascend driver here, or not on PATH")
    if status != 0:
        return DeviceQuery(
            version=parse_version(text), problem=f"npu-smi info: exit status {status}: {text.strip()[:200]}"
        )
    status, table = query([npu_smi, "info", "-m"])
    logic_ids = parse_mapping(table) if status == 0 else {}
    devices = parse_info(text, logic_ids)
    problem = None if devices else "npu-smi lists no device"
    return DeviceQuery(devices, parse_version(text), problem)


def soc_of_chip(name: str) -> str:
    """The soc name of a chip as ``npu-smi`` prints it: ``310P3`` or ``Ascend 310P3`` is ``Ascend310P3``."""
    plain = name.replace(" ", "")
    return plain if plain.startswith("Ascend") else f"Ascend{plain}"


def parse_version(text: str) -> str | None:
    """The version in the banner line of ``npu-smi info``."""
    match = re.search(r"Version:\s*([\w.]+)", text) or re.search(r"npu-smi\s+v?(\d[\w.]*)", text)
    return match[1] if match else None


_CHIP_NAME = re.compile(r"^(\d+)\s+(Ascend\s*\w+|(?:310|710|910)\w*)$")
_BUS = re.compile(r"^(?:[0-9A-Fa-f]{4,8}:)?[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]$")


def parse_info(text: str, logic_ids: dict[tuple[int, int], int] | None = None) -> tuple[Device, ...]:
    """The devices in the table of ``npu-smi info``.

    Args:
        text: what it printed.
        logic_ids: (npu, chip) -> device number, from :func:`parse_mapping`. Without it the table's own device column
            counts, and where there is none, the order of rows.
    """
    devices: list[Device] = []
    head: tuple[int, str, list[str]] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if re.search(r"Process id|No running processes", line):
            break  # the table of processes has rows that look like a device's
        if not line.lstrip().startswith("|") or len(cells) < 3:
            continue
        if match := _CHIP_NAME.match(cells[0]):
            head = (int(match[1]), match[2], cells)
        elif head is not None and _BUS.match(cells[1]):
            devices.append(_device(head, cells, len(devices), logic_ids or {}))
            head = None
    return tuple(sorted(devices, key=lambda device: device.device))


def parse_list(text: str) -> dict[int, int]:
    """``npu-smi info -l``: NPU id -> number of chips."""
    found: dict[int, int] = {}
    npu = None
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "NPU ID" and value.isdigit():
            npu = int(value)
            found[npu] = 1
        elif name == "Chip Count" and value.isdigit() and npu is not None:
            found[npu] = int(value)
    return found


def parse_mapping(text: str) -> dict[tuple[int, int], int]:
    """``npu-smi info -m``: (NPU id, chip id) -> chip logic id, the number tools take. Management chips have none."""
    found: dict[tuple[int, int], int] = {}
    for line in text.splitlines():
        match = re.match(r"^\s*\|?\s*(\d+)\s+(\d+)\s+(\d+)\s+\S", line)
        if match:
            found[int(match[1]), int(match[2])] = int(match[3])
    return found


def _device(
    head: tuple[int, str, list[str]], cells: list[str], position: int, logic_ids: dict[tuple[int, int], int]
) -> Device:
    npu, name, first = head
    numbers = [int(word) for word in cells[0].split() if word.isdigit()]
    chip = numbers[0] if numbers else 0
    own = numbers[1] if len(numbers) > 1 else position
    # Power and temperature head the first row's last cell; power may be NA. Hugepages (n / m) follow and are left out.
    readings = first[2].split()
    usage = re.findall(r"(\d+)\s*/\s*(\d+)", cells[2])
    # 910B lists host-visible memory first and HBM last; 310 has one pair. A total of 0 means: not there.
    pairs = [(int(used), int(total)) for used, total in usage if int(total) > 0]
    load = cells[2].split()
    return Device(
        device=logic_ids.get((npu, chip), own),
        npu=npu,
        chip=chip,
        name=name,
        health=first[1],
        bus=cells[1],
        power_w=_number(readings[0]) if readings else None,
        temperature_c=_number(readings[1]) if len(readings) > 1 else None,
        aicore_percent=_number(load[0]) if load else None,
        memory_mb=pairs[-1] if pairs else None,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
