"""`mtlfunc.testing`: right solvers pass, planted mistakes are found, and shrink."""

import inspect
import itertools
import os
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import find, given, settings
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]

from mtlfunc import solvers, testing
from mtlfunc.audit.__main__ import main
from mtlfunc.core.transforms import depth, lanes
from mtlfunc.testing._check_solver import SIZES, draw
from mtlfunc.testing.families import FAMILIES
from mtlfunc.testing.judge import judge
from mtlfunc.testing.strategies import KINDS
from mtlfunc.types import Solution
from tests.support.every import few

F64 = torch.float64
EXACT = solvers.active_set()


def uniform(problem):
    return torch.full_like(problem.gramian[0], 1 / len(problem.gramian))


def wrong_frank_wolfe(problem):
    """Steps towards the task that is served best."""
    w = uniform(problem)
    for k in range(50):
        away = torch.zeros_like(w)
        away[problem.gradient(w).argmax()] = 1
        w = w + 2 / (k + 2) * (away - w)
    return w


def wrong_when_large(problem):
    large = problem.gramian.diagonal().amax().sqrt() > 1e6
    return uniform(problem) if large else EXACT(problem)


def changes_its_problem(problem):
    problem.gramian.mul_(2)
    return EXACT(problem)


def says_no_gap(problem):
    found = solvers.frank_wolfe(2)(problem)
    return found._replace(gap=found.gap * 0 - 1, rates=2 * found.rates)


def fills_in_numbers(problem):
    w = EXACT(problem).weights
    return Solution(w, w, problem.gramian @ w, 0.5, 0.0, 1)  # pyright: ignore[reportArgumentType]


def raises(problem):
    raise RuntimeError("no memory")


def says(**edit):
    """The right solution, with fields that are functions of the problem and of it."""

    def solver(problem):
        found = EXACT(problem)
        return found._replace(**{name: f(problem, found) for name, f in edit.items()})

    return solver


@pytest.mark.parametrize(
    ("solver", "tasks", "claims"),
    [(solvers.active_set(), (3, 3), ("vmap", "grad")), (solvers.auto(), (1, 5), ())],
    ids=["active_set", "auto"],
)
def test_exact_solvers_are_sound(solver, tasks, claims):
    report = testing.check_solver(solver, tasks=tasks, claims=claims)
    assert report.sound, report
    assert {row.problem for row in report.rows} == {"min_norm", "cagrad", "dual_cone"}
    assert {row.family for row in report.rows} == {"small integers", *FAMILIES}


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    few(
        [
            {"tasks": (3, 3)},
            {"problems": ["dual_cone"], "claims": ["grad"], "tasks": (2, 2)},
            {"claims": ["vmap", "grad"]},
        ],
        lambda given: "vmap" not in given.get("claims", ()),
    ),
    ids=" ".join,
)
def test_the_reference_solver_is_sound(given):
    report = testing.check_solver(solvers.cvx(), **given)
    assert report.sound, report


WRONG = {
    "frank_wolfe": (wrong_frank_wolfe, ("cagrad", "min_norm")),  # the dual cone has no simplex
    "uniform": (uniform, ("min_norm", "cagrad", "dual_cone")),
    "when large": (wrong_when_large, ("dual_cone", "min_norm", "cagrad")),
}


@pytest.mark.parametrize(
    "case",
    few(
        [(name, kind) for name in WRONG for kind in WRONG[name][1]],
        lambda case: case[1] == WRONG[case[0]][1][0],
    ),
    ids=" ".join,
)
def test_planted_mistakes_have_small_counterexamples(case):
    solver, kind = WRONG[case[0]][0], case[1]
    report = testing.check_solver(solver, [kind], tasks=(1, 4))
    assert not report.sound
    example = report.counterexamples[kind]
    assert len(example.jacobian) <= 3
    scope: dict[str, Any] = {"torch": torch}
    scope |= {name: getattr(solvers, name) for name in solvers.__all__}
    exec(example.literal, scope)
    for mine, shown in zip(example.problem, scope["problem"], strict=True):
        torch.testing.assert_close(mine, shown, rtol=1e-15, atol=0)
    assert judge(solver, scope["problem"], 1e-6).error > 1e-6
    assert all(line in str(report) for line in example.literal.splitlines())


