"""Rules that are right but look wrong, and mistakes that an audit has to look for between."""

from typing import Any

import pytest
import torch

import mtlfunc as mf
from mtlfunc.audit import audit
from mtlfunc.audit.instances import generic, independent
from mtlfunc.core.transforms import inside_transform
from tests.support.audits import row_of
from tests.support.broken_rules import by_norm, counting_dict, first_preferred, only, uniform


def min_norm(gramian: Any) -> Any:
    return mf.solvers.auto()(mf.solvers.min_norm(gramian)).weights


def counted(limit: int, count: int = 0) -> Any:
    """Other weights after so many calls, of any number of tasks or one."""
    seen: list[int] = []

    def weights(gramian: Any) -> Any:
        if not count or len(gramian) == count:
            seen.append(1)
        return by_norm(gramian) * (1.0 + (len(seen) > limit))

    return weights


@pytest.mark.parametrize("rule", [counted(900), counted(30, 5), counting_dict()])
def test_what_does_not_repeat_breaks_no_audit(rule):
    failing = [row for row in audit(rule, instances=20).rows if row.status == "fails"]
    assert all(row.detail and row.jacobian is not None for row in failing)


def test_between_follows_the_key():
    """What is wrong at one T between is found by some key; the same key gives the same report."""
    rule = only(9, first_preferred)
    found = [audit(rule, only=[ORDER], instances=5, key=key) for key in range(12)]
    assert {row[ORDER].status for row in found} == {"holds", "fails"}
    assert str(audit(rule, only=[ORDER], instances=5, key=3)) == str(found[3])


def test_counterexample_of_many_tasks_is_a_call():
    row = row_of(only(128, first_preferred), "permutation equivariance", instances=5)
    assert row.literal == 'generic("gaussian", 128, 1)[0]'
    assert row.jacobian is not None
    assert torch.equal(row.jacobian, eval(row.literal, {"generic": generic}))
    assert bool(independent(row.jacobian[None])[0])


def by_inverse_length(gramian: Any) -> Any:
    """w = 1/‖g‖ with a finite stand-in at 0: exactly invariant to rescaling a task."""
    n = gramian.diagonal().sqrt()
    return 1 / n.where(n > 0, 1.0)


def shortest(gramian: Any) -> Any:
    """The first of two equal norms: the order decides nothing but an exact tie."""
    return torch.nn.functional.one_hot(gramian.diagonal().argmin(), len(gramian)).to(gramian)


def breaks_where_a_task_is_absent(geometry: Any, state: Any) -> Any:
    if not inside_transform() and not bool(geometry.present.all()):
        raise IndexError("out of range")
    return uniform(geometry.losses), state


def silent(gramian: Any, losses: Any) -> Any:
    """NaN without an error is no refusal."""
    return torch.where((losses > 0).all(), losses / losses.sum(), torch.nan)


def refuses(gramian: Any, losses: Any) -> Any:
    if not inside_transform() and not bool((losses > 0).all()):
        raise ValueError("losses: expected numbers > 0")
    return silent(gramian, losses)


def reads_at_conflicts(gramian: Any) -> Any:
    """Of two tasks with a softmin of cosines no weights depend on the Gramian."""
    length = gramian.diagonal().sqrt()
    found = torch.softmax(-(gramian / length[:, None] / length).mean(-1), -1)
    return torch.where(gramian[0, -1] < -0.2 * length[0] * length[-1], found, 1 / len(found))


def stateful(update: Any, init: Any = lambda losses, key: (), reads: Any = None) -> mf.Rule:
    return mf.Rule(init, update, reads)


