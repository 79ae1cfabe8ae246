"""A graph is compared with its record when it is opened, every time, whatever the bundle said when it was exported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer import digests, private
from offline_infer.bundles.bundle import Bundle, save
from offline_infer.bundles.opening import open_fold
from offline_infer.engines.base import EngineOptions
from offline_infer.errors import BundleError
from offline_infer.predict.model import load


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "offline_infer" / "private"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "bundle"
    folder.mkdir()
    return save(with_graphs(with_outputs(tiny_spec(folds=("0", "1"))), folder), folder)


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if some seconds had passed since the files were written."""
    now = digests.time.time_ns()
    monkeypatch.setattr(digests.time, "time_ns", lambda: now + 10**10)


def test_what_the_bundle_knows_is_given_to_the_engine(bundle: Bundle) -> None:
    with open_fold(bundle, "1", "fake", EngineOptions()) as session:
        assert session.info.kept == ("logits",)
        assert session.info.input_shape == (1, 1, 8, 12, 16)


def test_a_changed_graph_is_not_opened(bundle: Bundle) -> None:
    path = bundle.graph_path("0")
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"fold_0\.onnx was changed.*the bundle says [0-9a-f]{16}"):
        open_fold(bundle, "0", "fake", EngineOptions())
    with pytest.raises(BundleError, match="was changed"), load(bundle.folder, engine="fake") as model:
        _ = model.sessions
    open_fold(bundle, "1", "fake", EngineOptions()).close()


def test_a_digest_is_remembered_until_the_file_changes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    read: list[Path] = []
    real = digests.sha256_file

    def counted(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(digests, "sha256_file", counted)
    for _ in range(3):
        open_fold(bundle, "0", "fake", EngineOptions()).close()
    assert read == [bundle.graph_path("0")]
    path = bundle.graph_path("0")
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # size, inode and the time of change are as before
    with pytest.raises(BundleError, match="was changed"):
        open_fold(bundle, "0", "fake", EngineOptions())


def test_a_file_that_was_just_written_is_not_remembered(bundle: Bundle, home: Path) -> None:
    open_fold(bundle, "0", "fake", EngineOptions()).close()
    assert not (home / "digests.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 1}', '{"x": "not a digest"}', "\udcff"])
def test_a_damaged_record_is_no_record(
    bundle: Bundle, home: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    settled(monkeypatch)
    private.private_folder(home)
    (home / "digests.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    open_fold(bundle, "0", "fake", EngineOptions()).close()
    assert bundle.graph("0").sha256 in (home / "digests.json").read_text()


def test_a_record_that_others_may_write_is_not_believed(
    bundle: Bundle, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(monkeypatch)
    open_fold(bundle, "0", "fake", EngineOptions()).close()
    path = bundle.graph_path("0")
    path.write_bytes(b"x" * path.stat().st_size)
    forged = {digests.state_of(path).key: bundle.graph("0").sha256}
    digests.write_json(home / "digests.json", forged)
    open_fold(bundle, "0", "fake", EngineOptions()).close()  # as if this user had remembered it
    home.chmod(0o777)
    with pytest.raises(BundleError, match="was changed"):
        open_fold(bundle, "0", "fake", EngineOptions())


def test_another_input_than_the_bundle_says(tmp_path: Path) -> None:
    options = EngineOptions(extra={"shape": "1,1,4,4,4", "classes": "3"})
    folder = tmp_path / "other"
    folder.mkdir()
    bundle = save(with_graphs(with_outputs(tiny_spec()), folder), folder)
    with pytest.raises(BundleError, match=r"takes an input of shape \(1, 1, 4, 4, 4\), the bundle says"):
        open_fold(bundle, "0", "fake", options)


def test_a_graph_that_changes_while_it_is_opened(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from offline_infer.engines import fake

    real = fake.FakeEngine.open

    def slow(self: Any, graph: Path, options: EngineOptions) -> Any:
        graph.write_bytes(b"something else")
        return real(self, graph, options)

    monkeypatch.setattr(fake.FakeEngine, "open", slow)
    with pytest.raises(BundleError, match="while it was opened"):
        open_fold(bundle, "0", "fake", EngineOptions())


def test_the_key_is_made_once_and_private(home: Path) -> None:
    key = private.user_key()
    assert len(key) == private.KEY_BYTES
    assert private.user_key() == key
    assert (home / "key").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in home.iterdir()] == ["key"]
    (home / "key").chmod(0o666)
    with pytest.raises(private.NotPrivateError, match="written by other users"):
        private.user_key()
    (home / "key").unlink()
    (home / "key").symlink_to("/etc/hostname")
    with pytest.raises(private.NotPrivateError):
        private.user_key()


def test_links_and_files_are_no_private_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    for name in ("link", "file", "file/below"):
        with pytest.raises(private.NotPrivateError):
            private.private_folder(tmp_path / name)


def test_negated_weights_do_not_predict(tmp_path: Path) -> None:
    """The finding this exists for: a graph whose weights were negated ran under the recorded verification."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    spec = with_outputs(tiny_spec(patch=(4, 6, 8)))
    weight = np.random.default_rng(0).standard_normal((3, 1, 1, 1, 1)).astype(np.float32)
    ports = [
        helper.make_tensor_value_info("image", 1, [1, 1, 4, 6, 8]),
        helper.make_tensor_value_info("logits", 1, [1, 3, 4, 6, 8]),
    ]
    nodes = [helper.make_node("Conv", ["image", "w"], ["logits"])]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    bundle = save(with_graphs(spec, tmp_path, content=model.SerializeToString()[:-1]), tmp_path)
    path = bundle.graph_path("0")
    path.write_bytes(model.SerializeToString())
    record = bundle.spec.graphs[0].model_copy(update={"sha256": digests.sha256_file(path)})
    bundle = save(bundle.spec.model_copy(update={"graphs": (record,)}), tmp_path)
    with open_fold(bundle, "0", "openvino", EngineOptions(threads=1)) as session:
        session.run(np.ones((1, 1, 4, 6, 8), np.float32))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(-weight, "w"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="was changed"):
        open_fold(bundle, "0", "openvino", EngineOptions(threads=1))
