"""Three sets of pairs together: what the design can see, and what its runs show."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from common.intervals import bracket
from common.pooled import holm, pooled, said, seen
from common.tables import markdown

SHOWN = ("nash-mtl", "uw", "pcgrad", "cagrad", "mgda", "gradnorm")


def differences(path: Path) -> dict[str, np.ndarray]:
    """Of the first study, by rule `[set, seed]`: accuracy less the mean loss's, in points."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in SHOWN}
    for kept in json.loads(path.read_text(encoding="utf-8")).values():
        runs = kept["accuracies"]["hard sharing"]
        level = {name: 100 * np.mean([*runs[name].values()], 0) for name in ("mean", *SHOWN)}
        for name, rows in found.items():
            rows.append(level[name] - level["mean"])
    return {name: np.stack(rows) for name, rows in found.items()}


def power(path: Path, rivals: int, counts: tuple[int, ...]) -> str:
    """A table of the differences, in the mean over the sets, that are shown nine times of ten.

    The deviation of a seed's mean over the sets is that of the first study's five, or that of its
    sets if they were independent, whichever is larger.

    Args:
        path: accuracies of the first study.
        rivals: of one family; Holm's first step has a level of .05 / rivals, its last one of .05.
        counts: of seeds.
    """
    lines = []
    for name, rows in differences(path).items():
        own = rows.mean(0).std(ddof=1)
        apart = math.sqrt((rows.var(1, ddof=1)).sum()) / len(rows)
        deviation = max(own, apart)
        line = [name, f"{rows.mean():+.2f}", f"{own:.2f}", f"{apart:.2f}"]
        for count in counts:
            first, last = (seen(deviation, count, level) for level in (0.05 / rivals, 0.05))
            line.append(f"{first:.2f} to {last:.2f}")
        lines.append(line)
    columns = ["rule", "first study's mean", "deviation of a seed's mean", "if independent"]
    return markdown(columns + [f"seen with {count} seeds" for count in counts], lines)


def rivals_table(
    levels: Mapping[str, np.ndarray], rivals: Sequence[str], sets: Sequence[str]
) -> str:
    """Each rival less the mean loss, the sets together and each alone.

    Args:
        levels: accuracies `[set, seed]` by method, in points.
        rivals: the family.
        sets: their names.
    """
    less = {name: levels[name] - levels["mean"] for name in rivals}
    found = {name: pooled(values) for name, values in less.items()}
    together = holm([each.p for each in found.values()])
    alone: Any = [ttest_1samp(x, 0.0, axis=1) for x in less.values()]
    single = [holm(p) for p in zip(*(each.pvalue for each in alone), strict=True)]
    lines = []
    for k, (name, each) in enumerate(found.items()):
        verdict = said(each.mixed.mean, together[k])
        if verdict != "not shown":
            verdict += ", not confirmed" * each.drawn.open
        own = [(less[name][i].mean(), p[k]) for i, p in enumerate(single)]
        lines.append([name, bracket(each.mixed), f"{together[k]:.2g}", bracket(each.drawn)])
        shown = [f"{mean:+.2f}, p {p:.2g}, {said(mean, p)}" for mean, p in own]
        lines[-1] += [f"**{verdict}**", *shown]
    columns = ["less the mean loss, points", "mixed model", "Holm's p", "bootstrap", "verdict"]
    return markdown([*columns, *sets], lines)


def arms_table(levels: Mapping[str, np.ndarray], nash: str, arms: Sequence[str]) -> str:
    """Each arm less the mean loss and Nash-MTL less each: whether the arm keeps Nash-MTL's gain."""
    found = [pooled(levels[name] - levels["mean"]) for name in arms]
    found += [pooled(levels[nash] - levels[name]) for name in arms]
    p = holm([each.p for each in found])
    lines = []
    for k, name in enumerate(arms):
        gain, rest = (said(found[i].mixed.mean, p[i]) for i in (k, k + len(arms)))
        verdict = "loses" if rest == "above" else "keeps" if gain == "above" else "open"
        lines.append([name, f"**{verdict}**"])
        for i in (k, k + len(arms)):
            lines[-1] += [bracket(found[i].mixed), f"{p[i]:.2g}", bracket(found[i].drawn)]
    columns = ["arm", "Nash-MTL's gain", "less the mean loss", "Holm's p", "bootstrap"]
    return markdown([*columns, "Nash-MTL less it", "Holm's p", "bootstrap"], lines)
