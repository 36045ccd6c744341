#!/usr/bin/env bash
# aeon 1.6.0 (scipy 1.17.1): the Nemenyi test of k methods uses the critical value of k + 1.
#
# nemenyi_test, and plot_critical_difference(test="nemenyi"), take q from a table whose first entry is that of one
# method, and read it at k, counted from zero. Seen for alpha = .05 and 14 datasets:
#     methods                             2       3       4       10
#     critical difference, aeon           .626    .971    1.331   3.684
#     by the studentized range            .524    .886    1.254   3.620
#     level that aeon really tests at     .019    .028    .032    .042
# For four methods the second is the example of the paper that the function's page cites (q = 2.569, CD = 1.25).
# Average ranks 1.93, 2, 2.86, 3.21 over 14 datasets: scikit-posthocs gives p = .042 for first against last, aeon
# joins all four in one clique.
#
# Why it matters: diagrams of the same scores by aeon and by another package differ in what is joined by a bar, and
# a difference that the named level finds is reported as none, most for few methods.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q aeon==1.6.0 scikit-posthocs==0.17.1 scipy==1.17.1 numpy==2.3.5 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import numpy as np
import pandas as pd
import scikit_posthocs
from aeon.benchmarking.stats import nemenyi_test
from scipy.stats import rankdata, studentized_range

print(*(f"{x} {version(x)}" for x in ("aeon", "scikit-posthocs", "scipy", "numpy")))
ALPHA, DATASETS = 0.05, 14


def critical(k):
    """The least difference of two average ranks that aeon calls significant."""
    low, high = 0.0, float(k)
    for _ in range(50):
        middle = (low + high) / 2
        ranks = np.array([1.0] * (k - 1) + [1.0 + middle])
        low, high = (middle, high) if nemenyi_test(ranks, DATASETS, ALPHA)[0, -1] else (low, middle)
    return high


def by_scipy(k):
    scale = np.sqrt(k * (k + 1) / (6 * DATASETS))
    return studentized_range.ppf(1 - ALPHA, k, np.inf) / np.sqrt(2) * scale


same = True
for k in (2, 3, 4, 10):
    found, right, next_one = critical(k), by_scipy(k), studentized_range.ppf(1 - ALPHA, k + 1, np.inf)
    scale = np.sqrt(k * (k + 1) / (6 * DATASETS))
    level = studentized_range.sf(found / scale * np.sqrt(2), k, np.inf)
    print(f"{k} methods: aeon {found:.3f}, right {right:.3f}, level {level:.3f}")
    same &= abs(found / scale * np.sqrt(2) - next_one) < 0.003 and level < 0.045

# 14 datasets: the scores of four methods whose average ranks lie between the two critical differences apart
ways = [[1, 2, 3, 4]] * 6 + [[2, 1, 3, 4]] * 2 + [[2, 1, 4, 3]] * 2 + [[4, 3, 1, 2]] * 2
ways += [[2, 4, 3, 1], [4, 1, 3, 2]]
scores = -np.array(ways, float)
ranks = rankdata(-scores, axis=1).mean(0)
order = np.argsort(ranks)
cliques = nemenyi_test(ranks[order], len(scores), ALPHA)
p = scikit_posthocs.posthoc_nemenyi_friedman(pd.DataFrame(scores)).to_numpy()[order][:, order]
print("average ranks", ranks[order].round(3), "p of first against last", p[0, -1].round(4))
print("aeon joins first and last:", bool(cliques[0, -1]))
sys.exit(0 if same and cliques[0].all() and p[0, -1] < ALPHA else 1)
END
