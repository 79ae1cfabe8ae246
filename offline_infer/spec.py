"""The specification a bundle carries: everything needed to run a network as its framework would, as plain data.

The models here are what ``bundle.json`` holds. They are frozen and strict: an unknown field, a wrong type or a missing
value is an error, never a silent default. All axes are named in order: images are ``(c, z, y, x)``; a two-dimensional
network has a patch ``(y, x)`` and sees the slices of a volume one by one. Spacing is in millimetres.

Where nnU-Net v1 and v2 differ, the difference is a field with a name, set by the checkpoint reader; no stage asks
which framework a bundle came from.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SCHEMA_VERSION = 1
"""The only schema this release reads and writes."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Length = Annotated[float, Field(ge=1e-6, le=1e6)]
"""Edge of a voxel in mm; what lies outside is a slip of the pen, or asks for a grid no memory holds."""
LabelValue = Annotated[int, Field(ge=0, le=65535)]
"""Value in a label map, which is at most uint16."""
Count = Annotated[int, Field(gt=0)]
Extent = Annotated[int, Field(ge=-1)]
"""Length of an axis of a graph's input or output; -1 where it is only known when the graph has run."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*$")]
"""A path inside the bundle: no absolute path, no ``..``, no blanks."""
FileEnding = Annotated[str, Field(pattern=r"^\.(nii|nii\.gz|mha|mhd|nrrd|gipl|png|bmp|jpg|jpeg|tif|tiff|dcm|ima)$")]
"""What the names of a model's images end with. It becomes part of the result files' paths, so only known ones are taken."""


class Record(BaseModel):
    """Base of all records: frozen, and nothing that is not declared is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FoldSource(Record):
    """Where the weights of one fold came from."""

    fold: str
    checkpoint: str = Field(description="path inside the checkpoint folder")
    sha256: Sha256


class SourceFile(Record):
    """A file of the checkpoint that was read beside the weights: plans, labels, post-processing."""

    path: str = Field(description="inside the checkpoint folder")
    sha256: Sha256


class Source(Record):
    """The checkpoint a bundle was made from."""

    framework: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = Field(
        description="nnunet_v1, nnunetplusplus, nnunet_v2, torch, ...: whose checkpoint it was"
    )
    framework_version: str | None = None
    trainer: str
    plans_name: str
    dataset: str
    configuration: str = Field(description="2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres, ...")
    network: str = Field(description="class name of the network that was re-built")
    folds: tuple[FoldSource, ...] = Field(min_length=1)
    files: tuple[SourceFile, ...] = ()


class Intensity(Record):
    """Figures of one channel over the training set's foreground, in the image's own unit (HU for CT)."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class Channel(Record):
    """One input channel and how its intensities are normalised.

    ``scheme``: ``ct`` clips to the training percentiles, subtracts the training mean, divides by the training sd; ``ct2``
    (v1) clips alike but takes mean and sd from the image; ``zscore`` takes both from the image; ``none``;
    ``rescale_to_01``; ``rgb_to_01`` divides by 255.
    ``use_mask``: statistics over, and values only inside, the non-zero mask.
    ``std_guard``: ``none``, ``max`` (sd is at least 1e-8) or ``add`` (1e-8 is added).
    """

    name: str
    scheme: Literal["ct", "ct2", "zscore", "none", "rescale_to_01", "rgb_to_01"]
    use_mask: bool = False
    std_guard: Literal["none", "max", "add"] = "max"
    intensity: Intensity | None = None

    @model_validator(mode="after")
    def _ct_needs_figures(self) -> Channel:
        if self.scheme in ("ct", "ct2") and self.intensity is None:
            raise ValueError(f"channel {self.name!r}: scheme {self.scheme!r} needs intensity figures")
        return self


class Resampling(Record):
    """One of the resampling functions nnU-Net's plans may name, with its arguments.

    ``function``: ``default`` (spline of ``order``; along a low-resolution axis ``order_z``), ``torch`` (``torch_separate_z``
    when it treats such an axis apart), ``none`` (shapes must already agree).
    ``force_separate_z``: None decides by ``anisotropy_threshold``: max/min spacing above it, tested on the current spacing
    and then on the new one.
    """

    function: Literal["default", "torch", "torch_separate_z", "none"] = "default"
    order: Annotated[int, Field(ge=0, le=5)] = 3
    order_z: Annotated[int, Field(ge=0, le=5)] = 0
    force_separate_z: bool | None = None
    anisotropy_threshold: Positive = 3.0
    mode: str = "linear"
    aniso_axis_mode: str = "nearest-exact"
    memory_efficient_labels: bool = True


class Gaussian(Record):
    """The weight map of a tile: a Gaussian with sigma = ``sigma_scale`` * patch, scaled to ``peak``, cast to ``dtype``,
    zeros replaced by the smallest non-zero value. ``apply``: ``always``, or ``several_tiles`` (nnU-Net v1: weights are 1
    where an image fits one tile)."""

    sigma_scale: Positive = 0.125
    peak: Positive = 1.0
    dtype: Literal["float32", "float16"] = "float32"
    apply: Literal["always", "several_tiles"] = "always"


class Window(Record):
    """How tiles are laid and mirrored. ``mirror_axes`` index the network's spatial axes (0 = first of the patch)."""

    step_size: Annotated[float, Field(gt=0, le=1)] = 0.5
    mirror_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = ()
    gaussian: Gaussian = Gaussian()


