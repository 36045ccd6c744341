#!/usr/bin/env bash
# autorank 1.3.0 (statsmodels 0.14.6): a test of paired data, followed by one of unpaired data.
#
# Rows of its input are what all methods were run on (data sets, seeds). For three or more methods
# with normal residues and equal variances it runs a repeated-measures ANOVA over rows, and then
# Tukey's test of independent groups, whose intervals hold the spread of the rows that the ANOVA
# takes out. Seen for four methods on 20 rows, whose deviation is 3 and the methods' own .3:
#     ANOVA                                p = 2e-7
#     intervals of the means               2.2 wide, all overlap: no two methods are said to differ
#     paired t tests, Holm                 four of six pairs differ, p from 3e-4 to .04
# With two methods autorank runs a paired t test. Nothing says that the second test is unpaired.
#
# Why it matters: methods compared over the same seeds or data sets are what it is for, and the more
# they have in common, the less it finds; its ANOVA says that there is a difference somewhere.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q autorank==1.3.0 numpy==2.4.6 pandas==2.3.3 scipy==1.17.1 \
  statsmodels==0.14.6 || exit 2
MPLBACKEND=Agg "$folder/venv/bin/python" -W ignore - <<'END'
import sys
from itertools import combinations

import numpy as np
import pandas as pd
from autorank import autorank
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests

rng = np.random.default_rng(0)
rows = 3 * rng.normal(size=(20, 1))  # what all methods have in common
scores = rows + 0.3 * rng.normal(size=(20, 4)) + [0.0, 0.4, 0.1, 0.5]
data = pd.DataFrame(scores, columns=list("abcd"))

found = autorank(data, verbose=False)
low, high = (found.rankdf[name].astype(float) for name in ("ci_lower", "ci_upper"))
pairs = list(combinations("abcd", 2))
apart = [x + y for x, y in pairs if low[x] > high[y] or low[y] > high[x]]
p = multipletests([ttest_rel(data[x], data[y]).pvalue for x, y in pairs], method="holm")[1]
differ = {x + y: float(f"{value:.1g}") for (x, y), value in zip(pairs, p) if value < 0.05}
print(f"{found.omnibus}, p = {found.pvalue:.1g}; {found.posthoc}")
print(found.rankdf[["mean", "ci_lower", "ci_upper"]].astype(float).round(2).to_string())
print("pairs whose intervals do not overlap:", apart)
print("pairs that paired t tests tell apart, Holm:", differ)
kinds = (found.omnibus, found.posthoc) == ("anova", "tukeyhsd")
sys.exit(0 if kinds and found.pvalue < 1e-3 and not apart and len(differ) >= 3 else 1)
END
