#!/usr/bin/env bash
# deepsig 1.2.8 with scipy 1.17.1: its correction for several comparisons vanishes as they become more.
#
# ASO (almost stochastic order) compares the scores of two methods over seeds and answers eps_min, an
# upper confidence bound: the first is better where it is below 0.5, or, as the package advises, 0.2.
# For m > 1 comparisons Bonferroni's bound has the level 1 - 0.05/m. The package's has 0.95 + 0.05/m,
# the same for m = 2 alone. aso(a, b, num_comparisons=m, seed=1) for two normal samples of 20 seeds,
# beside the bound at Bonferroni's level, which follows from the answers for m = 1 and m = 2, as the
# bound is linear in the normal quantile of its level:
#     m = 1:  0.109, Bonferroni 0.109
#     m = 2:  0.130, Bonferroni 0.130
#     m = 3:  0.122, Bonferroni 0.141
#     m = 10: 0.112, Bonferroni 0.171
#     m = 45: 0.110, Bonferroni 0.203
# multi_aso, which corrects by default, has m = 1 for two methods, and a level of 0.95 + 0.05 = 1. Of
# these two it answers 1 in both directions; where one method is better at every quantile it answers
# NaN, and 0 with use_bonferroni=False. No error is raised.
#
# Why it matters: for ten methods, 45 comparisons, the bound is nearly the uncorrected one and below
# 0.2, and a table says that one method dominates where the correction would not let it. For two
# methods no difference is ever found.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q deepsig==1.2.8 scipy==1.17.1 numpy==2.4.6 pandas==3.1.1 \
  joblib==1.6.0 || exit 2
"$folder/venv/bin/python" - <<'END'
import sys
import warnings

import numpy as np
from deepsig import aso, multi_aso
from scipy.stats import norm

warnings.simplefilter("ignore")
draw = np.random.default_rng(4)
a, b = draw.normal(0.0, 1.0, 20), draw.normal(-0.6, 1.0, 20)
options = {"seed": 1, "show_progress": False}
found = {m: float(aso(a, b, num_comparisons=m, **options)) for m in (1, 2, 3, 10, 45)}
quantile = {m: float(norm.isf(0.05 / m)) for m in found}
slope = (found[2] - found[1]) / (quantile[2] - quantile[1])
right = {m: found[1] + slope * (quantile[m] - quantile[1]) for m in found}
for m in found:
    print(f"m = {m}: {found[m]:.3f}, Bonferroni {right[m]:.3f}")
both = multi_aso(np.stack([a, b]), **options)
far = multi_aso(np.stack([a, b - 5.0]), **options)
plain = multi_aso(np.stack([a, b - 5.0]), use_bonferroni=False, **options)
print("two methods:", both.tolist(), far.tolist(), "uncorrected:", plain.tolist())
holds = slope > 0 and found[45] - found[1] < 0.1 * (right[45] - right[1])
holds &= found[1] < found[45] < found[10] < found[3] < found[2]
holds &= both[0, 1] == both[1, 0] == 1.0 and bool(np.isnan(far[0, 1])) and plain[0, 1] == 0.0
sys.exit(0 if holds else 1)
END
