"""Second derivatives of every differentiable function of `torch.nn.functional` in every option:
flags, modes, reductions. Right through a Gramian, or refused; single plain passes are torch's own.
"""

# pyright: reportArgumentType=false
# pyright: reportAssignmentType=false
# pyright: reportCallIssue=false
# pyright: reportOperatorIssue=false

# A table: names are short.
# ruff: noqa: B023

import itertools
import re

import pytest
import torch
import torch.nn.functional as F

import mtlfunc as mf

F64 = torch.float64


def r(*s):
    n = 1
    for k in s:
        n *= k
    return (torch.sin(torch.arange(1, n + 1, dtype=F64) * 1.7 + len(s)) * 0.8).reshape(s)


X = r(3, 4)
Y = r(3, 4).cos()
red = ["none", "mean", "sum"]
idx = torch.tensor([[0, 2, 2], [1, 0, 3]])
C = []


def add(name, f, *inputs):
    C.append((name, f, inputs))


for pad, freq in itertools.product([None, 2, -1], [False, True]):
    add(
        f"embedding pad={pad} freq={freq}",
        lambda w, pad=pad, freq=freq: F.embedding(idx, w, padding_idx=pad, scale_grad_by_freq=freq),
        r(4, 3),
    )
for mode, freq, pad, off, last in itertools.product(
    ["sum", "mean", "max"], [False, True], [None, 2], [False, True], [False, True]
):

    def f(w, mode=mode, freq=freq, pad=pad, off=off, last=last):
        if off:
            return F.embedding_bag(
                idx.flatten(),
                w.sin(),
                torch.tensor([0, 2, 6] if last else [0, 2]),
                mode=mode,
                scale_grad_by_freq=freq,
                padding_idx=pad,
                include_last_offset=last,
            )
        return F.embedding_bag(idx, w.sin(), mode=mode, scale_grad_by_freq=freq, padding_idx=pad)

    if (off or not last) and not (mode == "max" and freq):
        add(f"embedding_bag {mode} freq={freq} pad={pad} off={off} last={last}", f, r(4, 3))
add(
    "embedding_bag psw",
    lambda w, s: F.embedding_bag(idx, w, mode="sum", per_sample_weights=s.sin()),
    r(4, 3),
    r(2, 3),
)
tgt = torch.tensor([1, 0, 3])
wts = torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=F64)
for rd, ls, w, ig in itertools.product(red, [0.0, 0.2], [None, wts], [-100, 0]):
    add(
        f"cross_entropy {rd} ls={ls} w={w is not None} ig={ig}",
        lambda x, rd=rd, ls=ls, w=w, ig=ig: F.cross_entropy(
            x, tgt, reduction=rd, label_smoothing=ls, weight=w, ignore_index=ig
        ),
        X,
    )
    if ig == -100:
        add(
            f"cross_entropy prob {rd} {ls} {w is not None}",
            lambda x, y, rd=rd, ls=ls, w=w: F.cross_entropy(
                x, y.softmax(1), reduction=rd, label_smoothing=ls, weight=w
            ),
            X,
            Y,
        )
    if ls == 0:
        add(
            f"nll {rd} {w is not None} {ig}",
            lambda x, rd=rd, w=w, ig=ig: F.nll_loss(
                x.log_softmax(1), tgt, reduction=rd, weight=w, ignore_index=ig
            ),
            X,
        )
    if ls == 0:
        add(
            f"nll2d {rd} {w is not None} {ig}",
            lambda x, rd=rd, w=w, ig=ig: F.nll_loss(
                x.log_softmax(1),
                tgt[:2, None, None].expand(2, 3, 2),
                reduction=rd,
                weight=w,
                ignore_index=ig,
            ),
            r(2, 4, 3, 2),
        )
