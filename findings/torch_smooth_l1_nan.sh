#!/usr/bin/env bash
# torch 2.13.0: the gradient of smooth_l1_loss at a NaN is NaN, but zero under vmap and compiled.
#
# The backward of torch.nn.functional.smooth_l1_loss is a kernel in eager mode, and a formula in
# Python where torch.func.vmap batches it or torch.compile traces it. The formula ends in sign(x),
# which is 0 for a NaN. Seen for a prediction of three numbers, of which the second target is NaN:
#     loss, in all ways:                          NaN
#     backward(), torch.func.grad:                NaN for the second number
#     vmap(grad) over the numbers, func.jacrev:   0 for it, and no warning
#     compiled (inductor's decompositions):       0 for it, and no warning
# The other two numbers have the same gradient in all ways. huber_loss, which is the same function
# at beta = 1, has NaN in all of them. l1_loss has 0 in all of them, by the same sign.
#
# Why it matters: smooth L1 is the loss of depths, boxes and other regressions of multi-task
# networks, and vmap(grad) is how gradients by task and by sample are made in one pass. Two programs
# that should be the same differ: a loop stops at a missing label that is NaN, or makes all
# parameters NaN; the batched or compiled one trains on, without that sample and without a word. A
# check that looks for bad samples or tasks by their gradients, as gradient scalers and clipping by
# norm do, finds none. What looks at the loss finds it in all ways.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" - <<'END'
import sys

import torch
from torch.func import grad, jacrev, vmap
from torch.nn import functional

x = torch.tensor([0.5, 0.25, 3.0])
target = torch.tensor([0.0, float("nan"), 0.0])
# the decompositions of torch.compile's default backend, without its C++ compiler
BACKEND = "aot_eager_decomp_partition"


def by_backward(loss):
    leaf = x.clone().requires_grad_()
    loss(leaf, target).backward()
    return leaf.grad


def ways(name, **options):
    def loss(x, target):
        return getattr(functional, name)(x, target, reduction="sum", **options)

    def entries(x):
        return getattr(functional, name)(x, target, reduction="none", **options)

    return {
        "backward": by_backward(loss),
        "grad": grad(loss)(x, target),
        "vmap(grad)": vmap(grad(loss))(x, target),
        "jacrev": jacrev(entries)(x).diagonal(),
        "compiled": by_backward(torch.compile(loss, backend=BACKEND)),
    }


found = {name: ways(name) for name in ("smooth_l1_loss", "huber_loss", "l1_loss")}
for name, each in found.items():
    for way, gradient in each.items():
        print(f"{name}, {way}: {gradient.tolist()}")
of = {name: {way: g[1].item() for way, g in each.items()} for name, each in found.items()}
smooth, lost = of["smooth_l1_loss"], ("vmap(grad)", "jacrev", "compiled")
others = [torch.stack([g[[0, 2]] for g in each.values()]) for each in found.values()]
seen = {
    "smooth L1, NaN in a loop": all(smooth[way] != smooth[way] for way in ("backward", "grad")),
    "smooth L1, 0 batched or compiled": all(smooth[way] == 0 for way in lost),
    "Huber, NaN in all ways": all(value != value for value in of["huber_loss"].values()),
    "L1, 0 in all ways": all(value == 0 for value in of["l1_loss"].values()),
    "the other numbers alike": all(torch.equal(x, x[:1].expand_as(x)) for x in others),
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
