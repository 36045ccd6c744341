"""CAGrad's reproductions against plain formulas, scipy and literal loops, without its code."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

import mtlfunc as mf
from common.problems import cagrad_toy as toy
from paper_repro.cagrad import common, convergence, dual, toy_runs
from paper_repro.cagrad.toy_ends import STOPPED
from paper_repro.report.findings import Claim, Settings
from paper_repro.report.verdicts import findings


def plain_losses(x: float, y: float, sign: float) -> tuple[float, float]:
    """repro's formulas in Python floats."""
    f1 = math.log(max(abs(0.5 * (-x - 7) - math.tanh(-y)), 5e-6)) + 6
    f2 = math.log(max(abs(0.5 * (-x + 3) + sign * math.tanh(-y) + 2), 5e-6)) + 6
    q1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    q2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    c1, c2 = max(math.tanh(0.5 * y), 0), max(math.tanh(-0.5 * y), 0)
    return c1 * f1 + c2 * q1, c1 * f2 + c2 * q2


@pytest.mark.parametrize("sign", [toy.CODE, toy.PAPER_SIGN])
def test_losses_are_the_plain_formula(sign: float) -> None:
    points = [*toy.STARTS, (-5.0, 2.14), (5.03, 0.3), (3.0, -8.4), (0.1, -0.2)]
    found = toy.at(torch.tensor(points, dtype=torch.float64), sign)
    expected = [plain_losses(*point, sign) for point in points]
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


def min_norm(g1: Tensor, g2: Tensor) -> Tensor:
    if torch.equal(g1, g2):
        return g1
    x = ((g2 - g1) @ g2 / (g1 - g2).square().sum()).clamp(0, 1)
    return x * g1 + (1 - x) * g2


def projected(g1: Tensor, g2: Tensor) -> Tensor:
    p1, p2 = (a - min(float(a @ b), 0.0) / float(b @ b) * b for a, b in ((g1, g2), (g2, g1)))
    return (p1 + p2) / 2


def conflict_averse(g1: Tensor, g2: Tensor, c: float) -> Tensor:
    """The dual by a bounded search of the first weight."""
    g0 = (g1 + g2) / 2
    dual = lambda x: float(  # noqa: E731
        (x * g1 + (1 - x) * g2) @ g0 + c * g0.norm() * (x * g1 + (1 - x) * g2).norm()
    )
    found: Any = minimize_scalar(dual, bounds=(0, 1), method="bounded", options={"xatol": 1e-12})
    x = min((found.x, 0.0, 1.0), key=dual)
    w = x * g1 + (1 - x) * g2
    return g0 + c * g0.norm() / w.norm() * w


LITERAL = {
    "GD": lambda g1, g2, _: (g1 + g2) / 2,
    "MGDA": lambda g1, g2, _: min_norm(g1, g2),
    "PCGrad": lambda g1, g2, _: projected(g1, g2),
    "CAGrad": conflict_averse,
}


@pytest.mark.parametrize("sign", [toy.CODE, toy.PAPER_SIGN])
@pytest.mark.parametrize("name", LITERAL)
def test_first_steps_are_those_of_a_literal_loop(name: str, sign: float) -> None:
    """One start at a time, one autograd call a task, torch's own Adam."""
    steps, alone = 30, torch.zeros(0, 2, dtype=torch.float64)
    run = toy_runs.trajectories([tuple(LITERAL)], alone, steps, compiled=False)[name]
    for start in toy.STARTS:
        if start == (0.0, 0.0):  # equal lengths and a symmetric pair: the weights are not unique
            continue
        x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([x], lr=1e-3)
        for _ in range(steps):
            both = toy.losses({"x": x}, torch.tensor(sign, dtype=torch.float64))
            g1, g2 = (torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in both)
            x.grad = LITERAL[name](g1, g2, toy.USUAL[name])
            optimizer.step()
        found = run.watched[steps, run.lanes.find(start, toy.USUAL[name], sign)]
        torch.testing.assert_close(found, x.detach(), rtol=1e-6, atol=1e-6)


def script_cagrad(rows: Tensor, c: float) -> Tensor:
    """As the official script has it: epsilons, and a bounded search for the weight."""
    g1, g2 = rows[0], rows[1]
    g11, g12, g22 = g1.dot(g1).item(), g1.dot(g2).item(), g2.dot(g2).item()
    square = g11 + g22 - 2 * g12
    radius = c * 0.5 * np.sqrt(g11 + g22 + 2 * g12 + 1e-4)

    def goal(x: float) -> float:
        return (
            radius * np.sqrt(x**2 * square + 2 * x * (g12 - g22) + g22 + 1e-4)
            + 0.5 * x * square
            + (0.5 + x) * (g12 - g22)
            + g22
        )

    x = minimize_scalar(goal, bounds=(0, 1), method="bounded").x
    size = np.sqrt(x**2 * g11 + (1 - x) ** 2 * g22 + 2 * x * (1 - x) * g12 + 1e-4)
    return (0.5 * (g1 + g2) + radius / (size + 1e-4) * (x * g1 + (1 - x) * g2)) / (1 + c)


