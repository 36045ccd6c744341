#!/usr/bin/env bash
# torchmetrics 1.9.0: metrics of a collection that agree on the first batch are one metric ever after.
#
# MetricCollection shares the states of metrics that are "in the same compute group", by its page those that differ in
# their last step only, as precision and recall do. It compares states after the first batch, not the arguments. Two
# metrics that count differently and agree on that batch are merged. Seen, first batch alike, then another:
#     pair                                                  in a collection      alone
#     BinaryAccuracy, thresholds .3 and .7                  .75   .75            .75   .5
#     MulticlassAccuracy, all classes and ignore_index=0    .5    .5             .5    1
# It does not come apart by reset(): the second epoch is wrong from its first batch on. With other first batches, or
# compute_groups=False, the values are those of each metric alone. No call warns of it. Issues of the repository are
# about other metrics that are merged.
#
# Why it matters: ignored labels and unsure predictions are rare in a first batch, as of a sorted data set or of
# Lightning's sanity check, and whether two columns of a table are two metrics is then decided there.
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
from torch import tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy

print(*(f"{x} {version(x)}" for x in ("torch", "torchmetrics")))
torch.set_num_threads(1)
classes = torch.eye(3)
cases = {
    "threshold": (
        lambda: (BinaryAccuracy(threshold=0.3), BinaryAccuracy(threshold=0.7)),
        (tensor([0.1, 0.9]), tensor([0, 1])),
        (tensor([0.5, 0.5, 0.5, 0.4, 0.6, 0.6]), tensor([0, 1, 1, 1, 0, 1])),
        (0.75, 0.5),
    ),
    "ignored class": (
        lambda: (MulticlassAccuracy(3, average="micro"), MulticlassAccuracy(3, average="micro", ignore_index=0)),
        (classes[1:], tensor([1, 2])),
        (classes[[1, 2]], tensor([0, 0])),
        (0.5, 1.0),
    ),
}
seen = {}


def pair(make, **options):
    return MetricCollection(dict(zip("ab", make())), **options)


def values(found):
    return [round(x.item(), 3) for x in (found.values() if isinstance(found, dict) else found)]


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for name, (make, first, second, right) in cases.items():
        alone = make()
        made = {"collection": pair(make), "other order": pair(make), "no groups": pair(make, compute_groups=False)}
        for batch in (first, second):
            for each in (*alone, made["collection"], made["no groups"]):
                each.update(*batch)
        for batch in (second, first):
            made["other order"].update(*batch)
        found = {way: values(each.compute()) for way, each in made.items()}
        truth = values([x.compute() for x in alone])
        made["collection"].reset()
        made["collection"].update(*second)
        again = values(made["collection"].compute())
        print(f"{name}: alone {truth}, {found}, second epoch {again}")
        seen[name] = found["other order"] == found["no groups"] == truth and truth[0] != truth[1]
        seen[name] &= found["collection"] == [truth[0]] * 2 and again[0] == again[1]
        seen[name] &= all(abs(a - b) < 1e-3 for a, b in zip(truth, right))
told = [str(x.message) for x in told]
print("warnings", told)
seen["no warning"] = not any("group" in x or "state" in x for x in told)
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
