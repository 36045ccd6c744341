"""Gramians in every form and lengths by sample, against loops of single backward passes, on every
architecture and under every transform.
"""

# pyright: reportArgumentType=false

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import mtlfunc as mf
from mtlfunc.gradients import by_samples
from mtlfunc.gradients.layerwise import formulas, plan
from tests.support.architectures import NAMES, SAMPLES, TASKS, build
from tests.support.oracles import agree, literal, near

F64 = torch.float64


@pytest.fixture(autouse=True)
def _attention_that_batches():
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_tasks(name):
    net = build(name)
    _, rows = mf.task_gradients(net.tasks, net.params, net.batch)
    known = literal(net.tasks, net.params, net.batch)
    found = torch.cat([row.flatten(1) for row in rows.values()], 1)
    agree(found @ found.mT, known @ known.mT, 1e-12)


@pytest.mark.parametrize("form", ["kernel", "gemm"])
@pytest.mark.parametrize("name", NAMES)
def test_every_form(name, form, monkeypatch):
    """Whatever the cost model would choose."""
    original = formulas.costs

    def forced(*args, **kwargs):
        found = original(*args, **kwargs)
        return {form: found[form]} if form in found else {"gemm": found["gemm"]}

    monkeypatch.setattr("mtlfunc.gradients.layerwise.plan.costs", lambda *a, **k: forced(*a, **k))
    net = build(name)
    rows = literal(net.samples, net.params, net.batch)
    agree(mf.sample_gramian(net.samples, net.params, net.batch)[1], rows @ rows.mT, 1e-12)


@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("name", NAMES)
def test_lengths(name, engine, monkeypatch):
    for module in (by_samples, plan):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)  # several chunks where no tap serves
    net = build(name)
    losses, lengths = mf.sample_norms(net.samples, net.params, net.batch, engine=engine)
    near(losses, net.samples(net.params, net.batch), 1e-12, 1e-13)
    known = literal(net.samples, net.params, net.batch).norm(dim=1).reshape(SAMPLES, TASKS)
    near(lengths, known, 1e-12)
    one = mf.sample_norms(lambda p, b: net.samples(p, b)[:, 1], net.params, net.batch)[1]
    near(one, known[:, 1], 1e-12)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_both_ways_to_a_length(name, pairs, monkeypatch):
    """From pairs of a sample's positions and from rows, whatever is cheaper."""
    net = build(name)
    known = literal(net.samples, net.params, net.batch).norm(dim=1).reshape(SAMPLES, TASKS)
    monkeypatch.setattr(formulas, "rows_are_cheaper", lambda group, each, tasks: not pairs)
    _, lengths = mf.sample_norms(net.samples, net.params, net.batch)
    near(lengths, known, 1e-12)


def test_lengths_are_the_diagonal_in_single_precision():
    net = build("convolutions")
    params = {name: leaf.float() for name, leaf in net.params.items()}
    batch = tuple(x.float() if x.is_floating_point() else x for x in net.batch)
    net.module.float()
    _, lengths = mf.sample_norms(net.samples, params, batch)
    _, wide = mf.sample_norms(net.samples, params, batch, gramian_dtype=F64)
    _, gramian = mf.sample_gramian(net.samples, params, batch)
    assert lengths.dtype == torch.float32
    assert wide.dtype == F64
    near(lengths.flatten(), gramian.diagonal().sqrt(), 1e-5)
    near(wide.float(), lengths, 1e-5)


# Transforms.

MLP = build("mlp")
READERS = {
    f"{name}, {engine}": lambda p, x, f=f, engine=engine: f(MLP.samples, p, (x,), engine=engine)[1]
    for name, f in (("samples", mf.sample_gramian), ("lengths", mf.sample_norms))
    for engine in ("auto", "rows")
}


