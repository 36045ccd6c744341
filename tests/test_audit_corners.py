"""Rules with a mistake in one corner, and rules that are right but look wrong.

Each mistake shows at one number of tasks, in a task that is not the first, at a later update or
only under a vmap. None may come out as sound, or without the failure that names it.
"""

from typing import Any, NamedTuple

import pytest
import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

import mtlfunc as mf
from mtlfunc.audit import audit
from mtlfunc.audit.__main__ import main
from mtlfunc.audit.instances import generic, independent
from tests.support.broken_rules import by_norm, first_preferred, only


def mean(gramian: Any) -> Any:
    return torch.full_like(gramian[0], 1 / len(gramian))


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


def counting_dict() -> Any:
    """A dict that counts calls where T = 5, which the weights show."""
    calls: dict[int, int] = {}

    def weights(gramian: Any) -> Any:
        calls[len(gramian)] = calls.get(len(gramian), 0) + 1
        w = by_norm(gramian)
        return w / calls[len(gramian)] if len(gramian) == 5 else w

    return weights


def in_place(gramian: Any) -> Any:
    w = by_norm(gramian)
    gramian[0, 0] += 0.0 if _functorch.get_interpreter_stack() else 1.0
    return w


def in_place_at_conflict(gramian: Any) -> Any:
    w = by_norm(gramian)
    if not _functorch.get_interpreter_stack() and bool((gramian < 0).any()):
        gramian.neg_()
    return w


def gradients_off(gramian: Any) -> Any:
    torch.set_grad_enabled(False)
    return by_norm(gramian)


def losses_in_place(gramian: Any, losses: Any) -> Any:
    if len(losses) == 4:
        losses.add_(1)
    return by_norm(gramian)


def at_depth(depth: int, count: int) -> Any:
    """Tripled under so many transforms."""

    def weights(gramian: Any) -> Any:
        deep = len(_functorch.get_interpreter_stack() or ())
        return by_norm(gramian) * (3.0 if deep >= depth and len(gramian) == count else 1.0)

    return weights


class ManyMixed(torch.autograd.Function):
    """Doubled where more than 30 problems are batched."""

    @staticmethod
    def forward(w: Any) -> Any:
        return w.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: Any, w: Any
    ) -> Any:
        w = w.movedim(in_dims[0], 0)
        return w * (2.0 if info.batch_size > 30 else 1.0), 0


def nan_dropped(tasks: Any) -> Any:
    """NaN of some tasks' gradients is read as 0."""

    def weights(gramian: Any) -> Any:
        n = gramian.diagonal()
        kept = torch.tensor([t in tasks(len(n)) for t in range(len(n))])
        n = torch.where(kept, n.nan_to_num(0.0), n) + 1e-300
        return n / n.sum()

    return weights


def loss_nan_dropped(gramian: Any, losses: Any) -> Any:
    last = torch.arange(len(losses)) == len(losses) - 1
    kept = torch.where(last, losses.nan_to_num(1.0), losses)
    return torch.softmax(kept, -1) + 0 * gramian.diagonal()


