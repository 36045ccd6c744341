"""The toy (Liu et al. 2021, section 5.1): which rules get past the cusps?"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas

import mtlfunc as mf
from common.problems import cagrad_toy as problem

from ..report.bounds import MOVED
from ..report.decisions import Claims, Measured, Row, decided, named_so
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from .toy_figures import surface
from .toy_maps import LEGEND, maps
from .toy_runs import COLOURS, DASHES, WHOLE, Run, Toy, of, title_of, toy, with_steps


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
        when="of MGDA and CAGrad: a nudge of 1e-9 at the start decides, with the sign of the code, "
        "and moves the mean loss at the end by {GD: largest change of the mean loss at the end "
        "under a nudge} (descent) and {PCGrad: largest change of the mean loss at the end under a "
        "nudge} (PCGrad); with the printed sign MGDA's end also moves in other arithmetic",
    ),
    "CA-25": Row(
        "Gradient descent halts in 2 of 5 runs.",
        halts.open_unless(WHOLE),
        when="a start of the code replaces a printed one, or after more steps; later none halts",
    ),
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    yield surface()
    found = toy(settings)
    yield from trajectories(found.runs)
    yield loss_curves(found.runs)
    yield stuck(found)
    yield reproducible(found)


def trajectories(runs: dict[str, Run]) -> Findings:
    """Maps by either sign."""
    usual = {title_of(name): (runs[name], hyper) for name, hyper in problem.USUAL.items()}
    panels = usual | {"CAGrad, c = 0.8": (runs["CAGrad"], 0.8)}
    yield Figure(
        "trajectories",
        "Trajectories from each start (Figure 3 of Liu et al. 2021, with GradNorm beside), + in "
        f"f₂. {LEGEND}",
        maps(panels, problem.CODE, 3),
    )
    yield Figure(
        "printed-sign",
        "Trajectories from each start as in Figure 3 of Liu et al. 2021, with the sign that the "
        f"paper prints in f₂. {LEGEND}",
        maps(panels, problem.PAPER_SIGN, 3),
    )


def loss_curves(runs: dict[str, Run]) -> Figure:
    canvas = Canvas(figsize=(13, 7), layout="constrained")
    for i, start in enumerate(problem.STARTS):
        axis = canvas.add_subplot(2, 3, i + 1)
        for name, hyper in (problem.USUAL | {"CAGrad, epsilons": 10.0}).items():
            label = "CAGrad, c = 10 with epsilons" if "eps" in name else title_of(name)
            value = runs[name].mean_loss([start], hyper)[:, 0]
            axis.plot(
                runs[name].times / 1000,
                value,
                color=COLOURS[name],
                linestyle=DASHES[name],
                linewidth=1.8,
                label=label,
            )
        axis.set(
            title=f"from ({start[0]:g}, {start[1]:g})", xlabel="thousand steps", ylabel="mean loss"
        )
        axis.grid()
        if i == 0:
            canvas.legend(
                *axis.get_legend_handles_labels(),
                loc="outside lower center",
                ncols=6,
                frameon=False,
            )
    return Figure(
        "losses", "Mean of the two losses along the trajectories, from each start; + in f₂.", canvas
    )


def steepest_at_kink() -> dict[str, float]:
    """The longest gradient at (0, 0) by the subderivative of max(tanh, 0) there."""
    kink = torch.zeros(2, dtype=torch.float64)
    found = {}
    for slope, at_0 in {"1": problem.ramp, "0": torch.relu}.items():
        loss = functools.partial(problem.losses, ramp=at_0)
        gramian = mf.task_gramian(loss, {"x": kink}, kink.new_tensor(problem.CODE))[1]
        found[f"longest gradient at (0, 0) with subderivative {slope}"] = float(
            gramian.diagonal().max().sqrt()
        )
    return found


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
        for task in range(2):
            inner = 0.5 * (-x - 7) - tanh if task == 0 else 0.5 * (-x + 3) + tanh + 2
            turn = bend if task == 0 else -bend
            f, f_x, f_y = math.log(max(abs(inner), 5e-6)) + 6, 0.0, 0.0
            if abs(inner) >= 5e-6:
                f_x, f_y = -0.5 / inner, turn / inner
            side = -x + 7 if task == 0 else -x - 7
            q = (side * side + 0.1 * (-y - 8) ** 2) / 10 - 20
            q_x, q_y = -side / 5, (y + 8) / 50
            dx += 0.5 * (up * f_x + down * q_x)
            dy += 0.5 * (rise * f + up * f_y + fall * q + down * q_y)
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


def stuck_later() -> dict[str, float]:
    """Starts from which descent is stuck after more steps than the paper takes."""
    descend = compiled_descent()
    return {
        f"stuck, printed starts, after {steps} steps (a literal loop)": float(
            sum(descend(x, y, steps) > 0 for x, y in problem.PRINTED)
        )
        for steps in (100_000, 300_000, 1_000_000)
    }


def stuck(toy: Toy) -> Claim:
    descent = toy.runs["GD"]
    exchanged = [problem.SCRIPT[1] if start == (-8.5, 5.0) else start for start in problem.PRINTED]
    ends = {
        "printed starts": descent.mean_loss(problem.PRINTED, 0.0),
        "printed starts, printed sign": descent.mean_loss(problem.PRINTED, 0.0, problem.PAPER_SIGN),
        "(-8.5, -5) for (-8.5, 5)": descent.mean_loss(exchanged, 0.0),
        "the script's three": descent.mean_loss(problem.SCRIPT, 0.0),
    }
    counts = {
        name: float("nan") if np.isnan(loss[-1]).any() else int((loss[-1] > 0).sum())
        for name, loss in ends.items()
    }
    printed, changed = counts["printed starts"], counts["(-8.5, -5) for (-8.5, 5)"]
    return claim(
        "CA-25",
        with_steps(
            {"stuck, published": 2.0}
            | {f"stuck, {name}": float(count) for name, count in counts.items()}
            | stuck_later()
            | of("mean loss at the end", descent.mean_loss(problem.STARTS, 0.0)[-1]),
            toy,
        ),
        f"{toy.budget}; stuck: mean loss above 0 at the end. "
        f"From the printed starts {printed} of 5, with (-8.5, -5), a start of the code, for "
        f"(-8.5, 5) {changed} of 5. With more steps fewer are: descent is slow in the valleys of "
        "the logarithms and does not halt there (x₂ > 0 at the end, of a loop that shares no code "
        "with the runs)",
    )


def reproducible(toy: Toy) -> Claim:
    numbers = {
        f"{name}{', printed sign' if sign < 0 else ''}: mean loss at the end from ({start[0]:g}, "
        f"{start[1]:g})": float(toy.runs[name].mean_loss([start], problem.USUAL[name], sign)[-1, 0])
        for name in ("GD", "MGDA", "PCGrad", "CAGrad")
        for sign in (problem.CODE, problem.PAPER_SIGN)
        for start in problem.STARTS
    }
    moved = float(toy.runs["GD"].of([(0.0, 0.0)], 0.0)[-1].norm())
    nudges = {}
    for name in ("GD", "MGDA", "PCGrad", "CAGrad"):
        run = toy.runs[name]
        beside = problem.at(run.points[-1, run.nudged]).mean(-1).cpu().numpy()
        change = np.abs(beside - run.mean_loss(problem.STARTS, problem.USUAL[name])[-1]).max()
        nudges[f"{name}: largest change of the mean loss at the end under a nudge"] = float(change)
    return claim(
        "CA-24",
        with_steps(nudges | steepest_at_kink() | {"GD's way from (0, 0)": moved} | numbers, toy),
        f"{toy.budget}; reproducible: a nudge of {problem.NUDGE:g} at the start changes no mean "
        "loss at the end by 1e-2; nothing is random. Starts printed and scripted, both signs. At "
        "(0, 0) the subderivative of max(tanh, 0) decides: clamp's 1 is used, with 0 both "
        "gradients vanish and nothing moves",
    )
