#!/usr/bin/env bash
# mo-gymnasium 1.3.2: in vectorised environments an episode's discounted return holds those of all episodes before it.
#
# MORecordEpisodeStatistics of a vector environment reports an episode's return "r", discounted return "dr" and length
# "l". A vector environment starts its next episode by itself, and "dr" is not set back then. Seen for deep sea
# treasure, right once and then down, again and again, gamma .9:
#     episode                        1              2               3               10
#     r                              8.2, -3        8.2, -3         8.2, -3         8.2, -3
#     dr                             6.64, -2.71    13.28, -5.42    19.93, -8.13    66.42, -27.1
#     dr, wrapper of one environment 6.64, -2.71    6.64, -2.71     6.64, -2.71     6.64, -2.71
# With gamma=1, too, where dr of the tenth episode is ten times r. No call warns of it. The repository has a later
# change that sets it back, the release has not.
#
# Why it matters: fronts, hypervolumes and expected utilities of several rewards are computed from discounted returns.
# Those of training grow with the number of episodes alone: a policy that never changes seems to learn one reward and
# to lose another, and methods with shorter episodes gain most.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q mo-gymnasium==1.3.2 gymnasium==1.4.0 numpy==2.3.5 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import sys
import warnings
from importlib.metadata import version

import mo_gymnasium
import numpy as np
from mo_gymnasium.wrappers import MORecordEpisodeStatistics as OfOne
from mo_gymnasium.wrappers.vector import MORecordEpisodeStatistics as OfSeveral
from mo_gymnasium.wrappers.vector import MOSyncVectorEnv

print(*(f"{x} {version(x)}" for x in ("mo-gymnasium", "gymnasium", "numpy")))


def make():
    return mo_gymnasium.make("deep-sea-treasure-v0")


def path(position):
    """Right from the start, then down."""
    return 3 if tuple(position) == (0, 0) else 1


def several(gamma, episodes=10, count=2):
    envs = OfSeveral(MOSyncVectorEnv([make] * count), gamma=gamma)
    seen_by, found = envs.reset(seed=0)[0], []
    while len(found) < episodes:
        seen_by, _, _, _, info = envs.step(np.array([path(x) for x in seen_by]))
        if "episode" in info:
            found.append([info["episode"][x].copy() for x in ("r", "dr")])
    return np.array(found)


def one(gamma, episodes=10):
    env, found = OfOne(make(), gamma=gamma), []
    for _ in range(episodes):
        seen_by, done = env.reset(seed=0)[0], False
        while not done:
            seen_by, _, done, _, info = env.step(path(seen_by))
        found.append([info["episode"][x].copy() for x in ("r", "dr")])
    return np.array(found)


seen = {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for gamma in (0.9, 1.0):
        both, alone = several(gamma), one(gamma)
        for episode in (0, 1, 2, 9):
            r, dr = both[episode, :, 0]
            print(f"gamma {gamma}, episode {episode + 1}: r {r}, dr {dr}, of one environment {alone[episode]}")
        times = np.arange(1, 11)[:, None, None]
        seen["r", gamma] = np.allclose(both[:, 0], alone[:, :1]) and np.ptp(alone, axis=0).max() == 0
        seen["dr", gamma] = np.allclose(both[:, 1], times * alone[:, 1][:, None], rtol=1e-4)
told = [str(x.message) for x in told]
print("warnings", *sorted(set(told)), sep="\n    ")
seen["no warning"] = not any("discount" in x or "episode" in x for x in told)
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
