#!/usr/bin/env bash
# Meta-World 3.1.1: every observation of MT10 lies outside the observation space that the
# environments declare.
#
# The last three of the 39 numbers are the goal. The multi-task benchmarks put it into the
# observation, but the declared bounds of these three stay [0, 0], as where the goal is hidden. Seen
# for gym.make_vec("Meta-World/MT10", seed=1) with and without use_one_hot=True: the goal of the
# first task is (.024, .854, .214), `single_observation_space.contains` is False for all ten, and
# the same holds for gym.make("Meta-World/MT1"), where gymnasium's passive checker warns; the vector
# environments of MT10 say nothing.
#
# Why it matters: what clips to the declared space sets the goals of all tasks to zero, and what
# rescales by it divides by zero. A policy of clipped observations solves ten tasks without seeing
# what any of them asks for, and conflict between tasks is measured that the data do not have.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q metaworld==3.1.1 gymnasium==1.4.0 mujoco==3.3.0 numpy==2.4.6 \
    packaging==25.0 || exit 2
MUJOCO_GL=disable "$folder/venv/bin/python" -W ignore - <<'END'
import sys

import gymnasium as gym
import metaworld  # noqa: F401  # registers its environments
import numpy as np

same = True
for options in ({}, {"use_one_hot": True}):
    tasks = gym.make_vec("Meta-World/MT10", seed=1, vector_strategy="sync", **options)
    observed, _ = tasks.reset(seed=1)
    space = tasks.single_observation_space
    inside = [space.contains(row.astype(space.dtype)) for row in observed]
    goals, bounds = observed[:, 36:39], (space.low[36:39], space.high[36:39])
    print(options, "goal of the first task", goals[0], "bounds", *bounds, "inside", inside)
    clipped = np.clip(observed, space.low, space.high)[:, 36:39]
    same &= not any(inside) and not np.any(bounds) and bool(goals.any(1).all()) and not clipped.any()
sys.exit(0 if same else 1)
END
