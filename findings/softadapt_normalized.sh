#!/usr/bin/env bash
# softadapt 0.2.0: NormalizedSoftAdapt turns the order of the tasks round while the losses fall.
#
# Its classes say of all variants: with beta > 0 the component that does worst gets more attention.
# The normalised one divides the rates of change by their sum, with its sign, before the softmax.
# While losses fall the rates are negative and so is the sum: the quotients are positive and largest
# for the loss that falls fastest. Seen with beta = 1 and two losses over six epochs:
#                                         SoftAdapt    NormalizedSoftAdapt
#     one falls by 1/8 an epoch, one by 1   .706 .294    .315 .685
#     one rises by 1/8 an epoch, one by 1   .294 .706    .315 .685
#     one falls by 1/8, one rises by 1/8    .438 .562    NaN  NaN
# Falling and rising losses get the same weights. With rates of both signs the quotients grow
# without bound as their sum comes to 0, and at 0 the weights are NaN, without a warning of the
# package. The example in its README shows the reversal, without a word of it: .9934 .0066 .0000 by
# SoftAdapt, .3221 .3251 .3528 normalised.
# Divided by the sum of absolute values the first row would be .685 .315.
#
# Why it matters: losses fall in most of training, so the variant that is meant to be robust against
# scales does the opposite of the method: it leaves the task that stands still alone and follows the
# one that learns anyway. Nothing fails. A NaN in the weights makes the whole network NaN one step
# later.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q softadapt==0.2.0 keras==3.15.1 findiff==0.16.0 torch==2.13.0 \
    numpy==2.4.6 || exit 2
KERAS_BACKEND=torch "$folder/venv/bin/python" - <<'END'
import math
import sys
import warnings

import torch
from softadapt import NormalizedSoftAdapt, SoftAdapt

epochs = torch.arange(6, dtype=torch.float64)
cases = {
    "fall": (10 - 0.125 * epochs, 10 - epochs),  # exact in binary
    "rise": (10 + 0.125 * epochs, 10 + epochs),
    "apart": (10 - 0.125 * epochs, 10 + 0.125 * epochs),
}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = {
        name: [
            kind(beta=1.0, accuracy_order=1).get_component_weights(*losses, verbose=False).tolist()
            for kind in (SoftAdapt, NormalizedSoftAdapt)
        ]
        for name, losses in cases.items()
    }
for name, (plain, normalised) in found.items():
    print(f"{name}: {plain} {normalised}")
own = [str(x.message) for x in told if "softadapt" in str(x.filename)]
print("warnings of the package:", own)
seen = {
    "SoftAdapt favours the slower of falling losses": found["fall"][0][0] > 0.7,
    "normalised: the faster": found["fall"][1][0] < 0.32,
    "rising losses have the same weights": all(
        abs(x - y) < 1e-6 for x, y in zip(found["fall"][1], found["rise"][1], strict=True)
    ),
    "opposite rates: NaN": all(math.isnan(x) for x in found["apart"][1]),
    "no warning": not own,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