def shift_of_the_second(gramian: Any, losses: Any) -> Any:
    """Reads the loss of an inner task alone."""
    w = by_norm(gramian)
    return w * (1 + 0.1 * losses[len(losses) // 2] * (len(losses) > 2))


def always_wide(gramian: Any) -> Any:
    return by_norm(gramian).double()


def stateful(update: Any, init: Any = lambda losses, key: torch.zeros_like(losses)) -> mf.Rule:
    return mf.Rule(init, update)


def growing(geometry: Any, state: Any) -> Any:
    more = torch.cat([state, state]) if len(geometry.losses) == 4 else state
    return by_norm(geometry.gramian), more


def writes_at_the_second_update(geometry: Any, state: Any) -> Any:
    if not _functorch.get_interpreter_stack() and bool(state[0] > 0):
        geometry.gramian.mul_(2)
    return mean(geometry.gramian), state + 1


def ignores_two_absent(geometry: Any, state: Any) -> Any:
    """Right where one task is absent, or all are."""
    here = geometry.present
    lonely = here.sum() < len(here) - 1
    w = torch.where(lonely, torch.ones_like(geometry.losses), here.to(geometry.losses))
    w = w * here.any()
    return w / w.sum().clamp_min(1), state


class Mistake(NamedTuple):
    rule: Any
    property: str
    seen: str = ""  # part of what is said


MISTAKES = {
    # what came out sound, or broke the audit, once
    "counts calls at T = 5": Mistake(counting_dict(), "purity", "remembered outside the state"),
    "NaN read as 0 on tasks 2, …": Mistake(
        nan_dropped(lambda count: range(1, count)), "NaN", "although the gradient of task 1 is NaN"
    ),
    **{
        f"a Gramian edited in place at T = {count}": Mistake(
            only(count, in_place), "purity", "changes the gramian in place"
        )
        for count in (1, 5, 6, 8, 128)
    },
    "tripled under vmap at T = 4": Mistake(at_depth(1, 4), "vmapped == loop", "in a loop"),
    "order at T = 4": Mistake(only(4, first_preferred), "permutation equivariance", "the order"),
    "1e6 too large at T = 128": Mistake(
        only(128, lambda g: 1e6 * by_norm(g)), "T = 128", "add up to 1e+06"
    ),
    "1/l": Mistake(
        lambda gramian, losses: 1 / losses + 0 * gramian[0],
        "losses of 0 or below",
        "weights are (inf) where",
    ),
    # their relatives
    "NaN read as 0 for many tasks": Mistake(
        only(128, nan_dropped(lambda count: [127])), "NaN", "gradient of task 127 is NaN"
    ),
    "NaN of the last loss": Mistake(loss_nan_dropped, "NaN", "although the loss of task"),
    "edited in place at conflict": Mistake(in_place_at_conflict, "purity", "the gramian in place"),
    "gradients left off": Mistake(gradients_off, "purity", "leaves gradients turned off"),
    "losses edited in place at T = 4": Mistake(losses_in_place, "purity", "the losses in place"),
    "edited at the second update": Mistake(
        stateful(writes_at_the_second_update), "purity", "the gramian in place"
    ),
    "tripled under nested vmaps": Mistake(at_depth(2, 6), "vmapped == loop", "nested vmaps"),
    "doubled in large batches": Mistake(
        lambda gramian: ManyMixed.apply(by_norm(gramian)), "vmapped == loop", "instances, "
    ),
    "1e6 too large from T = 16 on": Mistake(
        lambda g: (1e6 if len(g) >= 16 else 1) * by_norm(g), "T = 128", "of 16 orthonormal"
    ),
    "1/l turns a weight round": Mistake(
        lambda gramian, losses: 1 / torch.where(losses == 0, 1.0, losses) + 0 * gramian[0],
        "losses of 0 or below",
        "weights are (-1) where the losses are (-1)",
    ),
    "reads an inner loss": Mistake(
        shift_of_the_second, "invariance to shifting a loss", "the loss of task 1"
    ),
    "float64 at T = 4": Mistake(only(4, always_wide), "float32", "returned float64 weights"),
    "a state that grows at T = 4": Mistake(stateful(growing), "state round-trip", "after init"),
    "1/0 at T = 4": Mistake(
        only(4, lambda g: 1 / g.diagonal()), "zero gradients", "weights are (inf, inf, inf, inf)"
    ),
    "two absent tasks": Mistake(
        stateful(ignores_two_absent), "absent tasks", "with tasks 0 and 2 absent"
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_found(name):
    case = MISTAKES[name]
    report = audit(case.rule, only=[case.property], instances=40, name=name)
    assert torch.is_grad_enabled()
    row = report[case.property]
    assert row.status == "fails", str(report)
    assert case.seen in row.detail
    assert row.literal
    assert len(row.literal) < 2000
    if row.contract:
        assert not report.sound


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


def test_html_into_a_missing_folder_is_an_error_before_the_audit(tmp_path, capsys):
    for page, text in (
        (tmp_path / "missing" / "page.html", "is no folder; make it first"),
        (tmp_path, "is a folder; expected a file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["mtlfunc:mean", "--html", str(page)])
        assert stopped.value.code == 2
        out = capsys.readouterr()
        assert "--html" in out.err
        assert text in out.err
        assert not out.out  # no table


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


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["mtlfunc:mean", "--claims", "vmap"], "--claims: there is no such option of a rule"),
        (["mtlfunc:mean", "--tasks", "2", "3"], "--tasks: there is no such option of a rule"),
        (
            ["--solver", "mtlfunc.solvers:active_set", "--require", "non-conflict"],
            "--require: there is no such option of a solver",
        ),
    ],
)
def test_command_refuses_options_that_it_would_not_read(arguments, option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert option in capsys.readouterr().err
