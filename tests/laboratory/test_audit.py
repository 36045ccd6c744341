"""The audit finds the textbook facts, names what is wrong, and is never broken by a rule."""

import inspect
import os
import re
import runpy
import sys
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from docs import properties
from mtlfunc import solvers
from mtlfunc.audit import Report, audit
from mtlfunc.audit.__main__ import EPILOG, main
from mtlfunc.audit.harness import Harness
from mtlfunc.audit.instances import independent, stationary
from mtlfunc.audit.run import CONTRACTS, NAMES
from mtlfunc.core.compiling import COMPILER
from mtlfunc.core.expect import rule_name
from mtlfunc.testing.integers import integers
from mtlfunc.testing.judge import global_random
from mtlfunc.types import Geometry
from paper_repro.pcgrad import theorems as theory
from tests.support import ROOT, python
from tests.support.audits import RULES, TEXTBOOK, row_of
from tests.support.broken_rules import (
    BROKEN,
    by_norm,
    global_noise,
    inverse_norms,
    moves_the_generator,
    seeds_numpy,
)
from tests.support.every import few
from tests.support.oracles import cagrad_threshold


def dualproj(gramian):
    """The mean gradient projected on the dual cone (Lopez-Paz & Ranzato 2017)."""
    mean = torch.full_like(gramian[0], 1 / len(gramian))
    return solvers.auto()(solvers.dual_cone(gramian, mean)).weights


@cache
def whole(rule: str) -> Report:
    """A whole audit; tests/docs has those of all rules."""
    return properties.report(rule)


@cache
def reported(rule: str) -> Report:
    """What the textbook says of a rule; tests/docs holds it against whole audits, too."""
    return audit(eval(RULES[rule], vars(mf).copy()), only=list(TEXTBOOK[rule]), name=rule)


@pytest.mark.parametrize("rule", few(TEXTBOOK, lambda rule: rule in ("mgda", "pcgrad", "cagrad")))
def test_audit_finds_the_textbook_by_itself(rule):
    assert {row.name: row.status for row in reported(rule).rows} == TEXTBOOK[rule]


def test_counterexamples_fail_when_they_are_pasted():
    def d(rule, J):
        return mf.aggregate(eval(RULES[rule], vars(mf).copy()), J.double())

    for rule in ("mean", "pcgrad", "cagrad"):
        J = eval(reported(rule)["non-conflict"].literal)
        assert (J.double() @ d(rule, J)).min() < -0.1
        J = eval(reported(rule)["Pareto-stationary fixed points"].literal)
        assert bool(stationary(J.double()[None])[0])
        assert d(rule, J).norm() > 0.1
    J = eval(reported("mgda")["invariance to rescaling one task"].literal)
    scaled = J.clone()
    scaled[0] *= 2
    one, other = d("mgda", J), d("mgda", scaled)
    assert (one / one.norm() - other / other.norm()).norm() > 0.1
    J = eval(reported("pcgrad")["permutation equivariance"].literal)
    assert len(J) == 3  # the order plays no part for two tasks
    assert (d("pcgrad", J) - d("pcgrad", J[[1, 2, 0]])).norm() > 0.1
    assert reported("cagrad")["identical tasks"].literal == "torch.tensor([[1.]])"


def test_pcgrad_with_given_orders_depends_on_the_order():
    orders = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    report = audit(
        mf.pcgrad(orders),
        only=["permutation equivariance", "valid weights", "T = 128", "purity", "vmapped == loop"],
        instances=60,
    )
    assert report["permutation equivariance"].status == report["T = 128"].status == "fails"
    valid = report["valid weights"]
    assert (valid.status, valid.literal) == ("fails", "torch.tensor([[1.]])")
    assert valid.detail == "raises ValueError: orders: made for 3 tasks, but there are 1 rows"
    assert report["purity"].status == report["vmapped == loop"].status == "holds"


@pytest.mark.parametrize("c", [0.1, 0.4, 0.8])
def test_audit_agrees_with_the_theory_of_cagrad(c):
    """It conflicts just where c < c*, over all the instances of the audit."""
    J = audit(mf.cagrad(c), only=["non-conflict"])["non-conflict"].jacobian
    assert J is not None
    assert cagrad_threshold(J @ J.mT) > c
    for count in (2, 3):
        rows = integers(count)[:100]
        G = rows @ rows.mT
        threshold = vmap(cagrad_threshold)(G)
        w = vmap(lambda g: mf.weights(mf.cagrad(c), g))(G)
        worst = ((G @ w[..., None])[..., 0]).amin(-1)
        clear = (threshold - c).abs() > 1e-6
        assert torch.equal((worst < -1e-9)[clear], (threshold > c)[clear])


