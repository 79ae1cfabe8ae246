"""Manifest, signature and ``inspect --verify``: what was checked is said, and what does not agree is named."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.bundles.bundle import Bundle, save
from offline_infer.bundles.checking import check_bundle
from offline_infer.bundles.manifest import MANIFEST, SIGNATURE, check_manifest, read_manifest
from offline_infer.bundles.signature import check_signature, sign_bundle
from offline_infer.cli import main
from offline_infer.errors import BundleError, UsageError
from offline_infer.graph.tiny import single_operator


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle whose graph is a real one."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    weight = np.ones((3, 1, 1, 1, 1), np.float32)
    graph = single_operator("Conv", (1, 1, 8, 12, 16), weight, (1, 3, 8, 12, 16))
    spec = with_graphs(with_outputs(tiny_spec()), folder, content=graph)
    (folder / "fold_0.onnx").write_bytes(graph)
    from offline_infer.files import sha256_file

    record = spec.graphs[0].model_copy(update={"sha256": sha256_file(folder / "fold_0.onnx")})
    return save(spec.model_copy(update={"graphs": (record,)}), folder)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path, "mine")


def key_pair(folder: Path, name: str, curve: str = "SECP256R1", password: bytes | None = None) -> tuple[Path, Path]:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    lock = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, lock))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_the_manifest_covers_every_file_and_other_programs_read_it(bundle: Bundle) -> None:
    assert set(read_manifest(bundle.folder) or {}) == {"bundle.json", "fold_0.onnx"}
    checked = check_manifest(bundle.folder, frozenset())
    assert checked is not None
    assert checked.agreeing == ("bundle.json", "fold_0.onnx")
    assert checked.faults == []
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--status", "-c", MANIFEST], cwd=bundle.folder, check=True)


def test_a_changed_specification_is_noticed(bundle: Bundle) -> None:
    path = bundle.folder / "bundle.json"
    path.write_text(path.read_text().replace('"std": 60.0', '"std": 61.0'))
    changed = Bundle.load(bundle.folder)
    with pytest.raises(BundleError, match=r"bundle\.json was changed"):
        check_bundle(changed)


@pytest.mark.parametrize(
    "line", ["x", "0" * 64 + "  ../x", "0" * 64 + "  /etc/passwd", "0" * 64 + "  a/../../x", "g" * 64 + "  a", "\u00fc"]
)
def test_damaged_manifests(bundle: Bundle, line: str) -> None:
    (bundle.folder / MANIFEST).write_text(line + "\n", encoding="utf-8")
    with pytest.raises(BundleError, match=MANIFEST):
        check_bundle(bundle)


def test_bundles_of_before_have_no_manifest(bundle: Bundle) -> None:
    (bundle.folder / MANIFEST).unlink()
    assert any("no MANIFEST" in line for line in check_bundle(bundle).open)


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_a_signature_says_who_signed_what(bundle: Bundle, tmp_path: Path, curve: str) -> None:
    private, public = key_pair(tmp_path, "k", curve)
    sign_bundle(bundle, private)
    found = check_signature(bundle.folder, public)
    assert found is not None
    assert found.checked
    assert found.faults == ()
    assert found.files == 3  # bundle.json, the graph and the manifest
    unchecked = check_signature(bundle.folder, None)
    assert unchecked is not None
    assert (unchecked.key, unchecked.checked) == (found.key, False)


def test_what_a_signature_does_not_let_through(bundle: Bundle, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    sign_bundle(bundle, private)

    def faults(key: Path = public) -> str:
        found = check_signature(bundle.folder, key)
        assert found is not None
        return "; ".join(found.faults)

    (bundle.folder / "precision_checks.json").write_text("{}")  # grows with use, and is no part of what is signed
    assert faults() == ""
    assert "another key" in faults(key_pair(tmp_path, "other")[1])
    (bundle.folder / "extra.bin").write_bytes(b"x")
    assert faults() == "extra.bin was added after signing"
    (bundle.folder / "extra.bin").unlink()
    graph = (bundle.folder / "fold_0.onnx").read_bytes()
    (bundle.folder / "fold_0.onnx").write_bytes(graph[:-1] + b"x")
    assert "fold_0.onnx was changed after signing" in faults()
    (bundle.folder / "fold_0.onnx").unlink()
    assert "fold_0.onnx is missing" in faults()
    (bundle.folder / "fold_0.onnx").write_bytes(graph)
    record = json.loads((bundle.folder / SIGNATURE).read_text())
    record["dsseEnvelope"]["payload"] = "e30="
    for damaged in (json.dumps(record), "{}", "[]", "no json"):
        (bundle.folder / SIGNATURE).write_text(damaged)
        with pytest.raises(BundleError, match=SIGNATURE):
            check_signature(bundle.folder, public)


def test_a_statement_that_was_changed_together_with_the_files(bundle: Bundle, keys: tuple[Path, Path]) -> None:
    import base64

    sign_bundle(bundle, keys[0])
    path = bundle.folder / SIGNATURE
    record = json.loads(path.read_text())
    statement = base64.b64decode(record["dsseEnvelope"]["payload"])
    forged = statement.replace(b"fold_0.onnx", b"fold_9.onnx")
    record["dsseEnvelope"]["payload"] = base64.b64encode(forged).decode()
    path.write_text(json.dumps(record))
    found = check_signature(bundle.folder, keys[1])
    assert found is not None
    assert found.faults == ("it does not agree with its own statement",)


def test_keys_that_cannot_be_used(bundle: Bundle, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "locked", password=b"secret")
    with pytest.raises(UsageError, match="cannot be used as a private key"):
        sign_bundle(bundle, private)
    sign_bundle(bundle, private, b"secret")
    (tmp_path / "text").write_text("no key")
    for key in (tmp_path / "text", tmp_path / "missing", private):
        with pytest.raises(UsageError, match="public key"):
            check_signature(bundle.folder, key)
    other = key_pair(tmp_path, "odd", "SECP256K1")
    with pytest.raises(UsageError, match="P-256, P-384 or P-521"):
        sign_bundle(bundle, other[0])
    assert check_signature(bundle.folder, public) is not None


def test_the_command_line(bundle: Bundle, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    place = str(bundle.folder)
    assert main(["inspect", place, "--verify"]) == 0
    told = capsys.readouterr().out
    assert "good         SHA-256 of 2 files, bundle.json among them: as in MANIFEST.sha256" in told
    assert "not checked  not signed" in told
    assert main(["inspect", place, "--verify", "--public-key", str(keys[1])]) == 2
    assert "is not signed" in capsys.readouterr().err
    assert main(["sign", place, "--key", str(keys[0])]) == 0
    assert main(["inspect", place, "--verify", "--public-key", str(keys[1])]) == 0
    assert "over 3 files: good" in capsys.readouterr().out
    assert main(["inspect", place, "--verify", "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert record["integrity"]["signature"]["checked"] is False


def test_the_format_is_that_of_model_signing(bundle: Bundle, keys: tuple[Path, Path]) -> None:
    """Their program takes our signature, and we take theirs."""
    theirs = pytest.importorskip("model_signing")
    sign_bundle(bundle, keys[0])
    signature = bundle.folder / SIGNATURE
    verifier = theirs.verifying.Config().use_elliptic_key_verifier(public_key=keys[1])
    verifier.verify(bundle.folder, signature)
    signature.unlink()
    config = theirs.hashing.Config().set_ignored_paths(paths=[signature, bundle.folder / "precision_checks.json"])
    signer = theirs.signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(config)
    signer.sign(bundle.folder, signature)
    found = check_signature(bundle.folder, keys[1])
    assert found is not None
    assert found.faults == ()
