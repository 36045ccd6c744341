"""GradNorm's regressions that differ in scale (Chen et al. 2018, section 4), and their training.

The tasks are f_i(x) = σ_i tanh((B + ε_i) x) with a common B and private ε_i; the metric is
Σ_i L_i(t)/L_i(0) on test data. The paper does not state the law of x, batch, optimizer, learning
rates or steps, and at its face value the argument of tanh has standard deviation 168, so that
targets are sign functions. `Problem`'s defaults are one reading, at the paper's size."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common import adam
from common.device import constant, replayed

from ..report.figures import METHOD_COLOURS
from ..report.findings import Settings
from ..report.grids import Best, at_best
from ..report.parts import kept

ALPHA = 0.12
UNTRAINED = 0.9  # of the first losses: a method that ends above it has learnt nothing
TEST, LAYERS, MOMENTS = 500, 4, 10
LAST = f"trunk.{LAYERS - 1}."  # the measured layer's parameters
TWO = (1.0, 100.0)  # σ
TEN = (48.0, 3.0, 54.0, 16.0, 9.0, 30.0, 52.0, 26.0, 47.0, 81.0)
RATE = 1e-3
"""The one learning rate, fixed beforehand: Adam's own default (Kingma & Ba 2015)."""
OWN_RATE = 0.025
"""Adam's rate of GradNorm's weights, of which the paper states none here."""
COLOURS = {"equal": METHOD_COLOURS["mean"], "GradNorm": METHOD_COLOURS["GradNorm"], "static": "C4"}
INTERVAL = "95 % t intervals over seeds; ratios paired by seed (geometric mean)"
Method = Literal["weighted", "gradnorm"]
METHODS: dict[str, Method] = {"equal": "weighted", "GradNorm": "gradnorm"}
Batch = tuple[Tensor, Tensor]


class Problem(NamedTuple):
    """Tasks, data and how they are trained on."""

    scales: tuple[float, ...] = TWO
    inputs: int = 250
    outputs: int = 100
    width: int = 100
    # B ~ N(0, 10²), ε ~ N(0, 3.5²) as printed; else divided by the argument's standard deviation
    # under N(0, I)
    literal: bool = False
    rates: tuple[float, ...] = (RATE, 3e-3, 1e-2)  # of Adam
    steps: int = 1000
    batch: int = 100
    # squared errors of f_i, or σ_i times the cross entropy of its largest output's index
    kind: Literal["regression", "classification"] = "regression"

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
        """The variant of the smallest mean over seeds: for figures."""
        return int(self.final().mean(1).argmin())

    def picked(self) -> Best:
        """Of every seed the variant that is best on the other half of them."""
        return at_best(self.final(), self.rates)

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

    def learns_nothing(self) -> bool:
        """Whether the judged test losses are above those of an untrained network."""
        return float(self.picked().scores.mean()) >= self.test.shape[-1]

    def untrained(self) -> bool:
        """Whether every task's L_i/L_i(0) ends above nine tenths. Not their mean: a task that
        another one dominates ends above its first loss.
        """
        ends = self.test[-1, self.picked().choice, np.arange(self.test.shape[2])]
        return bool((ends.mean(0) > UNTRAINED).all())

    def settles_nothing(self) -> bool:
        return self.picked().edge or self.untrained()


def outputs_of(params: mf.types.Params, x: Tensor) -> list[Tensor]:
    """ReLU layers with an affine head a task. A tensor a task rather than a stack of them: so each
    is differentiated through its own head, in half of the time at T = 10.
    """
    for layer in range(LAYERS):
        x = F.linear(x, params[f"trunk.{layer}.weight"], params[f"trunk.{layer}.bias"]).relu()
    heads = zip(params["heads.weight"], params["heads.bias"], strict=True)
    return [F.linear(x, weight, bias) for weight, bias in heads]


def losses_of(params: mf.types.Params, batch: Batch) -> list[Tensor]:
    """Mean squared errors."""
    found = zip(outputs_of(params, batch[0]), batch[1], strict=True)
    return [(output - target).square().mean() for output, target in found]


def entropies_of(params: mf.types.Params, batch: Batch) -> list[Tensor]:
    """Cross entropies with targets `[task, sample, class]`: σ_i for the right class, else 0."""
    found = zip(outputs_of(params, batch[0]), batch[1], strict=True)
    return [-(torch.log_softmax(z, -1) * target).sum(-1).mean() for z, target in found]


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    """Mean squared errors `[task]`."""
    return torch.stack(losses_of(params, batch))


def initial_params(key: Tensor, problem: Problem) -> mf.types.Params:
    """PyTorch's default for linear layers: U(-1, 1)/√fan_in."""
    fan_ins = [problem.inputs] + [problem.width] * LAYERS
    outputs = [(problem.width,)] * LAYERS + [(len(problem.scales), problem.outputs)]
    names = [f"trunk.{layer}" for layer in range(LAYERS)] + ["heads"]
    found = {}
    for i, (name, shape, fan_in) in enumerate(zip(names, outputs, fan_ins, strict=True)):
        for j, (leaf, size) in enumerate((("weight", (*shape, fan_in)), ("bias", shape))):
            u = mf.random.uniform(mf.random.fold_in(key, 2 * i + j), size)
            found[f"{name}.{leaf}"] = (2 * u - 1) * fan_in**-0.5
    return found


