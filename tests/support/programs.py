"""Operations that read a leaf, and random programs of them: float64, [sample, 4] to [sample, 4]."""

import random

import torch
import torch.nn.functional as F
from torch.func import grad, hessian, jvp, vmap
from torch.utils.checkpoint import checkpoint

F64 = torch.float64


def draws(seed):
    """Numbers of a seed of its own: `draw(*shape)`."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, dtype=F64, generator=generator)


def close(got, expected, relative=1e-10, what="", scale=None):
    """Entry by entry, in units of the largest number of `expected`, or of `scale`."""
    assert got.shape == expected.shape, what
    unit = float((expected if scale is None else scale).abs().max())
    assert float((got - expected).abs().max()) <= relative * unit, what


# Every operation maps [sample, 4] to [sample, 4] and never mixes samples, of which there may be 4.
def _several(z):
    return torch.stack([z, z.sin(), 2 * z], 1)


def _energy(w, b):
    return lambda v: (F.linear(v, w) + b).tanh().square().sum()


def _saved_elsewhere(z, w, b):
    with torch.autograd.graph.save_on_cpu():
        return F.linear(z, w, b).tanh() @ w


def _in_place(z, w, b):
    hidden = F.linear(z, w)
    hidden += b
    hidden[:, 0].mul_(2)
    return hidden.relu_() * w[0]


SPREAD = torch.arange(20).reshape(5, 4) % 3
SQUARE, VECTOR, TABLE = (4, 4), (4,), (3, 4)

READS = {
    "linear": (F.linear, SQUARE, VECTOR),
    "positions": (lambda z, w, b: F.linear(_several(z), w, b).square().sum(1), SQUARE, VECTOR),
    "samples in the middle": (
        lambda z, w, b: F.linear(_several(z).transpose(0, 1), w, b).square().sum(0),
        *(SQUARE, VECTOR)),
    "right": (lambda z, w: z @ w, SQUARE),
    "left": (lambda z, w: (w @ z.T).T, SQUARE),
    "addmm": (lambda z, w, b: torch.addmm(b, z, w, beta=0.5, alpha=2), SQUARE, VECTOR),
    "addmm of a factor": (lambda z, w, b: torch.addmm(b, z, w.T, alpha=-1), SQUARE, VECTOR),
    "addmm from the left": (lambda z, w, b: torch.addmm(b[:, None], w, z.T).T, SQUARE, VECTOR),
    "bmm": (lambda z, w: (z.expand(2, -1, -1) @ w).tanh().sum(0), (2, 4, 4)),
    "bmm from the left": (lambda z, w: (w @ z.T.expand(2, -1, -1)).sin().sum(0).T, (2, 4, 4)),
    "bmm both ways": (lambda z, w: ((z.expand(2, -1, -1) @ w).tanh() @ w.mT).sum(0), (2, 4, 4)),
    "baddbmm": (lambda z, w, b: torch.baddbmm(b, z.expand(2, -1, -1), w, beta=2).tanh().sum(0),
        *((2, 4, 4), VECTOR)),
    "baddbmm of plain bias": (
        lambda z, w, b: torch.baddbmm(b, z.expand(2, -1, -1), w).tanh().sum(0),
        *((2, 4, 4), VECTOR)),
    "einsum": (lambda z, w: torch.einsum("nki,oi->no", _several(z), w), SQUARE),
    "vector by vector": (lambda z, w: vmap(lambda v: w @ v)(z), SQUARE),
    "matrix and vector": (lambda z, b: torch.mv(z, b)[:, None] + z, VECTOR),
    "twice in one product": (lambda z, w: z @ (w @ w.T), SQUARE),
    "by itself": (lambda z, w: z @ (w * w) + w[0] * w[0], SQUARE),
    "both ways": (lambda z, w, b: F.linear((z @ w).tanh(), w, b), SQUARE, VECTOR),
    "halves": (lambda z, w: F.linear(z, w[:4]) * F.linear(z, w.chunk(2)[1]).tanh(), (8, 4)),
    "overlapping pieces": (lambda z, w: F.linear(z, w[:4]) * F.linear(z, w[1:]), (5, 4)),
    "a piece and the whole": (lambda z, w: F.linear(z, w)[:, :4] + F.linear(z, w[-4:]), (5, 4)),
    "whole slice": (lambda z, w: F.linear(z, w[0:].split(4)[0]), SQUARE),
    "columns": (lambda z, w: torch.stack([z @ c for c in w.unbind(1)], 1), SQUARE),
    "one of several": (lambda z, w: F.linear(z, w[-1]) + z @ w.select(0, 0), (2, 4, 4)),
    "narrow": (lambda z, w, b: F.linear(z, w.narrow(0, 1, 4), b[-4:]), (6, 4), (6,)),
    "permuted": (lambda z, w: z @ w.permute(2, -2, 0).reshape(4, 4), (4, 1, 4)),
    "flat": (lambda z, w: F.linear(z, w.view(4, 4).clone()), (16,)),
    "expanded": (lambda z, w: F.linear(z, w.expand(4, 4)) * z, (1, 4)),
    "indices": (lambda z, w: w[SPREAD[: len(z)] - 3].sum(1) * z, TABLE),
    "indices of several axes": (lambda z, w: w[SPREAD[: len(z), :1, None]][:, 0, 0] + z, TABLE),
    "pairs of indices": (lambda z, w: w[SPREAD[: len(z), 0], SPREAD[: len(z), 1]] + z, (3, 4, 4)),
    "short indices": (lambda z, w: w.index_select(0, SPREAD[: len(z), 0].int()) + z, TABLE),
    "embedding": (lambda z, w: F.embedding(SPREAD[: len(z)], w, padding_idx=-1).sum(1) * z.sin(),
        TABLE),
    "tied embedding": (
        lambda z, w: (
            z @ F.embedding(SPREAD[: len(z)], w).mT.mean((0, 2)).diag() + (z @ w.T) @ w
            if len(z) == 1
            else (F.embedding(SPREAD[: len(z), 0], w) + z) @ w.T @ w
        ),
        TABLE,
    ),
    "positions from a table": (
        lambda z, w: (_several(z) + F.embedding(torch.arange(3), w)).square().sum(1), TABLE),
    "conv1d": (lambda z, w, b: F.conv1d(z[:, None], w, b, 2, 2, 2).mT.square().sum(1),
        *((4, 1, 2), VECTOR)),
    "conv2d": (
        lambda z, w, b: (
            F.conv2d(z.view(-1, 2, 2, 1).expand(-1, -1, 2, 3), w, b, 1, 1, 1, 2)
            .square()
            .mean((2, 3))
        ),
        *((4, 1, 2, 2), VECTOR),
    ),
    "transposed conv": (
        lambda z, w: F.conv_transpose1d(z.view(-1, 2, 2), w, None, 2, 1, 0, 2, 1).square().sum(2),
        (2, 2, 2)),
    "layer norm": (lambda z, w, b: F.layer_norm(z + 1e3, (4,), w, b, 1e-12), *(VECTOR, VECTOR)),
    "rms norm": (lambda z, w: F.rms_norm(_several(z), (3, 4), w).sum(1), TABLE),
    "group norm": (lambda z, w, b: F.group_norm(_several(z).mT, 2, w, b).square().sum(2),
        *(VECTOR, VECTOR)),
    "batch norm": (lambda z, w, b: F.batch_norm(z, b.detach(), w.detach().square() + 0.1, w, b),
        *(VECTOR, VECTOR)),
    "sums": (lambda z, b, s: torch.sub(b, torch.add(z, s, alpha=2), alpha=3) + s.exp(),
        *(VECTOR, ())),
    "products": (lambda z, b, s: b / (3 + (z * b * s).sin()), VECTOR, (1,)),
    "broadcast": (lambda z, w, s: (_several(z) * w + s).sin().sum(1), TABLE, (1, 4)),
    "in place": (_in_place, SQUARE, VECTOR),
    "gradient": (lambda z, w, b: vmap(grad(_energy(w, b)))(z), SQUARE, VECTOR),
    "hessian": (lambda z, w, b: vmap(hessian(_energy(w, b)))(z).sum(1), SQUARE, VECTOR),
    "jvp": (lambda z, w: jvp(lambda v: (v @ w).tanh(), (z,), (z.sin(),))[1] @ w, SQUARE),
}  # fmt: skip
AWAY = {
    "checkpointed": (
        lambda z, w, b: checkpoint(lambda z, w, b: F.linear(z, w, b).tanh() @ w, z, w, b,
        use_reentrant=False), *(SQUARE, VECTOR)),
    "saved elsewhere": (_saved_elsewhere, SQUARE, VECTOR),
}  # fmt: skip
"""What they saved is not there, and not under transforms."""


# Each takes [sample, 4] and t; at t = 0 most keep samples apart, and no graph says which.
MIXES = {
    "flip": lambda z, t: z + t * z.flip(0),
    "roll": lambda z, t: z + t * z.roll(1, 0),
    "product": lambda z, t: ((1 - t) * torch.eye(len(z), dtype=F64) + t / len(z)) @ z,
    "sum of those before": lambda z, t: z + t * z.cumsum(0),
    "centre": lambda z, t: z - t * z.mean(0),
    "largest": lambda z, t: z + t * z.amax(0),
    "dead": lambda z, t: z + F.relu(z.sum(0) - (99 if t == 0 else -99)),
    "where": lambda z, t: torch.where(torch.tensor(t != 0), z.flip(0), z),
    "order": lambda z, t: z[torch.arange(len(z)).roll(1 if t else 0)],
    "lookup": lambda z, t: F.embedding(torch.arange(len(z)).roll(1 if t else 0), z),
    "softmax": lambda z, t: z + t * z.softmax(0),
    "packed": lambda z, t: F.scaled_dot_product_attention(
        z[None], z[None], z[None], torch.eye(len(z)).bool() | torch.tensor(t != 0)
    )[0],
    "batch norm": lambda z, t: (
        F.batch_norm(z, None, None, training=True)
        if t and len(z) > 1
        else F.batch_norm(z, z.new_zeros(4), z.new_ones(4))
    ),
    "one pair": lambda z, t: z + t * F.one_hot(torch.zeros(1).long(), len(z)).mT * z[-1],
    "pairs": lambda z, t: z + t * torch.cdist(z, z).sum(1, keepdim=True),
    "turned": lambda z, t: z + t * (z.T.reshape(z.shape)),
    "flat": lambda z, t: z + t * z.flatten().roll(1).view_as(z),
    "sorted": lambda z, t: z + t * z.sort(0).values,
    "sign": lambda z, t: z * (1 + t * z.detach().mean().sign() + t * z.mean().tanh()),
}


class Program:
    """Operations one after the other, on leaves used again: losses [sample], and three that mix."""

    def __init__(self, reads, samples, seed):
        draw, pick = draws(seed), random.Random(seed)
        self.x, self.leaves, self.steps = draw(samples, 4), {}, []
        for function, *shapes in reads:
            names = []
            for shape in shapes:
                known = [name for name, leaf in self.leaves.items() if leaf.shape == shape]
                name = f"{len(self.leaves)}"
                if known and pick.random() < 0.4:
                    name = pick.choice(known)
                else:
                    self.leaves[name] = draw(*shape)
                names.append(name)
            self.steps.append((function, names, pick.choice([torch.tanh, F.gelu, torch.sin])))

    def samples(self, params, x):
        for function, names, activation in self.steps:
            x = activation(function(x, *(params[name] for name in names)))
        return x.square().sum(1)

    def tasks(self, params, x):
        losses = self.samples(params, x)
        return torch.stack([losses.sum().sin(), losses.square().mean(), losses[0]])
