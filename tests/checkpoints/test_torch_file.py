"""Files of torch.save read without torch: every layout, view and dtype, and damage."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_infer.checkpoints.pickles.torch_file import TensorRef, open_torch_file
from offline_infer.errors import CheckpointError, UnsafePickleError

torch = pytest.importorskip("torch")


def tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(40)
    return {
        "whole": base,
        "view with an offset, transposed": base[3:23].view(4, 5).t(),
        "every third": base[1::3],
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "broadcast": torch.ones(1).expand(5, 5),
        "bfloat16": torch.randn(3, 2).bfloat16(),
        "float16": torch.randn(2).half(),
        "float64": torch.randn(2).double(),
        "int8": torch.tensor([-3, 3], dtype=torch.int8),
        "uint8": torch.tensor([3, 255], dtype=torch.uint8),
        "uint16": torch.arange(5).to(torch.uint16),
        "int16": torch.tensor([-3], dtype=torch.int16),
        "int32": torch.tensor([-(2**30)], dtype=torch.int32),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(2, 2, dtype=torch.complex64),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path: Path, legacy: bool) -> None:
    saved = tensors()
    path = tmp_path / "x.pth"
    torch.save(
        {"state": OrderedDict(saved), "other": [1, np.float32(2)]}, path, _use_new_zipfile_serialization=not legacy
    )
    file = open_torch_file(path)
    assert file.content["other"] == [1, 2.0]
    arrays = file.arrays(file.content["state"])
    assert list(arrays) == list(saved)
    for name, tensor in saved.items():
        expected = tensor.detach()
        expected = (expected.float() if expected.dtype == torch.bfloat16 else expected).numpy()
        assert arrays[name].dtype == expected.dtype, name
        assert arrays[name].shape == expected.shape, name
        assert np.array_equal(arrays[name], expected), name
        assert arrays[name].flags.c_contiguous, name


def test_state_dicts_of_modules_and_their_metadata(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    torch.save(module.state_dict(), tmp_path / "x.pth")
    file = open_torch_file(tmp_path / "x.pth")
    assert type(file.content) is dict  # torch's OrderedDict carries _metadata; it is dropped
    for name, tensor in module.state_dict().items():
        assert np.array_equal(file.array(file.content[name]), tensor.numpy())


def test_equal_references_share_one_array(tmp_path: Path) -> None:
    weight = torch.randn(8)
    torch.save({"a": weight, "b": weight, "c": weight[:4]}, tmp_path / "x.pth")
    file = open_torch_file(tmp_path / "x.pth")
    arrays = file.arrays(file.content)
    assert arrays["a"] is arrays["b"]
    assert np.array_equal(arrays["c"], arrays["a"][:4])


@pytest.mark.parametrize("order", ["big", "little"])
def test_the_byte_order_record_is_obeyed(tmp_path: Path, order: str) -> None:
    values = np.array([1.5, -2.25, 1e-3], np.float32)
    torch.save({"x": torch.from_numpy(values)}, tmp_path / "native.pth")
    with zipfile.ZipFile(tmp_path / "native.pth") as source, zipfile.ZipFile(tmp_path / "x.pth", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("/byteorder"):
                data = order.encode()
            elif "/data/" in name:
                data = values.astype(">f4" if order == "big" else "<f4").tobytes()
            target.writestr(name, data)
    array = open_torch_file(tmp_path / "x.pth").array(TensorRef(*_reference(tmp_path / "x.pth")))
    assert array.dtype == np.float32
    assert array.dtype.isnative
    assert array.tolist() == values.tolist()


def _reference(path: Path) -> tuple[Any, ...]:
    tensor = open_torch_file(path).content["x"]
    return (tensor.storage, tensor.dtype, tensor.offset, tensor.shape, tensor.stride)


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(UnsafePickleError, match=r"x\.pth.*torch\.nn\.modules\.linear\.Linear"):
        open_torch_file(tmp_path / "x.pth")


class Command:
    def __reduce__(self) -> Any:
        import os

        return (os.system, ("touch /nonexistent/x",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_file_is_refused(tmp_path: Path, legacy: bool) -> None:
    content = {"state_dict": {"w": torch.ones(2)}, "epoch": Command()}
    torch.save(content, tmp_path / "x.model", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafePickleError, match=r"x\.model.*system"):
        open_torch_file(tmp_path / "x.model")


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files_are_named(tmp_path: Path, legacy: bool) -> None:
    whole = io.BytesIO()
    torch.save({"a": torch.randn(50), "b": torch.arange(9)}, whole, _use_new_zipfile_serialization=not legacy)
    data = whole.getvalue()
    path = tmp_path / "cut.model"
    for length in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.model"):
            open_torch_file(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_damage_is_an_error_or_an_answer_never_a_crash(tmp_path: Path, legacy: bool) -> None:
    whole = io.BytesIO()
    torch.save({"a": torch.randn(6, 4).t(), "b": torch.arange(9)}, whole, _use_new_zipfile_serialization=not legacy)
    data = whole.getvalue()
    generator = np.random.default_rng(1)
    path = tmp_path / "x.model"
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(data)
        for position in generator.integers(0, len(data), size=2):
            damaged[position] = int(generator.integers(0, 256))
        path.write_bytes(bytes(damaged))
        try:
            file = open_torch_file(path)
            for value in file.content.values():
                if isinstance(value, TensorRef):
                    assert file.array(value).size <= 1000
            outcomes.add("read")
        except (CheckpointError, AttributeError) as error:
            outcomes.add(type(error).__name__)
    assert "CheckpointError" in outcomes


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, tmp_path / "x.pth")
    data = bytearray((tmp_path / "x.pth").read_bytes())
    position = data.index(bytes(2000)) + 1000
    data[position] = 1
    (tmp_path / "x.pth").write_bytes(bytes(data))
    file = open_torch_file(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="checksum"):
        file.array(file.content["x"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"offset": 39}, "reaches"),
        ({"shape": (41,), "stride": (1,)}, "reaches"),
        ({"shape": (2**40, 2**40), "stride": (0, 0)}, "larger than its storage"),
        ({"shape": (2, 2), "stride": (100, 1)}, "reaches"),
        ({"dtype": "float64"}, "reaches"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    import dataclasses

    torch.save({"x": torch.randn(40)}, tmp_path / "x.pth")
    file = open_torch_file(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=why):
        file.array(dataclasses.replace(file.content["x"], **change))


def test_files_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="plain pickle"):
        open_torch_file(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty"):
        open_torch_file(path)
    path.write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="not a file written by torch"):
        open_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(CheckpointError, match="not one written by torch"):
        open_torch_file(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_torch_file(tmp_path / "absent.pth")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as source,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        open_torch_file(tmp_path / "y.pth")
