"""GradNorm's regressions that differ in scale (Chen et al. 2018, section 4), and their training.

The tasks are f_i(x) = σ_i tanh((B + ε_i) x) with a common B and private ε_i; the metric is
Σ_i L_i(t)/L_i(0) on test data. The paper does not state the law of x, batch, optimizer, learning
rates or steps, and at its face value the argument of tanh has standard deviation 168, so that
targets are sign functions. `Problem`'s defaults are one reading, at the paper's size; the other
configurations show how far the claims reach."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import constant, replayed

from ..report.figures import METHOD_COLOURS
from ..report.findings import Settings
from ..report.grids import at_edge, chosen, judged
from ..report.parts import kept

ALPHA = 0.12
UNTRAINED = 0.9  # of the first losses: a method that ends above it has learnt nothing
TEST, LAYERS, MOMENTS = 500, 4, 10
TWO = (1.0, 100.0)  # σ
TEN = (48.0, 3.0, 54.0, 16.0, 9.0, 30.0, 52.0, 26.0, 47.0, 81.0)
RATE = 1e-3
"""The one learning rate, fixed beforehand: Adam's own default (Kingma & Ba 2015)."""
COLOURS = {"equal": METHOD_COLOURS["mean"], "GradNorm": METHOD_COLOURS["GradNorm"], "static": "C4"}
INTERVAL = "95 % t intervals over seeds; ratios paired by seed (geometric mean)"
Method = Literal["weighted", "gradnorm"]
METHODS: dict[Method, str] = {"weighted": "equal", "gradnorm": "GradNorm"}


class Problem(NamedTuple):
    """Tasks, data and how they are trained on."""

    scales: tuple[float, ...] = TWO
    inputs: int = 250
    outputs: int = 100
    width: int = 100
    # of x: N(0, I), U(0, 1) elementwise, uniform on the unit sphere
    law: Literal["normal", "uniform", "unit"] = "normal"
    # B ~ N(0, 10²), ε ~ N(0, 3.5²) as printed; else divided by the argument's standard deviation
    # under N(0, I)
    literal: bool = False
    optimizer: Literal["adam", "sgd"] = "adam"
    rates: tuple[float, ...] = (RATE, 3e-3, 1e-2)
    steps: int = 1000
    batch: int = 100
    # squared errors of f_i, or σ_i times the cross entropy of its largest output's index
    kind: Literal["regression", "classification"] = "regression"
    own: float = 0.025  # Adam's rate of GradNorm's weights, of which the paper states none here

    def __str__(self) -> str:
        return (
            f"{self.inputs} inputs, {self.outputs} outputs, width {self.width}, batches of "
            f"{self.batch}"
        )


REDUCED = Problem(inputs=25, outputs=10, width=64, steps=500, batch=50)
"""A tenth of the paper's inputs and outputs, for sweeps."""


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
        """The variant of the smallest mean over seeds: for figures, and to go on from."""
        return int(self.final().mean(1).argmin())

    def choice(self) -> np.ndarray:
        """The variant of every seed, `[seed]`, best on the other half of them."""
        return chosen(self.final())

    def judged(self) -> np.ndarray:
        """Σ_i L_i/L_i(0) at the end in the variants chosen, `[seed]`."""
        return judged(self.final(), self.choice())

    def judged_rates(self) -> list[float]:
        """The learning rates of the even and of the odd seeds, as judged."""
        return [self.rates[int(i)] for i in self.choice()[:2]]

    def of(self, values: np.ndarray) -> np.ndarray:
        """`values[time, variant, seed, ...]` of the variants chosen, `[time, seed, ...]`."""
        return values[:, self.choice(), np.arange(values.shape[2])]

    def at(self, rate: float) -> "Runs":
        """The variants of one learning rate."""
        kept = [i for i, one in enumerate(self.rates) if one == rate]
        return self._replace(
            test=self.test[:, kept],
            weights=self.weights[:, kept],
            lengths=self.lengths[:, kept],
            average=self.average[kept],
            rates=[rate] * len(kept),
        )

    def until(self, step: int) -> "Runs":
        """Test losses up to a step."""
        sooner = self.steps <= step
        return self._replace(steps=self.steps[sooner], test=self.test[sooner])

    def at_edge(self) -> bool:
        """Whether the best variant is at the edge of its grid."""
        return at_edge(self.choice(), len(self.rates))

    def learns_nothing(self) -> bool:
        """Whether the judged test losses are above those of an untrained network."""
        return float(self.judged().mean()) >= self.test.shape[-1]

    def untrained(self) -> bool:
        """Whether every task's L_i/L_i(0) ends above nine tenths. Not their mean: a task that
        another one dominates ends above its first loss.
        """
        return bool((self.of(self.test)[-1].mean(0) > UNTRAINED).all())

    def settles_nothing(self) -> bool:
        return self.at_edge() or self.untrained()