class Aggregation(Record):
    """What is averaged over mirrors, tiles and folds, and how a network output becomes a probability.

    ``domain``: nnU-Net v1 averages ``probabilities``, v2 averages ``logits``.
    ``activation``: ``softmax`` for exclusive classes, ``sigmoid`` for regions.
    ``accumulate``: the dtype of the framework's own sums (v1 float32, v2 float16); a run uses float32 unless told otherwise.
    """

    domain: Literal["probabilities", "logits"]
    activation: Literal["softmax", "sigmoid"] = "softmax"
    accumulate: Literal["float32", "float16"] = "float32"


class Export(Record):
    """How the aggregated map goes back to the image's own grid.

    ``axis_rule``: ``network`` decides a low-resolution axis in the network's axis order (v2); ``nnunet_v1`` decides it from
    the original spacing, then from the network spacing *still in network order* although the map was transposed back -
    a quirk of v1 that changes labels, so it is kept.
    ``framework_dtype``: the dtype nnU-Net resamples in before the label decision; used with float16 accumulation.
    """

    resampling: Resampling
    axis_rule: Literal["network", "nnunet_v1"] = "network"


class Labels(Record):
    """What the output channels mean.

    ``names``: as in ``dataset.json``; a list of integers is a region.
    ``channel_values``: label value written for each output channel of a softmax network (channel 0 is background).
    ``regions_class_order``: for region-based networks, the value written for each output channel; later ones overwrite.
    ``ignore``: label in references that evaluation leaves out; the network has no channel for it.
    """

    names: dict[str, int | tuple[int, ...]]
    channel_values: tuple[LabelValue, ...] = ()
    regions_class_order: tuple[LabelValue, ...] | None = None
    ignore: int | None = None

    @property
    def channels(self) -> int:
        """Number of output channels of the network."""
        return len(self.channel_values) if self.regions_class_order is None else len(self.regions_class_order)

    @property
    def largest(self) -> int:
        """The largest value a label map of this model can hold."""
        values = self.channel_values if self.regions_class_order is None else self.regions_class_order
        return max((0, *values))


class PreviousStage(Record):
    """A cascade's second network sees the first one's label map as one-hot channels after the image channels.

    ``labels``: the foreground labels, one channel each. ``rule``: ``nnunet_v1`` resizes the uncropped map to the
    network's grid and gives ties to the higher label; ``nnunet_v2`` crops it like the image and resamples it with ``resampling``.
    """

    labels: tuple[int, ...] = Field(min_length=1)
    rule: Literal["nnunet_v1", "nnunet_v2"]
    resampling: Resampling
    configuration: str


