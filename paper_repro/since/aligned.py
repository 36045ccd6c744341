"""What does the condition number say, and where does Aligned-MTL end?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import named, share_interval
from .common import normal
from .decisions import claim

SHARES = (0.2, 0.5, 0.8)
SIZE, NEAR = 5, 0.01  # parameters; of the fall: this near is there


def run(settings: Settings) -> Findings:
    yield condition_number(settings.count(2000))
    yield preferred(settings.count(200), settings.count(1000))



def condition_number(draws: int) -> Claim:
    numbers: dict[str, float] = {}
    for tasks in (2, 3, 5):
        rows = vmap(lambda k, tasks=tasks: normal(mf.random.key(k), tasks, tasks, 10))(
            torch.arange(draws)
        )
        lengths = vmap(lambda k, tasks=tasks: normal(mf.random.key(k), 9, tasks, 1))(
            torch.arange(draws)
        )
        rows = rows * (lengths.exp())
        kappa = torch.linalg.cond(rows)
        size = rows.norm(dim=-1)
        unlike = size.amax(-1) / size.amin(-1)
        g = rows @ rows.mT
        cosine = (g / size[:, None] / size[..., None] - torch.eye(tasks)).abs().amax((-2, -1))
        bound = (kappa.square() - 1) / (kappa.square() + 1)
        numbers |= {
            f"T = {tasks}: largest ratio of two lengths over the condition number": largest(
                unlike / kappa
            ),
            f"T = {tasks}: largest |cosine| less (κ² - 1)/(κ² + 1)": largest(cosine - bound),
        }
    parallel = torch.tensor([[1.0, 0.0], [1.0, 0.01]], dtype=torch.float64)
    numbers["(1, 0), (1, .01): condition number"] = float(torch.linalg.cond(parallel))
    return claim(
        "SI-09",
        numbers,
        f"{draws} draws of T gradients in 10 dimensions with lengths spread over e: a condition "
        "number κ bounds both the ratio of two lengths, by κ, and every cosine, by (κ² - 1)/(κ² + "
        "1), so that a small one excludes dominance and conflict. Not the other way round: two "
        "gradients that agree nearly have a large one",
    )


def preferred(draws: int, steps: int) -> Claim:
    """Two convex quadratics in five dimensions, weights chosen beforehand."""

    def problem(seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = mf.random.key(seed)
        root = normal(key, 0, 2, SIZE, SIZE)
        hessians = root @ root.mT / SIZE + 0.1 * torch.eye(SIZE, dtype=torch.float64)
        return hessians, normal(key, 1, 2, SIZE), 3 * normal(key, 2, SIZE)

    hessians, middle, start = vmap(problem)(torch.arange(draws))

    def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        off = params["x"] - batch[1]
        return 0.5 * torch.einsum("ti,tij,tj->t", off, batch[0], off)

    def end(rule: mf.Rule, lr: Tensor) -> Tensor:
        def step_of(lr: Tensor) -> mf.Step:
            return mf.descend(losses, rule, mf.jacobian(), mf.sgd(lr))

        batch = hessians, middle
        state = vmap(lambda lr, x, b: step_of(lr).init({"x": x}, b))(lr, start, batch)
        move = vmap(lambda lr, state, b: step_of(lr).update(state, b)[0])
        for _ in tqdm(range(steps), desc="to preferred weights", leave=False):
            state = move(lr, state, batch)
        return state.params["x"]

    numbers: dict[str, float] = {}
    for share in SHARES:
        w = torch.tensor([share, 1 - share], dtype=torch.float64)
        total = torch.einsum("t,dtij->dij", w, hessians)
        lr = 1 / torch.linalg.eigvalsh(total).amax(-1)
        lowest = torch.linalg.solve(
            total, torch.einsum("t,dtij,dtj->di", w, hessians, middle)
        )

        def weighted(x: Tensor, w: Tensor = w) -> Tensor:
            return vmap(lambda x, *b: losses({"x": x}, b))(x, hessians, middle) @ w

        rules = {
            "Aligned-MTL": mf.aligned_mtl(preference=w),
            "static": mf.mean(preference=w),
            "CAGrad": mf.cagrad(0.5, preference=w),
            "PCGrad": mf.pcgrad(preference=w),
            "MGDA": mf.mgda(),
        }
        for name, rule in rules.items():
            x = end(rule, lr)
            excess = (weighted(x) - weighted(lowest)) / (weighted(start) - weighted(lowest))
            _, g = vmap(lambda x, *b: mf.task_gramian(losses, {"x": x}, b))(x, hessians, middle)
            far = vmap(lambda g: mf.diagnostics.stationarity(g).length)(g)
            rest = far < 1e-3 * g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
            label = f"{name}, weights {share:g} and {1 - share:g}"
            there = share_interval(int((excess < NEAR).sum()), draws)
            numbers |= named(f"{label}: share that ends at their optimum", there)
            numbers[f"{label}: share that rests at another Pareto point"] = float(
                (rest & (excess >= NEAR)).double().mean()
            )
    return claim(
        "SI-10",
        numbers,
        f"{draws} pairs of convex quadratics in {SIZE} dimensions, {steps} plain steps by 1/L of "
        f"the weighted loss; there: within {NEAR:g} of its fall. Static weights and CAGrad take "
        "the same weights. Wilson's intervals",
    )
