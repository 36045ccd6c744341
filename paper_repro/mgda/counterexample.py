"""Can the bound's direction raise a task though the encoder has full rank?"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.findings import Claim, Figure, Findings, Settings
from ..report.intervals import named, share_interval
from .encoders import COLOURS, PAPER

X = [[2, 1], [1, 0]]
Y = [[-1, -1], [1, -1]]
Vector = list[Fraction]
Matrix = list[Vector]


def fractions(rows: list[list[int]]) -> Matrix:
    return [[Fraction(x) for x in row] for row in rows]


def dot(x: Vector, y: Vector) -> Fraction:
    return sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0))


def times(matrix: Matrix, x: Vector) -> Vector:
    return [dot(row, x) for row in matrix]


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def min_norm_weights(x: Vector, y: Vector) -> Vector:
    """Weights of the shortest point between two vectors: a perpendicular, on the segment."""
    first = (dot(y, y) - dot(x, y)) / (dot(x, x) + dot(y, y) - 2 * dot(x, y))
    first = min(max(first, Fraction(0)), Fraction(1))
    return [first, 1 - first]


class Exact(NamedTuple):
    """A step in fractions."""

    weights: Vector
    direction: Vector
    rates: Vector


def exact_step(jacobian: Matrix, v: Matrix, *, bound: bool) -> Exact:
    """MGDA-UB's (or MGDA's) weights, direction d and rates ⟨g_t, d⟩ for A and v_1, v_2."""
    g = [times(transposed(jacobian), row) for row in v]
    weights = min_norm_weights(*(v if bound else g))
    direction = times(transposed(g), weights)
    return Exact(weights, direction, times(g, direction))


def encode_linear(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    return batch[0] @ params["w"]


def decode_linear(params: mf.types.Params, z: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 0.5 * (z - batch[1]).square().sum(1)


def losses_linear(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    return decode_linear(params, encode_linear(params, batch), batch)


def probes() -> dict[str, mf.Probe]:
    return {"MGDA-UB": mf.representation(encode_linear, decode_linear), "MGDA": mf.jacobian()}


def through_library(probe: mf.Probe) -> tuple[list[float], list[float]]:
    """Weights and rates of one step at w = 0, by the library's probe."""
    params, batch = start_linear()
    step = mf.balance(losses_linear, mf.mgda(), probe)
    direction, _, info = step.update(params, batch, step.init(params, batch))
    rows = mf.task_gradients(losses_linear, params, batch)[1]
    return info.weights.tolist(), (rows["w"] @ direction["w"]).tolist()


def start_linear() -> tuple[mf.types.Params, tuple[Tensor, Tensor]]:
    return {"w": torch.zeros(2, dtype=torch.float64)}, (
        torch.tensor(X, dtype=torch.float64),
        torch.tensor(Y, dtype=torch.float64),
    )


def run(settings: Settings) -> Findings:
    yield lemma()
    yield descent_fails()
    paths = {name: trajectory(probe, settings.count(400)) for name, probe in probes().items()}
    yield trajectories(paths)
    yield end_points(paths, settings)


def lemma() -> Claim:
    m, x, y = fractions([[1, -1], [-1, 2]]), fractions([[1, 0]])[0], fractions([[1, 2]])[0]
    plain, through = dot(x, y), dot(x, times(m, y))
    minors = m[0][0], m[0][0] * m[1][1] - m[0][1] * m[1][0]
    false = min(minors) > 0 and m == transposed(m) and plain >= 0 > through
    return Claim(
        "SU-33",
        PAPER,
        "The published proof uses a false lemma: for symmetric positive definite M, xᵀMy >= 0 "
        "iff xᵀy >= 0.",
        "holds" if false else "does not hold",
        {
            "xᵀy": float(plain),
            "xᵀMy": float(through),
            "smallest leading minor of M": float(min(minors)),
        },
        "exact fractions; M = [[1, -1], [-1, 2]], x = (1, 0), y = (1, 2); holds if M is positive "
        "definite and the signs differ",
    )


