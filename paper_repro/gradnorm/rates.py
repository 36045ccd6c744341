"""GradNorm's definitions, its rivals in a search over weights, and where tasks differ in more than
scale.

The regressions are those of `gradnorm`, with networks of half the width by default. Every method is
one program: settings of the problem and of the method are lanes beside the seeds. A method's best
setting is chosen on one half of the seeds and judged on the other, so that many settings do not win
by chance.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, verdict_of
from ..report.intervals import Interval, half_width, mean_interval, ratio_interval
from .regression import (
    ALPHA,
    COLOURS,
    LAYERS,
    PAPER,
    Problem,
    initial_params,
    linear_maps,
    losses,
    sample,
)

LAST = f"trunk.{LAYERS - 1}."
TEN = (48.0, 3.0, 54.0, 16.0, 9.0, 30.0, 52.0, 26.0, 47.0, 81.0)  # σ
TWO, MILD = (1.0, 100.0), (1.0, 10.0)
INPUTS, OUTPUTS, TEST = 25, 10, 200
TWO_ALPHAS, TEN_ALPHAS = (0.0, ALPHA, 1.0), (0.0, ALPHA, 0.5)
STRONG = f"GradNorm, {TEN_ALPHAS[-1]:g}"
SECOND = (1e-2, 1e-3, 1e-4, 1e-5)  # the static grid's w_2/w_1 beside 1
RECIPROCAL = (TWO[0] / TWO[1]) ** 2  # w_2/w_1 of weights 1/L_i(0): tasks differ in scale alone
RATIOS = (1.0, 10.0, 100.0)  # σ_2/σ_1
# the hard task's factor inside tanh; its label noise in units of its targets' deviation
SHARPER, NOISE = 6.0, 2.0
DRAWS = 16  # of the random search
CHUNKS = 4  # batches in the finite training set
WINDOWS = 16
PAIRED = (
    "95 % t intervals over seeds, ratios paired by seed; settings chosen on the other half "
    "of the seeds"
)

EQUAL, FIXED, SEARCH = "equal", "1/L_i(0)", "random weights"
COLOUR = {
    EQUAL: COLOURS["equal"],
    "GradNorm": COLOURS["GradNorm"],
    "normalised": "C5",
    FIXED: COLOURS["static"],
    SEARCH: "C3",
}

Method = Literal["weighted", "gradnorm", "normalised", "trunk"]


class Size(NamedTuple):
    width: int
    batch: int
    steps: int
    seeds: int
    # Adam's learning rates, one grid for every method at T = 2; without the smallest where tasks
    # are less unequal
    two: tuple[float, ...]
    ten: tuple[float, ...]  # and at T = 10

    def __str__(self) -> str:
        return (
            f"25 inputs, 10 outputs, width {self.width}, batches of {self.batch}, "
            f"{self.steps} Adam steps, {self.seeds} seeds"
        )


class Lane(NamedTuple):
    """One setting, run on every seed; the names say what it is for."""

    name: str
    lr: float
    alpha: float = ALPHA
    weights: tuple[float, ...] = ()  # of "weighted", any positive scale; () is equal
    scales: tuple[float, ...] = TWO
    sharpness: tuple[float, ...] = ()  # factors inside tanh; () is all 1
    noise: tuple[float, ...] = ()  # deviations of label noise in training; () is none
    finite: bool = False  # train on CHUNKS batches in turn, else on fresh ones


class Trace(NamedTuple):
    """One program's runs; lanes in the order given."""

    lanes: Sequence[Lane]
    times: np.ndarray  # [time] steps at which the next four were taken
    test: np.ndarray  # [time, lane, seed, task], L_i(t)/L_i(0) on noise-free test data
    train: np.ndarray  # [time, lane, seed, task], the same on the finite training set
    lengths: np.ndarray  # [time, lane, seed, task], ‖∇_W L_i‖ on test data, W the last shared layer
    weights: np.ndarray  # [time, lane, seed, task], summing to T
    excess: np.ndarray  # [lane, seed, step], L_grad/Ḡ on the training batch; empty for "weighted"

    def named(self, name: str) -> list[int]:
        """Lanes of that name or, of a longer one, of its part before a comma."""
        return [
            i
            for i, lane in enumerate(self.lanes)
            if lane.name == name or lane.name.startswith(f"{name}, ")
        ]

    def final(self, name: str) -> np.ndarray:
        """Mean over tasks of L_i/L_i(0) at the end, `[lane, seed]`; infinite for diverged runs."""
        return np.nan_to_num(self.test[-1, self.named(name)].mean(-1), nan=np.inf, posinf=np.inf)

    def picked(self, name: str) -> np.ndarray:
        """For every seed the lane of that name with the smallest mean over the other half of the
        seeds, `[seed]`.
        """
        final = self.final(name)
        chosen = [self.named(name)[int(final[:, half::2].mean(1).argmin())] for half in (1, 0)]
        return np.resize(chosen, final.shape[1])

    def of(self, values: np.ndarray, name: str) -> np.ndarray:
        """`values[time, lane, seed, ...]` of the picked lanes, `[time, seed, ...]`."""
        return values[:, self.picked(name), np.arange(values.shape[2])]

    def judged(self, name: str) -> np.ndarray:
        """Mean over tasks of L_i/L_i(0) at the end in the picked lanes, `[seed]`."""
        return np.nan_to_num(self.of(self.test, name)[-1].mean(-1), nan=np.inf, posinf=np.inf)

    def curve(self, name: str) -> np.ndarray:
        """The same over time, `[time, seed]`."""
        return self.of(self.test, name).mean(-1)

    def best(self, name: str) -> Lane:
        """The lane of that name with the smallest mean over all seeds."""
        return self.lanes[self.named(name)[int(self.final(name).mean(1).argmin())]]


