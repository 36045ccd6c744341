#!/usr/bin/env bash
# torch 2.13.0, on a CPU: the L1 norm of a large float32 vector is far too small, and clipping by it with it.
#
# vector_norm with ord=1, and x.norm(1), torch.dist(..., p=1) and clip_grad_norm_ with norm_type=1 by it, add one
# number after another in float32, until these are too small beside the sum to change it. Of standard normal
# vectors on one thread, relative error:
#     entries                11 million   25 million   86 million   (ResNet-18, ResNet-50, ViT-B)
#     x.norm(1)              -.7 %        -4.9 %       -41 %
#     x.abs().sum()          < 1e-6       < 1e-6       < 1e-6
#     numpy.linalg.norm      < 1e-6       < 1e-6       < 1e-6
#     x.norm()               -.04 %       -.14 %       -.9 %
# Of two threads each has a sum of its own: -11 % in place of -41 %, so that the number depends on the machine.
# Of a matrix with a task a column, norm(dim=0) is 2.9 % too small for 25 million rows, where the norms of
# the transposed matrix's rows are right to .14 %. Clipped to an L1 norm of 1, the gradient of 86 million
# entries has a norm of 1.69. No call warns of it.
#
# Why it matters: an L1 norm is what a penalty of sparsity, a comparison of task vectors and a clip by norm_type=1
# read. The larger the network, the smaller the number: a table over sizes shows a trend that is none, a penalty
# weighs less, and clipped steps are longer than was said.
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

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

print("torch", torch.__version__, "numpy", np.__version__)
torch.manual_seed(0)
every = torch.randn(86_000_000)


def exact(x, power):
    """The norm by sums in float64."""
    return sum(part.double().abs().pow(power).sum().item() for part in x.split(2**22)) ** (1 / power)


errors = {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for size in (11_000_000, 25_000_000, 86_000_000):
        x = every[:size]
        one, two = exact(x, 1), exact(x, 2)
        torch.set_num_threads(1)
        errors[size] = {
            "norm(1)": x.norm(1).item() / one - 1,
            "vector_norm": torch.linalg.vector_norm(x, 1).item() / one - 1,
            "dist": torch.dist(x, torch.zeros(()), p=1).item() / one - 1,
            "abs().sum()": x.abs().sum().item() / one - 1,
            "numpy": float(np.linalg.norm(x.numpy(), 1)) / one - 1,
            "norm()": x.norm().item() / two - 1,
        }
        torch.set_num_threads(2)
        errors[size]["norm(1), two threads"] = x.norm(1).item() / one - 1
        print(size, {name: f"{100 * error:.5f} %" for name, error in errors[size].items()})
    torch.set_num_threads(1)
    tasks = every[:75_000_000].reshape(-1, 3)
    right = torch.tensor([exact(tasks[:, i], 2) for i in range(3)])
    column = (tasks.norm(dim=0) / right - 1).abs().max().item()
    row = (tasks.T.contiguous().norm(dim=1) / right - 1).abs().max().item()
    print(f"tasks by column, norm(dim=0) off by {100 * column:.2f} %, by row {100 * row:.2f} %")
    leaf = torch.nn.Parameter(torch.zeros_like(every))
    leaf.grad = every.clone()
    clip_grad_norm_([leaf], 1.0, norm_type=1)
    left = exact(leaf.grad, 1)
    print("clipped to an L1 norm of 1:", left)
told = [str(x.message) for x in told]
print("warnings", told)
small, middle, large = errors.values()
seen = {
    "the larger, the smaller": large["norm(1)"] < -0.3 < middle["norm(1)"] < -0.03 < small["norm(1)"] < -0.003,
    "by every name": all(abs(e[n] - e["norm(1)"]) < 0.01 for e in errors.values() for n in ("vector_norm", "dist")),
    "a sum is right": all(abs(e[name]) < 1e-6 for e in errors.values() for name in ("abs().sum()", "numpy")),
    "threads matter": -0.2 < large["norm(1), two threads"] < -0.05,
    "columns": column > 0.02 and row < 0.003,
    "clipping": left > 1.4,
    "no warning": not told,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
