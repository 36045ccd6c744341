#!/usr/bin/env bash
# morl-baselines 1.3.0: its convex coverage set holds points that are best for no weights, up to all of a front.
#
# filter_convex_dominated, and ParetoArchive(convex_hull=True) by it, say that they return a convex coverage set: the
# points that are best for some weights of the objectives that are not negative. They take all corners of the
# convex hull instead, its lower side included, and drop what is Pareto dominated. Seen, where larger is better:
#                                                           points    kept    best for some weights
#     (0, 10), (10, 0), (1, 1)                                   3       3       2
#     deep-sea-treasure-concave-v0, its Pareto front            10       7       2
#     50 points of f2 = 1 - sqrt(f1), 0 <= f1 <= 1              50      50       2
#     50 points of f1^2 + f2^2 = 1 (a convex front)             50      50      50
#     200 random points of three objectives                    200      13      12
# The 7 are neither the front of 10 nor the set of 2: 2, 16 and 50 are gone, 3 and 5 stay. No call warns of it. For
# (0, 10), (5, 5), (10, 0) the call ends in an error of Qhull.
#
# Why it matters: that a linear scalarisation cannot reach concave parts is what these sets are to show. The size,
# hypervolume and sparsity of a coverage set count points that no weights prefer, and an archive of a long run
# keeps them for good, so that methods by weights and by fronts seem to reach the same.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q mo-gymnasium==1.3.2 numpy==2.3.5 scipy==1.17.1 || exit 2
"$folder/venv/bin/pip" install -q --no-deps morl-baselines==1.3.0 || exit 2 # the rest of it is for training
"$folder/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import mo_gymnasium
import numpy as np
from morl_baselines.common.pareto import ParetoArchive, filter_convex_dominated
from scipy.optimize import linprog

print(*(f"{x} {version(x)}" for x in ("morl-baselines", "mo-gymnasium", "numpy", "scipy")))


def best_for_some(points):
    """How many points are at least as good as all others for some weights that are not negative."""
    count = 0
    for one in points:
        others = points[(points != one).any(1)] - one  # weights w >= 0 of sum 1 with others @ w <= 0
        found = linprog(np.zeros(points.shape[1]), others, np.zeros(len(others)), np.ones((1, points.shape[1])), [1])
        count += found.status == 0
    return count


line, angle = np.linspace(0, 1, 50), np.linspace(0, np.pi / 2, 50)
treasures = np.array(mo_gymnasium.make("deep-sea-treasure-concave-v0").unwrapped.pareto_front(gamma=1.0))
sets = {
    "three points": (np.array([[0.0, 10], [10, 0], [1, 1]]), 3, 2),
    "treasures": (treasures, 7, 2),
    "concave": (np.stack([line, 1 - np.sqrt(line)], 1), 50, 2),
    "convex": (np.stack([np.sin(angle), np.cos(angle)], 1), 50, 50),
    "random": (np.random.default_rng(0).random((200, 3)), 13, 12),
}
seen = {}
for name, (points, keeps, right) in sets.items():
    kept, best = filter_convex_dominated(points), best_for_some(points)
    print(f"{name}: {len(points)} points, kept {len(kept)}, best for some weights {best}")
    seen[name] = (len(kept), best) == (keeps, right)
    if name == "treasures":
        print("treasures kept:", sorted(kept[:, 0]), "of", points[:, 0])
    if name == "three points":
        archive = ParetoArchive(convex_hull=True)
        for i, each in enumerate(points):
            archive.add(i, each)
        seen["archive"] = len(archive.evaluations) == 3
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
