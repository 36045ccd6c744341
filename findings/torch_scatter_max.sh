#!/usr/bin/env bash
# torch 2.13.0, torch_geometric 2.8.1: the gradient of a scattered maximum is shared with a value that takes no part.
#
# scatter_reduce and index_reduce with "amax" or "amin" and include_self=False leave out what stood in the
# destination; their pages say so. The backward pass counts it all the same: where it equals the maximum, it is
# given a share of the gradient, which is lost. torch_geometric reduces by them into zeros. Seen for groups of one number each, so that the result is the input, into zeros:
#     input                  0     2    -3
#     grad                   .5    1     1
#     jvp, differences       1     1     1       (index_reduce has no jvp)
# and for global_max_pool over graphs of 1, 2 and 4 nodes behind a linear layer that starts at zero, the derivative
# of each graph's pooled value by that layer's bias:
#     grad                   .5    .67   .8      (n of n + 1)
#     amax of each graph     1     1     1
# No call warns of it. From the first step that leaves zero on, the gradients are right.
#
# Why it matters: heads that start at zero, rounded features and masked entries give exact zeros. Small graphs
# (or tasks) then get shorter gradients than large ones, and whoever weighs tasks by the lengths of their
# gradients, or checks reverse mode by forward mode, reads a number that is no derivative of the loss.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 torch_geometric==2.8.1 || exit 2
"$folder/venv/bin/python" - <<'END'
import sys
import warnings

import torch
import torch_geometric
from torch.func import grad, jvp
from torch_geometric.nn import global_max_pool

print("torch", torch.__version__, "torch_geometric", torch_geometric.__version__)
x = torch.tensor([0.0, 2.0, -3.0], dtype=torch.float64)
index = torch.arange(3)
old = torch.zeros(3, dtype=torch.float64)
seen = {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for name in ("scatter_reduce", "index_reduce"):
        for way in ("amax", "amin"):

            def total(x, name=name, way=way):
                return getattr(old, name)(0, index, x, way, include_self=False).sum()

            reverse = grad(total)(x)
            rows = torch.eye(3, dtype=torch.float64)
            try:
                forward = torch.stack([jvp(total, (x,), (e,))[1] for e in rows]).tolist()
            except NotImplementedError:
                forward = None
            near = torch.stack([(total(x + 1e-6 * e) - total(x - 1e-6 * e)) / 2e-6 for e in rows])
            print(name, way, "grad", reverse.tolist(), "jvp", forward, "differences", near.tolist())
            seen[name, way] = (
                reverse.tolist() == [0.5, 1.0, 1.0]
                and forward == ([1.0, 1.0, 1.0] if name == "scatter_reduce" else None)
                and torch.allclose(near, torch.ones_like(near), atol=1e-6)
            )

    torch.manual_seed(0)
    sizes = (1, 2, 4)
    graph = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    features = torch.randn(sum(sizes), 5)
    head = torch.nn.Linear(5, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    pooled = global_max_pool(head(features), graph)
    found = [torch.autograd.grad(y, head.bias, retain_graph=True)[0].item() for y in pooled[:, 0]]
    alone = [torch.autograd.grad(head(features[graph == i]).amax(), head.bias)[0].item() for i in range(3)]
    torch.nn.init.normal_(head.weight)
    pooled = global_max_pool(head(features), graph)
    later = [torch.autograd.grad(y, head.bias, retain_graph=True)[0].item() for y in pooled[:, 0]]
print("global_max_pool", found, "amax of each graph", alone, "away from zero", later)
told = [str(x.message) for x in told if "beta" not in str(x.message) and "torch.jit" not in str(x.message)]
print("warnings", told)
seen["pool"] = all(abs(g - n / (n + 1)) < 1e-6 for g, n in zip(found, sizes, strict=True))
seen["alone"] = alone == [1.0, 1.0, 1.0] and later == [1.0, 1.0, 1.0]
seen["no warning"] = not told
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
