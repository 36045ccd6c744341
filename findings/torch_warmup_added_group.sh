#!/usr/bin/env bash
# torch 2.13.0: a parameter group that joins during a warm-up by LinearLR or ConstantLR ends far above its rate.
#
# These two schedulers multiply each group's rate, step by step, by what leads from the first factor to the last.
# A group of optimizer.add_param_group() joins at its own rate, without the first factor, and is multiplied all
# the same. Seen for LinearLR(start_factor=.01, total_iters=100), every group made with lr=.1:
#     rate after the warm-up    from the start .1    joined at step 1: 5.0    at 10: .92    at 50: .20    at 100: .1
#     ConstantLR(factor=1/3, total_iters=100)   .1     joined before 100: .3
#     the same two inside ChainedScheduler      .1     the same
# The rate stays there, or is what later schedulers of the chain go on from. No call warns of it. LambdaLR,
# CosineAnnealingWarmRestarts and SequentialLR raise an error at their next step instead; StepLR, ExponentialLR
# and CosineAnnealingLR treat the new group as was meant.
#
# Why it matters: torch recommends add_param_group for layers that start to train later, and heads of new tasks,
# weights of losses and unfrozen trunks join like that. A head at fifty times its rate diverges or drowns the
# others, and only the list of rates shows why.
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
from torch.optim import lr_scheduler as schedulers

print("torch", torch.__version__)


def linear(optimizer):
    return schedulers.LinearLR(optimizer, start_factor=0.01, total_iters=100)


def constant(optimizer):
    return schedulers.ConstantLR(optimizer, factor=1 / 3, total_iters=100)


def rates(make, join, last=150):
    """Of the group there from the start and of one that joins before a step, after all steps."""
    leaves = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(leaves[:1], lr=0.1)
    scheduler = make(optimizer)
    for step in range(last):
        if step == join:
            optimizer.add_param_group({"params": leaves[1:], "lr": 0.1})
        optimizer.step()
        scheduler.step()
    return [group["lr"] for group in optimizer.param_groups]


makers = {
    "LinearLR": linear,
    "ConstantLR": constant,
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler([linear(o), schedulers.ExponentialLR(o, 1.0)]),
}
found, refused = {}, {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for name, make in makers.items():
        for join in (1, 10, 50, 100):
            found[name, join] = rates(make, join)
            print(name, "joined at", join, "rates", found[name, join])
    for name, make in {
        "StepLR": lambda o: schedulers.StepLR(o, 100),
        "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.99),
        "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 200),
        "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 0.99**step),
        "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 50),
        "SequentialLR": lambda o: schedulers.SequentialLR(o, [linear(o), schedulers.StepLR(o, 50)], [100]),
    }.items():
        try:
            refused[name] = rates(make, 50)
        except ValueError:
            refused[name] = "an error"
        print(name, refused[name])
told = [str(x.message) for x in told]
print("warnings", told)


def near(x, y):
    return abs(x / y - 1) < 0.02


strict = ("LambdaLR", "CosineAnnealingWarmRestarts", "SequentialLR")
seen = {
    "those there from the start": all(near(x[0], 0.1) for x in found.values()),
    "LinearLR": all(near(found["LinearLR", j][1], r) for j, r in ((1, 5.03), (10, 0.917), (50, 0.198), (100, 0.1))),
    "ConstantLR": near(found["ConstantLR", 50][1], 0.3) and near(found["ConstantLR", 100][1], 0.1),
    "chained": all(near(found["ChainedScheduler", j][1], found["LinearLR", j][1]) for j in (1, 10, 50, 100)),
    "others": all((x == "an error") == (name in strict) for name, x in refused.items()),
    "never above": all(x[1] <= 0.1 for name, x in refused.items() if name not in strict),
    "no warning": not told,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
