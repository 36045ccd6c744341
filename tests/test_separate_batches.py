"""Losses of one pass that read slices of their own, and look-alikes: one pass by indicators."""

# pyright: reportArgumentType=false

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import mtlfunc as mf
from mtlfunc.core.transforms import lanes
from mtlfunc.gradients import backward
from tests.support.oracles import F64, literal, near, rows_of

T = B = D = 4  # tasks, samples and features of one number: every mistake about axes is possible


def tensor(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


X, Y, LABELS = tensor(0, T, B, D), tensor(1, T, B, D), torch.arange(T * B).reshape(T, B) % D
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


def product(h, w):
    return torch.einsum("tbi,oi->tbo", h, w)


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
    "stacked again": lambda p: torch.stack([h.square().mean() for h in net(p, X)]),
    "separate scalars": lambda p: tuple(h.exp().mean() for h in net(p, X)),
    "einsum": lambda p: error(product(product(X, p["w"]).relu(), p["v"]) + p["b"] - p["c"]),
    "attention inside": lambda p: error(F.linear(attention(net(p, X)), p["w"])),
    "norms": lambda p: error(F.linear(F.layer_norm(net(p, X), (D,), p["b"], p["c"]), p["w"])),
    "convolution": conv,
    "two reads of one weight": lambda p: error(net(p, net(p, X) + X)),
    "a task's two slices": lambda p: error(
        net(p, torch.cat([X, X.flip(1)])).unflatten(0, (2, T)).sum(0)
    ),
    "statistic of a task": lambda p: error(net(p, X) - net(p, X).mean(1, keepdim=True)),
    "detached statistic of all": lambda p: error(net(p, X) * net(p, X).detach().std()),
    "cross-entropy": lambda p: F.cross_entropy(
        net(p, X).transpose(1, 2), LABELS, reduction="none"
    ).mean(1),
    "a call that no loss reads": lambda p: (net(p, X + 1), error(net(p, X)))[1],
    "embedding": lambda p: error(net(p, F.embedding(LABELS, p["w"]))),
    "in place": lambda p: error((2 * net(p, X)).mul_(2).tanh_()),
    "beside a constant": lambda p: torch.cat([Y, net(p, X)], -1).square().mean((1, 2)),
    "a call turned": lambda p: error(net(p, X).transpose(0, 1) * net(p, X)),
    "vmap inside": lambda p: vmap(lambda x: net(p, x).square().mean())(X),
    "vmap over samples": lambda p: vmap(lambda x: net(p, x).square().mean(), in_dims=1)(X),
}
LOOK_ALIKES = {
    "batch norm": lambda p: error(
        F.batch_norm(net(p, X.flatten(0, 1)), None, None, training=True).reshape(T, B, D)
    ),
    "attention across": lambda p: error(attention(net(p, X).transpose(0, 1)).transpose(0, 1)),
    "shared statistic of tasks": lambda p: error(net(p, X) - net(p, X).mean(0)),
    "softmax of tasks": lambda p: error(net(p, X).softmax(0)),
    "broadcast along another axis": lambda p: error(net(p, X) + net(p, X)[:, 0]),
    "turned": turned,
    "rolled": lambda p: error(net(p, X).roll(1, 1) + net(p, X).roll(1, 0)),
    "a normaliser": lambda p: error(net(p, X)) / error(net(p, X)).sum(),
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
    "in place on a view": lambda p: error(net(p, X).view(T, B, D).mul_(2)),
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


def loop(f, params):
    """The Gramian of single passes."""
    rows = literal(vector(f), params, ())
    return rows @ rows.mT


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
    losses, got = own(EVERY[name], PARAMS, engine="layerwise")
    near(got, loop(EVERY[name], PARAMS), 1e-10, 1e-12)
    assert losses.shape == (T,)
    assert (sum(passes) == 1) == (name in APART or name in CALLED_APART)


@pytest.mark.parametrize("name", EVERY)
def test_tasks_without_weightings_are_those_of_single_passes(name):
    found = mf.task_gramian(lambda p, _: EVERY[name](p), PARAMS, (), engine="layerwise")[1]
    near(found, loop(EVERY[name], PARAMS), 1e-10, 1e-12)


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
        near(info.gramian, its.gramian, 1e-10, 1e-12)
        near(got, expected, 1e-6, 1e-8)


@pytest.mark.parametrize("name", [x for x in EVERY if x not in ("hook", "vmap inside")])
def test_composes_with_vmap_and_grad(name):
    f = EVERY[name]
    many = {k: torch.stack([v, v + 0.1, v.flip(0)]) for k, v in PARAMS.items()}

    def found(p):
        return own(f, p, engine="layerwise")[1]

    if name != "own backward":  # torch.func asks a function of one's own for a vmap rule
        each = [loop(f, {k: v[i] for k, v in many.items()}) for i in range(3)]
        near(vmap(found)(many), torch.stack(each), 1e-10, 1e-12)
    weights = tensor(9, T, T)
    got = grad(lambda p: (found(p) * weights).sum())(PARAMS)
    leaves = {k: v.clone().requires_grad_() for k, v in PARAMS.items()}
    with sdpa_kernel(SDPBackend.MATH):
        rows = rows_of(vector(f)(leaves, ()), leaves.values(), create_graph=True)
        value = ((rows @ rows.mT) * weights).sum()
    wanted = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    near(tuple(got.values()), wanted, 1e-10, 1e-12)