for rd in red:
    for full, lg in itertools.product([False, True], repeat=2):
        add(
            f"poisson {rd} {full} {lg}",
            lambda x, rd=rd, full=full, lg=lg: F.poisson_nll_loss(
                x.exp() if not lg else x, Y.abs() * 3, log_input=lg, full=full, reduction=rd
            ),
            X,
        )
        add(
            f"gauss {rd} {full}",
            lambda x, v, rd=rd, full=full: F.gaussian_nll_loss(
                x, Y, v.exp(), full=full, reduction=rd
            ),
            X,
            r(3, 4),
        )
    for lt in (False, True):
        add(
            f"kl {rd} {lt}",
            lambda x, y, rd=rd, lt=lt: F.kl_div(
                x.log_softmax(1),
                y.log_softmax(1) if lt else y.softmax(1),
                reduction=rd,
                log_target=lt,
            ),
            X,
            Y,
        )
    for b in (0.0, 0.3, 1.0):
        add(
            f"smooth_l1 {rd} {b}",
            lambda x, y, rd=rd, b=b: F.smooth_l1_loss(x, y * 2, reduction=rd, beta=b),
            X,
            Y,
        )
        if b:
            add(
                f"huber {rd} {b}",
                lambda x, y, rd=rd, b=b: F.huber_loss(x, y * 2, reduction=rd, delta=b),
                X,
                Y,
            )
    add(f"l1 {rd}", lambda x, y, rd=rd: F.l1_loss(x.sin(), y, reduction=rd), X, Y)
    add(f"mse {rd}", lambda x, y, rd=rd: F.mse_loss(x, y, reduction=rd), X, Y)
    add(f"mse w {rd}", lambda x, y, rd=rd: F.mse_loss(x, y, reduction=rd, weight=Y.abs()), X, Y)
    for w in (None, Y.abs()):
        add(
            f"bce {rd} {w is not None}",
            lambda x, y, rd=rd, w=w: F.binary_cross_entropy(
                x.sigmoid(), y.sigmoid(), weight=w, reduction=rd
            ),
            X,
            Y,
        )
    for w, pw in itertools.product([None, Y.abs()], [None, wts]):
        add(
            f"bcel {rd} {w is not None} {pw is not None}",
            lambda x, y, rd=rd, w=w, pw=pw: F.binary_cross_entropy_with_logits(
                x, y.sigmoid(), weight=w, pos_weight=pw, reduction=rd
            ),
            X,
            Y,
        )
    add(f"soft_margin {rd}", lambda x, rd=rd: F.soft_margin_loss(x, Y.sign(), reduction=rd), X)
    for w in (None, wts):
        add(
            f"mlsm {rd} {w is not None}",
            lambda x, rd=rd, w=w: F.multilabel_soft_margin_loss(
                x, (Y > 0).to(F64), weight=w, reduction=rd
            ),
            X,
        )
    add(
        f"mlm {rd}",
        lambda x, rd=rd: F.multilabel_margin_loss(
            x.sin(), torch.tensor([[1, 0, -1, 0], [2, -1, 0, 0], [3, 1, 2, -1]]), reduction=rd
        ),
        X,
    )
    for p, w, m in itertools.product([1, 2], [None, wts], [1.0, 0.3]):
        add(
            f"multi_margin {rd} {p} {w is not None} {m}",
            lambda x, rd=rd, p=p, w=w, m=m: F.multi_margin_loss(
                x, tgt, p=p, margin=m, weight=w, reduction=rd
            ),
            X,
        )
    add(
        f"margin_ranking {rd}",
        lambda x, y, rd=rd: F.margin_ranking_loss(x.sin(), y, Y.sign(), margin=0.3, reduction=rd),
        X,
        Y,
    )
    add(
        f"hinge_emb {rd}",
        lambda x, rd=rd: F.hinge_embedding_loss(x.sin(), Y.sign(), margin=0.3, reduction=rd),
        X,
    )
    add(
        f"cos_emb {rd}",
        lambda x, y, rd=rd: F.cosine_embedding_loss(
            x, y, torch.tensor([1.0, -1, -1], dtype=F64), margin=-0.3, reduction=rd
        ),
        X,
        Y,
    )
    for p, sw in itertools.product([1.0, 2.0, 3.0], [False, True]):
        add(
            f"triplet {rd} {p} {sw}",
            lambda x, y, rd=rd, p=p, sw=sw: F.triplet_margin_loss(
                x, y * 2, x.cos() + 1, p=p, swap=sw, reduction=rd, margin=3.0
            ),
            X,
            Y,
        )
    for zi in (False, True):
        add(
            f"ctc {rd} {zi}",
            lambda x, rd=rd, zi=zi: F.ctc_loss(
                x.log_softmax(-1),
                torch.tensor([[1, 2], [3, 1]]),
                torch.tensor([5, 5]),
                torch.tensor([2, 2]),
                reduction=rd,
                zero_infinity=zi,
            ),
            r(5, 2, 4),
        )
