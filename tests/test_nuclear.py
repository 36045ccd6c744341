"""`muon.nuclear`, steepest descent in the operator norm: against cvxpy and its certificate."""

import warnings
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

import mtlfunc as mf
from mtlfunc.muon import nuclear as by_default
from mtlfunc.types import Params, Rows, Solution
from tests.support.every import every, in_turn

nuclear = partial(by_default, tolerance=1e-9)  # what all but kinks reach

SHAPES = ((14, 20), (9, 14))
DIFFERENTIATED = torch.eye(2).requires_grad_()


def normal(seed: int, *shape: int) -> Tensor:
    return mf.random.normal(mf.random.key(seed), shape, torch.float64)


def generic(seed: int, tasks: int) -> Rows:
    return {f"w{m}": normal(seed + m, tasks, m, n) for m, n in SHAPES}


def low_rank(seed: int, tasks: int) -> Rows:
    """Two samples a task."""
    return {
        f"w{m}": normal(seed + m, tasks, m, 2) @ normal(seed - m, tasks, 2, n) for m, n in SHAPES
    }


def unequal(seed: int, tasks: int) -> Rows:
    lengths = torch.logspace(0, 3, tasks, dtype=torch.float64)[:, None, None]
    return {name: lengths * leaf for name, leaf in generic(seed, tasks).items()}


def duplicated(seed: int, tasks: int) -> Rows:
    return {name: leaf[[0, *range(tasks - 1)]] for name, leaf in generic(seed, tasks).items()}


def with_zeros(seed: int, tasks: int) -> Rows:
    """A layer that the first task does not read, and one that none does."""
    first, second = generic(seed, tasks).values()
    return {"a": first, "b": second * (torch.arange(tasks) > 0)[:, None, None], "c": 0 * second}


def nearly_opposed(seed: int, tasks: int) -> Rows:
    rows = generic(seed, tasks)
    return {
        name: torch.cat([leaf[:1], -leaf[:1] + 1e-2 * leaf[1:2], leaf[2:]])
        for name, leaf in rows.items()
    }


FAMILIES = (generic, low_rank, unequal, duplicated, with_zeros, nearly_opposed)


def reference(rows: Rows, gramian: Tensor | None = None, carried: Tensor | None = None) -> float:
    """The optimal value by Clarabel."""
    tasks = len(next(iter(rows.values())))
    w = cp.Variable(tasks, nonneg=True)
    sums = [sum(w[t] * x[t].numpy() for t in range(tasks)) for x in rows.values()]
    value: Any = sum(map(cp.normNuc, sums))
    if gramian is not None:
        value = value + 0.5 * cp.quad_form(w, cp.psd_wrap(gramian.numpy()))
    if carried is not None:
        value = value + carried.numpy() @ w
    with warnings.catch_warnings():  # what it calls inaccurate is compared at 1e-6 all the same
        warnings.filterwarnings("ignore", "Solution may be inaccurate", UserWarning)
        program: Any = cp.Problem(cp.Minimize(value), [cp.Zero(cp.sum(w) - 1)])
        return float(program.solve(solver=cp.CLARABEL))


def length(rows: Rows) -> float:
    """An upper bound of the value's size: of the longest gradients."""
    return sum(leaf.flatten(1).norm(dim=1).amax().item() for leaf in rows.values())


def certify(
    rows: Rows, solution: Solution, direction: Params, gramian: Any = None, carried: Any = None
) -> float:
    """The gap, from w and D alone, with both shown to be feasible."""
    w = solution.weights
    g = torch.zeros(len(w), len(w), dtype=w.dtype) if gramian is None else gramian
    c = torch.zeros_like(w) if carried is None else carried
    assert w.min() >= 0
    assert abs(w.sum().item() - 1) < 1e-12
    value, rates = 0.5 * w @ g @ w + c @ w, g @ w + c
    for name, leaf in rows.items():
        assert np.linalg.norm(direction[name].numpy(), 2) <= 1 + 1e-12
        value = value + float(np.linalg.norm(torch.tensordot(w, leaf, 1).numpy(), "nuc"))
        rates = rates + leaf.flatten(1) @ direction[name].flatten()
    assert torch.allclose(rates, solution.rates, rtol=1e-10, atol=1e-10 * length(rows))
    torch.testing.assert_close(value, solution.value, rtol=1e-10, atol=1e-10 * length(rows))
    return float(value + 0.5 * w @ g @ w - rates.min())


