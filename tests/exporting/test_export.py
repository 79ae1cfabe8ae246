"""Export: small torch networks become bundles whose every engine gives the network's answer, or nothing at all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specimens import tiny_spec

from offline_infer import graph as passes
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.canary import require_canary
from offline_infer.bundles.opening import open_fold
from offline_infer.cli import main
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import BundleError, ExportError, UsageError
from offline_infer.events import Event
from offline_infer.exporting import bundles as exporting
from offline_infer.exporting import comparing, tracing
from offline_infer.exporting.bundles import export_network
from offline_infer.exporting.options import ExportOptions
from offline_infer.exporting.verification import compare, probe_inputs, verdict
from offline_infer.files import sha256_file

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
nn = torch.nn
ENGINES = [name for name in ("openvino", "onnxruntime") if get_engine(name).available() is None]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):  # type: ignore[misc]
    """A two-level U-Net with everything the family uses; optionally with two heads."""

    def __init__(
        self, channels: int = 1, classes: int = 3, *, dims: int = 3, deep: bool = False, gain: float = 1
    ) -> None:
        super().__init__()
        kind = {2: (nn.Conv2d, nn.InstanceNorm2d, nn.ConvTranspose2d, nn.Dropout2d)}.get(
            dims, (nn.Conv3d, nn.InstanceNorm3d, nn.ConvTranspose3d, nn.Dropout3d)
        )
        conv, norm, up, drop = kind

        def block(a: int, b: int, stride: int = 1) -> Any:
            parts = [conv(a, b, 3, stride, 1), drop(0.3), norm(b, affine=True), nn.LeakyReLU(0.01, inplace=True)]
            return nn.Sequential(*parts)

        self.deep = deep
        self.down = block(channels, 6)
        self.bottom = block(6, 8, 2)
        self.up = up(8, 6, 2, 2, bias=False)
        self.join = block(12, 6)
        self.head = conv(6, classes, 1, bias=False)
        self.head1 = conv(8, classes, 1, bias=False)
        with torch.no_grad():
            self.head.weight.mul_(gain)

    def forward(self, x: Any) -> Any:
        a = self.down(x)
        b = self.bottom(a)
        out = self.head(self.join(torch.cat([self.up(b), a], 1)))
        return (out, self.head1(b)) if self.deep else out


def maker(make: Callable[[], Any] = Net, seed: int = 0) -> Callable[[str], Any]:
    """A network per fold, the same at every call."""

    def network(fold: str) -> Any:
        torch.manual_seed(seed + int(fold))
        return make().eval()

    return network


def answer(network: Any, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        out = network(torch.from_numpy(image))
    return np.asarray((out[0] if isinstance(out, tuple) else out).numpy())


def partials(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_gives_the_networks_answer_on_every_engine(tmp_path: Path) -> None:
    events: list[Event] = []
    spec = tiny_spec(folds=("0", "1"))
    bundle = export_network(spec, maker(), tmp_path / "b", sink=events.append)
    assert partials(tmp_path) == ["b"]
    assert partials(tmp_path / "b") == ["MANIFEST.sha256", "bom.cdx.json", "bundle.json", "fold_0.onnx", "fold_1.onnx"]
    assert Bundle.load(tmp_path / "b", verify_hashes=True).spec == bundle.spec
    assert bundle.folds == ("0", "1")
    image = np.random.default_rng(7).standard_normal(spec.input_shape).astype(np.float32)
    for fold in bundle.folds:
        expected = answer(maker()(fold), image)
        for name in ENGINES:
            with get_engine(name).open(bundle.graph_path(fold), EngineOptions(threads=1)) as session:
                assert session.info.output_names == ("logits",)
                np.testing.assert_allclose(session.run(image), expected, atol=1e-4)
    steps = [event.data["step"] for event in events if event.kind == "progress"]
    assert steps == ["graph", "reference", *ENGINES] * 2
    assert [(e.done, e.total) for e in events if e.kind == "progress"][-1] == (len(steps), len(steps))


@pytest.mark.parametrize("absent", ["torch", "onnx"])
def test_a_missing_package_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], absent: str
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    nothing = tmp_path / "plans.json"
    nothing.write_text("not even a checkpoint")
    for command in (
        ["export", str(tmp_path), "-o", str(tmp_path / "b")],
        ["run", str(tmp_path), str(tmp_path), str(tmp_path / "b")],
    ):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert f"export needs {absent}, not installed here" in message
        assert "pip install 'offline-infer[export]'" in message
    assert not (tmp_path / "b").exists()


def test_two_exports_are_equal_to_the_byte(tmp_path: Path) -> None:
    """The same checkpoint and the same versions give the same bundle, whenever it is made."""
    for name in ("a", "b"):
        export_network(tiny_spec(folds=("0", "1")), maker(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_what_was_measured_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_network(tiny_spec(), maker(), tmp_path / "b")
    assert main(["inspect", str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    for name in ENGINES:
        assert re.search(rf"{name} \S+: max \|difference\| \S+ of logits up to \S+, \d+ of 3,072 labels changed", told)
    assert "canary" in told
    export_network(tiny_spec(), maker(), tmp_path / "c", options=ExportOptions(verify=False))
    assert main(["inspect", str(tmp_path / "c"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verified"] == {"fold_0.onnx": []}
    assert record["made_with"]["torch"] == version("torch")  # torch itself adds what it was built with


@pytest.mark.parametrize("previous", [(), (1, 2)])
def test_a_bundle_carries_a_canary(tmp_path: Path, previous: tuple[int, ...]) -> None:
    spec = tiny_spec(previous=previous)
    bundle = export_network(spec, maker(lambda: Net(spec.input_channels)), tmp_path / "b")
    for name in ENGINES:
        with open_fold(bundle, "0", name, EngineOptions(threads=1)) as session:
            result = require_canary(bundle, "0", "fp32", session)
            assert result is not None
            assert result.passed


def test_a_lone_graph_whose_weights_were_exchanged_is_refused(tmp_path: Path) -> None:
    bundle = export_network(tiny_spec(), maker(), tmp_path / "b", options=ExportOptions(verify=False))
    path = bundle.graph_path("0").rename(tmp_path / "lone.onnx")
    assert Bundle.load(path).lone == path
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save(model, path)  # with all its metadata
    with pytest.raises(BundleError, match="was changed after it was exported"):
        Bundle.load(path)


def test_the_record_of_a_verification(tmp_path: Path) -> None:
    bundle = export_network(tiny_spec(), maker(), tmp_path / "b")
    record = bundle.spec.graphs[0].verification
    assert record is not None
    assert record["passed"] is True
    assert record["opset"] == 17
    assert record["ops"] == {"Conv": 4, "InstanceNormalization": 3, "LeakyRelu": 3, "Concat": 1, "ConvTranspose": 1}
    assert record["torch"] == torch.__version__
    assert record["activation_peak"]["value"] > 0
    assert record["activation_peak"]["module"] in dict(Net().named_modules())
    assert [engine["engine"] for engine in record["engines"]] == ENGINES
    voxels = 8 * 12 * 16
    for engine in record["engines"]:
        assert engine["version"]
        assert set(engine["inputs"]) == {"normal", "anatomy"}
        for told in engine["inputs"].values():
            assert told["voxels"] == voxels
            assert 0 < told["max_diff"] < 1e-4
            assert told["p999_diff"] <= told["max_diff"]
            assert told["flips"] < 5
            assert told["logit_scale"] > 0.1
    json.dumps(record, allow_nan=False)


def test_without_verification_the_record_is_null(tmp_path: Path) -> None:
    bundle = export_network(tiny_spec(), maker(), tmp_path / "b", options=ExportOptions(verify=False))
    assert bundle.spec.graphs[0].verification is None
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["graphs"][0]["verification"] is None


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        bundle = export_network(tiny_spec(), maker(), tmp_path / name, options=ExportOptions(verify=False))
        hashes.add(sha256_file(bundle.graph_path("0")))
    assert len(hashes) == 1
    data = bundle.graph_path("0").read_bytes()
    assert b"/test_export.py" not in data
    assert str(Path.home()).encode() not in data


def test_a_lone_graph_is_a_bundle(tmp_path: Path) -> None:
    bundle = export_network(tiny_spec(folds=("0", "1")), maker(), tmp_path / "b", options=ExportOptions(verify=False))
    lone = tmp_path / "elsewhere.onnx"
    lone.write_bytes(bundle.graph_path("1").read_bytes())
    alone = Bundle.load(lone)
    assert alone.folds == ("1",)
    assert alone.spec.graphs[0].sha256 == bundle.spec.graphs[1].sha256
    assert alone.spec.graphs[0].opset == 17
    assert alone.spec.outputs == bundle.spec.outputs


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_every_legal_opset(tmp_path: Path, opset: int) -> None:
    bundle = export_network(
        tiny_spec(), maker(), tmp_path / "b", options=ExportOptions(opset=opset, verify=opset != 17)
    )
    facts = passes.inspect_graph(bundle.graph_path("0"))
    assert facts.opset == bundle.spec.graphs[0].opset == opset
    assert facts.advice == ()


def test_illegal_options(tmp_path: Path) -> None:
    for opset in (10, 18):
        with pytest.raises(ExportError, match=f"opset {opset} cannot be written; legal: 11 to 17"):
            export_network(tiny_spec(), maker(), tmp_path / "b", options=ExportOptions(opset=opset))
    with pytest.raises(UsageError, match="legal: fp32, fp16"):
        export_network(tiny_spec(), maker(), tmp_path / "b", options=ExportOptions(precision="fp8"))
    with pytest.raises(UsageError, match="its name becomes a file's name"):
        export_network(tiny_spec(folds=("../x",)), lambda fold: Net().eval(), tmp_path / "b")
    assert partials(tmp_path) == []


def test_two_dimensions_regions_and_a_previous_stage(tmp_path: Path) -> None:
    flat = export_network(tiny_spec(patch=(16, 24)), maker(lambda: Net(dims=2)), tmp_path / "flat")
    assert flat.output.shape == (1, 3, 16, 24)
    regions = tiny_spec(channels=2, classes=2, regions=True, scheme="zscore")
    assert export_network(regions, maker(lambda: Net(2, 2)), tmp_path / "regions").output.shape[1] == 2
    cascade = export_network(tiny_spec(previous=(1, 2)), maker(lambda: Net(3)), tmp_path / "cascade")
    with get_engine(ENGINES[0]).open(cascade.graph_path("0"), EngineOptions(threads=1)) as session:
        assert session.info.input_shape == (1, 3, 8, 12, 16)


def test_deep_supervision_heads_on_request(tmp_path: Path) -> None:
    make = maker(lambda: Net(deep=True))
    one = export_network(tiny_spec(), make, tmp_path / "one", options=ExportOptions(verify=False))
    assert [(o.name, o.keep) for o in one.spec.outputs] == [("logits", True)]
    assert passes.inspect_graph(one.graph_path("0")).ops["Conv"] == 4
    both = export_network(tiny_spec(), make, tmp_path / "both", options=ExportOptions(keep_deep_supervision=True))
    assert [(o.name, o.keep, o.shape) for o in both.spec.outputs] == [
        ("logits", True, (1, 3, 8, 12, 16)),
        ("logits_1", False, (1, 3, 4, 6, 8)),
    ]
    record = both.spec.graphs[0].verification
    assert record is not None
    assert record["engines"][0]["inputs"]["normal"]["logits_1"]["max_diff"] < 1e-4
    image = probe_inputs(both.spec)["normal"]
    with get_engine(ENGINES[0]).open(both.graph_path("0"), EngineOptions(threads=1)) as session:
        np.testing.assert_allclose(session.run(image), answer(make("0"), image), atol=1e-4)


def test_fresh_weights_leave_no_identity_and_running_statistics_become_batch_norm(tmp_path: Path) -> None:
    def fresh() -> Any:
        net = Net()
        for module in net.modules():
            if isinstance(module, nn.InstanceNorm3d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        net.join[0].bias.data.zero_()
        return net

    facts = passes.inspect_graph(export_network(tiny_spec(), maker(fresh), tmp_path / "b").graph_path("0"))
    assert "Identity" not in facts.ops

    def tracking() -> Any:
        net = Net()
        net.join[2] = nn.InstanceNorm3d(6, affine=True, track_running_stats=True)
        net.join[2].running_mean.fill_(0.3)
        return net

    facts = passes.inspect_graph(export_network(tiny_spec(), maker(tracking), tmp_path / "t").graph_path("0"))
    assert facts.ops["BatchNormalization"] == 1
    assert facts.ops["InstanceNormalization"] == 2


# ---- half precision --------------------------------------------------------------------------------------------------


def test_half_precision(tmp_path: Path) -> None:
    bundle = export_network(
        tiny_spec(), maker(lambda: Net(gain=5)), tmp_path / "b", options=ExportOptions(precision="fp16")
    )
    record = bundle.spec.graphs[0]
    assert (record.file, record.precision) == ("fold_0_fp16.onnx", "fp16")
    assert bundle.graph_path("0") == bundle.graph_path("0", "fp16")
    assert record.verification is not None
    assert record.verification["half"]["kept"] == 3
    assert [engine["engine"] for engine in record.verification["engines"]] == ["torch", *ENGINES]
    for engine in record.verification["engines"]:
        for told in engine["inputs"].values():
            assert told["flips"] <= 0.005 * told["voxels"]
            assert told["max_diff"] > 1e-5
    facts = passes.inspect_graph(bundle.graph_path("0"))
    assert facts.dtypes["float16"] == 8
    assert {port.dtype for port in (*facts.inputs, *facts.outputs)} == {"float32"}
    assert Bundle.load(bundle.graph_path("0")).spec.graphs[0].precision == "fp16"
    if "onnxruntime" in ENGINES:
        options = EngineOptions(threads=1, precision="fp16")
        with get_engine("onnxruntime").open(bundle.graph_path("0", "fp16"), options) as session:
            assert session.info.precision == "fp16"


def test_activations_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    """No engine on a CPU would notice: they compute in float32."""

    def loud() -> Any:
        net = Net()
        net.down[0].weight.data.mul_(1e5)  # the norm behind it makes that invisible at the output
        return net

    export_network(tiny_spec(), maker(loud), tmp_path / "wide", options=ExportOptions(verify=False))
    with pytest.raises(ExportError, match=r"down\.0 gives values up to .*half precision ends at 65504.*precision=fp32"):
        export_network(tiny_spec(), maker(loud), tmp_path / "half", options=ExportOptions(precision="fp16"))
    assert partials(tmp_path) == ["wide"]


# ---- what must not pass ----------------------------------------------------------------------------------------------


def tampered(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Let the written graph differ from the network."""
    onnx = passes.onnx_package()
    original = tracing.trace

    def trace(*args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor).copy()
            change((tensor.name, array))
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return model

    monkeypatch.setattr(exporting, "trace", trace)


