"""What is written in several places says the same in all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from offline_infer import __version__

ROOT = Path(__file__).resolve().parents[1]
FOR_DEVELOPERS = {"dev", "test", "docs"}
NOT_FOR_EVERY_MACHINE = {"onnxruntime-gpu", "onnxruntime-cann"}
"""Peers of onnxruntime that exclude it; their floor is onnxruntime's own."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        content: dict[str, Any] = tomllib.load(file)["project"]
    return content


def runtime_requirements(project: dict[str, Any]) -> list[Requirement]:
    lines = list(project["dependencies"])
    for extra, members in project["optional-dependencies"].items():
        if extra not in FOR_DEVELOPERS:
            lines += members
    found = [Requirement(line) for line in lines]
    return [r for r in found if r.name != project["name"] and r.name not in NOT_FOR_EVERY_MACHINE]


def test_the_oldest_releases_are_the_ones_pyproject_admits(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    floors = {
        requirement.name: Version(next(part.version for part in requirement.specifier if part.operator == ">="))
        for requirement in runtime_requirements(project)
    }
    assert {name: Version(version) for name, version in pinned.items()} == floors


def test_the_version_is_the_same_everywhere(project: dict[str, Any]) -> None:
    assert project["dynamic"] == ["version"]
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.search(rf"^## \[{re.escape(__version__)}\] - (\d{{4}}-\d\d-\d\d)$", changelog, re.M)
    assert dated is not None, "the changelog has no dated section of this version"
    assert f'date-released: "{dated[1]}"' in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_claimed_python_is_one_make_pythons_tries(project: dict[str, Any]) -> None:
    prefix = "Programming Language :: Python :: "
    claimed = {line.removeprefix(prefix) for line in project["classifiers"] if re.fullmatch(prefix + r"\d+\.\d+", line)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (tried,) = re.findall(r"^PYTHONS \?= (.*)$", makefile, re.M)
    assert claimed == {name.removeprefix("python") for name in tried.split()}
    assert f">={min(claimed, key=Version)}" == project["requires-python"]


def test_the_hooks_before_a_commit_are_make_lint() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^lint: [^\n]*\n((?:\t[^\n]*\n)+)", makefile, re.M)
    wanted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"entry: (.*)$", hooks, re.M) == wanted


def test_the_readme_reads_on_a_package_index() -> None:
    """A relative link leads nowhere there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_absolute_links_of_the_readme_lead_to_files_of_this_tree(project: dict[str, Any]) -> None:
    home = project["urls"]["Homepage"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    raw = home.replace("github.com", "raw.githubusercontent.com")
    paths = re.findall(rf"(?:{home}/(?:blob|tree)|{raw})/main/([^)#\s]+)", text)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


EXTRAS_ONLY = (
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "scipy",
    "pandas",
    "skimage",
    "matplotlib",
    "jinja2",
    "PIL",
)


def test_every_module_but_the_networks_is_imported_in_a_plain_install() -> None:
    """What an extra brings is imported where it is used, never at the top of a module that others need."""
    code = f"""
import importlib, pkgutil, sys
for name in {EXTRAS_ONLY!r}:
    sys.modules[name] = None
import offline_infer
failed = []
for found in pkgutil.walk_packages(offline_infer.__path__, "offline_infer."):
    if found.name.startswith("offline_infer.networks") or found.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        failed.append(f"{{found.name}}: {{error}}")
print("\\n".join(failed))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
