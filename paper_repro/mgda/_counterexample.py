"""Can the bound's direction raise a task though the encoder has full rank?"""

from fractions import Fraction
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import ArrayLike
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.decisions import Exact, Measured, Row, decided, exact
from ..report.extremes import largest
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.options import Impossible, Option, Steps, drawn
from .common import gram
from .encoders import COLOURS

LENGTHS, STEPS = (2.0, 1.0, 0.5), 2400
FROM_HULL = "{}, step {:g}: {} distance of 0 from the hull in the last half, over the start's"
BENDS = [[0.83, -0.31, -0.11], [-0.31, 0.28, 0.16], [-0.11, 0.16, 0.15]]
ENCODER = [[0.79, 0.0, 0.0], [0.53, 0.5, 0.0], [0.03, -0.27, 0.25]]


@decided(
    "MGDA-UB is at no step length as far away in the last half of its run as at its start, on one "
    "encoder of full rank with convex heads on which MGDA comes nearer; in part if at some"
)
def circles(measured: Measured) -> Verdict:
    """The sentence says "may": one problem on which it never comes near is enough."""
    if any(measured[FROM_HULL.format("MGDA", rate, "largest")] >= 1 for rate in LENGTHS):
        return "inconclusive"
    far = [measured[FROM_HULL.format("MGDA-UB", rate, "least")] > 1 for rate in LENGTHS]
    return "holds" if all(far) else "holds only when" if any(far) else "does not hold"


CLAIMS = {
    "SU-33": Exact(
        "The published proof uses a false lemma: for symmetric positive definite M, xᵀMy "
        ">= 0 iff xᵀy >= 0.",
        exact(("smallest leading minor of M", ">", 0), ("xᵀy", ">=", 0), ("xᵀMy", "<", 0)),
    ),
    "SU-34": Exact(
        "The proof cannot be repaired: even with a full-rank encoder Jacobian the bound's "
        "direction may raise a task.",
        exact(
            ("A = [[1, 0], [1, 1]], MGDA-UB: rate of task 2", "<", 0),
            ("linear encoder, MGDA-UB: rate of task 2", "<", 0),
            ("L_2 along the step, coefficient of η", ">", 0),
            ("coefficient of η²", ">=", 0),
            ("library against fractions, largest difference", "<", 1e-12),
        ),
        finding=(
            "an encoder of full rank. Along MGDA-UB's direction the losses of the two tasks "
            "fall at rates of {linear encoder, MGDA-UB: rate of task 1} and {linear encoder, "
            "MGDA-UB: rate of task 2}, along exact MGDA's at {linear encoder, MGDA: rate of "
            "task 1} and {linear encoder, MGDA: rate of task 2}. A loss with a rate below 0 "
            "rises"
        ),
    ),
    "SU-35": Row("So MGDA-UB may fail to find a Pareto-stationary point.", circles),
}

X = [[2, 1], [1, 0]]
Y = [[-1, -1], [1, -1]]


def fractions(rows: list[list[int]]) -> np.ndarray:
    return np.array([[Fraction(x) for x in row] for row in rows])


def exact_step(jacobian: np.ndarray, v: ArrayLike, *, bound: bool) -> list[np.ndarray]:
    """MGDA-UB's (or MGDA's) weights, direction d and rates ⟨g_t, d⟩ for A and v_1, v_2."""
    g = np.asarray(v) @ jacobian
    x, y = np.asarray(v) if bound else g  # the foot of the perpendicular on their segment
    first = min(max((y @ y - x @ y) / ((x - y) @ (x - y)), Fraction(0)), Fraction(1))
    weights = np.array([first, 1 - first])
    direction = weights @ g
    return [weights, direction, g @ direction]


Batch = tuple[Tensor, Tensor]
"""Samples X and targets of two tasks, `[task, sample]`."""
Example = tuple[mf.types.Params, Batch]


def encode(params: mf.types.Params, batch: Batch) -> Tensor:
    return batch[0] @ params["w"]


def decode(params: mf.types.Params, z: Tensor, batch: Batch) -> Tensor:
    return 0.5 * (z - batch[1]).square().sum(1)


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    return decode(params, encode(params, batch), batch)


def probes() -> dict[str, mf.Probe]:
    return {"MGDA-UB": mf.representation(encode, decode), "MGDA": mf.jacobian()}


def example() -> Example:
    x, y = (torch.tensor(rows, dtype=torch.float64) for rows in (X, Y))
    return {"w": torch.zeros(2, dtype=torch.float64)}, (x, y)


def run(settings: Settings) -> Findings:
    yield lemma()
    yield descent_fails()
    steps = settings.count(400)
    paths = {name: trajectory(probe, steps, 0.1, example()) for name, probe in probes().items()}
    yield trajectories(paths, example())
    yield end_points()


