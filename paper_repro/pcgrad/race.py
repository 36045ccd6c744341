"""Does PCGrad converge faster than plain descent under Theorem 2's conditions?"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, verdict_of
from ..report.intervals import Interval, named, ratio_interval
from .common import COLOURS, PAPER
from .quadratics import Batch, Steps, convex_pair, long_steps, losses, together

LEVELS = (0.1, 0.01, 0.001)
RELATIVE = (0.25, 0.5, 1.0, 1.5, 1.9, 3.0, 6.0)


def race(dim: int, draws: int, steps: int) -> np.ndarray:
    """Excess of the sum over its minimum, in units of its start, `[method, step, pair, rate]`.

    The rates are `RELATIVE`/ℒ.
    """
    params, batch, lipschitz, least = vmap(lambda key: convex_pair(key, dim))(
        torch.arange(draws) + 10_000
    )
    rates = torch.tensor(RELATIVE, dtype=torch.float64)
    start = vmap(losses)(params, batch).sum(-1)
    trails = []
    for rule in (mf.mean(), mf.pcgrad()):
        move = mf.balance(losses, rule, mf.jacobian(), reduction="sum")

        def advance(
            x: Tensor, rate: Tensor, batch: Batch, lipschitz: Tensor, move: mf.Balance = move
        ) -> tuple[Tensor, Tensor]:
            params = {"x": x}
            direction, _, info = move.update(params, batch, move.init(params, batch))
            return x - rate / lipschitz * direction["x"], info.losses.sum()

        forward = vmap(vmap(advance, (0, 0, None, None)), (0, None, 0, 0))
        x, trail = params["x"][:, None].expand(-1, len(rates), -1), []
        for _ in tqdm(range(steps), desc=f"race in dim {dim}", leave=False):
            x, loss = forward(x, rates, batch, lipschitz)
            x = x.clamp(-1e8, 1e8)  # a diverging run must not end the others
            trail.append((loss - least[:, None]) / (start - least)[:, None])
        trails.append(torch.stack(trail))
    return torch.stack(trails).numpy()


def run(settings: Settings) -> Findings:
    draws, count = settings.count(400 if settings.full else 120), settings.count(300)
    excess = {dim: race(dim, draws, count) for dim in (2, 10)}
    yield race_figure(excess, draws)
    yield faster(excess, together(long_steps(settings)), draws)


def race_figure(excess: dict[int, np.ndarray], draws: int) -> Figure:
    canvas, panels = axes(1, 2, (11, 4.4))
    for panel, (dim, found) in zip(panels, excess.items(), strict=True):
        at = np.arange(found.shape[1]) + 1
        for values, name, method, style in zip(
            found, ("sum", "PCGrad"), ("plain", "PCGrad"), ("--", "-"), strict=True
        ):
            # [step, pair], the best rate at every step
            best = np.nanmin(np.where(np.isfinite(values), values, np.inf), -1)
            middle = np.maximum(np.quantile(best, [0.25, 0.5, 0.75], axis=1), 1e-16)
            colour = COLOURS[name]
            panel.plot(at, middle[1], style, color=colour, label=method)
            panel.fill_between(at, middle[0], middle[2], color=colour, alpha=0.2, linewidth=0)
        panel.set(
            xlabel=f"step ({dim} dimensions)",
            ylabel="(L - min L) / (L at the start - min L)",
            yscale="log",
            xscale="log",
            ylim=(1e-10, 2),
        )
        panel.legend(frameon=False)
    return Figure(
        "race",
        "Whole trajectories, each method at its best of the rates "
        f"{', '.join(f'{r:g}' for r in RELATIVE)} times 1/ℒ, pair by pair and step by step, on "
        f"{draws} random convex pairs: median and quartiles. PCGrad loses where it stalls at a "
        "Pareto point.",
        canvas,
    )


def faster(excess: dict[int, np.ndarray], steps: Steps, draws: int) -> Claim:
    dropped = steps.second.applies & (steps.plain_fall > steps.rounding)
    numbers: dict[str, float] = {
        "draws that meet Theorem 2": int(steps.second.applies.sum()),
        "of these, the plain step lowers L": int(dropped.sum()),
        "of these, t <= 1/ℒ (Theorem 1 applies)": int(
            (steps.second.applies & steps.first.applies).sum()
        ),
    }
    ratios: dict[str, Interval] = {}
    count = excess[2].shape[1]
    for (dim, found), level in itertools.product(excess.items(), LEVELS):
        reached = found <= level
        when = np.where(reached.any(1), reached.argmax(1), count).min(-1)  # [method, pair]
        label = f"dim {dim}, to {level:g} of the initial gap"
        for at, name in zip(when, ("plain", "PCGrad"), strict=True):
            numbers[f"{label}: share that gets there, {name}"] = float((at < count).mean())
        ratios[label] = ratio_interval(when[1] + 1.0, when[0] + 1.0)
        numbers |= named(f"{label}: steps of PCGrad over plain", ratios[label])
    won, lost = (
        [label for label, ratio in ratios.items() if side(ratio)]
        for side in (lambda r: r.high < 1, lambda r: r.low > 1)
    )
    return Claim(
        "PC-20",
        PAPER,
        "With conflict, a large gap of magnitudes, high curvature and a large enough step PCGrad "
        "converges faster than plain descent.",
        verdict_of(
            [ratio.high < 1 for ratio in ratios.values()],
            [ratio.low > 1 for ratio in ratios.values()],
        ),
        numbers,
        f"{draws} random convex pairs in 2 and 10 dimensions, {count} steps, best of seven rates "
        "for each method and pair; a pair that does not get there "
        f"counts as {count} steps. PCGrad is first: {'; '.join(won) or 'never'}; last: "
        f"{'; '.join(lost) or 'never'}. "
        "Theorem 2 compares single steps with t >= 2/ℓ, for which the plain step does not lower "
        "L at all. 95 % t intervals of log ratios, paired",
    )
