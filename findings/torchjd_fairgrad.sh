#!/usr/bin/env bash
# TorchJD 0.18.0: FairGrad of short gradients is the plain mean, without a word.
#
# FairGrad (Ban & Ji 2024) takes the weights w > 0 with (G w)_t · w_t^(1/α) = 1 for every task,
# where G is the Gramian. The direction does not depend on a factor that all gradients share.
# TorchJD hands the equation to SciPy's least_squares, which stops where the objective's gradient is
# below 1e-8. That gradient is in the units of G, so it is small wherever gradients are short.
# Seen at α = 1, float64, for J = s · [[3, 0, 1], [-2, 3, 0], [1, -1, 2]], the smallest left side of
# the equation, which has to be 1, and the weights in shares:
#     s = 1:     1.0000   0.26 0.38 0.36
#     s = 1e-2:  1.0000   0.26 0.38 0.36
#     s = 1e-3:  0.6475   0.29 0.37 0.34
#     s = 1e-4:  0.0097   0.33 0.34 0.33
#     s = 1e-5:  0.0001   0.33 0.33 0.33
# The same happens with α = 2 from s = 1e-4 on. No warning is given.
#
# Why it matters: gradients get short as training converges. From there on a run that is called
# FairGrad is a run of the mean loss, with a step that is far too short.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 scipy==1.17.1 torchjd==0.18.0 || exit 2
"$folder/venv/bin/python" - <<'END'
import sys
import warnings

import torch
from torchjd.aggregation import FairGrad

warnings.simplefilter("error")
J = torch.tensor([[3.0, 0.0, 1.0], [-2.0, 3.0, 0.0], [1.0, -1.0, 2.0]], dtype=torch.float64)
least, shares = {}, {}
for s in (1.0, 1e-2, 1e-3, 1e-4, 1e-5):
    G = s**2 * J @ J.mT
    w = FairGrad(1.0).gramian_weighting(G)
    least[s], shares[s] = float((G @ w * w).min()), w / w.sum()
    print(f"s = {s:g}: {least[s]:.4f}  ", *(f"{x:.2f}" for x in shares[s]))
right = all(abs(least[s] - 1) < 1e-3 for s in (1.0, 1e-2))
mean = all((shares[s] - 1 / 3).abs().max() < 0.01 for s in (1e-4, 1e-5))
sys.exit(0 if right and mean and least[1e-4] < 0.05 else 1)
END
