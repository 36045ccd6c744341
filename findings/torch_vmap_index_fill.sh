#!/usr/bin/env bash
# torch 2.13.0: index_fill with a value of each lane writes the last lane's value into all of them,
# where the tensor that is filled is the same in all lanes.
#
# Seen for torch.func.vmap(lambda s: zeros.index_fill(0, [0], s)) with s = 1, 2, 3:
#     a loop over s:                     1, 2, 3 in the first place
#     vmap, zeros the same in all lanes: 3, 3, 3, without an error or a warning
#     vmap, zeros of each lane:          1, 2, 3
#     vmap, zeros the same, a place of each lane too: each lane has the values of all lanes
#     gradient of the sum over lanes:    0, 0, 3, where a loop has 1, 1, 1
# masked_fill, scatter and torch.where are right in the same situation.
#
# Why it matters: vmap over learning rates, preferences, tasks or seeds is how many small programs
# run as one, and most of what such a program reads is the same in all lanes. Writing a lane's
# number into a constant (a weight of one task, a mask, a prompt) is then a lane's answer that
# depends on the other lanes, and its gradient is another lane's.
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
from torch.func import grad, vmap

same, first = torch.zeros(3), torch.tensor([0])
lanes, own = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 3)
places = torch.tensor([[0], [1], [2]])


def filled(x, place, value):
    return x.index_fill(0, place, value)


def total(values):
    return vmap(filled, (None, None, 0))(same, first, values).sum()


def total_in_a_loop(values):
    return sum(filled(same, first, value).sum() for value in values)


loop = torch.stack([filled(same, first, value) for value in lanes])
loop_of_places = torch.stack([filled(same, p, v) for p, v in zip(places, lanes)])
shared = vmap(filled, (None, None, 0))(same, first, lanes)
of_places = vmap(filled, (None, 0, 0))(same, places, lanes)
scattered = vmap(lambda v: same.scatter(0, first, v[None]))(lanes)
chosen = vmap(lambda v: torch.where(torch.tensor([True, False, False]), v, same))(lanes)
print("loop:", loop[:, 0].tolist())
print("vmap, one tensor for all lanes:", shared[:, 0].tolist())
print("vmap, places of each lane too:", of_places.tolist(), "loop:", loop_of_places.tolist())
print("gradient:", grad(total)(lanes).tolist(), "loop:", grad(total_in_a_loop)(lanes).tolist())
seen = {
    "each lane has the last value": shared[:, 0].tolist() == [3.0, 3.0, 3.0],
    "with places, each lane has all values": of_places.tolist() == [[1.0, 2.0, 3.0]] * 3,
    "right where the tensor has lanes": torch.equal(vmap(filled, (0, None, 0))(own, first, lanes), loop),
    "the gradient is the last lane's": grad(total)(lanes).tolist() == [0.0, 0.0, 3.0],
    "a loop's gradient is 1": grad(total_in_a_loop)(lanes).tolist() == [1.0, 1.0, 1.0],
    "scatter and where are right": torch.equal(scattered, loop) and torch.equal(chosen, loop),
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
