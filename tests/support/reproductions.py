"""What the reproductions' tests share: a paper's questions run once at a tiny budget."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
from matplotlib import style
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text

from paper_repro.__main__ import reproductions
from paper_repro.claims import ROWS
from paper_repro.report.figures import STYLE
from paper_repro.report.findings import Claim, Figure, Finding, Settings
from paper_repro.report.layout import fit, place_of, room_above, titles
from paper_repro.report.verdicts import findings as findings_under

Found = Mapping[str, Sequence[Finding]]
"""Findings by the module that yielded them."""


def findings_of(paper: str, settings: Settings) -> dict[str, list[Finding]]:
    """What every question of a paper's folder yields."""
    mpl.use("Agg")
    modules = {name: m for name, m in reproductions().items() if name.startswith(f"{paper}.")}
    with style.context(STYLE):
        return {name: list(findings_under(module, settings)) for name, module in modules.items()}


def misplaced(canvas: Canvas) -> list[str]:
    """Text off a canvas, longer than its panel or not typeset; legends over a panel."""
    canvas.draw_without_rendering()
    found, room = [], canvas.bbox.padded(1)
    texts = [text for panel in canvas.axes for text in (panel.xaxis.label, panel.yaxis.label)]
    texts += [text for panel in canvas.axes for text in titles(panel)]
    legends = [*canvas.legends, *(x for panel in canvas.axes if (x := panel.get_legend()))]
    for thing in (*texts, *legends):
        box = thing.get_window_extent()
        name = thing.get_text() if isinstance(thing, Text) else "a legend"
        if box.width and not (room.contains(*box.p0) and room.contains(*box.p1)):
            found.append(f"off the canvas: {name}")
    for panel in canvas.axes:
        box, legend = panel.get_window_extent(), panel.get_legend()
        if legend is not None and legend.get_window_extent().y0 < box.y1 - 1:
            found.append("a legend over its panel")
        if panel.name != "3d":
            for text in titles(panel):
                if text.get_window_extent().width > room_above(panel) + 2:
                    found.append(f"longer than its panel: {text.get_text()}")
            box = place_of(panel)
            for text, across in ((panel.xaxis.label, "width"), (panel.yaxis.label, "height")):
                if getattr(text.get_window_extent(), across) > getattr(box, across) + 2:
                    found.append(f"longer than its panel: {text.get_text()}")
    for text in canvas.findobj(Text):
        assert isinstance(text, Text)
        raw = "".join(text.get_text().split("$")[::2])
        if "_" in raw or "^" in raw:
            found.append(f"not typeset: {text.get_text()}")
    return found


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
    named = {row.id: row.module for row in ROWS if row.module in found}
    assert sorted(decided) == sorted(named.items())


def check_complete(found: Found) -> None:
    """Every claim says what was measured and where, every figure has its texts and can be drawn."""
    for module, findings in found.items():
        names = [finding.name for finding in findings if isinstance(finding, Figure)]
        assert len(set(names)) == len(names), module
        for finding in findings:
            if isinstance(finding, Figure):
                assert finding.caption, finding.name
                labelled = (axis.get_xlabel() or axis.get_ylabel() for axis in finding.figure.axes)
                assert all(labelled), finding.name
                with style.context(STYLE):
                    fit(finding.figure)
                wrong = misplaced(finding.figure)
                assert not wrong, f"{finding.name}: {wrong}"
            else:
                assert finding.measured, finding.id
                assert finding.where, finding.id
                values = finding.measured.values()
                assert all(isinstance(value, int | float) for value in values), finding.id


# ---- fakes ----


def claims_in(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "claims.json").read_text(encoding="utf-8"))


def found_in(folder: Path) -> list[dict[str, Any]]:
    return [claim for claim in claims_in(folder) if claim["configuration"]]


def fake(folder: Path, *findings: Claim | Figure, stop: bool = False) -> ModuleType:
    """A reproduction that finds these; its source is their text."""
    module = ModuleType("fake", "A reproduction of nothing.")
    path = folder / f"source{len(list(folder.iterdir()))}.py"
    path.write_text(f"text = {str(findings)!r}")
    module.__file__ = str(path)

    def run(settings: Settings) -> Iterator[Claim | Figure]:
        # what is drawn is drawn anew
        yield from (figure(x.name) if isinstance(x, Figure) else x for x in findings)
        if stop:
            raise KeyboardInterrupt

    module.run = run  # type: ignore[attr-defined]
    return module


def claim(identifier: str, value: float = 1.0) -> Claim:
    return Claim(identifier, "holds", {"value": value}, "here")


def figure(name: str) -> Figure:
    canvas = Canvas(figsize=(1, 1))
    canvas.add_subplot().plot([0, 1])
    return Figure(name, f"caption of {name}", canvas)


def count_runs(module: ModuleType) -> list[Settings]:
    runs, run = [], module.run

    def counted(settings: Settings) -> Any:
        runs.append(settings)
        return run(settings)

    module.run = counted  # type: ignore[attr-defined]
    return runs


IDS = [
    f"{paper}-{number:02d}"
    for paper, count in {"PC": 32, "SU": 37, "CA": 40, "GN": 29, "X": 7, "SI": 28}.items()
    for number in range(1, count + 1)
]
