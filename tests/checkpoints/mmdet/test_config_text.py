"""Configurations are parsed, never executed."""

from __future__ import annotations

import pytest

from offline_infer.checkpoints.mmdet.config_text import parse_config
from offline_infer.errors import CheckpointError


def test_literals_dict_calls_and_earlier_names_are_read() -> None:
    text = "norm = dict(mean=[1.5, -2], to_rgb=True)\nstep = dict(type='Normalize', **norm)\nsides = (1333, 800)\n"
    assert parse_config(text, "x") == {
        "norm": {"mean": [1.5, -2], "to_rgb": True},
        "step": {"type": "Normalize", "mean": [1.5, -2], "to_rgb": True},
        "sides": (1333, 800),
    }


def test_nothing_is_executed(tmp_path) -> None:
    trap = tmp_path / "ran"
    text = f"import os\nx = open({str(trap)!r}, 'w')\ny = [1]\nz = dict(a=__import__('os').system('touch {trap}'))\n"
    assert parse_config(text, "x") == {"y": [1]}
    assert not trap.exists()


def test_a_name_that_cannot_be_read_does_not_keep_its_older_value() -> None:
    assert parse_config("a = 1\na = f()\n", "x") == {}


@pytest.mark.parametrize("text", ["a = (", "_base_ = ['x.py']\n", "x = " + "[" * 20000, "\0"])
def test_what_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        parse_config(text, "some.py")
