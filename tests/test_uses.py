"""Operations that read a leaf, one by one and in random programs: the layerwise engine gives the
numbers of a literal loop, and of rows.
"""

import random
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, hessian, jvp, vmap
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from mtlfunc.gradients.layerwise import plan
from tests.support.oracles import literal

F64 = torch.float64


def draws(seed):
    """Numbers of a seed of its own: `draw(*shape)`."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, dtype=F64, generator=generator)


def close(got, expected, relative=1e-10):
    assert got.shape == expected.shape
    assert float((got - expected).abs().max() / expected.abs().max()) <= relative


draw = draws(0)
N, A, O = 4, 40, 30  # many inputs, so that pairs of positions are cheaper than rows


def _both_ways(p, x):
    hidden = torch.addmm(p["b"], x, p["w"]).tanh()
    return torch.addmm(p["b"], hidden, p["w"].T).tanh().square().sum(1)


BIASES = {
    "products with a factor": (
        lambda p, x: torch.addmm(p["b"], x, p["w"], alpha=2).square().sum(1),
        {"b": draw(O), "w": draw(A, O)},
    ),
    "bias with a factor": (
        lambda p, x: torch.addmm(p["b"], x, p["w"], beta=2).square().sum(1),
        {"b": draw(O), "w": draw(A, O)},
    ),
    "one bias of several products": (
        lambda p, x: torch.baddbmm(p["b"], x.expand(3, -1, -1), p["w"]).square().sum((0, 2)),
        {"b": draw(O), "w": draw(3, A, O)},
    ),
    "a weight and its transpose": (_both_ways, {"b": draw(A), "w": 0.1 * draw(A, A)}),
    "a bias by position": (
        lambda p, x: torch.addmm(p["b"], x, p["w"]).view(2, 2, O).square().sum((1, 2)),
        {"b": draw(N, O), "w": draw(A, O)},
    ),
    "a number that no axis of a layer counts": (
        lambda p, x: (F.linear(x, p["w"]) * p["b"]).square().sum(1),
        {"b": draw(), "w": draw(O, A)},
    ),
    "a number in a mean": (
        lambda p, x: F.linear(x, p["w"]).square().sum(1) * p["b"].exp(),
        {"b": draw(), "w": draw(O, A)},
    ),
    "a mask of bytes": (
        lambda p, x: (x @ p["w"])[:, :5] @ p["b"][torch.ones(5, dtype=torch.uint8)].sum(1),
        {"b": draw(5, 3), "w": draw(A, O)},
    ),
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("name", BIASES)
def test_a_leaf_and_the_products_that_it_is_added_to(name):
    losses, params = BIASES[name]
    rows = literal(losses, params, X)
    close(mf.sample_gramian(losses, params, X, engine="layerwise")[1], rows @ rows.mT)
    close(mf.sample_norms(losses, params, X, engine="layerwise")[1], rows.norm(dim=1))
    close(mf.task_gramian(losses, params, X, engine="layerwise")[1], rows @ rows.mT)


X = draw(N, A)


class Trunk(nn.Module):
    """Two layers, of which the user calls each."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(A, 5, dtype=F64), nn.Linear(5, 2, dtype=F64)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_gradient_retained_before_the_block_is_the_losses_own(steps, monkeypatch):
    monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    net = Trunk()
    balancer = mf.Balancer(net, mf.mgda())
    for _ in range(steps):
        hidden = net.first(X).tanh()
        hidden.retain_grad()
        with balancer:
            losses = net.last(hidden).square().mean(0)
        # differentiated one task at a time, the last of them last
        alone = [torch.autograd.grad(x, hidden, retain_graph=True)[0] for x in losses]
        hidden.grad = None
        balancer.backward(losses)
        close(hidden.grad, sum(alone))


def _tripled(inputs, outputs):
    return tuple(x if x is None else 3 * x for x in inputs)


