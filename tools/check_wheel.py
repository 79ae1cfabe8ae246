"""Build the wheel and the source archive, install the wheel in an empty environment and predict with it.

    python tools/check_wheel.py [--dist DIST] [--interpreter PYTHON ...]

Run it with the development environment, which builds the archives, exports a tiny model and keeps the expected label
map; nothing of it is visible to the empty environment. Status 0, or 1 with the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST_INSTALL_MB = 650
"""Of 2**20 bytes, as ``du -m`` counts, pip included."""
NOT_IN_A_PLAIN_INSTALL = ("torch", "onnx", "onnxruntime", "scipy", "skimage", "pandas", "networkx", "matplotlib", "PIL")
IN_THE_WHEEL = (
    "offline_infer/py.typed",
    "offline_infer/proof/report/report.html.j2",
    "offline_infer/demo/model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1/plans.pkl",
)
IN_THE_ARCHIVE = (
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "docs/architecture.md",
    "docs/predict.md",
    "docs/images/demo.png",
    "tests/conftest.py",
    "examples/liver_ascend/run_all.sh",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the archives go (default: dist)")
    parser.add_argument(
        "--interpreter",
        nargs="+",
        default=[sys.executable],
        help="the Pythons to try the wheel with; one that is absent is skipped with a line that says so",
    )
    options = parser.parse_args(arguments)
    wheel, archive = build(options.dist)
    check_contents(wheel, archive)
    with tempfile.TemporaryDirectory(prefix="offline_infer_wheel_") as temporary:
        sample = make_sample(Path(temporary) / "sample")
        for number, interpreter in enumerate(options.interpreter):
            if shutil.which(interpreter) is None or not runs(interpreter):
                print(f"{interpreter}: not on this machine, skipped")
                continue
            try_wheel(wheel, interpreter, Path(temporary) / f"environment_{number}", sample)


def build(dist: Path) -> tuple[Path, Path]:
    """The wheel and the source archive, made anew; setuptools' own folders are left out of the working tree."""
    with tempfile.TemporaryDirectory(prefix="offline_infer_build_") as temporary:
        tree = Path(temporary) / "tree"
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        for name in filter(None, os.fsdecode(names).split("\0")):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        fresh = Path(temporary) / "dist"
        run([sys.executable, "-m", "build", "--outdir", str(fresh), str(tree)], quiet=True)
        dist.mkdir(parents=True, exist_ok=True)
        for old in (*dist.glob("offline_infer-*.whl"), *dist.glob("offline_infer-*.tar.gz")):
            old.unlink()
        (wheel,) = fresh.glob("*.whl")
        (archive,) = fresh.glob("*.tar.gz")
        return Path(shutil.copy2(wheel, dist)), Path(shutil.copy2(archive, dist))


def check_contents(wheel: Path, archive: Path) -> None:
    """Both archives hold what users of them need."""
    with zipfile.ZipFile(wheel) as file:
        require(set(IN_THE_WHEEL), set(file.namelist()), wheel)
    with tarfile.open(archive) as file:
        require(set(IN_THE_ARCHIVE), {name.partition("/")[2] for name in file.getnames()}, archive)
    print(f"{wheel.name}, {archive.name}: complete")


def make_sample(folder: Path) -> Path:
    """A tiny exported model, an image, and what this environment predicts for it."""
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "helpers")!r}]
import numpy as np
from checkpoint_samples import v2_folder
from image_samples import save
from offline_infer.cli import main
folder = Path({str(folder)!r})
model = v2_folder(folder)
image = np.random.default_rng(0).integers(-200, 300, (9, 20, 24)).astype(np.int16)
(folder / "images").mkdir()
save(folder / "images" / "case_0000.nii.gz", image)
for arguments in (
    ["export", str(model), "-o", str(folder / "bundle"), "--quiet"],
    ["predict", str(folder / "bundle"), str(folder / "images"), str(folder / "expected"), "--quiet"],
):
    if main(arguments):
        sys.exit(f"failed: {{arguments}}")
"""
    run([sys.executable, "-c", code])
    return folder


def try_wheel(wheel: Path, interpreter: str, environment: Path, sample: Path) -> None:
    """Install the wheel and nothing else by name; then the commands a new user would type."""
    run([interpreter, "-m", "venv", str(environment)])
    python, command = environment / "bin" / "python", str(environment / "bin" / "offline-infer")
    run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], quiet=True)
    size = sum(path.lstat().st_size for path in environment.rglob("*") if not path.is_symlink()) / 2**20
    if size > LARGEST_INSTALL_MB:
        sys.exit(f"a plain install takes {size:.0f} MB, more than the {LARGEST_INSTALL_MB} MB allowed")
    absent = f"import importlib.util as u; print([n for n in {NOT_IN_A_PLAIN_INSTALL!r} if u.find_spec(n)])"
    found = run([str(python), "-c", absent], quiet=True).strip()
    if found != "[]":
        sys.exit(f"a plain install brings {found}, which only extras should")
    bundle, out = str(sample / "bundle"), environment / "out"
    for arguments in (
        ["--version"],
        ["demo", "--help"],
        ["doctor", "--json"],
        ["inspect", bundle, "--verify"],
        ["predict", bundle, str(sample / "images"), str(out), "--quiet"],
        ["compare", str(out), str(sample / "expected")],
        ["evaluate", str(out), str(sample / "expected")],
    ):
        run([command, *arguments], quiet=True)
    (produced,) = out.glob("case*.nii.gz")
    same = (
        "import sys, SimpleITK as s; a, b = (s.GetArrayFromImage(s.ReadImage(p)) for p in sys.argv[1:]);"
        " sys.exit(int((a != b).any() or a.max() == 0))"
    )
    run([str(python), "-c", same, str(produced), str(sample / "expected" / produced.name)])
    version = run([str(python), "--version"], quiet=True).strip()
    print(f"{version}: a plain install of {size:.0f} MB predicts the expected label map")


def runs(interpreter: str) -> bool:
    """Whether it starts; a version manager's shim may be there without its Python."""
    return subprocess.run([interpreter, "-c", ""], capture_output=True, check=False).returncode == 0


def require(wanted: set[str], found: set[str], archive: Path) -> None:
    if missing := wanted - found:
        sys.exit(f"{archive.name} lacks {', '.join(sorted(missing))}")


def run(command: Sequence[str], *, quiet: bool = False) -> str:
    """Run a command away from the working tree, so that only what is installed can be imported; its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tempfile.gettempdir(), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"status {done.returncode}: {' '.join(command)[:300]}\n{done.stdout}{done.stderr}")
    if not quiet:
        print(done.stdout, end="")
    return done.stdout


if __name__ == "__main__":
    main()
