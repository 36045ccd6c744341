"""CAGrad, the toy (Liu et al. 2021, section 5.1): which rule gets past the cusps, and which one to
the minimum of the mean.

L_i = c₁f_i + c₂q_i on the plane: above x₂ = 0 the logarithms f_i with a narrow valley each, below
it the paraboloids q_i, whose conflict makes a Pareto set near x₂ = -8.36 between the two minima x₁
= ±7. Everything is deterministic: Adam at 1e-3, 100,000 steps, float64.

Choices. The paper prints -tanh(-x₂) in f₂, its figures come from code with +; both are run, + is
meant where no sign is named. max(tanh(·), 0) has a kink on x₂ = 0, where the start (0, 0) lies:
`clamp_min` passes the gradient there (subderivative 1), with which both tasks pull downwards; with
subderivative 0 both gradients vanish and no rule moves. GradNorm needs positive losses: 21 is
added, which no gradient sees.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from mpl_toolkits.mplot3d import Axes3D
from torch import Tensor
from torch.func import grad, hessian, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import share_interval

PAPER = "CAGrad (Liu et al. 2021)"
PRINTED = ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))
SCRIPT = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))
STARTS = (*PRINTED, SCRIPT[1])
CODE, PAPER_SIGN = 1.0, -1.0  # of tanh in f₂
LR, STEPS, EAGER_STEPS, DECIDED = 1e-3, 100_000, 10_000, 70_000
WATCHED = 20_000  # first steps that are all kept, for what Adam does to the rates
EVERY = 50  # steps between the points kept of the whole run
# steps a compiled call: with tens of lanes more of them cost compilation and save nothing
# (experiments/benchmarks/toy.py)
UNROLL = 2
COMPILE_FROM = 5_000  # steps from which compiling pays
SHIFT = 21.0  # makes GradNorm's losses positive: none is below -20
CS = (0.2, 0.5, 0.8, 0.9, 1.0, 1.5, 3.0, 10.0, 100.0)
EPSILON = 1e-4  # the official script's, inside its three roots and beside one of them
CONTACT = 0.01  # the Pareto set is met at this distance
CLOSE = 1e-3  # of the mean loss to its minimum

COLOURS = {
    "GD": "#444444",
    "MGDA": "#0072b2",
    "PCGrad": "#e69f00",
    "GradNorm": "#009e73",
    "CAGrad": "#d55e00",
    "CAGrad, epsilons": "#cc79a7",
}
MARKERS = {
    "GD": "s",
    "MGDA": "^",
    "PCGrad": "D",
    "GradNorm": "v",
    "CAGrad": "o",
    "CAGrad, epsilons": "P",
}
DASHES: dict[str, Any] = {
    "GD": "-",
    "MGDA": "--",
    "PCGrad": "-.",
    "GradNorm": ":",
    "CAGrad": "-",
    "CAGrad, epsilons": (0, (1, 2)),
}


# ---- the problem ----


def ramp(x: Tensor) -> Tensor:
    """max(x, 0) with derivative 1 at 0."""
    return x.clamp_min(0)


def losses(
    params: mf.types.Params, sign: Tensor, ramp: Callable[[Tensor], Tensor] = ramp
) -> Tensor:
    """Both losses `[2]` at params["x"] `[2]`; sign `[]` is that of tanh in f₂: +1 as in the code,
    -1 as printed.
    """
    x, y = params["x"].unbind(-1)
    valley_1 = (0.5 * (-x - 7) - torch.tanh(-y)).abs()
    valley_2 = (0.5 * (-x + 3) + sign * torch.tanh(-y) + 2).abs()
    f = torch.stack([valley_1, valley_2]).clamp_min(5e-6).log() + 6
    q = (
        torch.stack([(-x + 7) ** 2 + 0.1 * (-y - 8) ** 2, (-x - 7) ** 2 + 0.1 * (-y - 8) ** 2]) / 10
        - 20
    )
    return ramp(torch.tanh(0.5 * y)) * f + ramp(torch.tanh(-0.5 * y)) * q


def at(points: Tensor, sign: float = CODE) -> Tensor:
    """Losses `[..., 2]` at points `[..., 2]`."""
    return vmap(lambda x: losses({"x": x}, x.new_tensor(sign)))(points.reshape(-1, 2)).reshape(
        points.shape
    )


def weighted_minima(share: Tensor) -> Tensor:
    """Minimisers `[n, 2]` of s L_1 + (1 - s) L_2 below x₂ = 0 for shares s `[n]`, by Newton's
    method; f₂, and so the sign, plays no part there.
    """

    def goal(x: Tensor, s: Tensor) -> Tensor:
        return losses({"x": x}, x.new_tensor(CODE)) @ torch.stack([s, 1 - s])

    x = torch.stack([14 * share - 7, torch.full_like(share, -8.4)], -1)
    for _ in range(12):
        x = x - torch.linalg.solve(vmap(hessian(goal))(x, share), vmap(grad(goal))(x, share))
    return x


@functools.cache
def minimum_of_mean() -> tuple[np.ndarray, float]:
    """Where the mean loss is least, and its value there."""
    x = weighted_minima(torch.tensor([0.5], dtype=torch.float64))
    return x[0].numpy(), float(at(x).mean())


@functools.cache
def pareto_set(count: int = 41) -> np.ndarray:
    """`[count, 2]`, from the minimum of L_2 to that of L_1."""
    return weighted_minima(torch.linspace(0, 1, count, dtype=torch.float64)).numpy()


def gramians(points: Tensor, sign: float = CODE) -> Tensor:
    """`[n, 2, 2]` at points `[n, 2]`."""
    return vmap(lambda x: mf.task_gramian(losses, {"x": x}, x.new_tensor(sign))[1])(points)


def distance_to_stationarity(points: Tensor, sign: float = CODE) -> np.ndarray:
    """Length of the shortest convex combination of the gradients over that of the longest gradient,
    `[...]` at points `[..., 2]`.
    """
    g = gramians(points.reshape(-1, 2), sign)
    length = vmap(lambda g: mf.diagnostics.stationarity(g).length)(g)
    return (
        (length / g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt())
        .reshape(points.shape[:-1])
        .cpu()
        .numpy()
    )


# ---- the rules ----


def from_gramian(weights: Callable[[Tensor], Tensor]) -> mf.Rule:
    """`mf.stateless`, which inspects its argument's signature, cannot be called while a program is
    compiled; a rule is these two functions.
    """
    return mf.Rule(lambda losses, key: (), lambda geometry, state: (weights(geometry.gramian), ()))


def with_epsilons(c: Tensor) -> mf.Rule:
    """The official script's CAGrad for two tasks: 1e-4 added under each root and to ‖g_w‖, the
    answer divided by 1 + c.

    Its bounded scalar search is replaced by the minimiser's formula: with an epsilon the objective
    stays a hyperbola in the first weight.
    """

    def weights(gramian: Tensor) -> Tensor:
        first, inner, second = gramian[0, 0], gramian[0, 1], gramian[1, 1]
        radius = c * 0.5 * (first + second + 2 * inner + EPSILON).sqrt()
        slope = 0.5 * (first - second)  # of g_w·g₀ in the weight x of task 1
        square = first + second - 2 * inner
        room = radius**2 * square - slope**2
        apart, some = square.where(square > 0, 1.0), room.where(room > 0, 1.0)
        middle = torch.where(square > 0, (second - inner) / apart, 0.5)  # where ‖g_w‖ is least
        height = (second + EPSILON - (second - inner) ** 2 / apart).clamp_min(0)
        x = torch.where(
            room > 0,
            (middle - slope * (height / (apart * some)).sqrt()).clamp(0, 1),
            0.5 - 0.5 * torch.sign(slope),
        )
        w = torch.stack([x, 1 - x])
        length = (x**2 * first + (1 - x) ** 2 * second + 2 * x * (1 - x) * inner + EPSILON).sqrt()
        return (0.5 + radius / (length + EPSILON) * w) / (1 + c)

    return from_gramian(weights)


def mgda_with_epsilon(epsilon: Tensor) -> mf.Rule:
    """MGDA's formula for two tasks with an epsilon in its denominator, 1e-8 in the official script."""

    def weights(gramian: Tensor) -> Tensor:
        first, inner, second = gramian[0, 0], gramian[0, 1], gramian[1, 1]
        x = ((second - inner) / (first + second - 2 * inner + epsilon)).clamp(0, 1)
        return torch.stack([x, 1 - x])

    return from_gramian(weights)


