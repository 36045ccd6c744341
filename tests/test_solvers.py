"""Every solver of the table on every problem that it takes: feasible, certified and right."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

from mtlfunc import solvers
from mtlfunc.solvers import simplex
from mtlfunc.solvers.problems import resolution
from mtlfunc.solvers.problems import solver as of_weights
from mtlfunc.solvers.two_tasks import two_tasks
from mtlfunc.testing import certified_error
from mtlfunc.types import Solution
from tests.support.bounds import EXACT, F64, _ratio, _root, lengths, rounding, uniform
from tests.support.every import every, in_turn
from tests.support.families import FAMILIES, REGULAR, gramian, jacobian, jacobians
from tests.support.oracles import EPS, bisected, cagrad_threshold, near
from tests.support.registry import PROBLEMS, SOLVERS, SOLVES

FEW = (1, 2, 4)


def certificate(problem, G, solution: Solution, c=0.4):
    """(value, gap) again, in numpy's extended precision and without the package."""
    G = G.numpy().astype(np.longdouble)
    weights, dual = solution.weights.numpy(), solution.dual.numpy()
    uniform = np.full(len(G), 1 / len(G))
    rates = G @ weights
    if problem == "min_norm":
        return weights @ rates / 2, weights @ rates - rates.min()
    if problem == "cagrad":
        b = G @ uniform
        value = b @ dual + c * np.sqrt(max(uniform @ b, 0)) * np.sqrt(max(dual @ G @ dual, 0))
        return value, value - rates.min()
    n = np.sqrt(G.diagonal())
    charge = n @ np.abs(weights) / np.where(n > 0, n, 1)
    return weights @ rates / 2, dual @ np.abs(rates) + (np.maximum(-rates, 0) * charge).sum()


def allowed(solver, problem, G, solution: Solution, c=0.4):
    """The largest gap of an exact solver: rounding, and what an objective within δ leaves. A move s
    towards the task with the smallest rate lowers a simplex objective by s·gap - ½s²L, so gap² <=
    2Lδ with L = 4n_max² for min-norm and L = 4n_max²·r/‖g_w‖ for CAGrad (‖g_w‖ > 1e-3 n_max, below
    which the primal is solved, to δ). The dual cone's rates, by coordinates, are within √(2δ)·n_t.
    """
    delta = SOLVERS[solver].objective
    assert delta is not None, "only of solvers that promise something"
    n = lengths(G)
    noise = rounding(problem, G, solution, c)
    if not G.any():
        return noise
    if problem == "dual_cone":
        size = n @ solution.weights.abs()
        if size > 100 * n @ uniform(len(G)):  # a cone that G hardly resolves
            noise = noise + 2 * resolution(len(G), EPS) * size**2
        return noise + 2 * len(G) * (2 * delta) ** 0.5 * size**2
    curvature = 1.0
    if problem == "cagrad":
        radius = c * _root(uniform(len(G)) @ G @ uniform(len(G)))
        length = _root(solution.dual @ G @ solution.dual)
        curvature = min(_ratio(radius, length), _ratio(radius, 1e-3 * n.max()))
        delta = delta * max(1.0, float(solution.value / n.max() ** 2))
    return noise + (8 * delta * curvature) ** 0.5 * n.max() ** 2


@cache
def solved(solver, problem, family, count, seed) -> tuple[torch.Tensor, Solution]:
    G = gramian(family, count, seed)
    return G, SOLVERS[solver].make()(PROBLEMS[problem](G))


def answers(solver, problem, family, most=12):
    """Gramians of 1, 2, 4 and, where the solver takes them, 12 tasks, with the solver's answers."""
    most, sizes = min(most, SOLVERS[solver].most_tasks), ((1, 0), (2, 0), (2, 1), (4, 0), (4, 1))
    return [solved(solver, problem, family, *x) for x in (*sizes, (12, 0)) if x[0] <= most]


def answers_beside_best(solver, problem, family):
    """The same up to 4 tasks, beside the answer of the enumeration of faces."""
    one, best = (answers(x, problem, family, 4) for x in (solver, "faces"))
    return [(*mine, known) for mine, (_, known) in zip(one, best, strict=True)]