def nudge(item: Any) -> None:
    name, array = item
    if name == "head.weight":
        array.flat[0] += 0.5


def nan(item: Any) -> None:
    name, array = item
    if name == "head.weight":
        array[:] = np.inf


def zero(item: Any) -> None:
    name, array = item
    if name == "head.weight":
        array[:] = 0


@pytest.mark.parametrize(
    ("precision", "change", "words"),
    [
        ("fp32", nudge, "does not give the checkpoint's answer"),
        ("fp32", nan, "NaN"),
        ("fp16", zero, "the same everywhere"),
        ("fp16", nudge, "labels changed"),
    ],
)
def test_a_graph_that_differs_is_refused_and_the_old_bundle_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, words: str, precision: str
) -> None:
    old = export_network(tiny_spec(), maker(seed=50), tmp_path / "b", options=ExportOptions(verify=False))
    before = (tmp_path / "b" / "bundle.json").read_bytes()
    tampered(monkeypatch, change)
    with pytest.raises(ExportError, match=words):
        export_network(tiny_spec(), maker(), tmp_path / "b", options=ExportOptions(precision=precision, overwrite=True))
    assert partials(tmp_path) == ["b"]
    assert (tmp_path / "b" / "bundle.json").read_bytes() == before
    assert Bundle.load(tmp_path / "b", verify_hashes=True).spec == old.spec