def descent_fails() -> Claim:
    small = fractions([[1, 0], [1, 1]]), fractions([[1, 2], [1, -2]])
    x = fractions(X)
    linear = x, [[-target for target in row] for row in fractions(Y)]  # v_t = z - y_t at z = 0
    numbers: dict[str, float] = {}
    worst, difference = [], 0.0
    for name, (jacobian, v) in {"A = [[1, 0], [1, 1]]": small, "linear encoder": linear}.items():
        for method in ("MGDA-UB", "MGDA"):
            step = exact_step(jacobian, v, bound=method == "MGDA-UB")
            numbers |= {
                f"{name}, {method}: rate of task {task + 1}": float(rate)
                for task, rate in enumerate(step.rates)
            }
            if method == "MGDA-UB":
                worst.append(min(step.rates))
            if jacobian is x:
                weights, rates = through_library(probes()[method])
                difference = max(
                    difference,
                    *(
                        abs(a - float(b))
                        for a, b in zip(weights + rates, step.weights + step.rates, strict=True)
                    ),
                )
    # L_2(w - ηd) = L_2 - η⟨g_2, d⟩ + η²‖X d‖²/2 is exact for this loss.
    d = exact_step(*linear, bound=True)
    slope, curvature = -d.rates[1], dot(times(x, d.direction), times(x, d.direction))
    numbers |= {
        "L_2 along the step, coefficient of η": float(slope),
        "coefficient of η²": float(curvature / 2),
        "library against fractions, largest difference": difference,
    }
    return Claim(
        "SU-34",
        PAPER,
        "The proof cannot be repaired: even with a full-rank encoder Jacobian the bound's "
        "direction may raise a task.",
        "holds"
        if max(worst) < 0 and slope > 0 and curvature >= 0 and difference < 1e-12
        else "does not hold",
        numbers,
        "two examples in exact fractions, the second end to end also through "
        "mtlfunc.representation and mtlfunc.jacobian; "
        "holds if a rate is negative, so that L_2 rises for every step length η > 0",
    )


class Path(NamedTuple):
    losses: np.ndarray  # [time, task]
    params: np.ndarray  # [time, 2]
    distance: float  # of 0 from conv{g_t} at the end, an upper bound
    start_distance: float


def trajectory(probe: mf.Probe, steps: int, lr: float = 0.1) -> Path:
    params, batch = start_linear()
    step = mf.descend(losses_linear, mf.mgda(), mf.sgd(lr), probe)

    def record(state: mf.TrainState, info: mf.Info) -> tuple[Tensor, Tensor]:
        return losses_linear(state.params, batch), state.params["w"]

    end, kept = mf.rollout(
        step, step.init(params, batch), itertools.repeat(batch, steps), record=record
    )
    distances = [
        float(mf.diagnostics.stationarity(mf.task_gramian(losses_linear, at, batch)[1]).length)
        for at in (end.params, params)
    ]
    losses = torch.cat([losses_linear(params, batch)[None], kept[0]])
    return Path(losses.numpy(), torch.cat([params["w"][None], kept[1]]).numpy(), *distances)


def trajectories(paths: dict[str, Path]) -> Figure:
    canvas = Canvas(figsize=(12, 4.6), layout="constrained")
    loss_space, parameter_space = canvas.add_subplot(1, 2, 1), canvas.add_subplot(1, 2, 2)
    _, (x, y) = start_linear()
    share = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    # minimisers of s L_1 + (1 - s) L_2
    optimal = torch.linalg.solve(x, (share * y[0] + (1 - share) * y[1]).T).T
    front = torch.stack([losses_linear({"w": w}, (x, y)) for w in optimal])
    loss_space.plot(
        front[:, 0], front[:, 1], color="#999999", linewidth=4, alpha=0.6, label="Pareto front"
    )
    parameter_space.plot(
        optimal[:, 0], optimal[:, 1], color="#999999", linewidth=4, alpha=0.6, label="Pareto set"
    )
    side = (
        torch.linspace(-3.2, 2.2, 150, dtype=torch.float64),
        torch.linspace(-1.6, 4.6, 150, dtype=torch.float64),
    )
    grid = torch.stack(torch.meshgrid(*side, indexing="xy"), -1)
    both = vmap(vmap(lambda w: losses_linear({"w": w}, (x, y))))(grid)
    for task, style in enumerate(("solid", "dotted")):
        parameter_space.contour(
            *side,
            both[..., task],
            levels=[0.1, 0.5, 1, 2, 4, 8],
            colors="#bbbbbb",
            linestyles=style,
            linewidths=0.8,
        )
    for name, path in paths.items():
        for axis, points in ((loss_space, path.losses), (parameter_space, path.params)):
            axis.plot(points[:, 0], points[:, 1], color=COLOURS[name], label=name)
            axis.plot(points[-1, 0], points[-1, 1], "o", color=COLOURS[name])
    loss_space.plot(1, 1, "k*", markersize=11, label="start")
    parameter_space.plot(0, 0, "k*", markersize=11)
    top = paths["MGDA-UB"].losses[:, 1].max()
    loss_space.set(
        xlabel="loss of task 1", ylabel="loss of task 2", xlim=(-0.05, 1.2), ylim=(-0.05, 1.1 * top)
    )
    parameter_space.set(xlabel="w_1", ylabel="w_2")
    loss_space.legend(frameon=False)
    ends = {
        name: f"({path.losses[-1, 0]:.2f}, {path.losses[-1, 1]:.2f})"
        for name, path in paths.items()
    }
    return Figure(
        "trajectories",
        "The end-to-end counterexample iterated from w = 0. Left: losses. Right: parameters, "
        "with contours of task 1 (solid) and task 2 (dotted). "
        f"From losses (1, 1) MGDA ends at {ends['MGDA']}; MGDA-UB ends at {ends['MGDA-UB']}, and "
        f"its second loss reaches {top:.2f} on the way.",
        canvas,
    )