def check(problem, G, solution: Solution, c=0.4) -> Solution:
    """An answer is feasible, and value, gap and rates are what it says."""
    assert all(x.isfinite().all() for x in solution)
    assert (solution.dual >= 0).all()
    if problem == "dual_cone":
        near(solution.weights - uniform(len(G)), solution.dual, 1e-12, 1e-15)
    else:
        assert abs(float(solution.dual.sum()) - 1) <= 1e-12
    if problem == "min_norm":
        assert torch.equal(solution.weights, solution.dual)
    value, gap = certificate(problem, G, solution, c)
    noise = rounding(problem, G, solution, c)
    assert abs(float(solution.value) - value) <= noise
    assert abs(float(solution.gap) - gap) <= noise
    near(solution.rates, G @ solution.weights, 0, float(rounding("min_norm", G, solution)))
    return solution


@pytest.mark.parametrize(("case", "family"), in_turn(SOLVES, FAMILIES, 5))
@every("family")
def test_solver_answer_feasible_and_certified(case, family):
    """By a small gap of exact solvers, and the distance from the enumeration of faces."""
    solver, problem = case
    for G, solution in answers(solver, problem, family):
        check(problem, G, solution)
        if case in EXACT:
            assert solution.gap <= allowed(solver, problem, G, solution)
    for G, solution, best in answers_beside_best(solver, problem, family):
        noise = rounding(problem, G, solution) + rounding(problem, G, best)
        assert solution.value >= best.value - best.gap - noise
        if problem == "cagrad":
            assert best.rates.min() - solution.rates.min() <= solution.gap + noise
        if problem != "dual_cone" or (solution.rates >= 0).all():
            assert solution.value - best.value <= solution.gap + noise


MANY = product(["gaussian", "spread", "orthogonal", "duplicates", "integer_ties"], [64, 128])


@pytest.mark.parametrize(("problem", "drawn"), in_turn(PROBLEMS, MANY, 3))
@every("drawn")
def test_cvx_answers_many_tasks(problem, drawn):
    """At T = 128 Clarabel may stop at 1e-8 instead of 1e-12, which the gap says."""
    G = gramian(*drawn)
    solution = check(problem, G, solvers.cvx()(PROBLEMS[problem](G)))
    assert solution.gap <= 100 * allowed("cvx", problem, G, solution)


@pytest.mark.parametrize("step", ["line-search", "1/(n+1)", "2/(n+2)", "away", "pairwise"])
def test_frank_wolfe_answers_many_tasks(step):
    """At T = 128, 300 steps are closer to the optimum than the open-loop rate promises."""
    (G, best), J = solved("cvx", "min_norm", "gaussian", 128, 0), jacobian("gaussian", 128)
    solution = solvers.frank_wolfe(300, step)(solvers.min_norm(G))
    assert best.value - best.gap <= solution.value <= best.value + solution.gap + best.gap
    assert solution.value - best.value <= 2 * torch.cdist(J, J).max() ** 2 / 302 + best.gap


@given(jacobians(least=2, most=2), st.sampled_from([0.1, 0.4, 0.9, 3.0]))
def test_two_tasks_are_certified(J, c):
    G = J @ J.mT
    for problem, pose in (PROBLEMS | {"cagrad": lambda G: solvers.cagrad(G, c)}).items():
        for solve in (solvers.faces(), solvers.auto(), of_weights(two_tasks)):
            solution = check(problem, G, solve(pose(G)), c)
            assert solution.gap <= allowed("faces", problem, G, solution, c)


