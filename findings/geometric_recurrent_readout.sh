#!/usr/bin/env bash
# torch_geometric 2.8.1: LSTM, GRU and equilibrium aggregation answer for a graph by what stands beside it.
#
# LSTMAggregation and GRUAggregation fill every graph of a batch up with zeros to the length of the largest, run
# over these zeros as well and return the last state. Seen for two graphs of three nodes beside a third, float64:
#     nodes of the third graph                       3        6        20       50
#     distance of the two answers from those that they get without it, relative
#         LSTMAggregation                            0        .67      .79      .79
#         GRUAggregation                             0        .59      .75      .75
#     distance between the answers to two different graphs of three nodes, relative
#         LSTMAggregation                            .95      .21      2e-3     2e-7
#         GRUAggregation                             1.1      .33      1e-3     3e-9
# The answers alone are those of torch's LSTM and GRU over packed sequences. SAGEConv(aggr="lstm") is so by
# nodes: two nodes joined by an edge get another answer, by 9 %, where a hub stands elsewhere in the batch.
# EquilibriumAggregation divides its penalty by the number of graphs: where one graph stands 2 and 16 times in a
# batch, the answer to it lies 4 and 18 times its length from that alone. Sum, mean, max, Std, Softmax, Set2Set and
# AttentionalAggregation answer for a graph alone. No call warns of it.
#
# Why it matters: what is predicted for a molecule, and its gradient, depends on the batch that it is drawn
# into: on batch size, shuffling and the molecules of other tasks. A validation error is another number for
# another batch size, and beside one large graph all small ones look alike.
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
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch_geometric.nn import SAGEConv, aggr
from torch_geometric.utils import sort_edge_index

print("torch", torch.__version__, "torch_geometric", torch_geometric.__version__)
torch.set_default_dtype(torch.float64)


def answers(readout, graphs):
    """Of a batch of graphs, by torch_geometric's convention."""
    index = torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor([len(x) for x in graphs]))
    return readout(torch.cat(graphs), index).detach()


def apart(x, y):
    return ((x - y).norm() / y.norm()).item()


torch.manual_seed(0)
first, second = torch.randn(2, 3, 8)
large = {size: torch.randn(size, 8) for size in (3, 6, 20, 50)}
moved, between, packed = {}, {}, {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for name, kind in {"LSTM": aggr.LSTMAggregation, "GRU": aggr.GRUAggregation}.items():
        readout = kind(8, 16).eval()
        alone = torch.cat([answers(readout, [x]) for x in (first, second)])
        moved[name], between[name] = [], []
        for other in large.values():
            beside = answers(readout, [first, second, other])[:2]
            moved[name].append(apart(beside, alone))
            between[name].append(apart(beside[0], beside[1]))
        last = getattr(readout, name.lower())(pack_sequence([first, second]))[1]
        last = last[0] if name == "LSTM" else last
        packed[name] = apart(last[0].detach(), alone)
        print(name, "from alone", moved[name], "between", between[name], "packed", packed[name])

    x = torch.randn(12, 8)
    edge = torch.tensor([[1, 0], [0, 1]])
    hub = torch.stack([torch.arange(3, 12), torch.full((9,), 2)])
    conv = SAGEConv(8, 4, aggr="lstm").eval()
    with_hub = sort_edge_index(torch.cat([edge, hub], 1), sort_by_row=False)
    node = apart(conv(x, with_hub)[:2].detach(), conv(x[:2], edge).detach())
    print("SAGEConv(aggr='lstm'), an edge beside a hub:", node)

    readout = aggr.EquilibriumAggregation(8, 4, [16]).eval()
    one = first.float()
    readout.float()
    copies = {n: answers(readout, [one] * n)[0] for n in (1, 2, 16)}
    equilibrium = [apart(copies[n], copies[1]) for n in (2, 16)]
    print("EquilibriumAggregation, a graph 2 and 16 times:", equilibrium)

    others = {
        "sum": aggr.SumAggregation(),
        "mean": aggr.MeanAggregation(),
        "max": aggr.MaxAggregation(),
        "std": aggr.StdAggregation(),
        "softmax": aggr.SoftmaxAggregation(),
        "Set2Set": aggr.Set2Set(8, 3),
        "attentional": aggr.AttentionalAggregation(nn.Linear(8, 1)),
    }
    right = {}
    for name, readout in others.items():
        beside = answers(readout, [first, second, large[50]])[:1]
        right[name] = apart(beside, answers(readout, [first]))
print("others", right)
told = [str(x.message) for x in told if "torch.jit" not in str(x.message)]
print("warnings", told)
seen = {
    "the largest decides": all(x[0] < 1e-9 and min(x[1:]) > 0.2 for x in moved.values()),
    "graphs look alike": all(x[0] > 0.3 and x[2] < 0.05 and x[3] < 1e-3 for x in between.values()),
    "alone it is the recurrent net": max(packed.values()) < 1e-9,
    "SAGEConv": node > 0.02,
    "equilibrium": equilibrium[0] > 1 and equilibrium[1] > 5,
    "others are right": max(right.values()) < 1e-9,
    "no warning": not told,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
