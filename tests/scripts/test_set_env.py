"""``scripts/set_env.sh`` on made-up toolkit layouts, in every shell this machine has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "set_env.sh"
# "sh" is one of the others under another name.
SHELLS = [shell for shell in ("bash", "dash", "zsh", "busybox") if shutil.which(shell)]
MACHINE = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()


def source(shell: str, home: Path, script: str = "", **environment: str) -> tuple[int, dict[str, str], str]:
    """Source the script with made-up roots, then run ``script``; status of sourcing, variables, what was said."""
    words = [shutil.which(shell) or shell, *(["sh"] if shell == "busybox" else [])]
    code = f'{script}\n. "{SCRIPT}"\necho "STATUS=$?"\nenv\n'
    values = {"PATH": "/usr/bin:/bin", "HOME": str(home), "OFFLINE_INFER_ASCEND_ROOTS": str(home / "Ascend")}
    done = subprocess.run(
        [*words, "-c", code], capture_output=True, text=True, env={**values, **environment}, check=False
    )
    lines = done.stdout.splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("set_env:"))
    said = "\n".join(line for line in (*lines, *done.stderr.splitlines()) if line.startswith("set_env:"))
    assert "STATUS" in variables, f"the shell was ended: {done.stderr}"
    return int(variables["STATUS"]), variables, said


def toolkit(folder: Path, version: str, script: Path | None = None) -> None:
    """A toolkit with an atc; ``script``: its set_env.sh, which adds to the lists each time, as the vendor's does."""
    (folder / "compiler" / "bin").mkdir(parents=True)
    (folder / "opp").mkdir()
    atc = folder / "compiler" / "bin" / "atc"
    atc.write_text("#!/bin/sh\n")
    atc.chmod(0o755)
    (folder / "version.cfg").write_text(f"# version: 1.0\ntoolkit_running_version=[{version}:{version}]\n")
    if script is not None:
        script.write_text(
            f"export ASCEND_TOOLKIT_HOME={folder}\n"
            "export LD_LIBRARY_PATH=${ASCEND_TOOLKIT_HOME}/lib64:$LD_LIBRARY_PATH\n"
            "export PATH=${ASCEND_TOOLKIT_HOME}/bin:${ASCEND_TOOLKIT_HOME}/compiler/bin:$PATH\n"
            "export VENDOR_SCRIPT_RAN=1\n"
        )


@pytest.mark.parametrize("shell", SHELLS)
def test_each_layout_is_found_and_named(shell: str, tmp_path: Path) -> None:
    layouts = {
        "8.5.0": ("cann", "cann/set_env.sh"),
        "8.0.RC2": ("ascend-toolkit/latest", "ascend-toolkit/set_env.sh"),
        "6.0.RC1": ("nnae/latest", "nnae/set_env.sh"),
    }
    for version, (place, script) in layouts.items():
        root = tmp_path / version / "Ascend"
        toolkit(root / place, version, root / script)
        status, variables, said = source(shell, tmp_path / version)
        assert status == 0
        assert variables["ASCEND_TOOLKIT_HOME"] == str(root / place)
        assert variables["VENDOR_SCRIPT_RAN"] == "1"
        assert f"CANN {version} in {root / place}" in said
        assert f"atc: {root / place}/compiler/bin/atc" in said


@pytest.mark.parametrize("shell", SHELLS)
def test_the_newest_layout_wins_and_the_environment_over_all(shell: str, tmp_path: Path) -> None:
    root = tmp_path / "Ascend"
    toolkit(root / "cann", "8.5.0", root / "cann" / "set_env.sh")
    toolkit(root / "ascend-toolkit" / "latest", "8.0.RC2", root / "ascend-toolkit" / "set_env.sh")
    assert "CANN 8.5.0" in source(shell, tmp_path)[2]
    other = tmp_path / "opt" / "ascend-toolkit" / "latest"
    toolkit(other, "7.0.0", other.parent / "set_env.sh")
    _, variables, said = source(shell, tmp_path, ASCEND_TOOLKIT_HOME=str(other))
    assert f"CANN 7.0.0 in {other} (layout: named by the environment)" in said
    assert variables["VENDOR_SCRIPT_RAN"] == "1"


@pytest.mark.parametrize("shell", SHELLS)
def test_sourcing_twice_adds_nothing(shell: str, tmp_path: Path) -> None:
    root = tmp_path / "Ascend"
    toolkit(root / "ascend-toolkit" / "latest", "8.0.RC2", root / "ascend-toolkit" / "set_env.sh")
    _, once, _ = source(shell, tmp_path)
    _, twice, _ = source(shell, tmp_path, script=f'. "{SCRIPT}"')
    for name in ("PATH", "LD_LIBRARY_PATH"):
        assert once[name] == twice[name]
        parts = once[name].split(":")
        assert len(parts) == len(set(parts))
        assert "" not in parts
    # Nothing of the script stays behind in the shell.
    assert not [name for name in once if name.startswith("_oi_")]


@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_found_is_said_and_the_shell_lives_on(shell: str, tmp_path: Path) -> None:
    for strict in ("", "set -u"):
        status, variables, said = source(shell, tmp_path, script=strict)
        assert status == 1
        assert "no Ascend toolkit found" in said
        assert "ASCEND_TOOLKIT_HOME" in said
        assert variables["PATH"] == "/usr/bin:/bin"