def losses_of(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Mean squared errors of ReLU layers with an affine head a task. A scalar a task rather than a
    stack of them: so each is differentiated through its own head, not through all of them at once,
    in half of the time at T = 10.
    """
    x, y = batch
    for layer in range(LAYERS):
        x = F.linear(x, params[f"trunk.{layer}.weight"], params[f"trunk.{layer}.bias"]).relu()
    heads = zip(params["heads.weight"], params["heads.bias"], y, strict=True)
    return [(F.linear(x, weight, bias) - target).square().mean() for weight, bias, target in heads]


def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The same as a tensor `[task]`."""
    return torch.stack(losses_of(params, batch))


def entropies_of(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Cross entropies with targets `[task, sample, class]`: σ_i for the right class, else 0."""
    x, y = batch
    for layer in range(LAYERS):
        x = F.linear(x, params[f"trunk.{layer}.weight"], params[f"trunk.{layer}.bias"]).relu()
    heads = zip(params["heads.weight"], params["heads.bias"], y, strict=True)
    return [
        -(torch.log_softmax(F.linear(x, weight, bias), -1) * target).sum(-1).mean()
        for weight, bias, target in heads
    ]


def initial_params(key: Tensor, problem: Problem) -> mf.types.Params:
    """PyTorch's default for linear layers: U(-1, 1)/√fan_in."""
    widths = [problem.inputs] + [problem.width] * LAYERS
    count = len(problem.scales)
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    for layer in range(LAYERS):
        shapes[f"trunk.{layer}.weight"] = (problem.width, widths[layer]), widths[layer]
        shapes[f"trunk.{layer}.bias"] = (problem.width,), widths[layer]
    shapes["heads.weight"] = (count, problem.outputs, problem.width), problem.width
    shapes["heads.bias"] = (count, problem.outputs), problem.width
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
    return answered(drawn(key, problem, size), maps, problem)


def drawn(key: Tensor, problem: Problem, size: int) -> Tensor:
    """Numbers by the law of x, `[sample, input]`."""
    shape = (size, problem.inputs)
    return (
        mf.random.uniform(key, shape) if problem.law == "uniform" else mf.random.normal(key, shape)
    )


def answered(x: Tensor, maps: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """The batch of those numbers."""
    if problem.law == "unit":
        x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scales = constant(problem.scales, x)[:, None, None]
    z = torch.einsum("bi,toi->tbo", x, maps)
    if problem.kind == "classification":
        return x, scales * (z == z.amax(-1, keepdim=True))
    return x, scales * torch.tanh(z)


def batches(
    roots: Tensor, maps: Tensor, problem: Problem
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """From the number of a step to its batch, one a seed."""

    def inputs_at(root: Tensor, number: Tensor) -> Tensor:
        key = mf.random.fold_in(mf.random.fold_in(root, 3), number)
        return drawn(key, problem, problem.batch)

    def batch_at(number: Tensor) -> tuple[Tensor, Tensor]:
        if roots.is_cpu:  # a key that can be read has a kernel, of the same bits
            x = torch.stack([inputs_at(root, number) for root in roots])
        else:
            x = vmap(inputs_at, (0, None))(roots, number)
        return vmap(lambda x, m: answered(x, m, problem))(x, maps)

    return batch_at


def step_of(
    method: Method, problem: Problem, lr: Tensor, alpha: Tensor, weights: Tensor
) -> mf.Step:
    optimizer = mf.adam(lr) if problem.optimizer == "adam" else mf.sgd(lr)
    each = losses_of if problem.kind == "regression" else entropies_of
    if method == "weighted":
        rule, probe = mf.mean(preference=weights), mf.losses_only()
        return mf.descend(each, rule, probe, optimizer, reduction="sum")
    # heads="weighted" gives every parameter outside `shared` the gradient of the weighted loss, and
    # so does GradNorm to all of them: the measured layer alone is shared.
    probe = mf.jacobian(f"trunk.{LAYERS - 1}.*", heads="weighted")
    return mf.descend(each, mf.gradnorm(alpha, problem.own), probe, optimizer, reduction="sum")


@kept
def train(
    method: Method, problem: Problem, variants: Variants, settings: Settings, label: str, seeds: int
) -> Runs:
    """All variants on all seeds as one program. Seed s has the same start, data and batches in
    every variant and method.
    """
    device = settings.device
    roots = torch.arange(seeds, device=device)
    params = vmap(lambda root: initial_params(mf.random.fold_in(root, 0), problem))(roots)
    maps = vmap(lambda root: linear_maps(mf.random.fold_in(root, 1), problem))(roots)
    test = vmap(lambda root, m: sample(mf.random.fold_in(root, 2), m, problem, TEST))(roots, maps)
    batch_at = batches(roots, maps, problem)

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
    # on a batch of its own, drawn in the same graph
    move = replayed(lambda state, number, *variant: advance(*variant, state, batch_at(number)))
    each = losses_of if problem.kind == "regression" else entropies_of

    def all_losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack(each(params, batch))

    evaluate = grid(all_losses, (0, None), (0, 0))

    first = batch_at(torch.zeros((), dtype=torch.int64, device=device))
    state = start(*per_variant, params, first)
    initial = vmap(all_losses)(params, test)
    count = settings.count(problem.steps)
    every = max(1, count // MOMENTS)
    times, tests = [0], [torch.ones_like(variants.weights)]
    # Written in place: small tensors that stay, one per step, would be put where large ones were
    # freed, and those would never find room again.
    weights = torch.empty(count, *variants.weights.shape, device=device)
    measured = len(problem.scales) if method == "gradnorm" else 0
    lengths = weights.new_empty(*weights.shape[:-1], measured)
    for step in tqdm(range(count), desc=label, leave=False):
        number = torch.full((), step, dtype=torch.int64, device=device)
        state, info = move(state, number, *per_variant)
        weights[step] = info.weights
        lengths[step] = info.gramian.diagonal(dim1=-2, dim2=-1).sqrt()
        if (step + 1) % every == 0 or step + 1 == count:
            times.append(step + 1)
            tests.append(evaluate(state.params, test) / initial)
    rates = [float(f"{rate:.6g}") for rate in variants.lr.tolist()]
    return Runs(
        np.array(times),
        numpy_of(torch.stack(tests)),
        numpy_of(initial),
        numpy_of(weights),
        numpy_of(lengths),
        weights.mean(0),
        rates,
    )


def variants_of(
    problem: Problem, seeds: int, settings: Settings, *, weights: Tensor | None = None
) -> Variants:
    """One variant a learning rate; equal weights unless given."""
    lr = torch.tensor(problem.rates, device=settings.device)
    ones = torch.ones(len(lr), seeds, len(problem.scales), device=settings.device)
    return Variants(lr, torch.full_like(lr, ALPHA), ones if weights is None else weights)


def few(settings: Settings) -> int:
    return max(2, settings.seeds // 4)


def three_tasks(steps: int) -> tuple[mf.types.Params, list[tuple[Tensor, Tensor]]]:
    """A small problem in float64, for literal loops: its start and a batch a step."""
    problem, root = Problem(scales=(1.0, 5.0, 2.0), inputs=6, outputs=3), mf.random.key(0)
    params = initial_params(mf.random.fold_in(root, 0), problem)
    maps = linear_maps(mf.random.fold_in(root, 1), problem)
    drawn = [sample(mf.random.fold_in(root, 2 + t), maps, problem, 20) for t in range(steps)]
    batches = [(x.double(), y.double()) for x, y in drawn]
    return {name: leaf.double() for name, leaf in params.items()}, batches


def numpy_of(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def norm_of(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts]).norm()
