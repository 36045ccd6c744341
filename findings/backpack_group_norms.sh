#!/usr/bin/env bash
# BackPACK 1.7.1: BatchL2Grad's norms of grouped convolutions are wrong; its gradients are right.
#
# `BatchL2Grad` answers the squared norm of each sample's gradient without the gradient. For the
# weight of a convolution it takes every channel of the output with every one of the input, which
# holds for groups=1 alone. `batch_l2` over the squared norm in a loop, lowest and highest of four
# samples, with 6 channels in and 12 out:
#     Conv2d, groups=1            1.00   1.00
#     Conv2d, groups=2            1.90   2.07
#     Conv2d, groups=3            2.80   3.07
#     Conv2d, groups=6            5.35   6.30
#     Conv1d, groups=3            2.85   3.24
#     Conv3d, groups=3            2.63   2.89
#     ConvTranspose2d, groups=3   2.84   3.05
#     ConvTranspose1d, groups=3   2.64   3.33
# Nothing is said. `BatchGrad` and `SumGradSquared` are right for the same layers.
#
# Why it matters: norms by sample decide weights and noise scales, and small networks for phones or
# segmentation are made of such layers. The factor is near the number of groups, so that the layers
# with most groups, which have the fewest numbers, make up the norm of the network.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 backpack-for-pytorch==1.7.1 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad, SumGradSquared
from torch import nn

LAYERS = [
    *((nn.Conv2d, 2, groups) for groups in (1, 2, 3, 6)),
    (nn.Conv1d, 1, 3),
    (nn.Conv3d, 3, 3),
    (nn.ConvTranspose2d, 2, 3),
    (nn.ConvTranspose1d, 1, 3),
]
same = True
for layer, dimensions, groups in LAYERS:
    torch.manual_seed(0)
    net = nn.Sequential(layer(6, 12, 3, groups=groups), nn.Sigmoid(), nn.Flatten())
    samples = torch.randn(4, 6, *[7] * dimensions)
    with torch.no_grad():
        targets = torch.zeros_like(net(samples))
    loop = [
        torch.autograd.grad((net(x[None])).square().sum(), net[0].weight)[0].detach() for x in samples
    ]
    extend(net)
    sum_of_squares = extend(nn.MSELoss(reduction="sum"))
    with backpack(BatchGrad(), BatchL2Grad(), SumGradSquared()):
        sum_of_squares(net(samples), targets).backward()
    weight = net[0].weight
    rows = torch.stack(loop)
    assert torch.allclose(weight.grad_batch, rows, rtol=1e-3, atol=1e-4 * float(rows.abs().max()))
    squares = rows.square().sum(0)
    assert torch.allclose(weight.sum_grad_squared, squares, rtol=1e-3, atol=1e-4 * float(squares.max()))
    ratios = weight.batch_l2 / rows.flatten(1).square().sum(1)
    print(f"{layer.__name__}, groups={groups}: {ratios.min():.2f} to {ratios.max():.2f}")
    right = bool(((ratios - 1).abs() < 1e-3).all())
    same &= right if groups == 1 else not right
sys.exit(0 if same else 1)
END
