#!/usr/bin/env bash
# libmoon 0.2.1: its Tchebycheff scalarizations are other functions than their papers'.
#
# soft_tche should be μ log Σ exp(w (f - z) / μ), tche the largest w (f - z). Seen for f = (1, 2),
# w = (.5, .5), μ = .1, z = 0:
#     soft_tche, torch                      1.0007, its gradient (.003, .497)     right
#     soft_tche, NumPy                      .27: the exponential is left out
#     soft_tche, torch, normalization=True  .0007: the maximum that was taken off is not added
#                                           again; its gradient (.003, -.003) raises the second loss
#     soft_tche, NumPy, normalization=True  NaN
#     tche, both                            2: the loss, without its weight and z
# tche calls (.9, 3.8) with w = (.8, .2) worse (3.8) than (1, 3.9) (1), which it dominates.
#
# Why it matters: these are what a Pareto front is learnt by. Whoever minimizes the first by SciPy,
# or the second by its option, minimizes something else, and values of tche cannot be compared.
# (It asks for torch 2.2.1; here without dependencies: the file takes torch and NumPy alone.)
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 scipy==1.17.1 setuptools || exit 2
"$folder/venv/bin/pip" install -q --no-deps --no-build-isolation libmoon==0.2.1 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import numpy as np
import torch
from libmoon.util_global.scalarization import soft_tche, tche
from scipy.special import logsumexp

f, w, mu = np.array([[1.0, 2.0]]), np.array([[0.5, 0.5]]), 0.1
right = mu * logsumexp(w * f / mu)
values, slopes = {}, {}
for option in (False, True):
    x = torch.tensor(f, requires_grad=True)
    found = soft_tche(x, torch.tensor(w), mu, normalization=option)
    found.sum().backward()
    values["torch", option] = float(found.detach())
    values["NumPy", option] = float(soft_tche(f, w, mu, normalization=option)[0])
    slopes[option] = x.grad[0].tolist()
print(f"soft_tche: right {right:.4f};", {k: round(x, 4) for k, x in values.items()})
print("its gradient:", {k: [round(y, 4) for y in x] for k, x in slopes.items()})

points, weights = np.array([[1.0, 3.9], [0.9, 3.8]]), np.array([[0.8, 0.2]] * 2)
largest, given = (weights * points).max(1), tche(points, weights)
print("tche of", points.tolist(), "right", largest.round(4), "libmoon", given)
same = abs(values["torch", False] - right) < 1e-6 and abs(values["NumPy", False] - right) > 0.5
same &= abs(values["torch", True] - right) > 0.5 and np.isnan(values["NumPy", True])
same &= slopes[True][1] < 0 < slopes[False][1]
sys.exit(0 if same and largest[1] < largest[0] and given[1] > given[0] else 1)
END
