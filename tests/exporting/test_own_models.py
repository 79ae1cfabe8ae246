"""Models of one's own: found, built from options, loaded from any trainer's checkpoint, wrapped for inference."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from own_model_samples import write_model

from offline_infer.errors import CheckpointError, ExportError, UsageError
from offline_infer.exporting.constructor_options import constructor_arguments, constructor_options
from offline_infer.exporting.own_models import (
    build,
    inference_network,
    load_checkpoint,
    load_model_class,
    output_names,
)

torch = pytest.importorskip("torch")


def test_the_registered_class_is_found(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert load_model_class(tmp_path).__name__ == "Bright"
    assert load_model_class(tmp_path / "mymodel.py", "NotRegistered").__name__ == "NotRegistered"
    with pytest.raises(UsageError, match="Bright, NotRegistered"):
        load_model_class(tmp_path, "Dark")
    with pytest.raises(UsageError, match="does not exist"):
        load_model_class(tmp_path / "other.py")


def test_a_file_that_cannot_be_executed_or_registers_nothing(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text("import nothing_of_that_name")
    with pytest.raises(ExportError, match="ModuleNotFoundError"):
        load_model_class(file)
    file.write_text("from torch import nn\nclass A(nn.Module): pass")
    with pytest.raises(UsageError, match=r"registers no model.*\(A\)"):
        load_model_class(file)


def test_constructor_arguments_are_options(tmp_path: Path) -> None:
    write_model(tmp_path)
    cls = load_model_class(tmp_path)
    kinds = {option.name: (option.kind, option.required, option.optional) for option in constructor_options(cls)}
    assert kinds == {
        "gain": ("float", False, False),
        "label": ("bool", False, False),
        "name": ("str", False, False),
        "width": ("int", False, True),
    }
    assert constructor_arguments(cls, {"label": "False", "width": "none", "gain": "2"}) == {
        "label": False,
        "width": None,
        "gain": 2.0,
    }
    for given, message in (
        ({"label": "perhaps"}, "true or false"),
        ({"gains": "1"}, "gain: a number \\(default 4.0\\)"),
        ({"gain": "x"}, "a number"),
    ):
        with pytest.raises(UsageError, match=message):
            constructor_arguments(cls, given)


def test_an_argument_without_default_is_required() -> None:
    class Model:
        def __init__(self, depth: int, sizes: list[int] = [1]) -> None: ...  # noqa: B006

    with pytest.raises(UsageError, match="needs the options depth"):
        constructor_arguments(Model, {})
    assert constructor_arguments(Model, {"depth": "3", "sizes": "[1, 2]"}) == {"depth": 3, "sizes": [1, 2]}


def test_weights_come_from_any_trainers_file(tmp_path: Path) -> None:
    _, checkpoint = write_model(tmp_path)
    network = load_model_class(tmp_path)()
    load_checkpoint(network, checkpoint)
    assert network.layer.bias.item() == -1.5
    bare = tmp_path / "bare.pth"
    torch.save(network.state_dict(), bare)
    load_checkpoint(load_model_class(tmp_path)(), bare)
    torch.save({"model": {"layer.weight": torch.zeros(1, 3, 1, 1), "extra": torch.zeros(1)}}, bare)
    with pytest.raises(CheckpointError, match=r"missing.*layer\.bias.*unexpected.*extra"):
        load_checkpoint(network, bare)


def test_what_forward_demands_is_filled_in_and_scores_get_a_batch_axis(tmp_path: Path) -> None:
    write_model(tmp_path)
    wrapped = inference_network(load_model_class(tmp_path)())
    image = torch.zeros(1, 3, 8, 8)
    assert output_names(wrapped, image) == ("mask", "score")
    assert [tuple(output.shape) for output in wrapped(image)] == [(1, 1, 8, 8), (1,)]
    masks_only = inference_network(load_model_class(tmp_path)(label=False))
    assert output_names(masks_only, image) == ("mask",)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def forward(self, x): return x[:, :1]", ("mask",)),
        ("def forward(self, x): return x[:, :1], x.mean((1, 2, 3))[:, None]", ("mask", "score")),
        (
            "def forward(self, image, edge_mask, **k): return {'pred_mask': image[:, 0] * 0 + edge_mask[:, 0]}",
            ("mask",),
        ),
        ("def forward(self, image, label): return {'pred_mask': None, 'pred_label': image.mean()}", ("score",)),
    ],
)
def test_every_form_of_answer(source: str, names: tuple[str, ...]) -> None:
    space: dict[str, object] = {}
    exec(f"from torch import nn\nclass M(nn.Module):\n    {source}", space)
    wrapped = inference_network(space["M"]())  # type: ignore[operator]
    assert output_names(wrapped, torch.zeros(1, 3, 4, 4)) == names


def test_what_inference_cannot_give_is_named() -> None:
    class Model(torch.nn.Module):
        def forward(self, image, qtables):  # type: ignore[no-untyped-def]
            return image

    with pytest.raises(ExportError, match="qtables"):
        inference_network(Model())


def test_options_say_what_is_legal() -> None:
    class Model(torch.nn.Module):
        def __init__(
            self, own_param: int, pool: Literal["max", "mean"] = "max", pre_trained: str | None = None
        ) -> None:
            super().__init__()

    told = [option.described() for option in constructor_options(Model)]
    assert told == [
        "own_param: a whole number (required)",
        "pool: max or mean (default max)",
        "pre_trained: text, or none (default none)",
    ]
    given = {"own_param": "3", "pool": "mean"}
    assert constructor_arguments(Model, given) == {"own_param": 3, "pool": "mean"}
    with pytest.raises(UsageError, match="max or mean"):
        constructor_arguments(Model, {**given, "pool": "sum"})


def test_somebody_elses_code_that_fails_is_quoted() -> None:
    class Model(torch.nn.Module):
        def __init__(self, path: str = "nothing.pth") -> None:
            super().__init__()
            raise FileNotFoundError(path)

    with pytest.raises(ExportError, match=r"Model\(path='x'\) cannot be made \(FileNotFoundError: x\)"):
        build(Model, {"path": "x"})
    network = inference_network(torch.nn.Conv2d(4, 1, 3))
    with pytest.raises(ExportError, match="forward fails on an image of 7 x 6 pixels"):
        output_names(network, torch.zeros(1, 3, 6, 7))