def known(name: str, p: Any, x: Tensor) -> Tensor:
    """The same by a loop of torch.func's own gradients (its batched derivative of a layer norm is
    wrong once it is differentiated again).
    """
    count = TASKS * len(x)
    each = [grad(lambda p, i=i: MLP.samples(p, (x,)).flatten()[i])(p) for i in range(count)]
    rows = torch.stack([torch.cat([leaf.flatten() for leaf in g.values()]) for g in each])
    return rows.norm(dim=1).reshape(len(x), TASKS) if "lengths" in name else rows @ rows.mT


@pytest.mark.parametrize("name", READERS)
def test_vmap_and_nested_vmap(name):
    params = {key: torch.stack([leaf, 1.5 * leaf]) for key, leaf in MLP.params.items()}
    x = torch.stack([MLP.batch[0], MLP.batch[0] - 1, 2 * MLP.batch[0]])
    read = READERS[name]
    got = vmap(vmap(read, (None, 0)), (0, None))(params, x)
    for i in range(2):
        alone = {key: leaf[i] for key, leaf in params.items()}
        for j in range(3):
            near(got[i, j], read(alone, x[j]), 1e-11, 1e-12)


@pytest.mark.parametrize("name", READERS)
def test_nan_stays_nan(name):
    x = MLP.batch[0].clone()
    x[0, 0] = torch.nan
    assert READERS[name](MLP.params, x)[0].isnan().any()


@pytest.mark.parametrize("name", READERS)
def test_derivatives(name):
    """By the parameters and the batch, in both modes, and of second order; of a batch that requires
    grad by itself.
    """
    x = MLP.batch[0]
    weigh = torch.linspace(-1, 1, READERS[name](MLP.params, x).numel(), dtype=F64)

    def total(read):
        return lambda p, x: read(p, x).flatten() @ weigh

    ours, theirs = total(READERS[name]), total(lambda p, x: known(name, p, x))
    for argument in range(2):
        near(
            grad(ours, argument)(MLP.params, x), grad(theirs, argument)(MLP.params, x), 1e-9, 1e-10
        )
    along = torch.cos(torch.arange(x.numel(), dtype=F64)).reshape(x.shape)
    forward = [jvp(lambda x, f=f: f(MLP.params, x), (x,), (along,))[1] for f in (ours, theirs)]
    torch.testing.assert_close(*forward, rtol=1e-9, atol=1e-10)
    leaf = x.clone().requires_grad_()
    (closed,) = torch.autograd.grad(ours(MLP.params, leaf), leaf)
    near(closed, grad(theirs, 1)(MLP.params, x), 1e-9, 1e-10)
    # The Hessian along a direction, by central differences: their error is h² ~ 1e-10 times third
    # derivatives, and rounding over h.
    h = 1e-5
    second = grad(lambda x: (grad(ours, 1)(MLP.params, x) * along).sum())(x)
    ends = [grad(theirs, 1)(MLP.params, x + s * h * along) for s in (1, -1)]
    size = float(second.abs().amax())
    near(second, (ends[0] - ends[1]) / (2 * h), 0, 1e-6 * size)


def test_derivative_of_a_length_zero_is_zero():
    def squares(params, x):
        return (x @ params["w"]).square()

    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    _, lengths = mf.sample_norms(squares, {"w": torch.ones(2)}, x)
    assert lengths[0] == 0
    slope = grad(lambda w: mf.sample_norms(squares, {"w": w}, x)[1].sum())(torch.ones(2))
    assert slope.isfinite().all()


# What is formed, and what is refused.
def test_no_row_is_formed(monkeypatch, formed):
    net = nn.Sequential(nn.Linear(600, 400), nn.Tanh(), nn.Linear(400, 4)).double()
    monkeypatch.setattr(formulas.Deltas, "rows", None)  # is not called

    def samples(p, x):
        return functional_call(net, p, x).square()

    x = torch.randn(6, 600, dtype=F64)
    params = mf.parameters(net)
    mf.task_gramian(lambda p, x: samples(p, x).mean(0), params, x)
    assert formed
    mf.sample_norms(lambda p, x: samples(p, x).sum(1), params, x)
    assert (400, 600) not in formed
    assert (4, 400) not in formed
