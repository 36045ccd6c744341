"""Can the bound's direction raise a task though the encoder has full rank?"""

from fractions import Fraction
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import ArrayLike
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import FEW
from ..report.decisions import Exact, Measured, Row, decided, ends, exact
from ..report.extremes import largest
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from ..report.options import Impossible, Option, Steps, drawn
from .common import gram
from .encoders import COLOURS

FULL = "full row rank, {}: share of ends that are not stationary"
DEFICIENT = "row rank 2 of 4, {}: share of ends that are not stationary"
CASES = {FULL: (3, 5), DEFICIENT: (4, 2)}
"""Samples (the encoding's length) and parameters of a random linear encoder."""


@decided(
    "the distance of 0 from the gradients' hull is nowhere above ‖d‖ of MGDA-UB, so that a point "
    "where it rests is stationary, and it comes to rest wherever MGDA does; in part if only in "
    "some case it does not come to rest"
)
def rests_elsewhere(measured: Measured) -> Verdict:
    """One point that is not stationary, and where it rests, is enough: the sentence says "may"."""
    less = "distance of 0 from the gradients' hull less ‖d‖ of MGDA-UB, over the longest gradient"
    if measured[less] > 1e-6:
        return "holds"
    found = []
    for case in (FULL, DEFICIENT):
        exact, bound = (ends(measured, case.format(name)) for name in ("MGDA", "MGDA-UB"))
        if bound[0] > exact[1]:
            found.append(True)
        elif exact[1] < FEW.now and bound[1] < FEW.now:
            found.append(False)
    if any(found):
        return "holds only when"
    return "does not hold" if len(found) == 2 else "inconclusive"


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
    "SU-35": Row("So MGDA-UB may fail to find a Pareto-stationary point.", rests_elsewhere),
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
    yield end_points(settings)


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


def curved_rows(w: Tensor, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """v_t = B_t(z - y_t) and g_t = Xᵀv_t of the losses ½(z - y_t)ᵀB_t(z - y_t) at z = Xw."""
    x, targets, bends = batch
    off = (x @ w[..., None]).mT - targets
    v = (bends @ off[..., None])[..., 0]
    return v, v @ x


def curved_problem(root: Tensor, samples: int, size: int) -> tuple[Tensor, Any]:
    """A start, and an encoder of norm 1 with heads of norm 1, conditioned from 1 to 100."""
    part = [mf.random.fold_in(root, 100 + i) for i in range(5)]
    x = mf.random.normal(part[0], (samples, size), torch.float64)
    basis = torch.linalg.qr(mf.random.normal(part[3], (2, samples, samples), torch.float64))[0]
    scale = 100 ** -mf.random.uniform(part[4], (2, samples), torch.float64)
    bends = (basis * (scale / scale.amax(-1, keepdim=True))[:, None]) @ basis.mT
    start = 2 * mf.random.normal(part[1], (size,), torch.float64)
    targets = mf.random.normal(part[2], (2, samples), torch.float64)
    return start, (x / torch.linalg.matrix_norm(x, 2), targets, bends)


def rest_points(draws: int, steps: int) -> tuple[dict[str, Tensor], float]:
    """Both methods from random starts, side by side. Distance of 0 from the gradients' hull, end
    over start `[draw]`, by the case with the method's name in it; and the most by which the
    distance is above ‖d‖ on MGDA-UB's way.
    """
    weigh = vmap(lambda gramian: mf.weights(mf.mgda(), gramian))
    length = vmap(lambda rows: mf.diagnostics.stationarity(rows @ rows.mT).length)
    found, held = {}, -1.0
    for case, sizes in CASES.items():
        drawn = vmap(lambda root, sizes=sizes: curved_problem(root, *sizes))(torch.arange(draws))
        start, batch = tree_map(lambda x: torch.cat([x, x]), drawn)
        w = start
        for k in tqdm(range(steps), desc="to rest", leave=False):
            v, g = curved_rows(w, batch)
            weights = weigh(torch.cat([gram(v[:draws]), gram(g[draws:])]))
            d = (weights[:, None] @ g)[:, 0]
            if k % max(1, steps // 10) == 0:
                less = length(g[:draws]) - d[:draws].norm(dim=-1)
                held = largest(held, less / g[:draws].norm(dim=-1).amax(-1))
            w = w - (1 + k / 100) ** -0.5 * d
        distance = length(curved_rows(w, batch)[1]) / length(curved_rows(start, batch)[1])
        names = [case.format(name) for name in ("MGDA-UB", "MGDA")]
        found |= dict(zip(names, distance.split(draws), strict=True))
    return found, held


def end_points(settings: Settings) -> Claim:
    """Whether ends are stationary, on random encoders with curved heads."""
    draws, steps = settings.count(300), settings.count(1500)
    ends, held = rest_points(draws, steps)
    less = "distance of 0 from the gradients' hull less ‖d‖ of MGDA-UB, over the longest gradient"
    numbers = {less: held}
    for case, distance in ends.items():
        numbers |= named(case, share_interval(int((distance > 1e-2).sum()), draws))
    return Claim(
        "SU-35",
        numbers,
        f"{draws} random linear encoders a case with two curved quadratic heads, {steps} plain "
        "steps of falling length from the same starts. Stationary: 0 is within 1 % of its starting "
        "distance from the gradients' hull. MGDA-UB cannot rest elsewhere: its direction is a "
        "convex combination of the g_t, so the draws ask whether it comes to rest. Wilson "
        "intervals",
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
