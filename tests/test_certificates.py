"""What certificates say of an answer: no more than the problem and the weights prove."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch.func import vmap

from mtlfunc import diagnostics, solvers, testing
from mtlfunc.solvers.problems import solver
from mtlfunc.solvers.two_tasks import two_tasks
from mtlfunc.testing import certified_error
from mtlfunc.testing._check_solver import draw
from mtlfunc.testing.families import FAMILIES, jacobian
from mtlfunc.testing.judge import judge
from mtlfunc.testing.strategies import KINDS, VARIANTS, pose
from tests.support.every import every, in_turn
from tests.support.families import gramian
from tests.support.registry import PROBLEMS, SOLVERS

F64 = torch.float64


def unlike(e):
    """Problems whose gradients' lengths are powers of ten apart, with a wrong answer each: CAGrad's
    right one gives the short gradient all of the ball, the cone's has 0.6·10^-e of the long one;
    the shortest vector is about as long as the shortest gradient, the other one as the next.
    """
    ball, hull = (10.0 ** torch.tensor(x, dtype=F64) for x in ([-e, e], [-e, 0, 0, e]))
    rows = torch.tensor([[1.0, 0.0], [-0.6 * 10.0**e, 0.8 * 10.0**e]], dtype=F64)
    cone = solvers.dual_cone(rows @ rows.mT, torch.tensor([1.0, 0.0], dtype=F64))
    return [
        (solvers.cagrad(torch.diag(ball**2), 0.5), [0.5, 0.5]),
        (cone, [1.0, 0.0]),
        (solvers.min_norm(torch.diag(hull**2)), [0.0, 0.5, 0.5, 0.0]),
    ]


@pytest.mark.parametrize("e", [0, 3, 6])
def test_what_is_missed_of_a_short_gradient_counts(e):
    for problem, wrong in unlike(e):
        assert certified_error(problem, torch.tensor(wrong, dtype=F64)) > 0.1
        assert certified_error(problem, solvers.active_set()(problem).weights) < 1e-12
        assert certified_error(problem, solvers.cvx()(problem).weights) < 1e-6
    problem, projected = unlike(e)[1][0], torch.tensor([1.0, 0.6 * 10.0**-e], dtype=F64)
    torch.testing.assert_close(solvers.active_set()(problem).weights, projected)
    assert certified_error(problem, projected) < 1e-12


def test_what_is_called_optimal_is():
    """Half the ball is left to a gradient of 1e-6 beside one of 1e6; a float32 gap of 5e-4."""
    for dtype in (torch.float64, torch.float32):
        J = torch.diag(torch.tensor([1e-6, 1e6], dtype=dtype))
        problem, half = solvers.cagrad(J @ J, 0.5), torch.full((2,), 0.5, dtype=dtype)
        assert str(solvers.certify(problem, half)).startswith("not optimal: task 0")
        best = solvers.active_set()(problem).weights
        assert str(solvers.certify(problem, best)).startswith("optimal to rounding")
    problem = solvers.min_norm(torch.eye(2))
    near, even = torch.tensor([0.5005, 0.4995]), torch.full((2,), 0.5)
    assert str(solvers.certify(problem, near)).startswith("not optimal: task 1")
    assert str(solvers.certify(problem, torch.ones(2))).startswith("infeasible")
    uneven = torch.tensor([[5.0, 1.0 + 3e-6], [1.0, 10.0]], dtype=F64)  # by rounding
    for problem in (solvers.min_norm(uneven), solvers.cagrad(uneven, 0.5)):
        best = solvers.active_set()(problem).weights
        assert str(solvers.certify(problem, best)).startswith("optimal to rounding")
    nearly = torch.tensor([[0.9650861425254499], [-0.9650861483064679]], dtype=F64)
    problem = solvers.cagrad(nearly @ nearly.mT, 0.5)
    one, other = (solve(problem) for solve in (solvers.active_set(), solvers.faces()))
    torch.testing.assert_close(other.rates, one.rates, rtol=1e-3, atol=0.0)
    opposite = solvers.min_norm(2 * torch.eye(2) - 1)
    assert str(solvers.certify(opposite, even)).startswith("numerically Pareto stationary")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cone_answer_beside_a_long_gradient_is_not_optimal(dtype):
    """Three times as much of a short gradient as asked, which conflicts with none."""
    rows = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1e6]], dtype=dtype)
    if dtype == torch.float64:
        rows[2] *= 1e7
    problem = solvers.dual_cone(rows @ rows.mT, torch.tensor([0.5, 0.5, 0.0], dtype=dtype))
    assert str(solvers.certify(problem, problem.weights)).startswith("optimal to rounding")
    more = torch.tensor([1.5, 0.5, 0.0], dtype=dtype)
    assert str(solvers.certify(problem, more)).startswith("not optimal")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("c", [0.9, 1.5, 3.0])
def test_wrong_answers_at_a_stationary_point_are_not_optimal(dtype, c):
    """Two opposite gradients: the mean still raises a loss, which CAGrad's direction does not."""
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]], dtype=dtype)
    problem = solvers.cagrad(rows @ rows.mT, c)
    best = solvers.active_set()(problem).weights
    assert str(solvers.certify(problem, best)).startswith("numerically Pareto stationary")
    found = solvers.certify(problem, problem.preference)
    assert not found.stationary
    assert str(found).startswith("not optimal: task 0 is served worst")


