#!/usr/bin/env bash
# torch 2.13.0: fused optimizers on a CPU read .grad as if it were laid out as the parameter is.
#
# A step of torch.optim depends on the numbers of .grad, not on their order in memory. Seen on a CPU
# for a contiguous weight [4, 5] of einsum("bi,oi->bo", x, weight), whose gradient by
# torch.autograd.grad has the strides (1, 4), against the same gradient made contiguous:
#     optimizer      default    fused=True
#     SGD            equal      differs
#     Adam           equal      differs
#     AdamW          equal      differs
#     Adagrad        equal      differs
# The fused step pairs entries by their place in memory: it is the step of another gradient, with
# the same numbers in other places. There is no error and no warning. On CUDA the fused kernels
# refuse such a gradient.
#
# Why it matters: loss.backward() lays gradients out as their parameters. Multi-task methods write
# .grad themselves, often from torch.autograd.grad, whose answers for einsum, and for a convolution
# of an input in channels_last, have other strides. With fused=True such a network trains on
# shuffled gradients.
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

torch.manual_seed(0)
x = torch.randn(7, 5)
weight = torch.randn(4, 5, requires_grad=True)
loss = torch.einsum("bi,oi->bo", x, weight).sin().sum()
(turned,) = torch.autograd.grad(loss, weight)
print("strides of the weight", weight.stride(), "of its gradient", turned.stride())
same = turned.stride() == (1, 4)
for name in ("SGD", "Adam", "AdamW", "Adagrad"):
    found = []
    for fused in (None, True):
        ends = []
        for gradient in (turned, turned.contiguous()):
            leaf = torch.zeros(4, 5, requires_grad=True)
            leaf.grad = gradient.clone(memory_format=torch.preserve_format)
            getattr(torch.optim, name)([leaf], lr=0.1, fused=fused).step()
            ends.append(leaf.detach())
        found.append(torch.equal(*ends))
        if fused:  # the same gradient, read in the order of memory
            shuffled = turned.mT.reshape(4, 5)
            leaf = torch.zeros(4, 5, requires_grad=True)
            leaf.grad = shuffled.clone()
            getattr(torch.optim, name)([leaf], lr=0.1).step()
            shuffle = torch.allclose(leaf.detach(), ends[0])
    print(f"{name:8}", *("equal" if x else "differs" for x in found), "shuffled:", shuffle)
    same &= found == [True, False] and shuffle
sys.exit(0 if same else 1)
END