class ComponentRule(Record):
    """Keep only the largest connected component of ``labels`` taken together; the rest becomes background.

    ``connectivity``: ``face`` (nnU-Net v1) or ``full`` (v2). Of several equally large components all are kept.
    ``min_size_mm3``: if given, only components smaller than this are removed, and never the largest (v1).
    """

    kind: Literal["keep_largest"] = "keep_largest"
    labels: tuple[int, ...] = Field(min_length=1)
    connectivity: Literal["face", "full"]
    min_size_mm3: float | None = None
    background: int = 0


class Pixels(Record):
    """How pixel values reach the network: ``(pixel / scale - mean) / std`` per channel.

    ``order``: of the channels, ``rgb`` or ``bgr``; ``gray`` is the luma of the image in one channel.
    ``sixteen_bit``: of 16-bit grey images ``clip`` cuts values off at 255 (what Pillow does, and with it most training
    code), ``high_byte`` keeps the upper eight bits.
    ``exif``: whether the orientation a camera noted is ``ignored`` or ``applied``.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[Positive, ...] = IMAGENET_STD
    scale: Positive = 255.0
    order: Literal["rgb", "bgr", "gray"] = "rgb"
    sixteen_bit: Literal["clip", "high_byte"] = "clip"
    exif: Literal["ignored", "applied"] = "ignored"

    @model_validator(mode="after")
    def _one_figure_per_channel(self) -> Pixels:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} figures each for {self.order} images")
        return self

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return 1 if self.order == "gray" else 3


class OutputSpec(Record):
    """One named output of the graph; ``keep`` is false for heads inference does not need."""

    name: str
    dtype: Literal["float32", "float16", "int64", "int32"]
    shape: tuple[Extent, ...]
    keep: bool


class GraphRecord(Record):
    """One ONNX file of the bundle. ``verification`` is what comparing it with the framework's network gave."""

    file: FileName
    fold: str
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    opset: Count
    sha256: Sha256
    verification: dict[str, Any] | None = None

    @property
    def around(self) -> Literal["fp32", "bf16"]:
        """What is computed in around the INT8 layers of an ``int8`` graph, as it was judged."""
        return "bf16" if (self.verification or {}).get("around") == "bf16" else "fp32"


class CompiledRecord(Record):
    """A compiled artefact (an OM): valid only for the graph, soc and tool it was made with.

    ``passes``: changes made to the graph on the way, e.g. ``decompose-instance-norm``. ``input_dtype``: what it is fed
    with. ``outputs``: what it gives, in its own order; empty: the bundle's outputs. ``log``: what the compiler said.
    """

    file: FileName
    graph: FileName
    graph_sha256: Sha256
    sha256: Sha256
    soc: str
    tool: str
    tool_version: str | None = None
    flags: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    input_dtype: Literal["float32", "float16"] = "float32"
    outputs: tuple[OutputSpec, ...] = ()
    log: FileName | None = None


class BundleSpec(Record):
    """What every bundle says, whatever kind of model it holds; each task adds its own fields in a subclass.

    ``task`` names the kind of model (see :mod:`offline_infer.tasks`). ``outputs`` are in the graph's order, those with
    ``keep`` are wanted by inference.
    """

    control_flow: ClassVar[frozenset[str]] = frozenset()
    """Operators with graphs inside that a graph of this task may use (see :mod:`offline_infer.graph.admission`)."""

    schema_version: Literal[1] = 1
    task: str
    source: Source
    input_name: str = "image"
    outputs: tuple[OutputSpec, ...] = ()
    graphs: tuple[GraphRecord, ...] = ()
    compiled: tuple[CompiledRecord, ...] = ()
    made_with: dict[str, str] = Field(
        default={}, description="software bill of materials of the export: package -> version"
    )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the graph's input, batch axis first; -1 where the graph takes any size."""
        raise TypeError(f"{type(self).__name__} does not say the shape of its input")

    def facts(self) -> dict[str, str]:
        """What a person may want to know of the model beside its source and graphs: heading -> one line."""
        return {}

    def label_names(self) -> dict[int, str]:
        """Value in a result -> name, where results hold labels."""
        return {}

    def label_table(self) -> dict[str, int | tuple[int, ...]]:
        """Name -> value, a region its values, and the value that references ignore: the ``labels`` of a ``dataset.json``."""
        return {name: value for value, name in self.label_names().items()}

    def contradictions(self) -> list[str]:
        """Fields that are legal one by one but do not fit each other, each as ``field: what is wrong``."""
        return []

    @property
    def kept_outputs(self) -> tuple[str, ...]:
        """Names of the outputs inference needs, in graph order."""
        return tuple(output.name for output in self.outputs if output.keep)


