#!/usr/bin/env bash
# torch 2.13.0 and Opacus 1.6.0: gradients by sample of an embedding ignore its padding_idx.
#
# The row `padding_idx` of nn.Embedding has no gradient, so that what fills sentences up stays where
# it is. torch.nn.utils._per_sample_grad.call_for_per_sample_grads (expanded weights) and Opacus'
# hooks give that row the gradient of every place that holds it. Seen for four sentences of six
# words, the last two of them filled up, length of the row's gradient by sample:
#     a loop, vmap(grad), .grad           0     0     0     0
#     expanded weights                 0.15  0.15  0.06  0.18
#     Opacus, hooks                    0.15  0.15  0.06  0.18
#     Opacus, force_functorch=True        0     0     0     0
# The other rows are right, and no library says anything. BackPACK 1.7.1 refuses such a layer.
#
# Why it matters: the row counts in every sample's norm (here up to 49 % of the square) and in every
# inner product, so that sentences look alike for being short, and a step made of these gradients
# moves what fills sentences up.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 opacus==1.6.0 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import torch
from opacus import GradSampleModule
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

torch.manual_seed(0)
words = torch.cat([torch.randint(1, 9, (4, 4)), torch.zeros(4, 2, dtype=torch.long)], 1)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(9, 5, padding_idx=0), nn.Flatten(), nn.Linear(30, 1))


def loss_of(outputs):
    return outputs.square().sum()


net = network()
loop = torch.stack([torch.autograd.grad(loss_of(net(x[None])), net[0].weight)[0] for x in words])
params = {name: x.detach() for name, x in net.named_parameters()}
rows = vmap(grad(lambda p, x: loss_of(functional_call(net, p, x[None]))), (None, 0))(params, words)
found = {"vmap(grad)": rows["0.weight"]}

loss_of(call_for_per_sample_grads(net, loss_reduction="sum")(words)).backward()
found["expanded weights"] = net[0].weight.grad_sample

for name, options in (("Opacus", {}), ("Opacus by functorch", {"force_functorch": True})):
    net = network()
    loss_of(GradSampleModule(net, loss_reduction="sum", **options)(words)).backward()
    found[name] = net[0].weight.grad_sample
    assert not net[0].weight.grad[0].any()

same = not loop[:, 0].any()
for name, samples in found.items():
    lengths = samples[:, 0].norm(dim=1)
    share = (lengths.square() / samples.flatten(1).square().sum(1)).max()
    print(name, [round(float(x), 2) for x in lengths], f"at most {share:.0%} of a squared norm")
    assert torch.allclose(samples[:, 1:], loop[:, 1:], rtol=1e-3, atol=1e-6)
    wrong = name in ("expanded weights", "Opacus")
    same &= bool((lengths > 0.01).all()) if wrong else not lengths.any()
sys.exit(0 if same else 1)
END
