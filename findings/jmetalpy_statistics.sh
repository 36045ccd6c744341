#!/usr/bin/env bash
# jmetalpy 1.9.0: its sign test leaves out the result that was seen, its Hochberg procedure has a maximum for a minimum.
#
# sign_test doubles the probability of more wins than were seen, where a p value is that of as many or more, and
# counts ties among the trials. Hochberg's adjusted p value of a comparison is the least of (k - j) p_j over all
# that are not smaller; friedman_ph_test(apv_procedure="Hochberg") has the largest. Seen:
#     wins of problems                   5 of 5    8 of 8    7 of 8    9 of 10    15 of 20    4 of 5, 3 ties besides
#     sign_test                          0         0         .008      .002       .012        .727
#     scipy's binomtest                  .062      .008      .070      .021       .041        .375
#     control against four others, p     .0012   .0098   .0933   .7963   (12 problems, Friedman's ranks)
#     Hochberg                           .7963   .7963   .7963   .7963
#     statsmodels' simes-hochberg        .0050   .0295   .1866   .7963
#     Holm, jmetalpy and statsmodels     .0050   .0295   .1866   .7963
# NemenyiCD takes the critical value of k (N - 1) degrees of freedom, where the test on ranks has infinitely many:
#     methods, problems                  2, 3      2, 5      3, 5      4, 14      10, 30
#     NemenyiCD                          1.60      1.03      1.69      1.30       2.49
#     by scipy's studentized_range       1.13      .88       1.48      1.25       2.47
# No call warns of it.
#
# Why it matters: by its sign test two methods over five problems differ at any level, by Hochberg's one bad
# comparison hides all good ones, and its critical difference joins what the test parts, most for few problems.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q jmetalpy==1.9.0 statsmodels==0.14.6 scipy==1.17.1 numpy==2.3.5 pandas==2.3.3 || exit 2
cd "$folder"
MPLBACKEND=agg "$folder/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import numpy as np
from jmetal.lab.statistical_test.critical_distance import NemenyiCD
from jmetal.lab.statistical_test.functions import friedman_ph_test, sign_test
from scipy.stats import binomtest, studentized_range
from statsmodels.stats.multitest import multipletests

print(*(f"{x} {version(x)}" for x in ("jmetalpy", "statsmodels", "scipy", "numpy")))
seen = {}
for wins, losses, ties in ((5, 0, 0), (8, 0, 0), (7, 1, 0), (9, 1, 0), (15, 5, 0), (4, 1, 3)):
    first = np.array([0.0] * wins + [2.0] * losses + [1.0] * ties)
    found = sign_test(np.stack([first, np.ones(len(first))], 1)).loc["p-value", "Results"]
    right = binomtest(wins, wins + losses).pvalue
    print(f"sign test, {wins} wins, {losses} losses, {ties} ties: {found:.4f}, binomtest {right:.4f}")
    own = 2 * binomtest(wins + 1, wins + losses, alternative="greater").pvalue if losses else 0
    seen[wins, losses, ties] = right > 0.005 and (found > right if ties else np.isclose(found, own))
    seen[wins, losses, ties] &= bool(ties) or found < right / 2

rng = np.random.default_rng(1)
scores = rng.normal(size=(12, 5)) + [0.0, 1.6, 1.2, 0.8, 0.1]
p = friedman_ph_test(scores, control=0)[1].to_numpy()[0, 1:]
order = np.argsort(p)
for name, other in (("Hochberg", "simes-hochberg"), ("Holm", "holm")):
    found = friedman_ph_test(scores, control=0, apv_procedure=name)[2].to_numpy()[:, 0]
    right = multipletests(p, method=other)[1][order]
    print(name, "p", p[order].round(4), "jmetalpy", found.round(4), "statsmodels", right.round(4))
    if name == "Holm":
        seen[name] = np.allclose(found, right)
    else:
        seen[name] = np.allclose(found, p.max()) and right[0] < 0.01 and found[0] > 0.5

for k, n in ((2, 3), (2, 5), (3, 5), (4, 14), (10, 30)):
    scale = np.sqrt(k * (k + 1) / (6 * n))
    found, right = NemenyiCD(0.05, k, n), studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) * scale
    own = studentized_range.ppf(0.95, k, k * (n - 1)) / np.sqrt(2) * scale
    print(f"critical difference of {k} methods, {n} problems: {found:.3f}, right {right:.3f}")
    seen["CD", k, n] = abs(found - own) < 0.01 and found > 1.005 * right
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
