"""MGDA-UB (Sener & Koltun 2018, section 3.3): the bound at the representation, its counterexample,
and how often it raises a task.

Notation: Z the encodings of a batch, A = ∂Z/∂θ, v_t = ∂L_t/∂Z, g_t = Aᵀv_t. MGDA minimises ‖Σ w_t
g_t‖, MGDA-UB ‖Σ w_t v_t‖; both step along d = Σ w_t g_t. A step θ - ηd changes L_t by -η⟨g_t, d⟩ to
first order: a negative rate ⟨g_t, d⟩ raises task t.
"""

import itertools
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure as Canvas
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import METHOD_COLOURS
from ..report.findings import Claim, Figure, Findings, Settings, verdict_of
from ..report.intervals import Interval, mean_interval, share_interval

PAPER = "MGDA-UB (Sener & Koltun 2018; the essay on its bound)"
RAISES = -1e-6  # a task is raised if cos(g_t, d) is below this: a margin for rounding in float64
TASKS, WIDTHS = (2, 3, 5), (1, 2, 4, 8)
SAMPLES, INPUTS = 16, 8
COLOURS = {name: METHOD_COLOURS[name] for name in ("MGDA-UB", "MGDA")}

Vector = list[Fraction]
Matrix = list[Vector]


# ---- exact arithmetic ----


def fractions(rows: list[list[int]]) -> Matrix:
    return [[Fraction(x) for x in row] for row in rows]


def dot(x: Vector, y: Vector) -> Fraction:
    return sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0))


def times(matrix: Matrix, x: Vector) -> Vector:
    return [dot(row, x) for row in matrix]


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def min_norm_weights(x: Vector, y: Vector) -> Vector:
    """Weights of the shortest point between two vectors: drop a perpendicular, stay on the segment."""
    first = (dot(y, y) - dot(x, y)) / (dot(x, x) + dot(y, y) - 2 * dot(x, y))
    first = min(max(first, Fraction(0)), Fraction(1))
    return [first, 1 - first]


class Exact(NamedTuple):
    weights: Vector
    direction: Vector
    rates: Vector


def exact_step(jacobian: Matrix, v: Matrix, *, bound: bool) -> Exact:
    """MGDA-UB's (or MGDA's) weights, direction d and rates ⟨g_t, d⟩ for A and v_1, v_2."""
    g = [times(transposed(jacobian), row) for row in v]
    weights = min_norm_weights(*(v if bound else g))
    direction = times(transposed(g), weights)
    return Exact(weights, direction, times(g, direction))


# ---- the end-to-end counterexample: z = X w, heads z -> z, L_t = ½ Σ_b (z_b - y_tb)² ----

X = [[2, 1], [1, 0]]
Y = [[-1, -1], [1, -1]]


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