@pytest.mark.parametrize("solver", ["faces", "cvx", "auto", "active_set"])
def test_cagrad_pareto_stationary_example(solver):
    """d = 0 although the dual weights (.2, .4, .4) have length 0 and say nothing of d."""
    J = torch.tensor([[2.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], dtype=F64)
    solution = SOLVERS[solver].make()(solvers.cagrad(J @ J.mT, 1.5))
    exact = SOLVERS[solver].objective == 0
    # An objective within 1e-12 pins lengths to 1e-6, and weights by as much over the smallest row.
    near(solution.dual, torch.tensor([0.2, 0.4, 0.4], dtype=F64), 0, 1e-12 if exact else 1e-5)
    assert (J.mT @ solution.weights).norm() <= (1e-12 if exact else 1e-6)
    assert solution.gap <= allowed(solver, "cagrad", J @ J.mT, solution, 1.5)


@pytest.mark.parametrize("family", ["gaussian", "spread", "near_stationary"])
def test_cagrad_threshold_separates_signs(family):
    """c* = ‖v - g₀‖/‖g₀‖, v the projection on the dual cone: the worst rate's sign; d = v at it."""
    seen, solve = 0, solvers.faces()
    for count, seed in product((2, 3, 5), range(12)):
        J = jacobian(family, count, seed, width=count)
        G = J @ J.mT
        cone, shortest = solve(solvers.dual_cone(G, uniform(count))), solve(solvers.min_norm(G))
        threshold, n = float(cagrad_threshold(G)), lengths(G)
        if threshold < 1e-3 or 2 * shortest.value < (1e-3 * n.min()) ** 2:
            continue
        seen += 1
        below, at, above = (solve(solvers.cagrad(G, f * threshold)) for f in (0.95, 1.0, 1.05))
        assert below.rates.min() < 0 < above.rates.min()
        apart = at.weights - cone.weights
        # ‖d - v‖² <= 2·r·gap/‖g_w‖, and ‖g_w‖ >= ‖d*‖.
        radius = threshold * _root(uniform(count) @ G @ uniform(count))
        gap = at.gap + rounding("cagrad", G, at, threshold)
        bound = (2 * radius * gap / (2 * shortest.value).sqrt()).sqrt()
        noise = (8 * count * EPS) ** 0.5 * (n @ (at.weights.abs() + cone.weights.abs()))
        assert _root(apart @ G @ apart) <= bound + noise
    assert seen >= 3 or family == "near_stationary"


@pytest.mark.parametrize("family", FAMILIES)
def test_cagrad_turns_from_the_mean_to_min_norm(family):
    for count in FEW:
        J, solve = jacobian(family, count), solvers.faces()
        mean, far = (solve(solvers.cagrad(J @ J.mT, c)).weights for c in (0.0, 1e4))
        assert torch.equal(mean, uniform(count))
        far, shortest = (w @ J for w in (far, solve(solvers.min_norm(J @ J.mT)).weights))
        if family in REGULAR:
            assert shortest.norm() > 1e-2 * J.norm(dim=1).max()
            assert (far / far.norm() - shortest / shortest.norm()).norm() <= 1e-3  # O(1/c)


@pytest.mark.parametrize("step", ["1/(n+1)", "2/(n+2)"])
@pytest.mark.parametrize("family", ["gaussian", "hull", "spread"])
def test_frank_wolfe_of_given_steps_is_its_loop(family, step):
    """u ← (1 - s)·u + s·g_τ, τ the task whose gradient has the smallest product with u."""
    for count in (2, 3, 8):
        J = jacobian(family, count)
        u = J.numpy().mean(0)
        for n in range(1, 41):
            s = (1 if step == "1/(n+1)" else 2) / (n + 1)  # 2/(n+2) counts from 0
            u = (1 - s) * u + s * J.numpy()[(J.numpy() @ u).argmin()]
        w = solvers.frank_wolfe(40, step)(solvers.min_norm(J @ J.mT)).weights
        np.testing.assert_allclose((J.mT @ w).numpy(), u, rtol=0, atol=1e-12 * float(J.norm()))


@pytest.mark.parametrize("name", ["active_set", "faces", "projected_gradient"])
@pytest.mark.parametrize("seed", range(12))
def test_a_projection_of_zero_is_certified(name, seed):
    """Negative weights w: the answer w + u is zero up to the rounding of w, and exact."""
    generator = torch.Generator().manual_seed(seed)
    count = [2, 3, 4, 6][seed % 4]
    rows = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    rows = rows * 10 ** torch.randn(count, 1, generator=generator, dtype=torch.float64)
    problem = solvers.dual_cone(rows @ rows.T, -torch.rand(count, generator=generator).double())
    weights = getattr(solvers, name)()(problem).weights
    # more tasks than dimensions would be stationary, which these are not
    assert "optimal to rounding" in str(solvers.certify(problem, weights)), (name, seed)
    worse = weights + 1e-3 * problem.weights.abs()
    assert "not optimal" in str(solvers.certify(problem, worse)), (name, seed)


def test_a_gramian_of_float32_says_so():
    rows = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    gramian = rows @ rows.T
    for problem in PROBLEMS.values():
        assert solvers.active_set()(problem(gramian)).weights.isfinite().all()
        with pytest.raises(ValueError, match=r"float32 leaves.*in float64, of J"):
            solvers.active_set()(problem(gramian.double()))
    with pytest.raises(ValueError, match=r"indefinite.*half precision"):
        solvers.active_set()(solvers.min_norm(torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_certificates_of_half_precision_can_lose(dtype):
    generator = torch.Generator().manual_seed(0)
    for tasks in (2, 3, 5, 8) * 10:
        J = torch.randn(tasks, tasks + 1, generator=generator)
        G = (J @ J.mT).to(dtype)
        for pose in PROBLEMS.values():
            problem = pose(G)
            said = str(solvers.certify(problem, solvers.auto()(problem).weights))
            assert said.startswith(("optimal", "numerically Pareto")), said
    problem = solvers.min_norm(torch.tensor([[1.0, -1.5], [-1.5, 4.0]], dtype=dtype))
    for weights, said in (([0.5, 0.5], "not optimal, and the step raises"), ([5.0, 5.0], "infeas")):
        found = solvers.certify(problem, torch.tensor(weights, dtype=dtype))
        assert str(found).startswith(said)
    problem = solvers.min_norm(torch.diag(torch.tensor([1.0, 4.0])).to(dtype))
    found = solvers.certify(problem, torch.tensor([0.0, 1.0], dtype=dtype))
    assert str(found).startswith("not optimal: task 0")


def test_cagrad_of_dependent_single_precision_gradients_is_certified():
    """Rounding leaves such Gramians an eigenvalue below 0, which float32 cannot see."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 1), (4, 2)) * 25:
        J = torch.randn(shape, generator=generator)
        problem = solvers.cagrad(J @ J.mT, 0.4)
        solution = solvers.auto()(problem)
        found = solvers.certify(problem, solution.weights)
        assert str(found).startswith(("optimal", "numerically Pareto")), str(found)
        mapped = vmap(solvers.certify)(
            type(problem)(*(x[None] for x in problem)), solution.weights[None]
        )
        near(mapped.kappa[0], found.kappa, 1e-4, 1e-4)


def spread(seed, e):
    """Unit gradients of two to five tasks, and lengths from 10^-e to 10^e."""
    draw = np.random.default_rng(seed)
    tasks = int(draw.integers(2, 6))
    J = torch.tensor(draw.standard_normal((tasks, int(draw.integers(tasks, 8)))))
    sizes = torch.tensor(10.0 ** draw.uniform(-e, e, (tasks, 1)))
    return J / J.norm(dim=1, keepdim=True), sizes


@pytest.mark.parametrize("e", [3, 4, 6])
def test_the_reference_solves_cagrad_for_gradients_of_any_lengths(e):
    """By weak duality, which holds whatever dual point it is asked of."""
    for seed in range(30):
        units, sizes = spread(seed, e)
        problem = solvers.cagrad((units * sizes) @ (units * sizes).mT, 0.5)
        most = 5e-6 if e == 6 else 1e-6  # over lengths of 1e-6 to 1e6 Clarabel's own accuracy
        assert certified_error(problem, solvers.cvx()(problem).weights) < most


def test_the_reference_differentiates_gradients_of_any_lengths():
    """A task of seed 28 is off the support by little beside its own and the longest gradient."""
    units, sizes = spread(28, 6)
    units.requires_grad_()

    def slope(solver):
        J = units * sizes
        d = solver(solvers.min_norm(J @ J.mT)).weights @ J
        return torch.autograd.grad((d / d.detach().norm()).sum(), units)[0]

    near(slope(solvers.cvx()), slope(solvers.active_set()), 0, 1e-6)


@st.composite
def points(draw):
    """A point and a positive normal; both may be spread over several orders of magnitude."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 40))
    point = rng.standard_normal(count) * 10.0 ** draw(st.integers(-3, 3))
    if draw(st.booleans()):
        point = np.round(point)  # ties
    normal = np.ones(count) if draw(st.booleans()) else 10.0 ** rng.uniform(-2, 2, count)
    return torch.from_numpy(point), torch.from_numpy(normal)


@given(points())
def test_project_equals_bisection(case):
    point, normal = case
    # The threshold comes out of sums of T terms as large as |point|; normal multiplies it.
    size = (1 + point.abs().max() + 1 / normal.min()) * (normal.max() / normal.min())
    noise = 16 * len(point) * EPS * size
    found = simplex.project(point, None if (normal == 1).all() else normal)
    assert (found >= 0).all()
    assert abs(float(normal @ found) - 1) <= noise * float(normal.sum())
    near(found, bisected(point, normal), 0, float(noise))
