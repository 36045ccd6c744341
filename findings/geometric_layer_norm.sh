#!/usr/bin/env bash
# torch_geometric 2.8.1: LayerNorm of one graph is another function without a batch vector than with one.
#
# LayerNorm in its default mode="graph" divides by sqrt(Var + eps), by its page. With a batch vector it does. Without
# one, as for a single graph, it divides by std + eps. torch's layer_norm over the whole graph is as the
# former. Seen for one graph of 20 nodes and 8 features of deviation s, deviation of the output:
#     s                                   1        .01      .003     .001
#     LayerNorm(8)(x)                     1.000    .999     .997     .990
#     LayerNorm(8)(x, zeros)              1.000    .953     .688     .302
#     torch's layer_norm                  1.000    .953     .688     .302
#     gradient by x, first over second    1.00     1.05     1.45     3.28
# models.GCN of two layers with norm="LayerNorm", called with and without a vector of zeros, for the same graph:
# relative distance of the outputs 2e-7, .002 and .18 for features of 1, .1 and .01, in train and eval mode.
# InstanceNorm, GraphNorm, PairNorm and MeanSubtractionNorm are the same in both calls. No call warns of it.
#
# Why it matters: batches are for training, and a single graph is evaluated, explained or attacked without a batch
# vector. Where features are small, as after small initial weights, the network is then another one, and a gradient
# of a graph alone is not its gradient in a batch of one.
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
from torch_geometric.nn import GraphNorm, InstanceNorm, LayerNorm, MeanSubtractionNorm, PairNorm
from torch_geometric.nn.models import GCN

print("torch", torch.__version__, "torch_geometric", torch_geometric.__version__)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
start = torch.randn(20, 8)
start = (start - start.mean()) / start.std(unbiased=False)
graph = torch.zeros(20, dtype=torch.long)
out = torch.randn(20, 8)
seen = {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    norm = LayerNorm(8)
    for s, alone, batched in ((1, 1, 1), (0.01, 0.999, 0.953), (0.003, 0.997, 0.688), (0.001, 0.990, 0.302)):
        x = (s * start).requires_grad_()
        ways = norm(x), norm(x, graph), torch.nn.functional.layer_norm(x, x.shape)
        found = [y.std(unbiased=False).item() for y in ways]
        lengths = [torch.autograd.grad((y * out).sum(), x)[0].norm().item() for y in ways]
        print(f"s {s}: alone {found[0]:.4f}, with zeros {found[1]:.4f}, torch {found[2]:.4f}, "
              f"gradients {lengths[0] / lengths[1]:.3f}")
        seen[s] = abs(found[0] - alone) < 0.005 and abs(found[1] - batched) < 0.005
        seen[s] &= torch.allclose(ways[1], ways[2]) and (s == 1 or lengths[0] > 1.03 * lengths[1])

    for name, norm in {"InstanceNorm": InstanceNorm(8), "GraphNorm": GraphNorm(8), "PairNorm": PairNorm(),
                       "MeanSubtractionNorm": MeanSubtractionNorm()}.items():  # fmt: skip
        seen[name] = torch.allclose(norm(0.003 * start), norm(0.003 * start, graph))

    nodes = torch.arange(20)
    edges = torch.stack([nodes, (nodes + 1) % 20])
    edges = torch.cat([edges, edges.flip(0)], 1)
    net = GCN(8, 16, 2, 4, norm="LayerNorm")
    for s, least in ((1, 0), (0.1, 0), (0.01, 0.05)):
        apart = []
        for training in (True, False):
            net.train(training)
            one, two = net(s * start, edges), net(s * start, edges, batch=graph)
            apart.append(((one - two).norm() / two.norm()).item())
        print(f"GCN, features {s}: apart by {apart}")
        seen["GCN", s] = apart[0] == apart[1] > least
told = [str(each.message) for each in told if "torch.jit" not in str(each.message)]
print("warnings", told)
seen["no warning"] = not told
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
