"""GradNorm (Chen et al. 2018, section 4): regressions that differ in scale; equal, learnt and
static weights.

The tasks are f_i(x) = σ_i tanh((B + ε_i) x) with a common B and private ε_i; the metric is Σ_i
L_i(t)/L_i(0) on test data. The paper does not state the law of x, batch, optimizer, learning rates
or steps, and at its face value the argument of tanh has standard deviation 168, so that targets are
sign functions. `Problem`'s defaults are one reading; the other configurations show how far the
claims reach.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import METHOD_COLOURS, axes
from ..report.findings import Claim, Figure, Findings, Settings, verdict_of
from ..report.intervals import Interval, half_width, mean_interval, ratio_interval

PAPER = "GradNorm (Chen et al. 2018)"
ALPHA = 0.12
BATCH, TEST, HIDDEN, LAYERS = 100, 1000, 100, 4
COLOURS = {"equal": METHOD_COLOURS["mean"], "GradNorm": METHOD_COLOURS["GradNorm"], "static": "C4"}
INTERVAL = "95 % t intervals over seeds; ratios paired by seed (geometric mean)"

Method = Literal["weighted", "gradnorm"]
METHODS: dict[Method, str] = {"weighted": "equal", "gradnorm": "GradNorm"}


class Problem(NamedTuple):
    scales: tuple[float, ...] = (1.0, 100.0)  # σ
    inputs: int = 25
    outputs: int = 10
    # of x: N(0, I), U(0, 1) elementwise, uniform on the unit sphere
    law: Literal["normal", "uniform", "unit"] = "normal"
    # B ~ N(0, 10²), ε ~ N(0, 3.5²) as printed; else divided by the argument's standard deviation
    # under N(0, I)
    literal: bool = False
    optimizer: Literal["adam", "sgd"] = "adam"
    rates: tuple[float, ...] = (3e-4, 6e-4, 1e-3, 3e-3)
    steps: int = 2000


class Variants(NamedTuple):
    """Settings that are run side by side on every seed."""

    lr: Tensor  # [variant]
    alpha: Tensor  # [variant]
    weights: Tensor  # [variant, seed, task]; of method "weighted", any positive scale


class Runs(NamedTuple):
    """One method's runs; the first axis is time."""

    steps: np.ndarray  # [time] at which test losses were taken
    test: np.ndarray  # [time, variant, seed, task], L_i(t)/L_i(0)
    initial: np.ndarray  # [seed, task], L_i(0) on test data
    weights: np.ndarray  # [step, variant, seed, task], summing to T
    lengths: np.ndarray  # [step, variant, seed, task], ‖∇_W L_i‖; empty without a Gramian
    average: Tensor  # [variant, seed, task], the weights' average over time
    rates: list[float]  # [variant], learning rates

    def final(self) -> np.ndarray:
        """Σ_i L_i/L_i(0) at the end, `[variant, seed]`; infinite for diverged runs."""
        return np.nan_to_num(self.test[-1].sum(-1), nan=np.inf, posinf=np.inf)

    def best(self) -> int:
        """The variant of the smallest mean over seeds."""
        return int(self.final().mean(1).argmin())


def network(params: mf.types.Params, x: Tensor) -> Tensor:
    """Predictions `[task, sample, output]`: ReLU layers and an affine head a task."""
    for layer in range(LAYERS):
        x = F.linear(x, params[f"trunk.{layer}.weight"], params[f"trunk.{layer}.bias"]).relu()
    return torch.einsum("bh,toh->tbo", x, params["heads.weight"]) + params["heads.bias"][:, None]


def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared errors `[task]`."""
    x, y = batch
    return (network(params, x) - y).square().mean((1, 2))


def initial_params(key: Tensor, problem: Problem) -> mf.types.Params:
    """PyTorch's default for linear layers: U(-1, 1)/√fan_in."""
    widths = [problem.inputs] + [HIDDEN] * LAYERS
    count = len(problem.scales)
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    for layer in range(LAYERS):
        shapes[f"trunk.{layer}.weight"] = (HIDDEN, widths[layer]), widths[layer]
        shapes[f"trunk.{layer}.bias"] = (HIDDEN,), widths[layer]
    shapes["heads.weight"] = (count, problem.outputs, HIDDEN), HIDDEN
    shapes["heads.bias"] = (count, problem.outputs), HIDDEN
    return {
        name: (2 * mf.random.uniform(mf.random.fold_in(key, i), shape) - 1) * fan_in**-0.5
        for i, (name, (shape, fan_in)) in enumerate(shapes.items())
    }


