"""Second derivatives of torch.nn.functional in every option: right by a Gramian, or refused."""

# pyright: reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false

# A table: names are short.
# ruff: noqa: B023

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F

import mtlfunc as mf
from tests.support.oracles import F64, rows_of


def r(*s):
    each = torch.arange(1, math.prod(s) + 1, dtype=F64)
    return (torch.sin(each * 1.7 + len(s)) * 0.8).reshape(s)


X = r(3, 4)
Y = r(3, 4).cos()
idx = torch.tensor([[0, 2, 2], [1, 0, 3]])
C = []


def add(name, f, *inputs):
    C.append((name, f, inputs))


def sweep(name, f, /, *inputs, **options):
    """A case for each combination of options, which `f` takes by name."""
    for values in itertools.product(*options.values()):
        given = dict(zip(options, values, strict=True))
        said = (f"{k}={'tensor' if isinstance(v, torch.Tensor) else v}" for k, v in given.items())
        add(" ".join([name, *said]), lambda *x, given=given: f(*x, **given), *inputs)


flags = [False, True]
tgt = torch.tensor([1, 0, 3])
wts = torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=F64)
labels = torch.tensor([[1, 0, -1, 0], [2, -1, 0, 0], [3, 1, 2, -1]])


def bag(w, offsets=None, **how):
    last = offsets is not None and len(offsets) == 3
    rows = idx if offsets is None else idx.flatten()
    return F.embedding_bag(rows, w.sin(), offsets, include_last_offset=last, **how)


PADS = {"padding_idx": [None, 2, -1]}
BAGS = {"padding_idx": [None, 2], "offsets": [None, *map(torch.tensor, ([0, 2], [0, 2, 6]))]}
FREQ = {"scale_grad_by_freq": flags}
sweep("embedding", lambda w, **o: F.embedding(idx, w, **o), r(4, 3), **PADS, **FREQ)
sweep("embedding_bag", bag, r(4, 3), mode=["sum", "mean"], **FREQ, **BAGS)
sweep("embedding_bag", bag, r(4, 3), mode=["max"], **BAGS)


def weighted_bag(w, s):
    return F.embedding_bag(idx, w, mode="sum", per_sample_weights=s.sin())


add("embedding_bag psw", weighted_bag, r(4, 3), r(2, 3))


def loss(name, f, /, *inputs, **options):
    sweep(name, f, *inputs, reduction=["none", "mean", "sum"], **options)


EACH = {"weight": [None, wts]}
IGNORED = EACH | {"ignore_index": [-100, 0]}
SMOOTH = {"label_smoothing": [0.0, 0.2]}
CELLS = {"weight": [None, Y.abs()]}
places = tgt[:2, None, None].expand(2, 3, 2)
loss("cross_entropy", lambda x, **o: F.cross_entropy(x, tgt, **o), X, **SMOOTH, **IGNORED)
loss(
    "cross_entropy", lambda x, y, **o: F.cross_entropy(x, y.softmax(1), **o), X, Y, **SMOOTH, **EACH
)
loss("nll", lambda x, **o: F.nll_loss(x.log_softmax(1), tgt, **o), X, **IGNORED)
loss("nll", lambda x, **o: F.nll_loss(x.log_softmax(1), places, **o), r(2, 4, 3, 2), **IGNORED)


def poisson(x, log_input, **how):
    rate = x if log_input else x.exp()
    return F.poisson_nll_loss(rate, Y.abs() * 3, log_input=log_input, **how)


def kl(x, y, log_target, **how):
    target = y.log_softmax(1) if log_target else y.softmax(1)
    return F.kl_div(x.log_softmax(1), target, log_target=log_target, **how)


def cosine(x, y, **how):
    signs = torch.tensor([1.0, -1, -1], dtype=F64)
    return F.cosine_embedding_loss(x, y, signs, margin=-0.3, **how)


def ctc(x, **how):
    targets, lengths = torch.tensor([[1, 2], [3, 1]]), torch.tensor([[5, 5], [2, 2]])
    return F.ctc_loss(x.log_softmax(-1), targets, *lengths, **how)


