"""Losses of one forward pass that read slices of their own, and many that only seem to: weightings
with indicator rows make their Gramian in one backward pass.
"""

# pyright: reportArgumentType=false

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import mtlfunc as mf
from mtlfunc.core.checks import lanes
from mtlfunc.gradients import backward
from mtlfunc.gradients.layerwise.graph import read_graph
from mtlfunc.gradients.layerwise.owners import walk

F64 = torch.float64
T = B = D = 4  # tasks, samples and features of one number: every mistake about axes is possible


def tensor(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


X, Y = tensor(0, T, B, D), tensor(1, T, B, D)
PARAMS = {
    "w": tensor(2, D, D),
    "b": tensor(3, D),
    "v": tensor(4, D, D),
    "c": tensor(5, D),
    "k": tensor(6, D, 1, 2, 2),  # unused but by a convolution
}


def net(p, x):
    return F.linear(torch.tanh(F.linear(x, p["w"], p["b"])), p["v"], p["c"])


def error(h):
    return (h - Y).square().mean((1, 2))


class Mixing(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] + grads[0].mean(0)


Mixing.__name__ = Mixing.__qualname__ = "MulBackward0"


def hooked(p):
    h = net(p, X)
    h.register_hook(lambda g: g + g.flip(0))
    return error(h)


def attention(h):
    return F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])[:, 0]


def written(p):
    h = net(p, X) * 1
    h[0] = h[1] * 2
    return error(h)


def turned(p):
    h = net(p, X)
    return error(h + net(p, h.transpose(0, 1)))


def both(p):
    h = net(p, X)
    return h.square().mean((0, 2)) + error(h)


def conv(p):
    h = F.conv2d(X.reshape(T * B, 1, 2, 2), p["k"], p["b"])
    h = F.group_norm(h, 2, p["c"]).flatten(1) @ p["v"]
    return h.reshape(T, B, D).square().mean((1, 2))


