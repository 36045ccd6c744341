#!/usr/bin/env bash
# evotorch 0.6.1: take_best, by which its NSGA-II selects, drops the ends of a front and keeps crowded points.
#
# take_best(n) ranks by front and then by how crowded solutions are. compute_pareto_ranks() says that the least
# crowded solution of a front has the crowding rank 0. What it returns is the argsort: entry 0 is the index of the
# least crowded solution, and so on, which is the inverse of the ranks. arg_pareto_sort() uses it as an index, and
# is right. Seen for a front of seven points (x, x), the first minimised, the second maximised:
#     x                                         .2   0   1   .1   .55   .15   .9
#     crowdsort ranks                           1    2   4   6    0     3     5
#     ranks by their page                       4    0   1   5    2     6     3     (0 and 1 are both infinitely far)
#     arg_pareto_sort, best first               0, 1, .55, .9, .2, .1, .15
#     take_best(4)                              .55, .2, 0, .15
# Of 200 random fronts of 40 points, take_best(20) loses an end of 155, arg_pareto_sort's first 20 of none, and it
# takes 10.3 of those 20 in the mean, where chance takes 10. No call warns of it.
#
# Why it matters: GeneticAlgorithm and SteadyStateGA choose the next population by take_best. Once a population is
# one front, that choice is blind: it loses the best solution of each objective, and what is compared as NSGA-II is
# something weaker.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5 evotorch==0.6.1 setuptools==80.9.0 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import logging
import sys
import warnings
from importlib.metadata import version

import torch
from evotorch import Problem, SolutionBatch

print(*(f"{x} {version(x)}" for x in ("torch", "evotorch")))
logging.disable(logging.CRITICAL)
torch.set_num_threads(1)


def batch_of(objectives, senses):
    problem = Problem(senses, lambda x: x, solution_length=2, bounds=(0, 1))
    batch = SolutionBatch(problem, len(objectives))
    batch.set_evals(objectives)
    return batch


def first(evals):
    return [round(x, 4) for x in evals[:, 0].tolist()]


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    x = torch.tensor([0.2, 0.0, 1.0, 0.1, 0.55, 0.15, 0.9])
    batch = batch_of(torch.stack([x, x], 1), ["min", "max"])
    fronts, crowding = batch.compute_pareto_ranks()
    best = batch.arg_pareto_sort().fronts[0]
    page = torch.empty_like(best)
    page[best] = torch.arange(7)
    taken = first(batch.take_best(4).evals)
    print("x", first(batch.evals), "fronts", fronts.tolist())
    print("crowdsort ranks", crowding.tolist(), "by their page", page.tolist())
    print("arg_pareto_sort", first(batch.evals[best]), "take_best(4)", taken)
    seen = {
        "one front": not fronts.any(),
        "the inverse": torch.equal(crowding, best) and not torch.equal(crowding, page),
        "arg_pareto_sort": set(first(batch.evals[best])[:4]) == {0.0, 1.0, 0.55, 0.9},
        "take_best": 1.0 not in taken and 0.15 in taken and 0.2 in taken,
    }

    torch.manual_seed(0)
    lost, kept, common = 0, 0, 0
    for _ in range(200):
        x = torch.rand(40)
        batch = batch_of(torch.stack([x, 1 - x.sqrt()], 1), ["min", "min"])
        taken = set(batch.take_best(20).evals[:, 0].tolist())
        right = set(x[batch.arg_pareto_sort().fronts[0][:20]].tolist())
        ends = {x.min().item(), x.max().item()}
        lost += not ends <= taken
        kept += ends <= right
        common += len(taken & right)
    print(f"200 fronts: take_best loses an end of {lost}, arg_pareto_sort keeps both of {kept}, common {common / 200}")
    seen["ends"] = lost > 100 and kept == 200
    seen["as chance"] = 9 < common / 200 < 12
told = [str(x.message) for x in told]
print("warnings", told)
seen["no warning"] = not any("rank" in x or "crowd" in x for x in told)
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
