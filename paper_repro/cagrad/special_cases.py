"""Are earlier methods special cases of CAGrad?"""

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.bounds import NEARLY_ALL
from ..report.decisions import Exact, Measured, decided, ends
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings, Verdict
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


def against_dualproj(draws: int) -> dict[str, float]:
    """DualProj's direction against CAGrad's at c = c*, on draws with a conflict to remove."""
    wrong, away = 0, 0.0
    for tasks in (2, 3, 5, 10):
        g = gram(rows_of(draws, tasks, tasks + 1, 100 + tasks, spread=0.3))
        c, v = threshold(g)
        some = c > 1e-3
        if not some.any():
            continue
        g, c, v = g[some], c[some], v[some]
        below, above = (cagrad(g, x * c).rates.amin(-1) / unit_of(g) for x in (0.95, 1.05))
        wrong += int((below > -1e-9).sum() + (above < -1e-9).sum())
        away = largest(away, float((length(g, cagrad(g, c).weights - v) / length(g, v)).max()))
    return {
        "c*: draws with the wrong sign at .95 c* and 1.05 c*": wrong,
        "c*: largest relative distance of d to DualProj's": away,
    }


def nearest_to_pcgrad(draws: int, tasks: int, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Of conflicting draws the least angle of CAGrad's direction to PCGrad's, and the c there."""
    g = gram(rows_of(draws, tasks, 3, 110 + tasks))
    g = g[(g < 0).flatten(1).any(-1)]
    orders = torch.arange(tasks).expand(tasks, tasks)
    pcgrad = vmap(lambda g: mf.weights(mf.pcgrad(orders), g))(g)
    apart, where = torch.stack([angle(g, cagrad(g, c).weights, pcgrad) for c in grid]).min(0)
    return apart, grid[where]


def run(settings: Settings) -> Findings:
    draws = max(20, settings.count(150))
    numbers = against_dualproj(draws)
    grid = torch.tensor([*np.linspace(0, 1, 101), *np.logspace(0, 3, 50)[1:]])
    for tasks in (2, 3):
        apart, c = nearest_to_pcgrad(draws, tasks, grid)
        met = share_interval(int((apart < 0.02).sum()), len(apart))
        numbers |= named(f"T = {tasks}: share of PCGrad's directions met by some c", met)
        if tasks == 2:
            numbers["T = 2: c that comes closest, 5 %"] = float(c.quantile(0.05))
    yield Claim(
        "CA-13",
        numbers,
        f"DualProj's direction at c = c*, {draws} draws each of 2, 3, 5 and 10 tasks; PCGrad's "
        f"(order 0, 1, 2) against {len(grid)} values of c, on draws with a conflict in 3 "
        "parameters, met: within .02 radians",
    )