APART = {
    "three axes": lambda p: error(net(p, X)),
    "samples in one axis": lambda p: error(net(p, X.flatten(0, 1)).reshape(T, B, D)),
    "tasks second": lambda p: (net(p, X.transpose(0, 1)) ** 2).mean((0, 2)),
    "tasks by turns": lambda p: net(p, X.reshape(-1, D)).reshape(B, T, D).square().sum((0, 2)),
    "stacked again": lambda p: torch.stack([h.square().mean() for h in net(p, X)]),
    "separate scalars": lambda p: tuple(h.exp().mean() for h in net(p, X)),
    "chunks": lambda p: tuple(h.exp().mean() for h in net(p, X.flatten(0, 1)).chunk(T)),
    "slices": lambda p: torch.stack(
        [net(p, X.flatten(0, 1))[B * t : B * (t + 1)].square().sum() for t in range(T)]
    ),
    "matmul": lambda p: error(torch.tanh(X @ p["w"] + p["b"]) @ p["v"].T * p["c"]),
    "einsum": lambda p: error(
        torch.einsum("tbi,oi->tbo", torch.einsum("tbi,oi->tbo", X, p["w"]).relu(), p["v"])
        + p["b"]
        - p["c"]
    ),
    "attention inside": lambda p: error(F.linear(attention(net(p, X)), p["w"])),
    "norms": lambda p: error(F.linear(F.layer_norm(net(p, X), (D,), p["b"], p["c"]), p["w"])),
    "convolution": conv,
    "two reads of one weight": lambda p: error(net(p, net(p, X) + X)),
    "a task's two slices": lambda p: error(
        net(p, torch.cat([X, X.flip(1)])).unflatten(0, (2, T)).sum(0)
    ),
    "twins": lambda p: error(net(p, X)) + error(net(p, X.flip(1))),
    "statistic of a task": lambda p: error(net(p, X) - net(p, X).mean(1, keepdim=True)),
    "detached statistic of all": lambda p: error(net(p, X) * net(p, X).detach().std()),
    "cross-entropy": lambda p: (
        F.cross_entropy(net(p, X).flatten(0, 1), torch.arange(T * B) % D, reduction="none")
        .view(T, B)
        .mean(1)
    ),
    "weighted": lambda p: error(net(p, X)) * torch.arange(1.0, T + 1, dtype=F64),
    "a call that no loss reads": lambda p: (net(p, X + 1), error(net(p, X)))[1],
    "embedding": lambda p: error(
        net(p, F.embedding(torch.arange(T * B).reshape(T, B) % D, p["w"]))
    ),
    "in place": lambda p: error((2 * net(p, X)).mul_(2).tanh_()),
    "beside a constant": lambda p: torch.cat([Y, net(p, X)], -1).square().mean((1, 2)),
    "all of it": lambda p: error(net(p, X)[..., :D]),
    "a call turned": lambda p: error(net(p, X).transpose(0, 1) * net(p, X)),
    "a call along the samples": lambda p: (net(p, X) ** 2).mean((0, 2)) + error(net(p, X)),
    "vmap inside": lambda p: vmap(lambda x: net(p, x).square().mean())(X),
    "vmap over samples": lambda p: vmap(lambda x: net(p, x).square().mean(), in_dims=1)(X),
}
LOOK_ALIKES = {
    "batch norm": lambda p: error(
        F.batch_norm(net(p, X.flatten(0, 1)), None, None, training=True).reshape(T, B, D)
    ),
    "attention across": lambda p: error(attention(net(p, X).transpose(0, 1)).transpose(0, 1)),
    "shared statistic": lambda p: error(net(p, X) - net(p, X).mean()),
    "shared statistic of tasks": lambda p: error(net(p, X) - net(p, X).mean(0)),
    "softmax of tasks": lambda p: error(net(p, X).softmax(0)),
    "broadcast along another axis": lambda p: error(net(p, X) + net(p, X)[:, 0]),
    "turned": turned,
    "rolled": lambda p: error(net(p, X).roll(1, 1) + net(p, X).roll(1, 0)),
    "a normaliser": lambda p: error(net(p, X)) / error(net(p, X)).sum(),
    "permuted": lambda p: error(net(p, X))[torch.tensor([1, 0, 3, 2])],
    "permuted, stacked": lambda p: torch.stack([error(net(p, X))[t] for t in (1, 0, 3, 2)]),
    "a neighbour": lambda p: torch.stack(
        [error(net(p, X))[t] + error(net(p, X))[t - 1] for t in range(T)]
    ),
    "one loss twice": lambda p: torch.stack([error(net(p, X))[t] for t in (0, 1, 2, 2)]),
    "ragged": lambda p: torch.stack(
        [h.square().mean() for h in net(p, X.flatten(0, 1)).split([1, 7, 3, 5])]
    ),
    "overlapping": lambda p: torch.stack(
        [net(p, X.flatten(0, 1))[2 * t : 2 * t + 4].square().mean() for t in range(T)]
    ),
    "features": lambda p: net(p, X).square().mean((0, 1)),
    "samples, too": both,
    "in place on a view": lambda p: error(net(p, X).mul_(2)),
    "in place on all of it": lambda p: error(net(p, X)[..., :D].mul_(2)),
    "beside another task": lambda p: error(torch.cat([net(p, X), net(p, X).flip(0)], -1)[..., 2:6]),
    "a trunk": lambda p: torch.stack([(net(p, X[0]) - Y[t]).square().mean() for t in range(T)]),
    "weight decay": lambda p: error(net(p, X)) + p["w"].square().sum(),
    "a weight that was made": lambda p: error(F.linear(net(p, X), p["w"] * 2)),
    "hook": hooked,
    "own backward": lambda p: error(Mixing.apply(net(p, X))),
    "written in place": written,
    "coupled by zero": lambda p: error(net(p, X) + 0 * net(p, X).flip(0)),
    "separate passes": lambda p: tuple(net(p, X[t]).square().mean() for t in range(T)),
}
EVERY = {**APART, **LOOK_ALIKES}
CALLED_APART = {"a trunk", "separate passes"}  # every task calls the layers anew