RULES: dict[str, tuple[Callable[[Tensor], mf.Rule], tuple[float, ...]]] = {
    "GD": (lambda _: mf.mean(), (0.0,)),
    "MGDA": (lambda _: mf.mgda(), (0.0,)),
    "MGDA, epsilon": (mgda_with_epsilon, (1e-8,)),
    "PCGrad": (lambda _: mf.pcgrad(), (0.0,)),
    "GradNorm": (lambda alpha: mf.gradnorm(alpha), (0.0, 0.12, 1.5)),
    "CAGrad": (lambda c: mf.cagrad(c), CS),
    "CAGrad, epsilons": (with_epsilons, (0.5, 1.0, 1.5, 3.0, 10.0)),
}
"""Name -> (rule of a hyper-parameter, its values)."""

USUAL = {"GD": 0.0, "MGDA": 0.0, "PCGrad": 0.0, "GradNorm": 0.12, "CAGrad": 0.5}
"""The arms of the paper, and GradNorm, with the hyper-parameter that figures and claims show of
them.
"""


class Lanes(NamedTuple):
    """What is run side by side."""

    start: Tensor  # [lane, 2]
    sign: Tensor  # [lane]
    hyper: Tensor  # [lane]

    def find(self, start: Sequence[float], hyper: float, sign: float = CODE) -> int:
        same = (
            (self.start == self.start.new_tensor(start)).all(-1)
            & (self.hyper == hyper)
            & (self.sign == sign)
        )
        return int(same.nonzero()[0])


class Run(NamedTuple):
    """One rule from all of its starts."""

    lanes: Lanes
    random: list[int]  # lanes that started at random points
    times: np.ndarray  # [time], steps taken
    points: Tensor  # [time, lane, 2]
    watched: Tensor  # [step, lane, 2], every point from the start on

    def of(self, starts: Sequence[Sequence[float]], hyper: float, sign: float = CODE) -> Tensor:
        """Points `[time, start, 2]`."""
        return self.points[:, [self.lanes.find(start, hyper, sign) for start in starts]]

    def mean_loss(
        self, starts: Sequence[Sequence[float]], hyper: float, sign: float = CODE
    ) -> np.ndarray:
        """`[time, start]`."""
        return at(self.of(starts, hyper, sign), sign).mean(-1).cpu().numpy()


def lanes_of(name: str, random_starts: Tensor) -> tuple[Lanes, list[int]]:
    """Named starts by sign by hyper-parameter, then the random starts at the usual hyper-parameter."""
    signs = (CODE,) if "epsilon" in name else (CODE, PAPER_SIGN)
    rows = [(*start, sign, hyper) for hyper in RULES[name][1] for sign in signs for start in STARTS]
    named = len(rows)
    if name in USUAL:
        rows += [(*start, CODE, USUAL[name]) for start in random_starts.tolist()]
    table = torch.tensor(rows, dtype=torch.float64, device=random_starts.device)
    return Lanes(table[:, :2].clone(), table[:, 2].clone(), table[:, 3].clone()), list(
        range(named, len(rows))
    )


def step_of(name: str, hyper: Tensor) -> mf.Step:
    shift = SHIFT if name == "GradNorm" else 0.0
    return mf.descend(
        lambda params, sign: losses(params, sign) + shift,
        RULES[name][0](hyper),
        mf.adam(LR),
        mf.jacobian(),
    )


def advance(name: str, unroll: int) -> Callable[..., Any]:
    """`(hyper [lane], sign [lane], state) -> (state, points [lane, unroll, 2])`, all lanes as one
    program.
    """

    def several(hyper: Tensor, sign: Tensor, state: mf.TrainState) -> tuple[mf.TrainState, Tensor]:
        step, points = step_of(name, hyper), []
        for _ in range(unroll):
            state, _ = step.update(state, sign)
            points.append(state.params["x"])
        return state, torch.stack(points)

    return vmap(several)


def compiler_works(device: torch.device) -> bool:
    """Whether torch.compile finds its tools, by trying; a notice says why not."""
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.zeros(3, dtype=torch.float64, device=device))
    except Exception as error:  # a missing compiler shows in many ways
        tqdm.write(
            "[cagrad_toy] torch.compile does not work here "
            f"({str(error).splitlines()[0][:100]}): running eagerly and for fewer steps"
        )
        return False
    return True


