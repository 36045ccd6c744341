#!/usr/bin/env bash
# torch 2.13.0 and Opacus 1.6.0: gradients by sample of an embedding ignore two of its options.
#
# `padding_idx` says which row has no gradient; `scale_grad_by_freq` divides a row's gradient by how
# often the row stands in the call. torch.nn.utils._per_sample_grad.call_for_per_sample_grads
# (expanded weights) takes both options and answers as if they were not set; so do Opacus' hooks
# with the second. No library says anything. Seen for four sentences of six words, the error of the
# embedding's gradient over its length, by sample:
#     padding_idx=0, two words of six are 0      expanded weights              .91  .98  .91  .91
#     scale_grad_by_freq=True                    expanded weights              .50 2.25    0 5.00
#                                                Opacus, hooks                 .50 2.25    0 5.00
#     both options                               a loop, vmap(grad)              0    0    0    0
#                                                Opacus, force_functorch=True    0    0    0    0
# BackPACK 1.7.1 refuses either option.
#
# Why it matters: the norm of a sample's gradient, by which samples are clipped or weighted, is up
# to six times what it should be where a word is repeated, and a step made of these gradients moves
# what fills sentences up.
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
filled = torch.cat([torch.randint(1, 9, (4, 4)), torch.zeros(4, 2, dtype=torch.long)], 1)
repeated = torch.tensor([[1, 1, 1, 2, 3, 4], [2, 2, 5, 5, 5, 5], [1, 2, 3, 4, 5, 6], [7] * 6])


def loss_of(outputs):
    return outputs.square().sum()


def by_sample(words, **option):
    """Of the embedding `[sample, word, number]`: of a loop, and of each library."""

    def network():
        torch.manual_seed(1)
        return nn.Sequential(nn.Embedding(9, 5, **option), nn.Flatten(), nn.Linear(30, 1))

    net = network()
    each = [torch.autograd.grad(loss_of(net(x[None])), net[0].weight)[0] for x in words]
    params = {name: x.detach() for name, x in net.named_parameters()}
    one = grad(lambda p, x: loss_of(functional_call(net, p, x[None])))
    found = {"vmap(grad)": vmap(one, (None, 0))(params, words)["0.weight"]}
    loss_of(call_for_per_sample_grads(net, loss_reduction="sum")(words)).backward()
    found["expanded weights"] = net[0].weight.grad_sample
    for name, functorch in (("Opacus, hooks", False), ("Opacus, force_functorch", True)):
        net = network()
        model = GradSampleModule(net, loss_reduction="sum", force_functorch=functorch)
        loss_of(model(words)).backward()
        found[name] = net[0].weight.grad_sample
    return torch.stack(each), found


same = True
for words, option, wrong in (
    (filled, {"padding_idx": 0}, {"expanded weights"}),
    (repeated, {"scale_grad_by_freq": True}, {"expanded weights", "Opacus, hooks"}),
):
    loop, found = by_sample(words, **option)
    for name, samples in found.items():
        errors = (samples - loop).flatten(1).norm(dim=1) / loop.flatten(1).norm(dim=1)
        print(*option, name, [round(float(x), 2) for x in errors])
        if "padding_idx" in option and name == "Opacus, hooks":
            continue  # known of Opacus' row for padding
        same &= bool(errors.max() > 0.3) if name in wrong else bool(errors.max() < 1e-5)
sys.exit(0 if same else 1)
END
