#!/usr/bin/env bash
# pymoo 0.6.2: the neighbourhood of HighTradeoffPoints cannot be set, and one call of it silences every later warning.
#
# HighTradeoffPoints(epsilon=e) looks for points from which a gain costs much, among the neighbours of each within e. It
# keeps e and always looks within .125. Seen for 201 points of a wavy front, first objective of the points found:
#     epsilon                                   .01, .02, .05     .125            .3, 2
#     HighTradeoffPoints(epsilon)               .445, .555        .445, .555      .445, .555
#     the same search by pymoo's own
#     NeighborFinder(epsilon)                   .33               .445, .555      .44, .445, .555, .56
# Units count, too, where no ideal and nadir are given: the second objective times 1000 gives other points.
# And its call adds a filter that ignores all warnings of the process, not only its own: NumPy's invalid values,
# scikit-learn's failed fits and one's own warnings are shown before it and not after it.
#
# Why it matters: the scale at which a knee is one is the method's only choice, and a study of it finds that nothing
# depends on it. A script that picks a solution and then trains or tests with it is told of no fault.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q pymoo==0.6.2 numpy==2.3.5 scipy==1.17.1 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import sys
import warnings
from importlib.metadata import version

import numpy as np
from pymoo.core.decision_making import NeighborFinder, find_outliers_upper_tail
from pymoo.mcdm.high_tradeoff import HighTradeoffPoints

print(*(f"{x} {version(x)}" for x in ("pymoo", "numpy")))


def within(front, radius):
    """The search that the class describes, with the radius that it is given."""
    finder = NeighborFinder(front, epsilon=radius, n_min_neigbors="auto", consider_2d=False)
    least = np.empty(len(front))
    for i in range(len(front)):
        steps = front[finder.find(i)] - front[i]
        with np.errstate(all="ignore"):
            least[i] = np.nanmin(np.maximum(0, steps).sum(1) / np.maximum(0, -steps).sum(1))
    return find_outliers_upper_tail(least)


def told_of():
    """What a user sees of two warnings, by the filters as they are."""
    with warnings.catch_warnings(record=True) as told:
        np.zeros(1) / np.zeros(1)
        warnings.warn("a warning of one's own", stacklevel=1)
    return [str(x.message) for x in told]


first = np.linspace(0, 1, 201)
front = np.stack([first, (1 - first) ** 2 - 0.03 * np.abs(np.sin(8 * np.pi * first))], 1)
warnings.filterwarnings("always")
seen = {}
before = told_of()
points = {}
for radius in (0.01, 0.02, 0.05, 0.125, 0.3, 2.0):
    both = HighTradeoffPoints(epsilon=radius)(front), within(front, radius)
    points[radius] = [first[x].round(4).tolist() for x in both]
    print(f"epsilon {radius}: found {points[radius][0]}, within that radius {points[radius][1]}")
seen["all the same"] = all(found == [0.445, 0.555] for found, _ in points.values())
seen["by radius"] = all((right == [0.445, 0.555]) == (radius == 0.125) for radius, (_, right) in points.items())
large = first[HighTradeoffPoints()(front * [1, 1000])].round(4).tolist()
print("second objective times 1000:", large)
seen["units"] = large != [0.445, 0.555]
after = told_of()
print("warnings before", before, "and after", after)
seen["warnings"] = len(before) == 2 and not after
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
