"""The active-set solver: exact on the hard families at any scale, the same in every batch."""

from fractions import Fraction
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.func import jacrev, vmap

import mtlfunc as mf
from experiments.benchmarks.families import FAMILIES, gramians
from mtlfunc.solvers import (
    active_set,
    cagrad,
    certify,
    cvx,
    dual_cone,
    faces,
    min_norm,
    projected_gradient,
    simplex,
)
from mtlfunc.solvers._kernels.active_set_batch import solve as solve_batch
from mtlfunc.solvers.exact import run
from mtlfunc.solvers.problems import DualCone, precision, resolution
from mtlfunc.solvers.two_tasks import two_tasks
from mtlfunc.testing.families import weakly_stationary
from tests.support.bounds import dot, lengths, optimal
from tests.support.oracles import EPS, near

SIZES = {2: 60, 3: 60, 8: 60, 32: 15, 64: 4, 128: 2}
solve = active_set()


@cache
def every_size(name):
    """A family's Gramians, at scales from 1e-20 to 1e20."""
    return [gramians(name, *size, i, scale=20) for i, size in enumerate(SIZES.items())]


def spd(count, seed):
    """A well-conditioned Gramian with conflicts, for derivatives."""
    rows = np.random.default_rng(seed).normal(size=(count, 3 * count))
    rows *= np.linspace(1, 2, count)[:, None]
    rows[0] -= 0.8 * rows[1]
    return torch.from_numpy(rows @ rows.T)


