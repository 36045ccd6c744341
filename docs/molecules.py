"""What `python -m experiments.molecules` found, for docs/molecules.md and the README."""

from pathlib import Path

import numpy as np

from common.pooled import alone, holm
from common.problems.molecules import NAMES
from common.tables import write_png
from common.tuned import Record
from docs.blocks import bullets, marked, paragraph, replaced
from experiments.molecules import __main__ as study

PAGE = Path(__file__).parent / "molecules.md"
FIGURE = (
    "![Errors above those of single networks in per cent, Δm and the eleven properties, of every "
)
FIGURE += "method, with 95 % intervals](molecules.png)"


def record() -> Record:
    """The repository's."""
    return Record(study.RECORD, study.DESIGN)


def write() -> None:
    """The page's table and figure."""
    kept = record()
    text, figure = study.shown(kept)
    state, verdicts, order, _ = text.split("\n\n")  # the figure has what the last table has
    made = paragraph(f"{state} {len(kept.runs)} runs, on {'; '.join(kept.made)}.")
    said = bullets(_observed(study.found(kept)))
    block = marked("molecules", verdicts, paragraph(order), FIGURE, made, said)
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), "molecules", block))
    write_png(figure, PAGE.with_suffix(".png"))


def _observed(found: study.Found) -> list[str]:
    """What the figure shows, with its numbers."""
    over = {name: np.mean([*of.values()], 0) for name, of in found.over.items()}
    first = sorted(over, key=lambda name: over[name].mean())[:3]

    def of(name: str) -> str:
        return " and ".join(f"{over[name][NAMES.index(x)]:.0f} %" for x in ("r2", "zpve"))

    levels = {name: float(each.mean()) for name, each in over.items()}
    rank = sorted(study.METHODS, key=levels.__getitem__).index("mean") + 1
    apart = study.PUBLISHED["mean"] - min(study.PUBLISHED.values())
    cost = {name: levels[name] - levels["mean"] for name in (study.UNTUNED, study.RAW)}
    return [
        f"""**The mean loss neglects what can be learnt well.** Its errors of ⟨R²⟩ and of the
        zero-point energy are {of("mean")} above those of single networks. Those of {first[0]} are
        {of(first[0])} above, of {first[1]} {of(first[1])}, of {first[2]} {of(first[2])}.""",
        f"""**Standardisation and a tuned rate are part of the gain.** Raw units cost the mean loss
        {cost[study.RAW]:.1f} points, the published rate {cost[study.UNTUNED]:.1f}. Tuned, it is
        number {rank} of {len(study.METHODS)}, {levels["mean"] - levels[first[0]]:.1f} points behind
        the best method. In the published tables it is {apart:.1f} points behind.""",
    ]


def sentence() -> str:
    """Of the README."""
    levels = study.found(record()).levels
    means = {name: float(np.mean([*levels[name].values()])) for name in study.METHODS}
    less = [[x - levels["mean"][k] for k, x in levels[name].items()] for name in study.METHODS[1:]]
    p = holm([alone(each).p for each in less])
    better = sum(each < 0.05 and np.mean(x) < 0 for each, x in zip(p, less, strict=True))
    best = min(means, key=means.__getitem__)
    return f"""On [eleven properties of real molecules](docs/molecules.md), {better} of {len(less)}
        methods are better than the mean loss. {NAMED[best]} is best: its errors are
        {means[best]:.0f} % above those of networks that learn one property each, the mean loss's
        {means["mean"]:.0f} %."""


NAMED = {"si": "SI (the mean of log losses)"}
"""A method that comes first, in a sentence."""
