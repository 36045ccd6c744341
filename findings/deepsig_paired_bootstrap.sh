#!/usr/bin/env bash
# deepsig 1.2.8 with numpy 2.4.6: its paired bootstrap test ignores how the scores are paired.
#
# bootstrap_test(a, b) is described as a paired test of scores of one length. It draws the scores of
# the two methods independently, so that no pair stays together. Twenty seeds whose scores have a
# standard deviation of 10, and a second method that is better by 1.0 on every seed, give or take 0.1:
#     deepsig bootstrap_test                   p = 0.368
#     the same with b in five other orders     p = 0.337 to 0.364
#     1,000 bootstrap draws of the differences p = 0
#     Student's t test, paired                 p = 8e-24
#     Student's t test, unpaired               p = 0.359
#     deepsig permutation_test                 p = 0.001
# The package's own permutation test keeps the pairs and gives the least p that it can.
#
# Why it matters: what seeds, folds or tasks share is most of the spread of their scores, which is why
# they are paired. This test answers as if nothing was shared, and finds no difference where one method
# is better on every seed.
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

import numpy as np
from deepsig import bootstrap_test, permutation_test
from scipy.stats import ttest_ind, ttest_rel

draw = np.random.default_rng(0)
b = draw.normal(70.0, 10.0, 20)
a = b + 1.0 + draw.normal(0.0, 0.1, 20)
found = float(bootstrap_test(a, b, seed=1))
orders = [float(bootstrap_test(a, draw.permutation(b), seed=1)) for _ in range(5)]
means = np.array([draw.choice(a - b, 20).mean() for _ in range(1000)])
by_pairs = float((means >= 2 * (a - b).mean()).mean())
paired = float(ttest_rel(a, b, alternative="greater").pvalue)
unpaired = float(ttest_ind(a, b, alternative="greater").pvalue)
swapped = float(permutation_test(a, b, seed=1))
print(f"bootstrap_test {found:.3f}; b in other orders {min(orders):.3f} to {max(orders):.3f}")
print(f"differences drawn {by_pairs:.3f}; t paired {paired:.0e}, unpaired {unpaired:.3f}")
print(f"permutation_test {swapped:.3f}; better on {int((a > b).sum())} of 20 seeds")
holds = bool((a > b).all()) and found > 0.2 and min(orders) > 0.2 and abs(found - unpaired) < 0.1
holds &= by_pairs == 0.0 and paired < 1e-15 and swapped < 0.002
sys.exit(0 if holds else 1)
END
