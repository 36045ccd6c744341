"""Does PCGrad converge faster than plain descent under Theorem 2's conditions?"""

import functools
import itertools
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.decisions import OPEN, Claims, Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_edge, chosen, judged
from ..report.intervals import named, ratio_interval, share_interval
from . import theorems
from .common import normal
from .measures import curvature_bound
from .quadratics import Batch, Steps, convex_pair, draw, long_steps, losses, together

CLAIMS = {
    "PC-20": Row(
        "With conflict, a large gap of magnitudes, high curvature and a large enough step "
        "PCGrad converges faster than plain descent.",
        sided(
            ("near, dim *: steps of PCGrad over plain", "<", 1),
            ("built, dim *: steps of PCGrad over plain", "<", 1),
            ("*, large steps: share of pairs in which PCGrad is lower after *", ">", 0.5),
        ),
        finding=(
            "two dimensions. At steps as large as Theorem 2 needs, which are too large for "
            "plain descent, PCGrad's loss is the lower one after one step in a share of "
            "{near, dim 2, large steps: share of pairs in which PCGrad is lower after 1} of "
            "the pairs; at stable steps in {near, dim 2, stable steps: share of pairs in "
            "which PCGrad is lower after 1}. Each at its best step, {near, dim 2, to 0.1 of "
            "the initial gap: share that gets there, PCGrad} of PCGrad's runs and {near, dim "
            "2, to 0.1 of the initial gap: share that gets there, plain} of plain descent's "
            "come within a tenth of the initial gap"
        ),
    )
}
claim = Claims(CLAIMS)

Starts = Literal["near", "built", "any"]
LEVELS = (0.1, 0.01, 0.001)
RELATIVE = (0.125, 0.25, 0.5, 1.0, 1.5, 1.9, 3.0, 6.0, 12.0)


def race(dim: int, draws: int, steps: int) -> dict[Starts, np.ndarray]:
    """Excess of the sum over its minimum, in units of its start, `[method, step, pair, rate]`. The
    rates are `RELATIVE`/ℒ. Pairs of all starts (see `pairs`) run side by side.
    """
    every = {starts: pairs(dim, draws, starts) for starts in get_args(Starts)}
    counts = [len(lipschitz) for _, _, lipschitz, _ in every.values()]
    params, batch, lipschitz, least = together(every)
    rates = torch.tensor(RELATIVE, dtype=torch.float64)
    start = vmap(losses)(params, batch).sum(-1)
    trails = []
    for rule in (mf.mean(), mf.pcgrad()):
        move = mf.balance(losses, rule, mf.jacobian(), reduction="sum")
        # the same for all: neither rule keeps anything or draws orders for two tasks
        first = move.init({"x": params["x"][0]}, (batch[0][0], batch[1][0]))
        update = functools.partial(move.update, state=first)

        def advance(
            x: Tensor, rate: Tensor, batch: Batch, lipschitz: Tensor, update: Any = update
        ) -> tuple[Tensor, Tensor]:
            direction, _, info = update({"x": x}, batch)
            return x - rate / lipschitz * direction["x"], info.losses.sum()

        forward = vmap(vmap(advance, (0, 0, None, None)), (0, None, 0, 0))
        x, trail = params["x"][:, None].expand(-1, len(rates), -1), []
        for _ in tqdm(range(steps), desc=f"race in dim {dim}", leave=False):
            x, loss = forward(x, rates, batch, lipschitz)
            x = x.clamp(-1e8, 1e8)  # a diverging run must not end the others
            trail.append((loss - least[:, None]) / (start - least)[:, None])
        trails.append(torch.stack(trail))
    found = torch.stack(trails).split(counts, 2)
    return {starts: part.numpy() for starts, part in zip(every, found, strict=True)}


def run(settings: Settings) -> Findings:
    draws = max(40, settings.count(400 if settings.full else 120))
    count = settings.count(300)
    by_dim = {dim: race(dim, draws, count) for dim in (2, 10)}
    excess: dict[Starts, dict[int, np.ndarray]] = {
        starts: {dim: found[starts] for dim, found in by_dim.items()} for starts in get_args(Starts)
    }
    large = {name: x for dim in (2, 10) for name, x in large_steps(dim, draws).items()}
    yield faster(excess, together(long_steps(settings)), large)