def test_a_second_fold_that_fails_takes_the_first_with_it(tmp_path: Path) -> None:
    def make(fold: str) -> Any:
        return maker(lambda: Net(classes=3 if fold == "0" else 4))(fold)

    with pytest.raises(ExportError, match=r"gives float32 \(1, 4, 8, 12, 16\).*ask for float32 \(1, 3, 8, 12, 16\)"):
        export_network(tiny_spec(folds=("0", "1")), make, tmp_path / "b")
    assert partials(tmp_path) == []


def test_networks_that_cannot_be_exported(tmp_path: Path) -> None:
    class Untraceable(Net):
        def forward(self, x: Any) -> Any:
            return torch.linalg.matrix_exp(super().forward(x)[..., :3, :3])

    class Dropping(Net):
        def forward(self, x: Any) -> Any:
            return nn.functional.dropout(super().forward(x), 0.5, training=True)

    class Broken(Net):
        def forward(self, x: Any) -> Any:
            raise ValueError("no such luck")

    class Silent(Net):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * float("nan")

    for kind, words in [
        (Untraceable, "cannot export Untraceable at opset 17"),
        (Dropping, "training operators"),
        (Broken, "no such luck"),
        (Silent, "own network gives NaN"),
    ]:
        with pytest.raises(ExportError, match=words):
            export_network(tiny_spec(), maker(kind), tmp_path / "b")
    assert partials(tmp_path) == []


