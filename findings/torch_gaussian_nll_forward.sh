#!/usr/bin/env bash
# torch 2.13.0: gaussian_nll_loss has two Hessians, one for each way of differentiating.
#
# torch.nn.functional.gaussian_nll_loss raises a variance below eps to eps. Its page says that this
# is ignored with respect to autograd: the gradient goes through to the variance. The clamp is made
# in place under torch.no_grad, which forward mode does not heed. Seen in float64, for residuals
# .5, 1, 2, variances 0, .005, 1 and eps = .01, the derivative by the variances:
#     grad:                               -1200, -4950, -1.5
#     jvp, one direction after another:       0,     0, -1.5
#     diagonal of jacrev(grad):          245000, 995000, 3.5
#     diagonal of torch.func.hessian:         0,     0,  3.5   (forward over reverse)
# No call warns of it. Central differences of the loss itself are 0 for the second variance.
#
# Why it matters: this is the loss of tasks that learn their own noise, and eps is there for
# variances that networks bring near zero. Curvature along a step, `hessian` and directional
# derivatives by jvp then describe another function than the one that training descends: the rate
# at which the loss is said to change by the first variance is 0 where its gradient is -1200.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" - <<'END'
import sys
import warnings

import torch
from torch.func import grad, hessian, jacrev, jvp
from torch.nn.functional import gaussian_nll_loss

EPS = 1e-2
residual = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
variance = torch.tensor([0.0, 0.005, 1.0], dtype=torch.float64)
directions = torch.eye(3, dtype=torch.float64)


def loss(variance):
    zeros = torch.zeros_like(residual)
    return gaussian_nll_loss(zeros, residual, variance, reduction="sum", eps=EPS)


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    reverse = grad(loss)(variance)
    forward = torch.stack([jvp(loss, (variance,), (each,))[1] for each in directions])
    over = jacrev(grad(loss))(variance).diagonal()
    mixed = hessian(loss)(variance).diagonal()
near = [(loss(variance + 1e-6 * d) - loss(variance - 1e-6 * d)) / 2e-6 for d in directions[1:]]
print("grad", reverse.tolist())
print("jvp", forward.tolist())
print("jacrev(grad)", over.tolist())
print("hessian", mixed.tolist())
told = [x for x in told if "torch.jit" not in str(x.message)]  # of torch's own old code
print("differences", [x.item() for x in near], "warnings", len(told))

floor = variance.clamp(min=EPS)  # the formulas of the loss, at the raised variance
first = 0.5 * (1 / floor - residual**2 / floor**2)
second = 0.5 * (2 * residual**2 / floor**3 - 1 / floor**2)
above = variance >= EPS
seen = {
    "grad ignores the clamp": torch.allclose(reverse, first),
    "jvp does not": torch.allclose(forward, first * above),
    "reverse over reverse ignores it": torch.allclose(over, second),
    "forward over reverse does not": torch.allclose(mixed, second * above),
    "the loss is flat there": abs(near[0].item()) < 1e-6,
    "no warning": not told,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
