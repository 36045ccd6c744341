"""Do the updates of a physics loss's terms agree better under SOAP than under Adam?"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.decisions import Claims, Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import mean_interval, named
from .common import flat
from .physics import ABOUT, PROBLEMS, STEPS, Problem, begun, others

CLAIMS = {
    "SI-23": Row(
        "Wang et al. 2025: second-order methods, SOAP above all, mitigate conflicts of gradients: "
        "terms and steps are better aligned than under Adam.",
        sided(("*: alignment of *, SOAP less Adam", ">", 0)),
        instead="differential equations in several dimensions",
    )
}
claim = Claims(CLAIMS)

RATE, FIRST, SECOND, FLOOR = 3e-3, 0.95, 0.95, 1e-8
Params = dict[str, Tensor]


def alignment(gramian: Tensor) -> Tensor:
    """2‖mean_i g_i/‖g_i‖‖² - 1 (Wang et al. 2025): 1 where all gradients have one direction."""
    return 2 * mf.diagnostics.cosines(gramian).mean() - 1


class Memory(NamedTuple):
    """What either method keeps of earlier gradients."""

    mean: Params
    square: Params  # in SOAP's coordinates
    left: Params  # mean of G Gᵀ, of matrices
    right: Params  # mean of Gᵀ G


def turned(memory: Memory, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvectors of the two means."""
    return torch.linalg.eigh(memory.left[name])[1], torch.linalg.eigh(memory.right[name])[1]


def soap(memory: Memory, grads: Params) -> tuple[Memory, Callable[[Params], Params]]:
    """The next memory, and the linear map from gradients to updates: Adam in the eigenvectors of
    Shampoo's two matrices, which are found at every step; plain Adam for vectors.
    """
    matrices = [name for name, g in grads.items() if g.ndim == 2]
    left, right = dict(memory.left), dict(memory.right)
    for name in matrices:
        g = grads[name]
        left[name] = left[name].lerp(g @ g.mT, 1 - SECOND)
        right[name] = right[name].lerp(g.mT @ g, 1 - SECOND)
    memory = memory._replace(left=left, right=right)
    bases = {name: turned(memory, name) for name in matrices}

    def into(name: str, g: Tensor) -> Tensor:
        return bases[name][0].mT @ g @ bases[name][1] if name in bases else g

    def back(name: str, g: Tensor) -> Tensor:
        return bases[name][0] @ g @ bases[name][1].mT if name in bases else g

    memory, scale = remembered(memory, grads, into)
    return memory, lambda given: {
        name: back(name, into(name, g) * scale[name]) for name, g in given.items()
    }


def adam(memory: Memory, grads: Params) -> tuple[Memory, Callable[[Params], Params]]:
    memory, scale = remembered(memory, grads, lambda name, g: g)
    return memory, lambda given: {name: g * scale[name] for name, g in given.items()}


def remembered(
    memory: Memory, grads: Params, into: Callable[[str, Tensor], Tensor]
) -> tuple[Memory, Params]:
    square = {
        name: memory.square[name].lerp(into(name, g).square(), 1 - SECOND)
        for name, g in grads.items()
    }
    mean = {name: memory.mean[name].lerp(g, 1 - FIRST) for name, g in grads.items()}
    scale = {name: 1 / (v.sqrt() + FLOOR) for name, v in square.items()}
    return memory._replace(mean=mean, square=square), scale


METHODS = {"Adam": adam, "SOAP": soap}
"""Both betas are .95, so that the corrections of both biases are one factor of the whole update."""


def scores(problem: Problem, method: str, seeds: int, steps: int) -> Tensor:
    """Alignment of the terms' updates, and of an update with the one before, `[2, seed]`: means
    over the second half of the steps, with new points at every one.
    """

    def one(
        params: Params, memory: Memory, before: Tensor, points, share: Tensor
    ) -> tuple[Params, Memory, Tensor, Tensor]:
        rows = jacrev(lambda p: torch.stack(problem.terms(p, points)))(params)
        grads = {name: g.sum(0) for name, g in rows.items()}
        memory, update = METHODS[method](memory, grads)
        each = torch.stack([flat(update({n: g[k] for n, g in rows.items()})) for k in range(2)])
        whole = each.sum(0)
        within = alignment(each @ each.mT)
        pair = torch.stack([before, whole])
        between = alignment(pair @ pair.mT)
        move = update(memory.mean)
        # both means start at 0: their biases cancel but for a root
        params = {n: x - RATE * move[n] / share.sqrt() for n, x in params.items()}
        return params, memory, whole, torch.stack([within, between])

    params, points = begun(problem, seeds)
    zero = {name: torch.zeros_like(x) for name, x in params.items()}
    matrices = {name: x for name, x in zero.items() if x.ndim == 3}
    memory = Memory(
        zero,
        zero,
        {name: x.new_zeros(seeds, x.shape[1], x.shape[1]) for name, x in matrices.items()},
        {name: x.new_zeros(seeds, x.shape[2], x.shape[2]) for name, x in matrices.items()},
    )
    before = torch.ones_like(vmap(flat)(params))
    every = vmap(one, (0, 0, 0, 0, None))
    found = []
    for moment in tqdm(range(steps), desc=method, leave=False):
        points = others(problem, seeds, moment)
        share = torch.tensor(1 - SECOND ** (moment + 1), dtype=torch.float64)
        params, memory, before, score = every(params, memory, before, points, share)
        found.append(score)
    return torch.stack(found[steps // 2 :]).mean(0).mT


def run(settings: Settings) -> Findings:
    yield aligned(max(2, settings.seeds * 3 // 8), settings.count(STEPS // 3))


def aligned(seeds: int, steps: int) -> Claim:
    numbers: dict[str, float] = {}
    for name, problem in PROBLEMS.items():
        found = {method: scores(problem, method, seeds, steps).cpu() for method in METHODS}
        for i, what in enumerate(("two terms' updates", "two steps' updates")):
            label = f"{name}: alignment of {what}, SOAP less Adam"
            numbers |= named(label, mean_interval(found["SOAP"][i] - found["Adam"][i]))
            for method, values in found.items():
                numbers[f"{name}, {method}: alignment of {what}"] = float(values[i].mean())
    return claim(
        "SI-23",
        numbers,
        f"{ABOUT}; "
        f"new points at every step, {seeds} "
        f"seeds, {steps} steps at rate {RATE:g}, both averages {SECOND:g}. SOAP: Adam in the "
        "eigenvectors of Shampoo's matrices, found anew at every step. Scores of the terms' "
        "gradients as each method scales them, means over the second half of the steps; paired "
        "differences, 95 % t intervals",
    )