@pytest.mark.parametrize("name", SOLVERS)
def test_an_indefinite_matrix_has_no_answer(name):
    """Of the weights [0.5, 0.5] the gap would be 0, and the objective is lower at a vertex."""
    problem = solvers.min_norm(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64))
    with pytest.raises(ValueError, match=r"gramian: indefinite: .*eigenvalue -1\b"):
        SOLVERS[name].make()(problem)
    half = torch.full((2,), 0.5, dtype=F64)
    with pytest.raises(ValueError, match="gramian: indefinite"):
        solvers.certify(problem, half)
    mapped = vmap(lambda g: solvers.certify(solvers.MinNorm(g), half))(problem.gramian[None])
    assert mapped.gap.isnan()
    assert "no answer" in str(type(mapped)._make(x[0] for x in mapped))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-21), (torch.float64, 1e-160)])
def test_a_gramian_that_lost_its_digits_is_named(dtype, size):
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).to(dtype) * size / 30
    with pytest.raises(ValueError, match="have lost their digits: multiply the losses"):
        solvers.active_set()(solvers.min_norm(rows @ rows.mT))


@pytest.mark.parametrize("ratio", [1e8, 1e12, 1e20, 1e60])
def test_two_tasks_of_any_lengths_in_closed_form(ratio):
    """The share of a gradient that much longer is left of 1 - x with no digit."""
    rows = torch.tensor([[1.0, 0.0], [-0.6 * ratio, 0.8 * ratio]], dtype=F64)
    for order in ([0, 1], [1, 0]):
        problem = solvers.min_norm((rows @ rows.mT)[order][:, order])
        found = solver(two_tasks)(problem)
        assert certified_error(problem, found.weights) < 1e-12
        torch.testing.assert_close(found.weights, solvers.active_set()(problem).weights)


SCALES = [2.0 ** round(e * math.log2(10)) for e in range(-12, 13)]  # free of rounding
ZEROS = {
    "one beside a zero": [[1.0], [0.0]],
    "two beside a zero": [[1.0, 0.0], [0.0, 0.0], [-0.6, 0.8]],
    "opposed beside a zero": [[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0]],
    "unlike lengths": [[1.0, 0.0, 0.0], [0.0, 1e-3, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 50.0]],
    "two zeros": [[0.0, 0.0], [3.0, 1.0], [0.0, 0.0]],
    "opposed": [[2.0], [-2.0]],
    "nothing": [[0.0], [0.0]],
}


