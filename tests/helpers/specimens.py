"""Small specifications and ONNX files for tests, made without torch and without the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from offline_infer.files import sha256_file
from offline_infer.spec import (
    Aggregation,
    Channel,
    Export,
    FoldSource,
    Gaussian,
    GraphRecord,
    Intensity,
    Labels,
    OutputSpec,
    PreviousStage,
    Resampling,
    Source,
    VolumeSpec,
    Window,
)


def tiny_spec(
    *,
    patch: Sequence[int] = (8, 12, 16),
    channels: int = 1,
    classes: int = 3,
    folds: Sequence[str] = ("0",),
    scheme: str = "ct",
    regions: bool = False,
    previous: Sequence[int] = (),
) -> VolumeSpec:
    """A consistent specification without graphs and outputs."""
    figures = Intensity(mean=80.0, std=60.0, percentile_00_5=-100.0, percentile_99_5=300.0)
    labels = (
        Labels(names={f"r{i}": (i,) for i in range(1, classes + 1)}, regions_class_order=tuple(range(1, classes + 1)))
        if regions
        else Labels(
            names={"background": 0, **{f"l{i}": i for i in range(1, classes)}}, channel_values=tuple(range(classes))
        )
    )
    return VolumeSpec(
        source=Source(
            framework="torch",
            trainer="none",
            plans_name="none",
            dataset="Dataset999_Tiny",
            configuration="3d_fullres" if len(patch) == 3 else "2d",
            network="Tiny",
            folds=tuple(FoldSource(fold=f, checkpoint=f"fold_{f}/c.pth", sha256="0" * 64) for f in folds),
        ),
        reader="SimpleITKIO",
        channels=tuple(Channel(name=f"c{i}", scheme=scheme, intensity=figures) for i in range(channels)),  # type: ignore[arg-type]
        spacing=(1.5,) * len(patch),
        patch_size=tuple(patch),
        normalize_after_resampling=False,
        resampling=Resampling(),
        window=Window(mirror_axes=tuple(range(len(patch))), gaussian=Gaussian(peak=10.0, dtype="float16")),
        aggregation=Aggregation(domain="logits", activation="sigmoid" if regions else "softmax", accumulate="float16"),
        export=Export(resampling=Resampling(order=1)),
        labels=labels,
        previous_stage=PreviousStage(
            labels=tuple(previous), rule="nnunet_v2", resampling=Resampling(order=1), configuration="3d_lowres"
        )
        if previous
        else None,
    )


def with_outputs(spec: VolumeSpec, names: Sequence[str] = ("logits",)) -> VolumeSpec:
    """The specification with outputs of the right shape; only the first is kept."""
    shape = (1, spec.labels.channels, *spec.patch_size)
    outputs = tuple(OutputSpec(name=n, dtype="float32", shape=shape, keep=i == 0) for i, n in enumerate(names))
    return spec.model_copy(update={"outputs": outputs})


def with_graphs(spec: VolumeSpec, folder: Path, *, precision: str = "fp32", content: bytes = b"graph") -> VolumeSpec:
    """Write a stand-in graph per fold into ``folder`` and list it."""
    graphs = []
    for fold in spec.source.folds:
        file = folder / f"fold_{fold.fold}.onnx"
        file.write_bytes(content + fold.fold.encode())
        graphs.append(
            GraphRecord(file=file.name, fold=fold.fold, precision=precision, opset=17, sha256=sha256_file(file))  # type: ignore[arg-type]
        )
    return spec.model_copy(update={"graphs": tuple(graphs)})


def onnx_bytes(entries: dict[str, str], *, opset: int = 17, graph: bytes = b"\x0a\x00" * 100) -> bytes:
    """The top level of an ONNX file, written by hand; ``graph`` need not be a real one."""
    data = b"\x08\x08"  # ir_version 8
    data += _field(7, graph)
    data += _field(8, _field(1, b"") + b"\x10" + _varint(opset))
    for key, value in entries.items():
        data += _field(14, _field(1, key.encode()) + _field(2, value.encode()))
    return data


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = b""
    while True:
        value, low = value >> 7, value & 0x7F
        if not value:
            return out + bytes([low])
        out += bytes([low | 0x80])
