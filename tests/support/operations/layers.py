"""Activations, norms, layers and losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _nn  # pyright: ignore[reportAttributeAccessIssue]

from tests.support.operations.common import (
    DOUBLE,
    FLAGS,
    LABELS,
    SEQUENCE,
    STATS,
    VOLUME,
    X23,
    X33,
    constant,
    each,
    op,
)

ELEMENTWISE = {
    **each(
        "relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
        "hardtanh", "hardshrink", "softshrink", "tanhshrink", "softsign", "softplus", "logsigmoid",
        "leaky_relu", "sigmoid", "tanh",
        "sin", "cos", "tan", "sinh", "cosh", "asinh", "atan", "exp", "exp2", "expm1", "sinc",
        "erf", "erfc", "erfcx", "ndtr", "log_ndtr", "i0", "i0e", "i1", "i1e",
        "abs", "neg", "square", "sign", "frac", "round", "deg2rad", "nan_to_num", "positive",
    ),
    **each(
        "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "lgamma", "digamma",
        "entr", kind="positive",
    ),
    **each("asin", "acos", "atanh", "erfinv", kind="unit"),
    "acosh": op(lambda x: torch.acosh(1 + x), X23, kind="positive"),
    "logit": op(lambda x: torch.logit(0.5 + 0.5 * x), X23, kind="unit"),
    "ndtri": op(lambda x: torch.special.ndtri(0.5 + 0.5 * x), X23, kind="unit"),
    "polygamma": op(lambda x: torch.polygamma(1, x), X23, kind="positive"),
    "multigammaln": op(lambda x: torch.special.multigammaln(2 + x, 2), X23, kind="positive"),
    "threshold": op(lambda x: F.threshold(x, 0.1, 2.0), X23),
    "rrelu eval": op(lambda x: F.rrelu(x, training=False), X23),
    "hardsigmoid in place": op(lambda x: F.hardsigmoid(1 * x, inplace=True), X23),
    "hardsigmoid in place nn": op(lambda x: _nn.hardsigmoid_(1 * x), X23),
    "prelu": op(F.prelu, X23, (3,)),
    "prelu one": op(F.prelu, X23, (1,)),
    "prelu channels": op(F.prelu, (2, 3, 2), (3,)),
    "prelu vector": op(F.prelu, (3,), (1,)),
    "prelu torch": op(torch.prelu, X33, (3,)),
    "prelu method": op(Tensor.prelu, X33, (1,)),
    "glu": op(F.glu, (2, 4)),
    "glu axis": op(lambda x: F.glu(x, 0), (2, 4)),
    "softmax": op(lambda x: F.softmax(x, -1), X23),
    "log_softmax": op(lambda x: F.log_softmax(x, -1), X23),
    "xlogy": op(torch.xlogy, X23, X23, kind="positive"),
    "xlog1py": op(torch.special.xlog1py, X23, X23, kind="positive"),
    "zeta": op(lambda x: torch.special.zeta(3.0, x), X23, kind="positive"),
    "add": op(torch.add, X23, (3,)),
    "sub": op(torch.sub, X23, (2, 1)),
    "mul": op(torch.mul, X23, (3,)),
    "div": op(torch.div, X23, (3,), kind="positive"),
    "floor divide": op(
        lambda a, b: torch.div(a, b, rounding_mode="floor") + a, X23, (3,), kind="positive"
    ),
    "pow": op(torch.pow, X23, (3,), kind="positive"),
    "scalar pow": op(lambda x: 2.0**x, X23),
    "fmod": op(lambda a, b: torch.fmod(5 * a, b), X23, X23, kind="positive"),
    "remainder": op(lambda a, b: torch.remainder(5 * a, b), X23, X23, kind="positive"),
    "atan2": op(torch.atan2, X23, (3,)),
    "hypot": op(torch.hypot, X23, (3,)),
    "logaddexp": op(torch.logaddexp, X23, (3,)),
    "logaddexp2": op(torch.logaddexp2, X23, (3,)),
    "copysign": op(torch.copysign, X23, (3,)),
    "ldexp": op(lambda x: torch.ldexp(x, torch.tensor([1, 2, -1])), X23),
    "lerp": op(torch.lerp, X23, X23, X23),
    "addcmul": op(torch.addcmul, X23, (3,), (2, 1)),
    "addcdiv": op(torch.addcdiv, X23, (3,), (2, 1), kind="positive"),
    "maximum": op(torch.maximum, X23, (3,)),
    "minimum": op(torch.minimum, X23, (3,)),
    "fmax": op(torch.fmax, X23, (3,)),
    "fmin": op(torch.fmin, X23, (3,)),
    "clamp": op(lambda x: x.clamp(-0.5, 0.5), X23),
    "clamp tensors": op(lambda x, a: torch.clamp(x, a - 0.5, a + 0.5), X23, X23),
    "clamp_min": op(lambda x: x.clamp_min(0.1), X23),
    "where": op(lambda a, b: torch.where(a > 0, a * b, b), X23, X23),
}  # fmt: skip


NORMS = {
    "layer_norm F": op(lambda x, w, b: F.layer_norm(x, (3,), w, b), X23, (3,), (3,)),
    "layer_norm torch": op(lambda x, w, b: torch.layer_norm(x, (3,), w, b), X23, (3,), (3,)),
    "layer_norm native": op(lambda x, w, b: torch.native_layer_norm(x, (3,), w, b, 1e-5)[0], X23,
        (3,), (3,)),
    "layer_norm bare": op(lambda x: torch.layer_norm(x, [3]), X33),
    "layer_norm two axes": op(lambda x, w: F.layer_norm(x, (3, 4), w), SEQUENCE, (3, 4)),
    "layer_norm weight": op(lambda x, w: torch.layer_norm(x, [3], weight=w), X33, (3,)),
    "layer_norm op": op(lambda x, w, b: torch.ops.aten.native_layer_norm(x, [3], w, b, 1e-5)[0],
        X23, (3,), (3,)),
    "group_norm F": op(lambda x, w, b: F.group_norm(x, 2, w, b), (2, 4, 3), (4,), (4,)),
    "instance_norm F": op(lambda x, w, b: F.instance_norm(x, None, None, w, b), SEQUENCE, (3,),
        (3,)),
    "instance_norm bare": op(lambda x: F.instance_norm(x), SEQUENCE),
    "instance_norm torch": op(
        lambda x, w, b: torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-5, False), SEQUENCE,
        (3,), (3,)),
    "instance_norm image": op(lambda x, w, b: F.instance_norm(x, None, None, w, b), (2, 3, 2, 2),
        (3,), (3,)),
    "instance_norm eval": op(
        lambda x, w, b: F.instance_norm(x, *STATS, w, b, use_input_stats=False), SEQUENCE, (3,),
        (3,)),
    "batch_norm F": op(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), X33, (3,),
        (3,)),
    "batch_norm bare": op(lambda x: F.batch_norm(x, None, None, training=True), (4, 3)),
    "batch_norm image": op(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        (2, 3, 2, 2), (3,), (3,)),
    "batch_norm torch": op(
        lambda x, w, b: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-5, False), (4, 3),
        (3,), (3,)),
    "batch_norm native": op(
        lambda x, w, b: torch.native_batch_norm(x, w, b, None, None, True, 0.1, 1e-5)[0], (4, 3),
        (3,), (3,)),
    "batch_norm eval": op(lambda x, w, b: F.batch_norm(x, *STATS, w, b), X33, (3,), (3,)),
    "batch_norm torch eval": op(
        lambda x, w, b: torch.batch_norm(x, w, b, *STATS, False, 0.1, 1e-5, False), X23, (3,),
        (3,)),
    "batch_norm native eval": op(
        lambda x, w, b: torch.native_batch_norm(x, w, b, *STATS, False, 0.1, 1e-5)[0], X23, (3,),
        (3,)),
    "rms_norm F": op(lambda x, w: F.rms_norm(x, (3,), w), X23, (3,)),
    "rms_norm two axes": op(lambda x, w: torch.rms_norm(x, (3, 4), w, 1e-3), SEQUENCE, (3, 4)),
    "local_response_norm": op(lambda x: F.local_response_norm(x, 2), SEQUENCE),
    "normalize": op(lambda x: F.normalize(x, dim=1), X23),
    "weight_norm": op(lambda v, g: torch._weight_norm(v, g, 0), X23, (2, 1)),
    "renorm": op(lambda x: torch.renorm(x, 2, 0, 0.8), X23),
    "cosine_similarity": op(F.cosine_similarity, X23, X23),
    "pairwise_distance": op(F.pairwise_distance, X23, X23),
}  # fmt: skip

LAYERS = {
    "linear": op(F.linear, X23, (2, 3), (2,)),
    "bilinear": op(F.bilinear, X23, (2, 2), (3, 3, 2), (3,)),
    "conv1d": op(lambda x, w, b: F.conv1d(x, w, b, padding=1), SEQUENCE, (2, 3, 3), (2,)),
    "conv_transpose1d": op(lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2, output_padding=1),
        SEQUENCE, (3, 2, 2), (2,)),
    "conv_tbc": op(torch.conv_tbc, (4, 2, 3), (2, 3, 2), (2,)),
    "unfold": op(lambda x: F.unfold(x, 2), (1, 2, 3, 3)),
    "fold": op(lambda x: F.fold(x, (3, 3), 2), (1, 4, 4)),
    "unfold method": op(lambda x: x.unfold(1, 2, 1), X23),
    "avg_pool3d": op(lambda x: F.avg_pool3d(x, 2), (1, 1, 2, 2, 4)),
    "max_pool1d": op(lambda x: F.max_pool1d(x, 2), SEQUENCE),
    "max_pool3d": op(lambda x: F.max_pool3d(x, 2), (1, 1, 2, 2, 4)),
    "max_unpool1d": op(lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), [2]),
        SEQUENCE),
    "adaptive_avg_pool1d": op(lambda x: F.adaptive_avg_pool1d(x, 3), SEQUENCE),
    "adaptive_avg_pool3d": op(lambda x: F.adaptive_avg_pool3d(x, (2, 1, 2)), VOLUME),
    "adaptive_max_pool1d": op(lambda x: F.adaptive_max_pool1d(x, 2), SEQUENCE),
    "adaptive_max_pool3d": op(lambda x: F.adaptive_max_pool3d(x, 2), VOLUME),
    "fractional_max_pool2d": op(
        lambda x: F.fractional_max_pool2d(x, 2, output_size=2,
        _random_samples=torch.full((1, 2, 2), 0.4, dtype=DOUBLE)), (1, 2, 4, 4)),
    **{
        f"interpolate {mode}": op(
            lambda x, mode=mode: F.interpolate(x, size=[5] * (x.ndim - 2), mode=mode), shape
        )
        for mode, shape in {
            "nearest": (1, 2, 3, 3),
            "nearest-exact": SEQUENCE,
            "linear": SEQUENCE,
            "bilinear": (1, 2, 3, 3),
            "bicubic": (1, 1, 3, 3),
            "trilinear": (1, 1, 2, 2, 2),
            "area": (1, 2, 3, 3),
        }.items()
    },
    "interpolate antialias": op(
        lambda x: F.interpolate(x, size=(2, 2), mode="bilinear", antialias=True), (1, 1, 4, 4)),
    "upsample nearest 1d": op(lambda x: F.interpolate(x, scale_factor=2), SEQUENCE),
    "upsample nearest 3d": op(lambda x: F.interpolate(x, scale_factor=2), (1, 1, 2, 2, 2)),
    "grid_sample": op(lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False), (1, 2, 3, 3),
        (1, 2, 2, 2)),
    "grid_sample border": op(
        lambda x, g: F.grid_sample(x, g, padding_mode="border", align_corners=True), (1, 2, 3, 3),
        (1, 2, 2, 2)),
    "grid_sample 3d": op(lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False),
        (1, 1, 2, 2, 2), (1, 1, 2, 2, 3)),
    "affine_grid": op(lambda t: F.affine_grid(t, [1, 1, 2, 2], align_corners=False), (1, 2, 3)),
    "pixel_shuffle": op(lambda x: F.pixel_shuffle(x, 2), (1, 4, 2, 2)),
    "pixel_unshuffle": op(lambda x: F.pixel_unshuffle(x, 2), (1, 1, 4, 4)),
    "channel_shuffle": op(lambda x: F.channel_shuffle(x, 2), (1, 4, 2, 2)),
    "pad reflect": op(lambda x: F.pad(x, (1, 1), mode="reflect"), SEQUENCE),
    "pad replicate": op(lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), (1, 2, 3, 3)),
    "pad circular": op(lambda x: F.pad(x, (1, 1), mode="circular"), SEQUENCE),
    "pad reflect 2d": op(lambda x: F.pad(x, (1, 1, 1, 0), mode="reflect"), (1, 2, 3, 3)),
    "pad replicate 3d": op(lambda x: F.pad(x, (1,) * 6, mode="replicate"), (1, 1, 2, 2, 2)),
    "embedding": op(lambda w: F.embedding(torch.tensor([[0, 2, 2], [1, 0, 3]]), w), (4, 3)),
    "embedding padding": op(lambda w: F.embedding(torch.tensor([0, 2, 3]), w, -2), (4, 3)),
    "embedding torch": op(lambda w: torch.embedding(w, torch.tensor([0, 2, 2]), 2), (4, 3)),
    "embedding by frequency": op(
        lambda w: F.embedding(torch.tensor([0, 2, 2]), w, scale_grad_by_freq=True), (4, 3)),
    **{
        f"embedding_bag {mode}": op(
            lambda w, m=mode: F.embedding_bag(torch.tensor([[0, 2, 3], [1, 0, 2]]), w, mode=m),
            (4, 3),
        )
        for mode in ("sum", "mean", "max")
    },
    "embedding_bag weights": op(
        lambda w, s: F.embedding_bag(torch.tensor([[0, 2], [3, 1]]), w, mode="sum",
        per_sample_weights=s), (4, 3), (2, 2)),
    "embedding_bag offsets": op(
        lambda w, s: F.embedding_bag(torch.tensor([0, 2, 3, 1]), w, torch.tensor([0, 2]),
        mode="sum", per_sample_weights=s), (4, 3), (4,)),
    "attention": op(F.scaled_dot_product_attention, (1, 2, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2)),
    "attention causal": op(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (2, 3, 2), (2, 3, 2), (2, 3, 2)),
    "attention mask": op(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        (1, 2, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2), (3, 3)),
    "attention of some": op(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v,
        torch.tensor([[True, True, False], [False] * 3, [False, True, True]])), (1, 2, 3, 2),
        (1, 2, 3, 2), (1, 2, 3, 2)),
    "multi_head_attention": op(
        lambda x, w, b, o: F.multi_head_attention_forward(x, x, x, 2, 2, w, b, None, None, False,
        0.0, o, None, need_weights=False)[0], (3, 1, 2), (6, 2), (6,), (2, 2)),
    "multi_head_attention weights": op(
        lambda x, w, o: F.multi_head_attention_forward(x, x, x, 2, 1, w, None, None, None, False,
        0.0, o, None), (3, 1, 2), (6, 2), (2, 2)),
    "rnn": op(
        lambda x, h, w, u: torch.rnn_tanh(x, h, (w, u), False, 1, 0.0, False, False, False)[0],
        (3, 1, 2), (1, 1, 2), (2, 2), (2, 2)),
    "lstm": op(
        lambda x, h, c, w, u: torch.lstm(x, (h, c), (w, u), False, 1, 0.0, False, False, False)[0],
        (3, 1, 2), (1, 1, 2), (1, 1, 2), (8, 2), (8, 2)),
    "gru": op(lambda x, h, w, u: torch.gru(x, h, (w, u), False, 1, 0.0, False, False, False)[0],
        (3, 1, 2), (1, 1, 2), (6, 2), (6, 2)),
    "lstm_cell": op(lambda x, h, c, w, u: torch.lstm_cell(x, (h, c), w, u), X23, (2, 2), (2, 2),
        (8, 3), (8, 2)),
    "gru_cell": op(torch.gru_cell, X23, (2, 2), (6, 3), (6, 2), (6,), (6,)),
    "rnn_tanh_cell": op(torch.rnn_tanh_cell, X23, (2, 2), (2, 3), (2, 2)),
}  # fmt: skip

TARGET = constant(2, 3)
LOSSES = {
    **{
        f"{name} {reduction}": op(
            lambda x, y, f=f, reduction=reduction: f(x, y, reduction=reduction), X23, X23
        )
        for name, f in {
            "mse": F.mse_loss,
            "l1": F.l1_loss,
            "smooth_l1": F.smooth_l1_loss,
            "huber": F.huber_loss,
        }.items()
        for reduction in ("mean", "none")
    },
    "bce": op(lambda x: F.binary_cross_entropy(0.5 + 0.5 * x, FLAGS.to(DOUBLE)), X23, kind="unit"),
    "bce_with_logits": op(lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()), X23,
        X23),
    "cross_entropy": op(lambda x: F.cross_entropy(x, LABELS), X23),
    "cross_entropy smoothed": op(lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.2), X23),
    "cross_entropy soft": op(lambda x, y: F.cross_entropy(x, y.softmax(-1)), X23, X23),
    "cross_entropy image": op(
        lambda x: F.cross_entropy(x, torch.tensor([[0, 2, 1, 1], [1, 1, -100, 2]])), SEQUENCE),
    "gaussian_nll": op(F.gaussian_nll_loss, X23, X23, X23, kind="positive"),
    "cosine_embedding": op(lambda x, y: F.cosine_embedding_loss(x, y, torch.tensor([1.0, -1.0])),
        X23, X23),
    "soft_margin": op(lambda x: F.soft_margin_loss(x, TARGET.sign()), X23),
    "multi_margin": op(lambda x: F.multi_margin_loss(x, LABELS), X23),
    "multilabel_margin": op(
        lambda x: F.multilabel_margin_loss(x, torch.tensor([[2, -1, 0], [0, 1, -1]])), X23),
    "triplet distance": op(
        lambda a, p, n: F.triplet_margin_with_distance_loss(a, p, n, margin=3.0), X23, X23, X23),
    "ctc": op(
        lambda x: F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2]]), torch.tensor([4]),
        torch.tensor([2])), (4, 1, 3)),
}  # fmt: skip