def size_of(settings: Settings) -> Size:
    if settings.full:
        return Size(
            100,
            100,
            settings.count(2000),
            settings.seeds,
            (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        )
    return Size(
        50,
        50,
        settings.count(400),
        max(min(settings.seeds, 4), settings.seeds // 2),
        (3e-4, 1e-3, 3e-3, 1e-2),
        (3e-3, 1e-2, 3e-2),
    )


def start_of(key: Tensor, tasks: int, width: int) -> mf.types.Params:
    """PyTorch's default for linear layers: U(-1, 1)/√fan_in."""
    widths = [INPUTS] + [width] * LAYERS
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    for layer in range(LAYERS):
        shapes[f"trunk.{layer}.weight"] = (width, widths[layer]), widths[layer]
        shapes[f"trunk.{layer}.bias"] = (width,), widths[layer]
    shapes["heads.weight"], shapes["heads.bias"] = (
        ((tasks, OUTPUTS, width), width),
        ((tasks, OUTPUTS), width),
    )
    return {
        name: (2 * mf.random.uniform(mf.random.fold_in(key, i), shape) - 1) * fan_in**-0.5
        for i, (name, (shape, fan_in)) in enumerate(shapes.items())
    }


def step_of(method: Method, lr: Tensor, alpha: Tensor, weights: Tensor) -> mf.Step:
    if method == "weighted":
        return mf.descend(losses, mf.mean(weights), mf.adam(lr), mf.losses_only(), reduction="sum")
    rule = mf.gradnorm(alpha, normalize_targets=method == "normalised")
    return mf.descend(
        losses,
        rule,
        mf.adam(lr),
        mf.jacobian("trunk.*" if method == "trunk" else f"{LAST}*", heads="weighted"),
        reduction="sum",
    )


def lengths_of(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """‖∇_W L_i‖ `[task]`."""
    measured = {name: leaf for name, leaf in params.items() if name.startswith(LAST)}
    rows = jacrev(lambda part: losses({**params, **part}, batch))(measured)
    return torch.cat([leaf.flatten(1) for leaf in rows.values()], 1).square().sum(1).sqrt()


def train(
    method: Method, lanes: Sequence[Lane], size: Size, settings: Settings, label: str
) -> Trace:
    """All lanes on all seeds as one program; seed s has the same start, x and maps in every lane
    and method.
    """
    device, tasks, seeds = settings.device, len(lanes[0].scales), size.seeds

    def table(rows: Sequence[Sequence[float] | float | bool]) -> Tensor:
        return torch.tensor(rows, device=device)

    lr, alpha, finite = (
        table([lane.lr for lane in lanes]),
        table([lane.alpha for lane in lanes]),
        table([lane.finite for lane in lanes]),
    )
    ones = (1.0,) * tasks
    weights, sharpness = (
        table([lane.weights or ones for lane in lanes]),
        table([lane.sharpness or ones for lane in lanes]),
    )
    scales, noise = (
        table([lane.scales for lane in lanes]),
        table([lane.noise or (0.0,) * tasks for lane in lanes]),
    )

    roots = torch.arange(seeds, device=device)
    params = vmap(lambda root: start_of(mf.random.fold_in(root, 0), tasks, size.width))(roots)
    problem = Problem(scales=ones, inputs=INPUTS, outputs=OUTPUTS)
    maps = vmap(lambda root: linear_maps(mf.random.fold_in(root, 1), problem))(roots)

    def normals(stream: int, number: int, *shape: int) -> Tensor:
        at = torch.full((), number, device=device)
        return vmap(
            lambda root: mf.random.normal(
                mf.random.fold_in(mf.random.fold_in(root, stream), at), shape
            )
        )(roots)

    def mapped(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.einsum("sbi,stoi->stbo", x, maps)

    def targets(z: Tensor, scale: Tensor, sharp: Tensor) -> Tensor:
        return scale[:, None, None] * torch.tanh(sharp[:, None, None] * z)

    def batch_of(
        drawn: Any, scale: Tensor, sharp: Tensor, deviation: Tensor, limited: Tensor
    ) -> tuple[Tensor, Tensor]:
        (x, z), (pool_x, pool_z), error = drawn
        return torch.where(limited, pool_x, x), targets(
            torch.where(limited, pool_z, z), scale, sharp
        ) + deviation[:, None, None] * error

    def first(
        rate: Tensor,
        a: Tensor,
        w: Tensor,
        scale: Tensor,
        sharp: Tensor,
        dev: Tensor,
        lim: Tensor,
        p: Any,
        drawn: Any,
    ) -> Any:
        return step_of(method, rate, a, w).init(p, batch_of(drawn, scale, sharp, dev, lim))

    def advance(
        rate: Tensor,
        a: Tensor,
        w: Tensor,
        scale: Tensor,
        sharp: Tensor,
        dev: Tensor,
        lim: Tensor,
        s: Any,
        drawn: Any,
    ) -> Any:
        state, info = step_of(method, rate, a, w).update(s, batch_of(drawn, scale, sharp, dev, lim))
        if method == "weighted":
            return state, info.weights, info.losses[:0]
        length, ratio = (
            tasks * info.weights * info.gramian.diagonal().sqrt(),
            info.losses / s.balance.rule.initial,
        )
        target = (ratio / ratio.mean()) ** a
        target = target / target.mean() if method == "normalised" else target
        return state, info.weights, (length / length.mean() - target).abs().sum()[None]

    def judge(
        scale: Tensor, sharp: Tensor, p: Any, test: Any, seen: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        held_out, train = ((x, targets(z, scale, sharp)) for x, z in (test, seen))
        return (
            losses(p, held_out),
            losses(p, train),
            lengths_of(p, (held_out[0][:50], held_out[1][:, :50])),
        )

    each = (lr, alpha, weights, scales, sharpness, noise, finite)
    none, every = (None,) * len(each), (0,) * len(each)
    pool = [mapped(normals(4, i, size.batch, INPUTS)) for i in range(CHUNKS)]
    test, seen = (
        mapped(normals(2, 0, TEST, INPUTS)),
        (torch.cat([x for x, _ in pool], 1), torch.cat([z for _, z in pool], 2)),
    )
    shape = (tasks, size.batch, OUTPUTS)

    def batch_at(step: int) -> Any:
        error = (
            normals(5, step, *shape)
            if any(lane.noise for lane in lanes)
            else torch.zeros(seeds, *shape, device=device)
        )
        return mapped(normals(3, step, size.batch, INPUTS)), pool[step % CHUNKS], error

    state = vmap(vmap(first, (*none, 0, 0)), (*every, None, None))(*each, params, batch_at(0))
    move = vmap(vmap(advance, (*none, 0, 0)), (*every, 0, None))
    look = vmap(vmap(judge, (None, None, 0, 0, 0)), (0, 0, 0, None, None))
    begin = look(scales, sharpness, state.params, test, seen)
    moments = {round(size.steps * i / WINDOWS) for i in range(1, WINDOWS + 1)}
    times, excess = [0], []
    record = [
        (torch.ones_like(begin[0]), torch.ones_like(begin[1]), begin[2], torch.ones_like(begin[0]))
    ]
    for step in tqdm(range(size.steps), desc=label, leave=False):
        state, used, left = move(*each, state, batch_at(step))
        excess.append(left)
        if step + 1 in moments:
            out, known, length = look(scales, sharpness, state.params, test, seen)
            times.append(step + 1)
            record.append((out / begin[0], known / begin[1], length, tasks * used))
    tests, trains, lengths, used = (
        torch.stack(part).double().cpu().numpy() for part in zip(*record, strict=True)
    )
    return Trace(
        lanes,
        np.array(times),
        tests,
        trains,
        lengths,
        used,
        torch.cat(excess, -1).double().cpu().numpy(),
    )


def run(settings: Settings) -> Findings:
    yield from definitions()
    size = size_of(settings)
    yield toy(settings, size)
    two, learnt = two_tasks(size, settings)
    trunk = train(
        "trunk",
        [Lane("GradNorm", lr) for lr in size.two],
        size,
        settings,
        "norms of the whole trunk",
    )
    yield measured_layer(learnt, trunk, size)
    yield imbalance(two, size)
    yield difficulty(two, learnt, size)
    yield overfitting(two, learnt, size)
    yield limits(two, learnt, size)
    static, dynamic, normalised = ten_tasks(size, settings)
    yield two_aims([(two, learnt), (static, dynamic)], size)
    yield slow_tasks([(two, learnt), (static, dynamic)], size)
    yield from search(two, learnt, static, dynamic, size)
    yield searches(two, learnt, static, dynamic, size)
    frozen = still_targets(settings)
    yield targets_of_the_rule(dynamic, normalised, frozen, size)
    yield by_rate([(two, learnt), (static, dynamic)], normalised, frozen, size)


def two_tasks(size: Size, settings: Settings) -> tuple[Trace, Trace]:
    """Static weights and GradNorm; tasks of other scales, of other difficulty, and with few data."""
    plain, sharp = deviation_of(1.0), deviation_of(SHARPER)

    def others(lr: float) -> list[Lane]:
        return [
            Lane("sharper", lr, scales=(1 / plain, 1 / sharp), sharpness=(1.0, SHARPER)),
            Lane("noisy", lr, scales=(1 / plain,) * 2, noise=(0.0, NOISE)),
            Lane("finite", lr, scales=MILD, finite=True),
        ]

    static = [
        Lane(f"scales, {ratio:g}", lr, scales=(1.0, ratio))
        for ratio in RATIOS[:-1]
        for lr in size.two[1:]
    ]
    static += [
        Lane(f"static, {second:g}", lr, weights=(1.0, second))
        for second in (1.0, *SECOND)
        for lr in size.two
    ]
    static += [lane for lr in size.two[1:] for lane in others(lr)]
    learnt = [
        Lane(f"GradNorm, {alpha:g}", lr, alpha) for alpha in TWO_ALPHAS for lr in size.two
    ] + [lane for lr in size.two[1:] for lane in others(lr)]
    return train("weighted", static, size, settings, "T = 2, static weights"), train(
        "gradnorm", learnt, size, settings, "T = 2, GradNorm"
    )


def ten_tasks(size: Size, settings: Settings) -> tuple[Trace, Trace, Trace]:
    """Equal weights, 1/L_i(0) and a random search; GradNorm; GradNorm with normalised targets."""
    key = mf.random.key(10)
    # log-uniform over three decades; σ² spans as many
    drawn = 10 ** (-3 * mf.random.uniform(mf.random.fold_in(key, 0), (DRAWS, len(TEN))))
    rates = (mf.random.uniform(mf.random.fold_in(key, 1), (DRAWS,)) * len(size.ten)).long()
    static = [Lane(EQUAL, lr, scales=TEN) for lr in size.ten]
    static += [
        Lane(FIXED, lr, scales=TEN, weights=tuple(scale**-2 for scale in TEN)) for lr in size.ten
    ]
    static += [
        Lane(SEARCH, size.ten[int(rate)], scales=TEN, weights=tuple(w.tolist()))
        for w, rate in zip(drawn, rates, strict=True)
    ]
    learnt = [
        Lane(f"GradNorm, {alpha:g}", lr, alpha, scales=TEN)
        for alpha in TEN_ALPHAS
        for lr in size.ten
    ]
    corrected = [
        Lane(f"GradNorm, {TEN_ALPHAS[-1]:g}", lr, TEN_ALPHAS[-1], scales=TEN) for lr in size.ten
    ]
    return (
        train("weighted", static, size, settings, "T = 10, static weights"),
        train("gradnorm", learnt, size, settings, "T = 10, GradNorm"),
        train("normalised", corrected, size, settings, "T = 10, normalised targets"),
    )


# ---- what is exact ----


def definitions() -> Findings:
    problem = Problem(scales=(1.0, 5.0, 2.0), inputs=6, outputs=3)
    root, count, lr = mf.random.key(0), 3, 1e-2
    params = {
        name: leaf.double()
        for name, leaf in initial_params(mf.random.fold_in(root, 0), problem).items()
    }
    maps = linear_maps(mf.random.fold_in(root, 1), problem)
    drawn = [sample(mf.random.fold_in(root, 2 + t), maps, problem, 20) for t in range(20)]
    batches = [(x.double(), y.double()) for x, y in drawn]
    step = mf.descend(
        losses,
        mf.gradnorm(ALPHA, 1e-2),
        mf.sgd(lr),
        mf.jacobian(f"{LAST}*", heads="weighted"),
        reduction="sum",
    )
    state = step.init(params, batches[0])
    start = state.balance.rule.initial
    apart, moved, leaks, lengths, kept = [], [], [], [], []
    for batch in batches:
        before, weights = state, state.balance.rule.weights
        state, info = step.update(state, batch)
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in before.params.items()}
        now = losses(leaves, batch)
        last = [leaf for name, leaf in leaves.items() if name.startswith(LAST)]
        rows = [
            torch.autograd.grad(weights[i] * now[i], last, create_graph=True) for i in range(count)
        ]
        G = torch.stack([torch.cat([part.flatten() for part in row]).norm() for row in rows])
        rate = (now / start / (now / start).mean()).detach() ** ALPHA
        leak = torch.autograd.grad(
            (G - (G.mean() * rate).detach()).abs().sum(),
            list(leaves.values()),
            retain_graph=True,
            allow_unused=True,
        )
        model = torch.autograd.grad((weights * now).sum(), list(leaves.values()))
        apart.append(
            max(
                float((state.params[name] - leaf.detach() + lr * g).abs().max())
                for (name, leaf), g in zip(leaves.items(), model, strict=True)
            )
        )
        moved.append(float((state.balance.rule.weights - weights).abs().max()))
        leaks.append(float(_norm([part for part in leak if part is not None]) / _norm(model)))
        lengths.append(float((weights * info.gramian.diagonal().sqrt() - G.detach()).abs().max()))
        kept.append(float((state.balance.rule.initial - start).abs().max()))
    where = f"three tasks, {len(batches)} SGD steps, float64; holds below 1e-9"
    weighted = {
        "largest difference of parameters from an SGD step on Σ w_i L_i, w fixed": max(apart),
        "steps": len(batches),
    }
    yield Claim(
        "GN-03",
        PAPER,
        "The loss is Σ w_i(t) L_i, with weights that are updated at every step.",
        "holds" if max(apart) < 1e-9 and min(moved) > 0 else "does not hold",
        {**weighted, "smallest change of the weights in a step": min(moved)},
        "the model steps along the gradient at detached weights, and no step leaves the weights "
        f"as they were; {where}",
    )
    yield Claim(
        "GN-14",
        PAPER,
        "L_grad moves the weights alone; they scale each task's gradient, and no gradient of "
        "L_grad reaches the network.",
        "holds" if max(apart) < 1e-9 and min(leaks) > 0 else "does not hold",
        {
            **weighted,
            "length of the gradient of L_grad in the network, over the model's, smallest": min(
                leaks
            ),
            "largest": max(leaks),
        },
        f"that gradient is not zero, so that a leak would show; {where}",
    )
    try:
        mf.gradnorm(ALPHA).init(torch.tensor([1.0, 0.0]), root)
        refused = 0
    except ValueError:
        refused = 1
    reference = (
        mf.gradnorm(ALPHA, reference=torch.full((2,), float(np.log(10))))
        .init(torch.tensor([1.0, 0.0]), root)
        .initial
    )
    rates = torch.stack([losses(params, batch) / start for batch in batches])
    mean_rate = float(((rates / rates.mean(1, keepdim=True)).mean(1) - 1).abs().max())
    good = (
        max(lengths) < 1e-9
        and max(kept) == 0
        and mean_rate < 1e-9
        and refused == 1
        and bool((reference == float(np.float32(np.log(10)))).all())
    )
    yield Claim(
        "GN-09",
        PAPER,
        "G_i = ‖∇_W(w_i L_i)‖, L̃_i = L_i(t)/L_i(0), r_i = L̃_i/mean L̃.",
        "holds" if good else "does not hold",
        {
            "largest difference of w_i‖∇_W L_i‖ from G_i": max(lengths),
            "largest change of L_i(0)": max(kept),
            "largest deviation of mean r_i from 1": mean_rate,
            "L_i(0) = 0 is refused (1: yes)": refused,
            "reference in place of L_i(0)": float(reference[0]),
        },
        f"needs L_i(0) > 0, or a reference such as log K; {where}",
    )


def targets_of_the_rule(
    plain: Trace, normalised: Trace, frozen: dict[str, np.ndarray], size: Size
) -> Claim:
    """One update of the library's rule with SGD on the weights, against the formula, over random
    lengths, losses, weights and α.
    """
    draws, tasks, lr = 4000, 5, 1e-5
    keys = torch.arange(draws)

    def ingredients(key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        u = mf.random.uniform(mf.random.fold_in(key, 7), (4, tasks), torch.float64)
        length, now, begin = 10 ** (3 * u[:3] - 1.5)
        w = 0.05 + u[3]
        return (
            length,
            now,
            begin,
            tasks * w / w.sum(),
            torch.tensor([0.0, ALPHA, 0.5, 1.0, 2.0], dtype=torch.float64)[key % 5],
        )

    def both(key: Tensor, normalised: bool) -> tuple[Tensor, ...]:
        length, now, begin, w, alpha = ingredients(key)
        rule = mf.gradnorm(alpha, lr, optimizer=mf.sgd, floor=1e-6, normalize_targets=normalised)
        state = rule.init(begin, key)._replace(weights=w)
        one = torch.ones(tasks, dtype=torch.float64)
        geometry = mf.types.Geometry(now, torch.diag(length**2), one / tasks, one > 0, {})
        following = rule.update(geometry, state)[1].weights
        G, rate = w * length, (now / begin) / (now / begin).mean()
        target = G.mean() * rate**alpha
        target = target / (rate**alpha).mean() if normalised else target
        slope = torch.where(target < G, length, -length)
        moved = (w - lr * slope).clamp_min(1e-6)
        balanced = rate**alpha / length
        # the G_i at the weights in proportion r_i^α/‖∇_W L_i‖
        balanced = tasks * balanced / balanced.sum() * length
        shape = rate**alpha / (rate**alpha).mean() if normalised else rate**alpha
        left = (balanced / balanced.mean() - shape).abs().sum()
        return (
            following - tasks * moved / moved.sum(),
            target.sum() / (tasks * G.mean()),
            left,
            (tasks - (rate**alpha).sum()).abs(),
            alpha,
        )

    gap, total, left, bound, alpha = vmap(lambda key: both(key, False))(keys)
    gap_n, total_n, left_n, *_ = vmap(lambda key: both(key, True))(keys)
    one, under, over = (alpha == 0) | (alpha == 1), (alpha > 0) & (alpha < 1), alpha > 1
    error, error_n = float(gap.abs().max()), float(gap_n.abs().max())
    numbers = {
        "largest difference of the next weights from the formula's": error,
        "the same, normalised targets": error_n,
        "largest deviation of Σ targets/(T·Ḡ) from 1, α of 0 or 1": float(
            (total[one] - 1).abs().max()
        ),
        "largest Σ targets/(T·Ḡ), 0 < α < 1": float(total[under].max()),
        "smallest Σ targets/(T·Ḡ), α = 2": float(total[over].min()),
        "largest deviation of Σ targets/(T·Ḡ) from 1, normalised targets": float(
            (total_n - 1).abs().max()
        ),
        "L_grad/Ḡ at w_i ∝ r_i^α/‖∇_W L_i‖, α neither 0 nor 1, median": float(
            left[under | over].median()
        ),
        "its lower bound |T - Σ r_i^α|, median": float(bound[under | over].median()),
        "the same with normalised targets, largest": float(left_n.max()),
        "draws": draws,
        "L_grad/Ḡ after descending on w alone, median": float(np.median(frozen["GradNorm"][-1])),
        "the same with normalised targets, median": float(np.median(frozen["normalised"][-1])),
        **_named(
            f"training, T = 10, α = {TEN_ALPHAS[-1]:g}: final loss, normalised targets over plain",
            ratio_interval(*(t.judged(STRONG) for t in (normalised, plain))),
        ),
    }
    return Claim(
        "GN-10",
        PAPER,
        "A task's target length is Ḡ r_i^α.",
        "holds" if max(error, error_n) < 1e-9 else "does not hold",
        numbers,
        "random lengths, losses, weights, five tasks, α of 0, .12, .5, 1, 2, float64; holds "
        "below 1e-9. The targets add up to T·Ḡ only for α of 0 or 1: "
        "otherwise L_grad has no zero, unless the targets are normalised. "
        f"Training: {size}; {PAIRED}",
    )


def still_targets(settings: Settings) -> dict[str, np.ndarray]:
    """L_grad/Ḡ `[step, draw]` while the rule moves its weights at lengths and losses that stay as
    they are; α = .5, five tasks.
    """
    draws, tasks, lr = 32, 5, 0.02
    u = mf.random.uniform(mf.random.key(3), (2, draws, tasks), torch.float64)
    lengths, rates = 10 ** (2 * u - 1)
    target = (rates / rates.mean(1, keepdim=True)) ** TEN_ALPHAS[-1]
    one = torch.ones(tasks, dtype=torch.float64)
    found = {}
    for name in ("GradNorm", "normalised"):
        rule = mf.gradnorm(
            TEN_ALPHAS[-1],
            lr,
            optimizer=mf.optim.multiplicative,
            normalize_targets=name == "normalised",
        )
        state = vmap(lambda key, rule=rule: rule.init(one, key))(torch.arange(draws))
        move = vmap(
            lambda n, now, s, rule=rule: rule.update(
                mf.types.Geometry(now, torch.diag(n**2), one / tasks, one > 0, {}), s
            )[1]
        )
        aim = target / target.mean(1, keepdim=True) if name == "normalised" else target
        left = []
        for _ in range(settings.count(300)):
            G = state.weights * lengths
            left.append((G / G.mean(1, keepdim=True) - aim).abs().sum(1))
            state = move(lengths, rates, state)
        found[name] = torch.stack(left).numpy()
    return found


def toy(settings: Settings, size: Size) -> Claim:
    """The printed problem at face value: 250 inputs, 100 outputs, T = 2."""
    problem = Problem(inputs=250, outputs=100, literal=True)
    numbers, roots = {}, torch.arange(size.seeds)
    # [seed, task, output, input]
    maps = vmap(lambda root: linear_maps(mf.random.fold_in(root, 1), problem))(roots)
    x = vmap(lambda root: mf.random.normal(mf.random.fold_in(root, 2), (100, 250)))(roots)
    z = torch.einsum("sbi,stoi->stbo", x, maps)
    common = (maps[:, 0] * maps[:, 1]).mean((1, 2)).sqrt()
    private = ((maps[:, 0] - maps[:, 1]).square().mean((1, 2)) / 2).sqrt()
    deviation, saturated = (
        z.square().mean((1, 2, 3)).sqrt(),
        (torch.tanh(z).abs() > 0.99).double().mean((1, 2, 3)),
    )
    # Given x the argument is normal by either reading, so that rescaling it is drawing it anew.
    fine = z * ((10 + 3.5) / (10**2 + 3.5**2)) ** 0.5
    for name, values in (
        ("deviation of B", common),
        ("deviation of ε_i", private),
        ("deviation of the argument of tanh", deviation),
    ):
        numbers |= _named(name, mean_interval(values))
    numbers |= _named("share of |tanh| above .99", mean_interval(saturated))
    numbers["deviation of the argument, 10 and 3.5 read as variances"] = float(
        fine.square().mean().sqrt()
    )
    numbers |= _named(
        "share of |tanh| above .99, read as variances",
        mean_interval((torch.tanh(fine).abs() > 0.99).double().mean((1, 2, 3))),
    )
    close = (
        abs(float(common.mean()) / 10 - 1) < 0.02 and abs(float(private.mean()) / 3.5 - 1) < 0.02
    )
    return Claim(
        "GN-18",
        PAPER,
        "The toy: σ_i tanh((B + ε_i)x), 250 inputs, 100 outputs, B ~ N(0, 10) common and ε_i ~ "
        "N(0, 3.5) private.",
        "holds" if close else "does not hold",
        numbers,
        f"x ~ N(0, I), {size.seeds} seeds; the generator has the printed deviations within 2 %; "
        "at face value, by either reading, "
        "most targets are signs. The law of x, batch, optimizer and number of steps are not stated",
    )


# ---- two tasks ----


def measured_layer(learnt: Trace, trunk: Trace, size: Size) -> Claim:
    params = {
        name: leaf.double() for name, leaf in start_of(mf.random.key(0), 2, size.width).items()
    }
    problem = Problem(inputs=INPUTS, outputs=OUTPUTS)
    x, y = sample(mf.random.key(2), linear_maps(mf.random.key(1), problem), problem, size.batch)
    batch = (x.double(), y.double())
    leaves = {name: leaf.requires_grad_() for name, leaf in params.items()}
    rows = [
        dict(
            zip(
                leaves,
                torch.autograd.grad(loss, list(leaves.values()), retain_graph=True),
                strict=True,
            )
        )
        for loss in losses(leaves, batch)
    ]
    plain = {name: leaf.detach() for name, leaf in leaves.items()}
    errors, ratios = [], {}
    for name, chosen in (
        ("first layer", "trunk.0.*"),
        ("last shared layer", f"{LAST}*"),
        ("whole trunk", "trunk.*"),
    ):
        found = mf.task_gramian(losses, plain, batch, shared=chosen)[1].diagonal().sqrt()
        expected = torch.stack(
            [
                _norm([part for key, part in row.items() if key.startswith(chosen[:-1])])
                for row in rows
            ]
        )
        errors.append(float((found / expected - 1).abs().max()))
        ratios[f"‖∇_W L_2‖/‖∇_W L_1‖ before training, {name}"] = float(found[1] / found[0])
        ratios[f"‖∇_W L_1‖, {name}"] = float(found[0])
    effect = ratio_interval(trunk.judged("GradNorm"), learnt.judged(f"GradNorm, {ALPHA:g}"))
    distinct = len({round(value, 9) for value in ratios.values()}) == len(ratios)
    return Claim(
        "GN-08",
        PAPER,
        "Norms are measured on a subset W of the weights, normally the last shared layer.",
        "holds" if max(errors) < 1e-9 and distinct else "does not hold",
        {
            "largest relative difference from autograd": max(errors),
            **ratios,
            **_named("final loss, whole trunk over last layer", effect),
        },
        "a definition: holds if the lengths are autograd's on each W (below 1e-9) and no two "
        f"choices agree; training: T = 2, α = {ALPHA}, {size}; {PAIRED}",
    )


def imbalance(two: Trace, size: Size) -> Claim:
    names = {
        ratio: "static, 1" if ratio == RATIOS[-1] else f"scales, {ratio:g}" for ratio in RATIOS
    }
    curves = {ratio: two.curve(name) for ratio, name in names.items()}
    level = np.max([curve.min(0) for curve in curves.values()], axis=0)
    reached = {ratio: crossing(two.times, curve, level) for ratio, curve in curves.items()}
    slower = [ratio_interval(reached[b], reached[a]) for a, b in pairwise(RATIOS)]
    first = {ratio: two.of(two.lengths, name)[0] for ratio, name in names.items()}
    unequal = {ratio: lengths[:, 1] / lengths[:, 0] for ratio, lengths in first.items()}
    apart = [ratio_interval(unequal[b], unequal[a]) for a, b in pairwise(RATIOS)]
    numbers: dict[str, float] = {}
    for ratio, name in names.items():
        numbers[f"ratio of gradient lengths at the start, σ_2/σ_1 = {ratio:g}"] = float(
            np.exp(np.log(unequal[ratio]).mean())
        )
        numbers[f"steps to the level, σ_2/σ_1 = {ratio:g}"] = float(reached[ratio].mean())
        numbers[f"best learning rate, σ_2/σ_1 = {ratio:g}"] = two.best(name).lr
    numbers["level of the mean of L_i/L_i(0)"] = float(level.mean())
    for (a, b), interval in zip(pairwise(RATIOS), slower, strict=True):
        numbers |= _named(f"steps at {b:g} over steps at {a:g}", interval)
    return Claim(
        "GN-02",
        PAPER,
        "Imbalance between tasks shows in unequal gradient lengths, and slows training.",
        verdict_of(
            [interval.low > 1 for interval in (*slower, *apart)],
            [interval.high < 1 for interval in (*slower, *apart)],
        ),
        numbers,
        "equal weights, T = 2, each ratio of scales at its best learning rate; level: seed by "
        "seed the lowest that all reach; holds if a larger ratio "
        f"makes gradients more unequal and takes more steps to the level; {size}; {PAIRED}",
    )


def difficulty(two: Trace, learnt: Trace, size: Size) -> Claim:
    gains = {
        name: ratio_interval(learnt.judged(name), two.judged(name)) for name in ("sharper", "noisy")
    }
    scale = ratio_interval(learnt.judged(f"GradNorm, {ALPHA:g}"), two.judged("static, 1"))
    numbers = _named("σ of 1 and 100", scale)
    for name, gain in gains.items():
        numbers |= _named(name, gain)
        numbers[f"{name}: the hard task's weight, mean over time"] = float(
            learnt.of(learnt.weights, name)[..., 1].mean()
        )
        numbers |= {
            f"{name}: best rate, equal": two.best(name).lr,
            f"{name}: best rate, GradNorm": learnt.best(name).lr,
        }
    helped = [f"{name} ({gain.mean:.3g})" for name, gain in gains.items() if gain.high < 1]
    return Claim(
        "GN-28",
        PAPER,
        "Tasks of different difficulty fall out of step, and GradNorm helps; not scale alone.",
        verdict_of(
            [gain.high < 1 for gain in gains.values()], [gain.low > 1 for gain in gains.values()]
        ),
        numbers,
        f"targets of deviation 1 for both tasks; sharper: one has {SHARPER:g} times the argument "
        f"of tanh; noisy: label noise of {NOISE:g} deviations in "
        f"training; final loss of GradNorm (α = {ALPHA}) over equal weights, below 1 with its "
        f"interval: {'; '.join(helped) or 'none'}; {size}; {PAIRED}",
    )


def overfitting(two: Trace, learnt: Trace, size: Size) -> Claim:
    pairs = [
        (trace.of(trace.train, "finite").mean(-1), trace.of(trace.test, "finite").mean(-1))
        for trace in (two, learnt)
    ]
    level = np.max([train.min(0) for train, _ in pairs], axis=0)
    equal, gradnorm = (
        at(crossing(two.times, train, level), two.times, test) - level for train, test in pairs
    )
    less = mean_interval(gradnorm - equal)
    ends = [test[-1] - train[-1] for train, test in pairs]
    return Claim(
        "GN-27",
        PAPER,
        "GradNorm reduces overfitting.",
        verdict_of([less.high < 0], [less.low > 0]),
        {
            "train loss at which the gaps are compared": float(level.mean()),
            **_named("test minus train loss there, equal weights", mean_interval(equal)),
            **_named("test minus train loss there, GradNorm", mean_interval(gradnorm)),
            **_named("their difference", less),
            "gap at the end, equal weights": float(ends[0].mean()),
            "gap at the end, GradNorm": float(ends[1].mean()),
            **_named(
                "final test loss, GradNorm over equal",
                ratio_interval(learnt.judged("finite"), two.judged("finite")),
            ),
            "best rate, equal": two.best("finite").lr,
            "best rate, GradNorm": learnt.best("finite").lr,
        },
        f"σ = {MILD}, {CHUNKS * size.batch} samples in training, losses are means of L_i/L_i(0); "
        "holds if the gap at the lowest train loss that both "
        f"reach is smaller with GradNorm (α = {ALPHA}); {size}; {PAIRED}",
    )


# ---- both numbers of tasks ----


def two_aims(both: Sequence[tuple[Trace, Trace]], size: Size) -> Claim:
    numbers: dict[str, float] = {}
    below, above, smaller, others = [], [], [], []
    for static, learnt in both:
        count = static.test.shape[-1]
        arms = {EQUAL: (static, "static, 1" if count == 2 else EQUAL)}
        alphas = TWO_ALPHAS if count == 2 else TEN_ALPHAS
        arms |= {f"α = {alpha:g}": (learnt, f"GradNorm, {alpha:g}") for alpha in alphas}
        spreads = {}
        for label, (trace, name) in arms.items():
            rates, lengths = (
                trace.of(trace.test, name)[1:],
                trace.of(trace.weights * trace.lengths, name)[1:],
            )
            spreads[label] = [np.exp(np.log(values).std(-1).mean(0)) for values in (lengths, rates)]
            numbers |= {
                f"T = {count}, spread of {what}, {label}": float(v.mean())
                for what, v in zip(("G_i", "L̃_i"), spreads[label], strict=True)
            }
        for what, index in (("G_i", 0), ("L̃_i", 1)):
            against = ratio_interval(spreads[f"α = {ALPHA:g}"][index], spreads[EQUAL][index])
            numbers |= _named(f"T = {count}, spread of {what}, α = {ALPHA} over equal", against)
            numbers |= _named(
                f"T = {count}, spread of {what}, α = {alphas[-1]:g} over 0",
                ratio_interval(spreads[f"α = {alphas[-1]:g}"][index], spreads["α = 0"][index]),
            )
            below.append(against.high < 1)
            above.append(against.low > 1)
            (smaller if against.high < 1 else others).append(
                f"{what} at T = {count} ({against.mean:.3g})"
            )
    return Claim(
        "GN-07",
        PAPER,
        "Two aims: gradient lengths on one scale, and tasks that train at similar rates.",
        verdict_of(below, above),
        numbers,
        "spread: exponential of the deviation over tasks of the logarithm, mean over the run, on "
        "test data; holds if those of G_i and of L̃_i are smaller "
        "than with equal weights at T = 2 and at T = 10. Smaller: "
        f"{'; '.join(smaller) or 'none'}; not: {'; '.join(others) or 'none'}. "
        f"Where α lowers one spread and raises the other they are two aims, not one. {size}; "
        f"{PAIRED}",
    )


def slow_tasks(both: Sequence[tuple[Trace, Trace]], size: Size) -> Claim:
    numbers: dict[str, float] = {}
    differences: dict[str, Interval] = {}
    for static, learnt in both:
        count = static.test.shape[-1]
        alphas = TWO_ALPHAS if count == 2 else TEN_ALPHAS
        arms = {EQUAL: (static, "static, 1" if count == 2 else EQUAL)} | {
            f"α = {alpha:g}": (learnt, f"GradNorm, {alpha:g}") for alpha in alphas
        }
        found = {
            label: catching_up(trace.of(trace.test, name)) for label, (trace, name) in arms.items()
        }
        last = f"α = {alphas[-1]:g}"
        for label, values in found.items():
            numbers |= _named(f"T = {count}, correlation, {label}", mean_interval(values))
        for other in (EQUAL, "α = 0"):
            differences[f"T = {count}, {last} minus {other}"] = mean_interval(
                found[last] - found[other]
            )
    for name, difference in differences.items():
        numbers |= _named(name, difference)
    larger = [f"{name} ({d.mean:.2g})" for name, d in differences.items() if d.low > 0]
    return Claim(
        "GN-11",
        PAPER,
        "A slow task has a larger target and so speeds up.",
        verdict_of(
            [d.low > 0 for d in differences.values()], [d.high < 0 for d in differences.values()]
        ),
        numbers,
        f"correlation over tasks of log r_i with the fall of log L̃_i in the next of {WINDOWS} "
        "windows; holds if it is larger at the largest α run than with "
        "equal weights and than at α = 0, at T = 2 and 10 (that the target is larger is the "
        f"formula, GN-10). Larger: {'; '.join(larger) or 'none'}; "
        f"{size}; {PAIRED}",
    )


def search(two: Trace, learnt: Trace, static: Trace, dynamic: Trace, size: Size) -> Findings:
    simple = {2: two.judged(f"static, {RECIPROCAL:g}"), 10: static.judged(FIXED)}
    sides = {
        2: (learnt.judged("GradNorm"), two.judged("static")),
        10: (dynamic.judged("GradNorm"), static.judged(SEARCH)),
    }
    ratios = {count: ratio_interval(*side) for count, side in sides.items()}
    runs = {
        2: (len(learnt.named("GradNorm")), len(two.named("static"))),
        10: (len(dynamic.named("GradNorm")), DRAWS),
    }
    numbers: dict[str, float] = {}
    for count, ratio in ratios.items():
        numbers |= _named(f"T = {count}, GradNorm over the search's best", ratio)
        numbers |= _named(
            f"T = {count}, GradNorm over static weights 1/L_i(0)",
            ratio_interval(sides[count][0], simple[count]),
        )
        numbers |= {
            f"T = {count}, runs of GradNorm": runs[count][0],
            f"T = {count}, runs of the search": runs[count][1],
        }
    numbers["T = 2, best w_2/w_1 of the grid"] = two.best("static").weights[1]
    numbers |= {
        "T = 2, best α": learnt.best("GradNorm").alpha,
        "T = 10, best α": dynamic.best("GradNorm").alpha,
    }
    verdicts = [
        f"T = {count} {'matches' if r.high < 1.05 else 'worse' if r.low > 1 else 'open'}"
        for count, r in ratios.items()
    ]
    yield Claim(
        "GN-06",
        PAPER,
        "Tuning α alone matches or beats an exhaustive search over the weights.",
        verdict_of(
            [ratio.high < 1.05 for ratio in ratios.values()],
            [ratio.low > 1 for ratio in ratios.values()],
        ),
        numbers,
        "final loss, learning rates searched along by both; T = 2: grid of w_2/w_1 from 1 to "
        f"{SECOND[-1]:g}; T = 10: log-uniform random weights; matches: the "
        f"ratio's interval is below 1.05: {', '.join(verdicts)}; weights 1/L_i(0) need no "
        f"search; {size}; {PAIRED}",
    )
    target = dynamic.judged("GradNorm")
    chances = static.final(SEARCH) <= target[None]  # [draw, seed]
    share = mean_interval(chances.mean(0))
    per_axis = len(SECOND) + 1
    grid = {count: per_axis ** (count - 1) for count in (2, 5, 10)}
    expected = 1 / share.mean if share.mean > 0 else float("inf")
    learnt_runs = {count: len(alphas) for count, alphas in ((2, TWO_ALPHAS), (10, TEN_ALPHAS))}
    yield Claim(
        "GN-25",
        PAPER,
        "A grid search costs exponentially many runs in T, GradNorm a few whatever T.",
        "holds only when" if share.low > 0 else "holds",
        {
            **{
                f"runs of a full grid of {per_axis} ratios, T = {count}": runs
                for count, runs in grid.items()
            },
            **{f"values of α run, T = {count}": runs for count, runs in learnt_runs.items()},
            **_named(
                "T = 10: share of random draws (weights and rate) at least as good as GradNorm",
                share,
            ),
            "T = 10: random draws expected until one is": expected,
            "T = 10: runs of GradNorm (α and rate)": len(dynamic.named("GradNorm")),
        },
        "the grid of α by its count, full grids by theirs; a learning rate multiplies both. Only "
        "against full grids, if the share of random draws that "
        f"match GradNorm has an interval above 0: {DRAWS} draws, log-uniform over three decades; "
        f"{size}; {PAIRED}",
    )


# ---- figures ----


def limits(two: Trace, learnt: Trace, size: Size) -> Figure:
    canvas, panels = axes(1, 3, (13, 4.2))
    for ratio, colour in zip(RATIOS, ("C5", "C0", "C6"), strict=True):
        name = "static, 1" if ratio == RATIOS[-1] else f"scales, {ratio:g}"
        _band(
            panels[0],
            two.times,
            two.curve(name),
            colour,
            f"σ₂/σ₁ = {ratio:g}, Adam {two.best(name).lr:g}",
        )
    panels[0].set(
        xlabel="step", ylabel="mean of L_i/L_i(0) on test data", title="equal weights", yscale="log"
    )
    panels[0].set_ylim(top=10 * panels[0].get_ylim()[1] / 4)
    panels[0].legend(loc="upper right")
    rows = {
        "σ of 1 and 100": ("static, 1", f"GradNorm, {ALPHA:g}"),
        f"one task {SHARPER:g}× sharper": ("sharper",) * 2,
        "noisy labels of one task": ("noisy",) * 2,
    }
    rows["few data, σ of 1 and 10"] = ("finite",) * 2
    for y, (plain, other) in enumerate(rows.values()):
        _bar(panels[1], ratio_interval(learnt.judged(other), two.judged(plain)), -y)
    panels[1].axvline(1, color="#999999", linewidth=1)
    panels[1].set_yticks([-y for y in range(len(rows))], list(rows))
    panels[1].set(xlabel="final test loss, GradNorm / equal weights", ylim=(0.5 - len(rows), 0.5))
    for trace, label in ((two, EQUAL), (learnt, "GradNorm")):
        train, test = (
            np.exp(np.log(trace.of(values, "finite").mean(-1)).mean(1))
            for values in (trace.train, trace.test)
        )
        panels[2].plot(
            train,
            test,
            color=COLOUR[label],
            marker="o",
            markersize=4,
            label=f"{label}, Adam {trace.best('finite').lr:g}",
        )
    panels[2].axline((1, 1), slope=1, color="#999999", linewidth=1)
    panels[2].set(
        xlabel=f"on the {CHUNKS * size.batch} training samples",
        ylabel="on test data",
        title="few data: mean of L_i/L_i(0)",
        xscale="log",
        yscale="log",
    )
    panels[2].legend()
    for axis in (panels[0].yaxis, panels[2].xaxis, panels[2].yaxis):
        _plain(axis)
    return Figure(
        "limits",
        "Left: unequal scales slow training with equal weights. Middle: where GradNorm (α = "
        f"{ALPHA}) helps; blue: the interval is below 1, vermillion: "
        "above, grey: it contains 1. Right: test against train loss along the run, geometric "
        f"means over seeds. {size}. {PAIRED}.",
        canvas,
    )


def searches(two: Trace, learnt: Trace, static: Trace, dynamic: Trace, size: Size) -> Figure:
    canvas, panels = axes(1, 2, (11, 4.2))
    grid = (1.0, *SECOND)
    best = np.array([two.judged(f"static, {second:g}") for second in grid])
    panels[0].errorbar(
        grid,
        best.mean(1),
        half_width(best),
        color=COLOUR[FIXED],
        marker="o",
        label="static weights",
    )
    _line(
        panels[0],
        learnt.judged("GradNorm"),
        "GradNorm",
        f"GradNorm, best of {len(learnt.named('GradNorm'))} runs",
    )
    panels[0].set(
        xlabel=f"w_2/w_1 (1: equal; {RECIPROCAL:g}: 1/L_i(0))",
        ylabel="mean of L_i/L_i(0) on test data at the end",
        title="T = 2",
        xscale="log",
    )
    drawn = static.final(SEARCH)
    order = drawn.mean(1).argsort()
    panels[1].errorbar(
        np.arange(1, DRAWS + 1),
        drawn[order].mean(1),
        half_width(drawn[order]),
        color=COLOUR[SEARCH],
        marker="o",
        linestyle="",
        label=SEARCH,
    )
    _line(
        panels[1],
        dynamic.judged("GradNorm"),
        "GradNorm",
        f"GradNorm, best of {len(dynamic.named('GradNorm'))} runs",
    )
    for name in (EQUAL, FIXED):
        _line(panels[1], static.judged(name), name, f"{name}, best of {len(size.ten)} rates")
    panels[1].set(
        xlabel="random draw of weights and learning rate, best first",
        ylabel="mean of L_i/L_i(0) on test data at the end",
        title="T = 10",
    )
    for panel in panels:
        panel.set_ylim(0, 1.5 * panel.get_ylim()[1])
        panel.legend(loc="upper left")
    return Figure(
        "searches",
        f"GradNorm beside a search over static weights, learning rates searched along. {size}. "
        f"{PAIRED}; bands and bars.",
        canvas,
    )


def by_rate(
    both: Sequence[tuple[Trace, Trace]],
    normalised: Trace,
    frozen: dict[str, np.ndarray],
    size: Size,
) -> Figure:
    canvas, panels = axes(1, 3, (13, 4.2))
    (two, learnt), (static, dynamic) = both
    arms = [
        [
            (EQUAL, two, "static, 1"),
            ("GradNorm", learnt, f"GradNorm, {ALPHA:g}"),
            (FIXED, two, f"static, {RECIPROCAL:g}"),
        ],
        [
            (EQUAL, static, EQUAL),
            ("GradNorm", dynamic, STRONG),
            ("normalised", normalised, STRONG),
            (FIXED, static, FIXED),
        ],
    ]
    edges: list[str] = []
    for axis, rows, rates in zip(panels, arms, (size.two, size.ten), strict=False):
        for shift, (label, trace, name) in zip((0.91, 0.97, 1.03, 1.09), rows, strict=False):
            final = trace.final(name)
            if trace.best(name).lr in (rates[0], rates[-1]):
                edges.append(f"{label}, T = {trace.test.shape[-1]}")
            alpha = "" if label in (EQUAL, FIXED) else f", α = {trace.best(name).alpha:g}"
            text = "normalised targets" if label == "normalised" else label
            final[~np.isfinite(final)] = np.nan
            axis.errorbar(
                np.array(rates) * shift,
                final.mean(1),
                half_width(final),
                color=COLOUR[label],
                marker="o",
                label=text + alpha,
            )
        axis.set(
            xlabel="Adam's learning rate",
            ylabel="mean of L_i/L_i(0) on test data at the end",
            xscale="log",
            title=f"T = {rows[0][1].test.shape[-1]}",
        )
        axis.set_ylim(0, 1.5 * axis.get_ylim()[1])
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.minorticks_off()
        axis.legend(loc="upper right")
    for (label, left), trace in zip(frozen.items(), (dynamic, normalised), strict=True):
        text = "normalised" if label == "normalised" else "Ḡ r^α"
        panels[2].plot(np.median(left, 1), color=COLOUR[label], label=f"{text}, network fixed")
        values = np.median(trace.excess[trace.picked(STRONG), np.arange(size.seeds)], 0)
        window = max(1, len(values) // 40)
        values = values[: len(values) // window * window].reshape(-1, window).mean(1)
        panels[2].plot(
            window * (np.arange(len(values)) + 0.5),
            values,
            color=COLOUR[label],
            linestyle=":",
            label=f"{text}, training",
        )
    panels[2].set(
        xlabel="step", ylabel="L_grad/Ḡ, median", title=f"α = {TEN_ALPHAS[-1]:g}", yscale="log"
    )
    panels[2].set_ylim(top=8 * panels[2].get_ylim()[1])
    _plain(panels[2].yaxis)
    panels[2].legend(loc="upper right")
    return Figure(
        "rates",
        "Final loss by learning rate, every method on one grid; best at the edge of its grid: "
        f"{'; '.join(edges) or 'none'}. Right: what is left of L_grad with plain and normalised "
        "targets, where only the weights move and in training. "
        f"{size}. 95 % t intervals over seeds.",
        canvas,
    )


# ---- small things ----


def deviation_of(sharpness: float) -> float:
    """Of tanh(sharpness·z), z ~ N(0, 1)."""
    z = torch.linspace(-6, 6, 10001, dtype=torch.float64)
    return float(torch.tanh(sharpness * z).square() @ torch.softmax(-z.square() / 2, 0)) ** 0.5


def crossing(times: np.ndarray, curves: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The first time `[seed]` at which `curves[time, seed]` is at its level, by log-linear
    interpolation; every curve must get there.
    """
    found = []
    for curve, goal in zip(curves.T, level, strict=True):
        i = int((curve <= goal).argmax())
        part = (
            1.0
            if i == 0 or curve[i] == curve[i - 1]
            else np.log(curve[i - 1] / goal) / np.log(curve[i - 1] / curve[i])
        )
        found.append(times[i] if i == 0 else times[i - 1] + part * (times[i] - times[i - 1]))
    return np.array(found, dtype=float)


def at(moments: np.ndarray, times: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """`curves[time, seed]` at one moment a seed, `[seed]`, log-linear between times."""
    return np.array(
        [
            np.exp(np.interp(moment, times, np.log(curve)))
            for moment, curve in zip(moments, curves.T, strict=True)
        ]
    )


def catching_up(ratios: np.ndarray) -> np.ndarray:
    """Correlation over tasks and windows of log r_i with the next fall of log L̃_i, both about
    their mean over tasks, `[seed]`.
    """
    logs = np.log(ratios[1:])  # at the start all r_i are 1
    ahead, fall = logs[:-1], logs[:-1] - logs[1:]
    ahead, fall = ahead - ahead.mean(-1, keepdims=True), fall - fall.mean(-1, keepdims=True)
    return (ahead * fall).sum((0, 2)) / np.sqrt((ahead**2).sum((0, 2)) * (fall**2).sum((0, 2)))


def _norm(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts]).norm()


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}, low": interval.low, f"{name}, high": interval.high}


def _band(axis: Axes, times: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """Geometric mean over seeds of `[time, seed]` and its 95 % band."""
    logs = np.log(values)
    middle, half = logs.mean(1), half_width(logs)
    axis.plot(times, np.exp(middle), color=colour, label=label)
    axis.fill_between(
        times, np.exp(middle - half), np.exp(middle + half), color=colour, alpha=0.25, linewidth=0
    )


def _line(axis: Axes, values: np.ndarray, name: str, label: str) -> None:
    interval = mean_interval(values)
    axis.axhline(interval.mean, color=COLOUR[name], linestyle="--", label=label)
    axis.axhspan(interval.low, interval.high, color=COLOUR[name], alpha=0.15, linewidth=0)


def _bar(axis: Axes, interval: Interval, y: float) -> None:
    colour = "C0" if interval.high < 1 else "C1" if interval.low > 1 else "#777777"
    axis.errorbar(
        [interval.mean],
        [y],
        xerr=[[interval.mean - interval.low], [interval.high - interval.mean]],
        color=colour,
        marker="o",
    )


def _plain(axis: Any) -> None:
    """Ticks of a log axis as plain numbers, a few of each decade."""
    for setter in (axis.set_major_formatter, axis.set_minor_formatter):
        setter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1246" else "")