def linear_maps(key: Tensor, problem: Problem) -> Tensor:
    """B + ε_i, `[task, output, input]`."""
    common = 10 * mf.random.normal(mf.random.fold_in(key, 0), (problem.outputs, problem.inputs))
    private = 3.5 * mf.random.normal(
        mf.random.fold_in(key, 1), (len(problem.scales), problem.outputs, problem.inputs)
    )
    return (common + private) / (
        1.0 if problem.literal else (problem.inputs * (10**2 + 3.5**2)) ** 0.5
    )


def sample(key: Tensor, maps: Tensor, problem: Problem, size: int) -> Batch:
    """A batch: x `[sample, input]` and targets `[task, sample, output]`."""
    return answered(mf.random.normal(key, (size, problem.inputs)), maps, problem)


def answered(x: Tensor, maps: Tensor, problem: Problem) -> Batch:
    """The batch of those inputs."""
    scales = constant(problem.scales, x)[:, None, None]
    z = torch.einsum("bi,toi->tbo", x, maps)
    if problem.kind == "classification":
        return x, scales * (z == z.amax(-1, keepdim=True))
    return x, scales * torch.tanh(z)


def normals(roots: Tensor, stream: int, number: int | Tensor, *shape: int) -> Tensor:
    """Of every seed, `[seed, *shape]`."""
    at = torch.as_tensor(number, device=roots.device)

    def of_root(root: Tensor) -> Tensor:
        return mf.random.normal(mf.random.fold_in(mf.random.fold_in(root, stream), at), shape)

    if at.is_cpu:  # a key that can be read has a kernel, of the same bits
        return torch.stack([of_root(root) for root in roots])
    return vmap(of_root)(roots)


def step_of(
    method: Method,
    lr: Tensor,
    alpha: Tensor,
    weights: Tensor,
    each: Callable[[mf.types.Params, Batch], list[Tensor]] = losses_of,
    optimizer: mf.Optimizer | None = None,
) -> mf.Step:
    """A step of Adam, or of another optimizer, on the weighted sum of the losses."""
    if method == "weighted":
        rule, probe = mf.mean(preference=weights), mf.losses_only()
    else:
        rule, probe = mf.gradnorm(alpha, OWN_RATE), mf.jacobian(f"{LAST}*")
    return mf.descend(each, rule, probe, optimizer or mf.adam(lr), reduction="sum")


@kept
def train(
    method: Method, problem: Problem, variants: Variants, settings: Settings, label: str, seeds: int
) -> Runs:
    """All variants on all seeds, which have the same start, data and batches in each and method."""
    device = settings.device
    roots = torch.arange(seeds, device=device)
    params = vmap(lambda root: initial_params(mf.random.fold_in(root, 0), problem))(roots)
    maps = vmap(lambda root: linear_maps(mf.random.fold_in(root, 1), problem))(roots)
    test = vmap(lambda root, m: sample(mf.random.fold_in(root, 2), m, problem, TEST))(roots, maps)
    each = losses_of if problem.kind == "regression" else entropies_of

    def batch_at(number: Tensor) -> Batch:
        x = normals(roots, 3, number, problem.batch, problem.inputs)
        return vmap(lambda x, m: answered(x, m, problem))(x, maps)

    def all_losses(params: mf.types.Params, batch: Batch) -> Tensor:
        return torch.stack(each(params, batch))

    def of(variant: tuple[Tensor, Tensor, Tensor]) -> mf.Step:
        return step_of(method, *variant, each, adam.gradients)

    # over variants, and in each over seeds; a batch is drawn in the same graph
    every_one, outer, inner = tuple(variants), (0, 0, 0), (None, None, 0)
    start = vmap(vmap(lambda one, p, b: of(one).init(p, b), (inner, 0, 0)), (outer, None, None))
    advance = vmap(
        vmap(lambda one, state, b: of(one).update(state, b), (inner, 0, 0)), (outer, 0, None)
    )
    move = replayed(
        adam.of_lanes(variants.lr, lambda state, at: advance(every_one, state, batch_at(at)))
    )
    evaluate = vmap(vmap(all_losses), (0, None))

    state = start(every_one, params, batch_at(torch.zeros((), dtype=torch.int64, device=device)))
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
        state, info = move(state, number)
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


def variants_of(problem: Problem, seeds: int, settings: Settings) -> Variants:
    """One variant a learning rate, of equal weights."""
    lr = torch.tensor(problem.rates, device=settings.device)
    ones = torch.ones(len(lr), seeds, len(problem.scales), device=settings.device)
    return Variants(lr, torch.full_like(lr, ALPHA), ones)


def few(settings: Settings) -> int:
    return max(2, settings.seeds // 4)


def three_tasks(steps: int) -> tuple[mf.types.Params, list[Batch]]:
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
