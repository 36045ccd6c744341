"""Do ConFIG and weights from kernels balance the terms of a physics loss, and lower the error?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.decisions import OPEN
from ..report.device import replayed
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_edge, chosen, judged, spelled
from ..report.intervals import named, ratio_interval, share_interval
from .common import normal
from .decisions import claim
from .physics import (
    ABOUT,
    EDGE,
    INSIDE,
    PROBLEMS,
    RATES,
    STEPS,
    WIDTH,
    Problem,
    begun,
    errors,
    trained,
    with_adam,
)

CROWDED = 3  # dimensions, for five gradients


def run(settings: Settings) -> Findings:
    yield no_conflict(settings.count(1000))
    seeds, steps = max(2, settings.seeds * 3 // 8), settings.count(STEPS)
    where = (
        f"{ABOUT}; two terms, mean squares of {INSIDE} points inside and {EDGE} on the edge, two "
        f"layers of {WIDTH} tanh, {seeds} seeds, {steps} steps; geometric means of paired "
        "ratios, 95 % t intervals"
    )
    yield balanced(seeds, steps, where)
    found = {name: ended(name, seeds, steps) for name in PROBLEMS}
    yield from lower(found, where)


def no_conflict(draws: int) -> Claim:
    """ConFIG's products with gradients of lengths that differ."""
    numbers: dict[str, float] = {}
    for tasks, size in ((2, 10), (3, 10), (5, 10), (5, CROWDED)):

        def one(seed: Tensor, tasks: int = tasks, size: int = size) -> tuple[Tensor, Tensor]:
            key = mf.random.fold_in(mf.random.key(seed), size)
            rows = normal(key, tasks, tasks, size) * normal(key, 9, tasks, 1).exp()
            d = mf.aggregate(mf.config(), rows)
            cosine = rows @ d / rows.norm(dim=1) / d.norm()
            return cosine.amin(), cosine.amax() - cosine.amin()

        least, spread = vmap(one)(torch.arange(draws))
        if size > tasks:
            case = f"{tasks} independent gradients"
            numbers |= {
                f"{case}: smallest cosine with the update": smallest(least),
                f"{case}: largest difference of two cosines": largest(spread),
            }
        else:
            share = share_interval(int((least < 0).sum()), draws)
            name = f"{tasks} gradients in {size} dimensions: share of updates against one of them"
            numbers |= named(name, share)
    return claim(
        "SI-19",
        numbers,
        f"{draws} draws of gradients with lengths spread over e. One rate: the same cosine with "
        "all; a loss then falls by that times the length of its gradient. Wilson's interval",
    )


def ntk_probe(problem: Problem) -> mf.Probe:
    """Residuals are over the roots of their numbers, so that the traces are means, as the terms."""
    return mf.kernel_traces([problem.inner, problem.outer], mf.losses_only())


RULES = {
    "equal": lambda problem: (mf.mean(), mf.losses_only()),
    "NTK": lambda problem: (mf.ntk(), ntk_probe(problem)),
}


def falls(problem: Problem, weights: str, seeds: int, steps: int) -> np.ndarray:
    """By which factor gradient descent lowers either term, `[term, seed]`.

    Its rate is 1/λ for the largest eigenvalue λ of the weighted loss's Gauss-Newton matrix at the
    start.
    """
    rule, probe = RULES[weights](problem)
    params, points = begun(problem, seeds)

    def step_of(lr: Tensor) -> mf.Step:
        return mf.descend(problem.terms, rule, probe, mf.sgd(lr), reduction="sum")

    def rate(params: mf.types.Params, points: Points) -> Tensor:
        one = mf.balance(problem.terms, rule, probe, reduction="sum")
        w = one.update(params, points, one.init(params, points))[2].weights
        root = torch.cat([w[:1].expand(INSIDE), w[1:].expand(EDGE)]).sqrt()[:, None]
        return 0.5 / torch.linalg.matrix_norm(root * problem.rows(params, points), 2).square()

    rates = vmap(rate)(params, points)
    state = vmap(lambda lr, p, b: step_of(lr).init(p, b))(rates, params, points)
    every = vmap(lambda lr, state, b: step_of(lr).update(state, b)[:1])
    move = replayed(lambda state: every(rates, state, points))
    for _ in tqdm(range(steps), desc="gradient descent on two terms", leave=False):
        (state,) = move(state)
    before, after = (vmap(problem.terms)(p, points) for p in (params, state.params))
    return torch.stack([b / a for a, b in zip(after, before, strict=True)]).cpu().numpy()


def balanced(seeds: int, steps: int, where: str) -> Claim:
    """How far apart the terms' falls are, with and without the weights."""
    numbers: dict[str, float] = {}
    for name, problem in PROBLEMS.items():
        apart = {}
        for weights in RULES:
            fall = falls(problem, weights, seeds, steps)
            apart[weights] = np.abs(np.log(fall[0]) - np.log(fall[1]))
            for term, values in zip(("equation", "edge"), fall, strict=True):
                label = f"{name}, {weights} weights: factor by which the {term}'s term falls"
                numbers[label] = float(np.exp(np.log(values).mean()))
        label = f"{name}: difference of the falls' logarithms, NTK weights over equal ones"
        numbers |= named(label, ratio_interval(apart["NTK"], apart["equal"]))
    return claim(
        "SI-21", numbers, f"{where}. Gradient descent at 1/λ; traces are means over a term's points"
    )


class Best(NamedTuple):
    """Errors `[seed]` at the rate that is best on the other half of the seeds."""

    errors: np.ndarray
    edge: bool
    rates: str


def ended(name: str, seeds: int, steps: int) -> dict[str, Best]:
    """Of Adam on equal weights, NTK weights and ConFIG."""
    problem = PROBLEMS[name]

    def method(rule: mf.Rule, probe: mf.Probe) -> Callable[[mf.Optimizer], mf.Step]:
        return lambda optimizer: mf.descend(problem.terms, rule, probe, optimizer)

    ends = {
        "equal weights": with_adam(name, seeds, steps),
        "NTK weights": trained(problem, method(mf.ntk(), ntk_probe(problem)), seeds, steps),
        "ConFIG": trained(problem, method(mf.config(), mf.jacobian()), seeds, steps),
    }
    found = {}
    for way, params in ends.items():
        every = errors(problem, params)
        choice = chosen(every)
        rates = spelled(RATES[i] for i in choice)
        found[way] = Best(judged(every, choice), at_edge(choice, len(RATES)), rates)
    return found


def lower(found: dict[str, dict[str, Best]], where: str) -> Iterator[Claim]:
    rates = "; ".join(
        f"{name}, {way}: {best.rates}" for name, ways in found.items() for way, best in ways.items()
    )
    where = f"{where}. Relative L2 errors; Adam at its best rate by the other half: {rates}"
    for identifier, own, rivals in (
        ("SI-22", "NTK weights", ("equal weights",)),
        ("SI-20", "ConFIG", ("equal weights", "NTK weights")),
    ):
        numbers: dict[str, float] = {}
        for name, ways in found.items():
            for rival in rivals:
                label = f"{name}: error of {own} over that of {rival}"
                numbers |= named(label, ratio_interval(ways[own].errors, ways[rival].errors))
                numbers[label + OPEN] = float(ways[own].edge or ways[rival].edge)
        yield claim(identifier, numbers, where)
