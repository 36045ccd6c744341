#!/usr/bin/env bash
# pingouin 0.7.0: the power of a paired t test is that of another effect than the test's.
#
# ttest(x, y, paired=True) prints T, p and a power. T and p are those of the differences; the power
# is computed from Cohen's d over the deviation of x and y themselves, where that of the differences
# belongs. Seen for 10 pairs with a difference of .4 times the pairs' deviation:
#     correlation of x and y    p      pingouin's power    power of the t test, simulated
#                .9             .02    .21                 .71
#                .5             .24    .21                 .20
#                 0             .39    .21                 .12
#               -.5             .48    .21                 .10
#
# Why it matters: paired seeds are correlated, and whoever plans a study by this number runs several
# times the seeds that it needs; where pairs are negatively correlated, too few.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q pingouin==0.7.0 numpy==2.4.6 pandas==2.3.3 scipy==1.17.1 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import numpy as np
import pingouin
from scipy.stats import ttest_rel
from statsmodels.stats.power import TTestPower

rng = np.random.default_rng(0)
pairs, difference, studies = 10, 0.4, 20_000
found = []
for correlation in (0.9, 0.5, 0.0, -0.5):
    # the sample has this correlation, difference and deviation 1 exactly
    x, e = rng.normal(size=(2, pairs))
    x = (x - x.mean()) / x.std(ddof=1)
    e -= e.mean() + x * (e @ x) / (x @ x)
    y = correlation * x + np.sqrt(1 - correlation**2) * e / e.std(ddof=1)
    row = pingouin.ttest(x + difference, y, paired=True).iloc[0]
    covariance = [[1, correlation], [correlation, 1]]
    a, b = np.moveaxis(rng.multivariate_normal([difference, 0], covariance, (studies, pairs)), 2, 0)
    simulated = (ttest_rel(a, b, axis=1).pvalue < 0.05).mean()
    size = difference / np.sqrt(2 - 2 * correlation)  # of the differences
    formula = TTestPower().power(size, pairs, 0.05)
    assert abs(simulated - formula) < 0.02
    found.append((correlation, float(row["p_val"]), float(row["power"]), simulated))
for row in found:
    print("correlation {:4}: p {:.4f}, pingouin's power {:.2f}, simulated {:.2f}".format(*row))
same = found[0][2] < 0.5 * found[0][3] and found[-1][2] > found[-1][3] + 0.03
sys.exit(0 if same and abs(found[1][2] - found[1][3]) < 0.05 else 1)
END
