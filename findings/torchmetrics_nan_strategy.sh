#!/usr/bin/env bash
# torchmetrics 1.9.0: a number as nan_strategy is written into the tensor that the caller gave, and takes its weight.
#
# MeanMetric, SumMetric, MaxMetric, MinMetric and CatMetric with nan_strategy=0.0 "impute" each NaN by 0, by their page.
# They write it into the caller's tensor, and into that of the weights a 1. Seen for values (2, NaN):
#     the caller's values after update or forward, nan_strategy=0.0                   2, 0
#                                          nan_strategy "ignore", "disable"           2, NaN
#     the next metric, MeanMetric(nan_strategy="ignore"), of the same tensor          1      (alone 2)
#     the next loss of the loop, losses.mean()                                        1      (alone NaN)
#     its gradient, where the NaN is 0/0 of the network                               NaN
#     MeanMetric(nan_strategy=0.0) with weights (1, 3)                                1      (by weights .5)
# The same by update of a MetricCollection, where the order of two metrics decides what the second one sees. No call
# warns of it.
#
# Why it matters: losses of several tasks are logged before they are summed. The log then hides a NaN from the check
# that would stop or skip the step, whose gradient is NaN all the same, and missing labels turn into zeros.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5 torchmetrics==1.9.0 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import sys
import warnings
from importlib.metadata import version

import torch
from torchmetrics import CatMetric, MaxMetric, MeanMetric, MetricCollection, MinMetric, SumMetric

print(*(f"{x} {version(x)}" for x in ("torch", "torchmetrics")))
torch.set_num_threads(1)
nan = float("nan")
seen = {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for kind in (MeanMetric, SumMetric, MaxMetric, MinMetric, CatMetric):
        for by in ("update", "forward"):
            values = torch.tensor([2.0, nan])
            getattr(kind(nan_strategy=0.0), by)(values)
            print(f"{kind.__name__}, by {by}: {values.tolist()}")
            seen[kind.__name__, by] = values.tolist() == [2, 0]
    kept = []
    for strategy in ("ignore", "disable"):
        values = torch.tensor([2.0, nan])
        MeanMetric(nan_strategy=strategy).update(values)
        kept.append(values[1].isnan().item())
    seen["other strategies"] = all(kept)

    means = []
    for first in (0.0, "ignore"):
        values = torch.tensor([2.0, nan])
        MeanMetric(nan_strategy=first).update(values)
        second = MeanMetric(nan_strategy="ignore")
        second.update(values)
        means.append(second.compute().item())
    both = MetricCollection({"a": MeanMetric(nan_strategy=0.0), "b": MeanMetric(nan_strategy="ignore")})
    both.update(torch.tensor([2.0, nan]))
    turned = MetricCollection({"a": MeanMetric(nan_strategy="ignore"), "b": MeanMetric(nan_strategy=0.0)})
    turned.update(torch.tensor([2.0, nan]))
    print("the next metric", means, "collection", both.compute(), "turned round", turned.compute())
    seen["the next metric"] = means == [1, 2]
    seen["collection"] = both.compute()["b"].item() == 1 and turned.compute()["a"].item() == 2

    weight = torch.tensor([1.0, 0.0], requires_grad=True)
    losses = torch.stack([2 * weight[0], weight[1] / weight[1]])
    before = losses.mean().item()
    MeanMetric(nan_strategy=0.0).update(losses)
    after = losses.mean()
    after.backward()
    print("loss", before, "after the log", after.item(), "gradient", weight.grad.tolist())
    seen["loss"] = before != before and after.item() == 1
    seen["gradient"] = weight.grad[0].item() == 1 and weight.grad[1].isnan().item()

    values, weights = torch.tensor([2.0, nan]), torch.tensor([1.0, 3.0])
    metric = MeanMetric(nan_strategy=0.0)
    metric.update(values, weights)
    print("weighted", metric.compute().item(), "weights", weights.tolist())
    seen["weights"] = metric.compute().item() == 1 and weights.tolist() == [1, 1]
told = [str(x.message) for x in told]
print("warnings", told)
seen["no warning"] = not any("nan" in x.lower() or "place" in x for x in told)
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
