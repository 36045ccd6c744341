#!/usr/bin/env bash
# rliable 1.2.0 (arch 7.2.0, NumPy 2.4.6): `random_state` decides nothing about its intervals.
#
# library.get_interval_estimates and StratifiedBootstrap take random_state="for reproducibility" and
# hand it to arch, whose generator they then do not use: the indices are drawn from NumPy's global
# generator. Seen for 5 runs of 8 tasks, the 95 % interval of the mean from 300 resamples:
#     random_state=RandomState(1), twice                     two other intervals
#     random_state 1 and 2, each after numpy.random.seed(0)  the same interval
#     arch's own IIDBootstrap, random_state twice            the same interval
# No warning of rliable's own says so.
#
# Why it matters: an interval in a report cannot be computed again by the seed that it names, and
# what else draws from the global generator, or how often, moves it.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q rliable==1.2.0 arch==7.2.0 numpy==2.4.6 pandas==2.3.3 \
  scipy==1.17.1 statsmodels==0.14.6 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import numpy as np
from arch.bootstrap import IIDBootstrap
from numpy.random import RandomState
from rliable import library, metrics

scores = np.random.default_rng(0).normal(size=(5, 8))  # [run, task]


def mean(x):
    return np.array([metrics.aggregate_mean(x)])


def interval(seed):
    _, intervals = library.get_interval_estimates(
        {"method": scores}, mean, reps=300, random_state=RandomState(seed)
    )
    return intervals["method"][:, 0].round(6).tolist()


np.random.seed(5)  # the global generator starts somewhere
twice = [interval(1), interval(1)]
after = []
for seed in (1, 2):
    np.random.seed(0)
    after.append(interval(seed))
arch = [
    IIDBootstrap(scores, random_state=RandomState(1)).conf_int(np.mean, reps=300, method="percentile").tolist()
    for _ in range(2)
]
print("random_state 1, twice:", *twice)
print("random_state 1 and 2, each after numpy.random.seed(0):", *after)
print("arch, random_state 1, twice:", *arch)
sys.exit(0 if twice[0] != twice[1] and after[0] == after[1] and arch[0] == arch[1] else 1)
END