def end_points(paths: dict[str, Path], settings: Settings) -> Claim:
    """Distance to Pareto stationarity at the end, on the example and on random linear encoders."""
    draws, steps = settings.count(100), settings.count(3000)
    families = {
        "full row rank (3 samples, 5 parameters)": (3, 5),
        "row rank 2 (4 samples, 2 parameters)": (4, 2),
    }
    rest = {name: rest_points(draws, steps, *shape) for name, shape in families.items()}
    missed = {
        name: share_interval(int((distance > 1e-2).sum()), draws)
        for name, (distance, _) in rest.items()
    }
    dominated = {name: share_interval(int(worse.sum()), draws) for name, (_, worse) in rest.items()}
    bound = paths["MGDA-UB"]
    numbers = {
        f"{name}: loss {task + 1} at the end": float(path.losses[-1, task])
        for name, path in paths.items()
        for task in (0, 1)
    }
    numbers |= {
        f"{name}: distance of 0 from conv of the gradients, end over start": path.distance
        / path.start_distance
        for name, path in paths.items()
    }
    for name in families:
        numbers |= named(f"{name}: share ending away from stationarity", missed[name]) | named(
            f"{name}: share ending with a loss above its start", dominated[name]
        )
    ends_worse = bool((bound.losses[-1] > bound.losses[0]).any())
    found = [
        bound.distance < 1e-2 * bound.start_distance,
        *(share.mean == 0 for share in missed.values()),
    ]
    return Claim(
        "SU-35",
        PAPER,
        "Hence the method may fail to find a Pareto-stationary point.",
        "does not hold" if all(found) else "holds only when" if any(found) else "holds",
        numbers,
        f"counterexample, and twice {draws} random linear encoders with 2 tasks, {steps} steps; "
        "stationary if the distance falls below 1 % of "
        "its start. A zero direction is itself a convex combination of the gradients. What "
        "fails is descent: the end need not dominate the start "
        f"({'it does not' if ends_worse else 'it does'} in the counterexample). Wilson intervals",
    )


def rest_points(draws: int, steps: int, samples: int, size: int) -> tuple[Tensor, Tensor]:
    """MGDA-UB from random starts: how near it ends to stationarity, and whether a loss rose.

    Distance of 0 from the gradients' hull, end over start `[draw]`, and losses that ended higher.
    """
    roots = torch.arange(draws)

    def problem(root: Tensor) -> tuple[mf.types.Params, tuple[Tensor, Tensor]]:
        part = [mf.random.fold_in(root, 100 + i) for i in range(3)]
        x = mf.random.normal(part[0], (samples, size), torch.float64)
        return {"w": mf.random.normal(part[1], (size,), torch.float64)}, (
            x,
            mf.random.normal(part[2], (2, samples), torch.float64),
        )

    step = mf.descend(losses_linear, mf.mgda(), mf.sgd(0.05), probes()["MGDA-UB"])

    def length(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        return mf.diagnostics.stationarity(mf.task_gramian(losses_linear, params, batch)[1]).length

    params, batch = vmap(problem)(roots)
    state = vmap(step.init)(params, batch)
    advance = vmap(lambda state, batch: step.update(state, batch)[0])
    for _ in tqdm(range(steps), desc="to rest", leave=False):
        state = advance(state, batch)
    worse = (
        vmap(losses_linear)(state.params, batch) > vmap(losses_linear)(params, batch) + 1e-9
    ).any(1)
    return vmap(length)(state.params, batch) / vmap(length)(params, batch), worse
