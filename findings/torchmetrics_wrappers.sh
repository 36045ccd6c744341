#!/usr/bin/env bash
# torchmetrics 1.9.0: MinMaxMetric called by forward forgets all batches but the last, and MetricTracker's best is the
# worst where a collection is not in alphabetical order.
#
# metric(batch) answers for the batch and keeps it, and compute() answers for all batches: so do all metrics, sums of
# metrics and the other wrappers. MinMaxMetric's forward keeps the last batch alone. Three batches of errors 1, .1, .5:
#     MeanSquaredError, by forward or update            compute() .42
#     MinMaxMetric of it, by update                     compute() raw .42, min .42, max .42
#     MinMaxMetric of it, by forward                    compute() raw .25, min .01, max 1
# alone, in a MetricCollection and in a MultitaskWrapper. Its page says that compute() updates the extremes, and that
# reset() sets them back: reset() keeps them, and an epoch of error .5 after one of error 1 has the maximum 1.
# MetricTracker(collection, maximize=[...]) takes a flag a metric. A collection made of a dict is in the order of its
# names, not of the dict. Three steps whose errors are 1, .1 and .5, best_metric(return_step=True):
#     MetricCollection({"mse": ..., "r2": ...}), maximize=[False, True]       step 1 for both
#     MetricCollection({"test": mse, "fit": r2}), maximize=[False, True]      step 0, the worst, for both
# No call warns of it.
#
# Why it matters: self.log of Lightning calls forward. The score of an epoch is then that of its last batch, its best
# that of the luckiest batch, and a checkpoint chosen among several tasks' metrics may be the worst one.
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
from torchmetrics import MeanSquaredError, MetricCollection, R2Score
from torchmetrics.wrappers import MetricTracker, MinMaxMetric, MultioutputWrapper, MultitaskWrapper

print(*(f"{x} {version(x)}" for x in ("torch", "torchmetrics")))
torch.set_num_threads(1)
zero = torch.zeros(8)
errors = 1.0, 0.1, 0.5
seen = {}


def run(metric, by, pack=lambda x: x):
    for error in errors:
        getattr(metric, by)(pack(zero + error), pack(zero))
    return metric.compute()


def close(found, *right):
    return all(abs(a.item() - b) < 1e-5 for a, b in zip(found, right))


def extremes(found):
    return [found[x] for x in ("raw", "min", "max")]


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for by in ("update", "forward"):
        right = (0.42, 0.42, 0.42) if by == "update" else (0.25, 0.01, 1)
        plain = run(MeanSquaredError(), by)
        both = run(MeanSquaredError() + MeanSquaredError(), by)
        wrapped = run(MultioutputWrapper(MeanSquaredError(), 1), by, lambda x: x[:, None])
        alone = run(MinMaxMetric(MeanSquaredError()), by)
        collected = run(MetricCollection({"a": MinMaxMetric(MeanSquaredError()), "b": MeanSquaredError()}), by)
        tasks = {"a": MinMaxMetric(MeanSquaredError()), "b": MeanSquaredError()}
        tasked = run(MultitaskWrapper(tasks), by, lambda x: {"a": x, "b": x})
        print(f"by {by}: plain {plain}, sum of two {both}, of outputs {wrapped}, extremes {alone},")
        print(f"    in a collection {collected}, as a task {tasked}")
        seen[by, "others"] = close([plain, both, wrapped[0], collected["b"], tasked["b"]], 0.42, 0.84, 0.42, 0.42, 0.42)
        seen[by, "alone"] = close(extremes(alone), *right)
        seen[by, "collected"] = close(extremes(collected), *right)
        seen[by, "a task"] = close(extremes(tasked["a"]), *right)
    metric = MinMaxMetric(MeanSquaredError())
    metric.update(zero + 1, zero)
    metric.compute()
    metric.reset()
    metric.update(zero + 0.5, zero)
    second = metric.compute()
    print("after reset()", second)
    seen["reset"] = close(extremes(second), 0.25, 0.25, 1)

    torch.manual_seed(0)
    value, noise = torch.randn(50), torch.randn(50)
    for names, step in ((("mse", "r2"), 1), (("test", "fit"), 0)):
        collection = MetricCollection({names[0]: MeanSquaredError(), names[1]: R2Score()})
        tracker = MetricTracker(collection, maximize=[False, True])
        for error in errors:
            tracker.increment()
            tracker.update(value + error * noise, value)
        best, steps = tracker.best_metric(return_step=True)
        print(f"{names}, maximize=[False, True]: best {best}, steps {steps}")
        seen[names] = steps == dict.fromkeys(names, step)
told = [str(x.message) for x in told]
print("warnings", told)
seen["no warning"] = not any("reset" in x or "maximize" in x or "batch" in x for x in told)
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
