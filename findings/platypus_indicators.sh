#!/usr/bin/env bash
# platypus-opt 1.4.1: its indicators of maximised problems are wrong, and IGD changes where a hypervolume is computed.
#
# Hypervolume(minimum, maximum) of a minimised problem clips points better than `minimum` and drops those worse than
# `maximum`. Maximised, it drops points better than `maximum`, and counts those worse than `minimum` as less than
# nothing. EpsilonIndicator does not look at directions. Seen, by the two same problems:
#     minimised, from 0 to 1                  (.5, .5)   (.5, -.5)   (-.1, .5)   (.5, 1.1)
#         hypervolume                         .25        .5          .5          0
#     the same mirrored, maximised            (.5, .5)   (.5, 1.5)   (1.1, .5)   (.5, -.1)
#         hypervolume                         .25        0           0           -.05
#     set (maximised), against a reference of (0, 1), (1, 0), (1, 1)      (.5, .5)   (1, 1)   (2, 2)
#         epsilon, which is best where least  .5         1           2
# Each indicator writes normalized objectives into the solutions themselves, and Hypervolume turns them round. A
# reference set made of the results, as of several algorithms, holds those same solutions, and is normalized once:
#     sets A and B, reference their nondominated points      IGD of A   epsilon of A
#     before any hypervolume                                 .124       .111
#     after Hypervolume(reference) of A and B                .155       .222
#     after Hypervolume(reference) of copies                 .124       .111
# No call warns of it.
#
# Why it matters: rewards and accuracies are maximised. An algorithm that exceeds the bounds has no hypervolume at all
# where it should have most, and in a table of several indicators their order changes the numbers.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q platypus-opt==1.4.1 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import copy
import sys
import warnings
from importlib.metadata import version

from platypus import (
    Direction,
    EpsilonIndicator,
    Hypervolume,
    InvertedGenerationalDistance,
    Problem,
    Solution,
    nondominated,
)

print("platypus-opt", version("platypus-opt"))


def solutions(points, direction=Direction.MINIMIZE):
    problem = Problem(0, 2)
    problem.directions[:] = [direction] * 2
    made = []
    for point in points:
        each = Solution(problem)
        each.objectives[:] = point
        each.evaluated = each.feasible = True
        each.constraint_violation = 0.0
        made.append(each)
    return made


seen = {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for point, low, high in (((0.5, 0.5), 0.25, 0.25), ((0.5, -0.5), 0.5, 0), ((-0.1, 0.5), 0.5, 0),
                             ((0.5, 1.1), 0, -0.05)):  # fmt: skip
        bounds = {"minimum": [0, 0], "maximum": [1, 1]}
        mirrored = solutions([[1 - x for x in point]], Direction.MAXIMIZE)
        found = Hypervolume(**bounds)(solutions([point])), Hypervolume(**bounds)(mirrored)
        print(f"hypervolume of {point}: {found[0]:.3f}, mirrored and maximised {found[1]:.3f}")
        seen["hypervolume", point] = abs(found[0] - low) < 1e-9 and abs(found[1] - high) < 1e-9

    reference = solutions([(0, 1), (1, 0), (1, 1)], Direction.MAXIMIZE)
    epsilon = EpsilonIndicator(reference)
    found = [epsilon(solutions([(x, x)], Direction.MAXIMIZE)) for x in (0.5, 1, 2)]
    print("epsilon of .5, 1 and 2, maximised", found)
    seen["epsilon"] = found == [0.5, 1, 2]

    after = {}
    for copied in (False, True):
        a, b = solutions([(0, 1), (0.5, 0.6), (1, 0.1)]), solutions([(0, 0.9), (0.4, 0.5), (1, 0)])
        front = nondominated(a + b)
        hypervolume = Hypervolume(front)
        indicators = InvertedGenerationalDistance(front), EpsilonIndicator(front)
        before = [x(a) for x in indicators]
        for each in (a, b):
            hypervolume(copy.deepcopy(each) if copied else each)
        after[copied] = [x(a) for x in indicators]
        print(f"IGD and epsilon of A: {before}, after hypervolumes{' of copies' * copied} {after[copied]}")
    seen["after hypervolume"] = all(late > 1.2 * early for late, early in zip(after[False], before))
    seen["after those of copies"] = after[True] == before
print("warnings", [str(x.message) for x in told])
seen["no warning"] = not told
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
