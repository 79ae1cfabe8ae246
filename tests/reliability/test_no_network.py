"""No command opens a network connection, and what it keeps for itself is the user's alone."""

from __future__ import annotations

import argparse
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ascend_specimens import use_standins
from checkpoint_samples import v2_folder
from conv_bundle import PATCH, conv_bundle
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from image_samples import save, voxels
from int8_samples import threshold_bundle, write_cases
from own_model_samples import write_model
from photo_samples import write_pairs
from staged_samples import write_case

from offline_infer.checkpoints.archive import TemporaryFolder
from offline_infer.cli import build_parser

EVERYTHING = bool(os.environ.get("OFFLINE_INFER_NO_NETWORK"))
"""Whether the commands that take long are run as well."""
QUICK = (
    "export",
    "sign",
    "adopt",
    "init",
    "model-options",
    "quantize",
    "tune",
    "pick-fold",
    "convert-msd",
    "guide-tables",
)

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
REPOSITORY = HELPERS.parents[1]


def guarded(argument: str, cache: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(REPOSITORY), str(HELPERS), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache)}
    arguments = [sys.executable, "-m", "no_network", argument]
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=600, check=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guard is a filter in Linux")
def test_no_command_opens_a_network_socket(tmp_path: Path) -> None:
    bundle, images, work, out = (str(tmp_path / name) for name in ("bundle", "in", "work", "out"))
    conv_bundle(tmp_path / "bundle")
    for number in range(2):
        write_case(tmp_path / "in", f"case_{number}", shape=PATCH, seed=number)
    one = str(tmp_path / "in" / "case_0_0000.nii.gz")
    fake = ["--engine", "fake"]
    commands = [
        ["inspect", bundle, "--verify"],
        ["predict", bundle, images, out, "--engine", "openvino", "--save-probabilities"],
        ["predict", bundle, one, str(tmp_path / "ort"), "--engine", "onnxruntime"],
        ["preprocess", bundle, images, work],
        ["info", work, "--shards", "2"],
        ["infer", bundle, work, *fake],
        ["clean", work, "--apply"],
        ["postprocess", bundle, work, str(tmp_path / "merged")],
        ["staged", bundle, images, str(tmp_path / "rounds"), str(tmp_path / "by_rounds"), "--scratch", "3MB", *fake],
        ["evaluate", out, str(tmp_path / "merged"), "-o", str(tmp_path / "summary.json"), "--jobs", "2"],
        ["compare", out, str(tmp_path / "merged"), "-o", str(tmp_path / "agreement.json")],
        ["compare", bundle, "--layers", "openvino:fp32", "onnxruntime:fp32"],
        ["report", str(tmp_path / "summary.json"), "-o", str(tmp_path / "page.html")],
        ["statistics", out, "-o", str(tmp_path / "figures.csv")],
        ["ensemble", out, out, "-o", str(tmp_path / "joined"), "--bundle", bundle],
        ["benchmark", bundle, "--engines", "openvino", "onnxruntime", "--precisions", "fp32", "--repeats", "1"],
        ["phantoms", str(tmp_path / "phantoms"), "--cases", "1"],
        ["doctor"],
        ["doctor", "--clear-cache"],
    ]
    done = guarded(json.dumps([[*command, "--quiet"] for command in commands]), tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-4000:]
    ended = json.loads(done.stdout.splitlines()[-1])
    statuses = dict(zip((f"{i} {command[0]}" for i, command in enumerate(commands)), ended, strict=True))
    assert set(statuses.values()) == {0}, (statuses, done.stderr[-4000:])
    kept = tmp_path / "cache" / "offline_infer"
    folders = [kept, *(path for path in kept.rglob("*") if path.is_dir())]
    assert len(folders) > 1
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guard is a filter in Linux")
def test_no_maker_of_models_opens_one_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export and adoption, signing and compiling, the demonstration, sweeps, and what moves files about."""
    pytest.importorskip("torch")
    use_standins(monkeypatch)
    model, images = v2_folder(tmp_path / "model"), tmp_path / "in"
    code, weights = write_model(tmp_path / "mine")
    write_pairs(tmp_path / "pairs", [(40, 50)])
    (tmp_path / "grid.json").write_text('{"GaussianBlur": [3]}')
    for folder, name in (("in", "a_0000"), ("Task04_H/imagesTr", "a"), ("Task04_H/labelsTr", "a")):
        (tmp_path / folder).mkdir(parents=True)
        save(tmp_path / folder / f"{name}.nii.gz", voxels((9, 20, 24)))
    (tmp_path / "Task04_H" / "dataset.json").write_text('{"modality": {"0": "CT"}, "labels": {"0": "background"}}')
    (tmp_path / "splits_final.json").write_text('[{"train": [], "val": ["a"]}]')
    mean = {"0": {"Dice": 0.99}, "1": {"Dice": 0.9}, "2": {"Dice": 0.8}}
    (tmp_path / "summary.json").write_text(
        json.dumps({"results": {"mean": mean, "all": [{"test": "a", "reference": "a", **mean}]}})
    )
    threshold_bundle(tmp_path / "threshold")
    write_cases(tmp_path / "cases", tmp_path / "truth")
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*form))
    words = (
        f"export {model} -o exported",
        "sign exported --key key.pem",
        "inspect exported --verify",
        "compile exported --soc Ascend310P3",
        f"run {model} in run",
        "preprocess exported in/a_0000.nii.gz work --no-tta",
        "info work --all-shape a",
        "infer exported work --tool msame --devices 0",
        "import-tiles exported in/a_0000.nii.gz work/info/all_shape.txt imported --no-tta --tiles work/inputs --copy",
        f"export {code} --weights {weights} --size 48x64 -o picture",
        "adopt picture/fold_0.onnx --task image -o adopted",
        "sweep adopted --references pairs -o sweep --grid grid.json",
        "demo -o demo --cases 1",
        "init own",
        f"model-options {code}",
        "pick-fold splits_final.json in picked",
        "convert-msd Task04_H raw",
        "guide-tables --precision NPU=summary.json",
        "quantize threshold --cases cases --labels truth --threads 1",
        "tune threshold --cases cases --labels truth --precisions int8 --steps --threads 1",
    )
    commands = [line.split() for line in words if EVERYTHING or line.split()[0] in QUICK]
    # What a tool wrote by hand is refused here, for nothing was: it is looked at nevertheless.
    refused = ["adopt-outputs", "exported", "work" if EVERYTHING else "in", str(images)]
    monkeypatch.chdir(tmp_path)
    done = guarded(json.dumps([[*command, "--quiet"] for command in [*commands, refused]]), tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-4000:]
    ended = json.loads(done.stdout.splitlines()[-1])
    statuses = [f"{command[0]}: {status}" for command, status in zip([*commands, refused], ended, strict=True)]
    assert ended == [0] * len(commands) + [2], f"{statuses} {done.stderr[-4000:]}"


def test_every_command_is_run_under_the_guard() -> None:
    """Those of the tests above, which would not notice a new one."""
    source = Path(__file__).read_text(encoding="utf-8")
    parser = build_parser()
    names = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert names
    assert not [name for name in names if f'["{name}"' not in source and f'"{name} ' not in source]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guard is a filter in Linux")
def test_the_guard_catches_a_connection(tmp_path: Path) -> None:
    assert guarded("probe", tmp_path / "cache").returncode not in (0, 1, 2)


def test_temporary_folders_are_the_users_alone() -> None:
    own = TemporaryFolder()
    assert stat.S_IMODE(own.path.stat().st_mode) == 0o700
    own.remove()
    with tempfile.TemporaryDirectory() as folder:  # what the standard library promises, and the package counts on
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
