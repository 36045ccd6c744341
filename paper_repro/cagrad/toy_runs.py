"""All rules of the toy from all of its starts, run once, and what is read off the runs."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.problems import cagrad_toy as problem
from common.regions import OPTIONS

from ..report.decisions import Condition
from ..report.findings import Settings
from ..report.parts import kept

STEPS, EAGER_STEPS, DECIDED = 100_000, 10_000, 70_000
WHOLE = Condition("steps", ">=", STEPS)
WATCHED = 20_000  # first steps that are all kept, for what Adam does to the rates
EVERY = 50  # steps between the points kept of the whole run
UNROLL = 10  # steps a compiled call: a call costs as much as a step
COMPILE_FROM = 5_000  # steps from which compiling pays
CONTACT = 0.01  # the Pareto set is met at this distance


class Run(NamedTuple):
    """One rule from all of its starts."""

    lanes: problem.Lanes
    random: list[int]  # lanes that started at random points
    nudged: list[int]  # lanes that started near `STARTS`, one each
    times: np.ndarray  # [time], steps taken
    points: Tensor  # [time, lane, 2]
    watched: Tensor  # [step, lane, 2], every point from the start on

    def of(
        self, starts: Sequence[Sequence[float]], hyper: float, sign: float = problem.CODE
    ) -> Tensor:
        """Points `[time, start, 2]`."""
        return self.points[:, [self.lanes.find(start, hyper, sign) for start in starts]]

    def mean_loss(
        self, starts: Sequence[Sequence[float]], hyper: float, sign: float = problem.CODE
    ) -> np.ndarray:
        """`[time, start]`."""
        return problem.at(self.of(starts, hyper, sign), sign).mean(-1).cpu().numpy()


@functools.cache
def compiler_works(device: torch.device) -> bool:
    """Whether torch.compile finds its tools, by trying; a notice says why not. On another device
    steps are captured instead, which needs none.
    """
    if device.type != "cpu":
        return True
    try:
        example = torch.zeros(3, dtype=torch.float64, device=device)
        torch.compile(lambda x: 2 * x + 1, options=OPTIONS)(example)
    except Exception as error:  # a missing compiler shows in many ways
        tqdm.write(
            "[the toy] torch.compile does not work here "
            f"({str(error).splitlines()[0][:100]}): running eagerly and for fewer steps"
        )
        return False
    return True


def trajectories(
    groups: Sequence[tuple[str, ...]], random_starts: Tensor, steps: int, *, compiled: bool
) -> dict[str, Run]:
    """Adam from all starts by every rule, a group as one program; workers share the groups out."""
    lanes_of = {name: problem.lanes_of(name, random_starts) for names in groups for name in names}
    calls = {}
    for names in groups:
        own = [
            lanes._replace(which=lanes.which + i)
            for i, (lanes, *_) in enumerate(lanes_of[name] for name in names)
        ]
        lanes = problem.Lanes(*map(torch.cat, zip(*own, strict=True)))
        calls[names] = functools.partial(
            stepped.now, names, lanes, steps, problem.LR, compiled=compiled
        )
    runs = {}
    for names, (times, points, watched) in stepped.together(calls).items():
        counts = [len(lanes_of[name][0].start) for name in names]
        for name, *parts in zip(
            names, points.split(counts, 1), watched.split(counts, 1), strict=True
        ):
            runs[name] = Run(*lanes_of[name], times, *parts)
    return runs


@kept
def stepped(
    names: tuple[str, ...], lanes: problem.Lanes, steps: int, rate: float, *, compiled: bool
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Moments that are kept, the points `[time, lane, 2]` then, and each of the first steps."""
    state, each = problem.start_of(names, lanes), (lanes.which, lanes.hyper, lanes.sign)
    unroll = UNROLL if compiled else 1
    if lanes.start.device.type != "cpu":
        program = problem.replay(names, unroll, rate)
    elif compiled:
        torch.compiler.reset()  # programs of another run must not count against the limit
        program = problem.compile_steps(names, unroll, lanes, state, rate=rate)
    else:
        program = problem.advance(names, unroll, rate)
    watched, points, times = [lanes.start[:, None]], [lanes.start], [0]
    label = ", ".join(names)
    bar = tqdm(range(unroll, steps + unroll, unroll), desc=label, leave=False, mininterval=1.0)
    for taken in bar:
        state, chunk = program(*each, state)
        if taken <= WATCHED:
            watched.append(chunk)
        if taken % EVERY < unroll or taken >= steps:
            times.append(taken)
            points.append(chunk[:, -1])
    trail = torch.cat(watched, 1).transpose(0, 1)
    return np.array(times), torch.stack(points), trail


class Toy(NamedTuple):
    """The runs of every rule, and what the claims say of them."""

    runs: dict[str, Run]
    steps: int
    budget: str


def toy(settings: Settings) -> Toy:
    """Every rule from all of its starts."""
    compiled = settings.count(STEPS) >= COMPILE_FROM and compiler_works(settings.device)
    steps = settings.count(STEPS if compiled or settings.shrink != 1 else EAGER_STEPS)
    if not compiled and settings.shrink != 1:
        tqdm.write(f"[the toy] {steps} steps: too few for compilation to pay, running eagerly")
    keys = torch.arange((8 if settings.full else 2) * settings.seeds, device=settings.device)
    uniform = vmap(
        lambda key: mf.random.uniform(mf.random.fold_in(mf.random.key(7), key), (2,), torch.float64)
    )
    starts = 20 * uniform(keys) - 10
    # GradNorm has a state and other losses, the others make one program
    groups = tuple(name for name in problem.RULES if name != "GradNorm"), ("GradNorm",)
    runs = trajectories(groups, starts, steps, compiled=compiled)
    last = int(runs["GD"].times[-1])
    budget = f"Adam {problem.LR:g}, {last} steps, float64, + in f₂ unless said otherwise"
    return Toy(runs, last, budget)


def contact(points: Tensor) -> np.ndarray:
    """When `[start]` points `[time, start, 2]` first meet the Pareto set; -1 for never."""
    front, x = problem.pareto_set(), points.cpu().numpy()
    at_x = np.clip(x[..., 0], front[0, 0], front[-1, 0])
    near = np.hypot(x[..., 0] - at_x, x[..., 1] - np.interp(at_x, *front.T)) < CONTACT
    return np.where(near.any(0), near.argmax(0), -1)


def of(name: str, values: np.ndarray, starts: Sequence[Sequence[float]]) -> dict[str, float]:
    return {
        f"{name} from ({x:g}, {y:g})": value for (x, y), value in zip(starts, values, strict=True)
    }
