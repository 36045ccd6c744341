#!/usr/bin/env bash
# mo-gymnasium 1.3.2 (gymnasium 1.4.0): the Pareto front of resource-gathering-v0 is not that of the environment.
#
# pareto_front(gamma) is described as the front of the environment. Returns are (death, gold, diamond). Seen for
# gamma = .99, exact expected returns by dynamic programming over the environment's own map:
#     pareto_front     (0, 0, .9044)   (0, .8864, 0)   (-.0932, .7819, .7819)
#     exact front      (0, 0, .9135)   (0, .8953, 0)   (0, .8429, .8429)
# The first two are what the environment pays times gamma once more: a reward at step n is discounted by gamma**n,
# where the package's MORecordEpisodeStatistics, and its own front of deep-sea-treasure, discount by gamma**(n - 1).
# The third risks its life, and is dominated by the way of 18 steps around both enemies, which is missing. Walked in
# the environment, each exact point dominates the listed one.
#
# Why it matters: distances to this front and utility losses, which benchmarks of multi-objective learners log,
# are not zero for a perfect learner, and its hypervolume exceeds that of the "front".
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q mo-gymnasium==1.3.2 gymnasium==1.4.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import gymnasium
import mo_gymnasium
import numpy as np
from mo_gymnasium.wrappers import MORecordEpisodeStatistics

print("mo-gymnasium", mo_gymnasium.__version__, "gymnasium", gymnasium.__version__)
GAMMA = 0.99
UP, DOWN, LEFT, RIGHT = range(4)
env = mo_gymnasium.make("resource-gathering-v0")
said = np.array(sorted(np.round(env.unwrapped.pareto_front(GAMMA), 6).tolist()))
print("pareto_front", *said.round(4).tolist())


def walk(actions):
    """The discounted return of one episode, as the package's own wrapper reports it."""
    record = MORecordEpisodeStatistics(env, gamma=GAMMA)
    record.reset(seed=0)
    for step, action in enumerate(actions, 1):
        _, _, done, _, info = record.step(action)
    assert done and step == len(actions)
    return info["episode"]["dr"]


diamond = walk([RIGHT] * 2 + [UP] * 3 + [DOWN] * 3 + [LEFT] * 2)
safe = [UP] * 2 + [LEFT] + [UP] * 2 + [RIGHT] + [LEFT] + [DOWN] * 2 + [RIGHT] * 3 + [UP] + [DOWN] * 3 + [LEFT] * 2
both = walk(safe)
alone = walk([UP] * 2 + [LEFT] + [UP] * 2 + [RIGHT] + [LEFT] + [DOWN] * 2 + [RIGHT] + [DOWN] * 2)
print("gold, 12 steps", alone.round(4))
print("diamond, 10 steps", diamond.round(4), "both, dodging both enemies,", len(safe), "steps", both.round(4))


def best(points):
    points = np.unique(np.round(points, 9), axis=0)
    worse = (points[None] >= points[:, None]).all(-1) & (points[None] > points[:, None]).any(-1)
    return points[~worse.any(1)]


grid, moves = env.unwrapped.map, env.unwrapped.dir
start = (*env.unwrapped.initial_pos.tolist(), 0, 0)
states = [(i, j, a, b) for i in range(5) for j in range(5) for a in (0, 1) for b in (0, 1)]
values = {s: np.zeros((1, 3)) for s in states}  # the best expected returns of so many steps, by state
for _ in range(24):
    new = {}
    for i, j, gold, gem in states:
        points = []
        for move in moves.values():
            to = np.array([i, j]) + move
            k, m = to.tolist() if ((to >= 0) & (to < 5)).all() else (i, j)
            cell = grid[k, m]
            after = (k, m, int(gold or cell == "R1"), int(gem or cell == "R2"))
            if cell == "H":
                points.append(np.array([[0.0, gold, gem]]))
            elif cell in ("E1", "E2"):
                points.append(0.9 * GAMMA * values[after] + 0.1 * np.array([-1.0, 0, 0]))
            else:
                points.append(GAMMA * values[after])
        new[i, j, gold, gem] = best(np.concatenate(points))
    values = new
true = values[start]
print("exact front", *true.round(4).tolist())

exact = np.array([[0, 0, GAMMA**9], [0, GAMMA**11, 0], [0, GAMMA**17, GAMMA**17]])
listed = np.array([[0, 0, GAMMA**10], [0, GAMMA**12, 0]])
same = np.allclose(np.unique(true, axis=0), np.unique(exact, axis=0), atol=1e-6) and len(said) == 3
same &= all(np.abs(said - x).max(1).min() < 1e-5 for x in listed)
same &= np.abs(diamond - exact[0]).max() < 1e-5 and np.abs(alone - exact[1]).max() < 1e-5 and np.abs(both - exact[2]).max() < 1e-5
same &= all((true >= x - 1e-9).all(1).any() and np.abs(true - x).max(1).min() > 0.005 for x in said)
sys.exit(0 if same else 1)
END