def test_audit_agrees_with_the_theory_of_pcgrad():
    """For two tasks no conflict is left and it rests where Theorem 1 lets it, at cos φ = -1."""
    rows = integers(2)
    G = rows @ rows.mT
    w = vmap(lambda g: mf.weights(mf.pcgrad(), g))(G)
    rates, length = (G @ w[..., None])[..., 0], (w[:, None] @ rows)[:, 0].norm(dim=-1)
    assert (rates >= -1e-12).all()
    opposite = stationary(rows)
    rest = vmap(lambda g: theory.pcgrad_theorem1(g, 1e-3, 1.0).decrease)(G)
    assert torch.equal(length < 1e-12, opposite)
    assert (rest[opposite] < 1e-12).all()
    assert (rest[~opposite] > 0).all()


def assert_named(report, broken):
    row = report[broken.property]
    assert row.status == "fails", str(report)
    assert broken.seen in row.detail
    assert row.jacobian is not None
    assert 0 < len(row.literal) < 2000
    assert not broken.smallest or len(row.jacobian) == broken.smallest
    assert row.contract == (broken.property in CONTRACTS)


ONE_EACH = {broken.property: case for case, broken in reversed(BROKEN.items())}.values()


@pytest.mark.parametrize("case", few(BROKEN, lambda case: case in ONE_EACH))
def test_broken_rule_is_named(case, monkeypatch):
    """At some numbers of tasks or at a later update; the command exits with 1 for a contract."""
    if case in ("a Python float", "None") and "MTLFUNC_TYPES" in os.environ:
        pytest.skip("enforced annotations answer first")
    broken, reports = BROKEN[case], []

    def kept(*args: Any, **options: Any) -> Report:
        reports.append(audit(*args, **options))
        return reports[-1]

    monkeypatch.setattr(sys.modules[main.__module__], "audit", kept)
    rule = f"tests.support.broken_rules:BROKEN[{case!r}].rule"
    status = main([rule, "--only", broken.property, "--instances", "20"])
    assert torch.is_grad_enabled()
    assert status == (broken.property in CONTRACTS)
    assert_named(reports[0], broken)


@pytest.mark.parametrize("case", few(BROKEN, lambda case: case == "raises sometimes"))
def test_broken_rule_is_named_in_a_whole_table(case):
    report = audit(BROKEN[case].rule, name=case, instances=20)
    assert tuple(row.name for row in report.rows) == NAMES
    assert_named(report, BROKEN[case])


@pytest.mark.parametrize(
    ("named", "broken", "sound"),
    [
        *(({"positive homogeneity", "no absolute epsilon"}, partial(inverse_norms, eps=epsilon),
           lambda g: inverse_norms(g, 1e-12 * g.trace().sqrt())) for epsilon in (1e-6, 1e-3)),
        ({"no absolute epsilon"}, lambda g: (g + 1e-4 * torch.eye(len(g)).to(g)).inverse().sum(0),
         lambda g: (g + 1e-4 * g.trace() * torch.eye(len(g)).to(g)).inverse().sum(0)),
        ({"differentiability"},
         lambda g: inverse_norms(g.detach(), 0.1 * g.detach().trace().sqrt()),
         lambda g: inverse_norms(g, 0.1 * g.trace().sqrt())),
    ],
)  # fmt: skip
def test_a_defect_is_named_by_its_own_property(named, broken, sound):
    told = ("zero gradients", "invariance to rescaling one task", "linear under scaling")
    others = [each for each in NAMES if each not in told]
    failing, known = (
        {row.name for row in audit(rule, only=others, instances=8).rows if row.status == "fails"}
        for rule in (broken, sound)
    )
    assert failing == known | named


@pytest.mark.parametrize("only", few([["non-conflict"], None], lambda only: only is not None))
def test_a_rule_that_goes_wrong_for_many_tasks_is_audited_in_seconds(only):
    """Right up to T = 8 and reversed from T = 9 on; in a process of its own, for its memory."""
    code = f"""
import re, time
from pathlib import Path
import torch
torch.set_num_threads(1)  # or their waiting counts
from mtlfunc.audit import audit
from tests.support.broken_rules import reversed_from
report = audit(reversed_from(9), only={only})
failing = [row for row in report.rows if row.status == "fails"]
print(report["non-conflict"].status, len(report["non-conflict"].jacobian))
# of this program alone: what getrusage says counts the process that it was forked from
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(time.process_time(), int(peak) / 2**20)
"""
    first, second = python("-c", code).stdout.strip().splitlines()
    status, tasks = first.split()
    seconds, gigabytes = map(float, second.split())
    assert status == "fails"
    assert int(tasks) >= 9
    assert seconds < 60
    assert gigabytes < 2