def loop(f, params, create_graph=False):
    """Rows {name: [task, *shape]} of single passes."""
    leaves = (
        {k: v.clone().requires_grad_() for k, v in params.items()} if not create_graph else params
    )
    losses = f(leaves)
    rows = [
        torch.autograd.grad(
            loss,
            list(leaves.values()),
            retain_graph=True,
            allow_unused=True,
            create_graph=create_graph,
        )
        for loss in losses
    ]
    return {
        name: torch.stack([torch.zeros_like(leaves[name]) if x is None else x for x in some])
        for name, *some in zip(leaves, *rows, strict=True)
    }


def gramian(rows):
    flat = torch.cat([x.flatten(1) for x in rows.values()], 1)
    return flat @ flat.mT


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def vector(f):
    """The losses of a program as a vector, one entry a task."""
    return lambda p, _: losses if isinstance(losses := f(p), Tensor) else torch.stack(losses)


def own(f, p, **options):
    """The recipe: a row of indicators for every task says which entry of the losses is its own."""
    return mf.task_gramian(vector(f), p, (), weightings=torch.eye(T, dtype=F64), **options)


@pytest.fixture
def passes(monkeypatch):
    """How many backward passes each call of the engine stands for."""
    seen, real = [], backward.run_backward

    def counted(*args, **options):
        seen.append(lanes())
        return real(*args, **options)

    monkeypatch.setattr(backward, "run_backward", counted)
    return seen


@pytest.mark.parametrize("name", EVERY)
def test_gramian_is_that_of_single_passes(name, passes):
    """From one pass where every task reads entries of its own."""
    losses, got = own(EVERY[name], PARAMS, engine="layerwise")
    close(got, gramian(loop(EVERY[name], PARAMS)))
    assert losses.shape == (T,)
    assert (sum(passes) == 1) == (name in APART or name in CALLED_APART)


@pytest.mark.parametrize("name", EVERY)
def test_tasks_without_weightings_are_those_of_single_passes(name):
    close(
        mf.task_gramian(lambda p, _: EVERY[name](p), PARAMS, (), engine="layerwise")[1],
        gramian(loop(EVERY[name], PARAMS)),
    )


@pytest.mark.parametrize("name", [*APART, "ragged", "separate passes", "permuted, stacked"])
@pytest.mark.parametrize("matrix", [torch.eye(T, dtype=F64), tensor(8, 2, T)])
def test_combination_is_that_of_rows(name, matrix):
    """Of a Gramian's weights, with and without mixtures, and with heads."""
    for shared in ("*", ["w", "b"]):
        answers = []
        for engine in ("layerwise", "rows"):
            probe = mf.jacobian(shared, engine=engine, weightings=lambda _: matrix)
            balance = mf.balance(vector(EVERY[name]), mf.mgda(), probe)
            answers.append(balance.update(PARAMS, (), balance.init(PARAMS, (), 3)))
        (got, _, info), (expected, _, its) = answers
        close(info.gramian, its.gramian)
        for leaf in PARAMS:
            torch.testing.assert_close(got[leaf], expected[leaf], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [x for x in EVERY if x not in ("hook", "vmap inside")])
def test_composes_with_vmap_and_grad(name):
    f = EVERY[name]
    many = {k: torch.stack([v, v + 0.1, v.flip(0)]) for k, v in PARAMS.items()}

    def found(p):
        return own(f, p, engine="layerwise")[1]

    if name != "own backward":  # torch.func asks a function of one's own for a vmap rule
        together = vmap(found)(many)
        for i in range(3):
            close(together[i], gramian(loop(f, {k: v[i] for k, v in many.items()})))
    weights = tensor(9, T, T)
    got = grad(lambda p: (found(p) * weights).sum())(PARAMS)
    leaves = {k: v.clone().requires_grad_() for k, v in PARAMS.items()}
    with sdpa_kernel(SDPBackend.MATH):
        value = (gramian(loop(f, leaves, create_graph=True)) * weights).sum()
    for leaf, expected in zip(
        PARAMS,
        torch.autograd.grad(value, list(leaves.values()), materialize_grads=True),
        strict=True,
    ):
        close(got[leaf], expected)


