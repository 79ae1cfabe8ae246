"""What ``npu-smi`` prints, in the layouts of several chips, and what of the Ascend software is found on a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ascend_specimens import use_standins

from offline_infer.ascend.toolkit import ascend_report, driver_version, find_toolkit, toolkit_version
from offline_infer.engines.om.npu_smi import list_devices, parse_info, parse_list, parse_mapping, parse_version
from offline_infer.processes import ask, last_lines

INFO_310P = """
+--------------------------------------------------------------------------------------------------------+
| npu-smi 22.0.2                                   Version: 22.0.2                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 11      310P3                 | OK              | 15.8         42                0     / 0             |
| 0       0                     | 0000:82:00.0    | 0            1074 / 21534                            |
+===============================+=================+======================================================+
| 24      310P3                 | Alarm           | NA           NA                0     / 0             |
| 0       1                     | 0000:83:00.0    | 97           20000/ 21534                            |
+===============================+=================+======================================================+
"""
INFO_310 = """
+------------------------------------------------------------------------------+
| npu-smi 20.2.0                       Version: 20.2.0                         |
+------------------+-------------------+---------------------------------------+
| NPU     Name     | Health            | Power(W)          Temp(C)             |
| Chip    Device   | Bus-Id            | AICore(%)         Memory-Usage(MB)    |
+==================+===================+=======================================+
| 4       310      | OK                | 12.8              45                  |
| 0       0        | 0000:05:00.0      | 0                 2621 / 8192         |
+------------------+-------------------+---------------------------------------+
| 4       310      | OK                | 12.8              46                  |
| 1       1        | 0000:06:00.0      | 0                 2621 / 8192         |
+==================+===================+=======================================+
"""
INFO_910B = """
+------------------------------------------------------------------------------------------------+
| npu-smi 23.0.2              Version: 23.0.2                                                    |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 93.6        40                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3161 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 90.1        41                0    / 0             |
| 0                         | 0000:02:00.0  | 12          0    / 0          9000 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 1       0                 | 3117010       | python                   | 5839                    |
+===========================+===============+====================================================+
"""
MAPPING = """
\tNPU ID                         Chip ID                        Chip Logic ID                  Chip Name
\t4                              0                              0                              Ascend 310
\t4                              1                              1                              Ascend 310
\t4                              4                              -                              Mcu
\t11                             0                              2                              Ascend 910B4
"""


def test_310p_lists_two_rows_a_chip() -> None:
    first, second = parse_info(INFO_310P)
    assert (first.device, first.npu, first.soc, first.health, first.bus) == (0, 11, "Ascend310P3", "OK", "0000:82:00.0")
    assert (first.power_w, first.temperature_c, first.aicore_percent, first.memory_mb) == (
        15.8,
        42.0,
        0.0,
        (1074, 21534),
    )
    assert (second.device, second.npu, second.health, second.power_w) == (1, 24, "Alarm", None)
    assert second.memory_mb == (20000, 21534)
    assert second.aicore_percent == 97.0
    assert parse_version(INFO_310P) == "22.0.2"


def test_310_has_several_chips_on_a_card() -> None:
    devices = parse_info(INFO_310)
    assert [(device.npu, device.chip, device.device, device.soc) for device in devices] == [
        (4, 0, 0, "Ascend310"),
        (4, 1, 1, "Ascend310"),
    ]


def test_910b_has_no_device_column_and_high_bandwidth_memory() -> None:
    devices = parse_info(INFO_910B)
    assert [(device.device, device.soc, device.memory_mb) for device in devices] == [
        (0, "Ascend910B3", (3161, 65536)),
        (1, "Ascend910B3", (9000, 65536)),
    ]
    # With the mapping, the chip logic id counts.
    assert [device.device for device in parse_info(INFO_910B, {(0, 0): 5, (1, 0): 3})] == [3, 5]


def test_lists_and_mappings() -> None:
    assert parse_mapping(MAPPING) == {(4, 0): 0, (4, 1): 1, (11, 0): 2}
    text = "\tTotal Count : 2\n\n\tNPU ID : 4\n\tChip Count : 4\n\n\tNPU ID : 11\n\tChip Count : 1\n"
    assert parse_list(text) == {4: 4, 11: 1}


def test_an_absent_or_failing_npu_smi_is_a_reason_not_an_exception() -> None:
    assert "no Ascend driver" in (list_devices("no-such-npu-smi").problem or "")
    failing = list_devices(query=lambda command: (1, "dcmi module initialize failed. ret is -8005"))
    assert not failing.devices
    assert "-8005" in (failing.problem or "")
    empty = list_devices(query=lambda command: (0, "npu-smi 22.0.2\n"))
    assert not empty.devices
    assert empty.problem == "npu-smi lists no device"
    assert empty.version == "22.0.2"


@pytest.mark.parametrize(("soc", "count"), [("Ascend310", 8), ("Ascend310P3", 2), ("Ascend910B4", 3)])
def test_the_stand_in_speaks_each_layout(soc: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_standins(monkeypatch, soc=soc, devices=str(count))
    query = list_devices()
    assert [device.device for device in query.devices] == list(range(count))
    assert {device.soc for device in query.devices} == {soc}


def test_the_doctors_report_is_plain_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_standins(monkeypatch)
    (tmp_path / "cann").mkdir()
    (tmp_path / "cann" / "version.cfg").write_text("toolkit_running_version=[8.5.0:8.5.1]\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    report = json.loads(json.dumps(ascend_report()))
    assert len(report["devices"]) == 4
    assert report["devices"][0]["soc"] == "Ascend310P3"
    assert report["toolkit"] == str(tmp_path / "cann")
    assert report["toolkit_version"] == "8.5.1"
    assert report["tools"]["atc"]
    assert report["tools"]["msame"]
    assert report["npu_smi_version"] == "23.0.rc2"


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("version.info", "Version=7.0.0\ninnerversion=V100R001\n", "7.0.0"),
        ("toolkit/version.info", "Version=1.82.22.1.220\n", "1.82.22.1.220"),
        ("version.cfg", "# version: 1.0\nruntime_running_version=[8.0.RC2:8.0.RC2]\n", "8.0.RC2"),
        ("ascend_toolkit_install.info", "package_name=Ascend-cann-toolkit\nversion=8.0.RC3\n", "8.0.RC3"),
        ("other.txt", "Version=1\n", None),
    ],
)
def test_versions_are_read_from_where_releases_put_them(
    file: str, text: str, version: str | None, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert toolkit_version(tmp_path) == version


def test_no_toolkit_and_no_driver_is_none(tmp_path: Path) -> None:
    if Path("/usr/local/Ascend").exists():
        pytest.skip("this machine has Ascend software")
    assert find_toolkit({"HOME": str(tmp_path)}) is None
    assert driver_version(tmp_path) is None
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "version.info").write_text("Version=23.0.rc2\nascendhal_version=7.18\n")
    assert driver_version(tmp_path) == "23.0.rc2"


def test_a_query_that_does_not_answer_is_ended() -> None:
    status, text = ask(["sleep", "30"], timeout_s=0.3)
    assert status is None
    assert "no answer" in text
    assert ask(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, "out\nerr\n")


def test_the_last_lines_of_a_log_leave_out_what_a_progress_bar_wrote_over() -> None:
    assert last_lines("start\n 10%\r 50%\r100%\n\nfailed here\n", 2) == "100% | failed here"
