#!/usr/bin/env bash
# torch 2.13.0: gloo's all_reduce adds memory, not entries, of tensors that are not contiguous.
#
# Two processes on a CPU, a weight of [4, 3]. Rank 0 has torch.autograd.grad of a loss that uses it
# in torch.einsum("bi,oi->bo", x, weight): this gradient is a dense tensor of strides (1, 4). Rank 1
# has no label of the task in its batch and sends zeros_like(weight), of strides (3, 1). Seen after
# all_reduce of the two, whose sum is rank 0's gradient:
#     rank 0: the gradient
#     rank 1: the gradient's numbers in the order of rank 0's memory, 10 of 12 at wrong places
# With numbers on both ranks both have wrong sums, and not the same ones. reduce does it, too, and
# broadcast of a weight in channels_last to a contiguous one of the same shape gives another weight.
# The sum of every second column, x[:, ::2], the same view on both ranks, is wrong as well.
# all_gather, all_gather_into_tensor, all_reduce_coalesced and the functional all_reduce of
# torch.distributed._functional_collectives are right. Nothing is said. PyTorch's open issue 192920
# has broadcast and reduce of such tensors, and not all_reduce. Other backends than gloo did not
# run.
#
# Why it matters: ranks then step on different gradients and part without a word, which a check of
# losses on rank 0 cannot see. The gradient of a plain linear layer has its weight's strides, those
# of einsum and of a product with a transposed weight may not, and .grad is stored in the weight's:
# it is the loop over tasks by autograd.grad, with zeros for tasks without labels, that meets this.
# x.contiguous() before every collective, or one flat vector of all, avoids it.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 || exit 2
cat > "$folder/ranks.py" <<'END'
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

warnings.simplefilter("ignore")
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)

torch.manual_seed(0)
weight, x = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)
loss = torch.einsum("bi,oi->bo", x, weight).square().sum()
(gradient,) = torch.autograd.grad(loss, weight)
filters = torch.randn(2, 2, 2, 2)  # the same on both ranks


def reduced(mine):
    dist.all_reduce(mine)
    return mine


def to_first(mine):
    dist.reduce(mine, 0)
    return mine


def sent(mine):
    dist.broadcast(mine, 0)
    return mine


def gathered(mine):
    every = [torch.empty(mine.shape) for _ in range(2)]
    dist.all_gather(every, mine)
    return sum(every)


def gathered_into(mine):
    every = torch.empty(8, 3)
    dist.all_gather_into_tensor(every, mine)
    return every.view(2, 4, 3).sum(0)


def coalesced(mine):
    dist.all_reduce_coalesced([mine])
    return mine


def by_function(mine):
    return functional.all_reduce(mine, "sum", dist.group.WORLD) + 0


own = gradient if rank == 0 else torch.zeros_like(weight)
other = gradient.clone() if rank == 0 else gradient.contiguous()
found = {
    "strides": torch.tensor(own.stride()),
    "zeros": reduced(own.clone()),
    "both": reduced(other.clone()),
    "reduce": to_first(other.clone()),
    "gather": gathered(other.clone()),
    "into": gathered_into(other.clone()),
    "columns": reduced(gradient.contiguous()[:, ::2]).contiguous(),
    "coalesced": coalesced(other.clone()),
    "functional": by_function(other.clone()),
    "broadcast": sent(filters.to(memory_format=torch.channels_last) if rank == 0 else filters * 0),
}
expected = {"gradient": gradient.contiguous(), "filters": filters}
torch.save({"found": found, "expected": expected}, folder / f"rank-{rank}.pt")
dist.destroy_process_group()
END
"$folder/venv/bin/python" "$folder/ranks.py" 1 "$folder" &
"$folder/venv/bin/python" "$folder/ranks.py" 0 "$folder"
wait $!
"$folder/venv/bin/python" - "$folder" <<'END'
import sys
from pathlib import Path

import torch

first, second = (torch.load(Path(sys.argv[1]) / f"rank-{i}.pt") for i in range(2))
gradient, filters = first["expected"]["gradient"], first["expected"]["filters"]
one, two = first["found"], second["found"]
for name in one:
    print(name, one[name].flatten().tolist(), two[name].flatten().tolist(), sep="\n    ")
misplaced = int((two["zeros"] != gradient).sum())
print("entries of the gradient at wrong places on rank 1:", misplaced)


def right(name):
    return all(torch.allclose(x[name], 2 * gradient) for x in (one, two))


seen = {
    "strides (1, 4) and (3, 1)": [x["strides"].tolist() for x in (one, two)] == [[1, 4], [3, 1]],
    "rank 0 keeps its gradient": torch.equal(one["zeros"], gradient),
    "rank 1 has its memory": torch.equal(two["zeros"].flatten(), gradient.t().flatten()),
    "10 entries at wrong places": misplaced == 10,
    "both wrong, and other ones": not torch.allclose(one["both"], 2 * gradient)
    and not torch.allclose(two["both"], 2 * gradient)
    and not torch.allclose(one["both"], two["both"]),
    "reduce is wrong": not torch.allclose(one["reduce"], 2 * gradient),
    "broadcast is wrong": torch.equal(
        two["broadcast"].flatten(), filters.permute(0, 2, 3, 1).flatten()
    )
    and not torch.equal(two["broadcast"], filters),
    "every second column is wrong": not torch.allclose(one["columns"], 2 * gradient[:, ::2]),
    "gathering is right": right("gather") and right("into"),
    "coalesced is right": right("coalesced"),
    "functional is right": right("functional"),
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