NAN_LOSSES = stateful(lambda geometry, state: (geometry.losses * 0 + torch.nan, state))
# the first losses do not move its state
SOFTMAX = stateful(
    lambda g, s: (torch.softmax(s, -1), 0.9 * s + 0.1 * g.losses), lambda losses, key: losses,
    frozenset({"losses"}),
)  # fmt: skip
ORDER, LOW = "permutation equivariance", "losses of 0 or below"
VERDICTS = {  # a rule, a property, how many instances, and what is said
    "zero weights": (lambda g: 0 * g[0], "differentiability", 20, "holds", ""),
    "NaN equals NaN": (NAN_LOSSES, LOW, 10, "not applicable", "weights do not depend on losses"),
    "ties": (shortest, ORDER, 50, "holds", ""),
    "a jump at ties": (shortest, "continuity", 50, "fails", ""),
    "exact invariance": (by_inverse_length, "invariance to rescaling one task", 400, "holds", ""),
    "a state": (SOFTMAX, "state round-trip", 400, "holds", ""),
    # the weights of [[1, 1], [0, -1], [-1, 0]] are 1e-17 and their order is rounding
    "config": (mf.config(), ORDER, 400, "holds", ""),
    "aligned_mtl": (mf.aligned_mtl(), ORDER, 400, "holds", ""),
    "absent tasks": (mf.mgda(), "absent tasks", 20, "holds", ""),
    "an error that is no refusal": (stateful(breaks_where_a_task_is_absent), "absent tasks", 20,
                                    "fails", "raises IndexError: out of range with task 0 absent"),
    "NaN of low losses": (silent, LOW, 20, "fails", "weights are (nan, nan) where the losses are "
                          "(0, 2), without an error"),
    "a refusal": (refuses, LOW, 20, "not applicable", "the rule refuses losses of 0 and below"),
    "low losses": (lambda g, losses: torch.softmax(losses, -1), LOW, 20, "holds", ""),
    "losses that it does not say it reads": (
        stateful(lambda g, s: (torch.softmax(g.losses.nan_to_num(), -1), s), reads=frozenset()),
        "NaN", 20, "fails", "although the loss of task 0 is NaN"),
    "NaN at conflicts": (reads_at_conflicts, "NaN", 400, "fails", "although the gradient of task"),
    # numbers that differ are not written alike
    "nearly 1": (lambda g: (1 + 2e-5) * uniform(g), "identical tasks", 400, "fails",
                 "is (1.00002)"),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_what_is_said_of_a_rule(case):
    rule, name, instances, status, detail = VERDICTS[case]
    row = row_of(rule, name, instances=instances)
    assert row.status == status, row.detail
    assert detail in row.detail


def test_nan_that_is_written_over_is_reported():
    def written(gramian: Any) -> Any:
        return torch.softmax(gramian.nan_to_num_().diagonal(), 0)

    assert "the rule changes the gramian in place" in str(audit(written, instances=5))


def test_what_a_rule_reads_of_extra_may_be_nan():
    rule = stateful(lambda g, s: (torch.softmax(g.extra["n"].nan_to_num(), -1), s))
    row = row_of(rule, "NaN", instances=20, extra=lambda jacobian, _: {"n": jacobian.sum(-1)})
    assert "although the gradient of task 0 is NaN" in row.detail


def test_rounding_of_a_zero_direction_is_no_failure():
    """Weights of 1e-17 where the direction is 0: tenfold noise in them changes nothing."""
    wanted = [
        "permutation equivariance",
        "invariance to rescaling one task",
        "non-conflict",
        "Pareto-stationary fixed points",
        "continuity",
        "linear under scaling",
    ]

    def tiny(gramian: Any) -> Any:
        """The projection off all others for T > 1: 0 up to rounding where gradients depend."""
        w = min_norm(gramian)
        length = (w @ gramian @ w).clamp_min(0).sqrt()
        noise = 1e-17 * torch.sin(1e3 * gramian.sum(-1)) * gramian.diagonal().amax().sqrt()
        return w * length + noise  # Σ|w|‖g‖ is 1e-17 at Pareto-stationary points

    def clean(gramian: Any) -> Any:
        w = min_norm(gramian)
        return w * (w @ gramian @ w).clamp_min(0).sqrt()

    noisy, exact = audit(tiny, only=wanted), audit(clean, only=wanted)
    for name in wanted:
        assert noisy[name].status == exact[name].status, (name, noisy[name].detail)
    assert exact["Pareto-stationary fixed points"].status == "holds"


def test_aligned_mtl_jumps_where_its_definition_does():
    """Two parallel gradients, then nearly parallel ones: the least singular value scales d."""
    row = row_of(mf.aligned_mtl(), "continuity")
    assert row.status == "fails"
    assert row.jacobian is not None
    d = mf.aggregate(mf.aligned_mtl(), row.jacobian)
    moved = torch.nn.functional.pad(row.jacobian, (0, 1))
    moved[0, -1] = 1e-6 * row.jacobian.abs().max()
    other = mf.aggregate(mf.aligned_mtl(), moved)
    assert d.norm() > 0.1
    assert other.norm() < 1e-4 * d.norm()


def test_numbers_that_differ_are_not_written_alike():
    def absolute(gramian):
        length = gramian.diagonal().sqrt() + 1e-8
        return length / length.sum()

    before, after = row_of(absolute, "positive homogeneity", instances=50).detail.split(" become ")
    assert before.removeprefix("weights ") != after.split(" when ")[0]
