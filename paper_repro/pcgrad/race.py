"""Does PCGrad converge faster than plain descent under Theorem 2's conditions?"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from mtlfunc.types import Balance

from ..report.decisions import Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_edge, chosen, judged
from ..report.intervals import named, ratio_interval, share_interval
from .common import normal
from .quadratics import Batch, Pairs, convex_pair, draw, losses
from .theorems import Overshoot, pcgrad_theorem2

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

DIMS = (2, 10)
LEVELS = (0.1, 0.01, 0.001)
RELATIVE = (0.125, 0.25, 0.5, 1.0, 1.5, 1.9, 3.0, 6.0, 12.0)
AFTER = (1, 5, 20)
TRIES = 1000  # starts that are tried for a pair
SAID = "near, dim 2"  # the case that the finding tells


def run(settings: Settings) -> Findings:
    draws = max(40, settings.count(400 if settings.full else 120))
    steps = settings.count(300)
    numbers: dict[str, float] = {}
    for dim in DIMS:
        for name, pairs in (("near", near(dim, draws)), ("built", built(dim, draws))):
            label = f"{name}, dim {dim}"
            numbers |= at_best_steps(label, pairs, steps) | at_the_same_steps(label, pairs)
    yield Claim(
        "PC-20",
        numbers,
        f"at most {draws} convex pairs a case in 2 and 10 dimensions, from starts with cos φ <= -Φ "
        "and ℓ > ξℒ: random pairs near their minimisers (near), and gradients nearly opposite with "
        "the largest curvature along their sum (built). "
        f"{steps} steps, each method at the best of {len(RELATIVE)} rates by the other half of the "
        f"pairs; a pair that does not get there counts as {steps + 1} steps. With one step for "
        "both, t = 2/(ℓ - ξℒ) (large; open where PCGrad ends above its own start in most pairs), "
        "or in the first case t = 1/ℒ (stable, after one step, not judged): which is lower. 95 % t "
        "intervals of log ratios, paired; Wilson's of shares",
    )


def theorem2(x: Tensor, batch: Batch, lipschitz: Tensor) -> Overshoot:
    """At x, with ℓ the curvature along the summed gradient."""
    rows = mf.task_gradients(losses, {"x": x}, batch)[1]["x"]
    g = rows.sum(0)
    curvature = g @ batch[1].sum(0) @ g
    return pcgrad_theorem2(rows @ rows.mT, 2 / lipschitz, lipschitz, curvature)


def meets(x: Tensor, batch: Batch, lipschitz: Tensor) -> Tensor:
    found = theorem2(x, batch, lipschitz)
    return found.dominated & found.curved


def near(dim: int, draws: int) -> Pairs:
    """`quadratics.convex_pair` from the first of `TRIES` random starts about its minimisers that
    meets the conditions.
    """
    keys = torch.arange(draws)
    _, batch, lipschitz, least = vmap(convex_pair, (0, None))(keys + 10_000, dim)
    # around the segment between the minimisers, at many distances: far from it tasks agree
    centres = torch.linalg.solve(batch[1], -batch[0][..., None])[..., 0]
    normals = vmap(normal, (0, None, None))
    share, radius = normals(keys, 30, (TRIES, 1)), normals(keys, 31, (TRIES, 1))
    noise = normals(keys, 32, (TRIES, dim))
    middle = torch.lerp(centres[:, None, 0], centres[:, None, 1], 0.5 + 0.5 * share)
    points = middle + 10 ** (0.5 * radius - 0.5) * noise
    good = vmap(vmap(meets, (0, None, None)))(points, batch, lipschitz)
    kept = good.any(1).nonzero().flatten()
    x = points[kept, good[kept].int().argmax(1)]
    return Pairs(x, (batch[0][kept], batch[1][kept]), lipschitz[kept], least[kept])


def built(dim: int, draws: int) -> Pairs:
    """`quadratics.draw` with gradients nearly opposite and the top curvature along their sum."""
    batch = vmap(lambda key: draw(key, dim, aligned=True))(torch.arange(draws) + 10_000)
    matrix, g = batch[1].sum(1), batch[0].sum(1)
    lipschitz, x = torch.linalg.eigvalsh(matrix)[:, -1], torch.zeros_like(g)
    kept = vmap(meets)(x, batch, lipschitz).nonzero().flatten()
    least = -0.5 * (g * torch.linalg.solve(matrix, g)).sum(-1)
    return Pairs(x[kept], (batch[0][kept], batch[1][kept]), lipschitz[kept], least[kept])


def sums(pairs: Pairs, lengths: Tensor, points: int, bound: float) -> np.ndarray:
    """The sum of the losses under plain descent and under PCGrad, `[method, point, pair, length]`,
    from the start on. Every pair takes steps of each of its `lengths`, `[pair, length]`; no
    coordinate leaves ±bound, so that a diverging run does not end the others.
    """
    found = []
    for rule in (mf.mean(), mf.pcgrad()):
        move = mf.balance(losses, rule, mf.jacobian(), reduction="sum")
        # the same for all: neither rule keeps anything or draws orders for two tasks
        first = move.init({"x": pairs.x[0]}, (pairs.batch[0][0], pairs.batch[1][0]))

        def advance(
            x: Tensor, length: Tensor, batch: Batch, move: Balance = move, first: Any = first
        ) -> tuple[Tensor, Tensor]:
            direction, _, info = move.update({"x": x}, batch, first)
            return x - length * direction["x"], info.losses.sum()

        forward = vmap(vmap(advance, (0, 0, None)))
        x, trail = pairs.x[:, None].expand(-1, lengths.shape[1], -1), []
        for _ in tqdm(range(points), desc="race of quadratics", leave=False):
            x, loss = forward(x, lengths, pairs.batch)
            x = x.clamp(-bound, bound)
            trail.append(loss)
        found.append(torch.stack(trail))
    return torch.stack(found).numpy()


def at_best_steps(label: str, pairs: Pairs, steps: int) -> dict[str, float]:
    """PCGrad's steps over plain ones, each method's rate chosen on the other half of the pairs."""
    numbers: dict[str, float] = {}
    lengths = torch.tensor(RELATIVE, dtype=torch.float64) / pairs.lipschitz[:, None]
    loss, least = sums(pairs, lengths, steps, 1e8), pairs.least.numpy()[:, None]
    excess = (loss - least) / (loss[:, :1] - least)
    for level in LEVELS:
        reached = excess <= level
        when = np.where(reached.any(1), reached.argmax(1), steps).swapaxes(1, 2) + 1.0
        choices = [chosen(np.log(part)) for part in when]
        plain, edited = map(judged, when, choices)
        name = f"{label}, to {level:g} of the initial gap"
        if label == SAID and level == LEVELS[0]:
            for method, at in (("plain", plain), ("PCGrad", edited)):
                share = float((at <= steps).mean())
                numbers[f"{name}: share that gets there, {method}"] = share
        edge = any(at_edge(choice, len(RELATIVE)) for choice in choices)
        ratio = ratio_interval(edited, plain)
        numbers |= named(f"{name}: steps of PCGrad over plain", ratio, unsettled=edge)
    return numbers


def at_the_same_steps(label: str, pairs: Pairs) -> dict[str, float]:
    """Shares of pairs in which PCGrad is lower than descent when both take the same steps. Large:
    the smallest that Theorem 2 allows at the start. Stable: t = 1/ℒ.
    """
    numbers: dict[str, float] = {}
    large = vmap(theorem2)(pairs.x, pairs.batch, pairs.lipschitz).shortest
    loss = sums(pairs, torch.stack([large, 1 / pairs.lipschitz], -1), AFTER[-1] + 1, 1e100)
    for i, kind, times in ((0, "large", AFTER), (1, "stable", AFTER[:1] if label == SAID else ())):
        for after in times:
            plain, edited = loss[:, after, :, i]
            name = f"{label}, {kind} steps: share of pairs in which PCGrad is lower after {after}"
            lower = share_interval(int((edited < plain).sum()), len(plain))
            risen = share_interval(int((edited > loss[1, 0, :, i]).sum()), len(plain))
            # where it diverges, none converges
            numbers |= named(name, lower, unsettled=risen.low > 0.5)
    return numbers