@pytest.mark.parametrize(("family", "tasks"), in_turn(FAMILIES, [2, 4, 8], 1))
@every("tasks")
def test_optimum_is_that_of_cvxpy(family, tasks):
    """Clarabel's tolerance is 1e-8 of the value and of the data's size."""
    rows = family(3 * tasks, tasks)
    solution, direction = nuclear(rows)
    gap, best = certify(rows, solution, direction), reference(rows)
    assert gap <= 1e-9 * solution.value + 1e-12 * length(rows)
    assert abs(gap - solution.gap) <= 1e-11 * length(rows)
    assert abs(solution.value - best) <= 1e-6 * best + 1e-8 * length(rows)


@pytest.mark.parametrize(("family", "tasks"), in_turn(FAMILIES, [4, 8, 2], 1))
@every("tasks")
def test_optimum_with_what_is_carried(family, tasks):
    """Rates of either sign, as large as the gradients; the value may be below 0."""
    rows, gramian = family(5 * tasks, tasks), None
    carried = length(rows) * normal(tasks, tasks)
    if tasks == 4:
        other = normal(7, tasks, 5)
        gramian = length(rows) * other @ other.T
    solution, direction = nuclear(rows, gramian, carried=carried)
    size = length(rows) + float(carried.abs().max())
    gap = certify(rows, solution, direction, gramian, carried)
    best = reference(rows, gramian, carried)
    assert gap <= 1e-9 * (solution.value - carried.min()) + 1e-12 * size
    assert abs(gap - solution.gap) <= 1e-11 * size
    assert abs(solution.value - best) <= 1e-6 * abs(best) + 1e-7 * size
    shifted, _ = nuclear(rows, gramian, carried=carried + size)
    assert abs(shifted.value - size - solution.value) <= 2e-9 * size


@pytest.mark.parametrize("c", [0.3, 0.9])
def test_cagrad_in_this_norm(c):
    """The step nearest to Muon's own, max min ⟨g_t, D⟩ over ‖D - polar(g_0)‖ <= c, by cvxpy."""
    rows, tasks = generic(3, 4), 4
    mean = {name: x.mean(0) for name, x in rows.items()}
    _, own = nuclear({name: x[None] for name, x in mean.items()})
    anyway = torch.stack([x.flatten(1) @ own[name].flatten() for name, x in rows.items()]).sum(0)
    solution, aside = nuclear({name: c * x for name, x in rows.items()}, carried=anyway)
    steps = {name: cp.Variable(x.shape) for name, x in mean.items()}
    rates = [
        sum(cp.sum(cp.multiply(rows[name][t].numpy(), x)) for name, x in steps.items())
        for t in range(tasks)
    ]
    near: Any = [cp.sigma_max(x - own[name].numpy()) <= c for name, x in steps.items()]
    program: Any = cp.Problem(cp.Maximize(cp.min(cp.hstack(rates))), near)
    best = float(program.solve(solver=cp.CLARABEL))
    step = {name: own[name] + c * aside[name] for name in own}
    found = torch.stack([x.flatten(1) @ step[name].flatten() for name, x in rows.items()]).sum(0)
    torch.testing.assert_close(found, solution.rates, rtol=1e-10, atol=1e-10)
    assert abs(float(found.min()) - best) <= 1e-6 * length(rows)


def test_few_decompositions_for_any_number_of_tasks():
    """A claim of the docstring: at most twenty, for matrices without structure."""
    for tasks in (2, 8, 32, 64):
        solution, _ = nuclear(generic(tasks, tasks))
        assert solution.gap <= 1e-9 * solution.value
        assert solution.steps <= 25