# ---- what the graph is said to prove -------------------------------------------------------------

N = 3


def written_at(h, x):
    out = h * 1
    out[:, 1:2] = x
    return out


def added_at(h, x):
    out = h * 1
    out[1:].add_(x)
    return out


def summed_at(h):
    out = h * 1
    out[:2].cumsum_(0)
    return out


STEPS = {
    "tanh": torch.tanh,
    "turned": lambda h: h.transpose(0, 1),
    "turned back": lambda h: h.permute(1, 2, 0),
    "merged and split": lambda h: h.reshape(N * N, N).reshape(N, N, N),
    "merged with features": lambda h: h.mT.reshape(N, N * N).reshape(N, N, N),
    "unmatched": lambda h: h.reshape(-1).reshape(1, N * N, N, 1).reshape(N, N, N),
    "linear": lambda h: F.linear(h, tensor(0, N, N), tensor(1, N)),
    "from the left": lambda h: tensor(0, N, N) @ h,
    "own product": lambda h: h @ h.mT,
    "wrong product": lambda h: h @ h.permute(1, 2, 0),
    "first product": lambda h: h @ h[0],
    "addition to a product": lambda h: torch.baddbmm(h[:, :1], h, h.mT, alpha=0.5),
    "addition to a wrong product": lambda h: torch.baddbmm(h[:1], h, h),
    "add to matrix": lambda h: torch.addmm(h[0], h[1], h[2]).expand(N, N, N),
    "unbound": lambda h: torch.stack([x.tanh() for x in h.unbind(1)], 1),
    "unbound elsewhere": lambda h: torch.stack([x.tanh() for x in h.unbind(1)], 0),
    "split": lambda h: torch.cat([x.exp() for x in h.split([1, 2], 0)], 0),
    "split and turned": lambda h: torch.cat(h.split(2, 0)[::-1], 0),
    "joined with constants": lambda h: torch.cat([tensor(3, 1, N, N), h], 0)[-3:],
    "joined with constant features": lambda h: torch.cat([tensor(3, N, N, 1), h], 2)[..., -N:],
    "before constants": lambda h: torch.cat([h[:2], tensor(3, 1, N, N)], 0),
    "features before constants": lambda h: torch.cat([h[..., :1], tensor(3, N, N, 2)], 2),
    "between constants": lambda h: torch.cat([tensor(3, 1, N, N), h[:1], tensor(4, 1, N, N)], 0),
    "chunked": lambda h: torch.cat(h.chunk(2, 2), 2),
    "whole": lambda h: h[:, :N],
    "last": lambda h: h[..., -1:] + h,
    "steps": lambda h: torch.cat([h[::2], h[1::2]]),
    "logsumexp": lambda h: h - h.logsumexp(1, keepdim=True),
    "logsumexp, wrongly": lambda h: h - h.logsumexp(1),
    "largest": lambda h: h * h.max(-1)[0][..., None],
    "smallest": lambda h: h * h.amin((1, 2), keepdim=True),
    "length": lambda h: h / h.norm(dim=-1, keepdim=True),
    "length of all": lambda h: h / h.norm(),
    "variance": lambda h: h + h.var(0),
    "deviation": lambda h: h + h.std((1, 2))[:, None, None],
    "cumulative": lambda h: h.cumsum(1),
    "cumulative over the first": lambda h: h.cumsum(0),
    "softmax of a number": lambda h: h * h.sum().softmax(0),
    "where": lambda h: torch.where(h > 0, h, h[:, :1]),
    "where, wrongly": lambda h: torch.where(h > 0, h, h[:1]),
    "layer norm": lambda h: F.layer_norm(h, (N, N)),
    "layer norm of all": lambda h: F.layer_norm(h, (N, N, N)),
    "layer norm's scale": lambda h: F.layer_norm(h, (N,), h[0, 0]),
    "group norm": lambda h: F.group_norm(h, 1),
    "convolution": lambda h: F.conv1d(h, tensor(0, N, N, 1)),
    "unbatched convolution": lambda h: F.conv2d(h[None], tensor(0, N, N, 1, 1))[0],
    "own kernel": lambda h: F.conv1d(h, h[..., :1]),
    "pooled": lambda h: h + F.max_pool2d(h, 1),
    "pooled, adaptively": lambda h: h + F.adaptive_avg_pool2d(h, 1),
    "attention": lambda h: F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])[:, 0],
    "attention of others": lambda h: F.scaled_dot_product_attention(
        h[:, None], h.transpose(0, 1)[:, None], h[:, None]
    )[:, 0],
    "attention as heads": lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None])[0],
    "vector": lambda h: (h.reshape(N * N, N) @ tensor(0, N)).reshape(N, N, 1) * h,
    "expand": lambda h: h[:1].expand(N, N, N),
    "repeat": lambda h: h[:, :1].repeat(1, N, 1),
    "diagonal": lambda h: h + h.diagonal(dim1=0, dim2=1),
    "on a diagonal": lambda h: h + h[..., 0].diag_embed() + h[:, 0].diag_embed(0, 1),
    "index": lambda h: h[torch.tensor([0, 2, 1])],
    "gather": lambda h: h.gather(0, torch.arange(N**3).reshape(N, N, N) % N),
    "rolled": lambda h: h.roll(1, 2),
    "rolled elsewhere": lambda h: h.roll((1, 1), (0, 2)),
    "rolled as one": lambda h: h.roll(1),
    "flipped": lambda h: h.flip(1),
    "flipped elsewhere": lambda h: h.flip((0, 2)),
    "products along": lambda h: h.cumprod(1),
    "product": lambda h: h + h.prod(1, keepdim=True),
    "sorted": lambda h: h.sort(-1)[0],
    "sorted elsewhere": lambda h: h.sort(0)[0],
    "highest": lambda h: h + h.topk(1, 1)[0],
    "picked": lambda h: h.index_select(1, torch.tensor([2, 0, 0])),
    "picked elsewhere": lambda h: h.index_select(0, torch.tensor([2, 0, 0])),
    "gated": lambda h: F.glu(torch.cat([h, h.exp()], 1), 1),
    "gated elsewhere": lambda h: F.glu(torch.cat([h, h.exp()], 0), 0),
    "batch norm": lambda h: F.batch_norm(h, None, None, training=True),
    "batch norm's statistics": lambda h: F.batch_norm(h, torch.ones(N).to(h), torch.ones(N).to(h)),
    "batch norm's scale": lambda h: F.batch_norm(h, None, None, h[0, 0], training=True),
    "instance norm": lambda h: F.instance_norm(h),
    "padded": lambda h: F.pad(h, (1, 1))[..., 1:-1],
    "padded and moved": lambda h: F.pad(h, (0, 0, 0, 0, 1, -1)),
    "padded in the middle": lambda h: F.pad(h, (0, 0, 1, -1, 0, 0), value=0.3),
    "reflected": lambda h: F.pad(h, (1, 1), mode="reflect")[..., 1:-1],
    "reflected in two": lambda h: F.pad(h[None], (1, 1, 1, 1), mode="reflect")[0, :, 1:-1, 1:-1],
    "replicated": lambda h: F.pad(h, (1, 1), mode="replicate")[..., 1:-1],
    "larger": lambda h: F.interpolate(h, scale_factor=2)[..., :N],
    "smooth": lambda h: F.interpolate(h[:, None], scale_factor=2, mode="bilinear")[:, 0, :N, :N],
    "smoother": lambda h: F.interpolate(h[:, None], scale_factor=2, mode="bicubic")[:, 0, :N, :N],
    "windows": lambda h: F.unfold(h[:, None], 1).reshape(N, N, N),
    "windows of one": lambda h: F.unfold(h, 1).reshape(N, N, N),
    "averaged": lambda h: F.avg_pool3d(h[:, None, None], 1)[:, 0, 0],
    "averages": lambda h: h + F.adaptive_avg_pool3d(h[:, None, None], 1)[:, 0, 0],
    "sampled": lambda h: F.grid_sample(
        h[:, None], h[..., None, :2].expand(N, N, N, 2).tanh(), align_corners=False
    )[:, 0],
    "shrunk": lambda h: F.hardshrink(h, 0.1) + F.softshrink(h, 0.1) + F.threshold(h, 0.1, 1.0),
    "leaky": lambda h: F.prelu(h, h[0, 0]) + F.celu(h),
    "angles": lambda h: torch.atan2(h, h[:1]) + torch.logaddexp(h, h),
    "lower part": lambda h: h.tril() + h.triu(1),
    "ones": lambda h: torch.cat([x.sum()[None] for x in h.reshape(-1).split(1)]).reshape(N, N, N),
    "repeated": lambda h: h[:, :1].repeat(1, 3, 1) + h.repeat(2, 1, 1)[:N],
    "repeated as new": lambda h: h[0].repeat(N, 1, 1),
    "written into a piece": lambda h: written_at(h, h[:, :1] * 2),
    "added to a piece": lambda h: added_at(h, h[:1]),
    "added up in a piece": lambda h: summed_at(h),
    "written": lambda h: (h * 1).index_fill_(0, torch.tensor([1]), 0.5),
}
LAST = {
    "first": lambda h: h.square().mean((1, 2)),
    "second": lambda h: h.mean((0, 2)),
    "third": lambda h: h.sum((0, 1)),
    "stacked": lambda h: torch.stack([x.square().sum() for x in h]),
    "sums one by one": lambda h: torch.stack([h[2].sum(), h[0].sum(), h[1].sum()]),
    "parts": lambda h: torch.stack([x.square().sum() for x in h.reshape(-1).split([9, 12, 6])]),
    "cross-entropy": lambda h: F.cross_entropy(
        h, torch.arange(9).reshape(3, 3) % 3, reduction="none"
    ).mean(1),
    "error": lambda h: F.mse_loss(h, h[:1].expand(N, N, N), reduction="none").sum((1, 2)),
    "sizes": lambda h: h[:, 0].norm(dim=1),
}


