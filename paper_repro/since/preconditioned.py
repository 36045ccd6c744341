"""Do the updates of a physics loss's terms agree better under SOAP than under Adam?"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.decisions import Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import mean_interval, named
from .common import flat
from .physics import ABOUT, PROBLEMS, STEPS, Points, Problem, begun, others

CLAIMS = {
    "SI-23": Row(
        "Wang et al. 2025: second-order methods, SOAP above all, mitigate conflicts of gradients: "
        "terms and steps are better aligned than under Adam.",
        sided(("*: alignment of *, SOAP less Adam", ">", 0)),
        instead="differential equations in several dimensions",
    )
}

RATE, BETA, FLOOR = 3e-3, 0.95, 1e-8
Params = dict[str, Tensor]


def alignment(rows: Tensor) -> Tensor:
    """2‖mean_i g_i/‖g_i‖‖² - 1 (Wang et al. 2025): 1 where all gradients have one direction."""
    return 2 * mf.diagnostics.cosines(rows @ rows.mT).mean() - 1


class Memory(NamedTuple):
    """Running means of earlier gradients. Both methods have one beta, so that the corrections of
    both biases are one factor of the whole update.
    """

    mean: Params
    square: Params  # in SOAP's coordinates
    left: Params  # of G Gᵀ, of matrices; none for Adam
    right: Params  # of Gᵀ G


def remembered(memory: Memory, grads: Params) -> tuple[Memory, Callable[[Params], Params]]:
    """The next memory, and the linear map from gradients to updates: Adam's, in the eigenvectors of
    Shampoo's two matrices of leaves that have these.
    """
    left = {n: x.lerp(grads[n] @ grads[n].mT, 1 - BETA) for n, x in memory.left.items()}
    right = {n: x.lerp(grads[n].mT @ grads[n], 1 - BETA) for n, x in memory.right.items()}
    bases = {n: [torch.linalg.eigh(x[n])[1] for x in (left, right)] for n in left}

    def turned(name: str, g: Tensor) -> Tensor:
        return bases[name][0].mT @ g @ bases[name][1] if name in bases else g

    def back(name: str, g: Tensor) -> Tensor:
        return bases[name][0] @ g @ bases[name][1].mT if name in bases else g

    mean = {n: x.lerp(grads[n], 1 - BETA) for n, x in memory.mean.items()}
    square = {n: x.lerp(turned(n, grads[n]).square(), 1 - BETA) for n, x in memory.square.items()}
    scale = {n: 1 / (v.sqrt() + FLOOR) for n, v in square.items()}

    def update(given: Params) -> Params:
        return {n: back(n, turned(n, g) * scale[n]) for n, g in given.items()}

    return Memory(mean, square, left, right), update


def scores(problem: Problem, seeds: int, steps: int, *, soap: bool) -> Tensor:
    """Alignment of the terms' updates, and of an update with the one before, `[2, seed]`: means
    over the second half of the steps, with new points at every one.
    """

    def one(
        params: Params, memory: Memory, before: Tensor, points: Points, share: Tensor
    ) -> tuple[Params, Memory, Tensor, Tensor]:
        rows = jacrev(lambda p: torch.stack(problem.terms(p, points)))(params)
        memory, update = remembered(memory, {name: g.sum(0) for name, g in rows.items()})
        each = torch.stack([flat(update({n: g[k] for n, g in rows.items()})) for k in range(2)])
        whole, move = each.sum(0), update(memory.mean)
        score = torch.stack([alignment(each), alignment(torch.stack([before, whole]))])
        # both means start at 0: their biases cancel but for a root
        params = {n: x - RATE * move[n] / share.sqrt() for n, x in params.items()}
        return params, memory, whole, score

    params, _ = begun(problem, seeds)
    zero = {name: torch.zeros_like(x) for name, x in params.items()}
    matrices = {name: x for name, x in zero.items() if x.ndim == 3 and soap}
    left = {name: x @ x.mT for name, x in matrices.items()}
    right = {name: x.mT @ x for name, x in matrices.items()}
    memory, before = Memory(zero, zero, left, right), torch.ones_like(vmap(flat)(params))
    every, found = vmap(one, (0, 0, 0, 0, None)), []
    for moment in tqdm(range(steps), desc="SOAP" if soap else "Adam", leave=False):
        share = torch.tensor(1 - BETA ** (moment + 1), dtype=torch.float64)
        points = others(problem, seeds, moment)
        params, memory, before, score = every(params, memory, before, points, share)
        found.append(score)
    return torch.stack(found[steps // 2 :]).mean(0).mT


def run(settings: Settings) -> Findings:
    seeds, steps = max(2, settings.seeds * 3 // 8), settings.count(STEPS // 3)
    numbers: dict[str, float] = {}
    for name, problem in PROBLEMS.items():
        soap, adam = (scores(problem, seeds, steps, soap=x).cpu() for x in (True, False))
        for i, what in enumerate(("two terms' updates", "two steps' updates")):
            label = f"{name}: alignment of {what}, SOAP less Adam"
            numbers |= named(label, mean_interval(soap[i] - adam[i]))
    yield Claim(
        "SI-23",
        numbers,
        f"{ABOUT}; new points at every step, {seeds} seeds, {steps} steps at rate {RATE:g}, both "
        f"averages {BETA:g}. SOAP: Adam in the eigenvectors of Shampoo's matrices, found anew at "
        "every step. Scores of the terms' gradients as each method scales them, means over the "
        "second half of the steps; paired differences, 95 % t intervals",
    )