def test_one_task_is_muon():
    rows = generic(5, 1)
    solution, direction = nuclear(rows)
    for name, leaf in rows.items():
        u, _, v = np.linalg.svd(leaf[0].numpy(), full_matrices=False)
        assert np.abs(direction[name].numpy() - u @ v).max() < 1e-10
    assert solution.weights.tolist() == [1.0]
    assert solution.steps == 1


def test_direction_beats_the_polar_factor_at_a_kink():
    """One sample a task: at the optimum the sum has lost rank, and the null space helps."""
    u, v = normal(1, 3, 12, 1), normal(2, 3, 1, 10)
    rows = {"w": u @ v * torch.tensor([1.0, 1.0, 30.0], dtype=torch.float64)[:, None, None]}
    solution, _ = nuclear(rows)
    a, s, b = torch.linalg.svd(torch.tensordot(solution.weights, rows["w"], 1), full_matrices=False)
    assert s[2] < 1e-6 * s[0]  # the long gradient has no weight
    polar = a[:, :2] @ b[:2]
    assert (rows["w"].flatten(1) @ polar.flatten()).min() < solution.rates.min() - 1e-3
    assert solution.gap <= 1e-9 * solution.value


def test_no_common_descent():
    rows = {name: torch.cat([x, -x[:1]]) for name, x in generic(4, 3).items()}
    solution, _ = nuclear(rows)
    assert solution.value <= 1e-11 * length(rows)
    assert solution.rates.min() >= -1e-11 * length(rows)
    assert solution.gap <= 1e-11 * length(rows)
    zero, still = nuclear({"w": torch.zeros(3, 4, 5)})
    assert zero.value == zero.gap == still["w"].abs().sum() == 0


def test_shapes_and_scales():
    """Transposed layers, a stack of layers, units of a power of two; two layers are a stack."""
    rows = {"a": normal(1, 3, 7, 5), "b": normal(2, 3, 7, 5)}
    solution, direction = nuclear(rows)
    turned, other = nuclear({name: x.mT * 2.0**-40 for name, x in rows.items()})
    assert torch.allclose(turned.weights, solution.weights, atol=1e-8)
    assert torch.allclose(turned.rates * 2.0**40, solution.rates, rtol=1e-8)
    assert torch.allclose(other["b"].mT, direction["b"], atol=1e-6)
    stacked, both = nuclear({"c": torch.stack([*rows.values()], 1)[:, :, None]})
    assert torch.allclose(stacked.weights, solution.weights, atol=1e-8)
    assert both["c"].shape == (2, 1, 7, 5)
    assert torch.allclose(both["c"][:, 0], torch.stack([*direction.values()]), atol=1e-6)
    single, half = nuclear({name: x.float() for name, x in rows.items()})
    assert single.weights.dtype == half["a"].dtype == torch.float32
    assert torch.allclose(single.value.double(), solution.value, rtol=1e-6)


@pytest.mark.parametrize("family", [generic, low_rank])
def test_vmap_is_the_loop(family):
    """Both certify 1e-9: values are as close as that, and the fixed count is a valid one."""
    several = [family(seed, 3) for seed in (1, 30, 60, 90)]
    stacked = {name: torch.stack([x[name] for x in several]) for name in several[0]}
    grams = torch.stack([torch.eye(3, dtype=torch.float64) * k for k in range(4)])
    extra = normal(8, 4, 3)

    def solve(x: Rows, g: Tensor, c: Tensor) -> tuple[Solution, Params]:
        return nuclear(x, g, carried=c, steps=40)

    together, directions = torch.vmap(solve)(stacked, grams, extra)
    nested = torch.vmap(torch.vmap(lambda x, g, c: solve(x, g, c)[0].value))(
        {name: x.unflatten(0, (2, 2)) for name, x in stacked.items()},
        grams.unflatten(0, (2, 2)),
        extra.unflatten(0, (2, 2)),
    )
    torch.testing.assert_close(nested.flatten(), together.value, rtol=1e-9, atol=0)
    for i, rows in enumerate(several):
        alone, _ = nuclear(rows, grams[i], carried=extra[i])
        part = Solution(*(x[i] for x in together))
        mine = {n: x[i] for n, x in directions.items()}
        assert certify(rows, part, mine, grams[i], extra[i]) <= 2e-9 * (part.value - extra[i].min())
        torch.testing.assert_close(part.value, alone.value, rtol=2e-9, atol=0)


