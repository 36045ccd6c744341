"""One run of policy gradient on the adding transformer."""

import functools
from copy import deepcopy
from typing import Any, NamedTuple

import torch

import mtlfunc as mf
from common.cells import Cell

from .adding import Policy, Questions, answer, every, rewards, surprise, taught
from .methods import METHODS, advantages

STEEPER = 100  # sGD's learning rate, in Adam's
PROBLEMS = ("limit, Adam", "cost, Adam", "cost, SGD")


class Settings(NamedTuple):
    lessons: int  # steps of imitation, before
    steps: int
    questions: int  # a step
    answers: int  # to each: a group


_taught = functools.lru_cache(2)(taught)


def tested(policy: Policy, problem: str, seed: int) -> list[float]:
    """Mean rewards over all questions, 20 answers to each."""
    asked = Questions(*(x.repeat(20) for x in every()))
    found = answer(policy, asked, torch.Generator().manual_seed(seed))
    return rewards(problem, asked, found).mean(1).tolist()


def perform(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Rewards before and after, and how often two rewards disagreed."""
    method = METHODS[cell.method]
    policy = deepcopy(_taught(cell.seed, settings.lessons))
    problem, stepper = cell.problem.split(", ")
    optimizer = (
        torch.optim.SGD(policy.parameters(), STEEPER * cell.rate)
        if stepper == "SGD"
        else torch.optim.Adam(policy.parameters(), cell.rate)
    )
    balancer = mf.Balancer(policy, method.rule(), key=cell.seed)
    generator = torch.Generator().manual_seed(10**6 + cell.seed)
    shares = torch.full((settings.questions, settings.answers), 1 / settings.answers)
    first = tested(policy, problem, cell.seed)
    apart = 0
    for _ in range(settings.steps):
        some = torch.randint(100, (settings.questions,), generator=generator, device="cpu")
        asked = every().at(some.to(shares.device).repeat_interleave(settings.answers))
        given = answer(policy, asked, generator)
        worth = rewards(problem, asked, given)
        rows = advantages(method.kind, worth.unflatten(1, shares.shape), shares).flatten(1)
        optimizer.zero_grad()
        losses = surprise(policy, asked, given)
        info = balancer.backward(losses, weightings=rows / len(given))
        optimizer.step()
        apart += bool((info.gramian < 0).any())
    last = tested(policy, problem, cell.seed)
    return {"first": first, "last": last, "apart": apart / settings.steps, "score": sum(last)}
