"""Rules that are right but look wrong, and mistakes that an audit has to look for between."""

from typing import Any

import pytest
import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

import mtlfunc as mf
from mtlfunc.audit import audit
from mtlfunc.audit.instances import generic, independent
from tests.support.broken_rules import by_norm, counting_dict, first_preferred, only


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
    report = audit(rule, instances=20)
    failing = [row for row in report.rows if row.status == "fails"]
    assert all(row.detail and row.jacobian is not None for row in failing)


def test_between_follows_the_key():
    """What is wrong at one T between is found by some key; the same key gives the same report."""
    rule = only(9, first_preferred)
    wanted = ["permutation equivariance"]
    found = [audit(rule, only=wanted, instances=5, key=key) for key in range(12)]
    assert {row["permutation equivariance"].status for row in found} == {"holds", "fails"}
    again = audit(rule, only=wanted, instances=5, key=3)
    assert str(again) == str(found[3])


def test_counterexample_of_many_tasks_is_a_call():
    rule = only(128, first_preferred)
    row = audit(rule, only=["permutation equivariance"], instances=5)["permutation equivariance"]
    assert row.literal == 'mtlfunc.audit.instances.generic("gaussian", 128, 1)[0]'
    assert row.jacobian is not None
    assert torch.equal(row.jacobian, generic("gaussian", 128, 1)[0])
    assert bool(independent(row.jacobian[None])[0])


# ---- what is right ------------------------------------------------------------------------------
def by_inverse_length(gramian: Any) -> Any:
    """w = 1/‖g‖ with a finite stand-in at 0: exactly invariant to rescaling a task."""
    n = gramian.diagonal().sqrt()
    return 1 / n.where(n > 0, 1.0)


def test_an_exactly_invariant_rule_is_invariant():
    name = "invariance to rescaling one task"
    assert audit(by_inverse_length, only=[name])[name].status == "holds"


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


def test_a_state_that_the_first_losses_do_not_move_is_no_defect():
    update = lambda g, s: (torch.softmax(s, -1), 0.9 * s + 0.1 * g.losses)  # noqa: E731
    rule = mf.Rule(lambda losses, key: losses, update, frozenset({"losses"}))
    assert audit(rule, only=["state round-trip"]).defects == 0


@pytest.mark.parametrize("rule", ["config", "aligned_mtl"])
def test_order_is_no_failure_of_what_does_not_depend_on_it(rule):
    """The weights of [[1, 1], [0, -1], [-1, 0]] are 1e-17 and their order is rounding."""
    found = audit(getattr(mf, rule)(), only=["permutation equivariance"])
    assert found["permutation equivariance"].status == "holds"


def test_aligned_mtl_jumps_where_its_definition_does():
    """Two parallel gradients, then nearly parallel ones: the least singular value scales d."""
    row = audit(mf.aligned_mtl(), only=["continuity"])["continuity"]
    assert row.status == "fails"
    assert row.jacobian is not None
    d = mf.aggregate(mf.aligned_mtl(), row.jacobian)
    moved = torch.nn.functional.pad(row.jacobian, (0, 1))
    moved[0, -1] = 1e-6 * row.jacobian.abs().max()
    other = mf.aggregate(mf.aligned_mtl(), moved)
    assert d.norm() > 0.1
    assert other.norm() < 1e-4 * d.norm()


def test_refusing_low_losses_is_sound():
    def refuses(gramian: Any, losses: Any) -> Any:
        good = (losses > 0).all()
        if not _functorch.get_interpreter_stack() and not bool(good):
            raise ValueError("losses: expected numbers > 0")
        return torch.where(good, losses / losses.sum(), torch.nan)

    name = "losses of 0 or below"
    row = audit(refuses, only=[name], instances=20)[name]
    assert (row.status, row.detail) == ("not applicable", "the rule refuses losses of 0 and below")
    fine = audit(lambda gramian, losses: torch.softmax(losses, -1), only=[name], instances=20)[name]
    assert fine.status == "holds"


# ---- the shell ----------------------------------------------------------------------------------
def test_a_gramian_that_is_read_at_conflicts_alone_is_tried_with_nan():
    """Of two tasks with a softmin of cosines no weights depend on the Gramian."""

    def weights(gramian):
        length = gramian.diagonal().sqrt()
        found = torch.softmax(-(gramian / length[:, None] / length).mean(-1), -1)
        return torch.where(gramian[0, -1] < -0.2 * length[0] * length[-1], found, 1 / len(found))

    row = mf.audit(weights, only=["NaN"])["NaN"]
    assert row.status == "fails"
    assert "although the gradient of task" in row.detail


def test_numbers_that_differ_are_not_written_alike():
    name = "identical tasks"
    nearly = mf.audit(lambda g: torch.full_like(g[0], (1 + 2e-5) / len(g)), only=[name])
    assert "is (1.00002)" in nearly[name].detail

    def absolute(gramian):
        length = gramian.diagonal().sqrt() + 1e-8
        return length / length.sum()

    report = mf.audit(absolute, only=["positive homogeneity"], instances=50)
    before, after = report["positive homogeneity"].detail.split(" become ")
    assert before.removeprefix("weights ") != after.split(" when ")[0]
