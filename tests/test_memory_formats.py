"""Norms and convolutions in every memory format, in a process that a kernel of torch may end."""

import pytest

from tests.support import python

PROGRAM = """
import sys
import torch
from torch import nn
from torch.func import functional_call
import mtlfunc as mf
from tests.support.oracles import F64, rows_of

torch.manual_seed(0)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
LAYERS = {
    "group": (nn.GroupNorm(2, 4), 4), "groups": (nn.GroupNorm(1, 4), 5),
    "batch": (nn.BatchNorm2d(4), 4), "batches": (nn.BatchNorm3d(4), 5),
    "fixed": (nn.BatchNorm2d(4).eval(), 4), "instance": (nn.InstanceNorm2d(4, affine=True), 4),
    "layer": (nn.LayerNorm([4, 5, 5]), 4), "rms": (nn.RMSNorm([5]), 4),
    "conv": (nn.Conv2d(4, 4, 3), 4), "grouped": (nn.Conv2d(4, 4, 3, groups=4), 4),
    "transposed": (nn.ConvTranspose2d(4, 4, 3), 4), "conv 3d": (nn.Conv3d(4, 4, 3), 5),
    "transposed 3d": (nn.ConvTranspose3d(4, 4, 3), 5),
}
for name, (layer, ndim) in LAYERS.items():
    layer.to(F64)
    base = torch.randn(3, 4, 5, 5, 5, dtype=F64)[(...,) + (0,) * (5 - ndim)]
    moved = base.transpose(-1, -2).contiguous().transpose(-1, -2)
    for x in (base.contiguous(), base.to(memory_format=FORMATS[ndim]), moved):
        for leaf, value in mf.parameters(layer).items():
            before = torch.ones((), dtype=F64, requires_grad=True)  # not among the parameters
            params = {leaf: value.clone()}

            def each(p, x):
                return functional_call(layer, p, (x * before,)).sin().flatten(1)[:, :2]

            leaves = {leaf: params[leaf].clone().requires_grad_()}
            losses = each(leaves, x).mean(0)
            rows = rows_of(losses, [leaves[leaf], before])[:, :-1]
            for engine, form in (
                ("auto", tuple), ("rows", lambda v: v), ("layerwise", tuple),
                ("layerwise", lambda v: v),
            ):
                found = mf.task_gramian(
                    lambda p, x: form(each(p, x).mean(0)), params, x, engine=engine
                )[1]
                torch.testing.assert_close(found, rows @ rows.mT, msg=name)
            balancer = mf.Balancer(layer, mf.upgrad(), shared=leaf)
            z = layer(x * before).sin().flatten(1)[:, :2].mean(0)
            balancer.backward(tuple(z))
    print(name, "right")
x = torch.randn(3, 4, 5, 5, dtype=F64).to(memory_format=torch.channels_last)
layer = nn.GroupNorm(2, 4).to(F64)
for give in (lambda x: x, torch.Tensor.contiguous):
    try:
        mf.task_gramian(
            lambda p, x: functional_call(layer, p, (give(x),)).sin().mean((0, 2, 3)),
            mf.parameters(layer), x, engine="rows",
        )
        print("taken")
    except RuntimeError as error:
        print("refused" if "contiguous()" in str(error) else error)
"""


@pytest.mark.slow
def test_no_pass_ends_the_process():
    done = python("-W", "ignore", "-c", PROGRAM, timeout=300)
    assert done.stdout.splitlines()[-2:] == ["refused", "taken"]