# ---- trajectories ----


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
    """On the counterexample and on random linear encoders: what is the distance to Pareto
    stationarity at the end?
    """
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
        numbers |= _named(f"{name}: share ending away from stationarity", missed[name]) | _named(
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
    """MGDA-UB from random starts: the distance of 0 from the gradients' hull, end over start
    `[draw]`, and whether some loss ended higher.
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


# ---- what survives ----


def weights_of(gramian: Tensor) -> Tensor:
    """Min-norm weights, batched over the first axis."""
    return vmap(lambda g: mf.solvers.auto()(mf.solvers.min_norm(g)).weights)(gramian)


def survives(settings: Settings) -> Findings:
    draws, tasks, encodings = settings.count(2000), 3, 6
    keys = torch.arange(draws)

    def drawn(tag: int, shape: tuple[int, ...]) -> Tensor:
        return vmap(
            lambda key: mf.random.normal(mf.random.fold_in(key, tag), shape, torch.float64)
        )(keys)

    v = drawn(0, (tasks, encodings))
    mix = drawn(1, (tasks - 1,)).abs()
    # 0 in the interior of conv{v_t}
    inside = torch.cat([v[:, :-1], -(mix[:, :, None] * v[:, :-1]).sum(1, keepdim=True)], 1)
    full, thin = drawn(2, (encodings, 9)), drawn(3, (encodings, 2))
    orthogonal = torch.linalg.qr(full.mT)[0].mT * 3  # A Aᵀ = 9 I

    def measure(v: Tensor, a: Tensor) -> dict[str, Tensor]:
        g = v @ a
        exact, bound = g @ g.mT, v @ v.mT
        w_exact, w_bound = weights_of(exact), weights_of(bound)
        size = lambda w, rows: (  # noqa: E731
            torch.linalg.vector_norm(torch.einsum("dt,dtp->dp", w, rows), dim=-1)
            / torch.linalg.vector_norm(rows, dim=-1).amax(-1)
        )
        return {
            "exact": size(w_exact, g),
            "bound": size(w_bound, v),
            "raises": raises(exact, w_bound),
            "weights": (w_exact - w_bound).abs().amax(-1),
        }

    zero = 1e-6
    stationary, generic, deficient, scalar = (
        measure(inside, full),
        measure(v, full),
        measure(v, thin),
        measure(v, orthogonal),
    )
    disagree = sum(
        int(((case["exact"] < zero) != (case["bound"] < zero)).sum())
        for case in (stationary, generic)
    )
    missed = share_interval(
        int(((deficient["exact"] < zero) & (deficient["bound"] > zero)).sum()), draws
    )
    raised = share_interval(int(generic["raises"].sum()), draws)
    apart, scalar_raised = float(scalar["weights"].max()), int(scalar["raises"].sum())
    numbers = {
        "draws in which one optimum is 0 and the other is not, full row rank": float(disagree),
        "stationary draws found by both": float(
            ((stationary["exact"] < zero) & (stationary["bound"] < zero)).sum()
        ),
        **_named("share whose bound direction raises a task, full row rank", raised),
        **_named("rank 2 of 6: share stationary, bound not 0", missed),
        "A Aᵀ = 9 I: largest difference of weights": apart,
        "A Aᵀ = 9 I: draws that raise a task": float(scalar_raised),
    }
    iff = disagree == 0
    yield Claim(
        "SU-32",
        PAPER,
        "With a full-rank ∂Z/∂θ the bound's optimum also finds Pareto-stationary points (and "
        "otherwise a direction that lowers all losses).",
        "holds only when" if iff and raised.low > 0 else "holds" if iff else "does not hold",
        numbers,
        f"{draws} random draws each, T = {tasks}, 6 encodings, A of 9, 2 (rank-deficient) and 9 "
        f"orthogonal columns; 0 means below {zero:g} "
        "of the longest gradient. Zero-iff-stationary "
        "holds with full row rank, common descent only where A Aᵀ is a multiple of the identity. "
        "Wilson intervals",
    )


def raises(gramian: Tensor, weights: Tensor) -> Tensor:
    """Whether the direction with these weights raises some task: min_t cos(g_t, d) < 0. Batched
    over the first axis.
    """
    rates = torch.einsum("dts,ds->dt", gramian, weights)
    length = (weights * rates).sum(-1).clamp_min(0).sqrt()[:, None] * gramian.diagonal(
        dim1=-2, dim2=-1
    ).sqrt()
    return (rates < RAISES * length).any(-1)


# ---- random encoders ----


class Study(NamedTuple):
    tasks: int
    width: int  # of the representation
    hidden: int = 16


Batch = dict[str, Tensor]


def encode(params: mf.types.Params, batch: Batch) -> Tensor:
    """A ReLU network of two hidden layers: `[sample, width]`."""
    hidden = F.linear(batch["x"], params["trunk.0.weight"], params["trunk.0.bias"]).relu()
    hidden = F.linear(hidden, params["trunk.1.weight"], params["trunk.1.bias"]).relu()
    return F.linear(hidden, params["trunk.2.weight"], params["trunk.2.bias"])


def decode(params: mf.types.Params, z: Tensor, batch: Batch) -> Tensor:
    """Mean squared error of an affine head a task, over the samples that it labels."""
    error = (F.linear(z, params["heads.weight"], params["heads.bias"]) - batch["y"]).square()
    return (error * batch["labelled"]).sum(0) / batch["labelled"].sum(0)


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    return decode(params, encode(params, batch), batch)


def draw(key: Tensor, study: Study) -> tuple[mf.types.Params, Batch]:
    """A random encoder (PyTorch's default law) and correlated tasks: y_t = √.5 (common + private),
    each a random tanh unit of x.
    """
    layers = {
        "trunk.0": (study.hidden, INPUTS),
        "trunk.1": (study.hidden, study.hidden),
        "trunk.2": (study.width, study.hidden),
        "heads": (study.tasks, study.width),
    }
    params: mf.types.Params = {}
    for i, (name, (rows, columns)) in enumerate(layers.items()):
        for j, (part, shape) in enumerate({"weight": (rows, columns), "bias": (rows,)}.items()):
            params[f"{name}.{part}"] = (
                2 * mf.random.uniform(mf.random.fold_in(key, 2 * i + j), shape, torch.float64) - 1
            ) * columns**-0.5
    x = mf.random.normal(mf.random.fold_in(key, 20), (SAMPLES, INPUTS), torch.float64)
    common = mf.random.normal(mf.random.fold_in(key, 21), (INPUTS,), torch.float64)
    private = mf.random.normal(mf.random.fold_in(key, 22), (INPUTS, study.tasks), torch.float64)
    y = 0.5**0.5 * (torch.tanh(x @ common)[:, None] + torch.tanh(x @ private))
    return params, {"x": x, "y": y, "labelled": torch.ones_like(y)}


def steps_of(optimizer: mf.Optimizer) -> dict[str, mf.Step]:
    probes = {
        "MGDA-UB": mf.representation(encode, decode, shared="trunk.*"),
        "MGDA": mf.jacobian("trunk.*"),
    }
    return {name: mf.descend(losses, mf.mgda(), optimizer, probe) for name, probe in probes.items()}


class Geometry(NamedTuple):
    raises: Tensor  # [draw]
    exact_raises: Tensor  # [draw], MGDA's own: must be none
    cosine: Tensor  # [draw], between the two directions


def geometry(params: mf.types.Params, batch: Batch) -> Geometry:
    """Both methods' weights at the same points, judged by one Gramian, that of the trunk."""
    infos = {
        name: vmap(lambda p, b, step=step: step.update(step.init(p, b), b)[1])(params, batch)
        for name, step in steps_of(mf.sgd(1.0)).items()
    }
    gramian, bound, exact = infos["MGDA"].gramian, infos["MGDA-UB"].weights, infos["MGDA"].weights
    inner = lambda a, b: torch.einsum("dt,dts,ds->d", a, gramian, b)  # noqa: E731
    cosine = (
        inner(bound, exact) / (inner(bound, bound) * inner(exact, exact)).clamp_min(1e-300).sqrt()
    )
    return Geometry(raises(gramian, bound), raises(gramian, exact), cosine)


def trained(
    step: mf.Step, params: mf.types.Params, batch: Batch, count: int, label: str
) -> mf.types.Params:
    state = vmap(step.init)(params, batch)
    advance = vmap(lambda state, batch: step.update(state, batch)[0])
    for _ in tqdm(range(count), desc=label, leave=False):
        state = advance(state, batch)
    return state.params


def drawn(study: Study, draws: int, settings: Settings) -> tuple[mf.types.Params, Batch]:
    return vmap(lambda key: draw(key, study))(torch.arange(draws, device=settings.device))


def random_encoders(settings: Settings) -> Findings:
    draws, count = (
        settings.count(4000 if settings.full else 300),
        settings.count(1000 if settings.full else 100),
    )
    cells: dict[str, dict[Study, Geometry]] = {
        "at initialisation": {},
        f"after {count} steps on the mean loss": {},
    }
    plain = mf.descend(losses, mf.mean(), mf.adam(1e-2), mf.losses_only())
    for tasks, width in itertools.product(TASKS, WIDTHS):
        study = Study(tasks, width)
        params, batch = drawn(study, draws, settings)
        moved = trained(plain, params, batch, count, f"T = {tasks}, q = {width}")
        for (_, found), at in zip(cells.items(), (params, moved), strict=True):
            found[study] = geometry(at, batch)
    shares = {
        when: {study: share_interval(int(g.raises.sum()), draws) for study, g in found.items()}
        for when, found in cells.items()
    }
    own = sum(int(g.exact_raises.sum()) for found in cells.values() for g in found.values())
    yield heat_map(shares, draws, own)
    yield from like_exact(cells, shares, own, draws, settings)


def heat_map(shares: dict[str, dict[Study, Interval]], draws: int, own: int) -> Figure:
    canvas = Canvas(figsize=(11, 4), layout="constrained")
    image = None
    for i, (when, found) in enumerate(shares.items()):
        axis = canvas.add_subplot(1, 2, i + 1)
        values = np.array(
            [[found[Study(tasks, width)].mean for width in WIDTHS] for tasks in TASKS]
        )
        image = axis.imshow(values, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            interval = found[Study(TASKS[row], WIDTHS[column])]
            axis.text(
                column,
                row,
                f"{value:.3f}\n[{interval.low:.2f}, {interval.high:.2f}]",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if value > 0.65 else "black",
            )
        axis.set(title=when, xlabel="width q of the representation", ylabel="tasks T")
        axis.set_xticks(range(len(WIDTHS)), [str(width) for width in WIDTHS])
        axis.set_yticks(range(len(TASKS)), [str(tasks) for tasks in TASKS])
    assert image is not None
    canvas.colorbar(image, ax=canvas.axes, label="share of encoders")
    caption = (
        f"Share of random ReLU encoders whose MGDA-UB direction raises some task; {draws} "
        "draws a cell, Wilson's 95 % intervals. "
    )
    return Figure("shares", f"{caption}MGDA itself raised a task in {own} draws.", canvas)


def like_exact(
    cells: dict[str, dict[Study, Geometry]],
    shares: dict[str, dict[Study, Interval]],
    own: int,
    draws: int,
    settings: Settings,
) -> Findings:
    """Directions and end losses of the two methods."""
    count = settings.count(1000 if settings.full else 100)
    few = max(2, draws // 4)
    numbers: dict[str, float] = {}
    alike = []
    for study in (Study(2, 1), Study(2, 8), Study(5, 1), Study(5, 8)):
        name = f"T = {study.tasks}, q = {study.width}"
        when, found = next(iter(cells.items()))
        numbers[f"{name}: median cosine of the directions"] = float(found[study].cosine.nanmedian())
        numbers |= _named(f"{name}: share raising a task {when}", shares[when][study])
        params, batch = drawn(study, few, settings)
        ends = {
            method: vmap(losses)(trained(step, params, batch, count, f"{method}, {name}"), batch)
            for method, step in steps_of(mf.adam(1e-2)).items()
        }
        start = vmap(losses)(params, batch)
        gap = mean_interval(((ends["MGDA-UB"] - ends["MGDA"]) / start).mean(1).cpu())
        numbers |= _named(f"{name}: mean normalised end loss, MGDA-UB less MGDA", gap)
        alike.append(
            (
                gap.low > -0.05 and gap.high < 0.05,
                gap.low > 0.05 or gap.high < -0.05,
                shares[when][study].high < 0.05,
            )
        )
    numbers["draws in which MGDA itself raises a task"] = float(own)
    yield Claim(
        "SU-30",
        PAPER,
        "Minimising the upper bound gives results like minimising the exact norm.",
        verdict_of([loss and safe for loss, _, safe in alike], [apart for _, apart, _ in alike]),
        numbers,
        f"random ReLU encoders at initialisation; {few} draws trained by either method, Adam "
        f"1e-2, {count} steps on one batch "
        f"of {SAMPLES}; like: end losses within .05 of the start's "
        "and fewer than 5 % of directions raise a task. T intervals over draws for losses, "
        "Wilson's for shares",
    )


def room_to_move(settings: Settings) -> Findings:
    """The conjecture that many parameters make the bound's direction safe: shares against P at
    fixed T, q and batch.
    """
    draws = settings.count(1000 if settings.full else 300)
    sizes = (4, 8, 16, 32, 64, 128) if settings.full else (4, 8, 16, 32, 64)
    canvas = Canvas(figsize=(7.5, 4.5), layout="constrained")
    axis = canvas.add_subplot()
    numbers: dict[str, float] = {}
    to_zero, stays, falls = [], [], []
    for tasks, width in ((2, 1), (2, 2), (5, 2), (5, 8)):
        counts, found = [], []
        for hidden in tqdm(sizes, desc=f"T = {tasks}, q = {width}", leave=False):
            params, batch = drawn(Study(tasks, width, hidden), draws, settings)
            counts.append(
                sum(leaf[0].numel() for name, leaf in params.items() if name.startswith("trunk"))
            )
            found.append(share_interval(int(geometry(params, batch).raises.sum()), draws))
            numbers |= _named(f"T = {tasks}, q = {width}, P = {counts[-1]}", found[-1])
        to_zero.append(found[-1].high < 0.02)
        falls.append(found[-1].high < found[0].low)
        stays.append(found[-1].low > 0.02 and not falls[-1])
        bars = np.array([[share.mean - share.low, share.high - share.mean] for share in found]).T
        axis.errorbar(
            counts,
            [share.mean for share in found],
            bars,
            marker="o",
            capsize=3,
            label=f"T = {tasks}, q = {width}",
        )
    axis.set(
        xlabel="trunk parameters P",
        ylabel="share of encoders raising a task",
        xscale="log",
        ylim=(-0.02, 1),
    )
    axis.legend(frameon=False)
    caption = (
        "Share of random encoders whose MGDA-UB direction raises a task against the "
        f"number of trunk parameters; {draws} draws a point, "
    )
    yield Figure("parameters", f"Does room to move help? {caption}Wilson's 95 % intervals.", canvas)
    yield Claim(
        "SU-36",
        PAPER,
        "The bound works well in experiments because deep networks have so many parameters that "
        "there is room to move.",
        verdict_of(to_zero, [all(stays)]),
        numbers,
        f"random ReLU encoders at initialisation, batch of {SAMPLES}; part of the claim. Holds "
        "if the share that raises a task is below .02 at the "
        f"largest P, fails if it neither is nor falls in any setting; it falls "
        f"in {sum(falls)} of {len(falls)} settings and is below .02 in {sum(to_zero)}. Wilson "
        "intervals",
    )


# ---- the bound itself, and disjoint labels ----


def bound_holds(settings: Settings) -> Claim:
    draws = settings.count(200)
    study = Study(3, 2)
    params, batch = drawn(study, draws, settings)
    keys = torch.arange(draws, device=settings.device)
    weights = vmap(
        lambda key: torch.softmax(
            mf.random.normal(mf.random.fold_in(key, 50), (study.tasks,), torch.float64), -1
        )
    )(keys)

    def one(params: mf.types.Params, batch: Batch, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        trunk = [name for name in params if name.startswith("trunk")]
        step = mf.balance(losses, mf.mean(w), mf.representation(encode, decode, shared="trunk.*"))
        pulled, _, info = step.update(params, batch, step.init(params, batch))
        rows = mf.task_gradients(losses, params, batch)[1]
        direct = torch.cat([torch.tensordot(w, rows[name], 1).flatten() for name in trunk])
        through = torch.cat([pulled[name].flatten() for name in trunk])
        jacobian = jacrev(lambda p: encode(p, batch).flatten())(params)
        matrix = torch.cat([jacobian[name].flatten(1) for name in trunk], 1)
        right = torch.linalg.matrix_norm(matrix, 2) * (w @ info.gramian @ w).sqrt()
        return (direct - through).norm() / direct.norm(), direct.norm() / right, direct.norm()

    difference, tightness, _ = vmap(one)(params, batch, weights)
    ok = float(difference.max()) < 1e-9 and float(tightness.max()) <= 1 + 1e-9
    return Claim(
        "SU-28",
        PAPER,
        "∂L_t/∂θ is the pullback of ∂L_t/∂Z, and ‖Σ w_t ∇_θ L_t‖ <= ‖∂Z/∂θ‖·‖Σ w_t ∇_Z L_t‖.",
        "holds" if ok else "does not hold",
        {
            "largest relative difference of pullback and direct gradient": float(difference.max()),
            "left over right side, largest": float(tightness.max()),
            "left over right side, median": float(tightness.median()),
        },
        f"{draws} random ReLU encoders, T = 3, q = 2, random weights, operator norm, float64",
    )


def disjoint_labels(settings: Settings) -> Claim:
    draws = settings.count(200)
    study = Study(4, 3)
    params, batch = drawn(study, draws, settings)
    owner = torch.arange(SAMPLES, device=settings.device) % study.tasks
    alone = (owner[:, None] == torch.arange(study.tasks, device=settings.device)).to(torch.float64)
    batch["labelled"] = alone.expand(draws, -1, -1)
    step = steps_of(mf.sgd(1.0))["MGDA-UB"]
    info = vmap(lambda p, b: step.update(step.init(p, b), b)[1])(params, batch)
    square = info.gramian.diagonal(dim1=-2, dim2=-1)
    across = (info.gramian - torch.diag_embed(square)).abs().amax((-1, -2)) / square.amax(-1)
    difference = (info.weights - (1 / square) / (1 / square).sum(-1, keepdim=True)).abs().amax(-1)
    ok = float(across.max()) == 0 and float(difference.max()) < 1e-9
    return Claim(
        "SU-31",
        PAPER,
        "With disjoint labelled sets the encoding gradients are orthogonal and the bound ignores "
        "how tasks relate: w_t is proportional to 1/‖v_t‖².",
        "holds" if ok else "does not hold",
        {
            "largest |v_s·v_t| over largest ‖v_t‖²": float(across.max()),
            "largest difference of weights from 1/‖v_t‖² weighting": float(difference.max()),
        },
        f"{draws} random ReLU encoders, T = 4, every sample labelled for one task, through "
        "mtlfunc.representation, float64",
    )


def run(settings: Settings) -> Findings:
    yield lemma()
    yield descent_fails()
    paths = {name: trajectory(probe, settings.count(400)) for name, probe in probes().items()}
    yield trajectories(paths)
    yield end_points(paths, settings)
    yield bound_holds(settings)
    yield disjoint_labels(settings)
    yield from survives(settings)
    yield from random_encoders(settings)
    yield from room_to_move(settings)


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}, low": interval.low, f"{name}, high": interval.high}
