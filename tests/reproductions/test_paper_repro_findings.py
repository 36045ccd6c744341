"""The look of the figures, the pages made of the claims, and findings that are exact."""

import re
from collections import Counter
from fractions import Fraction

import matplotlib as mpl
import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest, norm, sem, t

import mtlfunc as mf
from paper_repro.claims import LEDGER, PAPERS
from paper_repro.gradnorm import common as gradnorm
from paper_repro.mgda import _counterexample as counterexample
from paper_repro.report.figures import METHOD_COLOURS, STYLE
from paper_repro.report.grids import at_edge, chosen, judged
from paper_repro.report.intervals import (
    clustered_share,
    mean_interval,
    named,
    ratio_interval,
    share_interval,
)
from paper_repro.report.results import VERDICTS
from tests.support import ROOT
from tests.support.reproductions import IDS

# ---- the look of the figures, and the pages made of the claims ----


def test_style_is_safe_for_the_colour_blind() -> None:
    style = mpl.rc_params_from_file(STYLE, use_default_template=False)
    # yellow aside, which is lost on white
    okabe_ito = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7"}
    assert {entry["color"] for entry in style["axes.prop_cycle"]} == okabe_ito
    assert len(set(METHOD_COLOURS.values())) == len(METHOD_COLOURS)


def test_pages_agree_with_the_ledger() -> None:
    """docs/claims.md has every claim as the ledger states it, and docs/benchmarks.md counts that
    page's verdicts.
    """
    page = (ROOT / "docs" / "claims.md").read_text()
    rows = [
        line.strip("| ").split(" | ")
        for line in page.splitlines()
        if re.match(r"\| [A-Z]+-\d\d ", line)
    ]
    assert [row[0] for row in rows] == IDS
    counted: dict[str, Counter[str]] = {paper: Counter() for paper in PAPERS}
    for identifier, statement, kind, verdict, _, module in rows:
        row = LEDGER[identifier]
        assert (statement, kind, module.strip("`–")) == (row.statement, row.kind, row.module), (
            f"{identifier}: run python docs/results.py claims"
        )
        assert verdict.startswith("stand-in: ") == bool(row.instead), identifier
        mark = "stand-in: " * verdict.startswith("stand-in: ")
        # what it holds for stands behind
        counted[row.paper][mark + verdict.removeprefix(mark).partition(":")[0]] += 1
    counts = (ROOT / "docs" / "benchmarks.md").read_text()
    block = counts[counts.index("<!-- claims -->") : counts.index("<!-- end of claims -->")]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in block.splitlines()
        if line.startswith("| ")
    ]
    assert lines[0] == ["text", "claims", *VERDICTS]
    for (paper, found), line in zip(
        [*counted.items(), ("all", sum(counted.values(), Counter()))], lines[1:], strict=True
    ):
        assert PAPERS.get(paper, "all") in line[0]
        assert line[1:] == [
            str(found.total()),
            *(_counted(found[x], found[f"stand-in: {x}"]) for x in VERDICTS),
        ]


def _counted(own: int, instead: int) -> str:
    return f"{own} + {instead}" if instead else str(own or "–")


# ---- exact findings ----


def test_counterexample_in_fractions() -> None:
    x = counterexample.fractions(counterexample.X)
    v = [[-target for target in row] for row in counterexample.fractions(counterexample.Y)]
    bound, exact = (counterexample.exact_step(x, v, bound=which) for which in (True, False))
    assert bound.weights == [Fraction(1, 2), Fraction(1, 2)]
    assert bound.direction == [1, 0]
    assert bound.rates == [3, -1]
    assert exact.weights == [Fraction(3, 10), Fraction(7, 10)]
    assert exact.rates == [Fraction(1, 5), Fraction(1, 5)]