def test_numbers_of_half_precision_are_those_of_the_certificate():
    rows = {name: x.bfloat16() for name, x in generic(5, 3).items()}
    solution, direction = nuclear(rows)
    exact, _ = nuclear({name: x.double() for name, x in rows.items()})
    assert {x.dtype for x in direction.values()} == {torch.bfloat16}
    assert solution.weights.dtype == solution.gap.dtype == torch.float32
    torch.testing.assert_close(solution.rates.double(), exact.rates, rtol=1e-6, atol=1e-6)
    mixed = [torch.tensordot(solution.weights.double(), x.double(), 1) for x in rows.values()]
    value = sum(torch.linalg.matrix_norm(x, ord="nuc") for x in mixed)
    assert value - solution.rates.min() <= solution.gap + 1e-6 * value


def test_not_finite():
    rows = generic(1, 3)
    rows["w9"][1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"rows.*w9.*NaN"):
        nuclear(rows)
    one = {name: torch.stack([torch.zeros_like(x), x]) for name, x in rows.items()}
    solution, direction = torch.vmap(lambda x: nuclear(x, steps=3))(one)
    assert solution.weights.isnan().any(1).tolist() == [False, True]
    assert solution.gap.isnan().tolist() == direction["w14"].isnan().all((1, 2)).tolist()


ROWS = {"a": torch.ones(2, 3, 4)}


@pytest.mark.parametrize(
    ("rows", "more", "error", "words"),
    [
        ({}, {}, TypeError, "non-empty dict"),
        ({"b": torch.zeros(2, 3)}, {}, TypeError, "not matrices go into gramian="),
        ({"b": torch.zeros(2, 3, 4).long()}, {}, TypeError, "floating"),
        ({"b": torch.zeros(0, 3, 4)}, {}, TypeError, "a gradient a task"),
        (ROWS | {"b": torch.zeros(3, 3, 4)}, {}, ValueError, "expected 2 tasks"),
        (ROWS, {"gramian": torch.eye(3)}, ValueError, "expected 2 tasks"),
        (ROWS, {"carried": torch.ones(3)}, ValueError, r"carried.*\[2\]"),
        (ROWS, {"carried": torch.ones(2) / 0}, ValueError, "carried: NaN"),
        (ROWS, {"steps": 0}, ValueError, "steps"),
        (ROWS, {"tolerance": -1.0}, ValueError, "tolerance"),
        ({"a": torch.ones(2, 3, 4).requires_grad_()}, {}, NotImplementedError, "detach"),
        (ROWS, {"gramian": DIFFERENTIATED}, NotImplementedError, "detach"),
        (ROWS, {"carried": DIFFERENTIATED[0]}, NotImplementedError, "detach"),
    ],
)
def test_what_is_wrong_is_said(rows, more, error, words):
    with pytest.raises(error, match=words):
        nuclear(rows, **more)


def test_small_integers():
    """Small matrices of small integers: the optimum is nearly always at a kink, or 0."""
    for seed in range(30):
        key = mf.random.key(seed)
        tasks, m, n = (mf.random.uniform(key, (3,), torch.float64) * 4).long().tolist()
        entries = 5 * mf.random.uniform(
            mf.random.fold_in(key, 1), (tasks + 2, m + 1, n + 1), torch.float64
        )
        rows = {"w": entries.floor() - 2}
        solution, direction = by_default(rows)
        gap = certify(rows, solution, direction)
        assert gap <= 1e-6 * solution.value + 1e-11 * length(rows), (seed, rows)