ANSWERS = {
    "got list": lambda problem: uniform(problem).tolist(),
    "weights are float32": lambda problem: uniform(problem).float(),
    "weights: expected shape [1]": lambda problem: uniform(problem).repeat(2),
    "weights are not finite": lambda problem: uniform(problem) * torch.nan,
    "problem.gramian in place": changes_its_problem,
    "rates: the Solution says [2.0]": says_no_gap,
    "value: expected a tensor": fills_in_numbers,
    "raises RuntimeError: no memory": raises,
    "expected a dense tensor": lambda problem: uniform(problem).to_sparse(),
    "on meta": lambda problem: uniform(problem).to("meta"),
    "dual: expected the weights again": says(dual=lambda p, found: uniform(p)),
    "dual: expected weights on": says(dual=lambda p, found: found.dual * torch.nan),
    "steps: expected": says(steps=lambda p, found: None),
}


@pytest.mark.parametrize("text", ANSWERS)
def test_sentence_says_what_an_answer_must_be(text):
    problems = (each.problem("min_norm") for each in draw("min_norm", (1, 2)))
    assert any(text in judge(ANSWERS[text], problem, 1e-6).wrong for problem in problems)


def test_a_counterexample_has_as_few_digits_as_it_can():
    """Planted: wrong unless all products are whole numbers, as those of integers are."""

    def solver(problem):
        two = problem.gramian.view(2, 2)  # it raises at other numbers of tasks: nobody asked
        return EXACT(problem).weights if torch.equal(two, two.round()) else uniform(problem)

    report = testing.check_solver(solver, ["min_norm"], tasks=(2, 2))
    rows = report.counterexamples["min_norm"].jacobian
    torch.testing.assert_close(rows, rows.round(decimals=1).view(2, -1), rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_solvers_are_checked_in_every_grad_mode(mode):
    given: Any = {"tasks": (2, 2), "claims": ["vmap", "grad"]}
    with mode():
        report = testing.check_solver(solvers.faces(), ["dual_cone"], **given)
    assert report.sound, report


@pytest.mark.parametrize("tasks", [None, (1, 8), (2, 2), (1, 3), (5, 11), (3, 20)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_is_drawn(kind, tasks):
    """Each with every family, those beyond 8 with some of them; and the families in turn."""
    low, high = tasks or (1, 8)
    drawn = list(draw(kind, tuple(range(low, high + 1)) if tasks else SIZES))
    found = {len(each.rows) for each in drawn}
    assert found == {*range(low, high + 1)} | (set() if tasks else {12, 20})
    families = {t: {each.family for each in drawn if len(each.rows) == t} for t in found}
    assert all(families[t] >= set(FAMILIES) for t in found if t <= 8)
    assert all("gaussian" in families[t] and len(families[t]) >= 4 for t in found)


@pytest.mark.parametrize(
    ("size", "tasks"), [(12, None), pytest.param(9, (8, 9), marks=pytest.mark.exhaustive)]
)
def test_a_solver_that_is_wrong_at_one_size_alone_is_found(size, tasks):
    def seldom(problem):
        return uniform(problem) if len(problem.gramian) == size else EXACT(problem)

    report = testing.check_solver(seldom, ["min_norm"], tasks=tasks)
    assert not report.sound
    assert report.counterexamples["min_norm"].jacobian.shape[0] == size


@pytest.mark.parametrize("ends", [(1, 4), (1, 8), (2, 5)])
def test_most_draws_have_several_tasks(ends):
    counts = []

    @settings(max_examples=200, database=None, derandomize=True)
    @given(testing.jacobians(tasks=ends))
    def count(rows):
        counts.append(len(rows))

    count()
    assert counts.count(1) <= 0.25 * len(counts)
    assert set(counts) == set(range(ends[0], ends[1] + 1))


def test_a_refusal_is_no_answer_and_is_said():
    report = testing.check_solver(solvers.faces(), ["min_norm"], tasks=(6, 8))
    refused = sum(len(each.rows) > 6 for each in draw("min_norm", (6, 7, 8)))
    assert report.sound
    assert refused == sum(row.refused for row in report.rows) > 0
    assert f"min_norm: no answer to {refused} problems of 7 and 8 tasks" in str(report)
    assert "faces" in str(report)
    few = testing.check_solver(solvers.faces(), ["min_norm"], tasks=(1, 2))
    assert few.title.endswith("1 and 2 tasks, float64")

    def picky(problem):
        raise ValueError("not today")

    assert not testing.check_solver(picky, ["min_norm"], tasks=(2, 2)).sound

    def one_kind(problem):
        if isinstance(problem, solvers.CAGrad):
            raise ValueError("no CAGrad")
        return EXACT(problem)

    report = testing.check_solver(one_kind, tasks=(2, 2))
    assert not report.sound, "nothing is known of it where it has no answer at all"
    assert "cagrad: no answer to" in str(report)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(0), lambda x: x.mul_(1.0), lambda x: x.copy_(x.clone()),
        lambda x: x.detach().add_(0), lambda x: x[..., :1].add_(0), lambda x: x.data.mul_(2),
        lambda x: x.clamp_(min=-torch.inf), lambda x: np.multiply(x.numpy(), 2, out=x.numpy()),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("kind", "field"), [("min_norm", "gramian"), ("cagrad", "preference"), ("dual_cone", "weights")]
)
def test_what_writes_what_was_there_is_seen(kind, field, write):
    def solver(problem):
        write(getattr(problem, field))
        return EXACT(problem)

    problem = next(draw(kind, (2,))).problem(kind)
    assert f"it changes problem.{field} in place" in judge(solver, problem, 1e-6).wrong


def test_kinds_that_a_solver_refuses_are_reported_and_not_counted():
    def min_norm_only(problem):
        if not isinstance(problem, solvers.MinNorm):
            raise TypeError("min_norm only")
        return EXACT(problem)

    report = testing.check_solver(min_norm_only, tasks=(1, 2))
    assert report.sound
    assert set(report.not_taken) == {"cagrad", "dual_cone"}
    assert "cagrad: not taken, raises TypeError: min_norm only" in str(report)
    assert not testing.check_solver(min_norm_only, ["cagrad"], tasks=(1, 2)).sound

    def nothing(problem):
        raise TypeError("nothing")

    assert not testing.check_solver(nothing, tasks=(2, 2)).sound


def test_claims_are_tried_only_if_made():
    def branches(problem):
        return EXACT(problem).weights if bool(problem.gramian.sum() > -1) else None

    def constant(problem):
        return EXACT(problem).weights.detach()

    quick = {"problems": ["min_norm"], "tasks": (1, 2)}
    assert testing.check_solver(branches, **quick).sound
    report = testing.check_solver(branches, claims=["vmap"], **quick)
    assert "min_norm: under torch.func.vmap it raises" in report.claims["vmap"]
    assert not report.sound
    wanted: Any = {"problems": iter(["min_norm"]), "claims": iter(["vmap", "grad"])}
    report = testing.check_solver(constant, **quick | wanted)
    assert report.claims["vmap"] == ""
    assert "torch.func.grad gives a slope of 0" in report.claims["grad"]
    assert "not claimed, not tried" in str(testing.check_solver(constant, **quick))


def test_claims_are_tried_at_several_numbers_of_tasks_and_all_kinds_of_problems():
    def branches_at_two(problem):
        assert len(problem.gramian) != 2 or bool(problem.gramian[0, 1].isfinite())
        return EXACT(problem)

    def branches_on_the_radius(problem):
        if isinstance(problem, solvers.CAGrad) and bool(problem.c == 0):
            return problem.preference
        return EXACT(problem)

    def mixes(problem):
        given = getattr(problem, "weights", None)
        if given is None or (together := torch.func.debug_unwrap(given)) is given:
            return EXACT(problem)
        return EXACT(solvers.dual_cone(problem.gramian, together[0]))

    def slopes(problem):
        weights = EXACT(problem).weights
        uneven = isinstance(problem, solvers.CAGrad) and problem.preference.unique().numel() > 1
        wrong = len(weights) > 3 or uneven
        return weights + (weights - weights.detach()) if wrong else weights

    def claimed(solver, claim, kind, *tasks):
        report = testing.check_solver(solver, [kind], tasks=tasks, claims=[claim])
        assert not any(row.failures for row in report.rows)
        return report.claims[claim]

    assert "(at T = 2)" in claimed(branches_at_two, "vmap", "min_norm", 1, 2)
    assert "it raises RuntimeError" in claimed(branches_on_the_radius, "vmap", "cagrad", 2, 2)
    assert "weights [" in claimed(mixes, "vmap", "dual_cone", 2, 2)
    assert 'testing.jacobian("gaussian", 5, 0) torch' in claimed(slopes, "grad", "min_norm", 3, 5)
    assert "preference [0.3333" in claimed(slopes, "grad", "cagrad", 2, 3)


@pytest.mark.parametrize(
    ("where", "how"),
    [
        (lambda problem: depth() == 2, "nested vmaps"),
        (lambda problem: depth() == 1 and lanes() == 1, "torch.func.vmap in a batch of one"),
        (
            lambda problem: depth() == 1 and not is_batchedtensor(problem.gramian),
            "torch.func.vmap with one Gramian",
        ),
    ],
)
def test_vmap_is_tried_nested_in_a_batch_of_one_and_with_one_gramian(where, how):
    def solver(problem):
        return EXACT(problem).weights + where(problem)

    report = testing.check_solver(solver, ["cagrad"], tasks=(2, 2), claims=["vmap"])
    assert not report.counterexamples
    assert f"cagrad: under {how}, at T = 2, the answer to" in report.claims["vmap"]


@pytest.mark.parametrize(
    ("kind", "field"), [("cagrad", "c"), ("cagrad", "preference"), ("dual_cone", "weights")]
)
def test_derivatives_are_tried_in_what_a_problem_has_beside_the_gramian(kind, field):
    def solver(problem):
        return EXACT(problem._replace(**{field: getattr(problem, field).detach()}))

    report = testing.check_solver(solver, [kind], tasks=(2, 2), claims=["grad"])
    assert f"{kind}: at testing.jacobian(" in report.claims["grad"]


def divides_by_the_preference(problem):
    return EXACT(problem).weights / problem.preference * problem.preference


def divides_by_a_norm(problem):
    """J = 0 for two tasks and three is drawn: NaN."""
    found, nothing = EXACT(problem), problem.gramian.diagonal().sum() == 0
    return found._replace(weights=found.weights.where(~nothing, torch.nan))


def iterates(problem):
    """An error at some numbers of tasks is not a kind that is not taken."""
    list(problem.gramian.diagonal().squeeze())
    return EXACT(problem)


CALLS = itertools.count(1)


def unless(wrong):
    return lambda problem: uniform(problem) if wrong() else EXACT(problem)


MISTAKES = {  # a solver, a problem, its tasks, and what is said
    "without preference": (divides_by_the_preference, "cagrad", (2, 3), "not finite"),
    "dual weights": (lambda p: EXACT(p).dual, "cagrad", (1, 2),
                     "problem.solution(problem.recover(w), w)"),
    **{f"without a gradient, {kind}": (divides_by_a_norm, kind, (count, count), "not finite")
       for kind, count in {"min_norm": 2, "cagrad": 3, "dual_cone": 2}.items()},
    "at one task": (iterates, "cagrad", (1, 2), "iteration over a 0-d tensor"),
    "not repeated": (unless(lambda: next(CALLS) == 40), "min_norm", (2, 2), "do not repeat"),
    "torch's numbers": (unless(lambda: torch.rand(1) < 0), "min_norm", (2, 2),
                        "draws from global random numbers"),
    "NumPy's numbers": (unless(lambda: np.random.rand() < 0), "min_norm", (2, 2),  # noqa: NPY002
                        "draws from global random"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_what_is_wrong_is_said(case):
    solver, kind, tasks, text = MISTAKES[case]
    report = testing.check_solver(solver, [kind], tasks=tasks)
    assert not report.sound
    assert not report.not_taken
    assert text in report.counterexamples[kind].detail
    assert "gradient" not in case or not report.counterexamples[kind].jacobian.any()


def test_report_as_records():
    records = testing.check_solver(uniform, ["min_norm"], tasks=(1, 2), name="<uniform>").records()
    assert len(records) == 1 + len(FAMILIES)
    assert records[0]["family"] == "small integers"


def test_agree_where_weights_tie_and_not_where_one_is_wrong():
    same = solvers.min_norm(torch.ones(3, 3, dtype=F64))
    testing.assert_agree(uniform, torch.eye(3, dtype=F64)[1], same)
    problem = solvers.min_norm(torch.diag(torch.tensor([1.0, 4.0], dtype=F64)))
    testing.assert_agree(EXACT, EXACT(problem), problem)
    with pytest.raises(AssertionError, match=r"(?s)on MinNorm: other: certified error .* apart"):
        testing.assert_agree(EXACT, uniform, problem)


def test_dual_weights_are_named_and_others_are_not():
    problem = solvers.cagrad(torch.diag(torch.tensor([1.0, 4.0], dtype=F64)), 0.4)
    exact = EXACT(problem)
    for weights, named in ((exact.dual, True), (0.99 * exact.weights, False)):
        with pytest.raises(AssertionError) as error:
            testing.assert_agree(exact, weights, problem)
        assert ("these are the dual's weights" in str(error.value)) == named


def test_a_refusal_does_not_agree():
    problem = solvers.min_norm(torch.eye(7, dtype=F64))
    with pytest.raises(AssertionError, match="one: raises ValueError: faces: 7 tasks"):
        testing.assert_agree(solvers.faces(), solvers.active_set(), problem)


@settings(max_examples=30)
@given(testing.problems("cagrad", tasks=(1, 4)))
def test_problems_are_problems(problem):
    assert isinstance(problem, solvers.CAGrad)
    testing.assert_agree(solvers.active_set(), solvers.faces(), problem)


@given(testing.jacobians(tasks=(2, 3), families=["zero_row"], exponents=(0, 0)))
@settings(max_examples=10)
def test_families_can_be_chosen(rows):
    assert (rows == 0).all(1).any()


def test_a_failure_shrinks_to_the_smallest_member_of_its_family():
    """Planted: wrong where two gradients are the same, at any scale but small ones."""

    def fails(rows):
        norms = rows.norm(dim=1)
        near = torch.cdist(rows, rows) + torch.diag(torch.full((len(rows),), torch.inf).double())
        same = near.amin() < 1e-7 * norms.amax()
        return bool(same & (norms.amin() > 0) & (norms.amax() > 1e-5))

    rows = find(testing.jacobians(), fails, settings=settings(max_examples=2000, deadline=None))
    assert rows.shape == (2, 1)
    assert 1e-2 < rows.abs().amax() < 10  # the scale is 1 again


ODD: Any = (3, (1, 2, 3), (2.0, 3))
LEAST = r"tasks: expected \(least, most\)"
UNTYPED = "MTLFUNC_TYPES" not in os.environ  # enforced annotations would answer first
check_solver: Any = inspect.unwrap(testing.check_solver)
WRONG_CALLS = [
    (TypeError, "solver:", lambda: check_solver(solvers.active_set)),
    (TypeError, "solver: expected a function of one problem, got int", lambda: check_solver(3)),
    (ValueError, "problems='mgda'", lambda: check_solver(uniform, ["mgda"])),
    (ValueError, "expected lists of names", lambda: check_solver(uniform, "min_norm")),
    (ValueError, "claims='fast'", lambda: check_solver(uniform, claims=["fast"])),
    (ValueError, "tolerance: expected a number in", lambda: check_solver(uniform, tolerance=0.0)),
    (ValueError, "tasks: expected", lambda: check_solver(uniform, tasks=(3, 2))),
    (ValueError, "families='nobody'", lambda: testing.jacobians(families=iter(["nobody"]))),
    (ValueError, "families: expected names", lambda: testing.problems("min_norm", families=())),
    (ValueError, "exponents: expected", lambda: testing.problems("min_norm", exponents=(3, -3))),
    (ValueError, "tasks: expected", lambda: testing.jacobians(tasks=(0, 2))),
    (ValueError, "kind='mgda'", lambda: testing.problems("mgda")),
    (ValueError, "width: expected .* got 0", lambda: testing.jacobian("gaussian", 2, width=0)),
    (ValueError, "family='nobody'", lambda: testing.jacobian("nobody", 2)),
    *(
        (ValueError, LEAST, lambda call=call, tasks=tasks: call(tasks=tasks))
        for call in (partial(check_solver, uniform), testing.jacobians)[: 1 + UNTYPED]
        for tasks in ODD
    ),
]


def test_wrong_arguments_are_named():
    for kind, message, call in WRONG_CALLS:
        with pytest.raises(kind, match=message):
            call()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_every_size(family):
    for count, width in itertools.product((1, 2, 3, 7), (1, 2, 9)):
        rows = FAMILIES[family](np.random.default_rng(0), count, width)
        assert rows.shape[0] == count
        assert 1 <= rows.shape[1] <= (max(width, count) if family == "orthogonal" else width)
        assert np.isfinite(rows).all()
        assert family != "hull" or width > 1 or abs(np.sign(rows).sum()) == count


def test_command_checks_a_solver(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def bad(problem):\n"
        "    return torch.full_like(problem.gramian[0], 1 / len(problem.gramian))\n"
    )
    monkeypatch.chdir(tmp_path)
    quick = ["--tasks", "1", "2", "--problems", "min_norm"]
    assert main(["--solver", "mine:bad", *quick]) == 1
    said = capsys.readouterr().out
    assert "bad is not sound" in said
    assert "torch.tensor" in said
    assert main(["--solver", "mtlfunc.solvers:active_set", *quick, "--claims", "vmap"]) == 0
    assert "vmap: holds as claimed" in capsys.readouterr().out
    for arguments in ([], ["mtlfunc:mgda", "--solver", "mine:bad"], ["--solver", "mine:nobody"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2


def test_a_solver_of_one_task_alone_is_not_sound():
    def only_one_task(problem):
        if len(problem.gramian) > 1:
            raise ValueError("one task alone")
        return torch.ones_like(problem.gramian[0])

    report = testing.check_solver(only_one_task, ["min_norm"], tasks=(1, 3))
    assert not report.sound
    assert "min_norm: no answer to ✗ any problem of several tasks" in str(report)
    assert testing.check_solver(only_one_task, ["min_norm"], tasks=(1, 1)).sound


def test_a_failing_problem_is_printed_with_its_numbers():
    @settings(max_examples=20, database=None, deadline=None)
    @given(testing.problems("min_norm", tasks=(2, 3), families=["gaussian"]))
    def never(problem):
        raise AssertionError

    with pytest.raises(AssertionError) as failed:
        never()
    said = "".join(failed.value.__notes__)
    assert "MinNorm of dtype torch.float64: {'gramian': [[" in said
    assert "pose(" not in said