def trajectories(name: str, random_starts: Tensor, steps: int, *, compiled: bool) -> Run:
    """Adam from all starts; interruptible between chunks of steps."""
    lanes, random = lanes_of(name, random_starts)
    state = vmap(lambda hyper, sign, x: step_of(name, hyper).init({"x": x}, sign))(
        lanes.hyper, lanes.sign, lanes.start
    )
    unroll = UNROLL if compiled else 1
    program = advance(name, unroll)
    if compiled:
        program = torch.compile(program, dynamic=False, fullgraph=True)
    watched, points, times = [lanes.start[:, None]], [lanes.start], [0]
    bar = tqdm(range(unroll, steps + unroll, unroll), desc=name, leave=False, mininterval=1.0)
    for taken in bar:
        state, chunk = program(lanes.hyper, lanes.sign, state)
        if taken <= WATCHED:
            watched.append(chunk)
        if taken % EVERY < unroll or taken >= steps:
            times.append(taken)
            points.append(chunk[:, -1])
    return Run(
        lanes, random, np.array(times), torch.stack(points), torch.cat(watched, 1).transpose(0, 1)
    )


def run(settings: Settings) -> Findings:
    # programs of another run must not count against the limit of recompilations
    torch.compiler.reset()
    compiled = settings.count(STEPS) >= COMPILE_FROM and compiler_works(settings.device)
    steps = settings.count(STEPS if compiled or settings.shrink != 1 else EAGER_STEPS)
    if not compiled and settings.shrink != 1:
        tqdm.write(f"[cagrad_toy] {steps} steps: too few for compilation to pay, running eagerly")
    keys = torch.arange((8 if settings.full else 2) * settings.seeds, device=settings.device)
    random_starts = vmap(
        lambda key: (
            20 * mf.random.uniform(mf.random.fold_in(mf.random.key(7), key), (2,), torch.float64)
            - 10
        )
    )(keys)
    yield surface()
    yield from not_flat()
    runs = {
        name: trajectories(name, random_starts, steps, compiled=compiled)
        for name in tqdm(RULES, desc="toy", leave=False)
    }
    yield from figures(runs)
    yield from claims(runs, settings)


# ---- figures ----


