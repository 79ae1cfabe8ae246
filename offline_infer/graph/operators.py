"""Operators a graph may use: those of the ONNX standard that compute tensors from tensors, and nothing else.

Left out, and therefore refused: what loops or branches (``Scan``, ``SequenceMap``; ``If`` and ``Loop`` only where the task
allows them), what draws random numbers, what handles strings, sequences, optional values or encoded images, what trains, and
every operator of another domain.
"""

from __future__ import annotations

DOMAINS = frozenset({"", "ai.onnx"})
"""Names of the standard operator set."""

CONTROL_FLOW = frozenset({"If", "Loop"})
"""Operators with graphs inside that a task may allow; a loop only where its length is that of a tensor's axis."""

LOOP_LENGTHS = frozenset({"Cast", "Gather", "Identity", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Unsqueeze"})
"""Operators between a tensor's shape and the number of rounds of a loop over that tensor."""

TENSOR_OPERATORS = frozenset(
    {
        "Abs", "Acos", "Acosh", "Add", "AffineGrid", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
        "Attention", "AveragePool", "BatchNormalization", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
        "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "CenterCropPad", "Clip", "Col2Im", "Compress", "Concat",
        "Constant", "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumSum", "DFT",
        "DeformConv", "DepthToSpace", "DequantizeLinear", "Det", "Div", "Dropout", "DynamicQuantizeLinear",
        "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements",
        "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater",
        "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity",
        "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual",
        "Log", "LogSoftmax", "LpNormalization", "LpPool", "MatMul", "MatMulInteger", "Max", "MaxPool", "MaxRoiPool",
        "MaxUnpool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "NonMaxSuppression",
        "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "QLinearConv", "QLinearMatMul", "QuantizeLinear",
        "RMSNormalization", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape",
        "Resize", "ReverseSequence", "RoiAlign", "Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink",
        "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth",
        "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK",
        "Transpose", "Trilu", "Unique", "Unsqueeze", "Upsample", "Where", "Xor",
    }
)  # fmt: skip

ELEMENTWISE = frozenset(
    {
        "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
        "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "DequantizeLinear", "Div",
        "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish",
        "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul",
        "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid",
        "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu",
        "Where", "Xor",
    }
)  # fmt: skip
"""Operators that compute each value from the values at the same place. Engines join a row of them into one kernel, and take
minutes to compile one for a row of some hundred."""

SIZING_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Tile": (1,),
    "Resize": (2, 3),
    "Upsample": (1,),
    "Pad": (1,),
    "CenterCropPad": (1,),
    "OneHot": (1,),
    "Range": (0, 1, 2),
    "Col2Im": (0, 1),
    "AffineGrid": (1,),
}
"""Operator -> inputs that decide how large its output is: a small file could ask for all memory with them."""

SIZING_PADDINGS = frozenset({"Pad"})
"""Operators whose sizing input is added to each axis instead of multiplying the size of the output."""

SIZING_ATTRIBUTES: dict[str, int] = {
    **dict.fromkeys(
        (
            "blocksize",
            "dilations",
            "kernel_shape",
            "output_padding",
            "output_shape",
            "pads",
            "scales",
            "size",
            "strides",
        ),
        1 << 16,
    ),
    **dict.fromkeys(("output_height", "output_width", "pooled_shape"), 1 << 12),
    "sampling_ratio": 64,
}
"""Attributes that decide how large an output or the work for it is -> the largest value a network may have."""
