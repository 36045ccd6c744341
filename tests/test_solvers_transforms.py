"""Solvers under vmap and derivatives, at extreme scales, in other dtypes, and what they refuse."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import mtlfunc as mf
from mtlfunc import solvers
from mtlfunc.solvers.problems import CAGrad, DualCone
from mtlfunc.types import Solution
from tests.support.bounds import EXACT, F64, lengths, rounding
from tests.support.every import every, in_turn
from tests.support.families import FAMILIES, REGULAR, gramian, jacobian
from tests.support.oracles import EPS, SLOPES, check_slope, near
from tests.support.registry import PROBLEMS, SOLVERS, SOLVES

IMPLICIT = [(solver, problem) for solver, problem in SOLVES if SOLVERS[solver].implicit]


def chooses(solver):
    """Whether its path hangs on which task is chosen, so that rounding may part two paths."""
    return solver.endswith(("away", "pairwise"))


def tie_tolerance(solver):
    """A flat line search stops within some √ε of its end; everything else is rounding."""
    return 64 * EPS**0.5 if chooses(solver) else 1e-12


def apart(solver, problem, mine, alone):
    """How far weights may differ: √(2·gap/μ) of an argument by the Jacobian of `recover`, twice."""
    tolerance = tie_tolerance(solver)
    if not (SOLVERS[solver].objective or chooses(solver)):
        return tolerance  # exact to rounding, or no promise but the same steps
    curvature = hessian(problem.objective)(alone.dual)
    if not isinstance(problem, DualCone):
        within = torch.linalg.svd(torch.ones(1, len(curvature), dtype=F64)).Vh[1:]
        curvature = within @ curvature @ within.mT
    least = torch.linalg.eigvalsh(curvature)[0]
    follow = 1.0
    if isinstance(problem, CAGrad):
        follow = torch.linalg.matrix_norm(jacrev(problem.recover)(alone.dual), 2)
    return tolerance + 2 * float(follow * sum((2 * s.gap / least).sqrt() for s in (mine, alone)))


def batched(family, count, size=2):
    return torch.stack([gramian(family, count, seed) for seed in range(size)])


@pytest.mark.parametrize(("case", "families"), in_turn(SOLVES, FAMILIES, 5))
def test_solver_vmapped_equals_loop(case, families):
    solver, problem = case
    solve = SOLVERS[solver].make()
    for count in (1, 3):
        G = torch.cat([batched(family, count) for family in families])
        together = vmap(lambda g: solve(PROBLEMS[problem](g)))(G)
        for i, g in enumerate(G):
            family, alone = families[i // 2], solve(PROBLEMS[problem](g))
            mine = Solution(*(x[i] for x in together))
            if family in REGULAR and chooses(solver) and count > 1:  # the ends of two paths
                far = apart(solver, PROBLEMS[problem](g), mine, alone)
                near(mine.weights, alone.weights, 1e-9, far)
            elif family in REGULAR:
                near(mine, alone, 1e-9, 1e-12 * float(g.diagonal().max().clamp_min(1)))
            # Where weights are not unique batched arithmetic may pick others: equal objectives, as
            # far as the gaps tell.
            noise = rounding(problem, g, mine) + rounding(problem, g, alone) + mine.gap + alone.gap
            assert abs(mine.value - alone.value) <= noise


@pytest.mark.parametrize(("solver", "problem"), SOLVES)
def test_solver_vmap_of_vmap(solver, problem):
    solve = SOLVERS[solver].make()
    J = torch.stack([jacobian("gaussian", 3, seed) for seed in range(2)])
    factors = torch.tensor([1.0, 3.0], dtype=F64)

    def posed(J, factor):
        rows = J * torch.stack([factor, factor.new_ones(()), factor.new_ones(())])[:, None]
        return PROBLEMS[problem](rows @ rows.mT)

    nested = vmap(vmap(lambda *given: solve(posed(*given)), (None, 0)), (0, None))(J, factors)
    for i, j in itertools.product(range(2), repeat=2):
        one = posed(J[i], factors[j])
        mine, alone = Solution(*(x[i, j] for x in nested)), solve(one)
        near(mine.weights, alone.weights, 1e-9, apart(solver, one, mine, alone))


def complementary(problem, count, how_many):
    """Gramians with weights and multipliers of at least 1e-2: the support stays nearby."""
    found, seed = [], 0
    while len(found) < how_many:
        J = jacobian("gaussian", count, seed, width=count)
        seed += 1
        if problem == "dual_cone":
            J = J - 0.5 * J.mean(0)
        G = J @ J.mT
        solution = solvers.auto()(PROBLEMS[problem](G))
        n = lengths(G)
        level = 0.0 if problem == "dual_cone" else solution.dual @ solution.rates
        multiplier, on = (solution.rates - level) / (n * n.max()), solution.dual > 0
        share = solution.dual * n / n.max()
        clear = (share[on] > 1e-2).all() and (multiplier[~on] > 1e-2).all()
        if clear and (problem != "dual_cone" or on.any()):
            found.append(J)
    return found


def answer(solver, problem, probe, J):
    solution = SOLVERS[solver].make()(PROBLEMS[problem](J @ J.mT))
    return probe @ torch.cat([solution.weights, solution.dual, solution.value[None]])


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(("solver", "problem"), IMPLICIT)
def test_solver_derivatives_equal_central_differences(solver, problem, count):
    """Central differences of the faces' enumeration, to 1e-10; cvx's weights are right to 1e-6."""
    probe = torch.from_numpy(np.random.default_rng(0).standard_normal(2 * count + 1))
    rtol = 1e-6 if SOLVERS[solver].objective == 0 else 1e-4
    for seed, J in enumerate(complementary(problem, count, 2)):
        direction = torch.from_numpy(np.random.default_rng(seed).standard_normal(J.shape)) / count

        def along(t, by=solver, J=J, direction=direction):
            return answer(by, problem, probe, J + t * direction)

        exact = functools.partial(along, by="faces")
        check_slope(along, 0.0, "grad", "jvp", "vmap", rtol=rtol, of=exact)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("solver", "count"), [("faces", 3), ("active_set", 3), ("active_set", 8)])
# torch's own forward mode, once
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_first_and_second_derivatives_in_every_way(solver, problem, count):
    probe = torch.from_numpy(np.random.default_rng(0).standard_normal(2 * count + 1))
    for J in complementary(problem, count, 1):
        direction = torch.from_numpy(np.random.default_rng(1).standard_normal(J.shape)) / count

        def along(t, J=J, direction=direction):
            return answer(solver, problem, probe, J + t * direction)

        check_slope(along, 0.0, *SLOPES, least=1e-4)
        check_slope(grad(along), 0.0, *SLOPES, rtol=1e-5, least=1e-4)
        zero = torch.zeros((), dtype=F64)
        near(jacfwd(jacrev(along))(zero), grad(grad(along))(zero), 1e-9, 1e-12)


@pytest.mark.parametrize("solver", ["faces", "cvx", "active_set"])
def test_cagrad_derivative_in_its_radius(solver):
    (J,) = complementary("cagrad", 3, 1)
    G = J @ J.mT

    def first(c, by=solver):
        return SOLVERS[by].make()(solvers.cagrad(G, c)).weights[0]

    radii = torch.tensor([0.35, 0.4, 0.45], dtype=F64)
    near(vmap(first)(radii), torch.stack([first(c) for c in radii]), 1e-9)
    exact = functools.partial(first, by="faces")
    check_slope(first, 0.4, "grad", rtol=1e-4 if solver == "cvx" else 1e-6, of=exact)


@pytest.mark.parametrize(
    ("case", "family"), in_turn([(s, p) for s, p in EXACT if s != "auto"], FAMILIES, 5)
)
@every("family")
def test_solver_float32_equals_float64(case, family):
    """Rounding G to float32 changes ½wᵀGw by at most ½ε(n·w)², F by √ε where ‖g_w‖ vanishes."""
    (solver, problem), eps = case, torch.finfo(torch.float32).eps
    for count in (1, 2, 5):
        G = gramian(family, count)
        wide, narrow = (SOLVERS[solver].make()(PROBLEMS[problem](g)) for g in (G, G.float()))
        assert all(x.dtype == torch.float32 for x in narrow[:-1])
        n = lengths(G)
        if problem == "min_norm":
            assert abs(narrow.value - wide.value) <= 2 * eps * n.max() ** 2 + wide.gap
        elif problem == "cagrad":
            noise = (4 * eps + 0.4 * (4 * eps) ** 0.5) * n.max() ** 2
            assert abs(narrow.value - wide.value) <= noise + wide.gap
        elif family in REGULAR:
            # condition numbers here are below 1e2
            near(narrow.weights.double(), wide.weights, 1e3 * eps, 1e3 * eps)


@pytest.mark.parametrize(("case", "family"), in_turn(SOLVES, FAMILIES, 5))
@every("family")
def test_solver_scale_by_powers_of_two_changes_no_bit(case, family):
    """J times 2^±33, about 1e±10: no absolute threshold anywhere."""
    solver, problem = case
    solve = SOLVERS[solver].make()
    G = gramian(family, 3)
    one = solve(PROBLEMS[problem](G))
    for factor in (2.0**66, 2.0**-66):
        other = solve(PROBLEMS[problem](G * factor))
        for name, unit in (("weights", 1), ("dual", 1), ("value", factor), ("gap", factor)):
            assert torch.equal(getattr(one, name) * unit, getattr(other, name))


@pytest.mark.parametrize(("solver", "problem"), SOLVES)
def test_solver_zero_gramian_single_task_and_extreme_scales(solver, problem):
    solve, G = SOLVERS[solver].make(), gramian("gaussian", 3)
    for exponent in (-300, -150, 150, 300):
        found = solve(PROBLEMS[problem](G * 10.0**exponent))
        near(found.weights, solve(PROBLEMS[problem](G)).weights, 1e-6, 1e-9)
    zero = solve(PROBLEMS[problem](torch.zeros(3, 3, dtype=F64)))
    assert all(x.isfinite().all() for x in zero)
    assert zero.gap == 0
    alone = solve(PROBLEMS[problem](torch.tensor([[4.0]], dtype=F64)))
    near(alone.weights, torch.tensor([1.4 if problem == "cagrad" else 1.0], dtype=F64), 0, 1e-11)


@pytest.mark.parametrize(("solver", "problem"), SOLVES)
def test_solver_nan_under_vmap_stays_nan_in_its_own_problem(solver, problem):
    G = batched("gaussian", 3, 3)
    G[1, 0, 2] = G[1, 2, 0] = float("nan")
    together = vmap(lambda g: SOLVERS[solver].make()(PROBLEMS[problem](g)))(G)
    assert together.weights[1].isnan().all()
    assert together.dual[1].isnan().all()
    alone = SOLVERS[solver].make()(PROBLEMS[problem](G[0]))
    mine = Solution(*(x[0] for x in together))
    near(mine.weights, alone.weights, 1e-9, apart(solver, PROBLEMS[problem](G[0]), mine, alone))
    assert together.weights[2].isfinite().all()


def test_what_is_no_problem_is_refused():
    for solver in SOLVERS.values():
        with pytest.raises(TypeError, match="problem"):
            solver.make()(mf.types.BalanceState((), (), ()))