def test_stationary_tries_no_weights_of_many_tasks():
    assert bool(stationary(integers(2)[:50]).any())
    assert not bool(stationary(torch.ones(3, 12, 4)).any())


@pytest.mark.exhaustive
def test_the_audit_cannot_know_which_rule_was_meant():
    """GradNorm that learns in the wrong direction is a rule, too: the help and the page say so."""

    def backwards(lr: Any) -> mf.Optimizer:
        adam = mf.adam(lr, eps=0)
        return mf.Optimizer(
            adam.init, lambda grads, *rest: adam.update({k: -x for k, x in grads.items()}, *rest)
        )

    names = [name for name in NAMES if name in CONTRACTS or name in TEXTBOOK["gradnorm"]]
    right, wrong = (
        audit(rule, only=names, instances=8)
        for rule in (mf.gradnorm(1.5), mf.gradnorm(1.5, optimizer=backwards))
    )
    assert wrong.sound
    assert [row.status for row in wrong.rows] == [row.status for row in right.rows]
    losses, G = torch.tensor([1.0, 1.0]), torch.diag(torch.tensor([1.0, 4.0]))
    geometry = Geometry(losses, G, losses / 2, torch.ones(2, dtype=torch.bool), {})
    learnt = [
        rule.update(geometry, rule.init(losses, torch.tensor(0)))[1].weights
        for rule in (mf.gradnorm(1.5), mf.gradnorm(1.5, optimizer=backwards))
    ]
    assert learnt[0][0] > learnt[0][1]
    assert learnt[1][0] < learnt[1][1]
    for text in (EPILOG, (ROOT / "docs" / "how-to" / "new-rule.md").read_text()):
        assert "GradNorm with its sign flipped passes" in " ".join(text.split())


def test_the_audit_tries_what_a_rule_says_it_reads():
    def update(geometry, state):
        return by_norm(geometry.gramian), state

    def harness(reads):
        return Harness(mf.Rule(lambda losses, key: (), update, reads), False, None, 1e-5, 10, 0)

    assert not harness(None).reads_losses
    assert harness(None).reads_gramian
    assert harness(frozenset({"gramian", "losses"})).reads_losses
    assert not harness(frozenset({"gramian"})).reads_losses


def rounded_elsewhere(rule, seed):
    """Last-bit noise in units of √(G_ii G_jj), but for exact products of small integers."""

    def update(geometry, state):
        g = geometry.gramian.detach()
        place = torch.arange(1, len(g) + 1, dtype=g.dtype)
        low, high = torch.minimum(place, place[:, None]), torch.maximum(place, place[:, None])
        z = torch.sin(1e4 * torch.sin(seed + 7.1 * low + 3.7 * high + 1e3 * g.abs().sqrt()))
        n = g.diagonal().clamp_min(0).sqrt()
        noise = torch.where((g == g.float()).all(), 0.0, 2.0**-52 * z * n * n[:, None]).detach()
        return rule.update(geometry._replace(gramian=geometry.gramian + noise), state)

    return mf.Rule(rule.init, update, rule.reads)


@pytest.mark.parametrize("seed", few([1, 2, 3], lambda seed: seed == 1))
def test_last_bits_decide_no_mark(seed):
    """20 steps with momentum amplify the last bits of SDMGrad's Gramian beyond the tolerance."""
    name = "permutation equivariance"
    for rule, status in ((mf.sdmgrad(), "holds"), (mf.pcgrad(), "fails")):
        row = row_of(rounded_elsewhere(rule, seed), name)
        assert row.status == status, row.detail


def test_an_audit_has_the_rules_name_or_another():
    for rule in (mf.mgda(), mf.mgda, torch.nn.Softmax(-1)):  # which gives a matrix
        assert row_of(rule, "convex weights", instances=10).status in ("holds", "not applicable")
    report = audit(mf.mgda, only=iter(["convex weights"]), instances=10)
    assert (report.rule, len(report.rows)) == ("mgda", 1)
    report = audit(mf.mgda(), only=["convex weights"], instances=10, name="mine")
    assert report.rule == "mine"
    table = r"(?s)convex weights +holds +over [\d,]+ instances.*Not tried: numbers of tasks but 1, "
    assert re.search(f"{table}.*; 24 properties that were not asked for", str(report))


