"""The settings of the signal task."""

from __future__ import annotations

from offline_infer.tasks.settings import TaskOption

VOTE = TaskOption("vote", "how windows are joined: mean (default) or largest", "mean", ("mean", "largest"))
OPTIONS = (VOTE,)