def linear_maps(key: Tensor, problem: Problem) -> Tensor:
    """B + ε_i, `[task, output, input]`."""
    common = 10 * mf.random.normal(mf.random.fold_in(key, 0), (problem.outputs, problem.inputs))
    private = 3.5 * mf.random.normal(
        mf.random.fold_in(key, 1), (len(problem.scales), problem.outputs, problem.inputs)
    )
    return (common + private) / (
        1.0 if problem.literal else (problem.inputs * (10**2 + 3.5**2)) ** 0.5
    )


def sample(key: Tensor, maps: Tensor, problem: Problem, size: int) -> tuple[Tensor, Tensor]:
    """A batch: x `[sample, input]` and targets `[task, sample, output]`."""
    shape = (size, problem.inputs)
    x = mf.random.uniform(key, shape) if problem.law == "uniform" else mf.random.normal(key, shape)
    if problem.law == "unit":
        x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scales = torch.tensor(problem.scales, device=x.device)[:, None, None]
    return x, scales * torch.tanh(torch.einsum("bi,toi->tbo", x, maps))


def step_of(
    method: Method, problem: Problem, lr: Tensor, alpha: Tensor, weights: Tensor
) -> mf.Step:
    optimizer = mf.adam(lr) if problem.optimizer == "adam" else mf.sgd(lr)
    if method == "weighted":
        return mf.descend(losses, mf.mean(weights), optimizer, mf.losses_only(), reduction="sum")
    # heads="weighted" gives every parameter outside `shared` the gradient of the weighted loss, and
    # so does GradNorm to all of them: naming the measured layer alone as shared is
    # jacobian("trunk.*", measure="trunk.3.*", heads="weighted") without the rows of the other
    # layers.
    probe = mf.jacobian(f"trunk.{LAYERS - 1}.*", heads="weighted")
    return mf.descend(losses, mf.gradnorm(alpha), optimizer, probe, reduction="sum")