def lemma() -> Claim:
    m, (x, y) = fractions([[1, -1], [-1, 2]]), fractions([[1, 0], [1, 2]])
    return Claim(
        "SU-33",
        {
            "xᵀy": x @ y,
            "xᵀMy": x @ m @ y,
            "smallest leading minor of M": min(m[0, 0], m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]),
        },
        "exact fractions; M = [[1, -1], [-1, 2]], x = (1, 0), y = (1, 2)",
    )


def descent_fails() -> Claim:
    _, _, small = exact_step(fractions([[1, 0], [1, 1]]), fractions([[1, 2], [1, -2]]), bound=True)
    numbers = {"A = [[1, 0], [1, 1]], MGDA-UB: rate of task 2": float(small[1])}
    x, v = fractions(X), -fractions(Y)  # v_t = z - y_t at z = 0
    params, batch = example()
    rows = mf.task_gradients(losses, params, batch)[1]["w"]
    difference = 0.0
    for method, probe in probes().items():
        weights, _, rates = exact_step(x, v, bound=method == "MGDA-UB")
        for task, rate in enumerate(rates, 1):
            numbers[f"linear encoder, {method}: rate of task {task}"] = float(rate)
        step = mf.balance(losses, mf.mgda(), probe)
        direction, _, info = step.update(params, batch, step.init(params, batch))
        found = np.concatenate([info.weights, rows @ direction["w"]])
        difference = largest(difference, np.abs(found - np.concatenate([weights, rates])))
    # L_2(w - ηd) = L_2 - η⟨g_2, d⟩ + η²‖X d‖²/2 is exact for this loss
    _, d, rates = exact_step(x, v, bound=True)
    moved = x @ d
    numbers |= {
        "L_2 along the step, coefficient of η": float(-rates[1]),
        "coefficient of η²": float(moved @ moved / 2),
        "library against fractions, largest difference": difference,
    }
    return Claim(
        "SU-34",
        numbers,
        "two examples in exact fractions, the second end to end also through "
        "mtlfunc.representation and mtlfunc.jacobian",
    )


def distances() -> dict[str, Tensor]:
    """The distance of 0 from the gradients' hull over that of the start, `[step length, time]`, by
    method, for losses ½(z - y_t)ᵀB(z - y_t) of z = Xw.
    """
    x, bends = (torch.tensor(rows, dtype=torch.float64) for rows in (ENCODER, BENDS))
    ends = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)  # y_t B
    weigh = vmap(lambda gramian: mf.weights(mf.mgda(), gramian))
    length = vmap(lambda rows: mf.diagnostics.stationarity(rows @ rows.mT).length)
    w = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(2, len(LENGTHS), 3)
    lr, found = torch.tensor(LENGTHS, dtype=torch.float64)[:, None], []
    for _ in tqdm(range(STEPS), desc="to rest", leave=False):
        v = (w @ x.mT @ bends)[..., None, :] - ends  # [method, step length, task, 3]
        g = v @ x
        weights = weigh(torch.cat([gram(v[0]), gram(g[1])])).reshape(*w.shape[:2], 1, 2)
        found.append(length(g.flatten(0, 1)))
        w = w - lr * (weights @ g)[..., 0, :]
    over = torch.stack(found, -1).unflatten(0, (2, len(LENGTHS))) / found[0][0]
    return dict(zip(("MGDA-UB", "MGDA"), over, strict=True))