PROBLEMS = {
    "min_norm": min_norm,
    "cagrad": lambda g: cagrad(g, 0.6),
    "dual_cone": lambda g: dual_cone(g, torch.linspace(1, 0.1, len(g)).to(g)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_min_norm_is_optimal_to_rounding_at_every_scale(name):
    for g in every_size(name):
        answer = vmap(lambda g: solve(min_norm(g)))(g)
        assert optimal("min_norm", g, answer, None).all()
        square = dot(answer.weights, answer.rates)
        clear = square > 1e-6 * dot(lengths(g), answer.weights) ** 2
        assert ((answer.rates.amin(-1) / square)[clear] >= 1 - 1e-9).all()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("c", [0.1, 0.4, 0.8, 1.0, 3.0])
def test_cagrad_is_optimal_and_in_the_ball(name, c):
    for g in every_size(name):
        answer = vmap(lambda g: solve(cagrad(g, c)))(g)
        assert optimal("cagrad", g, answer, 1 / g.shape[-1], c).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_dual_cone_never_conflicts_and_is_optimal(name):
    for g in every_size(name):
        count = g.shape[-1]
        draw = torch.Generator().manual_seed(count)
        given = torch.rand(len(g), count, generator=draw, dtype=torch.float64)
        answer = vmap(lambda g, w: solve(dual_cone(g, w)))(g, given)
        assert optimal("dual_cone", g, answer, given).all()


def test_small_integer_ties_are_solved():
    random = np.random.default_rng(0)
    drawn = {}
    for _ in range(4000):
        size = random.integers(2, 13), random.integers(1, 9)
        rows = random.integers(-2, 3, size=size).astype(float)
        if random.random() < 0.3:
            rows[random.integers(len(rows))] = -rows[random.integers(len(rows))]
        if random.random() < 0.3:
            rows *= 10.0 ** random.integers(-2, 3, size=(len(rows), 1))
        drawn.setdefault(len(rows), []).append(torch.from_numpy(rows) @ torch.from_numpy(rows).mT)
    for count, found in drawn.items():
        g = torch.stack(found)
        n = lengths(g)
        norm = n.amax(-1)
        answer = vmap(lambda g: solve(min_norm(g)))(g)
        assert (answer.gap <= 1e-12 * norm * dot(n, answer.weights)).all()
        assert (answer.steps <= 4 * count + 20).all()
        projection = vmap(lambda g: solve(dual_cone(g, torch.ones_like(g[0]))))(g)
        assert (projection.gap <= 1e-11 * dot(n, projection.weights) ** 2).all()
        square = g.mean((-2, -1))
        known = square > 1e-12 * norm**2
        c = torch.tensor(random.choice([0.4, 1.0, 3.0], int(known.sum())))
        direction = vmap(lambda g, c: solve(cagrad(g, c)))(g[known], c)
        assert (direction.gap <= 1e-7 * norm[known] * square[known].sqrt() * (1 + c)).all()


def test_ties_with_norms_eight_powers_of_ten_apart_are_solved():
    """Hulls that hold 0 far from the shortest row, where rounding loses the sum of one."""
    random = np.random.default_rng(20)
    for count in range(2, 13):
        rows = [
            random.integers(-3, 4, size=(count, random.integers(1, 5)))
            * 10.0 ** random.uniform(-4, 4, size=(count, 1))
            for _ in range(300)
        ]
        for x in rows[::2]:
            x[random.integers(count)] = random.choice([-2.0, 1.0]) * x[random.integers(count)]
        g = torch.stack([torch.from_numpy(x) @ torch.from_numpy(x).mT for x in rows])
        n, mean = lengths(g), torch.full((count,), 1 / count, dtype=torch.float64)
        shortest = vmap(lambda g: solve(min_norm(g)))(g)
        assert (shortest.gap <= 1e-12 * n.amax(-1) * dot(n, shortest.weights)).all()
        known = mean @ g @ mean > 1e-6 * n.amax(-1) ** 2  # of ‖g₀‖, more than rounding
        g, n = g[known], n[known]
        centre = (mean @ g @ mean).sqrt()
        for c in (0.4, 1.0, 1.5, 10.0):
            answer = vmap(lambda g, c=c: solve(cagrad(g, c)))(g)
            assert (answer.gap <= 1e-7 * n.amax(-1) * centre * (1 + c)).all()
            off = answer.weights - mean
            reach = torch.einsum("bi,bij,bj->b", off, g, off).clamp_min(0).sqrt()
            assert (reach <= c * centre * (1 + 1e-9)).all()


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_many_tasks_enter_at_once(problem):
    """Faces are solved by the dozen, not one for each task of the support."""
    g = gramians("conflicting", 128, 4, 0)
    assert (vmap(lambda g: solve(problem(g)).steps)(g) <= 40).all()


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("threads", [1, 2])
def test_nested_batches_equal_the_loop(problem, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        g = gramians("norm spread 1e-4", 8, 1000, 0, scale=5).reshape(2, 500, 8, 8)
        nested = vmap(vmap(lambda g: solve(problem(g)), in_dims=-1), in_dims=1, out_dims=1)
        batched = nested(g.movedim(1, -1).movedim(0, 1))
    finally:
        torch.set_num_threads(before)
    for i, j in ((0, 0), (0, 499), (1, 250)):
        for together, alone in zip(batched, solve(problem(g[i, j])), strict=True):
            near(together[j, i], alone, 0)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_differentiating_does_not_change_the_answer(problem):
    g = spd(8, 4)
    carrying = solve(problem(g.clone().requires_grad_()))
    for plain, carried in zip(solve(problem(g)), carrying, strict=True):
        near(plain, carried.detach(), 1e-13, 1e-13)


def test_derivatives_at_a_pareto_stationary_point_are_finite():
    rows = torch.tensor([[2.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], dtype=torch.float64)
    for problem in PROBLEMS.values():
        slopes = jacrev(lambda g, problem=problem: solve(problem(g)).weights)(rows @ rows.T)
        assert slopes.isfinite().all()


@pytest.mark.parametrize(("solver", "count"), [(active_set(), 16), (faces(), 6)])
def test_derivatives_of_a_projection_are_those_of_its_closed_form(solver, count):
    """Two opposed gradients leave a plane, and there the mean hurts one of the others."""
    generator = torch.Generator().manual_seed(0)
    rest = 0.5 + torch.rand(count - 2, 3, generator=generator, dtype=torch.float64)
    rest[0, 1:] = torch.tensor([-1.0, 0.2])
    opposed = torch.tensor([[1.0, 0, 0], [-2.0, 0, 0]], dtype=torch.float64)

    def direction(rest):
        rows = torch.cat([opposed, rest])
        return solver(cagrad(rows @ rows.mT, 1.0)).weights @ rows

    def closed(rest):
        mean, hurt = rest[:, 1:].sum(0) / count, rest[0, 1:]
        return torch.cat([torch.zeros(1), mean - (mean @ hurt) / (hurt @ hurt) * hurt])

    for of in (lambda f: f, jacrev):
        torch.testing.assert_close(of(direction)(rest), of(closed)(rest), rtol=1e-6, atol=1e-7)


def test_an_indefinite_matrix_has_no_answer_under_vmap():
    g = torch.tensor([[1.0, -2.0], [-2.0, 1.0]], dtype=torch.float64)
    assert vmap(lambda g: solve(min_norm(g)).weights)(g[None]).isnan().all()


THIN = torch.tensor(  # rows in float32; the last two are antiparallel up to rounding
    [
        [-0.35901209712028503, -0.2727375030517578, 0.6712432503700256],
        [1.624623417854309, -0.6796815991401672, 0.02268335223197937],
        [0.1589324027299881, 0.1495116949081421, 0.10957420617341995],
        [-0.811701774597168, -0.7635881304740906, -0.5596188902854919],
    ],
    dtype=torch.float64,
)
BUILT = [[-0.36, -0.27, 0.67], [1.6, -0.68, 0.02], [1, 0, 0], [-1, 1e-9, 0]]
BUILT = torch.tensor(BUILT, dtype=torch.float64)
SEVERAL = {"active_set": active_set(), "faces": faces(), "cvx": cvx()}
SEVERAL |= {"projected_gradient": projected_gradient(1000)}


def cosines(rows, weights):
    d = weights @ rows
    return rows @ d / rows.norm(dim=1) / d.norm()


def uniform(g):
    return torch.full_like(g[0], 1 / len(g))


@pytest.mark.parametrize("solver", SEVERAL)
@pytest.mark.parametrize("rows", [THIN, BUILT], ids=["rounded", "built"])
def test_solvers_agree_on_a_thin_cone(rows, solver):
    g = rows @ rows.mT
    expected = SEVERAL["cvx"](dual_cone(g, uniform(g))).weights @ rows
    weights = SEVERAL[solver](dual_cone(g, uniform(g))).weights
    assert (cosines(rows, weights) >= -1e-7).all()
    near(weights @ rows, expected, 0, 1e-2 * float(expected.norm()))
    certificate = certify(dual_cone(g, uniform(g)), weights)
    if solver in ("active_set", "faces"):
        assert certificate.backward <= resolution(4, torch.finfo(g.dtype).eps)
        assert str(certificate).startswith(("optimal to rounding", "optimal as far as the Gramian"))
        assert weights.abs().max() <= 1e5
    radii = torch.tensor([1.0, 2.0], dtype=g.dtype)
    for w in vmap(lambda c: SEVERAL[solver](cagrad(g, c)).weights)(radii):
        assert (cosines(rows, w) >= -1e-7).all()


@pytest.mark.parametrize(("count", "width", "draws"), [(8, 5, 20), (16, 8, 20), (20, 10, 10)])
@pytest.mark.usefixtures("roundings")
def test_no_task_is_hurt_at_a_weakly_stationary_point(count, width, draws):
    for seed in range(draws):
        random = np.random.default_rng([seed, count])
        rows = torch.from_numpy(weakly_stationary(random, count, width))
        g = rows @ rows.mT
        for rule in (mf.dualproj(), mf.upgrad(), mf.cagrad(1.0), mf.cagrad(2.0)):
            weights = mf.weights(rule, g)
            assert cosines(rows, weights).min() >= -1e-6
            assert weights.abs().max() <= 1e7
        assert certify(dual_cone(g, uniform(g)), mf.weights(mf.dualproj(), g)).backward <= 1e-12


def test_a_gramian_made_in_float32_and_widened_is_accepted():
    rows = torch.zeros(5, 200)
    for seed in range(60):
        rows = torch.randn(5, 200, generator=torch.Generator().manual_seed(seed))
        widened = (rows @ rows.mT).double()
        skew = widened.clone()
        skew[0, 1] *= 1 + 2e-7
        for g in (widened, skew):
            for problem in (min_norm(g), cagrad(g, 0.5), dual_cone(g, uniform(g))):
                assert solve(problem).weights.isfinite().all()
    other = rows + 1e-3 * torch.randn(5, 200, generator=torch.Generator().manual_seed(60))
    with pytest.raises(ValueError, match="not symmetric"):
        min_norm((rows @ other.mT).double())


@pytest.mark.parametrize("name", FAMILIES)
def test_problems_that_share_a_gramian_are_solved_as_well_as_one_by_one(name):
    """One problem starts where the last one ended, which costs it no digit of the direction."""
    count = 40
    gramian = gramians(name, count, 1, seed=5)[0]
    more = torch.rand(10, count, generator=torch.Generator().manual_seed(0)).double() - 0.3
    each = torch.cat([torch.eye(count).double(), more])
    together, _, _ = run(DualCone(gramian, each), torch.finfo(torch.float64).eps)
    alone = [run(DualCone(gramian, w), torch.finfo(torch.float64).eps)[0] for w in each]
    v, separate = together[:, :count], torch.stack(alone)[:, :count]
    apart = v - separate
    distance = ((apart @ gramian) * apart).sum(1).clamp_min(0).sqrt()
    assert (distance <= 1e-6 * (gramian.diagonal().sqrt() * separate.abs()).sum(1)).all()
    for w, u in zip(each, v, strict=True):
        assert certify(dual_cone(gramian, w), u).backward <= 1e-11


@pytest.mark.parametrize("apart", [1e-8, 3e-7, 1e-5, 1e-3])
def test_two_opposite_gradients_that_both_go_backwards(apart):
    """The answer w + u is 0 or nearly, and one u alone is as good where no more is resolved."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, apart]]).double()
    problem = dual_cone(rows @ rows.T, torch.tensor([-1.0, -2.0]).double())
    assert certify(problem, two_tasks(problem, torch.finfo(torch.float64).eps)[0]).backward <= 1e-9


@pytest.mark.parametrize("count", [8, 16, 32])
def test_weights_are_bounded_where_a_gramian_is_rounded_to_half(count):
    """To ‖g₀‖/√δ, as `mtlfunc.solvers.problems` says, in a plane full of opposite gradients."""
    for seed in range(20):
        rows = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
        g = (rows @ rows.T).bfloat16()
        weights = mf.weights(mf.upgrad(), g).double().abs() @ rows.double().norm(dim=1)
        delta = resolution(count, precision(count, g.dtype))
        assert weights <= 2 * rows.double().norm(dim=1).mean() / delta**0.5


@pytest.mark.parametrize("count", [3, 8, 33])
def test_a_gramian_that_was_rounded_to_half_is_solved_as_it_is(count):
    for seed in range(20):
        rows = torch.randn(count, 142, generator=torch.Generator().manual_seed(seed)).double()
        g = (rows @ rows.T / 142).bfloat16()
        found, wanted = (mf.weights(mf.cagrad(0.4), x).double() @ rows for x in (g, g.double()))
        assert (found - wanted).norm() <= 6e-3 * wanted.norm()  # these weights are rounded


@pytest.mark.parametrize("short", [0, 40, 60, 100])
def test_cagrad_is_optimal_beside_a_gradient_that_is_almost_nothing(short):
    rows = torch.tensor([[-2.0, 0, 2], [2, 2, -2], [2, -5, 1], [2, -1, 0]]).double()
    rows[3] *= 2.0**-short
    problem = cagrad(rows @ rows.T, 0.4)
    answer = solve(problem)  # between two feasible points
    assert answer.gap <= 1e-12
    assert certify(problem, answer.weights).infeasibility <= 1e-12


@pytest.mark.parametrize(
    ("count", "seed", "c"), [(2, 1, 3.0), (3, 0, 3.0), (5, 1, 1.5), (32, 3, 3.0)]
)
def test_cagrad_gains_what_there_is_near_stationarity(count, seed, c):
    """Rates of 1e-5, which another rounding of ‖g_w‖ would lose."""
    rows = mf.testing.jacobian("near_stationary", count, seed)
    problem = cagrad(rows @ rows.T, c)
    expected = cvx()(problem).rates.min()
    for solver in (solve, *([faces()] if count <= 6 else [])):
        answer = solver(problem)
        near(answer.rates.min(), expected, 1e-4)
        assert not certify(problem, answer.weights).infeasibility > 1e-4
    if count == 2:
        near((problem.gramian @ two_tasks(problem, EPS)[0]).min(), expected, 1e-4)


def test_two_tasks_are_solved_at_any_ratio_of_lengths_and_in_a_thin_cone():
    for ratio in (1.0, 1e9, 1e16, 1e30):
        rows = torch.tensor([[1.0, 2.0, -1.0], [-0.5, -1.0, 2.0]]).double()
        rows[1] /= ratio
        problem = cagrad(rows @ rows.T, 0.6, preference=torch.tensor([0.3, 0.7]).double())
        assert certify(problem, two_tasks(problem, EPS)[0]).violation <= 1e-14
    rows = torch.tensor([[6.0, -4.0], [12.0, -2097153 / 262144]]).double()
    problem = dual_cone(rows @ rows.T, torch.tensor([-0.5, -1.0]).double())
    assert certify(problem, two_tasks(problem, EPS)[0]).backward <= resolution(2, EPS)


def test_faces_are_the_right_ones_in_thin_cones_of_single_precision():
    draw = torch.Generator().manual_seed(4)
    rows = torch.randn(2000, 4, 5, generator=draw)
    rows[:, 1] = 1e-3 * torch.randn(2000, 5, generator=draw) - rows[:, 0]

    def backward(g):
        problem = dual_cone(g, uniform(g))
        return certify(problem, faces()(problem).weights).backward

    assert vmap(backward)(rows @ rows.mT).max() <= 2 * resolution(4, torch.finfo(rows.dtype).eps)


def test_the_radius_is_not_rounded_to_the_gramians_dtype():
    assert float(cagrad(torch.eye(2).bfloat16(), 0.999).c) == 0.999
    for dtype, c in ((torch.float16, 1e4), (torch.float32, 1e38)):
        assert solve(cagrad(torch.eye(3).to(dtype), c)).weights.isfinite().all()
    assert cagrad(torch.eye(2), 0.5).objective(torch.ones(2)).dtype == torch.float32


def test_the_number_of_threads_changes_no_bit_of_problems_that_share_a_gramian():
    gramian = gramians("stationary", 70, 3, seed=1).numpy()
    each = np.tile(np.eye(70), (3, 1))
    one, three = (solve_batch(gramian, each, None, 2.2e-16, threads)[0] for threads in (1, 3))
    assert np.array_equal(one, three)


OPENINGS = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12]


def almost_antiparallel(opening, seed):
    """Four gradients of which two leave a cone of this opening between them."""
    draw = torch.Generator().manual_seed(seed)
    J = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    axis, aside = J[2] / J[2].norm(), torch.randn(6, generator=draw, dtype=torch.float64)
    aside = aside - (aside @ axis) * axis
    J[3] = -1.5 * (axis + opening * aside / aside.norm())
    return J


def exact_projection(J):
    """The mean gradient projected on {d: J d >= 0}, in rational arithmetic, face by face."""
    rows = [[Fraction(float(x)) for x in row] for row in J]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    for face in (f for size in range(len(J) + 1) for f in combinations(rows, size)):
        system: list[list] = [[*(dot(a, b) for b in face), -dot(a, mean)] for a in face]
        for p in range(len(face)):  # Gauss–Jordan; rows in general position
            pivot = system[p] = [x / system[p][p] for x in system[p]]
            for r, row in enumerate(system):
                if r != p:
                    system[r] = [x - row[p] * y for x, y in zip(row, pivot, strict=True)]
        u = [row[-1] for row in system]
        d = [x + dot(u, column) for x, column in zip(mean, zip(*face, strict=True), strict=False)]
        d = d if face else mean
        if min(u, default=0) >= 0 and min(dot(row, d) for row in rows) >= 0:
            return torch.tensor([float(x) for x in d], dtype=torch.float64)
    raise AssertionError("no face meets the optimality conditions")


@pytest.mark.usefixtures("roundings")
@pytest.mark.parametrize("opening", OPENINGS)
def test_aggregate_is_exact_as_far_as_its_gramian_resolves_the_cone(opening):
    """Proximal steps leave (δ/(s² + δ))² of a constraint: none is hurt by more than √δ‖g_t‖‖g₀‖."""
    delta = resolution(4, EPS)
    for seed in range(10):
        J = almost_antiparallel(opening, seed)
        n = J.norm(dim=1)
        unit, length = J / n[:, None], J.mean(0).norm()
        d = mf.aggregate(mf.dualproj(), J)
        assert (J @ d >= -(delta**0.5) * n * length).all()
        face = simplex.faces(4, J.device)
        cosines = torch.where(face[:, :, None] & face[:, None], unit @ unit.mT, 0.0)
        square = torch.linalg.eigvalsh(cosines + torch.diag_embed((~face).double()))[:, 0]
        square = square.clamp_min(0)
        left = (delta / (square + delta)) ** 2 + 4 * EPS / (square + delta)
        assert (d - exact_projection(J)).norm() <= len(J) * float(left.max()) * length
