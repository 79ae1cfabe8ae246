"""What a user may change about a run without changing the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from offline_infer.errors import UsageError

ACCUMULATE = ("framework", "float32", "float16")


@dataclass(frozen=True)
class TaskOption:
    """A setting that only one kind of model has; the command line offers it as ``--name``.

    Attributes:
        name: lower case, words joined by ``_``.
        help: one line; ends with the default.
        default: value where none is given.
        choices: legal values; empty: any text.
        values: how many it takes: ``one``, ``some`` (one or more), or ``any`` (none too). More than one are a list of texts.
    """

    name: str
    help: str
    default: str
    choices: tuple[str, ...] = ()
    values: Literal["one", "some", "any"] = "one"


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run.

    Attributes:
        step_size: tile step as a fraction of the patch, None = the model's own.
        tta: mirror along the model's axes and average.
        accumulate: precision of the sums over tiles: ``framework`` (nnU-Net v1: float32, v2: float16), ``float32``, or
            ``float16`` (nnU-Net v2 models only).
        save_probabilities: also keep the class probabilities.
        postprocess: apply the model's own post-processing (connected-component rules).
        options: settings of one kind of model, by the names of its :class:`TaskOption`.

    Raises:
        UsageError: a value that no run can have.
    """

    step_size: float | None = None
    tta: bool = True
    accumulate: str = "framework"
    save_probabilities: bool = False
    postprocess: bool = True
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        step = self.step_size
        number = isinstance(step, (int, float)) and not isinstance(step, bool)
        if step is not None and not (number and isfinite(step) and 0 < step <= 1):
            raise UsageError(f"step size {step!r}: expected a fraction of the patch, above 0 and at most 1")
        if self.accumulate not in ACCUMULATE:
            raise UsageError(f"accumulate {self.accumulate!r}: legal values are {', '.join(ACCUMULATE)}")
        for name in ("tta", "save_probabilities", "postprocess"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} {getattr(self, name)!r}: expected True or False")

    def option(self, option: TaskOption) -> str:
        """The value of a task's own setting: as given, else its default."""
        return self.options.get(option.name, option.default)


def check_options(settings: RunSettings, known: Sequence[TaskOption], task: str) -> None:
    """Refuse settings that this kind of model does not have, or values it does not know.

    Raises:
        UsageError: the message lists what is legal.
    """
    by_name = {option.name: option for option in known}
    for name, value in settings.options.items():
        if name not in by_name:
            legal = ", ".join(sorted(by_name)) or "none"
            raise UsageError(f"option {name!r} is unknown to models of the task {task!r}; its options: {legal}")
        choices = by_name[name].choices
        if choices and value not in choices:
            raise UsageError(f"option {name} {value!r}: legal values are {', '.join(choices)}")