def logits(x, y, **how):
    return F.binary_cross_entropy_with_logits(x, y.sigmoid(), **how)


def entropy(x, y, **how):
    return F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), **how)


def ranking(x, y, **how):
    return F.margin_ranking_loss(x.sin(), y, Y.sign(), margin=0.3, **how)


def triplet(x, y, **how):
    return F.triplet_margin_loss(x, y * 2, x.cos() + 1, margin=3.0, **how)


loss("poisson", poisson, X, full=flags, log_input=flags)
loss("gauss", lambda x, v, **o: F.gaussian_nll_loss(x, Y, v.exp(), **o), X, r(3, 4), full=flags)
loss("kl", kl, X, Y, log_target=flags)
loss("smooth_l1", lambda x, y, **o: F.smooth_l1_loss(x, y * 2, **o), X, Y, beta=[0.0, 0.3, 1.0])
loss("huber", lambda x, y, **o: F.huber_loss(x, y * 2, **o), X, Y, delta=[0.3, 1.0])
loss("l1", lambda x, y, **o: F.l1_loss(x.sin(), y, **o), X, Y)
loss("mse", F.mse_loss, X, Y, **CELLS)
loss("bce", entropy, X, Y, **CELLS)
loss("bcel", logits, X, Y, **CELLS, pos_weight=[None, wts])
loss("soft_margin", lambda x, **o: F.soft_margin_loss(x, Y.sign(), **o), X)
loss("mlsm", lambda x, **how: F.multilabel_soft_margin_loss(x, (Y > 0).to(F64), **how), X, **EACH)
loss("mlm", lambda x, **o: F.multilabel_margin_loss(x.sin(), labels, **o), X)
MARGINS = EACH | {"p": [1, 2], "margin": [1.0, 0.3]}
loss("multi_margin", lambda x, **o: F.multi_margin_loss(x, tgt, **o), X, **MARGINS)
loss("margin_ranking", ranking, X, Y)
loss("hinge_emb", lambda x, **how: F.hinge_embedding_loss(x.sin(), Y.sign(), margin=0.3, **how), X)
loss("cos_emb", cosine, X, Y)
loss("triplet", triplet, X, Y, p=[1.0, 2.0, 3.0], swap=flags)
loss("ctc", ctc, r(5, 2, 4), zero_infinity=flags)

LINE, PLANE, SPACE = r(2, 3, 9), r(1, 2, 7, 7), r(1, 1, 7, 6, 6)
WINDOWS = {"kernel_size": [2, 3], "stride": [1, 2], "padding": [0, 1], "ceil_mode": flags}
for n, x in (("1d", LINE), ("2d", PLANE), ("3d", SPACE)):
    largest, mean, power = (getattr(F, f"{name}_pool{n}") for name in ("max", "avg", "lp"))
    sweep("max_pool", lambda x, f=largest, **o: f(x.sin(), **o), x, **WINDOWS, dilation=[1, 2])
    sweep("avg_pool", lambda x, f=mean, **o: f(x.sin(), **o), x, **WINDOWS, count_include_pad=flags)
    if n != "1d":
        divided = WINDOWS | {"stride": [2], "divisor_override": [3]}
        sweep("avg_pool", lambda x, f=mean, **o: f(x.sin(), **o), x, **divided)
    norms = {"norm_type": [1.0, 2.0, 3.0], "kernel_size": [2], "ceil_mode": flags}
    x = x if n != "3d" else r(1, 1, 5, 5, 5)  # noqa: PLW2901
    sweep("lp", lambda x, f=power, **o: f(x.exp(), **o), x, **norms)
for n, x in (("1d", LINE), ("2d", PLANE), ("3d", r(1, 1, 5, 6, 7))):
    for how in ("max", "avg"):
        f = getattr(F, f"adaptive_{how}_pool{n}")
        sweep(f"adaptive_{how}", lambda x, f=f, **o: f(x.sin(), **o), x, output_size=[1, 3])
    if n != "1d":
        drawn = torch.full((*x.shape[:2], int(n[0])), 0.4, dtype=F64)
        f = getattr(F, f"fractional_max_pool{n}")
        add(f"fractional{n}", lambda x, f=f, u=drawn: f(x.sin(), 2, 3, _random_samples=u), x)