def end_points() -> Claim:
    """Whether MGDA-UB comes near a stationary point where MGDA does."""
    numbers = {}
    for method, every in distances().items():
        for rate, path in zip(LENGTHS, every[:, STEPS // 2 :], strict=True):
            for what, number in (("least", path.min()), ("largest", path.max())):
                numbers[FROM_HULL.format(method, rate, what)] = float(number)
    return Claim(
        "SU-35",
        numbers,
        f"one linear encoder of three parameters and three outputs, two heads with one Hessian of "
        f"condition 34, {STEPS} plain steps of each length from one start. A point where MGDA-UB "
        "rests is stationary, as its direction is a convex combination of the g_t; here it circles "
        "around such points, and in the last half at no length it is nearer than at the start",
    )


class Path(NamedTuple):
    losses: np.ndarray  # [time, task]
    params: np.ndarray  # [time, 2]


def trajectory(probe: mf.Probe, steps: int, lr: float, example: Example) -> Path:
    params, batch = example
    step = mf.descend(losses, mf.mgda(), probe, mf.sgd(lr))
    state, places = step.init(params, batch), [params["w"]]
    for _ in range(steps):
        state, _ = step.update(state, batch)
        places.append(state.params["w"])
    passed = torch.stack([losses({"w": w}, batch) for w in places])
    return Path(passed.numpy(), torch.stack(places).numpy())


@drawn
def counterexample(
    inputs: Annotated[
        tuple[tuple[float, float], ...], Option("samples, as x1,x2", -1e3, 1e3, 2)
    ] = ((2.0, 1.0), (1.0, 0.0)),
    targets: Annotated[
        tuple[tuple[float, ...], ...],
        Option("targets of two tasks, a number a sample", -1e3, 1e3, 2),
    ] = ((-1.0, -1.0), (1.0, -1.0)),
    start: Annotated[tuple[float, float], Option("start w_1,w_2", -1e3, 1e3)] = (0.0, 0.0),
    steps: Steps = 400,
    rate: Annotated[float, Option("step length of plain descent", 1e-12, 1e3)] = 0.1,
) -> Figure:
    """MGDA and its upper bound on a linear encoder with two tasks: losses and parameters."""
    if len(targets) != 2 or any(len(row) != len(inputs) for row in targets):
        raise Impossible(f"targets: expected two rows of {len(inputs)} numbers, one a sample")
    x, y = (torch.tensor(rows, dtype=torch.float64) for rows in (inputs, targets))
    if torch.linalg.matrix_rank(x) < 2:
        raise Impossible("inputs: expected samples that are not all on one line through 0")
    most = 2 / float(torch.linalg.matrix_norm(x, 2)) ** 2
    if rate > most:
        raise Impossible(f"rate: {rate:g} is too large, as descent diverges above {most:.3g}")
    from_there = {"w": torch.tensor(start, dtype=torch.float64)}, (x, y)
    paths = {
        name: trajectory(probe, steps, rate, from_there)
        for name, probe in tqdm(probes().items(), desc="descent", leave=False)
    }
    return trajectories(paths, from_there)


def trajectories(paths: dict[str, Path], example: Example) -> Figure:
    canvas = Canvas(figsize=(12, 4.6), layout="constrained")
    loss_space, parameter_space = spaces = [canvas.add_subplot(1, 2, i) for i in (1, 2)]
    begin, (x, y) = example
    share = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    # minimisers of s L_1 + (1 - s) L_2
    targets = (share * y[0] + (1 - share) * y[1]).T
    # the default driver may take a wrong rank where columns of x depend on each other
    optimal = torch.linalg.lstsq(x, targets, driver="gelsd").solution.T
    front = torch.stack([losses({"w": w}, (x, y)) for w in optimal])
    for axis, points, label in zip(spaces, (front, optimal), ("front", "set"), strict=True):
        look = {"color": "#999999", "linewidth": 4, "alpha": 0.6}
        axis.plot(*points.T, label=f"Pareto {label}", **look)
    met = torch.cat([optimal, *(torch.as_tensor(path.params) for path in paths.values())])
    low, high = met.aminmax(dim=0)
    margin = 0.3 * float((high - low).max()) + 1e-9
    ends = zip((low - margin).tolist(), (high + margin).tolist(), strict=True)
    side = [torch.linspace(a, b, 150, dtype=torch.float64) for a, b in ends]
    grid = torch.stack(torch.meshgrid(*side, indexing="xy"), -1)
    both = vmap(vmap(lambda w: losses({"w": w}, (x, y))))(grid)
    contours: Any = {"levels": [0.1, 0.5, 1, 2, 4, 8], "colors": "#bbbbbb", "linewidths": 0.8}
    for task, style in enumerate(("solid", "dotted")):
        parameter_space.contour(*side, both[..., task], linestyles=style, **contours)
    for name, path in paths.items():
        for axis, points in zip(spaces, path, strict=True):
            axis.plot(*points.T, color=COLOURS[name], label=name)
            axis.plot(*points[-1], "o", color=COLOURS[name])
    first = next(iter(paths.values())).losses[0]
    loss_space.plot(*first, "k*", markersize=11, label="start")
    parameter_space.plot(*begin["w"].numpy(), "k*", markersize=11, label="start")
    every = np.concatenate([path.losses for path in paths.values()])
    right, top = every.max(0)
    loss_space.set(
        xlabel="loss of task 1",
        ylabel="loss of task 2",
        xlim=(-0.05 * right, 1.2 * right),
        ylim=(-0.05 * top, 1.1 * top),
    )
    parameter_space.set(xlabel="w_1", ylabel="w_2")
    loss_space.legend()
    rest = {name: "({:.2f}, {:.2f})".format(*path.losses[-1]) for name, path in paths.items()}
    at = f"({', '.join(f'{w:g}' for w in begin['w'].tolist())})"
    most = paths["MGDA-UB"].losses[:, 1].max()
    return Figure(
        "trajectories",
        f"The end-to-end counterexample iterated from w = {at}. First: losses. Second: parameters, "
        "with contours of task 1 (solid) and task 2 (dotted). "
        f"From losses ({first[0]:.3g}, {first[1]:.3g}) MGDA ends at {rest['MGDA']}; MGDA-UB ends "
        f"at {rest['MGDA-UB']}, and its second loss reaches {most:.2f} on the way.",
        canvas,
        [
            {"method": name, "step": i, "losses": loss.tolist(), "w": w.tolist()}
            for name, path in paths.items()
            for i, (loss, w) in enumerate(zip(path.losses, path.params, strict=True))
        ],
    )
