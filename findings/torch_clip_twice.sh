#!/usr/bin/env bash
# torch 2.13.0: gradients of parameters that a list names twice are clipped twice.
#
# Two tasks, each an nn.Sequential of one trunk and a head of its own. The list of both networks'
# parameters, list(first.parameters()) + list(second.parameters()), names the trunk twice; one
# network's parameters() would name it once. Seen, without a warning:
#     clip_grad_norm_(both, 1.0): the norm counts the trunk twice, 1.25 times the right one here.
#         The heads are multiplied by 1/norm and the trunk by 1/norm². The norm is 1,360, so the
#         trunk keeps a 1,360th of what it should have. All together end at .53, not 1
#     get_total_norm and clip_grads_with_norm_ of torch.nn.utils: the same
# loss.backward(inputs=both) is right, and torch.optim.SGD warns of such a list. With
# list(dict.fromkeys(both)) the norm is right and all end at 1.
#
# Why it matters: this is how parameters of several tasks are put together in multi-task code, and
# only the trunk, which is what methods are about, gets a shorter gradient. Clipped at 1, a trunk of
# long gradients is nearly frozen while the heads learn; a comparison of methods with and without
# such a list compares learning rates of the trunk.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" - <<'END'
import sys
import warnings

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

torch.manual_seed(0)
trunk = nn.Linear(3, 3)
first, second = (nn.Sequential(trunk, nn.Linear(3, 1)) for _ in range(2))
both = list(first.parameters()) + list(second.parameters())
single = list(dict.fromkeys(both))
x = torch.randn(8, 3)


def backward(**inputs):
    for leaf in single:
        leaf.grad = None
    loss = 100 * (first(x).square().sum() + second(x).square().sum())
    loss.backward(**inputs)


def of(part):
    return torch.cat([leaf.grad.flatten() for leaf in part.parameters()]).double()


def length():
    return torch.stack([leaf.grad.norm() for leaf in single]).norm().item()


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    backward()
    right, trunks, head = length(), of(trunk), of(first[1])
    norm = clip_grad_norm_(both, 1.0).item()
    kept = (of(trunk) / trunks).mean().item(), (of(first[1]) / head).mean().item()
    left = length()

    backward()
    total = get_total_norm([leaf.grad for leaf in both])
    clip_grads_with_norm_(both, 1.0, total)
    same = (of(trunk) / trunks).mean().item()

    backward(inputs=both)
    once = (of(trunk) / trunks).mean().item()
    with warnings.catch_warnings(record=True) as of_optimizer:
        warnings.simplefilter("always")
        torch.optim.SGD(both, lr=0.1)

    clip_grad_norm_(single, 1.0)
    clipped = length()
print("norm", norm, "of", right, "left", left, "with single names", clipped)
print("factors of trunk and head:", kept, "backward(inputs=both):", once, "warnings", len(told))
twice = (right**2 + trunks.norm().item() ** 2) ** 0.5


def near(a, b):
    return abs(a / b - 1) < 1e-4


seen = {
    "the norm counts the trunk twice": near(norm, twice) and norm > 1.2 * right,
    "the head is clipped once": near(kept[1], 1 / norm),
    "the trunk twice": near(kept[0], 1 / norm**2),
    "all are too short": left < 0.6,
    "clip_grads_with_norm_ as well": near(total.item(), norm) and near(same, kept[0]),
    "backward is right": near(once, 1.0),
    "named once all is right": near(clipped, 1.0),
    "an optimizer warns": any("duplicate" in str(x.message) for x in of_optimizer),
    "no warning": not told,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
