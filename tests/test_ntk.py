"""NTK weights and traces against literal loops over points."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

import mtlfunc as mf

F64 = torch.float64
NET = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
PARAMS = {
    name: torch.linspace(-1, 1, leaf.numel(), dtype=F64).sin().reshape(leaf.shape) + 0.2
    for name, leaf in mf.parameters(NET).items()
}
INSIDE = torch.linspace(0.1, 0.9, 14, dtype=F64).reshape(7, 2)
EDGE = torch.linspace(0, 1, 6, dtype=F64).reshape(3, 2)
BATCH = (INSIDE, EDGE)


def inside(params, batch):
    return mf.physics.laplacian(NET, params, batch[0]).laplacian[:, 0] + batch[0].sum(1)


def edge(params, batch):
    return functional_call(NET, params, (batch[1],))[:, 0]


TERMS = [inside, edge]


def losses(params, batch):
    return tuple(term(params, batch).square().mean() for term in TERMS)


def literal_traces(params, mean: bool):
    """Σ or mean of ‖∇r‖² by nested torch.func derivatives, point by point."""

    def u(params, x):
        return functional_call(NET, params, (x,))[0]

    found = []
    for points, r in ((INSIDE, lambda params, x: hessian(u, 1)(params, x).trace()), (EDGE, u)):
        squares = [sum((g**2).sum() for g in grad(r)(params, x).values()) for x in points]
        found.append(sum(squares) / (len(points) if mean else 1))
    return torch.stack(found)


@pytest.mark.parametrize("trace", ["sum", "mean"])
def test_weights_are_those_of_the_kernels_traces(trace):
    probe = mf.physics.kernel_traces(TERMS, mf.losses_only(), trace=trace)
    traces = literal_traces(PARAMS, trace == "mean")
    for step, factor in (
        (mf.balance(losses, mf.physics.ntk(), probe), 0.5),
        (mf.balance(losses, mf.physics.ntk(), probe, reduction="sum"), 1.0),
    ):
        grads, _, info = step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))
        paper = traces.sum() / traces  # Wang et al.'s λ
        torch.testing.assert_close(info.weights, factor * paper, rtol=1e-10, atol=0)
        each = [grad(lambda p, f=f: f(p, BATCH).square().mean())(PARAMS) for f in TERMS]
        expected = {n: factor * (paper[0] * each[0][n] + paper[1] * each[1][n]) for n in grads}
        torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-11)


def test_traces_under_vmap_and_grad():
    def weights(params):
        step = mf.balance(
            losses, mf.physics.ntk(), mf.physics.kernel_traces(TERMS, mf.losses_only())
        )
        return step.update(params, BATCH, step.init(params, BATCH))[2].weights

    def literal(params):
        traces = literal_traces(params, False)
        return 0.5 * traces.sum() / traces

    many = {name: torch.stack([leaf, 0.9 * leaf]) for name, leaf in PARAMS.items()}
    each = [literal({name: leaf[i] for name, leaf in many.items()}) for i in range(2)]
    torch.testing.assert_close(vmap(weights)(many), torch.stack(each), rtol=1e-9, atol=0)
    mine, theirs = (grad(lambda p, f=f: f(p)[0])(PARAMS) for f in (weights, literal))
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


def test_residuals_that_share_a_mean():
    def centred(params, batch):
        return edge(params, batch) - edge(params, batch).mean()

    def step_of(engine):
        probe = mf.physics.kernel_traces([centred, edge], mf.losses_only(), engine=engine)
        both = lambda p, b: [f(p, b).square().mean() for f in (centred, edge)]  # noqa: E731
        return mf.balance(both, mf.physics.ntk(), probe)

    with pytest.raises(ValueError, match='use engine="rows"'):
        step_of("auto").update(PARAMS, BATCH, step_of("auto").init(PARAMS, BATCH))
    step = step_of("rows")
    rows = [jacrev(lambda p, f=f: f(p, BATCH))(PARAMS).values() for f in (centred, edge)]
    traces = torch.stack([torch.cat([x.flatten() for x in each]).square().sum() for each in rows])
    found = step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))[2].weights
    torch.testing.assert_close(found, traces.sum() / traces / 2)


def test_an_absent_term_may_have_any_trace_and_one_without_gradient_keeps_its_preference():
    present, trace = torch.tensor([1, 0, 1, 1]).bool(), torch.tensor([1.0, torch.nan, 3.0, 0.0])
    geometry = mf.Geometry(torch.ones(4), None, present / 3, present, {"trace": trace})
    found, _ = mf.physics.ntk().update(geometry, ())
    torch.testing.assert_close(3 * found, torch.tensor([4.0, 0.0, 4 / 3, 1.0]))  # (1 + 3) / trace


def test_bad_arguments():
    probe, rule = mf.losses_only(), mf.physics.ntk()
    both = mf.mgda()._replace(reads=frozenset({"trace", "gramian"}))

    def stepped(*terms):
        step = mf.balance(losses, rule, mf.physics.kernel_traces(terms, probe))
        return step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))

    for call, words in (
        (lambda: stepped(), "residuals: expected a list of functions"),
        (lambda: mf.balance(losses, rule, probe), r"use mtlfunc.physics.kernel_traces"),
        (lambda: mf.Balancer(NET, rule), r"mtlfunc.balance\(losses_fn, rule, mtlfunc.physics"),
        (lambda: mf.balance(losses, both, probe), r"traces\(residuals, mtlfunc.jacobian\("),
        (lambda: stepped(inside), "residuals: 1 functions for 2 losses"),
        (lambda: stepped(inside, lambda p, b: b[0][:0, 0]), r"residuals\[1\]: expected residu"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