class VolumeSpec(BundleSpec):
    """Everything a run of a volume model needs to know. See the module docstring for axis order and units.

    ``spacing`` and ``patch_size`` are in network axis order, after ``transpose_forward``. For a two-dimensional network
    both have two entries and the slice axis keeps the image's own spacing.
    """

    task: Literal["volume"] = "volume"
    reader: str = Field(description="nnU-Net's reader class; decides axis order and orientation")
    file_ending: FileEnding = ".nii.gz"
    channels: tuple[Channel, ...] = Field(min_length=1)
    spacing: tuple[Length, ...]
    patch_size: tuple[Count, ...]
    transpose_forward: tuple[int, int, int] = (0, 1, 2)
    normalize_after_resampling: bool = Field(
        description="nnU-Net v1 normalises the resampled image, v2 the cropped one"
    )
    resampling: Resampling = Field(description="of the image channels")
    window: Window
    aggregation: Aggregation
    export: Export
    labels: Labels
    previous_stage: PreviousStage | None = None
    postprocessing: tuple[ComponentRule, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> VolumeSpec:
        if len(self.patch_size) not in (2, 3) or len(self.spacing) != len(self.patch_size):
            raise ValueError("patch_size and spacing must both have two or three entries")
        if sorted(self.transpose_forward) != [0, 1, 2]:
            raise ValueError(f"transpose_forward {self.transpose_forward} is not a permutation of 0, 1, 2")
        if any(axis >= len(self.patch_size) for axis in self.window.mirror_axes):
            raise ValueError("a mirror axis lies outside the patch")
        return self

    def facts(self) -> dict[str, str]:
        """See :meth:`BundleSpec.facts`."""
        spacing = ", ".join(f"{length:g}" for length in self.spacing)
        return {
            "channels": ", ".join(f"{channel.name} ({channel.scheme})" for channel in self.channels),
            "spacing": f"{spacing} mm, patch {self.patch_size}, transpose {self.transpose_forward}",
            "mirror axes": f"{self.window.mirror_axes}, step {self.window.step_size}, averages {self.aggregation.domain}",
            "labels": ", ".join(f"{name}={value}" for name, value in self.labels.names.items()),
        }

    def label_names(self) -> dict[int, str]:
        """See :meth:`BundleSpec.label_names`; regions have no value of their own."""
        return {value: name for name, value in self.labels.names.items() if isinstance(value, int)}

    def label_table(self) -> dict[str, int | tuple[int, ...]]:
        """See :meth:`BundleSpec.label_table`."""
        ignored = {} if self.labels.ignore is None else {"ignore": self.labels.ignore}
        return {**ignored, **self.labels.names}

    def contradictions(self) -> list[str]:
        """See :meth:`BundleSpec.contradictions`."""
        kept = [output for output in self.outputs if output.keep]
        expected = (1, self.labels.channels, *self.patch_size)
        if len(kept) > 1:
            return [f"outputs: {len(kept)} outputs are kept, a volume model has one"]
        if kept and kept[0].shape != expected:
            return [f"outputs.{kept[0].name}.shape: {kept[0].shape}, but labels and patch_size give {expected}"]
        return []

    @property
    def transpose_backward(self) -> tuple[int, int, int]:
        """The inverse of ``transpose_forward``."""
        order = self.transpose_forward
        return (order.index(0), order.index(1), order.index(2))

    @property
    def input_channels(self) -> int:
        """Channels of the network's input, previous-stage channels included."""
        return len(self.channels) + (len(self.previous_stage.labels) if self.previous_stage else 0)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the graph's input, batch axis first."""
        return (1, self.input_channels, *self.patch_size)
