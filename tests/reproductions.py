"""What the reproductions' tests share: a paper's questions run once at a tiny budget."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib import style

from paper_repro.__main__ import reproductions
from paper_repro.claims import ROWS
from paper_repro.report.figures import STYLE
from paper_repro.report.findings import Claim, Figure, Finding, Settings
from paper_repro.report.ledger import ONLY_FULL

Found = Mapping[str, Sequence[Finding]]
"""Findings by the module that yielded them."""


def findings_of(paper: str, settings: Settings) -> dict[str, list[Finding]]:
    """What every question of a paper's folder yields."""
    mpl.use("Agg")
    modules = {name: m for name, m in reproductions().items() if name.startswith(f"{paper}.")}
    with style.context(STYLE):
        return {name: list(module.run(settings)) for name, module in modules.items()}


def by_name(found: Found) -> dict[str, Any]:
    """Claims by id, figures by name."""
    return {
        finding.id if isinstance(finding, Claim) else finding.name: finding
        for findings in found.values()
        for finding in findings
    }


def check_ledger(found: Found) -> None:
    """Modules and ledger agree on who decides what, both ways, and no claim is decided twice."""
    decided = [
        (finding.id, module)
        for module, findings in found.items()
        for finding in findings
        if isinstance(finding, Claim)
    ]
    named = {row.id: row.module for row in ROWS if row.module in found and row.needs != ONLY_FULL}
    assert sorted(decided) == sorted(named.items())


def check_complete(found: Found) -> None:
    """Every claim says what was measured and where, every figure has its texts and can be drawn."""
    for module, findings in found.items():
        names = [finding.name for finding in findings if isinstance(finding, Figure)]
        assert len(set(names)) == len(names), module
        for finding in findings:
            if isinstance(finding, Figure):
                assert finding.caption, finding.name
                labelled = (axis.get_xlabel() or axis.get_ylabel() for axis in finding.canvas.axes)
                assert all(labelled), finding.name
                finding.canvas.savefig(io.BytesIO(), dpi=30)
            else:
                assert finding.measured, finding.id
                assert finding.where, finding.id
                values = finding.measured.values()
                assert all(isinstance(value, int | float) for value in values), finding.id
