"""Can the bound's direction raise a task though the encoder has full rank?"""

from fractions import Fraction
from typing import Annotated, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import FEW
from ..report.decisions import Claims, Exact, Measured, Row, decided, ends, exact
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from ..report.options import Impossible, Option, Steps, drawn
from .curved import CASES, DEFICIENT, FULL, rest_points
from .encoders import COLOURS


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
claim = Claims(CLAIMS)

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


class ExactStep(NamedTuple):
    """A step in fractions."""

    weights: Vector
    direction: Vector
    rates: Vector


def exact_step(jacobian: Matrix, v: Matrix, *, bound: bool) -> ExactStep:
    """MGDA-UB's (or MGDA's) weights, direction d and rates ⟨g_t, d⟩ for A and v_1, v_2."""
    g = [times(transposed(jacobian), row) for row in v]
    weights = min_norm_weights(*(v if bound else g))
    direction = times(transposed(g), weights)
    return ExactStep(weights, direction, times(g, direction))


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
    yield trajectories(paths, start_linear())
    yield end_points(paths, settings)


def lemma() -> Claim:
    m, x, y = fractions([[1, -1], [-1, 2]]), fractions([[1, 0]])[0], fractions([[1, 2]])[0]
    plain, through = dot(x, y), dot(x, times(m, y))
    minors = m[0][0], m[0][0] * m[1][1] - m[0][1] * m[1][0]
    return claim(
        "SU-33",
        {
            "xᵀy": float(plain),
            "xᵀMy": float(through),
            "smallest leading minor of M": float(min(minors)),
        },
        "exact fractions; M = [[1, -1], [-1, 2]], x = (1, 0), y = (1, 2)",
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
    return claim(
        "SU-34",
        numbers,
        "two examples in exact fractions, the second end to end also through "
        "mtlfunc.representation and mtlfunc.jacobian",
    )


class Path(NamedTuple):
    losses: np.ndarray  # [time, task]
    params: np.ndarray  # [time, 2]
    distance: float  # of 0 from conv{g_t} at the end, an upper bound
    start_distance: float


Example = tuple[mf.types.Params, tuple[Tensor, Tensor]]


def trajectory(
    probe: mf.Probe, steps: int, lr: float = 0.1, example: Example | None = None
) -> Path:
    params, batch = example or start_linear()
    step = mf.descend(losses_linear, mf.mgda(), probe, mf.sgd(lr))

    end, kept = step.init(params, batch), []
    for _ in range(steps):
        end, _ = step.update(end, batch)
        kept.append((losses_linear(end.params, batch), end.params["w"]))
    passed, places = map(torch.stack, zip(*kept, strict=True))
    distances = [
        float(mf.diagnostics.stationarity(mf.task_gramian(losses_linear, at, batch)[1]).length)
        for at in (end.params, params)
    ]
    losses = torch.cat([losses_linear(params, batch)[None], passed])
    return Path(losses.numpy(), torch.cat([params["w"][None], places]).numpy(), *distances)


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
    example = {"w": torch.tensor(start, dtype=torch.float64)}, (x, y)
    paths = {
        name: trajectory(probe, steps, rate, example)
        for name, probe in tqdm(probes().items(), desc="descent", leave=False)
    }
    return trajectories(paths, example)


def trajectories(paths: dict[str, Path], example: Example) -> Figure:
    canvas = Canvas(figsize=(12, 4.6), layout="constrained")
    loss_space, parameter_space = canvas.add_subplot(1, 2, 1), canvas.add_subplot(1, 2, 2)
    begin, (x, y) = example
    share = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    # minimisers of s L_1 + (1 - s) L_2
    optimal = torch.linalg.lstsq(x, (share * y[0] + (1 - share) * y[1]).T).solution.T
    front = torch.stack([losses_linear({"w": w}, (x, y)) for w in optimal])
    loss_space.plot(
        front[:, 0], front[:, 1], color="#999999", linewidth=4, alpha=0.6, label="Pareto front"
    )
    parameter_space.plot(
        optimal[:, 0], optimal[:, 1], color="#999999", linewidth=4, alpha=0.6, label="Pareto set"
    )
    met = torch.cat([optimal, *(torch.as_tensor(path.params) for path in paths.values())])
    low, high = met.aminmax(dim=0)
    margin = 0.3 * float((high - low).max()) + 1e-9
    side = [
        torch.linspace(float(a) - margin, float(b) + margin, 150, dtype=torch.float64)
        for a, b in zip(low, high, strict=True)
    ]
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
    first = next(iter(paths.values())).losses[0]
    loss_space.plot(*first, "k*", markersize=11, label="start")
    parameter_space.plot(*begin["w"].numpy(), "k*", markersize=11)
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
    ends = {
        name: f"({path.losses[-1, 0]:.2f}, {path.losses[-1, 1]:.2f})"
        for name, path in paths.items()
    }
    at = f"({', '.join(f'{w:g}' for w in begin['w'].tolist())})"
    most = paths["MGDA-UB"].losses[:, 1].max()
    return Figure(
        "trajectories",
        f"The end-to-end counterexample iterated from w = {at}. Left: losses. Right: parameters, "
        "with contours of task 1 (solid) and task 2 (dotted). "
        f"From losses ({first[0]:.3g}, {first[1]:.3g}) MGDA ends at {ends['MGDA']}; MGDA-UB ends "
        f"at {ends['MGDA-UB']}, and its second loss reaches {most:.2f} on the way.",
        canvas,
        [
            {"method": name, "step": i, "losses": loss.tolist(), "w": w.tolist()}
            for name, path in paths.items()
            for i, (loss, w) in enumerate(zip(path.losses, path.params, strict=True))
        ],
    )


def end_points(paths: dict[str, Path], settings: Settings) -> Claim:
    """Whether ends are stationary: on the example, and on random encoders with curved heads."""
    draws, steps = settings.count(300), settings.count(1500)
    numbers = {
        f"counterexample, {name}: distance of 0 from the hull, end over start": path.distance
        / path.start_distance
        for name, path in paths.items()
    }
    ends, held = rest_points(draws, steps)
    less = "distance of 0 from the gradients' hull less ‖d‖ of MGDA-UB, over the longest gradient"
    numbers[less] = held
    for case in CASES:
        for name in paths:
            distance, worse = ends[name][case]
            label = case.format(name)
            missed = share_interval(int((distance > 1e-2).sum()), draws)
            numbers |= named(label, missed)
            above = share_interval(int(worse.sum()), draws)
            numbers |= named(f"{label.split(':')[0]}: share with a loss above its start", above)
    return claim(
        "SU-35",
        numbers,
        f"{draws} random linear encoders a case with two curved quadratic heads, plain steps, "
        f"{steps} of them, of falling length, MGDA-UB and MGDA alike from the same starts; with "
        "identity heads, as in the counterexample, MGDA-UB would descend on a distance and could "
        "not fail. Stationary: 0 is within 1 % of its starting distance from the gradients' hull. "
        "That MGDA-UB cannot rest elsewhere is a proof: its direction is Aᵀ of a convex "
        "combination of the v_t, and so a convex combination of the g_t = Aᵀv_t; where it is 0 the "
        "point is stationary, whatever the rank of A (0 is never further from the hull than ‖d‖). "
        "So the draws ask only whether it comes to rest. What fails is descent. Wilson intervals",
    )
