#!/usr/bin/env bash
# conflictfree 0.1.8: where no common descent is left, ConFIG answers a long step of rounding.
#
# ConFIG (Liu et al. 2024) takes the direction U⁺1, U the unit gradients in rows, and the sum of the
# gradients' projections on it for the length. Three unit gradients that add up to 0 have U⁺1 = 0, so
# d = 0. The operator gets 1e-16 instead of 0 from torch.linalg.lstsq, and brings it to unit length.
# Seen with its defaults for the rows of k · [[2, -1, -1], [-1, 2, -1], [-1, -1, 2]]:
#     k = 1, 1, 1:  d = 0
#     k = 1, 2, 3:  ‖d‖ = 3.54 in float64, rates g·d of -3.9, -9.6, 26
#                   ‖d‖ = 3.67 in float32, rates of -9.0, 9.0, 13.5, in another direction
#     k = 1, 1, 2:  ‖d‖ = 1.22, rates of -3.0, 1.5, 3.0
# The shortest gradient has the length 2.45.
#
# Why it matters: "no rate is negative" is what the method is for. Near the end of training, where
# gradients oppose one another, the step does not shrink but is as long as a gradient, raises
# losses, and is another one on another processor.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 conflictfree==0.1.8 || exit 2
"$folder/venv/bin/python" - <<'END'
import sys

import torch
from conflictfree.grad_operator import ConFIGOperator

rows = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0]])
found = {}
for kind in (torch.float64, torch.float32):
    torch.set_default_dtype(kind)
    for k in ((1.0, 1.0, 1.0), (1.0, 2.0, 3.0), (1.0, 1.0, 2.0)):
        J = rows.to(kind) * torch.tensor(k)[:, None]
        d = ConFIGOperator().calculate_gradient(J)
        found[kind, k] = float(d.norm()), float((J @ d).min())
        print(str(kind)[6:], k, f"length {d.norm():.2f}, rates", *(f"{x:.1f}" for x in J @ d))
long = [x for (_, k), x in found.items() if k != (1.0, 1.0, 1.0)]
zero = found[torch.float64, (1.0, 1.0, 1.0)][0] < 1e-9
sys.exit(0 if zero and all(size > 1 and least < -1 for size, least in long) else 1)
END