img = r(2, 4, 6, 6)
for k, s, p, d, ce in itertools.product([2, 3], [1, 2], [0, 1], [1, 2], [False, True]):
    for n, fn, x in (
        ("1d", F.max_pool1d, r(2, 3, 9)),
        ("2d", F.max_pool2d, r(1, 2, 7, 7)),
        ("3d", F.max_pool3d, r(1, 1, 7, 6, 6)),
    ):
        add(
            f"max_pool{n} {k}{s}{p}{d}{ce}",
            lambda x, fn=fn, k=k, s=s, p=p, d=d, ce=ce: fn(x.sin(), k, s, p, d, ce),
            x,
        )
    if d == 1:
        for cip in (True, False):
            for n, fn, x in (
                ("1d", F.avg_pool1d, r(2, 3, 9)),
                ("2d", F.avg_pool2d, r(1, 2, 7, 7)),
                ("3d", F.avg_pool3d, r(1, 1, 7, 6, 6)),
            ):
                kw = {} if n == "1d" else {"divisor_override": 3 if cip and s == 2 else None}
                add(
                    f"avg_pool{n} {k}{s}{p}{ce}{cip}",
                    lambda x, fn=fn, k=k, s=s, p=p, ce=ce, cip=cip, kw=kw: fn(
                        x.sin(), k, s, p, ce, cip, **kw
                    ),
                    x,
                )
for p, ce in itertools.product([1.0, 2.0, 3.0], [False, True]):
    add(f"lp1 {p}{ce}", lambda x, p=p, ce=ce: F.lp_pool1d(x.exp(), p, 2, ceil_mode=ce), r(2, 3, 9))
    add(
        f"lp2 {p}{ce}",
        lambda x, p=p, ce=ce: F.lp_pool2d(x.exp(), p, 2, ceil_mode=ce),
        r(1, 2, 7, 7),
    )
    add(
        f"lp3 {p}{ce}",
        lambda x, p=p, ce=ce: F.lp_pool3d(x.exp(), p, 2, ceil_mode=ce),
        r(1, 1, 5, 5, 5),
    )
for n, x in (("1d", r(2, 3, 9)), ("2d", r(1, 2, 7, 7)), ("3d", r(1, 1, 5, 6, 7))):
    for o in (1, 3):
        add(
            f"adaptive_max{n} {o}",
            lambda x, n=n, o=o: getattr(F, f"adaptive_max_pool{n}")(x.sin(), o),
            x,
        )
        add(
            f"adaptive_avg{n} {o}",
            lambda x, n=n, o=o: getattr(F, f"adaptive_avg_pool{n}")(x.sin(), o),
            x,
        )
    if n != "1d":
        add(
            f"fractional{n}",
            lambda x, n=n: getattr(F, f"fractional_max_pool{n}")(
                x.sin(),
                2,
                output_size=3,
                _random_samples=torch.full((*x.shape[:2], int(n[0])), 0.4, dtype=F64),
            ),
            x,
        )

    def unp(x, n=n):
        v, i = getattr(F, f"max_pool{n}")(x.sin(), 2, return_indices=True)
        return getattr(F, f"max_unpool{n}")(v, i, 2)

    if n == "1d":
        add(f"max_unpool{n}", unp, x)
for mode in ["constant", "reflect", "replicate", "circular"]:
    add(f"pad1 {mode}", lambda x, mode=mode: F.pad(x.sin(), (2, 1), mode=mode), r(2, 3, 5))
    add(f"pad2 {mode}", lambda x, mode=mode: F.pad(x.sin(), (2, 1, 1, 2), mode=mode), r(1, 2, 4, 5))
    add(
        f"pad3 {mode}",
        lambda x, mode=mode: F.pad(x.sin(), (1, 1, 1, 2, 1, 1), mode=mode),
        r(1, 1, 3, 4, 3),
    )