def test_a_hook_of_another_thread_is_seen(monkeypatch):
    """It changes what a layer hands on, which its deltas do not show."""
    found = []
    for apart in (False, True):
        net = Trunk()
        balancer = mf.Balancer(net, mf.mgda(), mf.jacobian("*", engine="layerwise"))
        hidden = net.first(X)
        hidden.grad_fn.register_hook(_tripled)
        losses = tuple(net.last(hidden.tanh()).square().mean(0))

        def backward(balancer=balancer, losses=losses):
            found.append(balancer.backward(losses).gramian)

        if apart:
            thread = threading.Thread(target=backward)
            thread.start()
            thread.join()
        else:
            backward()
    close(found[1], found[0])


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
        *(SQUARE, VECTOR),
    ),
    "right": (lambda z, w: z @ w, SQUARE),
    "left": (lambda z, w: (w @ z.T).T, SQUARE),
    "addmm": (lambda z, w, b: torch.addmm(b, z, w, beta=0.5, alpha=2), SQUARE, VECTOR),
    "addmm of a factor": (lambda z, w, b: torch.addmm(b, z, w.T, alpha=-1), SQUARE, VECTOR),
    "addmm from the left": (lambda z, w, b: torch.addmm(b[:, None], w, z.T).T, SQUARE, VECTOR),
    "bmm": (lambda z, w: (z.expand(2, -1, -1) @ w).tanh().sum(0), (2, 4, 4)),
    "bmm from the left": (lambda z, w: (w @ z.T.expand(2, -1, -1)).sin().sum(0).T, (2, 4, 4)),
    "bmm both ways": (
        lambda z, w: ((z.expand(2, -1, -1) @ w).tanh() @ w.mT).sum(0),
        (2, 4, 4),
    ),
    "baddbmm": (
        lambda z, w, b: torch.baddbmm(b, z.expand(2, -1, -1), w, beta=2).tanh().sum(0),
        *((2, 4, 4), VECTOR),
    ),
    "baddbmm of plain bias": (
        lambda z, w, b: torch.baddbmm(b, z.expand(2, -1, -1), w).tanh().sum(0),
        *((2, 4, 4), VECTOR),
    ),
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
    "expanded": (lambda z, w: F.linear(z, w.expand(4, 4)), (1, 4)),
    "indices": (lambda z, w: w[SPREAD[: len(z)] - 3].sum(1) * z, TABLE),
    "indices of several axes": (lambda z, w: w[SPREAD[: len(z), :1, None]][:, 0, 0] + z, TABLE),
    "pairs of indices": (lambda z, w: w[SPREAD[: len(z), 0], SPREAD[: len(z), 1]] + z, (3, 4, 4)),
    "short indices": (lambda z, w: w.index_select(0, SPREAD[: len(z), 0].int()) + z, TABLE),
    "embedding": (
        lambda z, w: F.embedding(SPREAD[: len(z)], w, padding_idx=-1).sum(1) * z.sin(),
        TABLE,
    ),
    "tied embedding": (
        lambda z, w: (
            z @ F.embedding(SPREAD[: len(z)], w).mT.mean((0, 2)).diag() + (z @ w.T) @ w
            if len(z) == 1
            else (F.embedding(SPREAD[: len(z), 0], w) + z) @ w.T @ w
        ),
        TABLE,
    ),
    "positions from a table": (
        lambda z, w: (_several(z) + F.embedding(torch.arange(3), w)).square().sum(1),
        TABLE,
    ),
    "conv1d": (
        lambda z, w, b: F.conv1d(z[:, None], w, b, 2, 2, 2).mT.square().sum(1),
        *((4, 1, 2), VECTOR),
    ),
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
        (2, 2, 2),
    ),
    "layer norm": (
        lambda z, w, b: F.layer_norm(z + 1e3, (4,), w, b, 1e-12),
        *(VECTOR, VECTOR),
    ),
    "rms norm": (lambda z, w: F.rms_norm(_several(z), (3, 4), w).sum(1), TABLE),
    "group norm": (
        lambda z, w, b: F.group_norm(_several(z).mT, 2, w, b).square().sum(2),
        *(VECTOR, VECTOR),
    ),
    "batch norm": (
        lambda z, w, b: F.batch_norm(z, b.detach(), w.detach().square() + 0.1, w, b),
        *(VECTOR, VECTOR),
    ),
    "sums": (
        lambda z, b, s: torch.sub(b, torch.add(z, s, alpha=2), alpha=3) + s.exp(),
        *(VECTOR, ()),
    ),
    "products": (lambda z, b, s: b / (3 + (z * b * s).sin()), VECTOR, (1,)),
    "broadcast": (lambda z, w, s: (_several(z) * w + s).sin().sum(1), TABLE, (1, 4)),
    "in place": (_in_place, SQUARE, VECTOR),
    "gradient": (lambda z, w, b: vmap(grad(_energy(w, b)))(z), SQUARE, VECTOR),
    "hessian": (lambda z, w, b: vmap(hessian(_energy(w, b)))(z).sum(1), SQUARE, VECTOR),
    "jvp": (lambda z, w: jvp(lambda v: (v @ w).tanh(), (z,), (z.sin(),))[1] @ w, SQUARE),
}
AWAY = {
    "checkpointed": (
        lambda z, w, b: checkpoint(
            lambda z, w, b: F.linear(z, w, b).tanh() @ w, z, w, b, use_reentrant=False
        ),
        *(SQUARE, VECTOR),
    ),
    "saved elsewhere": (_saved_elsewhere, SQUARE, VECTOR),
}
"""What they saved is not there, and not under transforms."""


