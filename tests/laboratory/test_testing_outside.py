"""Other libraries' solvers behind `testing.outside`, and planted ones against exact answers."""

import math
import time

import pytest
import torch

from mtlfunc import solvers, testing
from mtlfunc.testing.__main__ import main
from mtlfunc.testing.compare import answers, exact_weights, posed, row_of
from tests.support.oracles import near

PROBLEM = posed("gaussian", 3)
EXACT = exact_weights(PROBLEM.gramian).tolist()
PLANTED = [EXACT, [1.0, 0.0, 0.0], [math.nan] * 3, EXACT[:2], [2 * x for x in EXACT]]
KINDS = ["right", *["silently wrong"] * 4, "refused", "did not finish"]


def planted(problem):
    """Another answer at every power of ten of the Gramian."""
    k = round(math.log10(problem.gramian[0, 0] / PROBLEM.gramian[0, 0]))
    time.sleep(600 * (k == 6))
    return torch.tensor(PLANTED[k], dtype=torch.float64)  # raises where k is 5


def made():
    return planted


def test_planted_answers_are_called_what_they_are():
    found = [*answers(made, [(k, PROBLEM) for k in range(6)], limit=100.0)]
    found += answers(made, [(6, PROBLEM)], limit=1.0)
    assert [x.kind for x in found] == KINDS
    line = row_of("planted", found)
    assert [*line[1:6], *line[-2:]] == ["1", "4", "1", "1", "inf", *["1e0 to 1e0"] * 2]
    untried = [found[0]._replace(exponent=k) for k in (-9, -2)]  # G itself
    assert row_of("planted", [*found[2:], *untried])[-1] == "1e-9 to 1e-2"


@pytest.mark.parametrize("name", ["quadprog", "slsqp", "nnls", "cvxpy:CLARABEL"])
def test_outside_is_right_where_gradients_are_regular(name):
    exact = solvers.active_set()
    cone = solvers.dual_cone(PROBLEM.gramian, torch.tensor([1.0, -1.0, 0.2]).double())
    near(testing.outside(name)(cone).weights, exact(cone).weights, 0, 1e-3)
    for scale in (1.0, 1e6):
        solve = testing.outside(name, normalized=scale > 1)
        solution = solve(solvers.min_norm(scale * PROBLEM.gramian))
        near(solution.weights.tolist(), EXACT, 0, 1e-3)
    ball, solve = solvers.cagrad(PROBLEM.gramian, 0.4), testing.outside(name)
    if name in ("slsqp", "cvxpy:CLARABEL"):
        return testing.assert_agree(solve(ball), exact, ball, 1e-3)
    with pytest.raises(TypeError, match="slsqp, cvxpy:CLARABEL"):
        solve(ball)


def test_outside_says_what_is_there_and_what_is_wrong(capsys):
    wrong = [("scales", x, "expected LOW:HIGH") for x in ("1e8:1e-8", "1:2:3", "0:1", "abc")]
    wrong += [("tasks", x, "expected whole numbers >= 1") for x in ("x", "2,0", "")]
    wrong += [("solvers", "auto,foo", "['foo'] not among all, auto, cvx, slsqp")]
    for name, value, said in wrong:
        with pytest.raises(SystemExit):
            main([f"--{name}={value}"])
        assert f"argument --{name}: {said}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"'nothing' is not among slsqp, .*mtlfunc\[solvers\]"):
        testing.outside("nothing")
    with pytest.raises(ValueError, match=r"quadprog refuses: .*not positive"):
        testing.outside("quadprog")(solvers.min_norm(torch.zeros(2, 2)))
    with pytest.raises(RuntimeError, match="loop outside"):
        torch.func.vmap(lambda g: testing.outside("slsqp")(solvers.min_norm(g)))(torch.eye(2)[None])
