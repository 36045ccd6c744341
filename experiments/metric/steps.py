"""A training step of a rule and an optimizer, which says by how much each loss falls."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mtlfunc as mf
from common.muon import descent_in_norm, factors

from .networks import Problem

Make = Callable[[Any, float], torch.optim.Optimizer]

DIAGONAL: dict[str, Make] = {
    "Adam, β₁ = 0": lambda p, rate: torch.optim.Adam(p, rate, betas=(0.0, 0.999)),
    "Adam, β₁ = .9": lambda p, rate: torch.optim.Adam(p, rate),
    "RMSprop": lambda p, rate: torch.optim.RMSprop(p, rate),
    "SGD, momentum .9": lambda p, rate: torch.optim.SGD(p, 10 * rate, momentum=0.9),
}


MUON, EXACT = "Muon", "Muon, exact factors"


class Linear:
    """A rule in a balancer, and an optimizer whose step is linear in the gradient."""

    def __init__(self, problem: Problem, rule: mf.Rule, make: Make, rate: float, *, metric: bool):
        self.problem, self.optimizer = problem, make(problem.module.parameters(), rate)
        plain, known = (
            mf.jacobian(problem.shared, heads="plain"),
            self.optimizer if metric else None,
        )
        self.balancer = mf.Balancer(problem.module, rule, plain, metric=known)

    def __call__(self, batch: tuple[Tensor, ...], rows: Callable[[], mf.types.Params]) -> Tensor:
        """Make a step; the rates `[task]` that it promised, of the rule's own step on J Jᵀ."""
        del rows
        self.optimizer.zero_grad()
        losses = self.problem.losses(self.problem.module, batch)
        rates = self.balancer.backward(losses).rates
        self.optimizer.step()
        return rates


class Muon:
    """`torch.optim.Muon` on the shared matrices, and Adam without momentum on all else. On J Jᵀ a
    rule's weights go to both. In the norm the weights are those of the steepest common descent in
    Muon's norm, with the Gramian of the other shared parameters in Adam's metric. With `exact` its
    five Newton-Schulz steps in bfloat16 give way to singular value decompositions.
    """

    def __init__(self, problem: Problem, rule: mf.Rule, rate: float, *, norm: bool, exact: bool):
        leaves, shared = dict(problem.module.named_parameters()), problem.names
        self.problem, self.norm, self.exact = problem, norm, exact
        matrices = tuple(name for name in shared if leaves[name].ndim == 2)
        others = tuple(name for name in leaves if name not in matrices)
        muons = [leaves[name] for name in matrices]
        self.muon = torch.optim.Muon(muons, 10 * rate, weight_decay=0.0)
        self.adam = DIAGONAL["Adam, β₁ = 0"]([leaves[name] for name in others], rate)
        plain = mf.jacobian(problem.shared, heads="plain")
        self.balancer = mf.Balancer(problem.module, rule, plain)
        if norm:  # the gradient of the heads, and the Gramian of what is shared and no matrix
            self.balancer = mf.Balancer(
                problem.module,
                mf.mean(),
                mf.jacobian(tuple(name for name in others if name in shared), heads="weighted"),
                metric=self.adam,
            )

    def __call__(self, batch: tuple[Tensor, ...], rows: Callable[[], mf.types.Params]) -> Tensor:
        """As of `Linear`."""
        module = self.problem.module
        module.zero_grad()
        losses = self.problem.losses(module, batch)
        info = self.balancer.backward(losses)
        rates = info.rates
        if self.norm:
            known = rows()
            shared = {name: known[name] for name in self.problem.names}
            with factors(self.exact):
                grads, rates = descent_in_norm(self.muon, module, shared, info.gramian)
            for name, grad in grads.items():
                module.get_parameter(name).grad = grad
        with factors(self.exact):
            self.muon.step()
        self.adam.step()
        return rates