class Program:
    """Some of the operations one after the other, on leaves that may be used again; `samples` has
    the losses [sample], `tasks` three that mix samples.
    """

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


def _flat(leaves):
    return torch.cat([leaf.flatten() for leaf in leaves])


def check(program):
    """The number of answers that were compared: samples may be refused where an axis that counts
    something else has as many entries.
    """
    params, x, checked = program.leaves, program.x, 0
    rows, tasks = (literal(losses, params, x) for losses in (program.samples, program.tasks))
    weightings = draws(1)(2, len(x))
    ask = {"params": params, "batch": x, "engine": "layerwise"}
    for losses in (program.tasks, lambda p, x: tuple(program.tasks(p, x))):
        close(mf.task_gramian(losses, **ask)[1], tasks @ tasks.mT, 1e-8)
        checked += 1
    by_sample = {
        lambda: mf.sample_gramian(program.samples, **ask)[1]: rows @ rows.mT,
        lambda: mf.sample_norms(program.samples, **ask)[1]: rows.norm(dim=1),
        lambda: mf.task_gramian(program.samples, **ask)[1]: rows @ rows.mT,
        lambda: mf.task_gramian(program.samples, **ask, weightings=weightings)[1]: (
            weightings @ rows @ rows.mT @ weightings.mT
        ),
    }
    for answer, expected in by_sample.items():
        try:
            got = answer()
        except ValueError as error:
            if "samples mix" not in str(error):
                raise
            continue
        close(got, expected, 1e-8)
        checked += 1
    return checked


def check_steps(program):
    """Balanced gradients of functions and of losses that exist, vmap, and gradients of Gramians."""
    params, x = program.leaves, program.x
    rule = mf.cagrad(0.4)

    def balanced(engine):
        step = mf.balance(program.tasks, rule, mf.jacobian(engine=engine))
        return _flat(step.update(params, x, step.init(params, x, key=0))[0].values())

    def live(engine, separate, block):
        module = nn.ParameterDict({name: nn.Parameter(leaf) for name, leaf in params.items()})
        balancer = mf.Balancer(module, rule, mf.jacobian(engine=engine))
        if block:
            with balancer:
                losses = program.tasks(module, x)
        else:
            losses = program.tasks(module, x)
        balancer.backward(tuple(losses) if separate else losses)
        return _flat(leaf.grad for leaf in module.values())

    def hypergradient(engine):
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        gramian = mf.task_gramian(program.tasks, leaves, x, engine=engine)[1]
        value = (gramian * draws(2)(3, 3)).sum()
        first = torch.autograd.grad(value, [*leaves.values()], create_graph=True)
        return _flat(torch.autograd.grad(_flat(first).square().sum(), [*leaves.values()]))

    def scaled(engine):
        def gramian(scale):
            scaled = {name: scale * leaf for name, leaf in params.items()}
            return mf.task_gramian(program.tasks, scaled, x, engine=engine)[1]

        return vmap(gramian)(torch.tensor([1.0, 0.7], dtype=F64))

    expected = balanced("rows")
    close(balanced("layerwise"), expected, 1e-6)
    for separate in (False, True):
        for block in (False, True):
            close(live("layerwise", separate, block), expected, 1e-6)
    close(scaled("layerwise"), scaled("rows"), 1e-8)
    close(hypergradient("layerwise"), hypergradient("rows"), 1e-6)


@pytest.mark.parametrize("name", READS)
def test_every_operation_alone(name):
    checked = [check(Program([READS[name]], samples, seed=3)) for samples in (4, 5)]
    assert max(checked) == 6


def drawn(seed):
    pick = random.Random(seed)
    reads = [READS[name] for name in pick.choices(sorted(READS), k=pick.randint(2, 4))]
    return Program(reads, pick.randint(1, 5), seed)


@pytest.mark.parametrize("seed", range(8))
def test_random_programs(seed):
    assert check(drawn(seed)) >= 2
    check_steps(drawn(seed))


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(100, 200))
def test_more_random_programs(seed):
    assert check(drawn(seed)) >= 2
    check_steps(drawn(seed))


@pytest.mark.parametrize("name", AWAY)
def test_inputs_that_are_taken_away_between_layers(name):
    assert check(Program([READS["linear"], AWAY[name], READS["right"]], 5, seed=0)) == 6