@pytest.mark.parametrize("c", [0.5, 1.0, 10.0])
def test_epsilons_are_those_of_the_official_search(c: float) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        rows = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        found = mf.aggregate(toy.with_epsilons(torch.tensor(c, dtype=torch.float64)), rows)
        # the search stops at 1e-5 of the weight
        torch.testing.assert_close(found, script_cagrad(rows, c), rtol=2e-3, atol=1e-4)


def test_threshold_of_two_opposed_gradients_is_one() -> None:
    # (1, 0) and (-2, 0): no task may fall, so v = 0
    g = torch.tensor([[[1.0, -2.0], [-2.0, 4.0]]], dtype=torch.float64)
    c, v = common.threshold(g)
    assert float(c) == pytest.approx(1)
    assert float(common.length(g, v)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("tasks", [3, 50])
def test_official_solver_is_sgd_on_softmax_weights(tasks: int) -> None:
    """Its descent written out with autograd and torch's own SGD."""
    draw = torch.Generator().manual_seed(tasks)
    rows = torch.randn(tasks, 60, generator=draw, dtype=torch.float64)
    g = rows @ rows.mT
    scaled = g / (g.diagonal() + 1e-4).sqrt().mean().square()
    a = torch.zeros(tasks, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([a], lr=50 if tasks == 50 else 25, momentum=0.5)
    radius = 0.4 * (scaled.mean() + 1e-4).sqrt()
    tried: list[tuple[float, Tensor]] = []
    for _ in range(21):
        w = torch.softmax(a, 0)
        value = w @ scaled.mean(1) + radius * (w @ scaled @ w + 1e-4).sqrt()
        tried.append((float(value.detach()), w.detach()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    w = min(tried, key=lambda pair: pair[0])[1]
    expected = 1 / tasks + radius / ((w @ scaled @ w + 1e-4).sqrt() + 1e-4) * w
    torch.testing.assert_close(dual.official_weights(g, 0.4), expected, rtol=1e-9, atol=1e-12)


def test_weights_that_leave_the_ball_are_no_solution(monkeypatch: Any) -> None:
    """Twice CAGrad's direction has a larger worst rate than the optimum, which is a miss, too."""
    best, lengths = dual.SOLVERS["active set"], itertools.cycle((1.0, 2.0))
    solvers = {"active set": best, "official, softmax": lambda g, c: next(lengths) * best(g, c)}
    monkeypatch.setattr(dual, "SOLVERS", solvers)
    *_, found = findings(dual, Settings(shrink=0.01))
    assert isinstance(found, Claim)
    assert found.verdict == "holds only when"
    assert min(value for name, value in found.measured.items() if name.endswith("most")) < -0.1


def test_sum_of_squares_against_a_literal_loop() -> None:
    problem = common.quadratics(2, 3, 3, 5)
    c, steps = 0.5, 15
    ratio, _ = convergence.descend(problem, (0.2, c), steps)[1]
    for i in range(2):
        matrix = problem.matrix[i].numpy()
        middle = problem.middle[i].numpy()
        x = problem.start[i].numpy()
        eta = 0.9 / max(np.linalg.eigvalsh(m).max() for m in matrix)
        total = 0.0

        def mean(x: np.ndarray, a: Any = matrix, m: Any = middle) -> float:
            each = [0.5 * (x - mt) @ at @ (x - mt) for at, mt in zip(a, m, strict=True)]
            return float(np.mean(each))

        first = mean(x)
        for _ in range(steps):
            rows = np.einsum("tij,tj->ti", matrix, x - middle)
            total += np.square(rows.mean(0)).sum()
            x = x - eta * mf.aggregate(mf.cagrad(c), torch.tensor(rows)).numpy()
        least = mean(np.linalg.solve(matrix.mean(0), np.einsum("tij,tj->i", matrix, middle) / 3))
        expected = total * eta * (1 - c * c) / (2 * (first - least))
        assert float(ratio[i]) == pytest.approx(expected, rel=1e-6)


def test_a_way_of_one_kick_of_adam_is_rest() -> None:
    """How far one gradient, however small, moves a place after many steps of zeros."""
    optimizer, x = mf.adam(toy.LR, eps=0.0), {"x": torch.zeros(1, dtype=torch.float64)}
    state = optimizer.init(x)._replace(steps=torch.tensor(50_000))
    for k in range(500):
        grads = {"x": torch.full_like(x["x"], 0.0 if k else 1e-12)}
        x, state = optimizer.update(grads, state, x)
    assert toy_runs.CONTACT + abs(float(x["x"])) == pytest.approx(STOPPED, rel=1e-6)
