"""Every command and every piece of Python in the documentation does what the page says, on tiny models.

``sh`` and ``python`` blocks of a page run in order, in a folder of the page's own that holds the models and images the
pages speak of. A block that cannot run here is preceded by ``<!-- not run: reason -->``.
"""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from docs_workspace import ROOT, blocks, make_images, make_models, write_program

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if any(block.language in ("sh", "python") for block in blocks(page))]
NOTEBOOKS = sorted((ROOT / "examples").rglob("*.ipynb"))
DOCTESTS = sorted(path for path in (ROOT / "offline_infer").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
PREAMBLE = "set -euo pipefail\n"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: model folders, images, and the bundle that the README exports."""
    folder = tmp_path_factory.mktemp("material")
    make_models(folder)
    make_images(folder)
    program = write_program(folder / ".bin")
    run_shell("offline-infer export nnUNetTrainer__nnUNetPlans__3d_fullres -o liver_bundle --quiet\n", folder, program)
    return folder


@pytest.fixture
def workspace(material: Path, tmp_path: Path) -> Path:
    """A copy of the material that a page may change."""
    folder = tmp_path / "work"
    shutil.copytree(material, folder)
    return folder


def run_shell(text: str, folder: Path, program: Path) -> str:
    standins = ROOT / "tools" / "standins" / "bin"
    path = os.pathsep.join([str(program), str(Path(sys.executable).parent), str(standins), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / ".cache")}
    done = subprocess.run(
        ["bash", "-c", PREAMBLE + text], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"status {done.returncode}\n{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_the_page_runs(page: Path, workspace: Path) -> None:
    names: list[str] = []
    for number, block in enumerate(blocks(page)):
        if block.language == "sh":
            run_shell(block.text, workspace, workspace / ".bin")
        elif block.language == "python":
            # Blocks of one page continue one another.
            (workspace / f"block_{number}.py").write_text(block.text, encoding="utf-8")
            names.append(f"block_{number}.py")
            script = "\n".join(f"exec(compile(open({name!r}).read(), {name!r}, 'exec'))" for name in names)
            (workspace / "page.py").write_text(script, encoding="utf-8")
            run_shell(f"PYTHONPATH={ROOT} {sys.executable} page.py\n", workspace, workspace / ".bin")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_the_notebook_runs(notebook: Path, workspace: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code
    (workspace / "notebook.py").write_text("\n\n".join(code) + "\n", encoding="utf-8")
    run_shell(f"MPLBACKEND=agg PYTHONPATH={ROOT} {sys.executable} notebook.py\n", workspace, workspace / ".bin")


@pytest.mark.parametrize("module", DOCTESTS, ids=name_of)
def test_examples_in_docstrings(module: Path) -> None:
    name = ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{name_of(page)}: {target} does not exist"
        assert place.is_dir() or place.stat().st_size, f"{name_of(page)}: {target} is empty"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{name_of(page)}: {target}: no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_on_the_site() -> None:
    """mkdocs would build a page that no menu shows."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages == set(re.findall(r"[\w/]+\.md", menu))


def test_options_in_the_pages_exist() -> None:
    """Whatever stands behind ``offline-infer COMMAND`` in a page is an option of that command, run or not."""
    from offline_infer.cli import build_parser

    actions: Any = next(a for a in build_parser()._actions if hasattr(a, "choices") and a.choices)
    options = {name: set(command._option_string_actions) for name, command in actions.choices.items()}
    wrong = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command, rest in re.findall(r"offline-infer ([a-z][a-z-]+)\b([^\n`|#;]*)", text):
            if command in options:
                used = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest)
                wrong += [f"{name_of(page)}: {command} {name}" for name in used if name not in options[command]]
    assert wrong == []


def test_the_blocks_of_a_page_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        textwrap.dedent(
            """\
            ```sh
            one
            ```

            <!-- not run: it needs a device -->
            ```sh
            two
            ```

            ```console
            three
            ```
            """
        )
    )
    assert [(block.language, block.text, block.line) for block in blocks(page)] == [
        ("sh", "one\n", 2),
        ("console", "three\n", 11),
    ]
