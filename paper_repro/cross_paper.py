"""Links between the texts: where GradNorm with α = 0 comes to rest, and what MGDA and CAGrad do to
a main task among auxiliary ones.

Notation: g_t task gradients, w weights, d = Σ w_t g_t, W the layer on which GradNorm measures. The
step is θ ← θ - ηd, so ⟨g_t, d⟩ < 0 raises task t to first order.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from .report.figures import METHOD_COLOURS, axes
from .report.findings import Claim, Figure, Findings, Settings, verdict_of
from .report.intervals import Interval, half_width, mean_interval, share_interval

CAGRAD = "CAGrad (Liu et al. 2021)"
LINKS = "Links between the texts"


def run(settings: Settings) -> Findings:
    yield unit_gradients(settings)
    yield from main_and_auxiliaries(settings)


# ---- GradNorm at rest ----

Row = tuple[int, ...]
PAIR: tuple[Row, ...] = ((3, 4), (-5, 12))  # lengths 5 and 13
TRIPLE: tuple[Row, ...] = ((5, 0), (-4, 3), (-8, 6))  # lengths 5, 5 and 10
OUTSIDE: tuple[Row, ...] = ((1, 1), (1, -4))  # W is the first coordinate
HALVINGS, EACH, FIRST = 20, 40, 0.3


def exact_rest(rows: tuple[Row, ...], measured: int) -> tuple[list[Fraction], list[Fraction]]:
    """Weights `∝ 1/‖∇_W L_t‖` that sum to 1 and the rates ⟨g_t, Σ w_s g_s⟩ over all coordinates; W:
    the first `measured` ones.
    """
    inverse = []
    for row in rows:
        length = round(sum(x * x for x in row[:measured]) ** 0.5)
        assert length**2 == sum(x * x for x in row[:measured])  # an integer length: all is rational
        inverse.append(Fraction(1, length))
    weights = [x / sum(inverse) for x in inverse]
    d = [
        sum((w * x for w, x in zip(weights, column, strict=True)), Fraction(0))
        for column in zip(*rows, strict=True)
    ]
    return weights, [sum((x * y for x, y in zip(row, d, strict=True)), Fraction(0)) for row in rows]


def rest(gramians: Tensor) -> tuple[Tensor, dict[float, float]]:
    """Weights `[draw, task]` of gradnorm(0) after steps of halving size at gradients that stay as
    they are, and the distance after each size.

    The distance is the largest |log(w_t‖g_t‖) - mean|: 0 exactly where w_t ∝ 1/‖g_t‖.
    """
    tasks = gramians.shape[-1]
    one = torch.ones(tasks, dtype=gramians.dtype)

    def move(gramian: Tensor, weights: Tensor, lr: Tensor) -> Tensor:
        # The floor is for training; here the lengths are up to 10⁴ apart, and so are the weights at
        # rest.
        rule = mf.gradnorm(0.0, lr, optimizer=mf.optim.multiplicative, floor=1e-9)
        state = rule.init(one, torch.zeros((), dtype=torch.int64))._replace(weights=weights)
        return rule.update(mf.Geometry(one, gramian, one / tasks, one > 0, {}), state)[1].weights

    lengths, weights = gramians.diagonal(dim1=-2, dim2=-1).sqrt(), torch.ones_like(gramians[..., 0])
    distance = {}
    for k in tqdm(range(HALVINGS), desc=f"GradNorm at rest, T = {tasks}", leave=False):
        lr = torch.tensor(FIRST * 2.0**-k, dtype=gramians.dtype)
        for _ in range(EACH):
            weights = vmap(move, (0, 0, None))(gramians, weights, lr)
        logs = (weights * lengths).log()
        distance[float(lr)] = float((logs - logs.mean(-1, keepdim=True)).abs().max())
    return weights / tasks, distance


def unit_gradients(settings: Settings) -> Claim:
    """X-03: in fractions, and by the library's rule on random gradients over W (three parameters)
    and three others.
    """
    draws, numbers, errors, ratios, raised = settings.count(400), {}, [], [], {}
    for tasks in (2, 3, 5):
        key = mf.random.fold_in(mf.random.key(61), tasks)
        rows = mf.random.normal(key, (draws, tasks, 2, 3), torch.float64)
        rows = rows * 10 ** (
            4 * mf.random.uniform(mf.random.fold_in(key, 1), (draws, tasks, 1, 1), torch.float64)
            - 2
        )
        own, whole = rows[:, :, 0], rows.flatten(2)
        weights, distance = rest(own @ own.mT)
        unit = own / own.norm(dim=-1, keepdim=True)
        scaled = weights * own.norm(dim=-1)
        d = torch.einsum("dt,dtp->dp", weights, own) / scaled.mean(-1, keepdim=True)
        errors.append(float((d - unit.sum(1)).norm(dim=-1).max() / tasks))
        ratios.append(max(left / lr for lr, left in distance.items()))
        # The closed form's own rates: what is left of the distance to it would blur the sign of
        # those near 0.
        form = 1 / own.norm(dim=-1)
        for name, part in (("W", own), ("W and the rest", whole)):
            cosines = (
                torch.einsum(
                    "dtp,dp->dt",
                    part / part.norm(dim=-1, keepdim=True),
                    torch.einsum("dt,dtp->dp", form, part),
                )
                / tasks
            )
            raised[tasks, name] = share_interval(int((cosines.amin(-1) < -1e-12).sum()), draws)
            numbers |= named(
                f"T = {tasks}: share of draws in which a step on {name} raises a task",
                raised[tasks, name],
            )
        numbers[f"T = {tasks}: largest |log(w_t‖g_t‖) - mean| at the last step size"] = list(
            distance.values()
        )[-1]
    two, rates_two = exact_rest(PAIR, 2)
    three, rates_three = exact_rest(TRIPLE, 2)
    _, rates_outside = exact_rest(OUTSIDE, 1)
    library = 0.0
    for rows, exact in ((PAIR, two), (TRIPLE, three)):
        matrix = torch.tensor(rows, dtype=torch.float64)[None]
        found = rest(matrix @ matrix.mT)[0][0]
        library = max(
            library, *(abs(float(x) - float(y)) for x, y in zip(found, exact, strict=True))
        )
    last = FIRST * 2.0 ** (1 - HALVINGS)
    good = (
        max(*errors, library) < 10 * last
        and max(ratios) < 10
        and raised[2, "W"].mean == 0
        and min(rates_two) >= 0 > min(rates_three)
    )
    return Claim(
        "X-03",
        LINKS,
        "GradNorm with α = 0 at equilibrium weighs by 1/‖∇_W L_t‖: the sum of unit gradients on "
        "W, a common descent direction on W for T = 2.",
        "holds" if good else "does not hold",
        {
            **numbers,
            "last step size": last,
            "largest distance from the rest point over the step size, all sizes": max(ratios),
            "largest difference of Σ w_t g_t from the sum of unit gradients, over T": max(errors),
            "(3, 4), (-5, 12): w_1 in fractions": float(two[0]),
            "smallest rate": float(min(rates_two)),
            "(5, 0), (-4, 3), (-8, 6): w_1 in fractions": float(three[0]),
            "rate of task 1, three tasks": float(rates_three[0]),
            "library against these fractions, largest difference": library,
            "W rows 1, 1, the rest 1, -4: rate of task 1 over both": float(rates_outside[0]),
        },
        "at equilibrium and on W alone: L_grad has its zero where all w_t‖∇_W L_t‖ are equal, "
        f"and ⟨g_1, u_1 + u_2⟩ = ‖g_1‖(1 + cos) >= 0. {draws} draws of "
        "lengths from .01 to 100 that stay as they are, through mtlfunc.gradnorm with "
        f"mtlfunc.optim.multiplicative, step halved {HALVINGS - 1} times; "
        "holds if the distance stays below ten step sizes and no task of two is raised on W. "
        "With T = 3 one may be, and with T = 2 by the parameters "
        "outside W, on which the weighted gradients are not of one length",
    )


# ---- a main task with few labels, and auxiliaries ----

LABELS, VALIDATION, TEST = 200, 400, 400
HIDDEN, BATCH = 32, 32
RATES = (3e-3, 1e-2, 3e-2)
TASKS = ("class", "rotation", "image")
SCALES = {"per pixel": 1.0, "summed over pixels": 64.0}
"""What the error of reconstruction is multiplied by: two conventions, between which min-norm
weights are not indifferent.
"""
FAR, NEAR = 0.05, 0.01  # in accuracy
WINDOWS, MOMENTS = 20, 6


class Data(NamedTuple):
    """Every leaf has the seed first: a seed is a split of its own."""

    labelled: tuple[Tensor, Tensor]  # images [seed, image, pixel] in [0, 1], labels [seed, image]
    unlabelled: Tensor  # the labelled ones' images and others, for the auxiliaries
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Batch(NamedTuple):
    images: Tensor  # [image, pixel], labelled
    labels: Tensor
    plain: Tensor  # [image, pixel], to be reconstructed
    turned: Tensor  # the same, by a number of quarter turns
    turns: Tensor


def split(settings: Settings) -> Data:
    pixels, digits = load_digits(return_X_y=True)
    images, labels = (torch.as_tensor(part, device=settings.device) for part in (pixels, digits))
    images = images.float() / 16
    order = torch.stack(
        [
            mf.random.permutation(
                mf.random.fold_in(mf.random.key(s, settings.device), 0), len(labels)
            )
            for s in range(settings.seeds)
        ]
    )
    test, validation, others = order.split((TEST, VALIDATION, len(labels) - TEST - VALIDATION), 1)
    few = others[:, :LABELS]
    return Data(
        (images[few], labels[few]),
        images[others],
        (images[validation], labels[validation]),
        (images[test], labels[test]),
    )


def batch_of(data: Data, step: int, size: int = BATCH) -> Batch:
    """Images of one step for all seeds, drawn with replacement."""
    seeds = torch.arange(len(data.unlabelled), device=data.unlabelled.device)[:, None]
    key = mf.random.fold_in(mf.random.fold_in(mf.random.key(5, seeds.device), 1), step)
    u = mf.random.uniform(key, (3, len(seeds), size))
    labelled = (u[0] * data.labelled[1].shape[1]).long()
    plain, turns = (
        data.unlabelled[seeds, (u[1] * data.unlabelled.shape[1]).long()],
        (4 * u[2]).long(),
    )
    return Batch(
        data.labelled[0][seeds, labelled],
        data.labelled[1][seeds, labelled],
        plain,
        turn(plain, turns),
        turns,
    )


def turn(images: Tensor, turns: Tensor) -> Tensor:
    """Each of `[seed, image, pixel]` by its own number of quarter turns."""
    square = images.unflatten(-1, (8, 8))
    every = torch.stack([torch.rot90(square, k, (-2, -1)) for k in range(4)])
    return torch.gather(every, 0, turns[None, :, :, None, None].expand(1, *square.shape))[
        0
    ].flatten(-2)


def network(key: Tensor) -> mf.types.Params:
    widths = {
        "trunk.0": (64, HIDDEN),
        "trunk.1": (HIDDEN, HIDDEN),
        "class": (HIDDEN, 10),
        "rotation": (HIDDEN, 4),
        "image": (HIDDEN, 64),
    }
    params = {}
    for i, (name, shape) in enumerate(widths.items()):
        gain = 2.0 if name.startswith("trunk") else 1.0
        params[f"{name}.weight"] = (gain / shape[0]) ** 0.5 * mf.random.normal(
            mf.random.fold_in(key, i), shape
        )
        params[f"{name}.bias"] = 0 * params[f"{name}.weight"][0]
    return params


def linear(params: mf.types.Params, name: str, x: Tensor) -> Tensor:
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def encode(params: mf.types.Params, x: Tensor) -> Tensor:
    return F.relu(linear(params, "trunk.1", F.relu(linear(params, "trunk.0", x))))


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    """Cross-entropy of the class and of the rotation in nats, mean squared error of a pixel."""
    images, turned, plain = encode(
        params, torch.cat([batch.images, batch.turned, batch.plain])
    ).chunk(3)
    entropies = (
        F.cross_entropy(linear(params, "class", images), batch.labels),
        F.cross_entropy(linear(params, "rotation", turned), batch.turns),
    )
    return torch.stack([*entropies, (linear(params, "image", plain) - batch.plain).square().mean()])


def accuracy(params: mf.types.Params, images: Tensor, labels: Tensor) -> Tensor:
    return (linear(params, "class", encode(params, images)).argmax(-1) == labels).double().mean()


class Runs(NamedTuple):
    """Of one method at its best rate."""

    lr: float
    # [moment, seed], accuracy of the main task on test images, had training stopped there: at the
    # rate that is best there
    curve: Tensor
    held_out: Tensor  # [seed, task], losses on test images
    weights: Tensor  # [step, seed, task], scaled to sum 1
    cosines: Tensor  # [step, seed, task], of g_t and d over the trunk

    @property
    def accuracy(self) -> Tensor:
        return self.curve[-1]


def train(
    rule: mf.Rule, scale: float, data: Data, steps: int, settings: Settings, label: str
) -> Runs:
    """All learning rates and seeds at once; the rate with the best mean accuracy on validation
    images is kept.
    """
    scales = torch.tensor([1.0, 1.0, scale], device=settings.device)
    rates, seeds = (
        torch.tensor(RATES, device=settings.device),
        torch.arange(settings.seeds, device=settings.device),
    )

    def method(lr: Tensor) -> mf.Step:
        return mf.descend(
            lambda params, batch: scales * losses(params, batch),
            rule,
            mf.adam(lr),
            mf.jacobian("trunk.*"),
        )

    def advance(
        lr: Tensor, state: mf.TrainState, batch: Batch
    ) -> tuple[mf.TrainState, Tensor, Tensor]:
        state, info = method(lr).update(state, batch)
        length = (info.weights @ info.rates).clamp_min(0).sqrt() * info.gramian.diagonal().sqrt()
        return state, info.weights / info.weights.sum(), info.rates / length.clamp_min(1e-30)

    def first(lr: Tensor, seed: Tensor, batch: Batch) -> mf.TrainState:
        return method(lr).init(network(mf.random.fold_in(mf.random.key(seed), 2)), batch)

    state = vmap(vmap(first, (None, 0, 0)), (0, None, None))(rates, seeds, batch_of(data, 0))
    move, score = (
        vmap(vmap(advance, (None, 0, 0)), (0, 0, None)),
        vmap(vmap(accuracy), (0, None, None)),
    )
    weights, cosines, curve, best = [], [], [], 0
    for step in tqdm(range(steps), desc=label, leave=False):
        state, w, c = move(rates, state, batch_of(data, step))
        weights.append(w)
        cosines.append(c)
        if step + 1 in moments(steps):
            best = int(score(state.params, *data.validation).mean(1).argmax())
            curve.append(score(state.params, *data.test)[best])
    params = {name: leaf[best] for name, leaf in state.params.items()}
    held_out = vmap(losses)(
        params, batch_of(Data(data.test, data.test[0], data.test, data.test), steps, 4 * BATCH)
    )
    kept = (torch.stack(part)[:, best].double().cpu() for part in (weights, cosines))
    return Runs(RATES[best], torch.stack(curve).cpu(), held_out.double().cpu(), *kept)


def moments(steps: int) -> list[int]:
    return sorted({-(-steps * i // MOMENTS) for i in range(1, MOMENTS + 1)})


def main_and_auxiliaries(settings: Settings) -> Findings:
    data, steps = split(settings), settings.count(300)
    alone = train(
        mf.mean(torch.tensor([1.0, 0.0, 0.0], device=settings.device)),
        1.0,
        data,
        steps,
        settings,
        "main task alone",
    )
    rules = {"mean": mf.mean(), "MGDA": mf.mgda(), "CAGrad": mf.cagrad(c=0.4)}
    runs = {
        name: {
            m: train(rule, scale, data, steps, settings, f"{m}, {name}")
            for m, rule in rules.items()
        }
        for name, scale in SCALES.items()
    }
    where = (
        f"digits, {LABELS} labels, rotation and reconstruction as auxiliaries, trunk of "
        f"{HIDDEN}-{HIDDEN}, {steps} steps of Adam at the best of {len(RATES)} "
        f"rates, {settings.seeds} seeds, 95 % t intervals, paired"
    )
    yield judge(runs, alone, where)
    yield drawn(runs, alone, where)


def judge(runs: dict[str, dict[str, Runs]], alone: Runs, where: str) -> Claim:
    numbers = named("main task alone: accuracy", mean_interval(alone.accuracy))
    parts, against = {}, []
    for name, methods in runs.items():
        base = methods["mean"]
        numbers |= named(f"{name}: equal weights, accuracy", mean_interval(base.accuracy))
        for m, run in methods.items():
            numbers |= named(
                f"{name}: {m} minus main task alone, accuracy",
                mean_interval(run.accuracy - alone.accuracy),
            )
            numbers[f"{name}: {m}'s best rate"] = run.lr
            for t, task in enumerate(TASKS):
                numbers[f"{name}: {m}, mean cosine of d with {task}"] = float(
                    run.cosines[..., t].mean()
                )
                numbers[f"{name}: {m}, share of steps with ⟨g_t, d⟩ < 0, {task}"] = float(
                    (run.cosines[..., t] < -1e-6).double().mean()
                )
                numbers[f"{name}: {m}, test loss over equal weights', {task}"] = float(
                    (run.held_out / base.held_out)[:, t].log().mean().exp()
                )
        last = len(base.curve) - 1
        for end in (len(base.curve) // 3 - 1, last):
            steps = moments(len(base.weights))[end]
            label = f"{name}, {steps} steps"
            share = mean_interval(methods["MGDA"].weights[:steps, :, 0].mean(0))
            mgda, cagrad = (
                mean_interval(methods[m].curve[end] - base.curve[end]) for m in ("MGDA", "CAGrad")
            )
            # The task that d serves least: the smallest over tasks of the mean cosine.
            least = {m: run.cosines[:steps].mean(0).amin(-1) for m, run in methods.items()}
            balance = mean_interval(least["CAGrad"] - least["mean"])
            numbers |= named(f"{label}: MGDA's weight on the main task", share)
            numbers |= named(f"{label}: MGDA minus equal weights, accuracy", mgda)
            numbers |= named(f"{label}: CAGrad minus equal weights, accuracy", cagrad)
            numbers |= named(
                f"{label}: least cosine of d with a task, CAGrad minus equal weights", balance
            )
            parts[label] = [
                share.high < 1 / 3,
                mgda.high < 0,
                mgda.high < -FAR,
                cagrad.low > -NEAR and balance.low > 0,
            ]
            against.append(
                share.low > 1 / 3 or mgda.low > -FAR or cagrad.high < -NEAR or balance.high < 0
            )
    texts = ("MGDA's weight is low", "MGDA is below", "far below", "CAGrad is balanced")
    told = "; ".join(
        f"{label}: {', '.join(text for text, ok in zip(texts, shown, strict=True) if ok) or 'none'}"
        for label, shown in parts.items()
    )
    edges = [
        f"{m} {name}"
        for name, methods in runs.items()
        for m, run in methods.items()
        if run.lr in (RATES[0], RATES[-1])
    ]
    return Claim(
        "CA-37",
        CAGRAD,
        "MGDA neglects the main task and falls far below the baseline; CAGrad keeps main and "
        "auxiliary tasks balanced.",
        verdict_of([all(shown) for shown in parts.values()], against),
        numbers,
        "all of it in: "
        f"{'; '.join(label for label, shown in parts.items() if all(shown)) or 'none'}. Both "
        "scales of the reconstruction error, after a "
        "third of the steps and after all: accuracies at the rate that is best then, the rest at "
        "the rate that is best at the end. Judged: MGDA's mean "
        f"weight on the main task is below 1/3; its accuracy is more than {FAR:g} below that of "
        "equal weights; "
        f"CAGrad's is at most {NEAR:g} below, and the task that d serves least "
        f"has a larger cosine. Shown: {told}. {where}; best at the edge of the rates: "
        f"{', '.join(edges) or 'none'}",
    )


def drawn(runs: dict[str, dict[str, Runs]], alone: Runs, where: str) -> Figure:
    canvas, panels = axes(2, 2, (13, 9))
    steps = len(alone.weights)
    for (name, methods), dash, panel in zip(runs.items(), ("-", "--"), panels[2:], strict=True):
        for m in ("MGDA", "CAGrad"):
            band(
                panels[0],
                windows(methods[m].weights[..., 0]),
                steps,
                METHOD_COLOURS[m],
                dash,
                f"{m}, {name}",
            )
            gain = 100 * (methods[m].curve - methods["mean"].curve)
            band(
                panels[1],
                (np.array(moments(steps)), gain.numpy()),
                steps,
                METHOD_COLOURS[m],
                dash,
                f"{m}, {name}",
            )
        for m, run in methods.items():
            band(panel, windows(run.cosines[..., 0]), steps, METHOD_COLOURS[m], "-", f"{m}, main")
            band(
                panel,
                windows(run.cosines[..., 1:].amin(-1)),
                steps,
                METHOD_COLOURS[m],
                ":",
                f"{m}, lesser auxiliary",
            )
        panel.set(
            ylabel="cosine of $g_t$ and d over the trunk",
            title=f"reconstruction error {name}",
            ylim=(-0.2, 1.5),
            yticks=np.arange(0, 1.1, 0.2),
        )
    panels[0].axhline(1 / 3, color=METHOD_COLOURS["mean"], linewidth=1, label="equal weights")
    panels[0].set(
        ylabel="weight on the main task (sum 1)",
        title="weights",
        ylim=(0, 1.4),
        yticks=np.arange(0, 1.1, 0.2),
    )
    panels[1].axhline(0, color=METHOD_COLOURS["mean"], linewidth=1)
    panels[1].axhline(-100 * FAR, color="#999999", linewidth=1, linestyle=":")
    panels[1].set(
        ylabel="accuracy minus equal weights', points",
        title="main task, test images; lines as on the left, dotted: far below",
    )
    panels[1].set_yscale("symlog", linthresh=5)
    panels[1].set_yticks(
        [-50, -20, -10, -5, 0, 5, 10, 20, 50],
        ["-50", "-20", "-10", "-5", "0", "5", "10", "20", "50"],
    )
    for panel in panels:
        panel.set_xlabel("step")
        if panel is not panels[1]:
            panel.legend(ncols=2, loc="upper right", fontsize=10, handlelength=1.8, columnspacing=1)
    return Figure(
        "auxiliaries",
        "A main task with few labels among auxiliary ones; bands: 95 % intervals over seeds. "
        f"{where}.",
        canvas,
    )


# ---- small things ----


def windows(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Middles of windows of training and means in them, `[window, seed]`, of `[step, seed]`."""
    parts = values.tensor_split(min(WINDOWS, len(values)))
    return len(values) * (np.arange(len(parts)) + 0.5) / len(parts), torch.stack(
        [part.mean(0) for part in parts]
    ).numpy()


def band(
    panel: Axes,
    curve: tuple[np.ndarray, np.ndarray],
    steps: int,
    colour: str,
    dash: str,
    label: str,
) -> None:
    """Mean over seeds and its 95 % band of a curve of times and `[time, seed]`."""
    times, values = curve
    middle, half = values.mean(1), half_width(values)
    panel.plot(times, middle, dash, color=colour, label=label)
    panel.fill_between(times, middle - half, middle + half, color=colour, alpha=0.2, linewidth=0)
    panel.set_xlim(0, steps)


def named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}, low": interval.low, f"{name}, high": interval.high}
