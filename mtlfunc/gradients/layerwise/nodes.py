"""What is known of a backward node, by its name: all of it, in one table.

A row says which of a node's inputs may be a leaf, and who reads it there (`products`,
`elementwise`); whose entries its inputs are (`follow`); and what else holds of it (`Trait`). Of a
node without a row nothing is known: its leaves get rows, its output depends on all of its inputs.
"""

import re
from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from . import elementwise as each
from . import follow, products
from .products import left, right
from .uses import Node, Reader

Trait = Literal[
    "looped",  # torch batches its backward by a loop, with a warning, or wrongly (cdist)
    "stale",  # its batched backward takes its statistics for constants if differentiated again
    "norm",  # its batched backward refuses the mixed dtypes that autocast gives it
    "casts",  # makes mixed dtypes
    "numbers",  # its batched backward is wrong where one number is written
    "final",  # its recorded backward is wrong in a batch, or has a wrong derivative or none
    "recorded",  # its backward is right in a batch only if recorded
    "slow",  # costs more than other nodes of its size
    "arithmetic",  # reads nothing but its inputs, and gives none of them a new axis
    "passes",  # hands the derivative on to its first input as it is, but for its shape
]
"""Torch 2.13. The first eight hold for every node whose name begins like the row's, such as the
derivative of a backward: a single pass of what is looped is as fast, and quiet.
"""


class Facts(NamedTuple):
    """A row."""

    rule: follow.Follow | None = None
    read: Mapping[int, Reader] = MappingProxyType({})  # by which of the inputs the leaf is
    traits: Set[Trait] = frozenset()


_STALE: Set[Trait] = {"stale", "norm", "slow"}

