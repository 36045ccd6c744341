"""Three sets of pairs together: what a design can see, and what its runs show."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import nct

from common.tables import markdown

SHOWN = ("nash-mtl", "uw", "pcgrad", "cagrad", "mgda", "gradnorm")


def seen(deviation: float, seeds: int, level: float, share: float = 0.9) -> float:
    """The difference that a t test of paired differences shows in this share of studies.

    Args:
        deviation: of one difference.
        seeds: n >= 2 of them.
        level: of the test, two-sided.
        share: of the studies, at least .5.
    """
    degrees = seeds - 1
    bound = stdtrit(degrees, 1 - level / 2)

    def missed(distance: float) -> float:
        return float(nct.sf(bound, degrees, distance)) - share  # the other side adds < 1e-6

    distance: Any = brentq(missed, 0.0, 2 * bound + 2)
    return distance * deviation / math.sqrt(seeds)


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
