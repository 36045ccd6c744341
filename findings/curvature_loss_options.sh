#!/usr/bin/env bash
# curvlinops 3.0.1, BackPACK 1.7.1: weights of classes and ignored targets are left out of the curvature.
#
# curvlinops lists CrossEntropyLoss and BCEWithLogitsLoss as supported. Its GGN and Hessian call the loss, its
# Fisher, KFAC and EKFAC have a formula that knows the reduction alone, or take gradients of sampled labels
# by the loss with its weights. BackPACK refuses weights and an ignore_index other than -100, and counts targets
# of -100. Seen for a network of two layers, 64 rows of four classes, trace divided by that of the exact GGN
# (Fisher and KFAC by 2,000 samples a row, EKFAC and KFAC exact with fisher_type="type-2"):
#                                                   Fisher   EKFAC   KFAC     KFAC by     BackPACK's
#                                                                    exact    samples     DiagGGNExact
#     no option                                     1.00     1.00    1.02     1.02        1.00
#     weight=1, 1, 1, 10, reduction="sum"           .25      .25     .26      5.1         refused
#     half the targets -100, reduction="sum"        1.97     1.97    2.02     2.02        1.97
#     label_smoothing=.1                            1.00     1.00    1.02     .83         1.00
#     targets are probabilities, one-hot            1.00     4.00    4.09     4.10
#     BCE with pos_weight=10                        .31      .31     .31      15.2
#     BCE with weight 1, 1, 0, 0                    2.13     2.13    2.18     1.02
# With reduction="mean" the curvature is the mean over all rows, ignored ones included. No call warns of it. The
# 1.02 is KFAC's approximation.
#
# Why it matters: pixels and tasks without a label are -100, and pos_weight is how rare labels are trained. Laplace
# approximations, natural gradients and influences then use another loss than the one that was trained: a class
# that weighs ten times as much has an uncertainty, or a step, as if it did not.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 curvlinops-for-pytorch==3.0.1 \
    backpack-for-pytorch==1.7.1 || exit 2
"$folder/venv/bin/python" - <<'END'
import copy
import sys
import warnings
from importlib.metadata import version

import torch
from backpack import backpack, extend
from backpack.extensions import DiagGGNExact
from curvlinops import EKFACLinearOperator, FisherMCLinearOperator, GGNLinearOperator, KFACLinearOperator
from torch import nn

print(*(f"{x} {version(x)}" for x in ("torch", "curvlinops-for-pytorch", "backpack-for-pytorch")))
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
N, C = 64, 4
x, y = torch.randn(N, 5), torch.randint(0, C, (N,))
net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, C))
ways = {
    "Fisher": (FisherMCLinearOperator, {"mc_samples": 2000}),
    "EKFAC": (EKFACLinearOperator, {"fisher_type": "type-2"}),
    "KFAC": (KFACLinearOperator, {"fisher_type": "type-2"}),
    "KFAC by samples": (KFACLinearOperator, {"mc_samples": 2000}),
}


def trace(way, loss, target, **options):
    own = copy.deepcopy(net)
    params = list(own.parameters())
    operator = way(own, loss, params, [(x, target)], **options)
    return (operator @ torch.eye(sum(p.numel() for p in params))).trace().item()


def by_backpack(loss, target):
    own, loss = extend(copy.deepcopy(net)), extend(copy.deepcopy(loss))
    with backpack(DiagGGNExact()):
        loss(own(x), target).backward()
    return sum(p.diag_ggn_exact.sum().item() for p in own.parameters())


def by_definition(loss, target):
    """The trace of J'HJ, with the loss' own Hessian at the network's output."""
    params = {name: p.detach() for name, p in net.named_parameters()}
    out = net(x).detach()
    H = torch.func.hessian(lambda f: loss(f, target))(out).reshape(out.numel(), out.numel())
    J = torch.func.jacrev(lambda p: torch.func.functional_call(net, p, (x,)))(params)
    J = torch.cat([j.reshape(out.numel(), -1) for j in J.values()], 1)
    return torch.einsum("ip,ij,jp->", J, H, J).item()


ignored = torch.where(torch.arange(N) < N // 2, y, -100)
ones = nn.functional.one_hot(y, C).double()
ce, bce = nn.CrossEntropyLoss, nn.BCEWithLogitsLoss
cases = {
    "no option": (ce(), y),
    "weight": (ce(weight=torch.tensor([1.0, 1, 1, 10]), reduction="sum"), y),
    "ignored": (ce(reduction="sum"), ignored),
    "label_smoothing": (ce(label_smoothing=0.1), y),
    "probabilities": (ce(), ones),
    "BCE": (bce(), ones),
    "BCE pos_weight": (bce(pos_weight=torch.full((C,), 10.0)), ones),
    "BCE weight": (bce(weight=torch.tensor([1.0, 1, 0, 0])), ones),
}
found, exact = {}, {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for name, (loss, target) in cases.items():
        right = by_definition(loss, target)
        exact[name] = trace(GGNLinearOperator, loss, target) / right
        found[name] = {way: trace(kind, loss, target, **options) / right for way, (kind, options) in ways.items()}
        if name in ("no option", "ignored", "label_smoothing"):
            found[name]["BackPACK"] = by_backpack(loss, target) / right
        print(name, {way: round(each, 3) for way, each in found[name].items()})
told = [str(each.message) for each in told if "curvlinops" in each.filename or "backpack" in each.filename]
print("warnings", told)


def near(name, *numbers):
    return all(abs(a - b) < 0.05 * b for a, b in zip(found[name].values(), numbers, strict=True))


seen = {
    "GGNLinearOperator right": all(abs(each - 1) < 1e-9 for each in exact.values()),
    "no option": near("no option", 1, 1, 1.02, 1.02, 1),
    "weight": near("weight", 0.25, 0.25, 0.26, 5.1),
    "ignored": near("ignored", 1.97, 1.97, 2.02, 2.02, 1.97),
    "label_smoothing": near("label_smoothing", 1, 1, 1.02, 0.83, 1),
    "probabilities": near("probabilities", 1, 4, 4.09, 4.1),
    "BCE": near("BCE", 1, 1, 1.02, 1.02),
    "BCE pos_weight": near("BCE pos_weight", 0.31, 0.31, 0.31, 15.2),
    "BCE weight": near("BCE weight", 2.13, 2.13, 2.18, 1.02),
    "no warning": not told,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
