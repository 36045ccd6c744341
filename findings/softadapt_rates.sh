#!/usr/bin/env bash
# softadapt 0.2.0: a loss's rate is its slope at the oldest point that is read, not the newest.
#
# SoftAdapt weighs each loss by how fast it changes now: with beta > 0 the one that rises, or falls
# most slowly, gets the largest weight. The package estimates the change by coefficients of forward
# differences, whose first belongs to the first value of the history, the oldest. They are exact, at
# that point. By default (accuracy_order=None) the whole history is one such formula, of up to six
# epochs or an odd number of them. Seen with two losses, beta = 1, histories of six epochs, oldest
# first:
#     rising   4 1 0 1 4 9   (n - 2)^2: slope +6 at its end, by 5 up in the last epoch
#     falling  9 8 7 6 5 4   slope -1
#     accuracy_order   rate of the first   weights: rising, falling
#     None                  -4             .047  .953
#     5                     -4             .047  .953
#     4                     -2             .269  .731
#     3                      0             .731  .269
#     2                      2             .953  .047
#     1                      5             .998  .002
# With the history reversed the default gives -6, minus the slope at the end. The weights of
# LossWeightedSoftAdapt and NormalizedSoftAdapt come from the same rates.
#
# Why it matters: with the default a loss that fell at first and has grown for three epochs is
# weighted as one that falls fast: the task that gets worse has a twentieth of the weight. The
# weights lag by the whole history, and a longer history, meant to be more exact, lags more. Who
# compares with SoftAdapt by this package compares with another method; accuracy_order=1 is the
# difference of the last two values.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q softadapt==0.2.0 keras==3.15.1 findiff==0.16.0 torch==2.13.0 \
    numpy==2.4.6 || exit 2
KERAS_BACKEND=torch "$folder/venv/bin/python" - <<'END'
import sys

import torch
from softadapt import LossWeightedSoftAdapt, SoftAdapt

epochs = torch.arange(6, dtype=torch.float64)
rising, falling = (epochs - 2) ** 2, 9 - epochs


def weights(kind, order):
    found = kind(beta=1.0, accuracy_order=order)
    return found.get_component_weights(rising, falling, verbose=False).tolist()


def rate(weights):
    """Of the rising loss, from a softmax in which the falling one has -1."""
    first, second = weights
    return -1 + torch.tensor(first / second).log().item()


orders = (None, 5, 4, 3, 2, 1)
found = {order: weights(SoftAdapt, order) for order in orders}
for order, each in found.items():
    print(order, [round(x, 3) for x in each], "rate of the rising loss", round(rate(each), 3))
backwards = SoftAdapt(beta=1.0).get_component_weights(rising.flip(0), falling, verbose=False)
print("history reversed: rate", round(rate(backwards.tolist()), 3))
weighted = weights(LossWeightedSoftAdapt, None)
print("loss-weighted", [round(x, 3) for x in weighted])

# the slope of (n - 2)^2 at the oldest of the points that a formula of this order reads
oldest = {None: 0, 5: 0, 4: 1, 3: 2, 2: 3}
seen = {
    "the slope at the oldest point": all(
        abs(rate(found[order]) - 2 * (n - 2)) < 1e-3 for order, n in oldest.items()
    ),
    "order 1: the last difference": abs(rate(found[1]) - 5) < 1e-2,
    "reversed: minus the newest slope": abs(rate(backwards.tolist()) + 6) < 1e-3,
    "the rising loss has the smaller weight": found[None][0] < 0.1 and weighted[0] < 0.1,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