add("max_unpool", lambda x: F.max_unpool1d(*F.max_pool1d(x.sin(), 2, return_indices=True), 2), LINE)
for pad, x in (
    ((2, 1), r(2, 3, 5)),
    ((2, 1, 1, 2), r(1, 2, 4, 5)),
    ((1, 1, 1, 2, 1, 1), r(1, 1, 3, 4, 3)),
):
    modes = ["constant", "reflect", "replicate", "circular"]
    sweep("pad", lambda x, pad=pad, **o: F.pad(x.sin(), pad, **o), x, mode=modes)


def resized(x, scale, **how):
    factor, again = scale
    size = None if factor else 7
    return F.interpolate(x.sin(), size, scale_factor=factor, recompute_scale_factor=again, **how)


SCALES = {"scale": [(1.7, None), (1.7, True), (0.6, None), (0.6, True), (None, None)]}
CORNERS = SCALES | {"align_corners": flags}
PLAIN = ["nearest", "nearest-exact", "area"]
for x, smooth, more in (
    (r(1, 2, 5), ["linear"], {}),
    (r(1, 2, 4, 5), ["bilinear", "bicubic"], {"antialias": flags}),
    (r(1, 1, 3, 4, 3), ["trilinear"], {}),
):
    sweep("interp", resized, x, mode=PLAIN, **SCALES)
    sweep("interp", resized, x, mode=smooth, **CORNERS, **more)


def sampled(x, g, **how):
    return F.grid_sample(x.sin(), g * 0.9, **how)


