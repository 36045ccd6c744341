"""What does c do between the mean gradient (0) and MGDA (∞)?"""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..report.bounds import EQUALLY_HIGH, EQUALLY_LOW, LENGTH, NEARLY_ALL
from ..report.decisions import Exact, Row, exact, sided
from ..report.extremes import largest, smallest
from ..report.figures import axes, shades
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.intervals import mean_interval, named, share_interval
from ..report.options import Draws, Option, drawn
from .common import angle, cagrad, gram, length, mean_weights, min_norm, rows_of, threshold, unit_of

CLAIMS = {
    "CA-11": Row(
        "Keeping d in a ball around g₀ keeps the overall objective in view; c tunes how "
        "much the worst task counts.",
        exact(
            ("largest fall of the worst rate from one c to the next", "<", 1e-9),
            ("least g₀·d/‖g₀‖² - (1 - c)", ">", -1e-9),
        ),
    ),
    "CA-12": Exact(
        "Gradient descent (c = 0) and MGDA (c → ∞) are special cases.",
        exact(
            ("c = 0: largest angle to g₀", "<", 1e-7),
            ("angle to MGDA at c = 10 over that at 100, *", ">", EQUALLY_LOW),
            ("angle to MGDA at c = 10 over that at 100, *", "<", EQUALLY_HIGH),
            only_when=("‖d‖/‖d_MGDA‖ at c = 100 over that at 10, median", ">", LENGTH),
        ),
        when="directions are compared; the length grows with c",
    ),
    "CA-39": Row(
        "CAGrad balances the objectives automatically.",
        sided(
            ("lengths apart by *: least cosine of d with a task, CAGrad less mean", ">", 0),
            ("lengths apart by *: share of draws in which CAGrad raises no task", ">", NEARLY_ALL),
            trained=False,
        ),
    ),
}

CS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
SIZE = 20  # parameters
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 2)))


class Sweep(NamedTuple):
    """Directions for every c."""

    threshold: Tensor  # [draw], c*
    worst: Tensor  # [c, draw], min_t rate, relative
    mean_angle: Tensor  # [c, draw], to g₀
    mgda_angle: Tensor  # [c, draw], to MGDA's direction
    progress: Tensor  # [c, draw], g₀·d/‖g₀‖²
    size: Tensor  # [c, draw], ‖d‖


def sweep(rows: Tensor, cs: Sequence[float] = CS) -> Sweep:
    """Of Jacobians `[draw, task, parameter]`."""
    g = gram(rows)
    p, w = mean_weights(g), min_norm(g)
    results = []
    for c in cs:
        found = cagrad(g, c)
        a = found.weights
        inner = torch.einsum("dt,dts,ds->d", p, g, a) / length(g, p) ** 2
        worst = found.rates.amin(-1) / unit_of(g)
        results.append((worst, angle(g, a, p), angle(g, a, w), inner, length(g, a)))
    return Sweep(threshold(g)[0], *(torch.stack(x) for x in zip(*results, strict=True)))


def run(settings: Settings) -> Findings:
    draws = settings.count(300)
    swept = {tasks: sweep(rows_of(draws, tasks, SIZE, 80 + tasks)) for tasks in (2, 5, 10)}
    yield c_figure(swept, draws, CS, SIZE)
    every, many = [*swept.values()], f"{draws} draws each of 2, 5 and 10 tasks in {SIZE} parameters"
    floor = 1 - torch.tensor(CS, dtype=torch.float64)[:, None]
    fall = largest(float(-s.worst.diff(dim=0).min()) for s in every)
    slack = smallest(float((s.progress - floor).min()) for s in every)
    yield Claim(
        "CA-11",
        {
            "largest fall of the worst rate from one c to the next": fall,
            "least g₀·d/‖g₀‖² - (1 - c)": slack,
        },
        f"{many}, {len(CS)} values of c from 0 to 100",
    )
    ten, hundred = CS.index(10.0), CS.index(100.0)
    # Where MGDA's point is a corner of the hull, its direction is met exactly from some c on.
    near, far = (torch.cat([s.mgda_angle[i] for s in every]) for i in (ten, hundred))
    angles = (near / far)[far > 1e-5]
    grows = smallest(float((s.size[hundred] / s.size[ten]).median()) for s in every)
    yield Claim(
        "CA-12",
        {
            "c = 0: largest angle to g₀": largest(float(s.mean_angle[0].max()) for s in every),
            "angle to MGDA at c = 10 over that at 100, median where it is not 0": angles.median(),
            "‖d‖/‖d_MGDA‖ at c = 100 over that at 10, median": grows,
        },
        f"{many}. On the toy see CA-14",
    )
    yield automatic(draws)