def test_measuring_the_last_layer_alone_is_gradnorm_on_the_whole_trunk() -> None:
    """The experiment names the measured layer as the only shared one; with weighted heads that is
    the same method.
    """
    problem = gradnorm.Problem(inputs=5, outputs=3)
    key = mf.random.key(1)
    params = gradnorm.initial_params(key, problem)
    batch = gradnorm.sample(
        mf.random.fold_in(key, 9),
        gradnorm.linear_maps(mf.random.fold_in(key, 8), problem),
        problem,
        20,
    )
    lr, alpha = torch.tensor(1e-3), torch.tensor(gradnorm.ALPHA)
    short = gradnorm.step_of("gradnorm", lr, alpha, torch.ones(2))
    whole = mf.descend(
        gradnorm.losses,
        mf.gradnorm(alpha),
        mf.jacobian(f"trunk.{gradnorm.LAYERS - 1}.*", heads="weighted"),
        mf.adam(lr),
        reduction="sum",
    )
    states = [step.init(params, batch) for step in (short, whole)]
    for _ in range(5):
        states = [
            step.update(state, batch)[0] for step, state in zip((short, whole), states, strict=True)
        ]
    for name in params:
        torch.testing.assert_close(
            states[0].params[name], states[1].params[name], rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(
        states[0].balance.rule.weights, states[1].balance.rule.weights, rtol=1e-4, atol=1e-5
    )


def test_diverged_runs_are_never_best() -> None:
    test = np.ones((1, 2, 2, 2))
    test[0, 0, 1] = np.nan
    runs = gradnorm.Runs(
        np.zeros(1),
        test,
        np.ones((2, 2)),
        np.ones((1, 2, 2, 2)),
        np.ones((1, 2, 2, 2)),
        torch.ones(2, 2, 2),
        [1.0, 2.0],
    )
    assert runs.best() == 1
    assert np.isinf(runs.final()[0, 1])


def test_intervals_match_known_values() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    # t = 4.3027 at 2 degrees of freedom, s/√n = .57735
    assert interval == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert ratio_interval([2.0, 4.0], [1.0, 2.0]) == pytest.approx((2.0, 2.0, 2.0))
    assert share_interval(0, 100) == pytest.approx((0.0, 0.0, 0.0370), abs=1e-4)


@pytest.mark.parametrize("draws", [1, 2, 7, 100, 4001])
def test_wilsons_interval_is_that_of_scipy(draws: int) -> None:
    for hits in {0, 1, draws // 2, draws - 1, draws}:
        found = binomtest(hits, draws).proportion_ci(0.95, "wilson")
        ours = share_interval(hits, draws)
        assert ours == pytest.approx((hits / draws, found.low, found.high), rel=1e-12)
        assert (ours.low == 0, ours.high == 1) == (hits == 0, hits == draws)


def test_clustered_shares_stay_possible_and_widen_with_clusters() -> None:
    """At shares that scatter as independent draws do it is Clopper and Pearson's own."""
    none, whole = clustered_share(np.zeros(8)), clustered_share(np.ones(8))
    assert none[:2] == (0, 0)
    assert whole[0] == whole[2] == 1
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 8))
    v = np.array([0.2, 0.5, 0.3, 0.4])
    n = (norm.ppf(0.975) / t.ppf(0.975, 3)) ** 2 * v.mean() * (1 - v.mean()) / sem(v) ** 2
    hits = n * v.mean()  # of as many independent draws
    ends = beta.ppf(0.025, hits, n - hits + 1), beta.ppf(0.975, hits + 1, n - hits)
    assert named("x", clustered_share(v)) == pytest.approx(
        {"x": v.mean(), "x, low": ends[0], "x, high": ends[1]}
    )
    near = clustered_share([0.9, 1.0, 1.0, 1.0])
    assert 0 < near.low < near.mean < near.high <= 1
    rng = np.random.default_rng(0)
    covered = [0, 0]
    for _ in range(400):
        # 12 seeds of 50 steps each, their probabilities apart: mean .3
        values = rng.binomial(50, rng.beta(3, 7, 12)) / 50
        found, naive = clustered_share(values), share_interval(int(values.sum() * 50), 600)
        covered[0] += found.low <= 0.3 <= found.high
        covered[1] += naive.low <= 0.3 <= naive.high
    assert covered[0] >= 0.92 * 400 > covered[1]


def test_settings_are_chosen_on_the_other_seeds() -> None:
    """Seeds 0 and 2 prefer setting 0, seeds 1 and 3 setting 2: each gets what the others prefer."""
    scores = np.array([[1.0, 9.0, 1.0, 9.0], [5.0, 5.0, 5.0, 5.0], [9.0, 1.0, 9.0, np.nan]])
    scores[2, 3] = 1.0
    assert chosen(scores).tolist() == [2, 0, 2, 0]
    assert judged(scores).tolist() == [9, 9, 9, 9]
    scores[2] = np.inf
    assert chosen(scores).tolist() == [1, 0, 1, 0]
    assert at_edge([1, 0], 3)
    assert not at_edge([1, 1], 3)
    assert not at_edge([0, 0], 1)