def train(
    method: Method, problem: Problem, variants: Variants, settings: Settings, label: str, seeds: int
) -> Runs:
    """All variants on all seeds as one program; seed s has the same start, data and batches in
    every variant and method.
    """
    device = settings.device
    roots = torch.arange(seeds, device=device)
    params = vmap(lambda root: initial_params(mf.random.fold_in(root, 0), problem))(roots)
    maps = vmap(lambda root: linear_maps(mf.random.fold_in(root, 1), problem))(roots)
    test = vmap(lambda root, m: sample(mf.random.fold_in(root, 2), m, problem, TEST))(roots, maps)
    batch_at = vmap(
        lambda root, m, t: sample(
            mf.random.fold_in(mf.random.fold_in(root, 3), t), m, problem, BATCH
        ),
        (0, 0, None),
    )

    def grid(f: Callable[..., Any], *axes: tuple[int | None, ...]) -> Callable[..., Any]:
        """Over variants, then seeds; `axes` are the in_dims of the two."""
        return vmap(vmap(f, axes[1]), axes[0])

    per_variant = (variants.lr, variants.alpha, variants.weights)
    start = grid(
        lambda lr, alpha, w, p, b: step_of(method, problem, lr, alpha, w).init(p, b),
        (0, 0, 0, None, None),
        (None, None, 0, 0, 0),
    )
    advance = grid(
        lambda lr, alpha, w, state, b: step_of(method, problem, lr, alpha, w).update(state, b),
        (0, 0, 0, 0, None),
        (None, None, 0, 0, 0),
    )
    evaluate = grid(losses, (0, None), (0, 0))

    first = batch_at(roots, maps, torch.zeros((), dtype=torch.int64, device=device))
    state = start(*per_variant, params, first)
    initial = vmap(losses)(params, test)
    count = settings.count(problem.steps)
    every = max(1, count // 25)
    times, tests, weights, lengths = [0], [torch.ones_like(variants.weights)], [], []
    for step in tqdm(range(count), desc=label, leave=False):
        state, info = advance(
            *per_variant,
            state,
            batch_at(roots, maps, torch.full((), step, dtype=torch.int64, device=device)),
        )
        weights.append(len(problem.scales) * info.weights)
        lengths.append(info.gramian.diagonal(dim1=-2, dim2=-1).sqrt())
        if (step + 1) % every == 0 or step + 1 == count:
            times.append(step + 1)
            tests.append(evaluate(state.params, test) / initial)
    trail, rates = torch.stack(weights), [float(f"{rate:.6g}") for rate in variants.lr.tolist()]
    return Runs(
        np.array(times),
        _numpy(torch.stack(tests)),
        _numpy(initial),
        _numpy(trail),
        _numpy(torch.stack(lengths)),
        trail.mean(0),
        rates,
    )


def variants_of(
    problem: Problem, seeds: int, settings: Settings, *, weights: Tensor | None = None
) -> Variants:
    """One variant a learning rate; equal weights unless given."""
    lr = torch.tensor(problem.rates, device=settings.device)
    ones = torch.ones(len(lr), seeds, len(problem.scales), device=settings.device)
    return Variants(lr, torch.full_like(lr, ALPHA), ones if weights is None else weights)


def run(settings: Settings) -> Findings:
    yield from exact_checks()
    problem = Problem()
    results: dict[str, Runs] = {}
    variants = variants_of(problem, settings.seeds, settings)
    results["equal"] = train(
        "weighted", problem, variants, settings, "equal weights", settings.seeds
    )
    yield from equal_weights(problem, results["equal"])
    results["GradNorm"] = train("gradnorm", problem, variants, settings, "GradNorm", settings.seeds)
    # Static weights are paired with the GradNorm run of their own learning rate; by default only
    # with its best one, to save a third of the time.
    best = results["GradNorm"].best()
    chosen = slice(None) if settings.full else slice(best, best + 1)
    static = Variants(
        variants.lr[chosen], variants.alpha[chosen], results["GradNorm"].average[chosen]
    )
    results["static"] = train(
        "weighted", problem, static, settings, "static weights", settings.seeds
    )
    yield curves(problem, results)
    yield weights_over_time(problem, results["GradNorm"])
    yield by_rate(problem, results)
    yield from learnt_weights(problem, results)
    yield from sweeps(problem, results, settings)
    yield from other_configurations(problem, results, settings)


# ---- what is exact ----


def exact_checks() -> Findings:
    """The library's step against the algorithm box written out with a double backward, in float64."""
    problem = Problem(scales=(1.0, 5.0, 2.0), inputs=6, outputs=3)
    root = mf.random.key(0)
    params = {
        name: leaf.double()
        for name, leaf in initial_params(mf.random.fold_in(root, 0), problem).items()
    }
    maps = linear_maps(mf.random.fold_in(root, 1), problem)
    drawn = [sample(mf.random.fold_in(root, 2 + t), maps, problem, 20) for t in range(30)]
    batches = [(x.double(), y.double()) for x, y in drawn]
    lr, weight_lr = 1e-2, 1e-3
    probe = mf.jacobian("trunk.*", measure=f"trunk.{LAYERS - 1}.*", heads="weighted")
    step = mf.descend(
        losses, mf.gradnorm(ALPHA, weight_lr, optimizer=mf.sgd), mf.sgd(lr), probe, reduction="sum"
    )
    state = step.init(params, batches[0])
    literal = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    w, initial = torch.ones(3, dtype=torch.float64), losses(params, batches[0])
    worst_params = worst_weights = worst_sum = 0.0
    for batch in batches:
        state, info = step.update(state, batch)
        worst_weights = max(worst_weights, float((3 * info.weights - w).abs().max()))
        worst_sum = max(worst_sum, abs(float(w.sum()) - 3))
        w.requires_grad_()
        now = losses(literal, batch)
        measured = [
            leaf for name, leaf in literal.items() if name.startswith(f"trunk.{LAYERS - 1}.")
        ]
        rows = [torch.autograd.grad(w[i] * now[i], measured, create_graph=True) for i in range(3)]
        norms = torch.stack([torch.cat([part.flatten() for part in row]).norm() for row in rows])
        rate = now.detach() / initial / (now.detach() / initial).mean()
        slope = torch.autograd.grad(
            (norms - (norms.mean() * rate**ALPHA).detach()).abs().sum(), w, retain_graph=True
        )[0]
        grads = torch.autograd.grad((w.detach() * now).sum(), list(literal.values()))
        literal = {
            name: (leaf - lr * grad).detach().requires_grad_()
            for (name, leaf), grad in zip(literal.items(), grads, strict=True)
        }
        w = w.detach() - weight_lr * slope
        w = 3 * w / w.sum()
        worst_params = max(
            worst_params,
            *(
                float((state.params[name] - leaf.detach()).abs().max())
                for name, leaf in literal.items()
            ),
        )
    measured_numbers = {
        "largest difference of weights": worst_weights,
        "largest difference of parameters": worst_params,
        "steps": len(batches),
    }
    same = worst_weights < 1e-9 and worst_params < 1e-9
    where = "three tasks, SGD on model and weights, float64; holds below 1e-9"
    yield Claim(
        "GN-13",
        PAPER,
        "L_grad = Σ|G_i - Ḡ r_i^α| with the target held constant; its slope in w_i is sign(G_i - "
        "target_i)‖∇_W L_i‖.",
        "holds" if same else "does not hold",
        measured_numbers,
        f"the closed form against autograd of the detached target; {where}",
    )
    yield Claim(
        "GN-16",
        PAPER,
        "The full loop: losses, G_i, Ḡ, r_i, L_grad, a step on w, a step on the network with the "
        "old weights, renormalisation.",
        "holds" if same else "does not hold",
        {**measured_numbers, "largest deviation of the sum of weights from T": worst_sum},
        f"the library's step against a literal loop with double backward; {where}",
    )


# ---- equal weights ----


def equal_weights(problem: Problem, runs: Runs) -> Findings:
    scaled = runs.initial / np.array(problem.scales) ** 2
    spread = ratio_interval(scaled[:, 0], scaled[:, 1])
    yield Claim(
        "GN-19",
        PAPER,
        "Tasks differ only in σ_i, so L_i(0)/σ_i² is the same for all and the sum of loss ratios "
        "is a fair metric.",
        "holds"
        if spread.low > 0.9 and spread.high < 1.1
        else "inconclusive"
        if 0.9 < spread.mean < 1.1
        else "does not hold",
        {
            "L_1(0)/σ_1², mean over seeds": scaled[:, 0].mean(),
            "L_2(0)/σ_2²": scaled[:, 1].mean(),
            **_named("their ratio", spread),
        },
        "σ = (1, 100), test data before training; holds if the ratio's interval lies within .9 "
        f"to 1.1; {INTERVAL}",
    )
    best = runs.best()
    final = runs.test[-1]
    ratio = ratio_interval(final[best, :, 0], final[best, :, 1])
    numbers = {"best learning rate": problem.rates[best], **_named("L̃_1/L̃_2 at the end", ratio)}
    numbers |= {f"L̃_{task + 1} at the end": float(final[best, :, task].mean()) for task in (0, 1)}
    yield Claim(
        "GN-17",
        PAPER,
        "With equal weights the large-scale, large-gradient task dominates: the small one is "
        "left behind.",
        verdict_of([ratio.low > 1], [ratio.high < 1]),
        numbers,
        "equal weights at their best learning rate; L̃_i = L_i/L_i(0); holds if the interval of "
        f"L̃_1/L̃_2 is above 1; {INTERVAL}",
    )


# ---- figures of the default configuration ----


def curves(problem: Problem, results: dict[str, Runs]) -> Figure:
    canvas, panels = axes(1, 3, (13, 4.2))
    for axis, name in zip(
        panels, ("Σ L_i/L_i(0)", "L_1/L_1(0), σ = 1", "L_2/L_2(0), σ = 100"), strict=True
    ):
        for method, runs in results.items():
            best = runs.best()
            values = (
                runs.test[:, best].sum(-1)
                if name[0] == "Σ"
                else runs.test[:, best, :, int(name[2]) - 1]
            )
            _band(axis, runs.steps, values, COLOURS[method], f"{method}, Adam {runs.rates[best]:g}")
        axis.set(xlabel="step", ylabel=f"test loss {name}", yscale="log")
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1246" else "")
    panels[0].legend(frameon=False)
    return Figure(
        "curves",
        "Test losses in units of their initial values, each method at its own best learning "
        "rate; mean and 95 % band "
        f"over {results['equal'].test.shape[2]} seeds. "
        "Static weights are GradNorm's average over time, seed by seed.",
        canvas,
    )


def weights_over_time(problem: Problem, runs: Runs) -> Figure:
    best = runs.best()
    steps = np.arange(1, len(runs.weights) + 1)
    weights, lengths = runs.weights[:, best], runs.weights[:, best] * runs.lengths[:, best]
    canvas, panels = axes(1, 3, (13, 4.2))
    for task, colour in enumerate(("C0", "C1")):
        label = f"task {task + 1}, σ = {problem.scales[task]:g}"
        _band(panels[0], steps, weights[:, :, task], colour, label)
        _band(panels[1], steps, lengths[:, :, task], colour, label)
        ratio = runs.test[:, best]
        _band(panels[2], runs.steps, ratio[:, :, task] / ratio.mean(-1), colour, label)
    panels[0].set(xlabel="step", ylabel="weight w_i (they sum to 2)", yscale="log")
    panels[1].set(xlabel="step", ylabel="G_i = w_i‖∇_W L_i‖", yscale="log")
    panels[2].set(xlabel="step", ylabel="relative inverse rate r_i (test data)")
    panels[0].legend(frameon=False)
    return Figure(
        "weights",
        f"GradNorm at Adam {problem.rates[best]:g}, α = {ALPHA}: weights, gradient lengths at "
        "the last "
        "shared layer, relative inverse training rates; mean and 95 % band over seeds.",
        canvas,
    )


def by_rate(problem: Problem, results: dict[str, Runs]) -> Figure:
    canvas, panels = axes(1, 2, (11, 4.2))
    offsets = dict(zip(results, (0.94, 1.0, 1.06), strict=True))
    for method, runs in results.items():
        final, at = runs.final(), np.array(runs.rates) * offsets[method]
        style = {"color": COLOURS[method], "marker": "o", "capsize": 3}
        panels[0].errorbar(at, final.mean(1), half_width(final), label=method, **style)
        if method != "equal":
            equal = results["equal"]
            ratios = [
                ratio_interval(final[i], equal.final()[equal.rates.index(rate)])
                for i, rate in enumerate(runs.rates)
            ]
            middle = np.array([r.mean for r in ratios])
            bars = np.array([[r.mean - r.low, r.high - r.mean] for r in ratios]).T
            panels[1].errorbar(at, middle, bars, label=f"{method} / equal", **style)
    panels[1].axhline(1, color="#999999", linewidth=1)
    for axis, label in zip(
        panels,
        ("Σ L_i/L_i(0) on test data at the end", "ratio at the same learning rate"),
        strict=True,
    ):
        axis.set(xlabel="Adam's learning rate", ylabel=label, xscale="log")
        axis.set_xticks(problem.rates, [f"{rate:g}" for rate in problem.rates])
        axis.minorticks_off()
        axis.legend(frameon=False)
    return Figure(
        "rates",
        "The learning rate beside the weighting: final normalised test loss by rate and method. "
        f"{INTERVAL}.",
        canvas,
    )


# ---- claims about the default configuration ----


def learnt_weights(problem: Problem, results: dict[str, Runs]) -> Findings:
    runs = results["GradNorm"]
    best = runs.best()
    average = _numpy(runs.average)[best]
    separation = average[:, 0] / average[:, 1]
    trail = runs.weights[:, best, :, 0]
    wander = mean_interval(np.abs(np.diff(trail, axis=0)).sum(0) / np.ptp(trail, axis=0))
    apart, smooth = bool((separation > 5).all()), wander.high < 2
    yield Claim(
        "GN-20",
        PAPER,
        "From equal weights w_1 rises far above w_2; the curves separate early and stay smooth.",
        "holds" if apart and smooth else "holds only when" if apart else "does not hold",
        {
            "average w_1": float(average[:, 0].mean()),
            "average w_2": float(average[:, 1].mean()),
            "smallest w_1/w_2 of a seed": float(separation.min()),
            **_named("path length of w_1 over its range", wander),
        },
        f"α = {ALPHA}, Adam {problem.rates[best]:g}; separated if the averages' ratio is above 5 "
        "in every seed, "
        "smooth if w_1's path is shorter than twice its "
        f"range{'' if smooth else ': they separate, but chatter'}; {INTERVAL}",
    )
    both = {name: np.log(result.test[1:, result.best()]) for name, result in results.items()}
    unequal = {
        name: np.exp(np.abs(values[..., 0] - values[..., 1]).mean(0))
        for name, values in both.items()
    }
    spread = ratio_interval(unequal["GradNorm"], unequal["equal"])
    yield Claim(
        "GN-04",
        PAPER,
        "Balance means that all tasks train at similar rates.",
        verdict_of([spread.high < 1], [spread.low > 1]),
        {
            "spread, equal weights": float(unequal["equal"].mean()),
            "spread, GradNorm": float(unequal["GradNorm"].mean()),
            **_named("their ratio", spread),
        },
        "spread: larger over smaller L̃_i, geometric mean over the run, each method at its best "
        f"learning rate; holds if GradNorm's is smaller; {INTERVAL}",
    )
    sums = np.abs(runs.weights.sum(-1) - len(problem.scales)).max()
    yield Claim(
        "GN-15",
        PAPER,
        "After each update the weights are rescaled to sum to T.",
        "holds" if sums < 1e-4 else "does not hold",
        {"largest deviation from T": float(sums), "smallest weight": float(runs.weights.min())},
        "every step, seed and learning rate, float32; weights stay positive through the floor of "
        "the library's rule",
    )


def sweeps(problem: Problem, results: dict[str, Runs], settings: Settings) -> Findings:
    """α, and a grid of static weights, at GradNorm's best learning rate and a quarter of the steps
    and seeds.
    """
    seeds = few(settings)
    device = settings.device
    problem = problem._replace(
        rates=(problem.rates[results["GradNorm"].best()],),
        steps=problem.steps if settings.full else problem.steps // 4,
    )
    alphas = torch.tensor([0.0, ALPHA, 0.5, 1.0, 2.0], device=device)
    lr = torch.full_like(alphas, problem.rates[0])
    learnt = train(
        "gradnorm",
        problem,
        Variants(lr, alphas, torch.ones(len(alphas), seeds, 2, device=device)),
        settings,
        "sweep of α",
        seeds,
    )
    second = torch.tensor([1.0, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4], device=device)
    fixed = torch.stack([2 - second, second], -1)[:, None].expand(-1, seeds, -1)
    average = learnt.average[1:2]
    static = train(
        "weighted",
        problem,
        Variants(
            lr[:1].expand(len(second) + 1),
            lr[:1].expand(len(second) + 1),
            torch.cat([fixed, average]),
        ),
        settings,
        "grid of static weights",
        seeds,
    )
    final, grid = learnt.final(), static.final()
    # [alpha, seed], the large task's weight in the last quarter
    last = learnt.weights[-len(learnt.weights) // 4 :, ..., 1].mean(0)
    canvas, panels = axes(1, 3, (13, 4.2))
    names = [f"{alpha:g}" for alpha in alphas.tolist()]
    panels[0].errorbar(
        names, final.mean(1), half_width(final), color=COLOURS["GradNorm"], marker="o", capsize=3
    )
    panels[0].set(xlabel="α", ylabel="Σ L_i/L_i(0) on test data at the end", ylim=(0, None))
    panels[1].errorbar(
        names, last.mean(1), half_width(last), color=COLOURS["GradNorm"], marker="o", capsize=3
    )
    panels[1].set(xlabel="α", ylabel="w_2, last quarter of the run", ylim=(0, None))
    panels[2].errorbar(
        second.tolist(),
        grid[:-1].mean(1),
        half_width(grid[:-1]),
        color=COLOURS["static"],
        marker="o",
        capsize=3,
        label="static grid",
    )
    panels[2].errorbar(
        [float(average[..., 1].mean())],
        [grid[-1].mean()],
        [half_width(grid[-1])],
        color="#000000",
        marker="s",
        capsize=3,
        label="GradNorm's average",
    )
    panels[2].axhline(
        final[1].mean(), color=COLOURS["GradNorm"], linestyle="--", label=f"GradNorm, α = {ALPHA}"
    )
    panels[2].set(
        xlabel="static weight w_2 (w_1 = 2 - w_2)",
        ylabel="Σ L_i/L_i(0) on test data at the end",
        xscale="log",
        ylim=(0, None),
    )
    panels[2].legend(frameon=False)
    setting = f"Adam {problem.rates[0]:g}, {settings.count(problem.steps)} steps, {seeds} seeds"
    yield Figure("sweeps", f"Sweep of α and grid of static weights; {setting}. {INTERVAL}.", canvas)

    halves = learnt.weights * learnt.lengths
    halves = halves[len(halves) // 2 :]
    # [alpha, seed]
    unequal = np.exp(np.median(np.abs(np.log(halves[..., 0]) - np.log(halves[..., 1])), axis=0))
    plain = learnt.lengths[0, 0]
    changes = [ratio_interval(last[i + 1], last[i]) for i in range(len(alphas) - 1)]
    near, ordered = mean_interval(unequal[1]).high < 1.5, all(change.high < 1 for change in changes)
    falls = ratio_interval(last[-1], last[0])
    yield Claim(
        "GN-05",
        PAPER,
        "Acting on gradient lengths balances them, and α controls the dynamics: the final "
        "weights move monotonically with it.",
        "holds" if near and ordered else "holds only when" if near or ordered else "does not hold",
        {
            "larger over smaller length, unweighted, at the start": float(
                np.mean(plain[:, 1] / plain[:, 0])
            ),
            **_named(f"larger over smaller G_i, α = {ALPHA}", mean_interval(unequal[1])),
            **{
                f"w_2 at α = {name}": float(value)
                for name, value in zip(names, last.mean(1), strict=True)
            },
            **_named("w_2 at α = 2 over α = 0", falls),
        },
        f"{setting}; lengths balanced if their ratio (median of the second half) is below 1.5: "
        f"{_yes(near)}; "
        f"w_2 falls with every step of α: {_yes(ordered)}; {INTERVAL}",
    )
    rates = learnt.test[1:]
    spread = np.exp(np.abs(np.log(rates[..., 0]) - np.log(rates[..., 1])).mean(0))
    effect = ratio_interval(spread[-1], spread[0])
    loss = ratio_interval(final[-1], final[0])
    yield Claim(
        "GN-12",
        PAPER,
        "Different α give different degrees of balance (that unequal tasks want a larger α is "
        "not run).",
        verdict_of([effect.high < 1], [effect.low > 1]),
        {
            **{
                f"spread of L̃ at α = {name}": float(value)
                for name, value in zip(names, spread.mean(1), strict=True)
            },
            **_named("spread at α = 2 over α = 0", effect),
            **_named("final loss at α = 2 over α = 0", loss),
        },
        f"{setting}; holds if the spread of L̃ is smaller at α = 2 than at 0; {INTERVAL}",
    )
    top = int(grid[:-1].mean(1).argmin())
    near_grid, against = ratio_interval(grid[-1], grid[top]), ratio_interval(final[1], grid[top])
    default = results["GradNorm"].final(), results["static"].final()
    dynamic = ratio_interval(
        default[1][results["static"].best()], default[0][results["GradNorm"].best()]
    )
    yield Claim(
        "GN-22",
        PAPER,
        "Static weights set to GradNorm's time average nearly match a grid search over static "
        "weights.",
        "holds"
        if near_grid.high < 1.1
        else "does not hold"
        if near_grid.low > 1.1
        else "inconclusive",
        {
            "best w_2 of the grid": float(second[top]),
            "final loss at the grid's best": float(grid[top].mean()),
            **_named("static average over the grid's best", near_grid),
            **_named("GradNorm over the grid's best", against),
            **_named("default configuration: static over GradNorm, each at its best rate", dynamic),
        },
        f"{setting}, one learning rate; nearly: the ratio's interval is below 1.1; the grid's "
        f"best is chosen on the same test data; {INTERVAL}",
    )


# ---- how far it reaches ----


def other_configurations(
    problem: Problem, results: dict[str, Runs], settings: Settings
) -> Findings:
    comparisons = {"default: Adam, x ~ N(0, I)": compare(results["equal"], results["GradNorm"])}
    rates = {
        f"default at Adam {rate:g}": ratio_interval(
            results["GradNorm"].final()[i], results["equal"].final()[i]
        )
        for i, rate in enumerate(problem.rates)
    }
    short = problem if settings.full else problem._replace(steps=problem.steps // 4)
    others = {
        "SGD": short._replace(optimizer="sgd", rates=(1e-5, 1e-4, 1e-3, 1e-2)),
        "x ~ U(0, 1)": short._replace(law="uniform"),
    }
    if settings.full:
        others |= {
            "x on the unit sphere": problem._replace(law="unit"),
            "250 inputs, 100 outputs": problem._replace(inputs=250, outputs=100),
            "250/100, literal scale": problem._replace(inputs=250, outputs=100, literal=True),
            "250/100, literal scale, 8,000 steps": problem._replace(
                inputs=250, outputs=100, literal=True, steps=8000
            ),
            "ten tasks": problem._replace(
                scales=(48.0, 3.0, 54.0, 16.0, 9.0, 30.0, 52.0, 26.0, 47.0, 81.0)
            ),
        }
    seeds = settings.seeds if settings.full else few(settings)
    for name, other in others.items():
        variants = variants_of(other, seeds, settings)
        runs = [
            train(method, other, variants, settings, f"{label}: {name}", seeds)
            for method, label in METHODS.items()
        ]
        comparisons[name] = compare(*runs)
    yield reach(comparisons, rates)
    yield reduction(problem, comparisons, rates, settings, seeds)
    if "ten tasks" in comparisons:
        ten, two = comparisons["ten tasks"].ratio, comparisons["default: Adam, x ~ N(0, I)"].ratio
        yield Claim(
            "GN-23",
            PAPER,
            "Ten tasks also gain from GradNorm.",
            verdict_of([ten.high < 1], [ten.low > 1]),
            _named("GradNorm over equal", ten),
            f"ten scales from 3 to 81, each method at its best learning rate; {INTERVAL}",
        )
        yield Claim(
            "GN-24",
            PAPER,
            "The benefit grows with the number of tasks.",
            verdict_of([ten.high < two.low], [ten.low > two.high]),
            {**_named("ratio at T = 2", two), **_named("ratio at T = 10", ten)},
            "T = 2 and 10, other scales, each method at its best learning rate; holds if the "
            f"intervals are apart in that order; {INTERVAL}",
        )


class Comparison(NamedTuple):
    ratio: Interval  # GradNorm over equal, each at its best learning rate
    of_means: float  # the same as a ratio of means over seeds
    equal_rate: float
    gradnorm_rate: float


def compare(equal: Runs, gradnorm: Runs) -> Comparison:
    a, b = gradnorm.final()[gradnorm.best()], equal.final()[equal.best()]
    return Comparison(
        ratio_interval(a, b),
        float(a.mean() / b.mean()),
        equal.rates[equal.best()],
        gradnorm.rates[gradnorm.best()],
    )


def reach(comparisons: dict[str, Comparison], rates: dict[str, Interval]) -> Figure:
    rows = list(rates.items()) + [
        (f"{name}\nbest rates: equal {c.equal_rate:g}, GradNorm {c.gradnorm_rate:g}", c.ratio)
        for name, c in comparisons.items()
    ]
    canvas, axis = axes(1, 1, (9, 0.6 * len(rows) + 1.2))
    for y, (_, ratio) in enumerate(reversed(rows)):
        colour = "C0" if ratio.high < 1 else "C1" if ratio.low > 1 else "#777777"
        axis[0].errorbar(
            [ratio.mean],
            [y],
            xerr=[[ratio.mean - ratio.low], [ratio.high - ratio.mean]],
            color=colour,
            marker="o",
            capsize=3,
        )
    axis[0].axvline(1, color="#999999", linewidth=1)
    axis[0].set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axis[0].set(
        xlabel="final normalised test loss, GradNorm / equal weights\n(below 1: GradNorm is "
        "better)",
        xscale="log",
    )
    axis[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis[0].xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    return Figure(
        "configurations",
        f"Where GradNorm's gain holds and where it stops. {INTERVAL}. Blue: the interval is "
        "below 1; vermillion: above; grey: it contains 1.",
        canvas,
    )


def reduction(
    problem: Problem,
    comparisons: dict[str, Comparison],
    rates: dict[str, Interval],
    settings: Settings,
    seeds: int,
) -> Claim:
    named = {name: c.ratio for name, c in comparisons.items()} | rates
    holds = [f"{name} ({ratio.mean:.3g})" for name, ratio in named.items() if ratio.high < 1]
    fails = [f"{name} ({ratio.mean:.3g})" for name, ratio in named.items() if ratio.high >= 1]
    numbers: dict[str, float] = {}
    for name, c in comparisons.items():
        numbers |= {**_named(name, c.ratio), f"{name}: ratio of means": c.of_means}
        numbers |= {
            f"{name}: best rate, equal": c.equal_rate,
            f"{name}: best rate, GradNorm": c.gradnorm_rate,
        }
    for name, ratio in rates.items():
        numbers |= _named(name, ratio)
    return Claim(
        "GN-21",
        PAPER,
        "Balanced by GradNorm the tasks reach a lower normalised test error than with equal "
        "weights.",
        verdict_of(
            [ratio.high < 1 for ratio in named.values()],
            [ratio.low > 1 for ratio in named.values()],
        ),
        numbers,
        "ratios GradNorm/equal, each method at its own best learning rate of a common grid "
        "unless a rate is named; below 1 with its interval: "
        f"{'; '.join(holds) or 'none'}. Not: {'; '.join(fails) or 'none'}. Default "
        f"{settings.count(problem.steps)} steps, {settings.seeds} seeds; "
        f"other configurations {seeds} "
        f"seeds{'' if settings.full else ', a quarter of the steps'}. {INTERVAL}",
    )


# ---- small things ----


def few(settings: Settings) -> int:
    return max(2, settings.seeds // 4)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}, low": interval.low, f"{name}, high": interval.high}


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _band(axis: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """Mean over seeds `[time, seed]` and its 95 % band, on the log scale where all are positive."""
    logs = np.log(values)
    middle, half = logs.mean(1), half_width(logs)
    axis.plot(steps, np.exp(middle), color=colour, label=label)
    axis.fill_between(
        steps, np.exp(middle - half), np.exp(middle + half), color=colour, alpha=0.25, linewidth=0
    )