def automatic(draws: int) -> Claim:
    """Is the worst-served task served better than by the mean, however unequal the gradients?"""
    numbers: dict[str, float] = {}
    tasks, radius = 5, 0.4

    def least_cosine(g: Tensor, weights: Tensor) -> Tensor:
        cosines = (g @ weights[..., None])[..., 0] / g.diagonal(dim1=-2, dim2=-1).sqrt()
        return cosines.amin(-1) / length(g, weights)

    for apart in (1.0, 10.0, 100.0):
        g = gram(rows_of(draws, tasks, SIZE, 95, spread=apart))
        ours, mean = (least_cosine(g, w) for w in (cagrad(g, radius).weights, mean_weights(g)))
        label = f"lengths apart by {apart:g}"
        gain, share = mean_interval(ours - mean), share_interval(int((ours > -1e-9).sum()), draws)
        numbers |= named(f"{label}: least cosine of d with a task, CAGrad less mean", gain)
        numbers |= named(f"{label}: share of draws in which CAGrad raises no task", share)
    return Claim(
        "CA-39",
        numbers,
        f"{draws} normal Jacobians of {tasks} tasks and {SIZE} parameters, lengths rising "
        f"geometrically, c = {radius:g} as in the paper. Intervals: t of cosines, paired; "
        "Wilson's of shares",
    )


@drawn
def role_of_c(
    c: Annotated[tuple[float, ...], Option("values of c", 0.0, 1e6, 2)] = CS,
    tasks: Annotated[tuple[int, ...], Option("numbers of tasks", 2, 100)] = (2, 5, 10),
    parameters: Annotated[int, Option("of each task's gradient", 1, 10_000)] = SIZE,
    draws: Draws = 300,
) -> Figure:
    """CAGrad between the mean gradient and MGDA on random Jacobians, over c."""
    c = tuple(sorted(set(c)))
    swept = {count: sweep(rows_of(draws, count, parameters, 80 + count), c) for count in tasks}
    return c_figure(swept, draws, c, parameters)


def c_figure(swept: dict[int, Sweep], draws: int, cs: Sequence[float], size: int) -> Figure:
    canvas, panels = axes(1, 4, (16, 4.2))
    positive = [value for value in cs if value > 0]
    zero = 0.7 * positive[0]  # where 0 is drawn
    c = np.array([value or zero for value in cs])
    found: list[dict[str, Any]] = []
    looks = zip(shades(len(swept)), itertools.cycle(DASHES), strict=False)
    for (tasks, s), (colour, dash) in zip(swept.items(), looks, strict=True):
        shown = {
            "worst rate": s.worst,
            "angle to the mean": torch.rad2deg(s.mean_angle),
            "angle to MGDA": torch.rad2deg(s.mgda_angle),
        }
        found += [
            {"tasks": tasks, "c": value}
            | {name: float(x[i].median()) for name, x in shown.items()}
            | {"share without a negative rate": float((s.threshold <= value).double().mean())}
            for i, value in enumerate(cs)
        ]
        look = {"color": colour, "linestyle": dash}
        for axis, x in zip(panels, shown.values(), strict=False):
            low, middle, high = np.quantile(x.numpy(), (0.05, 0.5, 0.95), axis=1)
            axis.plot(c, middle, label=f"T = {tasks}", **look)
            axis.fill_between(c, low, high, color=colour, alpha=0.15, linewidth=0)
        shares = np.arange(1, draws + 1) / draws
        panels[3].step(np.sort(s.threshold.numpy()), shares, where="post", **look)
    panels[0].axhline(0, color="#777777", linewidth=1)
    panels[0].set_yscale("symlog", linthresh=1)
    panels[0].set_yticks([-1, 0, 1, 10, 100], ["-1", "0", "1", "10", "100"])
    panels[0].set(ylim=(-1, None), ylabel="worst rate")
    panels[1].set(ylabel="angle to g₀, degrees")
    panels[2].set(ylabel="angle to MGDA, degrees")
    ticks = [x for x in (1, 10, 100, 1000) if positive[0] <= x <= positive[-1]]
    ticks = ticks if len(ticks) > 1 else sorted({positive[0], positive[-1]})
    marks = {x: f"{x:g}" for x in ticks} | ({zero: "0"} if cs[0] == 0 else {})
    for axis in panels[:3]:
        axis.set(xlabel="c", xscale="log")
        axis.set_xticks([*marks], [*marks.values()])
        axis.minorticks_off()
    panels[3].set(xlabel="c*", ylabel="share of draws below", ylim=(0, 1.02))
    panels[0].legend()
    return Figure(
        "c",
        f"CAGrad from c = {cs[0]:g} to {cs[-1]:g} on {draws} random Jacobians of {size} "
        "parameters per T: medians, bands from 5 to 95 %. The worst rate is in units of ‖g₀‖ times "
        "the shortest gradient; from c* on it is not negative.",
        canvas,
        found,
    )