def test_a_taken_output_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("x")

    def never(fold: str) -> Any:
        raise AssertionError("work was begun")

    with pytest.raises(UsageError, match="not a bundle"):
        export_network(tiny_spec(), never, tmp_path / "b", options=ExportOptions(overwrite=True))


def test_no_engine_to_verify_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "ENGINES", ())
    with pytest.raises(ExportError, match="export-unverified"):
        export_network(tiny_spec(), maker(), tmp_path / "b")


# ---- tracing at a smaller size ---------------------------------------------------------------------------------------


def sizes(monkeypatch: pytest.MonkeyPatch, cap: int) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    original = torch.onnx.export

    def export(network: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(tuple(inputs[0].shape[2:]))
        return original(network, inputs, *arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", export)
    monkeypatch.setattr(tracing, "TRACED", cap)
    return seen


def test_a_large_network_is_traced_small_and_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = export_network(tiny_spec(), maker(), tmp_path / "full")
    seen = sizes(monkeypatch, 8)
    small = export_network(tiny_spec(), maker(), tmp_path / "small")
    assert seen == [(8, 8, 8)]
    assert sha256_file(full.graph_path("0")) == sha256_file(small.graph_path("0"))


def test_a_size_that_matters_is_traced_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Resizing(Net):
        def forward(self, x: Any) -> Any:
            out = super().forward(x)
            return nn.functional.interpolate(out[:, :, ::2, ::2, ::2], size=tuple(out.shape[2:]), mode="trilinear")

    class Awkward(Net):
        """Only sizes that are not 8 can be concatenated."""

        def forward(self, x: Any) -> Any:
            if x.shape[-1] == 8:
                raise ValueError("too small")
            return super().forward(x)

    seen = sizes(monkeypatch, 8)
    for kind in (Resizing, Awkward):
        seen.clear()
        bundle = export_network(tiny_spec(), maker(kind), tmp_path / kind.__name__)
        assert seen == [(8, 8, 8), (8, 12, 16)]
        assert bundle.output.shape == (1, 3, 8, 12, 16)


# ---- comparison and inputs -------------------------------------------------------------------------------------------


def logits(*channels: list[float]) -> np.ndarray[Any, Any]:
    return np.array(channels, np.float32)[None, :, :, None, None]


def test_comparison_counts_flips_and_their_margins() -> None:
    left = logits([1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.1, 0.0], [0.0, 0.5, 0.0, 1.5])
    right = left.copy()
    right[0, 0, 2], right[0, 1, 2] = 0.2, 0.0
    c = compare(left, right, regions=False)
    assert (c.voxels, c.flips) == (4, 1)
    assert c.flip_margin == pytest.approx(0.1)
    assert c.max_diff == pytest.approx(0.2)
    assert c.logit_scale == 2.0
    assert "differ by up to 0.2 where 0.002 is allowed" in str(verdict(c, "fp32"))
    assert "1 of 4 labels changed" in str(verdict(c, "fp16"))
    r = compare(left, right, regions=True)
    assert (r.flips, r.flip_margin) == (1, pytest.approx(0.1))
    same = compare(left, left, regions=False)
    assert (same.flips, same.flip_margin, same.max_diff) == (0, None, 0.0)
    assert verdict(same, "fp32") is None


def test_verdicts() -> None:
    left = logits([1.0, 0.0, 3.0], [0.0, 1.0, 0.0])
    assert "NaN" in str(verdict(compare(left, left * np.nan, regions=False), "fp32"))
    assert "same everywhere" in str(verdict(compare(left, left * 0, regions=False), "fp16"))
    black = logits([2.0, 1.0, 3.0], [0.0, 0.5, 0.0])
    assert "only background" in str(verdict(compare(left, black, regions=False), "fp16"))
    assert "only background" in str(verdict(compare(left, -np.abs(black), regions=True), "fp16"))
    json.dumps(compare(left, left * np.nan, regions=False).to_json(), allow_nan=False)
    one_class = compare(left[:, :1], left[:, :1], regions=True)
    assert verdict(one_class, "fp32") is None


@pytest.mark.parametrize("scheme", ["ct", "ct2", "zscore", "none", "rescale_to_01", "rgb_to_01"])
@pytest.mark.parametrize("patch", [(8, 12, 16), (20, 33), (1, 5, 4)])
def test_probe_inputs(scheme: str, patch: tuple[int, ...]) -> None:
    spec = tiny_spec(patch=patch, channels=2, scheme=scheme, previous=(1, 2, 3, 4))
    first, second = probe_inputs(spec, 3), probe_inputs(spec, 3)
    assert set(first) == {"normal", "anatomy"}
    for name, image in first.items():
        np.testing.assert_array_equal(image, second[name])
        assert image.shape == spec.input_shape
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.flags.c_contiguous
        assert set(np.unique(image[0, 2:])) <= {0.0, 1.0}
        assert image[0, 0].std() > 0
    if scheme == "ct":
        assert first["anatomy"][0, 0].min() >= (-100 - 80) / 60 - 1e-5
        assert first["anatomy"][0, 0].max() <= (300 - 80) / 60 + 1e-5
    assert not np.array_equal(first["normal"], probe_inputs(spec, 4)["normal"])


def test_importing_export_loads_nothing_heavy() -> None:
    code = (
        "import sys, offline_infer.exporting.bundles; "
        "print([m for m in ('torch', 'onnx', 'openvino', 'onnxruntime') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"
