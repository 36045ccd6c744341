"""Every question of every paper at a tiny budget: its claims and figures, and what is exact."""

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import matplotlib as mpl
import pytest
from matplotlib import style

from paper_repro.__main__ import papers, reproductions
from paper_repro.cagrad import fast
from paper_repro.claims import ROWS
from paper_repro.cross_paper import auxiliaries, rest_points
from paper_repro.mgda import cost_of_gradients, network, random_encoders
from paper_repro.report.figures import STYLE
from paper_repro.report.findings import Claim, Figure, Finding, Settings
from paper_repro.report.layout import fit
from paper_repro.report.looks import clashes
from paper_repro.report.verdicts import findings
from tests.support import ROOT


class Tiny(NamedTuple):
    """A paper's budget, and sizes that no verdict tested here is read off."""

    shrink: float
    sizes: Sequence[tuple[Any, str, Any]] = ()


PAPERS = {
    "cagrad": Tiny(0.0002, [(fast, "network", partial(fast.network, hidden=32, samples=32))]),
    "cross_paper": Tiny(
        0.02,
        [
            (rest_points, "HALVINGS", 6),  # fewer and longer steps over the same way
            (rest_points, "EACH", 10),
            (rest_points, "FIRST", 1.2),
            (auxiliaries, "RATES", (1e-2,)),
        ],
    ),
    "gradnorm": Tiny(0.004),
    "mgda": Tiny(
        0.004,
        [
            (cost_of_gradients, "WIDTH", 64),
            (cost_of_gradients, "BOUND_WIDTH", 32),
            (cost_of_gradients, "HEADS", {"small heads": 0, network.LARGE: 64}),
            (random_encoders, "TASKS", (2, 5)),
            (random_encoders, "WIDTHS", (1, 8)),
        ],
    ),
    "pcgrad": Tiny(0.004),
    "since": Tiny(0.02),
}
EXACT = {
    "holds": "CA-10 CA-11 CA-16 CA-18 CA-20 CA-22 CA-29 X-03 X-04 GN-03 GN-08 GN-09 GN-10 GN-13 "
    "GN-14 GN-15 GN-16 SU-01 SU-02 SU-06 SU-07 SU-08 SU-10 SU-11 SU-12 SU-13 SU-16 SU-17 SU-19 "
    "SU-22 SU-26 SU-28 SU-31 SU-33 SU-34 PC-06 PC-09 PC-10 PC-11 PC-13 PC-14 PC-15 PC-30 SI-14",
    "holds only when": "CA-03 CA-12 CA-13 GN-18 SU-03 SU-05 SU-15 SU-18 PC-12 PC-16 PC-19 SI-05 "
    "SI-09 SI-13 SI-16 SI-19",
    "does not hold": "CA-05",
}
RECORDED = "CA-05 CA-10 CA-15 CA-16 CA-29 X-04 GN-03 GN-08 GN-09 GN-10 GN-13 GN-14 GN-16 GN-25 "
RECORDED += "SU-02 SU-10 SU-11 SU-12 SU-22 SU-25 SU-26 SU-31 SU-33 SU-34 PC-06 PC-09 PC-10 PC-12 "
RECORDED += "PC-13 PC-15 PC-16 PC-30 SI-14"
"""Claims whose numbers are those of the default run at any budget."""
EXAMPLE = re.compile(r"counterexample: |120°: |\(\d|smallest rate|rate of task|closed form against")
"""How a number begins that is one of a single example or of an identity: likewise."""
NUMBERS = {
    "SU-30": {"draws in which MGDA itself raises a task": 0},
    "PC-17": {"violations of the promised fall": 0},
    "GN-25": {"runs of a full grid of 5 ratios, T = 10": 5**9},
    # at a point log|·| is concave; over a step across its cusp Definition 3's H is positive
    "PC-05": {f"{arm}: share of points with gᵀ∇²L g > 0": 0 for arm in ("sum", "PCGrad")},
}


@pytest.fixture(scope="module", params=papers())
def found(request: pytest.FixtureRequest) -> dict[str, list[Finding]]:
    """By question, what it yields."""
    mpl.use("Agg")
    tiny, paper = PAPERS[request.param], f"{request.param}."
    with pytest.MonkeyPatch.context() as patch, style.context(STYLE):
        for change in tiny.sizes:
            patch.setattr(*change)
        asked = {name: x for name, x in reproductions().items() if name.startswith(paper)}
        settings = Settings(seeds=2, shrink=tiny.shrink)
        return {name: list(findings(module, settings)) for name, module in asked.items()}


def test_a_question_decides_the_rows_that_name_it(found) -> None:
    decided = [(x.id, module) for module in found for x in found[module] if isinstance(x, Claim)]
    assert sorted(decided) == sorted((row.id, row.module) for row in ROWS if row.module in found)


def test_what_is_exact_at_any_budget(found) -> None:
    claims = {x.id: x for each in found.values() for x in each if isinstance(x, Claim)}
    for verdict, names in EXACT.items():
        for name in claims.keys() & {*names.split()}:
            assert claims[name].verdict == verdict, name
    for name in claims.keys() & NUMBERS.keys():
        assert NUMBERS[name].items() <= claims[name].measured.items(), name
    record = json.loads((ROOT / "docs" / "record" / "default.json").read_text())["numbers"]
    for name, claim in claims.items():
        for what, number in claim.measured.items():
            if name in RECORDED.split() or EXAMPLE.match(what):
                assert number == pytest.approx(record[name][what], rel=1e-5, abs=1e-9), what


def test_findings_are_complete(found) -> None:
    """Every claim says what was measured and where, every figure has its texts and can be drawn."""
    for module in found:
        names = [finding.name for finding in found[module] if isinstance(finding, Figure)]
        assert len(set(names)) == len(names), module
        for finding in found[module]:
            if isinstance(finding, Figure):
                assert finding.caption, finding.name
                labelled = (axis.get_xlabel() or axis.get_ylabel() for axis in finding.figure.axes)
                assert all(labelled), finding.name
                with style.context(STYLE):
                    fit(finding.figure)
                assert clashes(finding.figure) == [], finding.name
            else:
                assert finding.measured, finding.id
                assert not finding.where.removeprefix("Stand-in: ").startswith(". "), finding.id
                assert ". . Said" not in finding.where, finding.id
