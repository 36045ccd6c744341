#!/usr/bin/env bash
# nevergrad 1.0.12: its hypervolume counts points beyond the reference, with either sign.
#
# `HypervolumeIndicator` answers the volume between a front and a reference point. A point that is
# worse than the reference in some loss adds nothing to it: moocore 0.3.2, pymoo 0.6.2 and jMetalPy
# 1.9.0 leave it out, optuna 5.0.0 and pygmo 2.20.0 refuse it. nevergrad sweeps over it. With the
# reference (1, 1):
#     front                             nevergrad   exact
#     (1/2, 1/2)                             1/4     1/4
#     (1/2, 1/2), (3/2, 1/4)                 1/8     1/4
#     (3/2, 1/2)                            -1/4       0
#     (3/2, 3/2)                             1/4       0
#     (1/2, 1/2, 1/2), (2, 0, 0)            -5/8     1/8     reference (1, 1, 1)
# Of 300 fronts of ten points, uniform on [0, 1.2], 101 are wrong with two losses and 221 with
# three. All fronts inside of the reference are right, also with duplicates and shared coordinates.
#
# Why it matters: fronts of multi-task networks are compared by this number, with a reference such
# as the losses of networks that learn one task each. A method with one point beyond it, as a run
# that leaves a task out has, is then ranked below one without that point, and nothing is said.
# Leave such points out before the call.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q nevergrad==1.0.12 moocore==0.3.2 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import itertools
import sys

import moocore
import numpy as np
from nevergrad.optimization.multiobjective import HypervolumeIndicator


def exact(front, reference):
    """By inclusion and exclusion over boxes."""
    boxes = [reference - x for x in front if (x < reference).all()]
    subsets = itertools.chain.from_iterable(
        itertools.combinations(boxes, size) for size in range(1, len(boxes) + 1)
    )
    return sum((-1) ** (len(some) + 1) * np.min(some, axis=0).prod() for some in subsets)


def answers(front):
    front = np.array(front)
    reference = np.ones(front.shape[1])
    swept = HypervolumeIndicator(reference).compute(list(front))
    wanted = exact(front, reference)
    assert np.isclose(moocore.hypervolume(front, ref=reference), wanted)
    return float(swept), float(wanted)


FRONTS = {
    ((0.5, 0.5),): 1 / 4,
    ((0.5, 0.5), (1.5, 0.25)): 1 / 8,
    ((1.5, 0.5),): -1 / 4,
    ((1.5, 1.5),): 1 / 4,
    ((0.5, 0.5, 0.5), (2.0, 0.0, 0.0)): -5 / 8,
}
same = True
for front, seen in FRONTS.items():
    swept, wanted = answers(front)
    print(f"{front}: nevergrad {swept:g}, exact {wanted:g}")
    same &= swept == seen
for largest, wrong_in in ((1.2, (101, 221)), (1.0, (0, 0))):
    draw = np.random.default_rng(0)
    for tasks, expected in zip((2, 3), wrong_in):
        pairs = [answers(largest * draw.random((10, tasks))) for _ in range(300)]
        wrong = sum(abs(swept - wanted) > 1e-9 for swept, wanted in pairs)
        print(f"{tasks} losses up to {largest}: {wrong} of 300 wrong")
        same &= wrong == expected
sys.exit(0 if same else 1)
END
