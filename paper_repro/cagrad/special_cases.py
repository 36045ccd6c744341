"""Are earlier methods special cases of CAGrad?"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.bounds import NEARLY_ALL
from ..report.decisions import Claims, Exact, Measured, decided, ends
from ..report.extremes import largest
from ..report.findings import Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from .common import angle, cagrad, gram, length, rows_of, threshold, unit_of


@decided(
    "no c gives DualProj's direction, nor 95 % of PCGrad's by the interval of the share",
    trained=False,
)
def special_cases(measured: Measured) -> Verdict:
    name = "T = {}: share of PCGrad's directions met by some c"
    threshold = measured["c*: draws with the wrong sign at .95 c* and 1.05 c*"] == 0
    dualproj = threshold and measured["c*: largest relative distance of d to DualProj's"] < 1e-6
    pcgrad = [ends(measured, name.format(t)) for t in (2, 3)]
    if all(low > NEARLY_ALL.now for low, _ in pcgrad):
        return "holds" if dualproj else "holds only when"
    if any(high < NEARLY_ALL.now for _, high in pcgrad):
        return "holds only when" if dualproj else "does not hold"
    return "inconclusive"


CLAIMS = {
    "CA-13": Exact(
        "Earlier methods in general are special cases.",
        special_cases,
        when="of DualProj, and of PCGrad with two tasks, with another c at every step",
    )
}
claim = Claims(CLAIMS)


class Projected(NamedTuple):
    """DualProj's direction against CAGrad's at c = c*."""

    tested: int  # draws with a conflict to remove
    wrong: int  # those in which the worst rate has the wrong sign at .95 c* or 1.05 c*
    away: float  # largest relative distance of the directions


def against_dualproj(draws: int) -> Projected:
    wrong, away, tested = 0, 0.0, 0
    for tasks in (2, 3, 5, 10):
        g = gram(rows_of(draws, tasks, tasks + 1, 100 + tasks, spread=0.3))
        c, v = threshold(g)
        some = c > 1e-3  # below: no conflict to remove
        if not some.any():
            continue
        tested += int(some.sum())
        g, c, v = g[some], c[some], v[some]
        unit = unit_of(g)
        wrong += int((cagrad(g, 0.95 * c).rates.amin(-1) / unit > -1e-9).sum()) + int(
            (cagrad(g, 1.05 * c).rates.amin(-1) / unit < -1e-9).sum()
        )
        away = largest(away, float((length(g, cagrad(g, c).weights - v) / length(g, v)).max()))
    return Projected(tested, wrong, away)


class Nearest(NamedTuple):
    """For conflicting draws the c whose direction is nearest to PCGrad's."""

    angle: Tensor  # [draw], left there
    c: Tensor  # [draw]
    ratio: Tensor  # [draw], ‖CAGrad‖/‖PCGrad‖ there


def nearest_to_pcgrad(draws: int, tasks: int, grid: list[float]) -> Nearest:
    g = gram(rows_of(draws, tasks, 3, 110 + tasks))
    g = g[(g < 0).flatten(1).any(-1)]
    orders = torch.arange(tasks).expand(tasks, tasks)
    pcgrad = vmap(lambda g: mf.weights(mf.pcgrad(orders), g))(g)
    best = Nearest(
        torch.full((len(g),), torch.inf, dtype=torch.float64),
        torch.zeros(len(g)),
        torch.zeros(len(g), dtype=torch.float64),
    )
    for c in grid:
        found = cagrad(g, c).weights
        apart = angle(g, found, pcgrad)
        better = apart < best.angle
        ratio = length(g, found) / length(g, pcgrad)
        best = Nearest(
            torch.where(better, apart, best.angle),
            torch.where(better, c, best.c),
            torch.where(better, ratio, best.ratio),
        )
    return best


def run(settings: Settings) -> Findings:
    draws = max(20, settings.count(150))
    projected = against_dualproj(draws)
    grid = (
        torch.linspace(0, 1, 101, dtype=torch.float64).tolist()
        + torch.logspace(0, 3, 50, dtype=torch.float64).tolist()[1:]
    )
    nearest = {tasks: nearest_to_pcgrad(draws, tasks, grid) for tasks in (2, 3)}
    matched = {
        tasks: share_interval(int((x.angle < 0.02).sum()), len(x.angle))
        for tasks, x in nearest.items()
    }
    numbers = {
        "c*: draws with a conflict to remove": float(projected.tested),
        "c*: draws with the wrong sign at .95 c* and 1.05 c*": float(projected.wrong),
        "c*: largest relative distance of d to DualProj's": projected.away,
    }
    for tasks in (2, 3):
        numbers |= {
            **named(f"T = {tasks}: share of PCGrad's directions met by some c", matched[tasks]),
            f"T = {tasks}: largest angle to the nearest c": float(nearest[tasks].angle.max()),
        }
    numbers |= {
        "T = 2: c that comes closest, 5 %": float(nearest[2].c.quantile(0.05)),
        "T = 2: the same, 95 %": float(nearest[2].c.quantile(0.95)),
        "T = 2: largest ‖CAGrad‖/‖PCGrad‖ there": float(nearest[2].ratio.max()),
    }
    yield claim(
        "CA-13",
        numbers,
        f"DualProj's direction at c = c*, {draws} draws each of 2, 3, 5 and 10 tasks; PCGrad "
        f"(order 0, 1, 2) against {len(grid)} values of c "
        "on conflicting draws in 3 parameters, "
        "met: within .02 radians. Besides c = 0, the limit of CA-12 and DualProj: two tasks' "
        "PCGrad only with another c at every step and "
        "another length, three tasks' not",
    )