def wrong(steps, last):
    """Whether an entry serves another loss than the graph is said to prove; and what is said."""
    h = first = tensor(7, N, N, N).requires_grad_() * 1
    for step in steps:
        h = STEPS[step](h)
    losses = LAST[last](h)
    if losses.grad_fn is None:
        return False, np.full(first.shape, -1)
    graph, found = read_graph((get_gradient_edge(losses),), {}), {}

    def visit(place, owner):
        found[place] = owner
        return True

    walk(tuple(graph.reach), [((losses.grad_fn, losses.output_nr), np.arange(N))], visit)
    claimed = np.broadcast_to(found.get((first.grad_fn, 0), -1), first.shape)
    for i in range(N):
        (row,) = torch.autograd.grad(losses[i], first, retain_graph=True, allow_unused=True)
        served = np.zeros(first.shape, bool) if row is None else row.numpy() != 0
        if (served & (claimed != i) & (claimed != -2)).any():
            return True, claimed
    return False, claimed


def test_nothing_false_is_proved_of_any_operation():
    answers = {(step, last): wrong([step], last) for step in STEPS for last in LAST}
    assert not [names for names, (bad, _) in answers.items() if bad]
    assert sum((said != -2).all() for _, said in answers.values()) > 120


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=3), st.sampled_from(sorted(LAST)))
@settings(max_examples=80)
def test_nothing_false_is_proved_of_programs(steps, last):
    assert not wrong(steps, last)[0]
