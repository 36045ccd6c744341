"""NTK, and the formulas of docs/how-to/physics-weights.md, against loops over points."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

import mtlfunc as mf
from docs import outputs
from tests.support import ROOT
from tests.support.oracles import check_slope

F64 = torch.float64
FORMULAS = ("norms", "maximum_over_mean", "kernels")
TOLS = (0.0, 0.4)


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """What the page has defined before it trains, in float64, with fewer points."""
    path, dtype = ROOT / "docs" / "how-to" / "physics-weights.md", torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        scope: dict[str, Any] = {}
        for block in outputs.run(path.read_text(encoding="utf-8"), path.name):
            scope = block.scope
            if "softadapt" in scope:
                break
        scope["x"] = scope["x"][::5]
        yield scope
    finally:
        torch.set_default_dtype(dtype)


def params_of(page: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    found = mf.parameters(page["net"])
    return {
        name: leaf + 0.1 * mf.random.normal(mf.random.key(10 * seed + i), leaf.shape, F64)
        for i, (name, leaf) in enumerate(found.items())
    }


def residuals_of(page: dict[str, Any], params: dict[str, Tensor]) -> tuple[list[Any], list[Any]]:
    """Functions of the parameters, one a point: u_t + c u_x by `torch.func.grad`, and u - sin."""

    def u(params: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(page["net"], params, (point[None],))[0, 0]

    def equation(point: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda p: grad(u, 1)(p, point) @ torch.tensor([page["SPEED"], 1.0], dtype=F64)

    inside = [equation(point) for point in page["x"]]
    edge = [lambda p, point=point: u(p, point) - point[0].sin() for point in page["first"]]
    return inside, edge


def literal_terms(page: dict[str, Any], params: dict[str, Tensor], tol: float) -> list[Any]:
    """jaxpi's `losses` with `use_causal`: M is its triangle of ones below the diagonal."""
    inside, edge = residuals_of(page, params)
    M = torch.triu(torch.ones(16, 16, dtype=F64), diagonal=1).T

    def equation(p: dict[str, Tensor]) -> Tensor:
        each = torch.stack([r(p) for r in inside]).reshape(16, -1).square().mean(1)
        return (each * torch.exp(-tol * (M @ each)).detach()).mean()

    return [equation, lambda p: torch.stack([r(p) for r in edge]).square().mean()]


def literal(
    page: dict[str, Any], name: str, params: dict[str, Tensor], tol: float, w: Tensor
) -> Tensor:
    each = [grad(term)(params) for term in literal_terms(page, params, tol)]
    if name == "norms":  # compute_weights of jaxpi/models.py, "grad_norm"
        length = [math.sqrt(sum(float(g.square().sum()) for g in one.values())) for one in each]
        return torch.tensor([sum(length) / 2 / n for n in length], dtype=F64)
    if name == "kernels":  # the same, "ntk", of points that all count alike
        traces = []
        for points in residuals_of(page, params):
            squares = [sum(g.square().sum() for g in grad(r)(params).values()) for r in points]
            traces.append(sum(squares) / len(points))
        return torch.stack([sum(traces) / 2 / trace for trace in traces])
    # adaptive_constant of GradientPathologiesPINNs: matrices alone, the loss with its weight
    matrices = [name for name, leaf in params.items() if leaf.ndim == 2]
    largest = max(float(each[0][name].abs().max()) for name in matrices)
    means = [float((w[1] * each[1][name]).abs().mean()) for name in matrices]
    return torch.tensor([1.0, largest / (sum(means) / len(means))], dtype=F64)


@pytest.mark.parametrize("tol", TOLS)
def test_terms_and_their_gradients_are_those_of_the_loop(page, tol):
    params = params_of(page)
    losses, rows = mf.task_gradients(page["terms"], params, tol)
    for task, term in enumerate(literal_terms(page, params, tol)):
        torch.testing.assert_close(losses[task], term(params), rtol=1e-10, atol=0)
        for name, leaf in grad(term)(params).items():
            torch.testing.assert_close(rows[name][task], leaf, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("tol", TOLS)
def test_weights_are_those_of_the_papers_codes(page, name, tol):
    params, w = params_of(page, 1), torch.tensor([1.0, 3.0], dtype=F64)
    found = page[name](params, tol, w)
    torch.testing.assert_close(found, literal(page, name, params, tol, w), rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", FORMULAS)
def test_weights_under_vmap_and_grad(page, name):
    every = [params_of(page, seed) for seed in range(3)]
    stacked = {name: torch.stack([one[name] for one in every]) for name in every[0]}
    w = torch.tensor([[1.0, 2.0], [1.0, 0.5], [1.0, 7.0]], dtype=F64)
    formula = page[name]
    found = vmap(formula, (0, None, 0))(stacked, torch.tensor(0.4, dtype=F64), w)
    each = torch.stack([formula(one, 0.4, v) for one, v in zip(every, w, strict=True)])
    torch.testing.assert_close(found, each, rtol=1e-9, atol=0)

    def along(s: Tensor) -> Tensor:
        moved = {name: leaf * (1 + s * leaf.sin()) for name, leaf in every[0].items()}
        return formula(moved, 0.0, w[0])[1].log()  # where no weight is held constant

    check_slope(along, 0.0, "grad", rtol=1e-5)


@pytest.mark.parametrize("name", ["relobralo", "softadapt", "normalized", "weighted"])
def test_rules_by_the_losses_are_those_of_the_papers(page, name):
    """Bischof & Kraus 2021 with an early coin of 0.5, and Heydari et al. 2019, term by term."""
    draws, T = mf.random.stream(mf.random.key(3)), 0.5
    values = [[5.0, 0.1, 2.0], [4.0, 0.3, 2.0], [4.5, 0.2, 1.0], [1.0, 0.15, 0.7]]
    options = {} if name == "softadapt" else {name: True}
    recipe = (
        page["relobralo"](0.7, T, 0.5) if name == "relobralo" else page["softadapt"](2.0, **options)
    )
    state = recipe.init(torch.tensor(values[0], dtype=F64), mf.random.key(3))

    def softmax(x: list[float]) -> list[float]:
        return [math.exp(a) / sum(math.exp(b) for b in x) for a in x]

    expected, last = [1 / 3] * 3, values[0]
    for now in values:
        s = [a - b for a, b in zip(now, last, strict=True)]
        if name == "relobralo":
            old = softmax([a / (T * b) for a, b in zip(now, values[0], strict=True)])
            new = softmax([a / (T * b) for a, b in zip(now, last, strict=True)])
            key, draws = mf.random.draw(draws)
            rho = float(mf.random.uniform(key)) < 0.5
            expected = [
                0.7 * (rho * e + (1 - rho) * o) + 0.3 * n
                for e, o, n in zip(expected, old, new, strict=True)
            ]
        else:
            total = sum(map(abs, s)) if name == "normalized" and any(s) else 1.0
            raw = [
                math.exp(2 * c / total) * (x if name == "weighted" else 1)
                for c, x in zip(s, now, strict=True)
            ]
            expected = [a / sum(raw) for a in raw]
        share = torch.ones(3, dtype=F64)
        geometry = mf.Geometry(torch.tensor(now, dtype=F64), None, share / 3, share > 0, {})
        found, state = recipe.update(geometry, state)
        last = now
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-12, atol=0)


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
        traces = mf.physics.kernel_traces(TERMS, mf.losses_only())
        step = mf.balance(losses, mf.physics.ntk(), traces)
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
