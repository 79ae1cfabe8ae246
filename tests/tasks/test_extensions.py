"""What a kind of model adds to the command line is found by the names of modules in its folder, and nothing else names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline_infer.cli import build_parser, main
from offline_infer.tasks import registry
from offline_infer.tasks.registry import TASKS, adopter_of, commands_of, exporter_of, recognised

SIGNAL = "signal_task"


def test_a_task_without_extensions_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "signal", SIGNAL)
    assert exporter_of("signal") is None
    assert adopter_of("signal") is None
    assert commands_of("signal") == ()


def test_a_broken_extension_is_not_taken_for_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "broken_task"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "adopt_options.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TASKS, "broken", "broken_task")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        adopter_of("broken")


def test_a_new_task_is_exported_adopted_and_has_its_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "toy_task"
    folder.mkdir()
    files = {
        "__init__": "",
        "options": "OPTIONS = ()\n",
        "export_options": "EXPORT_OPTIONS = ()\ndef recognises(path): return path.suffix == '.toy'\n",
        "exporting": "from offline_infer.errors import ExportError\n"
        "def export(request, sink): raise ExportError(f'toy export of {request.model.name}')\n",
        "commands": "from offline_infer.tasks.extensions import TaskCommand\n"
        "def add(parser): parser.add_argument('word')\n"
        "def run(options, context):\n    context.say(options.word * 2)\n    return {}\n"
        "COMMANDS = (TaskCommand('twice', 'say a word twice', add, run),)\n",
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TASKS, "toy", "toy_task")
    model = tmp_path / "model.toy"
    model.touch()
    assert recognised(model) == "toy"
    assert main(["export", str(model), "-o", str(tmp_path / "b"), "--quiet"]) == 2
    assert "toy export of model.toy" in capsys.readouterr().err
    assert main(["twice", "ab"]) == 0
    assert capsys.readouterr().out == "abab\n"


def test_each_path_goes_to_the_task_that_recognises_it(tmp_path: Path) -> None:
    own, detector, fold = tmp_path / "own", tmp_path / "epoch_12.pth", tmp_path / "fold_0" / "checkpoint_final.pth"
    for path in (own / "mymodel.py", detector, fold):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert recognised(own) == recognised(own / "mymodel.py") == "image"
    assert recognised(detector) == "instances"
    assert recognised(fold) is None
    assert recognised(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["own/mymodel.py", "--folds", "0"], "'image', whose export has no --folds"),
        (["own/mymodel.py", "--precision", "fp16"], "no --precision"),
        (["own/mymodel.py", "--canvas", "32x32"], "no --canvas"),
        (["own/mymodel.py"], "needs its trained weights, --weights FILE"),
        (["model.pth", "--size", "512"], "'instances', whose export has no --size"),
        (["model.pth", "--canvas", "32"], "expected height x width such as 1344x1344"),
        (["model.pth", "--set", "width=3"], "leave out --set"),
        (["model.pth", "--expect-sha256", "0" * 64], "not the file that was published"),
        (["own", "--set", "width"], "expected NAME=VALUE"),
        (["folder", "--size", "512"], "a checkpoint of nnU-Net, whose export has no --size"),
        (["folder", "--set", "width=3"], "no --set"),
    ],
)
def test_an_option_of_another_kind_is_refused_not_ignored(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("own/mymodel.py"), Path("model.pth"), Path("folder/plans.json")):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert main(["export", *arguments, "-o", "bundle", "--quiet"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not Path("bundle").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "volume"], "cannot be adopted; legal: image, instances"),
        (["--task", "nothing"], "cannot be adopted; legal: image, instances"),
        (["--task", "instances", "--set", "colour=red"], "unknown name 'colour'; legal: classes:"),
        (["--task", "instances", "--set", "order=gray"], "legal values are rgb, bgr"),
        (["--task", "instances", "--set", "mean=1,2"], "expected three numbers joined by commas"),
        (["--task", "instances", "--set", "limit=0"], "expected a whole number from 1"),
        (["--task", "instances", "--set", "min_score=nan"], "expected a number"),
    ],
)
def test_wrong_adoptions_are_explained(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = tmp_path / "graph.onnx"
    graph.touch()
    assert main(["adopt", str(graph), *arguments, "-o", str(tmp_path / "bundle"), "--quiet"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_the_help_of_adopt_lists_what_can_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["adopt", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "mask_activation: what makes probabilities of the mask" in told
    assert "convention: what its outputs mean" in told


def test_lone_weights_of_nnunet_are_told_from_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"network_weights": {"w": torch.zeros(1)}}, tmp_path / "renamed.pth")
    assert main(["export", str(tmp_path / "renamed.pth"), "-o", str(tmp_path / "bundle"), "--quiet"]) == 2
    assert "one fold of nnU-Net v2, without its plans; give the model folder" in capsys.readouterr().err


def test_no_command_is_declared_twice() -> None:
    own = [command.name for task in registry.TASKS for command in commands_of(task)]
    assert len(own) == len(set(own))
    assert set(own) <= set(build_parser().commands)