def test_audit_refuses_what_cannot_be_a_rule():
    unwrapped = inspect.unwrap(audit)
    with pytest.raises(TypeError, match=r"expected a mtlfunc\.Rule"):
        unwrapped(3)
    for arguments, message in (
        ({"only": ["convexity"]}, "only: expected a list of names among permutation"),
        ({"only": "purity"}, "got 'purity'"),
        ({"tolerance": 0.0}, "tolerance: expected a number in"),
        ({"instances": 0}, "instances: expected a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            unwrapped(mf.mean(), **arguments)
    with pytest.raises(ValueError, match="extra: ntk reads 'trace'; pass a function"):
        unwrapped(mf.physics.ntk())


def test_what_the_rule_reads_is_asked_for_alone():
    """Of several tasks, and no random number that it draws is missing afterwards."""

    def extra(jacobian, losses):
        torch.rand(3)
        return {"trace": jacobian.square().sum(1)}

    before = torch.get_rng_state()
    audit(mf.physics.ntk(), extra=extra, only=["NaN"], instances=4)
    audit(mf.mean(), extra=lambda jacobian, losses: {}[0], only=["NaN"], instances=4)

    def reseeds(gramian):
        torch.manual_seed(0)
        return torch.ones_like(gramian[0])

    assert row_of(reseeds, "purity", instances=4).status == "fails"
    assert torch.equal(torch.get_rng_state(), before)


def test_extra_reaches_the_rule():
    def update(geometry, state):
        return geometry.extra["risk"] / geometry.extra["risk"].sum(), state

    def extra(rows, losses):
        return {"risk": 1 + rows.square().sum(-1)}

    rule = mf.Rule(lambda losses, key: (), update)
    assert row_of(rule, "valid weights", instances=10).detail == "raises KeyError: 'risk'"
    assert row_of(rule, "valid weights", instances=10, extra=extra).status == "holds"


def test_absent_tasks():
    def ignores(geometry, state):
        return torch.full_like(geometry.losses, 1 / len(geometry.losses)), state

    found = row_of(mf.Rule(lambda losses, key: (), ignores), "absent tasks", instances=20)
    assert found.jacobian is not None
    assert (found.status, len(found.jacobian)) == ("fails", 2)
    assert found.detail == "weights are (0.5, 0.5) with task 0 absent; alone the others have (0, 1)"
    assert audit(mf.stateless(dualproj), only=["NaN"], instances=20).rule == "dualproj"
    assert audit(mf.stateless(lambda G: G[0]), only=["NaN"], instances=20).rule == "stateless"
    odd: Any = type("Odd", (), {"call": None, "__call__": lambda _, geometry, state: (0, state)})
    assert rule_name(mf.Rule(lambda *_: (), odd(), frozenset())) == "Odd"
    for rule in (mf.stateless(dualproj), dualproj):
        refused = row_of(rule, "absent tasks", instances=20)
        assert refused.status == "not applicable"
        assert refused.detail.startswith(
            "the rule refuses batches in which a task is absent: raises ValueError: dualproj needs"
        )


def test_report_as_records():
    report = whole("mean()")
    records = report.records()
    assert [record["property"] for record in records] == list(NAMES)
    with pytest.raises(KeyError, match="no such property"):
        report["beauty"]
    assert all(isinstance(x, str | int | bool) for record in records for x in record.values())
    assert len({tuple(record) for record in records}) == 1


def test_audit_is_deterministic_and_leaves_the_generators_alone():
    before, few = torch.get_rng_state(), {"instances": 10, "only": ["non-conflict"]}
    states = global_random()
    assert not audit(seeds_numpy, instances=10, only=["purity"]).sound
    assert global_random() == states
    one = str(audit(mf.pcgrad(), **few))
    assert torch.equal(before, torch.get_rng_state())
    audit(moves_the_generator, instances=10, only=["valid weights"])
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert str(audit(mf.pcgrad(), **few)) == one
        first = str(audit(global_noise, instances=10, only=["purity", "non-conflict"]))
        torch.manual_seed(6)
        assert str(audit(global_noise, instances=10, only=["purity", "non-conflict"])) == first
    kernels = row_of(lambda gramian: gramian[0] / COMPILER.permits, "valid weights")
    assert kernels.status == "holds", "they may change within an audit"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_integer_instances_are_ordered_and_different(count):
    rows = integers(count)
    assert torch.equal(rows, rows.round())
    assert rows.abs().max() <= 5
    assert len((rows @ rows.mT).flatten(1).unique(dim=0)) == len(rows)
    zero = (rows == 0).all(-1).any(-1)
    rank = [
        (bool(z), float(x.abs().max()), float(x.abs().sum()))
        for z, x in zip(zero, rows, strict=True)
    ]
    assert rank == sorted(rank)
    exact = torch.tensor([np.linalg.matrix_rank(x.numpy()) == count for x in rows])
    assert torch.equal(exact, independent(rows))


def test_stationary_instances_are_stationary():
    """The exhaustive test on whole weights against the min-norm point."""
    for count in (2, 3):
        rows = integers(count)
        found = stationary(rows)
        assert found.sum() > 10
        solution = vmap(lambda g: solvers.auto()(solvers.min_norm(g)))(rows @ rows.mT)
        length = (solution.weights[:, None] @ rows)[:, 0].norm(dim=-1)
        assert (length[found] < 1e-7).all()
        # then they are unique
        inside = (solution.weights > 1e-9).all(-1) & (length < 1e-9)
        inside = inside & (torch.linalg.matrix_rank(rows) == count - 1)
        weights = solution.weights[inside]
        multiples = weights / weights.amin(-1, keepdim=True) * torch.arange(1, 6)[:, None, None]
        whole = ((multiples - multiples.round()).abs() < 1e-6).all(-1) & (multiples.amax(-1) < 5.5)
        assert torch.equal(found[inside], whole.any(0))


def test_shell_prints_the_table_and_its_status_means_something(monkeypatch, capsys):
    arguments = ["mtlfunc:cagrad(0.4)", "--only", "non-conflict", "purity"]
    monkeypatch.setattr(sys, "argv", ["mtlfunc.audit", *arguments])
    monkeypatch.delitem(sys.modules, main.__module__)
    with pytest.raises(SystemExit) as left:
        runpy.run_module("mtlfunc.audit", run_name="__main__", alter_sys=True)
    assert not left.value.code
    said = capsys.readouterr().out
    assert said.startswith("Audit of cagrad(0.4): 0 defects\n\nwhat the rule does\n")
    assert "torch.tensor([[2.], [-1.]])" in said


BROKEN_RULES = "tests.support.broken_rules"
REQUIRED = ["mtlfunc:mean", "--only", "convex weights", "--require", "non-conflict"]
SOLVER = ["--solver", "mtlfunc.solvers:active_set"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (REQUIRED, 1, "Audit of mean: defects not tried\n"),
        ([f"{BROKEN_RULES}:mutates", "--only", "purity"], 1, "1 defect\n\ndefects (1)\npurity"),
        (["--help"], 0, "exit status:"), (["nowhere:rule"], 2, "ModuleNotFoundError"),
        (["mtlfunc:nothing"], 2, "NameError"), (["mtlfunc"], 2, "module:name"),
        ([f"{BROKEN_RULES}:no_factory"], 2, "RuntimeError: no rule today"),
        (["--solver", f"{BROKEN_RULES}:no_factory"], 2, "RuntimeError: no rule today"),
        ([f"{BROKEN_RULES}:no_rule"], 2, "got int"), (["mtlfunc:cagrad(-1)"], 2, "c: "),
        (["mtlfunc:cagrad(torch)"], 2, "'torch' is not defined"),
        (["mtlfunc:cagrad"], 2, "needs arg"), (["mtlfunc:mean", "--only", "beauty"], 2, "--only:"),
        (["--solver", "mtlfunc.solvers:cvx", "--tasks", "1", "1"], 0, "cvx is sound"),
        (["mtlfunc:mean", "--claims", "vmap"], 2, "--claims:"),
        (["mtlfunc:mean", "--tasks", "2", "3"], 2, "--tasks:"),
        ([*SOLVER, "--require", "non-conflict"], 2, "--require:"),
    ],
)  # fmt: skip
def test_main_in_this_process(arguments, status, text, capsys):
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    out = capsys.readouterr()
    assert code == status
    assert text in out.out + out.err


def test_table_of_the_documentation():
    assert set(properties.HEADS) | set(CONTRACTS) == set(NAMES)
    text = properties.table({"mean()": whole("mean()")})
    marks = "✓ | ✓ | ✗ | ✓ | ✓ | ✗ | ✓ | ✗ | ✓ | ✓ | ✗ | ✓ | ✓ | ✓ | ✓"
    assert text.splitlines()[2] == f"| `mean()` | {marks} |"
    page = f"a\n{properties.BEGIN}\nold\n{properties.END}\nb"
    assert properties.inserted(page, "new") == f"a\n{properties.BEGIN}\nnew\n{properties.END}\nb"
    with pytest.raises(ValueError, match="expected the markers"):
        properties.inserted("a", "new")
