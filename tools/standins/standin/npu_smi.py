"""STAND-IN for ``npu-smi``: ``info``, ``info -l``, ``info -m`` in the table layouts of 310/310P and of 910B.

``OFFLINE_INFER_STANDIN_SOC`` (default Ascend310P3) names the chip, ``OFFLINE_INFER_STANDIN_DEVICES`` (4) how many.
"""

from __future__ import annotations

import os
import sys

VERSION = "23.0.rc2"


def main(arguments: list[str]) -> int:
    """Print one of the tables; 1 for anything else."""
    soc = os.environ.get("OFFLINE_INFER_STANDIN_SOC", "Ascend310P3")
    count = int(os.environ.get("OFFLINE_INFER_STANDIN_DEVICES", "4"))
    chips = _chips(soc, count)
    if arguments == ["info"]:
        print(_table(soc, chips))
    elif arguments == ["info", "-l"]:
        cards = sorted({npu for npu, _, _ in chips})
        print(f"\tTotal Count                    : {len(cards)}")
        for card in cards:
            print(f"\n\tNPU ID                         : {card}")
            print(f"\tChip Count                     : {sum(npu == card for npu, _, _ in chips)}")
    elif arguments == ["info", "-m"]:
        print(
            "\tNPU ID                         Chip ID                        Chip Logic ID                  Chip Name"
        )
        for npu, chip, logic in chips:
            print(f"\t{npu:<31}{chip:<31}{logic:<31}Ascend {soc.removeprefix('Ascend')}")
            print(f"\t{npu:<31}{chip + 1:<31}{'-':<31}Mcu")
    else:
        print(f"npu-smi: unknown command {' '.join(arguments)!r} (stand-in: a test double, not the vendor's program)")
        return 1
    return 0


def _chips(soc: str, count: int) -> list[tuple[int, int, int]]:
    """(NPU id, chip id, chip logic id). A 310 card has four chips; card ids do not begin at 0 there."""
    if soc == "Ascend310":
        return [(4 + device // 4, device % 4, device) for device in range(count)]
    return [(device, 0, device) for device in range(count)]


def _table(soc: str, chips: list[tuple[int, int, int]]) -> str:
    name = soc.removeprefix("Ascend")
    hbm = name.startswith("910B")
    line = "+" + "-" * 27 + "+" + "-" * 15 + "+" + "-" * 54 + "+"
    strong = "+" + "=" * 27 + "+" + "=" * 15 + "+" + "=" * 54 + "+"

    def row(first: str, second: str, third: str) -> str:
        return f"| {first:<25} | {second:<13} | {third:<52} |"

    rows = [
        "+" + "-" * 98 + "+",
        f"| npu-smi {VERSION:<25} Version: {VERSION:<53} |",
        line,
        row("NPU   Name", "Health", "Power(W)    Temp(C)           Hugepages-Usage(page)"),
        row("Chip", "Bus-Id", "AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)")
        if hbm
        else row("Chip  Device", "Bus-Id", "AICore(%)   Memory-Usage(MB)"),
        strong,
    ]
    for npu, chip, logic in chips:
        bus = f"0000:{logic + 1:02X}:00.0"
        rows.append(row(f"{npu:<5} {name}", "OK", f"{'NA' if logic else '15.8':<11} 42                0     / 0"))
        rows.append(
            row(f"{chip}", bus, "0           0     / 0         3161  / 65536")
            if hbm
            else row(f"{chip:<5} {logic}", bus, "0           1074  / 21534")
        )
        rows.append(strong)
    rows += [line, row("NPU     Chip", "Process id", "Process name             Process memory(MB)"), strong]
    rows += [f"| No running processes found in NPU {npu:<64} |" for npu in sorted({npu for npu, _, _ in chips})]
    return "\n".join([*rows, line])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