TRIES = 1000  # starts that are tried for a pair


def meets(x: Tensor, batch: Batch, lipschitz: Tensor) -> Tensor:
    """Whether cos φ <= -Φ and ℓ > ξℒ there, with ℓ the curvature along the summed gradient."""
    rows = mf.task_gradients(losses, {"x": x}, batch)[1]["x"]
    g = rows.sum(0)
    curvature = g @ batch[1].sum(0) @ g
    two = theorems.pcgrad_theorem2(rows @ rows.mT, 2 / lipschitz, lipschitz, curvature)
    return two.dominated & two.curved & ((rows[0] @ rows[1]) < 0)


def pairs(dim: int, draws: int, starts: Starts) -> tuple[mf.types.Params, Batch, Tensor, Tensor]:
    """Convex pairs with their starts, ℒ and least sum, of those that meet the conditions there. Of
    `quadratics.convex_pair` from the first of `TRIES` random starts about its minimisers that does
    ("near"), of `quadratics.draw` with gradients nearly opposite and the top curvature along their
    sum ("built"), or from its own random start, whether or not it does ("any").
    """
    keys = torch.arange(draws) + 10_000
    if starts == "built":
        batch = vmap(lambda key: draw(key, dim, aligned=True))(keys)
        matrix, g = batch[1].sum(1), batch[0].sum(1)
        lipschitz, x = torch.linalg.eigvalsh(matrix)[:, -1], torch.zeros_like(g)
        kept = vmap(meets)(x, batch, lipschitz).nonzero().flatten()
        least = -0.5 * (g * torch.linalg.solve(matrix, g)).sum(-1)
        return {"x": x[kept]}, (batch[0][kept], batch[1][kept]), lipschitz[kept], least[kept]
    found = vmap(lambda key: convex_pair(key, dim))(keys)
    if starts == "any":
        return found
    _, batch, lipschitz, least = found
    # around the segment between the minimisers, at many distances: far from it tasks agree
    centres = torch.linalg.solve(batch[1], -batch[0][..., None])[..., 0]
    share, radius, noise = (
        vmap(lambda key, i=i, size=size: normal(key, 30 + i, (TRIES, size)))(torch.arange(draws))
        for i, size in enumerate((1, 1, dim))
    )
    middle = torch.lerp(centres[:, None, 0], centres[:, None, 1], 0.5 + 0.5 * share)
    points = middle + 10 ** (0.5 * radius - 0.5) * noise
    good = vmap(vmap(meets, (0, None, None)))(points, batch, lipschitz)
    kept = good.any(1).nonzero().flatten()
    x = points[kept, good[kept].int().argmax(1)]
    return {"x": x}, (batch[0][kept], batch[1][kept]), lipschitz[kept], least[kept]


AFTER = (1, 5, 20)


def large_steps(dim: int, draws: int) -> dict[str, float]:
    """Shares of pairs in which PCGrad is lower than descent when both take the same steps. Large: t
    = 2/(ℓ - ξℒ) of Theorem 2 at the start, the smallest that it allows. Stable: t = 1/ℒ.
    """
    numbers: dict[str, float] = {}
    for starts in ("near", "built"):
        params, batch, lipschitz, _ = pairs(dim, draws, starts)
        x = params["x"]
        rows = batch[0] + (batch[1] @ x[:, None, :, None])[..., 0]
        g, gramian = rows.sum(1), rows @ rows.mT
        least = torch.einsum("di,dij,dj->d", g, batch[1].sum(1), g) / g.square().sum(-1)
        bound = vmap(curvature_bound)(gramian)[:, 0, 1]
        lengths = {"large": 2 / (least - bound * lipschitz), "stable": 1 / lipschitz}
        for kind, t in lengths.items():
            ends = []
            for rule in (mf.mean(), mf.pcgrad()):
                move = mf.balance(losses, rule, mf.jacobian(), reduction="sum")
                first = move.init({"x": x[0]}, (batch[0][0], batch[1][0]))
                update = vmap(lambda at, b, move=move, first=first: move.update(at, b, first)[0])
                at, trail = x, []
                for _ in range(AFTER[-1]):
                    at = (at - t[:, None] * update({"x": at}, batch)["x"]).clamp(-1e100, 1e100)
                    trail.append(vmap(losses)({"x": at}, batch).sum(-1))
                ends.append(torch.stack(trail))
            begin = vmap(losses)({"x": x}, batch).sum(-1)
            for after in AFTER:
                lower = ends[1][after - 1] < ends[0][after - 1]
                risen = share_interval(int((ends[1][after - 1] > begin).sum()), len(begin))
                case = f"{starts}, dim {dim}, {kind} steps: share of pairs in which PCGrad is"
                name = f"{case} lower after {after}"
                numbers |= named(name, share_interval(int(lower.sum()), len(lower)))
                numbers |= named(f"{case} above its own start after {after}", risen)
                numbers[name + OPEN] = float(risen.low > 0.5)  # it diverges: none converges
    return numbers


