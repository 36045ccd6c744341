"""The toy (Liu et al. 2021, section 5.1): which rules get past the cusps?"""

import functools
import math
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure as Canvas

from common.problems import cagrad_toy as problem

from ..report.bounds import MOVED
from ..report.decisions import Measured, Row, decided, named_so
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from .toy_figures import LEGEND, maps
from .toy_runs import WHOLE, Run, Toy, of, toy


@decided("with each of the four methods a nudge of 1e-9 at the start changes where a run ends")
def judge_reproducible(measured: Measured) -> Verdict:
    names = named_so(measured, "*: largest change of the mean loss at the end under a nudge")
    same = [measured[name] < MOVED.now for name in names]
    if all(same):
        return "holds"
    return "holds only when" if any(same) else "does not hold"


@decided(
    "GD is stuck from two starts neither printed nor with (-8.5, -5), nor later; in part unless it "
    "is from two printed starts after the paper's steps, and still after ten times as many"
)
def halts(measured: Measured) -> Verdict:
    late = [
        measured[f"stuck, printed starts, after {steps} steps (a literal loop)"]
        for steps in (300_000, 1_000_000)
    ]
    now, changed = measured["stuck, printed starts"], measured["stuck, (-8.5, -5) for (-8.5, 5)"]
    if now == late[-1] == 2:
        return "holds"
    return "holds only when" if 2 in (now, changed, *late) else "does not hold"


CLAIMS = {
    "CA-24": Row(
        "The 2-D toy is reproducible: gradient descent, MGDA, PCGrad and CAGrad from five "
        "starts, Adam 1e-3, 1e5 steps.",
        judge_reproducible.open_unless(WHOLE),
        when="of CAGrad, and of MGDA in some arithmetics: a nudge of 1e-9 at the start decides, "
        "with the sign of the code, and moves the mean loss at the end by {GD: largest change of "
        "the mean loss at the end under a nudge} (descent) and {PCGrad: largest change of the mean "
        "loss at the end under a nudge} (PCGrad); with the printed sign MGDA's end "
        "also moves in other arithmetic",
    ),
    "CA-25": Row(
        "Gradient descent halts in 2 of 5 runs.",
        halts.open_unless(WHOLE),
        when="a start of the code replaces a printed one, or after more steps; later none halts",
    ),
}


def run(settings: Settings) -> Findings:
    found = toy(settings)
    yield trajectories(found.runs)
    yield stuck(found)
    yield reproducible(found)


def trajectories(runs: dict[str, Run]) -> Figure:
    titles = {"GradNorm": "GradNorm, α = {:g}", "CAGrad": "CAGrad, c = {:g}"}
    paths = {
        titles.get(name, name).format(hyper): runs[name].of(problem.STARTS, hyper).cpu()
        for name, hyper in [*problem.USUAL.items(), ("CAGrad", 0.8)]
    }
    canvas = Canvas(figsize=(11.2, 7), layout="constrained")
    maps(canvas, canvas.add_gridspec(2, 3), runs["GD"].times, paths, problem.CODE)
    return Figure(
        "trajectories",
        "Trajectories from each start (Figure 3 of Liu et al. 2021, with GradNorm beside), + in "
        f"f₂. {LEGEND} The starts are those of the paper and (-8.5, -5) of its code.",
        canvas,
    )


@functools.cache
def compiled_descent() -> Callable[[float, float, int], float]:
    """Adam on the toy's mean loss as a loop over numbers, which shares no code with the runs."""
    from numba import njit

    @njit
    def pull(x: float, y: float) -> tuple[float, float]:
        """Gradient of the mean loss, + in f₂; max(·, 0) has derivative 1 at 0."""
        tanh, half = math.tanh(-y), math.tanh(0.5 * y)
        bend, slope = 1 - tanh * tanh, 0.5 * (1 - half * half)
        up, down = max(half, 0.0), max(-half, 0.0)
        rise, fall = slope * (half >= 0), -slope * (half <= 0)
        dx = dy = 0.0
        for side, inner, turn in (
            (-x + 7, 0.5 * (-x - 7) - tanh, bend),
            (-x - 7, 0.5 * (-x + 3) + tanh + 2, -bend),
        ):
            f = math.log(max(abs(inner), 5e-6)) + 6
            steep = 1 / inner if abs(inner) >= 5e-6 else 0.0
            q = (side * side + 0.1 * (-y - 8) ** 2) / 10 - 20
            dx -= 0.5 * (up * 0.5 * steep + down * side / 5)
            dy += 0.5 * (rise * f + up * turn * steep + fall * q + down * (y + 8) / 50)
        return dx, dy

    @njit
    def descend(x: float, y: float, steps: int) -> float:
        """x₂ at the end: above 0 it is still in a valley of the logarithms."""
        m_x = m_y = v_x = v_y = 0.0
        for k in range(1, steps + 1):
            dx, dy = pull(x, y)
            m_x, m_y = 0.9 * m_x + 0.1 * dx, 0.9 * m_y + 0.1 * dy
            v_x, v_y = 0.999 * v_x + 0.001 * dx * dx, 0.999 * v_y + 0.001 * dy * dy
            first, second = 1 - 0.9**k, 1 - 0.999**k
            x -= 1e-3 * (m_x / first) / (math.sqrt(v_x / second) + 1e-8)
            y -= 1e-3 * (m_y / first) / (math.sqrt(v_y / second) + 1e-8)
        return y

    return descend


def stuck(toy: Toy) -> Claim:
    exchanged = [problem.SCRIPT[1] if start == (-8.5, 5.0) else start for start in problem.PRINTED]
    printed, changed = (
        np.where(np.isnan(loss), np.nan, loss > 0).sum()
        for loss in (toy.runs["GD"].mean_loss(x, 0.0)[-1] for x in (problem.PRINTED, exchanged))
    )
    descend = compiled_descent()
    later = {
        f"stuck, printed starts, after {steps} steps (a literal loop)": sum(
            descend(x, y, steps) > 0 for x, y in problem.PRINTED
        )
        for steps in (300_000, 1_000_000)
    }
    return Claim(
        "CA-25",
        {"stuck, printed starts": printed, "stuck, (-8.5, -5) for (-8.5, 5)": changed}
        | later
        | {"steps": toy.steps},
        f"{toy.budget}; stuck: mean loss above 0 at the end, of five starts; (-8.5, -5) is of the "
        "code. Later: x₂ > 0 at the end, of a loop that shares no code with the runs",
    )


def reproducible(toy: Toy) -> Claim:
    numbers: dict[str, float] = {}
    for name in ("GD", "MGDA", "PCGrad", "CAGrad"):
        run = toy.runs[name]
        beside = problem.at(run.points[-1, run.nudged]).mean(-1).cpu().numpy()
        change = np.abs(beside - run.mean_loss(problem.STARTS, problem.USUAL[name])[-1]).max()
        numbers[f"{name}: largest change of the mean loss at the end under a nudge"] = change
    moves = toy.runs["MGDA"].mean_loss([(9.0, 9.0)], 0.0, problem.PAPER_SIGN)[-1]
    return Claim(
        "CA-24",
        numbers
        | of("MGDA, printed sign: mean loss at the end", moves, [(9.0, 9.0)])
        | {"steps": toy.steps},
        f"{toy.budget}; a nudge is {problem.NUDGE:g}; nothing is random",
    )
