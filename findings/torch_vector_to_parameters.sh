#!/usr/bin/env bash
# torch 2.13.0: networks that get one vector by vector_to_parameters are one network afterwards.
#
# torch.nn.utils.vector_to_parameters writes nothing into the parameters: it makes each of them a
# view of the vector. Its page says that it copies slices of the vector into the parameters. Seen:
#     two networks start from one vector; 20 steps of SGD on the first:
#         the second has the first one's parameters, bit by bit, without a step
#         the vector has moved as far as they have
#     a trial step that is taken back by the vector from before, then one more step of SGD:
#         the vector from before has changed, so that the next trial is taken back to another point
#     a head of 3 numbers beside a trunk of 999,000; torch.save of the head's state_dict:
#         2 KB before, 4 MB after, as the file holds the whole vector
# A clone of the vector for each call avoids the first two.
#
# Why it matters: a paired comparison of methods gives each the same start, and one flat vector is
# how to keep it. Here the methods then train one network in turn, and each seems to begin where the
# last one ended. Line searches, Pareto explorers and averages of weights keep such vectors, too.
# Nothing fails or warns.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" - <<'END'
import io
import sys
import warnings

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

torch.manual_seed(0)
x, y = torch.randn(32, 4), torch.randn(32, 2)


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def train(net, steps):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()


def flat(net):
    return parameters_to_vector(net.parameters()).detach()


def size(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return len(file.getvalue())


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    first, second = network(), network()
    start = flat(first)
    before = start.clone()
    for net in (first, second):
        vector_to_parameters(start, net.parameters())
    train(first, 20)

    net = network()
    old = flat(net)
    kept = old.clone()
    vector_to_parameters(old + 1.0, net.parameters())  # a trial
    vector_to_parameters(old, net.parameters())  # taken back
    taken_back = torch.equal(flat(net), kept)
    train(net, 1)

    both = nn.ModuleList([nn.Linear(2, 1), nn.Linear(999, 999)])
    small = size(both[0])
    vector_to_parameters(flat(both), both.parameters())
    large = size(both[0])
moved = (flat(first) - before).norm().item()
print("first moved by", moved, "second from first", (flat(second) - flat(first)).norm().item())
print("start moved by", (start - before).norm().item())
print("old moved by", (old - kept).norm().item(), "bytes", small, large, "warnings", len(told))
seen = {
    "the first is trained": moved > 0.1,
    "the second is the first": torch.equal(flat(second), flat(first)),
    "so is the vector": torch.equal(start, flat(first)),
    "a trial is taken back": taken_back,
    "the vector from before has moved": not torch.equal(old, kept) and torch.equal(old, flat(net)),
    "a small file grows by the whole vector": small < 4000 and large > 3_900_000,
    "no warning": not told,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
