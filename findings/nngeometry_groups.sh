#!/usr/bin/env bash
# NNGeometry 0.4: the Jacobian of a grouped convolution is that of a dense one, and a parameter that
# stands beside the layers is left out. Neither says anything.
#
# A Conv1d or Conv2d is described by its channels and its kernel, without `groups`: its columns are
# those of a kernel between all channels, and those between groups, which are no parameters, are not
# zero. An nn.Parameter of a module with children has no columns at all (a leaf module with unknown
# parameters is refused). Seen for networks of two outputs (five in the last row) and three samples,
# the columns, the parameters, and the largest error of the Gramian J Jᵀ over its largest entry,
# beside a loop:
#                                              columns  parameters  error
#     Conv2d(4, 4, 3), Linear                      278         278    .00
#     Conv2d(4, 4, 3, groups=2), Linear            278         206    .19
#     Conv2d(4, 4, 3, groups=4), Linear            278         170    .55
#     Conv1d(4, 4, 3, groups=2), Linear            110          86    .14
#     a scale, nn.Parameter(5), Linear(5, 5)        30          35    .07
# A grouped ConvTranspose2d raises a shape error.
#
# Why it matters: depthwise convolutions are in most small image networks. Tangent kernels, Fisher
# matrices and the Gramians of tasks made of such Jacobians are of another network.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 nngeometry==0.4 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import torch
from nngeometry.jacobian import Jacobian
from torch import nn


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(5, 5), nn.Parameter(torch.rand(5) + 0.5)

    def forward(self, x):
        return self.layer(x * self.scale).tanh()


def convolved(kind, size, groups):
    return nn.Sequential(kind(4, 4, 3, groups=groups), nn.Tanh(), nn.Flatten(), nn.Linear(size, 2))


def loop(net, x):
    """Gradients of every output for every sample, `[output, sample, parameter]`."""
    leaves = [*net.parameters()]
    rows = [
        [torch.cat([g.flatten() for g in torch.autograd.grad(net(s[None])[0, i], leaves)]) for s in x]
        for i in range(net(x).shape[1])
    ]
    return torch.stack([torch.stack(row) for row in rows])


def gramian(jacobian):
    return torch.einsum("aip,bjp->aibj", jacobian, jacobian)


torch.manual_seed(0)
images, signals, rows = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 9), torch.randn(3, 5)
cases = {
    "Conv2d": (convolved(nn.Conv2d, 64, 1), images, True),
    "Conv2d, 2 groups": (convolved(nn.Conv2d, 64, 2), images, False),
    "Conv2d, 4 groups": (convolved(nn.Conv2d, 64, 4), images, False),
    "Conv1d, 2 groups": (convolved(nn.Conv1d, 28, 2), signals, False),
    "a scale beside a layer": (Scaled(), rows, False),
}
same = True
for name, (net, x, right) in cases.items():
    net, x = net.double(), x.double()
    found = Jacobian(net, (x, torch.zeros(3)), function=lambda *batch, net=net: net(batch[0])).to_torch()
    wanted = loop(net, x)
    error = float((gramian(found) - gramian(wanted)).abs().max() / gramian(wanted).abs().max())
    count = sum(p.numel() for p in net.parameters())
    print(f"{name}: {found.shape[-1]} columns, {count} parameters, error {error:.2f}")
    same &= (found.shape[-1] == count and error < 1e-12) if right else (found.shape[-1] != count and error > 0.01)
sys.exit(0 if same else 1)
END
