"""What this process may use of the machine, from made-up control groups and from real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from control_groups import memory_group

from offline_infer import machine
from offline_infer.machine import memory_free, memory_total, processor_share, processors

MIB = 1 << 20
UNLIMITED_V1 = "9223372036854771712"


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".", 1)).write_text(f"{content}\n")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up tree of control groups; ``membership`` beside it says where this process is."""
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    root.mkdir()
    membership.write_text("")
    # The defaults of the functions were bound when the module was loaded.
    for function in (machine.processor_share, machine._memory_groups):
        monkeypatch.setattr(function, "__defaults__", (root, membership))
    return root


def belong(tree: Path, *lines: str) -> None:
    (tree.parent / "membership").write_text("".join(f"{line}\n" for line in lines))


def test_a_group_of_version_2_limits_memory(tree: Path) -> None:
    statistics = f"anon {2000 * MIB}\ninactive_file {40 * MIB}\nactive_file 7"
    write(tree / "job", memory__max=300 * MIB, memory__current=250 * MIB, memory__stat=statistics)
    belong(tree, "0::/job")
    assert memory_total() == 300 * MIB
    assert memory_free() == 90 * MIB


def test_a_group_above_counts_as_well_and_max_is_no_limit(tree: Path) -> None:
    write(tree / "pod", memory__max=200 * MIB, memory__current=150 * MIB, memory__stat="inactive_file 0")
    write(tree / "pod/step", memory__max="max", memory__current=20 * MIB, memory__stat="inactive_file 0")
    belong(tree, "0::/pod/step")
    assert memory_total() == 200 * MIB
    assert memory_free() == 50 * MIB


def test_a_job_of_version_1_is_found_below_the_root_of_its_controller(tree: Path) -> None:
    statistics = f"inactive_file 5\ntotal_inactive_file {10 * MIB}"
    limit = {"memory__usage_in_bytes": 80 * MIB, "memory__stat": statistics}
    write(tree / "memory", memory__limit_in_bytes=UNLIMITED_V1, **limit)
    write(tree / "memory/slurm/job_7", memory__limit_in_bytes=100 * MIB, **limit)
    belong(tree, "5:memory:/slurm/job_7", "4:cpuset,cpu:/elsewhere", "0::/")
    assert memory_total() == 100 * MIB
    assert memory_free() == 30 * MIB


def test_a_container_whose_path_is_the_hosts_is_found_at_the_root_of_the_tree(tree: Path) -> None:
    """Docker without a name space for control groups: the group is mounted, its path stays the host's."""
    write(tree / "memory", memory__limit_in_bytes=64 * MIB, memory__usage_in_bytes=4 * MIB, memory__stat="")
    write(tree / "cpu", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    belong(tree, "5:memory:/docker/0123", "4:cpu,cpuacct:/docker/0123")
    assert memory_free() == 60 * MIB
    assert processor_share() == 0.5
    assert processors() == 1


@pytest.mark.parametrize(("files", "share"), [("250000 100000", 2.5), ("max 100000", None), ("7 0", None), ("x", None)])
def test_a_share_of_time_is_a_number_of_processors(
    tree: Path, monkeypatch: pytest.MonkeyPatch, files: str, share: float | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    write(tree / "job", cpu__max=files)
    belong(tree, "0::/job")
    assert processor_share() == share
    assert processors() == (64 if share is None else 3)


@pytest.mark.parametrize("membership", ["", "nothing\n", "0::/../../etc\n", "::\n", "7:memory:/gone\n"])
def test_without_groups_the_machine_counts(tree: Path, membership: str) -> None:
    (tree.parent / "membership").write_text(membership)
    write(tree, memory__max="junk", memory__current="", memory__stat="")
    assert memory_total() == psutil.virtual_memory().total
    assert 0 < memory_free() < memory_total()
    assert processors() == len(os.sched_getaffinity(0))


def test_a_real_group_is_seen_from_inside() -> None:
    with memory_group(256 * MIB) as group:
        code = "import json\nfrom offline_infer.machine import *\nprint(json.dumps([memory_total(), memory_free()]))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, preexec_fn=group.join, check=True, timeout=300
        )
        total, free = json.loads(done.stdout)
    assert total == 256 * MIB
    assert 128 * MIB < free < 256 * MIB
