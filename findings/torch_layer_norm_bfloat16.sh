#!/usr/bin/env bash
# torch 2.13.0, on a CPU: in bfloat16 the gradients of LayerNorm's weight and bias, and of an embedding, stop growing.
#
# A gradient by a parameter is a sum over rows. These are added up in the dtype of the input, one after another:
# in bfloat16, 256 + 1 is 256. This is so under torch.autocast too, where the parameters and their gradients are
# float32. Seen on one thread, gradient of the sum of the output, 8,192 rows, so 8,192 is right:
#     nn.LayerNorm, bias                            256      (256 as well under autocast, in a float32 .grad)
#     nn.Embedding, a row; table[index]             256
#     RMSNorm, GroupNorm, BatchNorm1d, Linear, index_select, gather, and all in float32    8,192
# For a network Linear, LayerNorm, ReLU, Linear at its first step of a regression, under autocast beside
# float32, length of the gradient by the LayerNorm's bias and weight, and the most that any other differs:
#     1,024 rows       .84   .90    < .01
#     8,192 rows       .18   .26    < .01
#     32,768 rows      .05   .08    < .01
# The loss, the output and every other gradient are right, and no call warns of it.
#
# Why it matters: one parameter's gradient depends on how many rows there are, by a factor of twenty. Balancing
# tasks by the lengths of their gradients, or by cosines between them, then depends on each task's batch size and
# sequence length, and a table of gradients on a CPU differs from that in float32. A task's embedding learns
# the less, the more samples its task has.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" - <<'END'
import copy
import sys
import warnings

import torch
import torch.nn.functional as F
from torch import nn

print("torch", torch.__version__)
torch.set_num_threads(1)  # each thread has a sum of its own
torch.manual_seed(0)
rows, half = 8192, torch.bfloat16
x = torch.randn(rows, 64)
index = torch.zeros(rows, dtype=torch.long)


def entry(out, leaf):
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert grad.dtype == leaf.dtype
    return grad.flatten()[0].item()


found = {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for dtype in (torch.float32, half):
        layer = nn.LayerNorm(64).to(dtype)
        found["LayerNorm", dtype] = entry(layer(x.to(dtype)), layer.bias)
        table = torch.zeros(4, 64, dtype=dtype, requires_grad=True)
        found["embedding", dtype] = entry(F.embedding(index, table), table)
        found["table[index]", dtype] = entry(table[index], table)
        found["index_select", dtype] = entry(table.index_select(0, index), table)
        found["gather", dtype] = entry(table.gather(0, index[:, None].expand(-1, 64)), table)
        layer = nn.BatchNorm1d(64).to(dtype)
        found["BatchNorm1d", dtype] = entry(layer(x.to(dtype)), layer.bias)
        layer = nn.GroupNorm(2, 64).to(dtype)
        found["GroupNorm", dtype] = entry(layer(x.to(dtype)), layer.bias)
        layer = nn.RMSNorm(64).to(dtype)
        found["RMSNorm", dtype] = entry(layer(torch.ones_like(x).to(dtype)), layer.weight)
        layer = nn.Linear(64, 64).to(dtype)
        found["Linear", dtype] = entry(layer(x.to(dtype)), layer.bias)
    layer = nn.LayerNorm(64)
    with torch.autocast("cpu", half):
        out = layer(x.to(half))
    auto = entry(out, layer.bias)

    def gradients(net, x, y, mixed):
        net = copy.deepcopy(net)
        with torch.autocast("cpu", half, enabled=mixed):
            out = net(x)
        F.mse_loss(out.float(), y).backward()
        return {name: leaf.grad for name, leaf in net.named_parameters()}

    nets = {}
    for rows in (1024, 8192, 32768):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 1))
        x = torch.randn(rows, 8)
        mixed, full = (gradients(net, x, 3 + x[:, :1], way) for way in (True, False))
        short = {k: (mixed[k].norm() / full[k].norm()).item() for k in full}
        apart = {k: ((mixed[k] - full[k]).norm() / full[k].norm()).item() for k in full}
        nets[rows] = short["1.bias"], short["1.weight"], max(apart[k] for k in apart if k[0] != "1")
for (name, dtype), value in found.items():
    print(name, dtype, value)
print("LayerNorm under autocast, parameters float32:", auto)
for rows, (bias, weight, rest) in nets.items():
    print(f"{rows} rows: bias {bias:.3f} weight {weight:.3f} of their length, others differ by {rest:.3f}")
stop = ("LayerNorm", "embedding", "table[index]")
told = [str(x.message) for x in told]
print("warnings", told)
seen = {
    "they stop at 256": all(found[name, half] == 256 for name in stop) and auto == 256,
    "the rest is right": all(v == 8192 for (k, d), v in found.items() if k not in stop or d != half),
    "a network": nets[32768][0] < 0.1 and nets[32768][1] < 0.15 and nets[8192][0] < 0.3 < nets[1024][0] < 0.95,
    "only there": all(x[2] < 0.02 for x in nets.values()),
    "no warning": not told,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