def arrivals(found: np.ndarray, level: float) -> np.ndarray:
    """Steps to a level, `[method, rate, pair]`; one more than all for a run that never is there."""
    reached = found <= level
    when = np.where(reached.any(1), reached.argmax(1), found.shape[1])
    return np.moveaxis(when, -1, 1) + 1.0


def compared(prefix: str, excess: dict[int, np.ndarray]) -> dict[str, float]:
    """PCGrad's steps over plain ones, each method's rate chosen on the other half of the pairs."""
    numbers: dict[str, float] = {}
    for (dim, found), level in itertools.product(excess.items(), LEVELS):
        label, steps = f"{prefix}dim {dim}, to {level:g} of the initial gap", arrivals(found, level)
        choices = [chosen(np.log(part)) for part in steps]
        when = [judged(part, choice) for part, choice in zip(steps, choices, strict=True)]
        for at, name in zip(when, ("plain", "PCGrad"), strict=True):
            share = float((at <= found.shape[1]).mean())
            numbers[f"{label}: share that gets there, {name}"] = share
        edge = any(at_edge(choice, len(RELATIVE)) for choice in choices)
        ratio = ratio_interval(when[1], when[0])
        numbers |= named(f"{label}: steps of PCGrad over plain", ratio, unsettled=edge)
    return numbers


def faster(
    excess: dict[Starts, dict[int, np.ndarray]], steps: Steps, large: dict[str, float]
) -> Claim:
    dropped = steps.second.applies & (steps.plain_fall > steps.rounding)
    numbers: dict[str, float] = {
        f"pairs in {dim} dimensions, {starts}": found.shape[2]
        for starts, both in excess.items()
        for dim, found in both.items()
    }
    for starts, both in excess.items():
        numbers |= compared(f"{starts}, ", both)
    numbers |= large
    numbers |= {
        "draws that meet Theorem 2": int(steps.second.applies.sum()),
        "of these, the plain step lowers L": int(dropped.sum()),
        "of these, t <= 1/ℒ (Theorem 1 applies)": int(
            (steps.second.applies & steps.first.applies).sum()
        ),
    }
    count = excess["any"][2].shape[1]
    return claim(
        "PC-20",
        numbers,
        "convex pairs in 2 and 10 dimensions from starts that meet cos φ <= -Φ and ℓ > ξℒ: random "
        "ones, started about their minimisers (near), and ones built so, with gradients nearly "
        "opposite and the largest curvature along their sum (built); "
        f"{count} steps, each method at the best of {len(RELATIVE)} rates by the other half of the "
        f"pairs; a pair that does not get there counts as {count + 1} steps. From any "
        "start the numbers stand beside, and are not judged. Also with one step for both, the "
        "smallest that Theorem 2 allows, t = 2/(ℓ - ξℒ) (large steps; plain descent does not lower "
        "L with it; where PCGrad is above its own start in most pairs nothing is settled), "
        "and with t = 1/ℒ (stable steps, not judged): "
        "which of the two is lower. 95 % t intervals of log ratios, paired; Wilson's of shares",
    )