SAMPLED = {"padding_mode": ["zeros", "border", "reflection"], "align_corners": flags}
modes = ["bilinear", "nearest"]
sweep("grid", sampled, r(1, 2, 4, 5), r(1, 3, 3, 2), mode=[*modes, "bicubic"], **SAMPLED)
sweep("grid", sampled, r(1, 1, 4, 3, 5), r(1, 2, 2, 3, 3), mode=modes, **SAMPLED)
turned = lambda t, **o: F.affine_grid(t.sin(), [1, 1, 3, 4], **o)  # noqa: E731
sweep("affine_grid", turned, r(1, 2, 3), align_corners=flags)
MOVES = {"stride": [1, 2], "padding": [0, 1], "dilation": [1, 2]}
for nd, g in itertools.product((1, 2, 3), (1, 2)):
    kernel, bias = r(2, 2 // g, *(2,) * nd), r(2)
    for kind, edge, f in (("conv", 5, f"conv{nd}d"), ("convt", 3, f"conv_transpose{nd}d")):

        def call(x, w, b, f=f, **how):
            return getattr(F, f)(x.sin(), w.sin(), b, **how)

        inputs = r(1, 2, *(edge,) * nd), kernel, bias
        sweep(kind, call, *inputs, groups=[g], **MOVES)
        if kind == "conv":
            sweep(kind, call, *inputs, groups=[g], padding=["same"], dilation=[1, 2])
        else:
            for strides, widths in (([2], [1, 2]), ([1], [2])):
                more = {"stride": strides, "dilation": widths, "output_padding": [1]}
                sweep(kind, call, *inputs, groups=[g], **MOVES | more)

UNARY = (
    *("relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid"),
    *("hardtanh", "leaky_relu", "logsigmoid", "softplus", "softsign", "tanhshrink", "softshrink"),
    *("hardshrink", "sigmoid", "tanh", "rrelu"),
)
OPTIONS = {
    "elu": {"alpha": [0.3, 2.0]}, "celu": {"alpha": [0.3, 2.0]},
    "softplus": {"beta": [0.3, 2.0], "threshold": [3.0]},
    "leaky_relu": {"negative_slope": [-0.3, -2.0]}, "softshrink": {"lambd": [0.3, 2.0]},
    "threshold": {"threshold": [0.3, 2.0], "value": [-1.0]}, "gelu": {"approximate": ["tanh"]},
}  # fmt: skip
for name in UNARY:
    f = getattr(F, name)
    add(name, lambda x, f=f: f(x.sin() * 4), X)
    if "inplace" in str(getattr(f, "__annotations__", {})):
        add(name + " inplace", lambda x, f=f: f(x.sin() * 4, inplace=True), X)
for name, options in OPTIONS.items():
    sweep(name, lambda x, name=name, **o: getattr(F, name)(x.sin() * 4, **o), X, **options)
sweep("glu", lambda x, **o: F.glu(x.sin(), **o), r(2, 4), dim=[0, 1])
sweep("softmin", lambda x, **o: F.softmin(x.sin(), **o), X, dim=[0, 1])


def seeded(f):
    def drawn(x):
        torch.manual_seed(0)
        return f(x)

    return drawn


add("gumbel", seeded(lambda x: F.gumbel_softmax(x.sin(), tau=0.7)), X)
for n in (1, 3):
    add(f"prelu {n}", lambda x, w: F.prelu(x.sin() * 3, w), r(2, 3, 4), r(n).cos())
for w, b in itertools.product([0, 1], repeat=2):

    def kept(scale, shift, w=w, b=b):
        return scale if w else None, shift if b else None

    def normed(x, scale, shift, f, training, kept=kept):
        nought, one = torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64)
        return f(x.sin(), nought, one, *kept(scale, shift), training)

    each = r(4), r(4)
    add(f"layer {w}{b}", lambda x, g, c, k=kept: F.layer_norm(x.sin(), (4,), *k(g, c)), X, *each)
    if w or not b:  # torch says no to a bias alone, in words of its own
        x = r(2, 4, 3)
        add(f"group {w}{b}", lambda x, g, c, k=kept: F.group_norm(x.sin(), 2, *k(g, c)), x, *each)
    sweep(f"batch {w}{b}", normed, r(3, 4, 2), *each, f=[F.batch_norm], training=flags)
    sweep(f"inst {w}{b}", normed, r(3, 4, 3), *each, f=[F.instance_norm], training=flags)
    eps = 1e-5 if w else None
    rms = lambda x, g, k=kept, e=eps: F.rms_norm(x.sin(), (4,), k(g, g)[0], e)  # noqa: E731
    add(f"rms {w}{b}", rms, X, r(4))
add("lrn", lambda x: F.local_response_norm(x.sin(), 3), r(2, 4, 3))
POWERS = {"p": [0.5, 1.0, 2.0, 3.0, float("inf")]}
sweep("normalize", lambda x, **o: F.normalize(x.sin(), **o), X, p=POWERS["p"][1:], dim=[0, 1])
add("cosine_sim", F.cosine_similarity, X, Y)
sweep("pairwise", F.pairwise_distance, X, Y, **POWERS, keepdim=flags)
sweep("pdist", lambda x, **o: F.pdist(x.sin(), **o), X, **POWERS)
sweep("cdist", torch.cdist, X, Y, **POWERS)
add("bilinear", lambda x, y, w, b: F.bilinear(x.sin(), y, w, b), X, Y, r(2, 4, 4), r(2))
add("linear", lambda x, w, b: F.linear(x.sin(), w, b), X, r(2, 4), r(2))
add("unfold", lambda x: F.unfold(x.sin(), 2, dilation=2, padding=1, stride=2), r(1, 2, 5, 5))
add("fold", lambda x: F.fold(x.sin(), (4, 4), 2, stride=2), r(1, 8, 4))
add("pixel_shuffle", lambda x: F.pixel_shuffle(x.sin(), 2), r(1, 4, 2, 2))
add("pixel_unshuffle", lambda x: F.pixel_unshuffle(x.sin(), 2), r(1, 1, 4, 4))
add("channel_shuffle", lambda x: F.channel_shuffle(x.sin(), 2), r(1, 4, 2, 2))


