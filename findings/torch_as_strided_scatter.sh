#!/usr/bin/env bash
# torch 2.13.0: as_strided_scatter gives its gradient to the entries that it has overwritten.
#
# y = as_strided_scatter(x, s, size, stride, offset) is a copy of x with the entries of one view
# replaced by s. So dy/dx is 1 where x was kept, and 0 where s stands.
# Seen on a CPU for a contiguous x of eight entries, the gradient of y.sum():
#     size 4, stride 2, offset 0:  kept 0 1 0 1 0 1 0 1, gradient 1 0 1 0 1 0 1 0
#     size 3, stride 1, offset 2:  kept 1 1 0 0 0 1 1 1, gradient 0 0 1 1 1 0 0 0
# It is the complement in each case. The gradient of s is right. select_scatter and slice_scatter,
# which do the same for simpler views, are right. There is no warning.
#
# Why it matters: whoever writes a value into a strided view without an in-place operation (a
# parameter with fixed entries, say) trains the entries that have no influence, and never those
# that have.
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

inverted, rest = True, True
for size, stride, offset in (((4,), (2,), 0), ((3,), (1,), 2), ((2, 2), (4, 1), 0)):
    x = torch.arange(1.0, 9.0, requires_grad=True)
    s = torch.zeros(size, requires_grad=True)
    y = torch.as_strided_scatter(x, s, size, stride, offset)
    kept = (y != 0).float()
    by_x, by_s = torch.autograd.grad(y.sum(), (x, s))
    print(size, stride, offset, "kept", *kept.int().tolist(), "gradient", *by_x.int().tolist())
    inverted &= bool((by_x == 1 - kept).all())
    rest &= bool((by_s == 1).all())
x = torch.arange(1.0, 9.0, requires_grad=True)
y = torch.slice_scatter(x, torch.zeros(4), 0, 0, 8, 2)
rest &= bool((torch.autograd.grad(y.sum(), x)[0] == (y != 0)).all())
sys.exit(0 if inverted and rest else 1)
END