for mode, x in (
    ("nearest", r(1, 2, 5)),
    ("linear", r(1, 2, 5)),
    ("nearest-exact", r(1, 2, 5)),
    ("area", r(1, 2, 5)),
    ("nearest", r(1, 2, 4, 5)),
    ("bilinear", r(1, 2, 4, 5)),
    ("bicubic", r(1, 2, 4, 5)),
    ("area", r(1, 2, 4, 5)),
    ("nearest-exact", r(1, 2, 4, 5)),
    ("trilinear", r(1, 1, 3, 4, 3)),
    ("nearest", r(1, 1, 3, 4, 3)),
    ("nearest-exact", r(1, 1, 3, 4, 3)),
    ("area", r(1, 1, 3, 4, 3)),
):
    for ac in (None,) if mode in ("nearest", "nearest-exact", "area") else (False, True):
        for sf in (1.7, 0.6, None):
            for rs in (None, True):
                if sf is None and rs:
                    continue
                for aa in (False, True) if mode in ("bilinear", "bicubic") else (False,):
                    add(
                        f"interp {mode}{x.ndim} ac={ac} sf={sf} rs={rs} aa={aa}",
                        lambda x, mode=mode, ac=ac, sf=sf, rs=rs, aa=aa: F.interpolate(
                            x.sin(),
                            size=None if sf else 7,
                            scale_factor=sf,
                            mode=mode,
                            align_corners=ac,
                            recompute_scale_factor=rs,
                            antialias=aa,
                        ),
                        x,
                    )
for mode, pm, ac in itertools.product(
    ["bilinear", "nearest", "bicubic"], ["zeros", "border", "reflection"], [False, True]
):
    add(
        f"grid {mode}{pm}{ac}",
        lambda x, g, mode=mode, pm=pm, ac=ac: F.grid_sample(
            x.sin(), g * 0.9, mode=mode, padding_mode=pm, align_corners=ac
        ),
        r(1, 2, 4, 5),
        r(1, 3, 3, 2),
    )
    if mode != "bicubic":
        add(
            f"grid3 {mode}{pm}{ac}",
            lambda x, g, mode=mode, pm=pm, ac=ac: F.grid_sample(
                x.sin(), g * 0.9, mode=mode, padding_mode=pm, align_corners=ac
            ),
            r(1, 1, 4, 3, 5),
            r(1, 2, 2, 3, 3),
        )
for ac in (False, True):
    add(
        f"affine_grid {ac}",
        lambda t, ac=ac: F.affine_grid(t.sin(), [1, 1, 3, 4], align_corners=ac),
        r(1, 2, 3),
    )
