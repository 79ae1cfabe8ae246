"""A container with too little memory for one case: that case fails, the others are complete, and the command goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk
from command_line import LIMIT_S, PROGRAM, assert_orderly, run
from control_groups import Group, memory_group
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

from offline_infer.bundles.bundle import save

SHAPE = (10, 14, 18)
MEMORY = 512 << 20
SIDE = 400
"""Of a cube whose float32 voxels alone fit the memory, but not beside the program and the search for an empty border."""


def large(path: Path) -> None:
    image = sitk.Image([SIDE] * 3, sitk.sitkUInt8)
    image.SetSpacing([1.5] * 3)
    sitk.WriteImage(image, str(path))


def run_in(group: Group, arguments: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        preexec_fn=group.join,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stderr.decode(errors="replace")


def test_a_case_that_the_container_cannot_hold_fails_alone(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), bundle), bundle)
    for name in ("a", "c"):
        write_case(tmp_path / "in", name, shape=SHAPE, seed=1)
    large(tmp_path / "in" / "b_0000.nii.gz")
    arguments = ["predict", str(bundle), str(tmp_path / "in"), str(tmp_path / "out"), "--engine", "fake", "--quiet"]
    with memory_group(MEMORY) as group:
        assert_orderly(*run_in(group, arguments), "(b)", statuses=(3,))
        assert group.kills() == 0
    cases = {
        case["case"]: case for case in json.loads((tmp_path / "out" / "offline_infer_run.json").read_text())["cases"]
    }
    assert {name: case["status"] for name, case in cases.items()} == {"a": "done", "b": "failed", "c": "done"}
    assert "gives it no more than 537 MB" in cases["b"]["reason"]
    write_case(tmp_path / "in", "b", shape=SHAPE, seed=2)
    assert run(arguments) == (0, "")


def test_a_process_that_the_kernel_ends_for_want_of_memory_costs_its_case_alone(tmp_path: Path) -> None:
    for folder in ("labels", "out"):
        (tmp_path / folder).mkdir()
        for name in ("a", "c"):
            sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkUInt8), str(tmp_path / folder / f"{name}.nii.gz"))
        large(tmp_path / folder / "b.nii.gz")
    arguments = ["evaluate", str(tmp_path / "out"), str(tmp_path / "labels"), "--jobs", "2", "--quiet"]
    arguments += ["-o", str(tmp_path / "summary.json")]
    with memory_group(MEMORY) as group:
        assert_orderly(*run_in(group, arguments), "(b)", statuses=(3,))
        assert group.kills()
    for folder in ("labels", "out"):
        sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkUInt8), str(tmp_path / folder / "b.nii.gz"))
    assert run(arguments) == (0, "")