def answers(count):
    """Weights of many kinds, right and wrong ones."""
    unit = torch.eye(count, dtype=F64)
    alternating = torch.tensor([1.0, -1.0] * count, dtype=F64)[:count]
    return [*unit, unit.mean(0), unit.sum(0), 0 * unit[0], alternating, unit[-1] + 1e-17 * unit[0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ZEROS)
def test_verdicts_do_not_depend_on_the_unit(kind, rows):
    rows = torch.tensor(ZEROS[rows], dtype=F64)

    def verdicts(scale):
        problems = [pose(kind, scale * rows, variant) for variant in range(VARIANTS[kind])]
        found = []
        for problem in problems:
            for weights in answers(len(rows)):
                said = solvers.certify(problem, weights)
                error = certified_error(problem, weights)
                numbers = [error, *(x for x in said[1:] if x.is_floating_point())]
                found.append((str(said).split(" (")[0].split(":")[0], torch.stack(numbers)))
        return found

    expected = verdicts(1.0)
    for scale in (SCALES[0], SCALES[7], SCALES[-1]):
        for (said, numbers), (words, exact) in zip(verdicts(scale), expected, strict=True):
            assert said == words
            torch.testing.assert_close(numbers, exact, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_solver_is_sound_at_every_scale(kind):
    families = itertools.cycle(FAMILIES)
    for seed, scale in enumerate(SCALES):
        for family in itertools.islice(families, 2):
            rows = scale * jacobian(family, 2 + seed % 4, seed)
            problem = pose(kind, rows, seed % VARIANTS[kind])
            assert certified_error(problem, solvers.cvx()(problem).weights) < 1e-6, (family, scale)


@pytest.mark.parametrize("scale", SCALES)
def test_half_of_a_gradient_is_not_the_answer_beside_a_zero_one(scale):
    rows = scale * torch.tensor([[1.0], [0.0]], dtype=F64)
    problem = solvers.min_norm(rows @ rows.mT)
    half, right, dust = torch.tensor([[0.5, 0.5], [0.0, 1.0], [1e-9, 1 - 1e-9]], dtype=F64)
    assert certified_error(problem, dust) < 2e-9
    torch.testing.assert_close(certified_error(problem, half), torch.tensor(0.5, dtype=F64))
    testing.assert_agree(right, solvers.active_set(), problem)
    with pytest.raises(AssertionError, match="one: certified error"):
        testing.assert_agree(half, solvers.active_set(), problem)


def exact_length(rows, weights):
    """‖Jᵀw‖ in fractions."""
    columns = [[Fraction(x) for x in column] for column in rows.mT.tolist()]
    given = [Fraction(x) for x in weights.tolist()]
    square = sum(sum(w * x for w, x in zip(given, each, strict=True)) ** 2 for each in columns)
    return math.sqrt(square)


DRAWN = itertools.product(((2, 1), (2, 2), (3, 1), (3, 2), (5, 1)), (0.1, 0.4, 1.0, 2.0))
OPENINGS = itertools.product((1e-3, 1e-5, 1e-6, 3e-7, 1e-7, 3e-8, 1e-9, 0.0), (F64, torch.float32))


@pytest.mark.parametrize(("case", "drawn"), in_turn(OPENINGS, DRAWN, 7))
@every("drawn")
def test_the_ball_is_held_as_far_as_the_certificate_says(case, drawn):
    """The distance of d from g₀, in fractions, is never off by more than the certificate says."""
    ((count, seed), c), (opening, dtype) = drawn, case
    rows = testing.jacobian("pareto_stationary", count, seed)
    rows = (rows + opening * testing.jacobian("gaussian", 1, seed, width=count + 10)).to(dtype)
    problem = solvers.cagrad(rows @ rows.mT, c)
    centre = exact_length(rows, problem.preference)
    for name in (name for name in SOLVERS if SOLVERS[name].implicit):
        weights = SOLVERS[name].make()(problem).weights
        found = solvers.certify(problem, weights)
        reach = exact_length(rows, weights - problem.preference) / centre
        eps = torch.finfo(dtype).eps
        assert reach <= c + found.infeasibility + found.resolution + 64 * eps, name
        assert reach <= 1.5 * c, name
        if reach and found.resolution < 0.1 * c:
            more = (c + 4 * found.resolution + 1e5 * eps) / reach
            outside = problem.preference + more * (weights - problem.preference)
            assert str(solvers.certify(problem, outside)).startswith("infeasible"), name


def test_a_certificate_of_ordinary_gradients_is_not_blurred():
    for count in (2, 3, 8):
        rows = testing.jacobian("gaussian", count, 0)
        problem = solvers.cagrad(rows @ rows.mT, 0.4)
        found = solvers.certify(problem, solvers.active_set()(problem).weights)
        assert found.resolution < 1e-12
        assert str(found).startswith("optimal to rounding")


HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("count", [2, 4, 16, 63])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_does_not_take_any_gradients_for_stationary(kind, count, dtype):
    """Equal and orthogonal gradients, whose Gramians are exact in any dtype."""
    for exact in (torch.ones(count, count), torch.eye(count)):
        gramian = exact.to(HALVES[dtype])
        problem = PROBLEMS[kind](gramian)
        found = solvers.certify(problem, solvers.active_set()(problem).weights)
        assert not found.stationary
        assert str(found).startswith("optimal")
        assert not diagnostics.stationarity(gramian).stationary
    opposed = torch.ones(count, count)
    opposed[0] = opposed[:, 0] = -1
    opposed[0, 0] = 1
    problem = solvers.min_norm(opposed.to(HALVES[dtype]))
    found = solvers.certify(problem, solvers.active_set()(problem).weights)
    assert found.stationary
    assert diagnostics.stationarity(problem.gramian).stationary


@pytest.mark.parametrize(
    ("dtype", "count"), [(torch.bfloat16, 64), (torch.bfloat16, 512), (torch.float16, 400)]
)
def test_what_half_precision_cannot_tell_is_said(dtype, count):
    gramian = torch.eye(count).to(dtype)
    found = diagnostics.stationarity(gramian)
    assert found.noise.isnan()
    assert not found.stationary
    assert found.lower == 0
    problem = solvers.min_norm(gramian)
    uniform = torch.full((count,), 1 / count, dtype=dtype)
    assert not solvers.certify(problem, uniform).stationary
    blurred = torch.full((count, count), 1 / 512).fill_diagonal_(1.0).to(dtype)
    blurred[: count // 2, count // 2 :] *= -1
    blurred[count // 2 :, : count // 2] *= -1
    said = str(solvers.certify(solvers.min_norm(blurred), uniform * 0.75 + 0.5 * gramian[0]))
    assert not said.startswith("numerically Pareto stationary")
    assert not diagnostics.stationarity(gramian.float()).noise.isnan()


@pytest.mark.parametrize("family", ["gaussian", "spread", "hull", "antiparallel"])
def test_certified_error_is_no_less_than_the_true_one(family):
    """Against the closed form of two tasks; it is 0 to rounding at the optimum."""
    for seed in range(5):
        J = testing.jacobian(family, 2, seed)
        G = J @ J.mT
        first = ((G[1, 1] - G[0, 1]) / (G[0, 0] + G[1, 1] - 2 * G[0, 1])).clamp(0, 1)
        best = torch.stack([first, 1 - first])
        problem = solvers.min_norm(G)
        assert testing.certified_error(problem, best) < 1e-12
        longest = G.diagonal().amax().sqrt()
        for share in (0.0, 0.3, 0.9):
            w = torch.tensor([share, 1 - share], dtype=F64)
            distance = ((w - best) @ G @ (w - best)).sqrt() / longest
            loss = 0.5 * (w @ G @ w - best @ G @ best) / (longest * (G.diagonal().sqrt() @ w))
            error = testing.certified_error(problem, w)
            assert error >= min(distance, loss) - 1e-12
            scaled = solvers.min_norm(G * 2.0**60)
            torch.testing.assert_close(testing.certified_error(scaled, w), error)


def test_certified_error_of_a_batch_and_of_nan():
    J = torch.stack([testing.jacobian("gaussian", 3, seed) for seed in range(3)])
    w = torch.full((3,), 1 / 3, dtype=F64)

    def error(rows):
        return testing.certified_error(solvers.min_norm(rows @ rows.mT), w)

    torch.testing.assert_close(vmap(error)(J), torch.stack([error(rows) for rows in J]))
    assert testing.certified_error(solvers.min_norm(J[0] @ J[0].mT), w * torch.nan) == torch.inf
    cancels = solvers.dual_cone(torch.tensor([[4.0]]).double(), torch.tensor([-2.0]).double())
    short = testing.certified_error(cancels, torch.tensor([0.002]).double())
    torch.testing.assert_close(short.item(), 1e-3)  # of the 2 whose answer is 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e100, 1e160, 1e200])
def test_weights_whose_products_overflow_are_wrong(kind, size):
    """Of the dual cone they are feasible, and gap and unit are both infinite."""

    def enormous(problem):
        return torch.full_like(problem.gramian[0], size)

    problems = (each.problem(kind) for each in draw(kind, (2,)))
    assert any(judge(enormous, problem, 1e-6).wrong for problem in problems)
    rows = torch.tensor([[1.0, 0.0], [-0.8, 0.6]], dtype=F64)
    problem = solvers.dual_cone(rows @ rows.mT, torch.ones(2, dtype=F64))
    assert testing.certified_error(problem, torch.tensor([size, size], dtype=F64)) > 0.05


@pytest.mark.parametrize("step", ["away", "pairwise"])
def test_ties_of_frank_wolfe_are_broken_alike_under_vmap(step):
    solve = solvers.frank_wolfe(15, step)
    for family in ("identical", "duplicates", "antiparallel", "integer_ties"):
        gramians = torch.stack([gramian(family, 4, seed) for seed in range(5)])
        together = vmap(lambda g: solve(solvers.min_norm(g)).weights)(gramians)
        alone = torch.stack([solve(solvers.min_norm(g)).weights for g in gramians])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solve", [solvers.active_set(), solvers.faces()])
def test_cagrads_gap_and_resolution_bound_the_exact_gap(solve):
    """Gradients of one whole number each, which nearly cancel: all lengths are fractions."""
    for g, p, c in (
        ((10**5, 2 * 10**5, -(10**5), -100001), (0, 2, 2, 2), 0.4),
        ((296813, 676468, -973280), (1, 1, 1), 0.1),
        ((925676, 643744, 740327, -363908, -504, -1945334), (1,) * 6, 0.9),
    ):
        rows = torch.tensor(g, dtype=F64)[:, None]
        problem = solvers.cagrad(rows @ rows.mT, c, preference=torch.tensor(p, dtype=F64))
        found = solve(problem)
        given = problem.preference, found.dual, found.weights
        g0, gw, d = (sum(map(lambda w, x: Fraction(w) * x, w.tolist(), g)) for w in given)
        exact = gw * g0 + Fraction(c) * abs(gw) * abs(g0) - min(x * d for x in g)
        blur = solvers.certify(problem, found.weights).resolution * max(map(abs, g))
        assert float(exact) <= found.gap + blur * float(abs(g0))
