"""The benchmark of the rules: runs, records, completeness, the same thing on both sides."""

import inspect

import pytest
import torch
from torch import Tensor

import mtlfunc as mf
from experiments.benchmarks import rules
from experiments.benchmarks.record import Row
from experiments.benchmarks.rules_peers import Peer, Problem


def test_every_rule_of_the_library_is_timed():
    made = {
        name
        for name, f in vars(mf).items()
        if inspect.isfunction(f) and str(inspect.signature(f).return_annotation).endswith("Rule")
    }
    assert {"mgda", "pcgrad", "momentum"} <= made
    # `safe` reads what an optimizer carries along and `ntk` a probe's traces, which a Gramian alone
    # does not say; the rows of `gauss_newton` are samples (experiments.benchmarks.gramian)
    assert made - {"stateless", "safe", "ntk", "gauss_newton"} == set(rules.RULES)


@pytest.mark.parametrize("name", sorted(rules.RULES))
def test_a_batch_gives_what_its_problems_give_alone(name):
    entry, given = rules.RULES[name], rules.problems(4, 9)
    call = rules.ours(entry, 4, given)
    together = [call(), call()]
    for at in (0, 8):
        rule = entry.make()
        state = rule.init(given.losses[at], torch.tensor(at))
        geometry = mf.Geometry(
            given.losses[at],
            given.gramian[at],
            torch.full((4,), 0.25),
            torch.ones(4, dtype=torch.bool),
            {"jacobian": given.jacobian[at]},
        )
        for step in together:
            weights, state = rule.update(geometry, state)
            torch.testing.assert_close(step[at], weights, rtol=1e-3, atol=1e-4)


# TorchJD's own: MGDA stops early, ExcessMTL's first weights are one-hot, Krum sums other distances,
# two quadratic programmes are regularised.
NEAR = {"mgda": 0.5, "momentum": 0.5, "dualproj": 0.02, "upgrad": 0.02}
OTHER = {"excess_mtl", "krum", "nash_mtl"}


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name, entry in rules.RULES.items()
        if entry.peer and not entry.random and name not in OTHER
    ),
)
def test_both_sides_do_the_same(name):
    entry, given = rules.RULES[name], rules.problems(4, rules.POOL)
    assert entry.peer
    weights = rules.ours(entry, 4, given)()
    assert rules.apart(
        weights, entry.peer.make(4)(rules.one(given, 0)), given.jacobian[0]
    ) < NEAR.get(name, 1e-4)


@pytest.mark.parametrize("count", rules.FEW)
@pytest.mark.parametrize("name", sorted(rules.DOORS))
def test_functions_are_timed_on_few_tasks_with_all_their_checks(name, count):
    row = rules.measure(name, count, 1, 0.001, "cpu")
    assert row["apart"] < NEAR["mgda"]
    assert rules.against_bars([row])[0]["limit"] == 1.2
    with pytest.raises(ValueError, match="NaN or infinite"):
        rules.ours(
            rules.DOORS[name], count, Problem(*[torch.full((9, count, count), torch.nan)] * 3)
        )()


@pytest.mark.parametrize(
    ("name", "together"),
    [
        ("mean", True),
        ("stch", True),
        ("gls", False),
        ("modo", False),
        ("mgda", False),
        ("uw", False),
    ],
)
def test_torchjd_is_batched_where_that_gives_what_a_loop_gives(name, together):
    call, found = rules.theirs(rules.RULES[name], 4, rules.problems(4, 9))
    assert found == together
    assert call().shape == ((9, 4) if together else (4,))


def test_a_batched_peer_that_gives_something_else_is_looped():
    def make(count: int):
        return lambda problem: problem.gramian.sum(-1)

    def wrong(count: int):
        return lambda problem: problem.gramian.sum(-1) + 1

    for batched, together in ((make, True), (wrong, False)):
        entry = rules.Entry(mf.mean, Peer("", "Gramian", make, batched))
        assert rules.theirs(entry, 4, rules.problems(4, 9))[1] == together


def test_calls_keep_their_state_and_go_through_the_problems():
    seen: list[Tensor] = []

    def update(geometry: mf.Geometry, state: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(geometry.losses)
        return geometry.losses + state, state + 1

    entry = rules.Entry(lambda: mf.Rule(lambda losses, key: torch.tensor(0.0), update))
    given = rules.problems(2, rules.POOL)
    call = rules.ours(entry, 2, given)
    for step in range(2 * rules.POOL):
        torch.testing.assert_close(call(), given.losses[step % rules.POOL] + step)
    assert len(seen) == 2 * rules.POOL


def test_what_torchjd_cannot_do_is_told(monkeypatch):
    row = rules.measure("krum", 2, 1, 0.001, "cpu")  # its Krum wants three rows
    assert "TorchJD" not in row
    assert row["failed"].startswith("ValueError")


def _row(rule: str, tasks: int, batch: int, ours: float, other: float) -> Row:
    return {"rule": rule, "tasks": tasks, "batch": batch} | {
        side: {"median": t, "fastest": t, "blocks": 1}
        for side, t in (("ours", ours), ("TorchJD", other))
    }


def test_bars_ask_for_no_slower_rule_and_for_two_that_are_faster_by_far():
    rows = [
        _row("mgda", 8, 1, 2.0, 1.0),
        _row("pcgrad", 32, 1, 1.0, 19.0),
        _row("gradvac", 32, 1024, 1.0, 101.0),
        _row("pcgrad", 8, 1, 1.0, 1.5),
    ]
    bars = {(bar["rule"], bar["tasks"], bar["batch"]): bar for bar in rules.against_bars(rows)}
    assert [bar["limit"] for bar in bars.values()] == [1, 1 / 20, 1 / 100, 1]
    assert [bar["fastest"] <= bar["limit"] for bar in bars.values()] == [False, False, True, True]