# "Mm" is MmBackward0, "Sum:1" SumBackward1 and "Thnn*" every node whose name begins so.
_TABLE: dict[str, Facts] = {
    # products, and parameters picked by indices
    "Mm Bmm": Facts(follow.product, {0: left("mat2"), 1: right("self")}, {"arithmetic"}),
    "Addmm": Facts(
        follow.product,
        {0: products.added, 1: left("mat2", "alpha"), 2: right("mat1", "alpha")},
        {"arithmetic"},
    ),
    "Baddbmm": Facts(
        follow.product, {0: products.added, 1: left("batch2", "alpha"), 2: right("batch1", "alpha")}
    ),
    "Mv": Facts(follow.matrix_vector, {1: products.vector}),
    "Convolution": Facts(
        follow.first_axis(1), {1: products.convolution, 2: products.channels}, {"slow"}
    ),
    "CudnnConvolution* MiopenConvolution* MiopenDepthwiseConvolution* MkldnnConvolution* "
    "MpsConvolution* NnpackSpatialConvolution*": Facts(traits={"slow"}),
    "Embedding": Facts(read={0: products.embedding}),
    "Index": Facts(read={0: products.index}),
    "IndexSelect": Facts(follow.along_axes, {0: products.index_select}),
    # sums and products by entry
    "Add": Facts(follow.by_entry, {0: each.add, 1: each.add}, {"arithmetic", "passes"}),
    "Sub": Facts(follow.by_entry, {0: each.sub, 1: each.sub}, {"arithmetic", "passes"}),
    "Mul": Facts(follow.by_entry, {0: each.mul, 1: each.mul}, {"arithmetic"}),
    "Div": Facts(follow.by_entry, {0: each.div}, {"arithmetic"}),
    "Expand": Facts(follow.by_entry, {0: each.expand}, {"passes"}),
    "Pow Sqrt Exp": Facts(follow.by_entry, traits={"arithmetic"}),
    "Add:1 Sub:1 Rsub Rsub:1 Mul:1 Div:1 Neg Abs Pow:1 Pow:2 Rsqrt Reciprocal Exp2 Expm1 Log "
    "Log1P Log2 Log10 Sin Cos Tan Atan Sinh Cosh Erf Tanh Sigmoid LogSigmoid Softplus Relu "
    "LeakyRelu LeakyRelu:1 Gelu Silu Mish Elu Elu:1 Hardtanh Hardswish Clamp Clamp:1 ClampMin "
    "ClampMin:1 ClampMax ClampMax:1 Minimum Maximum Where Addcmul Addcdiv Lerp Lerp:1 MaskedFill "
    "NativeDropout Threshold Hardshrink Softshrink Celu PreluKernel RreluWithNoise Asin Acos Erfc "
    "Xlogy Logaddexp Atan2 Tril Triu TanhBackward SigmoidBackward SoftplusBackward GeluBackward "
    "EluBackward LeakyReluBackward ThresholdBackward LogSigmoidBackward HardtanhBackward "
    "HardswishBackward Complex Polar Conj Angle Sgn": Facts(follow.by_entry),
    "Hardsigmoid": Facts(follow.by_entry, traits={"final"}),
    # norms
    "NativeLayerNorm": Facts(follow.layer_norm, {1: each.layer_norm, 2: each.layer_norm}, _STALE),
    "FusedRmsNorm": Facts(follow.layer_norm, {1: each.rms_norm}, {"looped"}),
    "NativeGroupNorm": Facts(
        follow.first_axis(1), {1: each.group_norm, 2: each.group_norm}, {"recorded", "norm", "slow"}
    ),
    "NativeBatchNorm CudnnBatchNorm": Facts(
        follow.batch_norm, {1: each.batch_norm, 2: each.batch_norm}, _STALE
    ),
    "MiopenBatchNorm*": Facts(traits=_STALE),
    "WeightNorm* Cdist*": Facts(traits={"looped", "final"}),
    # the same entries on other axes, and pieces
    "T Transpose": Facts(follow.permutation, traits={"arithmetic"}),
    "Permute T:1 Transpose:1": Facts(follow.permutation),
    "View UnsafeView": Facts(follow.view, traits={"arithmetic"}),
    "Alias Clone Unsqueeze": Facts(follow.view, traits={"passes"}),
    "ReshapeAlias Unsqueeze:1 Squeeze Squeeze:1 Squeeze:2 Squeeze:3 Squeeze:4 Squeeze:5": Facts(
        follow.view
    ),
    "ToCopy": Facts(follow.view, traits={"casts"}),
    "Select Unbind Slice Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes": Facts(
        follow.piece
    ),
    "Cat Stack": Facts(follow.concatenation),
    "Diagonal": Facts(follow.diagonal),
    "DiagEmbed": Facts(follow.on_diagonal),
    "Unfold ViewAsReal": Facts(follow.windows),
    "PixelShuffle PixelUnshuffle": Facts(follow.last_axes(3)),
    "ScatterAdd Scatter Scatter:1 ScatterReduce IndexAdd IndexPut IndexFill IndexFill:1 "
    "MaskedScatter": Facts(follow.scattered),
    "IndexCopy": Facts(follow.scattered, traits={"numbers"}),
    "AsStridedScatter*": Facts(traits={"final"}),
    # reductions and losses
    "Sum": Facts(traits={"arithmetic"}),
    "Sum:1 Norm:1 LinalgVectorNorm": Facts(follow.reduction, traits={"arithmetic"}),
    "Prod:1 Mean:1 Amax Amin Max Min Logsumexp Var Std Median:1 Nanmedian:1 Kthvalue Mode": Facts(
        follow.reduction
    ),
    "Softmax SafeSoftmax LogSoftmax Cumsum Cumprod Cummax Cummin Logcumsumexp Roll Flip Rot90 "
    "Gather Sort Topk Glu FftR2C FftC2R FftC2C": Facts(follow.along_axes),
    "MseLoss SmoothL1Loss HuberLoss BinaryCrossEntropy BinaryCrossEntropyWithLogits": Facts(
        follow.unreduced
    ),
    "NllLoss NllLoss2D": Facts(follow.likelihood),
    "CtcLoss CtcLoss:1": Facts(follow.connectionist),
    # what works on samples one by one
    "MaxPool2DWithIndices AvgPool2D AdaptiveAvgPool2D AdaptiveMaxPool2D MaxPool3DWithIndices "
    "AvgPool3D AdaptiveAvgPool3D ReflectionPad1D ReflectionPad2D ReplicationPad1D "
    "ReplicationPad2D UpsampleNearest1D UpsampleNearest2D UpsampleLinear1D UpsampleBilinear2D "
    "UpsampleBicubic2D UpsampleNearest3D UpsampleTrilinear3D Im2Col Col2Im ChannelShuffle": Facts(
        follow.first_axis(1)
    ),
    "GridSampler2D": Facts(follow.first_axis(2)),
    "ConstantPadNd": Facts(follow.padding),
    "Repeat": Facts(follow.repeated),
    "ScaledDotProductFlashAttentionForCpu ScaledDotProductFlashAttention "
    "ScaledDotProductEfficientAttention ScaledDotProductCudnnAttention": Facts(
        follow.first_axis(3)
    ),
    "ScaledDotProduct*": Facts(traits={"looped", "final"}),
    "MkldnnRnnLayer": Facts(follow.recurrent, traits={"looped"}),
    "EmbeddingBag* MkldnnRnn* CudnnRnn* MiopenRnn* Thnn* Trilinear* EuclideanDist*": Facts(
        traits={"looped"}
    ),
    # linear algebra
    "LinalgInvEx LinalgCholeskyEx LinalgMatrixExp": Facts(follow.last_axes(2)),
    "LinalgSolve*": Facts(traits={"final", "recorded"}),
    "Pdist* CholeskyInverse*": Facts(traits={"final"}),
    "LinalgDet* LinalgSlogdet* LinalgLuSolve*": Facts(traits={"recorded"}),
}
_BY_NAME = {name: facts for names, facts in _TABLE.items() for name in names.split()}
NODES = {"Backward".join(f"{x}:0".split(":")[:2]): facts for x, facts in _BY_NAME.items()}
NODES["torch::autograd::CopySlices"] = Facts(follow.written)
BEGINNINGS: dict[Trait, tuple[str, ...]] = {
    trait: tuple(re.split("[:*]", x)[0] for x, facts in _BY_NAME.items() if trait in facts.traits)
    for trait in get_args(Trait)
}
"""How the names of nodes begin that have a trait."""


def facts_of(node: Node) -> Facts:
    return NODES.get(node.name(), Facts())


def operation_of(node: Node) -> str:
    """The public name of what made a node, as far as the node's own tells it."""
    name: str = node.name().split("::")[-1]
    short = re.sub(r"Backward\d+$", "", name)
    if short == name:  # somebody's own
        return _PUBLIC.get(name, name.removesuffix("Backward"))
    words = re.sub(r"(?<=.)(?=[A-Z][a-z])", "_", short).lower()
    return _PUBLIC.get(short, re.sub("^(native|unsafe)_|_(ex|with_indices)$", "", words))


_PUBLIC = {
    "CopySlices": "a write into a piece", "FftC2C": "fft", "FftC2R": "irfft", "FftR2C": "rfft",
    "Im2Col": "unfold", "Col2Im": "fold", "MkldnnRnnLayer": "lstm",
}  # fmt: skip