def surface() -> Figure:
    canvas = Canvas(figsize=(13, 4.6), layout="constrained")
    side = torch.linspace(-11, 11, 221, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    values = at(grid)
    for i, (name, z) in enumerate(
        {"L₁": values[..., 0], "L₂": values[..., 1], "mean loss": values.mean(-1)}.items()
    ):
        axis = canvas.add_subplot(1, 3, i + 1, projection="3d")
        assert isinstance(axis, Axes3D)
        axis.plot_surface(
            grid[..., 0].numpy(),
            grid[..., 1].numpy(),
            z.numpy(),
            cmap="viridis",
            rcount=110,
            ccount=110,
            linewidth=0,
            vmin=-20,
            vmax=10,
        )
        axis.view_init(25)
        axis.set_box_aspect(None, zoom=0.78)  # pyright: ignore[reportArgumentType]  # room for the label of the z axis
        axis.set(
            xlabel="x₁",
            ylabel="x₂",
            zlabel="loss",
            title=name,
            zlim=(-21, 11),
            xticks=[-10, 0, 10],
            yticks=[-10, 0, 10],
            zticks=[-20, -10, 0, 10],
        )
    return Figure(
        "surface",
        "The toy's two losses and their mean; + in f₂, as in the paper's code. The two narrow "
        "valleys are cusps of log|·|.",
        canvas,
    )


def map_axis(axis: Axes, sign: float, best: np.ndarray) -> None:
    """Filled contours of the mean loss, the Pareto set in grey, its minimum of the mean as a star."""
    side = torch.linspace(-11, 11, 181, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    axis.contourf(
        side,
        side,
        at(grid, sign).mean(-1),
        levels=np.linspace(-16, 10, 14),
        cmap="Blues_r",
        extend="both",
    )
    front = pareto_set(9)
    axis.plot(*front.T, color="#999999", linewidth=6, solid_capstyle="round", zorder=2)
    axis.plot(*best, "*", color="white", markeredgecolor="black", markersize=13, zorder=6)
    axis.set(
        xlim=(-11, 11),
        ylim=(-11, 11),
        xlabel="x₁",
        ylabel="x₂",
        xticks=[-10, 0, 10],
        yticks=[-10, 0, 10],
        aspect="equal",
    )


def maps(panels: dict[str, tuple[Run, float]], sign: float, columns: int) -> Canvas:
    rows = -(-len(panels) // columns)
    canvas = Canvas(figsize=(3.4 * columns + 1, 3.5 * rows), layout="constrained")
    best, _ = minimum_of_mean()
    norm = Normalize(0, max(float(run.times[-1]) for run, _ in panels.values()) / 1000)
    axes = []
    for i, (title, (run, hyper)) in enumerate(panels.items()):
        axis = canvas.add_subplot(rows, columns, i + 1)
        map_axis(axis, sign, best)
        axis.set_title(title)
        points = run.of(STARTS, hyper, sign).cpu()
        for start in range(len(STARTS)):
            axis.scatter(
                *points[:, start].T,
                c=run.times / 1000,
                cmap="autumn",
                norm=norm,
                s=3,
                zorder=3,
                linewidths=0,
                rasterized=True,
            )
        axis.plot(*np.array(STARTS).T, "o", color="black", markersize=5, zorder=5)
        axis.plot(
            *points[-1].T, "X", color="white", markeredgecolor="black", markersize=8, zorder=7
        )
        axes.append(axis)
    canvas.colorbar(
        ScalarMappable(norm, colormaps["autumn"]), ax=axes, label="thousand steps taken", shrink=0.7
    )
    return canvas


def figures(runs: dict[str, Run]) -> Findings:
    usual = {title_of(name): (runs[name], hyper) for name, hyper in USUAL.items()}
    text = (
        "Colour: steps taken; dots: starts, those of the paper and (-8.5, -5) of its code; "
        "crosses: ends; grey: Pareto set; star: minimum of the mean; "
        "contours: mean loss."
    )
    yield Figure(
        "trajectories",
        f"Trajectories, + in f₂. {text}",
        maps(usual | {"CAGrad, c = 0.8": (runs["CAGrad"], 0.8)}, CODE, 3),
    )
    yield Figure(
        "printed-sign",
        f"The same with the sign that the paper prints in f₂. {text}",
        maps(usual | {"CAGrad, c = 0.8": (runs["CAGrad"], 0.8)}, PAPER_SIGN, 3),
    )
    large = {f"exact, c = {c:g}": (runs["CAGrad"], c) for c in (1.0, 3.0, 10.0)}
    large |= {
        f"with 1e-4 in its roots, c = {c:g}": (runs["CAGrad, epsilons"], c)
        for c in (1.0, 3.0, 10.0)
    }
    yield Figure(
        "large-c",
        "c from 1 on: solved exactly CAGrad halts on the Pareto set, with the official script's "
        f"epsilons it slides on. {text}",
        maps(large, CODE, 3),
    )
    yield loss_curves(runs)
    yield end_points(runs)
    yield from_anywhere(runs)


def title_of(name: str) -> str:
    return {"GradNorm": "GradNorm, α = 0.12", "CAGrad": "CAGrad, c = 0.5"}.get(name, name)


def loss_curves(runs: dict[str, Run]) -> Figure:
    canvas = Canvas(figsize=(13, 7), layout="constrained")
    for i, start in enumerate(STARTS):
        axis = canvas.add_subplot(2, 3, i + 1)
        for name, hyper in (USUAL | {"CAGrad, epsilons": 10.0}).items():
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
        _clean(axis)
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


def end_points(runs: dict[str, Run]) -> Figure:
    canvas = Canvas(figsize=(13, 5), layout="constrained")
    front = at(torch.tensor(pareto_set())).numpy()
    _, value = minimum_of_mean()
    left, right = canvas.add_subplot(1, 2, 1), canvas.add_subplot(1, 2, 2)
    left.plot(
        *front.T,
        color="#999999",
        linewidth=5,
        alpha=0.6,
        label="Pareto front",
        solid_capstyle="round",
    )
    for name, hyper in (USUAL | {"CAGrad, epsilons": 10.0}).items():
        ends = at(runs[name].of(STARTS, hyper)[-1]).cpu().numpy()
        label = "CAGrad, c = 10 with epsilons" if "eps" in name else title_of(name)
        hollow = {
            "markerfacecolor": "none",
            "markeredgewidth": 1.8,
            "markeredgecolor": COLOURS[name],
            "linestyle": "none",
        }
        left.plot(
            *ends.T, MARKERS[name], label=label, markersize=12 if name == "CAGrad" else 8, **hollow
        )
    middle = front[len(front) // 2]
    left.plot(*middle, "*", color="black", markersize=9, label="minimum of the mean")
    left.set(xlabel="L₁ at the end", ylabel="L₂ at the end")
    left.legend(frameon=False, fontsize=8)
    for name in ("CAGrad", "CAGrad, epsilons"):
        values = RULES[name][1]
        excess = np.array([runs[name].mean_loss(STARTS, c)[-1] - value for c in values])
        for start in range(len(STARTS)):
            label = (
                {"CAGrad": "exact", "CAGrad, epsilons": "with the script's epsilons"}[name]
                if start == 0
                else None
            )
            right.plot(
                values,
                np.maximum(excess[:, start], 1e-12),
                MARKERS[name],
                color=COLOURS[name],
                linestyle=DASHES[name],
                linewidth=0.8,
                label=label,
                fillstyle="none",
            )
    right.set(
        xscale="log",
        yscale="log",
        xlabel="c",
        ylabel="mean loss at the end above its minimum\n(below 1e-12 drawn there)",
    )
    right.set_xticks([0.2, 0.5, 1, 3, 10, 100], ["0.2", "0.5", "1", "3", "10", "100"])
    right.minorticks_off()
    right.legend(frameon=False)
    for axis in (left, right):
        _clean(axis)
    return Figure(
        "ends",
        "Left: losses at the end beside the Pareto front, six starts a rule. Right: CAGrad's "
        "ends against c, one line a start. + in f₂.",
        canvas,
    )


def from_anywhere(runs: dict[str, Run]) -> Figure:
    """End points and arrival times from random starts."""
    canvas = Canvas(figsize=(12, 4.4), layout="constrained")
    left, right = canvas.add_subplot(1, 2, 1), canvas.add_subplot(1, 2, 2)
    for name in USUAL:
        ends, arrival = random_ends(runs[name]), arrivals(runs[name])
        count = len(ends)
        style = {
            "color": COLOURS[name],
            "linestyle": DASHES[name],
            "label": title_of(name),
            "linewidth": 1.8,
        }
        left.step(np.sort(ends), np.arange(1, count + 1) / count, where="post", **style)
        got = np.sort(arrival[np.isfinite(arrival)])
        right.step(
            np.append(got, runs[name].times[-1]) / 1000,
            np.append(np.arange(1, len(got) + 1), len(got)) / count,
            where="post",
            **style,
        )
    left.set(xlabel="mean loss at the end", ylabel="share of starts at or below", ylim=(0, 1.02))
    right.set(
        xlabel="thousand steps to within 0.1 of the minimum of the mean",
        ylabel="share of starts that got there",
        ylim=(0, 1.02),
        xlim=(0, None),
    )
    left.legend(frameon=False)
    for axis in (left, right):
        _clean(axis)
    count = len(runs["GD"].random)
    return Figure(
        "random-starts",
        f"The same from {count} starts drawn uniformly from [-10, 10]², + in f₂.",
        canvas,
    )


def _clean(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


# ---- what is measured ----


def random_ends(run: Run) -> np.ndarray:
    """Mean loss at the end from random starts."""
    return at(run.points[-1, run.random]).mean(-1).cpu().numpy()


def arrivals(run: Run) -> np.ndarray:
    """Steps to within .1 of the minimum of the mean from random starts; infinite where it was not
    met.
    """
    there = at(run.points[:, run.random]).mean(-1).cpu().numpy() < minimum_of_mean()[1] + 0.1
    return np.where(there.any(0), run.times[there.argmax(0)], np.inf)


def off_the_set(points: Tensor) -> np.ndarray:
    """Distance `[...]` from the Pareto set of points `[..., 2]`."""
    front = pareto_set()
    x = points.cpu().numpy()
    at_x = np.clip(x[..., 0], front[0, 0], front[-1, 0])
    return np.hypot(x[..., 0] - at_x, x[..., 1] - np.interp(at_x, *front.T))


def contact(points: Tensor) -> np.ndarray:
    """Index `[start]` in time of the first contact with the Pareto set, -1 for none; points `[time,
    start, 2]`.
    """
    near = off_the_set(points) < CONTACT
    return np.where(near.any(0), near.argmax(0), -1)


def moved_after_contact(run: Run, hyper: float, sign: float = CODE) -> np.ndarray:
    """Way `[start]` along the Pareto set between first contact and end; NaN without contact."""
    points = run.of(STARTS, hyper, sign)
    first, x = contact(points), points[..., 0].cpu().numpy().clip(*pareto_set()[[0, -1], 0])
    return np.array([abs(x[-1, i] - x[k, i]) if k >= 0 else np.nan for i, k in enumerate(first)])


def first_order(run: Run, name: str) -> tuple[float, float]:
    """Over the watched steps from the named starts: shares of steps at which d, and Adam's step,
    raise some task to first order.
    """
    hyper = USUAL[name]
    lanes = [run.lanes.find(start, hyper) for start in STARTS]
    points = run.watched[:, lanes]
    taken = (points[:-1] - points[1:]).reshape(-1, 2)  # along -θ̇, as d is
    before = points[:-1].reshape(-1, 2)
    rows = vmap(lambda x: mf.task_gradients(losses, {"x": x}, x.new_tensor(CODE))[1]["x"])(before)
    g = rows @ rows.mT
    length = g.diagonal(dim1=-2, dim2=-1).sqrt()
    rule = RULES[name][0](torch.tensor(hyper, dtype=torch.float64, device=g.device))
    d = torch.einsum("nt,ntp->np", vmap(lambda g: mf.weights(rule, g))(g), rows)

    def raises(step: Tensor) -> Tensor:
        rates = torch.einsum("ntp,np->nt", rows, step)
        return (rates < -1e-6 * length * step.norm(dim=-1, keepdim=True)).any(-1)

    moving = (length > 0).all(-1) & (d.norm(dim=-1) > 1e-9 * length.amax(-1))
    quiet = moving & ~raises(d)
    return float((moving & raises(d)).sum() / moving.sum()), float(
        (quiet & raises(taken)).sum() / quiet.sum().clamp_min(1)
    )


def rises(run: Run, hyper: float) -> np.ndarray:
    """Sum over time `[start, task]` of what each loss rose by, between kept points after contact
    with the Pareto set.
    """
    points = run.of(STARTS, hyper)
    change = at(points).diff(dim=0).clamp_min(0).cpu().numpy()
    first = contact(points)
    return np.stack(
        [change[k:, i].sum(0) if k >= 0 else np.full(2, np.nan) for i, k in enumerate(first)]
    )


# ---- verdicts ----


def decided(long_enough: bool, verdict: Verdict) -> Verdict:
    return verdict if long_enough else "inconclusive"


def largest(values: np.ndarray) -> float:
    """The largest finite value; NaN for none, as where nothing met the Pareto set."""
    values = values[np.isfinite(values)]
    return float(values.max()) if values.size else float("nan")


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def of(
    name: str, values: np.ndarray, starts: Sequence[Sequence[float]] = STARTS
) -> dict[str, float]:
    return {
        f"{name} from ({start[0]:g}, {start[1]:g})": float(value)
        for start, value in zip(starts, values, strict=True)
    }


def not_flat() -> Findings:
    """What is read off the Pareto set without a run."""
    front = torch.tensor(pareto_set())
    values, g = at(front), gramians(front)
    mean = values.mean(-1).numpy()
    length = g.diagonal(dim1=-2, dim2=-1).sqrt()
    flatness = (g.sum((1, 2)).sqrt() / 2 / length.amax(-1)).numpy()
    off_minimum = np.abs(front[:, 0].numpy()) > 0.5
    stationary = float(distance_to_stationarity(front).max())
    yield Claim(
        "CA-08",
        PAPER,
        "At a Pareto-stationary point the mean loss is about the same whichever way one moves.",
        "does not hold"
        if flatness[off_minimum].min() > 1e-2 and stationary < 1e-3
        else "holds"
        if flatness.max() < 1e-2
        else "inconclusive",
        {
            "least mean loss on the Pareto set": float(mean.min()),
            "largest": float(mean.max()),
            "largest ‖g₀‖ over the longest gradient": float(flatness.max()),
            "smallest where |x₁| > 0.5": float(flatness[off_minimum].min()),
            "largest distance of 0 from the gradients' hull, same unit": stationary,
        },
        f"the toy's Pareto set, {len(front)} minimisers of weighted means; does not hold if g₀ "
        "is nowhere near 0 but at the minimum of the mean",
    )


def claims(runs: dict[str, Run], settings: Settings) -> Findings:
    _, value = minimum_of_mean()
    last = int(runs["GD"].times[-1])
    whole, long_enough = last >= STEPS, last >= DECIDED
    budget = f"Adam {LR:g}, {last} steps, float64, + in f₂ unless said otherwise"
    ends = {name: runs[name].mean_loss(STARTS, hyper)[-1] for name, hyper in USUAL.items()}
    parts = (
        sticking(runs, whole, budget),
        arriving(runs, value, long_enough, budget),
        resting(runs, value, ends, whole, budget),
        between(runs, value, whole, budget),
        stability(runs, whole, budget),
        two_tensions(runs, settings, whole, budget),
        adam_and_rates(runs, whole),
    )
    for claim in itertools.chain(*parts):
        assert isinstance(claim, Claim)
        yield claim._replace(
            measured={
                name: x for name, x in (claim.measured | {"steps": last}).items() if np.isfinite(x)
            }
        )


def sticking(runs: dict[str, Run], whole: bool, budget: str) -> Findings:
    kink = torch.zeros(2, dtype=torch.float64)
    steepest = {
        slope: float(
            mf.task_gramian(
                lambda params, sign, at_0=at_0: losses(params, sign, at_0),
                {"x": kink},
                kink.new_tensor(CODE),
            )[1]
            .diagonal()
            .max()
            .sqrt()
        )
        for slope, at_0 in {"1": ramp, "0": torch.relu}.items()
    }
    stuck = {
        "printed starts": runs["GD"].mean_loss(PRINTED, 0.0)[-1] > 0,
        "printed starts, printed sign": runs["GD"].mean_loss(PRINTED, 0.0, PAPER_SIGN)[-1] > 0,
        "(-8.5, -5) for (-8.5, 5)": runs["GD"].mean_loss(
            [SCRIPT[1] if start == (-8.5, 5.0) else start for start in PRINTED], 0.0
        )[-1]
        > 0,
        "the script's three": runs["GD"].mean_loss(SCRIPT, 0.0)[-1] > 0,
    }
    counts = {f"stuck, {name}": float(found.sum()) for name, found in stuck.items()}
    ends = runs["GD"].mean_loss(STARTS, 0.0)[-1]
    printed, changed = (
        int(stuck["printed starts"].sum()),
        int(stuck["(-8.5, -5) for (-8.5, 5)"].sum()),
    )
    yield Claim(
        "CA-25",
        PAPER,
        "Gradient descent halts in 2 of 5 runs.",
        decided(
            whole,
            "holds" if printed == 2 else "holds only when" if changed == 2 else "does not hold",
        ),
        counts | of("mean loss at the end", ends),
        f"{budget}; stuck: mean loss above 0 at the end. "
        f"From the printed starts {printed} of 5, with (-8.5, -5), a start of the code, for "
        f"(-8.5, 5) {changed} of 5",
    )
    arms = ("GD", "MGDA", "PCGrad", "CAGrad")
    numbers = {
        f"{name}{', printed sign' if sign < 0 else ''}: mean loss at the end from ({start[0]:g}, "
        f"{start[1]:g})": float(runs[name].mean_loss([start], USUAL[name], sign)[-1, 0])
        for name in arms
        for sign in (CODE, PAPER_SIGN)
        for start in STARTS
    }
    moved = float(runs["GD"].of([(0.0, 0.0)], 0.0)[-1].norm())
    finite = bool(np.isfinite(list(numbers.values())).all())
    yield Claim(
        "CA-24",
        PAPER,
        "The 2-D toy: gradient descent, MGDA, PCGrad and CAGrad from five starts, Adam 1e-3, 1e5 "
        "steps.",
        decided(whole, "holds" if finite else "does not hold"),
        {
            f"longest gradient at (0, 0) with subderivative {slope}": length
            for slope, length in steepest.items()
        }
        | {"GD's way from (0, 0)": moved}
        | numbers,
        f"{budget}; reproducible: all runs finite, none random. Starts printed and scripted, "
        "both signs. At (0, 0) the subderivative of max(tanh, 0) decides: "
        "clamp's 1 is used, with 0 both gradients vanish and nothing moves",
    )


def arriving(runs: dict[str, Run], value: float, long_enough: bool, budget: str) -> Findings:
    run = runs["CAGrad"]
    at_70k = int(np.searchsorted(run.times, DECIDED))
    at_70k = min(at_70k, len(run.times) - 1)
    numbers: dict[str, float] = {"minimum of the mean": value}
    reached: dict[str, bool] = {}
    for c in (0.2, 0.5, 0.8):
        for sign in (CODE, PAPER_SIGN):
            excess = run.mean_loss(STARTS, c, sign) - value
            name = f"c = {c:g}{', printed sign' if sign < 0 else ''}"
            late = np.array(
                [run.times[np.argmax(e < CLOSE)] if (e < CLOSE).any() else np.inf for e in excess.T]
            )
            numbers[f"{name}: largest excess at {run.times[at_70k]} steps"] = float(
                excess[at_70k].max()
            )
            numbers[f"{name}: largest excess at the end"] = float(excess[-1].max())
            if np.isfinite(late).all():
                numbers[f"{name}: steps until all are within {CLOSE:g}"] = float(late.max())
            reached[name] = bool((excess[at_70k] < CLOSE).all())
    spread = {
        name: float(np.ptp(runs[name].of(STARTS, USUAL[name])[-1, :, 0].cpu().numpy()))
        for name in ("MGDA", "PCGrad")
    }
    held = {
        name: float(distance_to_stationarity(runs[name].of(STARTS, USUAL[name])[-1]).max())
        for name in ("MGDA", "PCGrad")
    }
    numbers |= {f"{name}: spread of x₁ at the end": x for name, x in spread.items()}
    numbers |= {
        f"{name}: largest distance of 0 from the gradients' hull at the end, over the longest": x
        for name, x in held.items()
    }
    arrives = reached["c = 0.5"] and reached["c = 0.8"]
    differ = min(spread.values()) > 1 and max(held.values()) < 1e-2
    yield Claim(
        "CA-26",
        PAPER,
        "MGDA and PCGrad end at different Pareto-stationary points by start; CAGrad reaches the "
        "minimum of the mean from all.",
        decided(long_enough, "holds" if arrives and differ else "does not hold"),
        numbers,
        f"{budget}, six starts; CAGrad arrives: mean loss within {CLOSE:g} of its minimum by "
        f"{DECIDED} steps for c = .5 and .8, + in f₂"
        "; within it at that time: "
        f"{', '.join(name for name, ok in reached.items() if ok) or 'none'}. "
        "The others: stationary to 1e-2, x₁ spread over more than 1",
    )


def resting(
    runs: dict[str, Run], value: float, ends: dict[str, np.ndarray], whole: bool, budget: str
) -> Findings:
    moved = {name: moved_after_contact(runs[name], 0.0) for name in ("MGDA", "PCGrad")} | {
        "MGDA, 1e-8": moved_after_contact(runs["MGDA, epsilon"], 1e-8)
    }
    rests = {name: bool((path < 1e-2).all()) for name, path in moved.items()}
    met = all(np.isfinite(path).all() for path in moved.values())
    yield Claim(
        "CA-04",
        PAPER,
        "MGDA and PCGrad stop learning once they meet the Pareto set.",
        decided(
            whole and met,
            "holds"
            if rests["MGDA"] and rests["PCGrad"]
            else "holds only when"
            if rests["MGDA"] or rests["PCGrad"]
            else "does not hold",
        ),
        {
            f"{name}: largest movement after contact": float(path.max())
            for name, path in moved.items()
        }
        | of("PCGrad's movement after contact", moved["PCGrad"])
        | of("MGDA's", moved["MGDA"]),
        f"{budget}; way along the set from first contact (within {CONTACT:g} of it) to the end, "
        "stopped if below 1e-2. MGDA solved exactly "
        f"{'rests' if rests['MGDA'] else 'moves on'}, PCGrad "
        f"{'rests' if rests['PCGrad'] else 'creeps on under Adam'}; "
        "with 1e-8 in the denominator, as in the official script, MGDA "
        f"{'rests' if rests['MGDA, 1e-8'] else 'drifts'}",
    )
    far = {
        name: float(np.ptp(runs[name].of(STARTS, 0.0)[-1, :, 0].cpu().numpy())) / 14
        for name in ("MGDA", "PCGrad")
    }
    apart = {
        name: float(at(runs[name].of(STARTS, 0.0)[-1]).diff(dim=-1).abs().max())
        for name in ("MGDA", "PCGrad")
    }
    yield Claim(
        "CA-06",
        PAPER,
        "Which Pareto point is reached depends strongly on the start; such runs may end "
        "unbalanced, some tasks good and others poor.",
        decided(whole, "holds" if min(far.values()) > 0.5 else "does not hold"),
        {f"{name}: spread of x₁ at the end over the set's length": x for name, x in far.items()}
        | {f"{name}: largest |L₁ - L₂| at the end": x for name, x in apart.items()}
        | {f"{name}: worst mean loss at the end": float(ends[name].max()) for name in far}
        | {"minimum of the mean": value},
        f"{budget}, six starts; holds if the end points spread over more than half of the Pareto "
        "set",
    )
    exact = {c: runs["CAGrad"].mean_loss(STARTS, c)[-1] - value for c in CS}
    eps = {
        c: runs["CAGrad, epsilons"].mean_loss(STARTS, c)[-1] - value
        for c in RULES["CAGrad, epsilons"][1]
    }
    # (0, 0) runs down the middle and meets the set at the minimum of the mean whatever the rule.
    side = [i for i, start in enumerate(STARTS) if start[0] != 0]
    below, above = (
        all(exact[c].max() < CLOSE for c in CS if c < 1),
        all(exact[c][side].min() > 0.1 for c in CS if c >= 1),
    )
    slides = max(x.max() for x in eps.values()) < CLOSE
    halts = {c: largest(moved_after_contact(runs["CAGrad"], c)) for c in CS if c >= 1}
    yield Claim(
        "CA-14",
        PAPER,
        "MGDA moves only where all agree and halts at disagreement; CAGrad puts the common good "
        "first and does not halt.",
        decided(
            whole, "holds only when" if below and above else "holds" if below else "does not hold"
        ),
        {f"exact, c = {c:g}: largest excess at the end": float(x.max()) for c, x in exact.items()}
        | {
            f"exact, c = {c:g}: smallest excess at the end, (0, 0) aside": float(
                exact[c][side].min()
            )
            for c in CS
            if c >= 1
        }
        | {f"exact, c = {c:g}: largest movement of x₁ after contact": x for c, x in halts.items()}
        | {
            f"with the script's epsilons, c = {c:g}: largest excess at the end": float(x.max())
            for c, x in eps.items()
        },
        f"{budget}; excess: mean loss above its minimum. solved exactly, c < 1 goes on to the "
        f"minimum of the mean: {_yes(below)}; "
        f"c >= 1 halts away from it: {_yes(above)}; with the official script's epsilons every c "
        f"goes on: {_yes(slides)}",
    )


def between(runs: dict[str, Run], value: float, whole: bool, budget: str) -> Findings:
    points = {c: runs["CAGrad"].of(STARTS, c) for c in CS}
    mgda = runs["MGDA"].of(STARTS, 0.0)
    goal = contact(mgda)
    distance = {}
    for c, path in points.items():
        first = contact(path)
        distance[c] = np.array(
            [
                abs(float(path[k, i, 0] - mgda[goal[i], i, 0])) if min(k, goal[i]) >= 0 else np.nan
                for i, k in enumerate(first)
            ]
        )
    table = np.array([distance[c] for c in CS])
    ordered = [bool((np.diff(column) <= CONTACT).all()) for column in table.T]
    split = all(
        (runs["CAGrad"].mean_loss(STARTS, c)[-1].max() < value + CLOSE) == (c < 1) for c in CS
    )
    yield Claim(
        "CA-27",
        PAPER,
        "Depending on c, CAGrad's behaviour lies between gradient descent and MGDA.",
        decided(
            whole,
            "holds"
            if all(ordered)
            else "holds only when"
            if any(ordered) or split
            else "does not hold",
        ),
        {
            f"c = {c:g}: largest distance of contact from MGDA's": largest(row)
            for c, row in distance.items()
            if np.isfinite(row).any()
        }
        | {
            f"c = {c:g}: mean distance of contact from MGDA's": float(np.nanmean(row))
            for c, row in distance.items()
            if np.isfinite(row).any()
        }
        | {
            "starts in which the distance never grows with c": float(sum(ordered)),
            "starts": float(len(STARTS)),
        },
        f"{budget}; distance in x₁ between the first contacts with the Pareto set, never growing "
        f"with c up to {CONTACT:g}. "
        f"c < 1 ends at the minimum of the mean from all starts and c >= 1 does not: {_yes(split)}",
    )


def stability(runs: dict[str, Run], whole: bool, budget: str) -> Findings:
    arms = ("GD", "MGDA", "PCGrad", "CAGrad")
    ends = {name: random_ends(runs[name]) for name in arms}
    arrival = {name: arrivals(runs[name]) for name in arms}
    count = len(ends["GD"])
    spread = {name: float(np.std(ends[name], ddof=1)) for name in arms}
    share = {name: share_interval(int(np.isfinite(arrival[name]).sum()), count) for name in arms}
    best = min(spread, key=lambda name: spread[name]) == "CAGrad"
    clear = all(share["CAGrad"].low > share[name].high for name in arms if name != "CAGrad")
    numbers: dict[str, float] = {"random starts": float(count)}
    for name in arms:
        numbers |= {f"{name}: standard deviation of the mean loss at the end": spread[name]}
        numbers |= {
            f"{name}: share arriving": share[name].mean,
            f"{name}: share arriving, low": share[name].low,
            f"{name}: share arriving, high": share[name].high,
        }
        got = arrival[name][np.isfinite(arrival[name])]
        if len(got):
            numbers |= {
                f"{name}: median of the steps to arrive": float(np.median(got)),
                f"{name}: latest arrival": float(got.max()),
            }
    fast = np.isfinite(arrival["GD"]) & np.isfinite(arrival["CAGrad"])
    if fast.any():
        numbers["CAGrad's steps over GD's, median where both arrive"] = float(
            np.median(arrival["CAGrad"][fast] / arrival["GD"][fast].clip(1))
        )
    yield Claim(
        "CA-28",
        PAPER,
        "CAGrad is the most stable and predictable of the four.",
        decided(
            whole,
            "holds" if best and clear else "holds only when" if best or clear else "does not hold",
        ),
        numbers,
        f"{budget}, {count} starts drawn uniformly from [-10, 10]², CAGrad with c = .5; "
        "arriving: within .1 of the minimum of the mean. "
        "Holds if the mean loss at the "
        "end spreads least and the share arriving has its Wilson interval above the others'",
    )


def two_tensions(runs: dict[str, Run], settings: Settings, whole: bool, budget: str) -> Findings:
    slide, rest = rises(runs["CAGrad"], 0.5), rises(runs["MGDA"], 0.0)
    side = [i for i, start in enumerate(STARTS) if start[0] != 0]
    met = np.isfinite(slide[side]).all() and np.isfinite(rest[side]).all()
    outer = slide[[STARTS.index((10.0, -8.0)), STARTS.index((-8.5, -5.0))]].max(1)
    gains = [
        float(-at(runs["CAGrad"].of([start], 0.5)).mean(-1).diff(dim=0).sum())
        for start in ((10.0, -8.0), (-8.5, -5.0))
    ]
    trades = bool(outer.min() > 1 and largest(rest) < 0.1)
    yield Claim(
        "X-02",
        PAPER,
        "Never raising a loss (MGDA) and trading along the Pareto set for a better mean (CAGrad) "
        "are two aims.",
        decided(whole and bool(met), "holds" if trades else "does not hold"),
        of("CAGrad: rise of the losing task after contact", slide.max(1))
        | of("MGDA: the same", rest.max(1))
        | {"CAGrad: fall of the mean loss from (10, -8)": gains[0], "from (-8.5, -5)": gains[1]},
        f"{budget}; sum of all rises between points {EVERY} steps apart, after first contact; "
        "holds if CAGrad (c = .5) raises a loss by more than 1 from the two outer starts "
        "and MGDA none by more than .1",
    )
    pairs = convex_pairs(settings.count(300), settings.count(1500))
    pcgrad = runs["PCGrad"].mean_loss(STARTS, 0.0)[-1] - minimum_of_mean()[1]
    at_rest, small = (
        float((pairs["distance"] < 1e-3).mean()),
        float((pairs["excess"] < 0.01).mean()),
    )
    yield Claim(
        "X-01",
        PAPER,
        "PCGrad practically reaches the optimum, or stops at Pareto points: which?",
        decided(
            whole,
            "holds only when"
            if at_rest > 0.95 and small > 0.5 and float(pcgrad.max()) > 0.1
            else "inconclusive",
        ),
        {
            "convex pairs: share ending Pareto stationary": at_rest,
            "convex pairs: median excess of the total over its fall": float(
                np.median(pairs["excess"])
            ),
            "convex pairs: 95th percentile": float(np.quantile(pairs["excess"], 0.95)),
            "convex pairs: share with an excess below 1 %": small,
        }
        | of("toy: PCGrad's excess of the mean loss", pcgrad),
        f"{len(pairs['excess'])} random pairs of convex quadratics in 5 dimensions, plain steps "
        f"of 1/H; toy: {budget}. "
        "Holds only when: it stops at Pareto points (95 % of the pairs), "
        "and these are close to the optimum for most convex pairs, but not on the toy",
    )


def convex_pairs(draws: int, steps: int, size: int = 5) -> dict[str, np.ndarray]:
    """PCGrad on pairs of quadratics ½(x - m_t)ᵀA_t(x - m_t): final excess of the total over its
    whole fall, and distance to stationarity.
    """

    def problem(key: Tensor) -> tuple[Tensor, Tensor]:
        root = mf.random.normal(mf.random.fold_in(key, 0), (2, size, size), torch.float64)
        return root @ root.mT / size + 0.1 * torch.eye(size, dtype=torch.float64), mf.random.normal(
            mf.random.fold_in(key, 1), (3, size), torch.float64
        )

    def both(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        matrix, middle = batch
        off = params["x"] - middle
        return 0.5 * torch.einsum("ti,tij,tj->t", off, matrix, off)

    matrix, points = vmap(problem)(torch.arange(draws))
    middle, start = points[:, :2], 3 * points[:, 2]
    largest = torch.linalg.eigvalsh(matrix.sum(1)).amax(-1)
    batch = (matrix, middle)

    def step_at(lr: Tensor) -> mf.Step:
        return mf.descend(both, mf.pcgrad(), mf.sgd(lr), mf.jacobian(), reduction="sum")

    state = vmap(lambda lr, x, b: step_at(lr).init({"x": x}, b))(1 / largest, start, batch)
    move = vmap(lambda lr, state, b: step_at(lr).update(state, b)[0])
    for _ in tqdm(range(steps), desc="convex pairs", leave=False):
        state = move(1 / largest, state, batch)
    lowest = torch.linalg.solve(matrix.sum(1), torch.einsum("dtij,dtj->di", matrix, middle))
    first, end, least = (
        vmap(both)({"x": x}, batch).sum(-1) for x in (start, state.params["x"], lowest)
    )
    g = vmap(lambda x, b: mf.task_gramian(both, {"x": x}, b)[1])(state.params["x"], batch)
    length = (
        vmap(lambda g: mf.diagnostics.stationarity(g).length)(g)
        / g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
    )
    return {"excess": ((end - least) / (first - least)).numpy(), "distance": length.numpy()}


def adam_and_rates(runs: dict[str, Run], whole: bool) -> Findings:
    shares = {name: first_order(runs[name], name) for name in ("MGDA", "PCGrad", "CAGrad")}
    lost = any(shares[name][1] > 0.001 for name in ("MGDA", "PCGrad"))
    safe = all(shares[name][0] == 0 for name in ("MGDA", "PCGrad"))
    yield Claim(
        "X-05",
        PAPER,
        "Descent guarantees are for plain steps along d, while the experiments use Adam: the "
        "guarantee is lost.",
        decided(whole, "holds" if lost and safe else "does not hold"),
        {f"{name}: share of steps whose d raises a task": x for name, (x, _) in shares.items()}
        | {
            f"{name}: share of Adam's steps that raise a task, d raising none": x
            for name, (_, x) in shares.items()
        },
        f"first {len(runs['MGDA'].watched) - 1} steps from the six starts, + in f₂; to first "
        "order, cosine below -1e-6; "
        "CAGrad with c = .5, which may raise a task by itself",
    )