def attended(q, k, v, **how):
    return F.scaled_dot_product_attention(q.sin(), k, v, **how)


half = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
for gqa in flags:
    pairs = r(1, 2 if gqa else 4, 3, 2)
    shared = {"enable_gqa": [gqa], "scale": [None, 0.3]}
    heads = r(1, 4, 3, 2), pairs, pairs.cos()
    sweep("sdpa", attended, *heads, **shared, attn_mask=[None, half, r(3, 3)])
    sweep("sdpa", attended, *heads, **shared, is_causal=[True])
DROPS = {"dropout": 2, "alpha_dropout": 2, "feature_alpha_dropout": 2}
DROPS |= {"dropout1d": 3, "dropout2d": 4, "dropout3d": 5}
for name, axes in DROPS.items():
    f = getattr(F, name)
    add(name, seeded(lambda x, f=f: f(x.sin(), 0.4, True)), r(*(2, 3, 2, 2, 2)[:axes]))


NAMES = sorted({re.split("[ 0-9]", name)[0] for name, _, _ in C})
NO_SECOND = ("embedding_bag", "multi_margin", "mlm", "ctc", "hardsigmoid", "pdist")
"""Without a second derivative in torch, or refused by name."""


def losses_of(call):
    def losses(params, batch):
        *inputs, scale = params.values()
        out = call(*inputs).flatten()
        mix = r(3, len(out)).cos() / (1 + len(out)) ** 0.5
        return torch.tensor([0.5, 1.0, -0.7], dtype=F64) * (scale * (mix @ out)).sin()

    return losses


def literal(losses, params):
    leaves = {n: x.clone().requires_grad_() for n, x in params.items()}
    rows = rows_of(losses(leaves, ()), [x for n, x in leaves.items() if n != "scale"])
    return rows @ rows.mT


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_every_option_through_a_gramian(kind):
    mix = r(3, 3).cos()
    for name, call, inputs in C:
        if re.split("[ 0-9]", name)[0] != kind:
            continue
        losses = losses_of(call)
        params = {str(i): x for i, x in enumerate(inputs)}
        params["scale"] = torch.tensor(1.3, dtype=F64)
        along = {n: r(*x.shape, 1).squeeze(-1).sin() for n, x in params.items()}
        if padded := re.search(r"padding_idx=(2|-1)", name):  # which is a constant
            along["0"][int(padded[1])] = 0
        leaves = {n: x.clone().requires_grad_() for n, x in params.items()}
        wanted = {n: x for n, x in leaves.items() if n != "scale"}
        try:
            scale = {"scale": leaves["scale"]}
            _, gramian = mf.task_gramian(lambda p, b: losses(p | scale, b), wanted, ())
            asked = list(leaves.values())
            slopes = torch.autograd.grad((mix * gramian).sum(), asked, materialize_grads=True)
        except (NotImplementedError, RuntimeError) as error:
            refused = kind in NO_SECOND or "freq=True" in name
            if name.startswith(("batch 01", "inst 01")):  # a bias and no scale
                assert re.search("proper Tensor", str(error)), (name, str(error))  # noqa: PT017
                continue
            words = "not implement|scale_grad_by_freq|derivatives are wrong; use"
            assert refused, (name, str(error))  # noqa: PT017
            assert re.search(words, str(error)), (name, str(error))  # noqa: PT017
            continue
        got = float(sum((a * b).sum() for a, b in zip(slopes, along.values(), strict=True)))

        def slope(h):
            moved = [{n: x + k * h * along[n] for n, x in params.items()} for k in (1, -1)]
            ends = [(mix * literal(losses, at)).sum() for at in moved]
            return float(ends[0] - ends[1]) / (2 * h)

        expected, coarse = slope(1e-5), slope(2e-5)
        # differences are exact to h², which is a third of what two steps differ by
        room = 1e-5 * (abs(got) + abs(expected)) + 10 * abs(expected - coarse) + 1e-8
        assert abs(got - expected) <= room, (name, got, expected)
        assert "freq=True" not in name
