#!/usr/bin/env bash
# statsmodels 0.15.0: MixedLM says that it converged, with a standard error that is far too large.
#
# Two methods are run on the same eight seeds, y ~ method with a random intercept for each seed.
# In this balanced design REML and the paired t-test have the same standard error wherever the mean
# square between seeds is above that within them, and adding a number to both values of a seed
# changes neither. Seen, for the same eight differences and seeds ever farther apart (their standard
# deviation is the first number; the difference is 0.00775 each time):
#     0.85:  MixedLM 0.001308, paired 0.001306
#     85:    MixedLM 0.001625, paired 0.001306
#     849:   MixedLM 0.005706, paired 0.001306   (p = 0.17; it was 3e-9 in the first row)
#     8495:  MixedLM 0.055311, paired 0.001306   (p = 0.89)
# `converged` is True each time and no warning is given. fit(method="powell") gives 0.0013 in all
# four rows, to 1 %.
#
# Why it matters: a mixed model is the usual advice where several methods share seeds or data sets,
# and pairs help most where seeds or data sets are far apart, as losses of tasks in different units
# are. There the default optimiser hides a difference that the paired test shows.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q statsmodels==0.15.0 scipy==1.17.1 numpy==2.4.6 pandas==3.1.1 ||
    exit 2
"$folder/venv/bin/python" - <<'END'
import sys
import warnings

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

seeds = np.array([0.31, -0.52, 1.13, -0.94, 0.08, 0.71, -1.35, 0.44])
differences = np.array([0.011, 0.004, 0.009, 0.013, 0.002, 0.010, 0.007, 0.006])
paired = differences.std(ddof=1) / np.sqrt(8)
ratios, others = [], []
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for scale in (1, 100, 1000, 10000):
        first = seeds * scale
        table = pd.DataFrame(
            {
                "y": np.concatenate([first, first + differences]),
                "method": np.repeat([0.0, 1.0], 8),
                "seed": np.tile(np.arange(8), 2),
            }
        )
        model = smf.mixedlm("y ~ method", table, groups="seed")
        fit, powell = model.fit(), model.fit(method="powell")
        ratios.append(fit.bse["method"] / paired)
        others.append(powell.bse["method"] / paired)
        print(
            f"seeds' deviation {first.std(ddof=1):.2f}: difference {fit.params['method']:.5f}, "
            f"error {fit.bse['method']:.6f}, paired {paired:.6f}, p {fit.pvalues['method']:.1e}, "
            f"converged {fit.converged}, powell {powell.bse['method']:.6f}"
        )
        if not fit.converged:
            sys.exit(1)
print("warnings:", len(told))
holds = abs(ratios[0] - 1) < 0.01 and ratios[1] > 1.1 and ratios[2] > 3 and ratios[3] > 20
sys.exit(0 if holds and not told and max(abs(x - 1) for x in others) < 0.02 else 1)
END
