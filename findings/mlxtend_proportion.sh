#!/usr/bin/env bash
# mlxtend 0.25.0 (scipy 1.17.1): the p value of its difference of proportions depends on which model is named first.
#
# proportion_difference(acc_1, acc_2, n) is described as a test that two accuracies are equal, to reject where z is
# beyond 1.96. Its p is the lower tail alone, whichever accuracy is larger. Seen for .84 and .92 of 100 samples, the
# example of its page:
#     proportion_difference(.84, .92, 100)    z = -1.754    p = .040    the page calls it significant at .05
#     proportion_difference(.92, .84, 100)    z =  1.754    p = .960
#     two-sided p of this z                                  p = .079    not significant, nor is |z| over 1.96
#     proportion_difference(.95, .50, 100)    z =  8.250    p = 1
# Of 4,000 pairs of equal models, p < .05 for 1 in 10 with the worse one first, and never with the better one first.
#
# Why it matters: whoever puts the new method first never finds it better. Whoever puts the baseline first tests at
# twice the level, once the order is chosen by the result.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q mlxtend==0.25.0 scipy==1.17.1 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import mlxtend
import numpy as np
import scipy
from mlxtend.evaluate import proportion_difference
from scipy.stats import norm

print("mlxtend", mlxtend.__version__, "scipy", scipy.__version__, "numpy", np.__version__)
(z, p), (turned_z, turned) = (proportion_difference(*x, 100) for x in ((0.84, 0.92), (0.92, 0.84)))
two_sided = 2 * norm.sf(abs(z))
clear = proportion_difference(0.95, 0.50, 100)
print(f".84, .92: z {z:.3f}, p {p:.3f}; turned: z {turned_z:.3f}, p {turned:.3f}; two-sided {two_sided:.3f}")
print(f".95, .50: z {clear[0]:.2f}, p {clear[1]:.6f}")

draw = np.random.default_rng(0)
pairs = np.sort(draw.binomial(500, 0.8, (4000, 2)) / 500, 1)  # equal models: worse first
worse, better = (
    np.mean([proportion_difference(*x, 500)[1] < 0.05 for x in way]) for way in (pairs, pairs[:, ::-1])
)
print(f"equal models called different at .05: worse first {worse:.3f}, better first {better:.3f}")
same = p < 0.05 < two_sided and abs(z) < 1.96 and turned > 0.9 and clear[1] > 0.999
sys.exit(0 if same and worse > 0.07 and better == 0.0 else 1)
END
