#!/usr/bin/env bash
# paretobench 0.9.0 (numpy 2.4.6): DTLZ8 of three objectives has lost one of its three constraints.
#
# DTLZ8 asks, for m objectives, that f_m + 4 f_i >= 1 for each i < m, and that 2 f_m plus the least sum of two others
# >= 1. The package's own front is the right one for this. In its constraint the last entry is -inf (satisfied) for
# every point, as the infinity that is meant for the diagonal of a table of pairs fills two rows of it: all
# rows where m = 3. Seen:
#     last constraint at 2,000 random points     -inf at all of them; with m = 4 wrong at 65 %
#     f = (.2, .2, .25), where 2 f_3 + f_1 + f_2 = .9     feasible; it dominates (.25, .25, .25) of the front
#     feasible points of f_1 = f_2 = (1 - f_3) / 4        dominate 7 of 10 points of get_pareto_front
#
# Why it matters: optimizers go below the front that they are measured against. Their hypervolume exceeds that
# of the front, and the nearer a method is to this package's true optimum, the larger its distance to it.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q paretobench==0.9.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import numpy as np
import paretobench

print("paretobench", version("paretobench"), "numpy", np.__version__)
draw = np.random.default_rng(0)


def last(f):
    """The last constraint as DTLZ8's authors write it, satisfied where it is at most zero."""
    others = np.sort(f[:, :-1], 1)
    return 1 - 2 * f[:, -1] - others[:, 0] - others[:, 1]


wrong = {}
for m in (3, 4):
    problem = paretobench.DTLZ8(n=10 * m, m=m)
    answer = problem(draw.random((2000, problem.n_vars)))
    wrong[m] = float((np.abs(answer.g[:, -1] - last(answer.f)) > 1e-9).mean())
    print(f"m = {m}: wrong at {wrong[m]:.2f} of the points, -inf at {np.isinf(answer.g[:, -1]).mean():.2f}")

problem = paretobench.DTLZ8(n=30, m=3)
front = problem.get_pareto_front(300)


def at(f):
    """The population whose objectives are f: each is the mean of ten variables."""
    return problem(np.repeat(np.asarray(f, float), 10, axis=1))


z = np.linspace(0, 0.33, 100)
low = np.stack([(1 - z) / 4, (1 - z) / 4, z], 1) + 1e-9
low = np.concatenate([[[0.2, 0.2, 0.25]], low])
answer = at(low)
feasible = answer.get_feasible_indices()
dominated = ((front[:, None] >= answer.f).all(-1) & (front[:, None] > answer.f).any(-1))[:, feasible].any(1)
on_front = np.abs(last(front)) < 1e-9  # its lower part lies where the last constraint is tight
print(f"feasible {feasible.mean():.2f} of points that break it by {last(low).min():.3f} to {last(low).max():.3f}")
print(f"front points dominated {dominated.mean():.2f}; last constraint met by all {(last(front) < 1e-9).all()}")
print(f"front points where it is tight {on_front.mean():.2f}")
same = wrong[3] == 1.0 and 0.2 < wrong[4] < 1.0 and bool(feasible.all()) and last(low).min() > 0
sys.exit(0 if same and dominated.mean() > 0.5 and (last(front) < 1e-9).all() else 1)
END