for st, pd, dl, g in itertools.product([1, 2], [0, 1, "same"], [1, 2], [1, 2]):
    if not (pd == "same" and st == 2):
        for nd in (1, 2, 3):
            add(
                f"conv{nd} {st}{pd}{dl}{g}",
                lambda x, w, b, nd=nd, st=st, pd=pd, dl=dl, g=g: getattr(F, f"conv{nd}d")(
                    x.sin(), w.sin(), b, st, pd, dl, g
                ),
                r(1, 2, *(5,) * nd),
                r(2, 2 // g, *(2,) * nd),
                r(2),
            )
    if pd != "same":
        for op in (0, 1):
            if op < max(st, dl):
                for nd in (1, 2, 3):
                    add(
                        f"convt{nd} {st}{pd}{dl}{g}{op}",
                        lambda x, w, b, nd=nd, st=st, pd=pd, dl=dl, g=g, op=op: getattr(
                            F, f"conv_transpose{nd}d"
                        )(x.sin(), w.sin(), b, st, pd, op, g, dl),
                        r(1, 2, *(3,) * nd),
                        r(2, 2 // g, *(2,) * nd),
                        r(2),
                    )
UNARY = (
    *("relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid"),
    *("hardtanh", "leaky_relu", "logsigmoid", "softplus", "softsign", "tanhshrink", "softshrink"),
    *("hardshrink", "sigmoid", "tanh", "rrelu"),
)
for f in UNARY:
    add(f, lambda x, f=f: getattr(F, f)(x.sin() * 4), X)
    if "inplace" in str(getattr(getattr(F, f), "__annotations__", {})):
        add(f + " inplace", lambda x, f=f: getattr(F, f)(x.sin() * 4, inplace=True), X)
for a in (0.3, 2.0):
    add(f"elu {a}", lambda x, a=a: F.elu(x.sin() * 4, a), X)
    add(f"celu {a}", lambda x, a=a: F.celu(x.sin() * 4, a), X)
    add(f"softplus {a}", lambda x, a=a: F.softplus(x.sin() * 4, a, 3.0), X)
    add(f"leaky {-a}", lambda x, a=a: F.leaky_relu(x.sin() * 4, -a), X)
    add(f"softshrink {a}", lambda x, a=a: F.softshrink(x.sin() * 4, a), X)
    add(f"threshold {a}", lambda x, a=a: F.threshold(x.sin() * 4, a, -1.0), X)
add("gelu tanh", lambda x: F.gelu(x.sin() * 4, approximate="tanh"), X)
for d in (0, 1):
    add(f"glu {d}", lambda x, d=d: F.glu(x.sin(), d), r(2, 4))
for d in (0, 1):
    add(f"softmin {d}", lambda x, d=d: F.softmin(x.sin(), d), X)
for h in (False, True):

    def gum(x, h=h):
        torch.manual_seed(0)
        return F.gumbel_softmax(x.sin(), tau=0.7, hard=h)

    if not h:
        add(f"gumbel {h}", gum, X)
for n in (1, 3):
    add(f"prelu {n}", lambda x, w: F.prelu(x.sin() * 3, w), r(2, 3, 4), r(n).cos())
for w, b in itertools.product([0, 1], [0, 1]):
    add(
        f"layer {w}{b}",
        lambda x, g, c, w=w, b=b: F.layer_norm(x.sin(), (4,), g if w else None, c if b else None),
        X,
        r(4),
        r(4),
    )
    if w or not b:  # torch says no to a bias alone, in words of its own
        add(
            f"group {w}{b}",
            lambda x, g, c, w=w, b=b: F.group_norm(x.sin(), 2, g if w else None, c if b else None),
            r(2, 4, 3),
            r(4),
            r(4),
        )
    for tr in (0, 1):
        add(
            f"batch {w}{b}{tr}",
            lambda x, g, c, w=w, b=b, tr=tr: F.batch_norm(
                x.sin(),
                torch.zeros(4, dtype=F64),
                torch.ones(4, dtype=F64),
                g if w else None,
                c if b else None,
                bool(tr),
            ),
            r(3, 4, 2),
            r(4),
            r(4),
        )
    for tr in (0, 1):
        add(
            f"inst {w}{b}{tr}",
            lambda x, g, c, w=w, b=b, tr=tr: F.instance_norm(
                x.sin(),
                torch.zeros(4, dtype=F64),
                torch.ones(4, dtype=F64),
                g if w else None,
                c if b else None,
                bool(tr),
            ),
            r(3, 4, 3),
            r(4),
            r(4),
        )
    add(
        f"rms {w}{b}",
        lambda x, g, w=w: F.rms_norm(x.sin(), (4,), g if w else None, 1e-5 if w else None),
        X,
        r(4),
    )
add("lrn", lambda x: F.local_response_norm(x.sin(), 3), r(2, 4, 3))
for p, d in itertools.product([1.0, 2.0, 3.0, float("inf")], [0, 1]):
    add(f"normalize {p}{d}", lambda x, p=p, d=d: F.normalize(x.sin(), p, d), X)
add("cosine_sim", lambda x, y: F.cosine_similarity(x, y), X, Y)
for p, k in itertools.product([0.5, 1.0, 2.0, 3.0, float("inf")], [False, True]):
    add(f"pairwise {p}{k}", lambda x, y, p=p, k=k: F.pairwise_distance(x, y, p, keepdim=k), X, Y)
for p in (0.5, 1.0, 2.0, 3.0, float("inf")):
    add(f"pdist {p}", lambda x, p=p: F.pdist(x.sin(), p), X)
    add(f"cdist {p}", lambda x, y, p=p: torch.cdist(x, y, p), X, Y)
add("bilinear", lambda x, y, w, b: F.bilinear(x.sin(), y, w, b), X, Y, r(2, 4, 4), r(2))
add("linear", lambda x, w, b: F.linear(x.sin(), w, b), X, r(2, 4), r(2))
add("unfold", lambda x: F.unfold(x.sin(), 2, dilation=2, padding=1, stride=2), r(1, 2, 5, 5))
add("fold", lambda x: F.fold(x.sin(), (4, 4), 2, stride=2), r(1, 8, 4))
add("pixel_shuffle", lambda x: F.pixel_shuffle(x.sin(), 2), r(1, 4, 2, 2))
add("pixel_unshuffle", lambda x: F.pixel_unshuffle(x.sin(), 2), r(1, 1, 4, 4))
add("channel_shuffle", lambda x: F.channel_shuffle(x.sin(), 2), r(1, 4, 2, 2))
for c, m, gq, sc in itertools.product([False, True], [None, "b", "f"], [False, True], [None, 0.3]):
    if not (c and m):

        def att(q, k, v, c=c, m=m, gq=gq, sc=sc):
            mask = (
                None
                if m is None
                else (
                    torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
                    if m == "b"
                    else r(3, 3)
                )
            )
            return F.scaled_dot_product_attention(
                q.sin(), k, v, mask, is_causal=c, scale=sc, enable_gqa=gq
            )

        add(
            f"sdpa {c}{m}{gq}{sc}",
            att,
            r(1, 4, 3, 2),
            r(1, 2 if gq else 4, 3, 2),
            r(1, 2 if gq else 4, 3, 2).cos(),
        )
for f in (
    "dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
):
    nd = {"dropout1d": 3, "dropout2d": 4, "dropout3d": 5}.get(f, 2)

    def dr(x, f=f):
        torch.manual_seed(0)
        return getattr(F, f)(x.sin(), 0.4, True)

    add(f, dr, r(*(2, 3, 2, 2, 2)[:nd]))


NAMES = sorted({re.split("[ 0-9]", name)[0] for name, _, _ in C})
NO_SECOND = ("embedding_bag", "multi_margin", "mlm", "ctc")
"""Without a second derivative in torch, which says so."""


def losses_of(call):
    def losses(params, batch):
        *inputs, scale = params.values()
        out = call(*inputs).flatten()
        mix = r(3, len(out)).cos() / (1 + len(out)) ** 0.5
        return torch.tensor([0.5, 1.0, -0.7], dtype=F64) * (scale * (mix @ out)).sin()

    return losses


def literal(losses, params):
    leaves = {n: x.clone().requires_grad_() for n, x in params.items()}
    wanted = [x for n, x in leaves.items() if n != "scale"]
    rows = [
        torch.cat(
            [
                x.flatten()
                for x in torch.autograd.grad(
                    loss, wanted, retain_graph=True, materialize_grads=True, allow_unused=True
                )
            ]
        )
        for loss in losses(leaves, ())
    ]
    return torch.stack(rows) @ torch.stack(rows).mT


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
        if "pad=2" in name or "pad=-1" in name:  # which is a constant
            along["0"][2 if "pad=2" in name else -1] = 0
        leaves = {n: x.clone().requires_grad_() for n, x in params.items()}
        wanted = {n: x for n, x in leaves.items() if n != "scale"}
        try:
            _, gramian = mf.task_gramian(
                lambda p, b: losses(p | {"scale": leaves["scale"]}, b), wanted, ()
            )
            slopes = torch.autograd.grad(
                (mix * gramian).sum(),
                list(leaves.values()),
                materialize_grads=True,
                allow_unused=True,
            )
        except (NotImplementedError, RuntimeError) as error:
            refused = kind in NO_SECOND or "freq=True" in name
            if name.startswith(("batch 01", "inst 01")):  # a bias and no scale
                assert re.search("proper Tensor", str(error)), (name, str(error))  # noqa: PT017
                continue
            words = "not implement|scale_grad_by_freq"
            assert refused, (name, str(error))  # noqa: PT017
            assert re.search(words, str(error)), (name, str(error))  # noqa: PT017
            continue
        got = float(sum((a * b).sum() for a, b in zip(slopes, along.values(), strict=True)))

        def slope(h):
            ends = [
                (mix * literal(losses, {n: x + k * h * along[n] for n, x in params.items()})).sum()
                for k in (1, -1)
            ]
            return float(ends[0] - ends[1]) / (2 * h)

        expected, coarse = slope(1e-5), slope(2e-5)
        # differences are exact to h², which is a third of what two steps differ by
        room = 1e-5 * (abs(got) + abs(expected)) + 10 * abs(expected - coarse) + 1e-8
        assert abs(got - expected) <= room, (name, got, expected)
        assert "freq=True" not in name
