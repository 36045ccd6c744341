"""GradNorm's rivals as lanes of one program: other weights, scales, difficulties, data.

The regressions are those of `common`, by default with a tenth of the inputs and outputs and a third
of the width. Settings of the problem and of the method are lanes like the seeds. A method's best
setting is chosen on one half of the seeds and judged on the other, so that many settings do not win
by chance."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.findings import Settings
from ..report.grids import at_edge, chosen, spelled
from ..report.parts import kept
from .common import (
    ALPHA,
    COLOURS,
    LAYERS,
    TWO,
    UNTRAINED,
    Problem,
    initial_params,
    linear_maps,
    losses,
    losses_of,
)

LAST = f"trunk.{LAYERS - 1}."
MILD = (1.0, 10.0)  # σ
TEST = 200
EVERY_ALPHA = (0.0, ALPHA, 0.5, 1.0, 2.0)
TEN_ALPHAS = EVERY_ALPHA[:-1]
STRONG_ALPHA = 0.5
STRONG = f"GradNorm, {STRONG_ALPHA:g}"
SECOND = (1e-2, 1e-3, 1e-4, 1e-5)  # the static grid's w_2/w_1 next to 1
RECIPROCAL = (TWO[0] / TWO[1]) ** 2  # w_2/w_1 of weights 1/L_i(0): tasks differ in scale alone
RATIOS = (1.0, 10.0, 100.0)  # σ_2/σ_1
# the hard task's factor inside tanh; its label noise in units of its targets' deviation
SHARPER, NOISE = 6.0, 2.0
CHUNKS = 4  # batches in the finite training set
WINDOWS = 16
PAIRED = (
    "95 % t intervals over seeds, ratios paired by seed; settings chosen on the other half "
    "of the seeds"
)
EQUAL, FIXED, SEARCH, TRIED = "equal", "1/L_i(0)", "random weights", "tried"
COLOUR = {
    EQUAL: COLOURS["equal"],
    "GradNorm": COLOURS["GradNorm"],
    "normalised": "C5",
    FIXED: COLOURS["static"],
    SEARCH: "C3",
}
Method = Literal["weighted", "gradnorm", "normalised", "trunk"]


class Size(NamedTuple):
    """Of networks, batches, runs and grids of learning rates."""

    width: int
    batch: int
    steps: int
    seeds: int
    # Adam's learning rates, one grid for every method at T = 2, where the best differ by decades;
    # without its ends where tasks are less unequal, and at T = 10 without the smallest
    two: tuple[float, ...]
    ten: tuple[float, ...]
    inputs: int = 25
    outputs: int = 10

    @property
    def draws(self) -> int:
        """Of the random search at T = 10: as many as GradNorm has runs there."""
        return len(TEN_ALPHAS) * len(self.ten)

    def problem(self, scales: tuple[float, ...]) -> Problem:
        """Regressions of this size; learning rates and steps are the lanes' own."""
        return Problem(scales, self.inputs, self.outputs, self.width, batch=self.batch)

    def __str__(self) -> str:
        return f"{self.problem(TWO)}, {self.steps} Adam steps, {self.seeds} seeds"


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
    train: np.ndarray  # [time, lane, seed, task], the same on the finite training set; else NaN
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
        """For every seed, `[seed]`, the lane of that name that is best on the other seeds.

        That is, on the other half of them, in the mean.
        """
        return np.array(self.named(name))[chosen(self.final(name))]

    def settles_nothing(self, name: str) -> bool:
        """Whether its best rate or α is at the edge of its grid, or it learns nothing.

        Of α the upper edge: none is below 0.
        """
        lanes, picked = self.named(name), self.picked(name)
        rates = sorted({self.lanes[i].lr for i in lanes})
        alphas = {self.lanes[i].alpha for i in lanes}
        largest = len(alphas) > 1 and any(self.lanes[i].alpha == max(alphas) for i in picked)
        edge = largest or at_edge([rates.index(self.lanes[i].lr) for i in picked], len(rates))
        return edge or bool(self.judged(name).mean() > UNTRAINED)

    def judged_alpha(self, name: str) -> np.ndarray:
        """The best α of every seed, `[seed]`, each at its best rate on the other half of them."""
        alphas = sorted({self.lanes[i].alpha for i in self.named(name)})
        ends = np.stack([self.judged(f"{name}, {alpha:g}") for alpha in alphas])
        return np.array(alphas)[ends.argmin(0)]

    def of(self, values: np.ndarray, name: str) -> np.ndarray:
        """`values[time, lane, seed, ...]` of the picked lanes, `[time, seed, ...]`."""
        return values[:, self.picked(name), np.arange(values.shape[2])]

    def judged(self, name: str) -> np.ndarray:
        """Mean over tasks of L_i/L_i(0) at the end in the picked lanes, `[seed]`."""
        return np.nan_to_num(self.of(self.test, name)[-1].mean(-1), nan=np.inf, posinf=np.inf)

    def rates(self, name: str) -> str:
        """The learning rates of the picked lanes."""
        return spelled(self.lanes[i].lr for i in self.picked(name))

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
            (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
            (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
            inputs=250,
            outputs=100,
        )
    return Size(
        32,
        32,
        settings.count(400),
        max(min(settings.seeds, 4), 3 * settings.seeds // 4),
        (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    )


def step_of(method: Method, lr: Tensor, alpha: Tensor, weights: Tensor) -> mf.Step:
    if method == "weighted":
        rule, probe = mf.mean(preference=weights), mf.losses_only()
        return mf.descend(losses_of, rule, probe, mf.adam(lr), reduction="sum")
    rule = mf.gradnorm(alpha, normalize_targets=method == "normalised")
    return mf.descend(
        losses_of,
        rule,
        mf.jacobian("trunk.*" if method == "trunk" else f"{LAST}*", heads="weighted"),
        mf.adam(lr),
        reduction="sum",
    )


def lengths_of(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """‖∇_W L_i‖ `[task]`."""
    return mf.task_gramian(losses_of, params, batch, shared=f"{LAST}*")[1].diagonal().sqrt()


class Options(NamedTuple):
    """Lanes as tensors, `[lane]` or `[lane, task]`."""

    lr: Tensor
    alpha: Tensor
    weights: Tensor
    scales: Tensor
    sharpness: Tensor
    noise: Tensor
    finite: Tensor

    def targets(self, z: Tensor) -> Tensor:
        """Of one lane, at the arguments `[task, sample, output]` of its tanh."""
        return self.scales[:, None, None] * torch.tanh(self.sharpness[:, None, None] * z)

    def batch(self, drawn: Any) -> tuple[Tensor, Tensor]:
        """Of one lane and seed: fresh, or of the finite training set."""
        (x, z), (pool_x, pool_z), error = drawn
        y = self.targets(torch.where(self.finite, pool_z, z))
        return torch.where(self.finite, pool_x, x), y + self.noise[:, None, None] * error


def options_of(lanes: Sequence[Lane], device: torch.device) -> Options:
    tasks = len(lanes[0].scales)
    ones, zeros = (1.0,) * tasks, (0.0,) * tasks
    rows = zip(
        *(
            (
                lane.lr,
                lane.alpha,
                lane.weights or ones,
                lane.scales,
                lane.sharpness or ones,
                lane.noise or zeros,
                lane.finite,
            )
            for lane in lanes
        ),
        strict=True,
    )
    return Options(*(torch.tensor(row, device=device) for row in rows))


class Samples:
    """Starts and data of every seed, the same in every lane and method."""

    def __init__(self, tasks: int, size: Size, device: torch.device, *, noisy: bool) -> None:
        self.tasks, self.size, self.noisy = tasks, size, noisy
        self.roots = torch.arange(size.seeds, device=device)
        self.problem = size.problem((1.0,) * tasks)
        maps = vmap(lambda root: linear_maps(mf.random.fold_in(root, 1), self.problem))
        self.maps = maps(self.roots)
        self.pool = [self.mapped(4, i, size.batch) for i in range(CHUNKS)]

    def starts(self) -> mf.types.Params:
        """Parameters `[seed, ...]`."""

        def start(root: Tensor) -> mf.types.Params:
            return initial_params(mf.random.fold_in(root, 0), self.problem)

        return vmap(start)(self.roots)

    def normals(self, stream: int, number: int, *shape: int) -> Tensor:
        """Of every seed, `[seed, *shape]`."""
        at = torch.full((), number, device=self.roots.device)
        fold_in = mf.random.fold_in
        return vmap(lambda root: mf.random.normal(fold_in(fold_in(root, stream), at), shape))(
            self.roots
        )

    def mapped(self, stream: int, number: int, count: int) -> tuple[Tensor, Tensor]:
        """Inputs, and the arguments of tanh."""
        x = self.normals(stream, number, count, self.size.inputs)
        return x, torch.einsum("sbi,stoi->stbo", x, self.maps)

    def held_out(self) -> tuple[Any, Any]:
        """Test data, and the whole finite training set."""
        seen = torch.cat([x for x, _ in self.pool], 1), torch.cat([z for _, z in self.pool], 2)
        return self.mapped(2, 0, TEST), seen

    def batch(self, step: int) -> Any:
        """What every lane makes its batch of."""
        shape = (self.tasks, self.size.batch, self.size.outputs)
        if self.noisy:
            error = self.normals(5, step, *shape)
        else:
            error = torch.zeros(len(self.roots), *shape, device=self.roots.device)
        return self.mapped(3, step, self.size.batch), self.pool[step % CHUNKS], error


def losses_on(option: Options, params: mf.types.Params, data: Any) -> Tensor:
    """Of one lane and seed, on test data or on the whole finite training set."""
    x, z = data
    return losses(params, (x, option.targets(z)))


def evaluate(option: Options, params: mf.types.Params, test: Any) -> tuple[Tensor, Tensor]:
    """Test losses and gradient lengths of one lane and seed."""
    x, z = test
    few = x[:50], option.targets(z[:, :50])
    return losses_on(option, params, test), lengths_of(params, few)


@kept
def train(
    method: Method, lanes: Sequence[Lane], size: Size, settings: Settings, label: str
) -> Trace:
    """All lanes on all seeds as one program.

    Seed s has the same start, x and maps in every lane and method. Lanes that differ in nothing but
    their name are run once.
    """
    alike = [lane._replace(name="") for lane in lanes]
    apart = list(dict.fromkeys(alike))
    index = [apart.index(lane) for lane in alike]
    tasks, options = len(lanes[0].scales), options_of(apart, settings.device)
    samples = Samples(tasks, size, settings.device, noisy=any(lane.noise for lane in lanes))

    def step(option: Options) -> mf.Step:
        return step_of(method, option.lr, option.alpha, option.weights)

    def advance(option: Options, state: mf.TrainState, drawn: Any) -> Any:
        following, info = step(option).update(state, option.batch(drawn))
        if method == "weighted":
            return following, info.weights, info.losses[:0]
        length = tasks * info.weights * info.gramian.diagonal().sqrt()
        ratio = info.losses / state.balance.rule.initial
        target = (ratio / ratio.mean()) ** option.alpha
        target = target / target.mean() if method == "normalised" else target
        return following, info.weights, (length / length.mean() - target).abs().sum()[None]

    first = vmap(
        vmap(lambda option, p, d: step(option).init(p, option.batch(d)), (None, 0, 0)),
        (0, None, None),
    )
    move = vmap(vmap(advance, (None, 0, 0)), (0, 0, None))
    look = vmap(vmap(evaluate, (None, 0, 0)), (0, 0, None))
    state, (test, seen) = first(options, samples.starts(), samples.batch(0)), samples.held_out()
    finite = options.finite.nonzero().flatten()

    def measure() -> tuple[Tensor, Tensor, Tensor]:
        """Test losses, losses on the training set where it is finite, and gradient lengths."""
        out, length = look(options, state.params, test)
        known = torch.full_like(out, torch.nan)
        if len(finite):
            some = Options(*(leaf[finite] for leaf in options))
            params = {name: leaf[finite] for name, leaf in state.params.items()}
            known[finite] = vmap(vmap(losses_on, (None, 0, 0)), (0, 0, None))(some, params, seen)
        return out, known, length

    begin = measure()
    one = torch.ones_like(begin[0])
    moments = {round(size.steps * i / WINDOWS) for i in range(1, WINDOWS + 1)}
    # written in place, as in `common.train`
    excess = one.new_empty(*one.shape[:2], size.steps if method != "weighted" else 0)
    times, record = [0], [(one, begin[1] / begin[1], begin[2], one)]
    for number in tqdm(range(size.steps), desc=label, leave=False):
        state, used, left = move(options, state, samples.batch(number))
        excess[..., number : number + 1] = left
        if number + 1 in moments:
            out, known, length = measure()
            times.append(number + 1)
            record.append((out / begin[0], known / begin[1], length, tasks * used))
    tests, trains, lengths, used = (
        torch.stack(part)[:, index].double().cpu().numpy() for part in zip(*record, strict=True)
    )
    left = excess[index].double().cpu().numpy()
    return Trace(lanes, np.array(times), tests, trains, lengths, used, left)