@pytest.mark.parametrize("shell", SHELLS)
def test_strict_shells_and_broken_vendor_scripts_survive(shell: str, tmp_path: Path) -> None:
    root = tmp_path / "Ascend"
    script = root / "ascend-toolkit" / "set_env.sh"
    toolkit(root / "ascend-toolkit" / "latest", "7.0.0", script)
    script.write_text(script.read_text() + 'export X="$NOT_SET_ANYWHERE"\nfalse\ntrue\n')
    status, variables, _ = source(shell, tmp_path, script="set -eu")
    assert status == 0
    assert variables["VENDOR_SCRIPT_RAN"] == "1"
    # A script that ends the shell or is not this shell's language is not let in; its folder is used all the same.
    script.write_text("exit 3\n")
    status, variables, said = source(shell, tmp_path)
    assert status == 0
    assert "variables set by this script" in said
    assert variables["ASCEND_OPP_PATH"] == f"{root}/ascend-toolkit/latest/opp"
    assert f"{root}/ascend-toolkit/latest/compiler/bin" in variables["PATH"].split(":")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_layout_of_five_zero_gets_its_variables(shell: str, tmp_path: Path) -> None:
    home = tmp_path / "Ascend" / "ascend-toolkit" / "latest"
    for name in (
        "fwkacllib/lib64",
        "fwkacllib/ccec_compiler/bin",
        "atc/lib64",
        "atc/bin",
        "toolkit/python/site-packages",
        "pyACL/python/site-packages/acl",
        "opp",
        "acllib/lib64/stub",
    ):
        (home / name).mkdir(parents=True)
    (home / "fwkacllib" / "version.info").write_text("Version=1.82.22.1.220\n")
    driver = tmp_path / "Ascend" / "driver" / "lib64"
    (driver / "common").mkdir(parents=True)
    status, variables, said = source(shell, tmp_path)
    assert status == 0
    assert "CANN 1.82.22.1.220" in said
    libraries = variables["LD_LIBRARY_PATH"].split(":")
    assert libraries[:2] == [str(driver), str(driver / "common")]
    assert str(home / "fwkacllib" / "lib64") in libraries
    assert str(home / "atc" / "lib64") in libraries
    assert str(home / "fwkacllib" / "ccec_compiler" / "bin") in variables["PATH"]
    assert str(home / "pyACL/python/site-packages/acl") in variables["PYTHONPATH"]
    assert variables["ASCEND_AICPU_PATH"] == str(home)
    assert variables["ASCEND_OPP_PATH"] == f"{home}/opp"
    assert variables["TOOLCHAIN_HOME"] == f"{home}/toolkit"
    assert variables["DDK_PATH"] == str(home)
    assert variables["NPU_HOST_LIB"] == f"{home}/acllib/lib64/stub"


@pytest.mark.parametrize("shell", SHELLS)
def test_without_a_driver_the_toolkits_own_libraries_serve(shell: str, tmp_path: Path) -> None:
    if Path("/usr/local/Ascend/driver").exists():
        pytest.skip("this machine has a driver")
    root = tmp_path / "Ascend"
    toolkit(root / "cann", "8.5.0", root / "cann" / "set_env.sh")
    devlib = root / "cann" / f"{MACHINE}-linux" / "devlib"
    devlib.mkdir(parents=True)
    _, variables, said = source(shell, tmp_path)
    assert variables["LD_LIBRARY_PATH"].split(":")[0] == str(devlib)
    assert "driver: none" in said


@pytest.mark.parametrize("shell", SHELLS)
def test_folders_with_blanks_and_silence(shell: str, tmp_path: Path) -> None:
    root = tmp_path / "my home" / "Ascend"
    (root / "nnrt" / "latest" / "runtime" / "lib64").mkdir(parents=True)
    status, variables, said = source(shell, tmp_path / "my home")
    assert status == 0
    assert "layout: nnrt" in said
    assert "atc: not in this package" in said
    assert str(root / "nnrt/latest/runtime/lib64") in variables["LD_LIBRARY_PATH"].split(":")
    assert source(shell, tmp_path / "my home", OFFLINE_INFER_QUIET="1")[2] == ""


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("releases", "newest"),
    [
        (("9.0.0", "10.0.0"), "10.0.0"),
        (("8.0.RC3", "8.0.0", "8.0.RC2"), "8.0.0"),
        (("5.1.RC1.alpha001", "5.1.RC1"), "5.1.RC1"),
        (("8.0.RC2", "8.0.RC10"), "8.0.RC10"),
    ],
)
def test_of_several_releases_the_newest_is_taken(
    shell: str, releases: tuple[str, ...], newest: str, tmp_path: Path
) -> None:
    root = tmp_path / "Ascend"
    for release in releases:
        toolkit(root / "ascend-toolkit" / release, release)
        (root / "ascend-toolkit" / release / "compiler").mkdir(exist_ok=True)
    status, variables, _ = source(shell, tmp_path)
    assert status == 0
    assert variables["ASCEND_TOOLKIT_HOME"] == str(root / "ascend-toolkit" / newest)
