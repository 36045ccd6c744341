"""One run as a pure function, and all seeds and settings of a method in one vmapped program."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from common.problems.digits import Digits
from common.progress import Progress
from mtlfunc.types import Geometry, Params, State

from .data import COUNT, TARGET, Part, task

BATCH = 32  # images of each domain a step
EVERY = 20  # steps between two measurements
RATES = (1e-3, 3e-3, 1e-2)
TUNING = tuple(range(1000, 1004))
"""Seeds that choose rate and setting, by the error on validation images; they are in no result."""
_skeleton = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class Batch(NamedTuple):
    seen: Part
    weights: Float[Tensor, "row image"]


def errors(params: Params, part: Part) -> Tensor:
    """Cross-entropies [image], in nats."""
    return F.cross_entropy(
        functional_call(_skeleton, params, (part.images,)), part.labels, reduction="none"
    )


def wrong(params: Params, part: Part) -> Tensor:
    """The share of wrong answers."""
    answers = functional_call(_skeleton, params, (part.images,)).argmax(-1)
    return (answers != part.labels).float().mean()


def by_image(params: Params, batch: Batch) -> Tensor:
    return errors(params, batch.seen)


def by_row(params: Params, batch: Batch) -> Tensor:
    return batch.weights @ errors(params, batch.seen)


def rows(count: int) -> Tensor:
    """A [row, image]: row k is the mean over the k-th of `rows` equal parts of the batch."""
    return torch.eye(count).repeat_interleave(COUNT * BATCH // count, 1) * (count / (COUNT * BATCH))


def pike(up: Tensor, down: Tensor) -> mf.Rule:
    """PiKE (Li et al. 2025): w ← softmax(log w + ζ₁‖∇L‖² - ½ζ₂ σ²/b) by domain, without a target.
    Every domain has two rows, of halves of its images: their product is an unbiased ‖∇L‖², and half
    the square of their difference is σ² over the number of images in a half.
    """

    def init(losses: Tensor, key: Tensor) -> State:
        return (torch.zeros_like(losses[::2]),)

    def update(geometry: Geometry, state: Any) -> tuple[Tensor, State]:
        assert geometry.gramian is not None
        parts = geometry.gramian.unflatten(0, (-1, 2)).unflatten(2, (-1, 2))
        own = parts.diagonal(dim1=0, dim2=2)  # [half, half, domain]
        variance = 0.5 * (own[0, 0] + own[1, 1]) - own[0, 1]
        logits = torch.log_softmax(state[0] + up * own[0, 1] - 0.5 * down * (0.5 * variance), 0)
        return 0.5 * logits.exp().repeat_interleave(2), (logits,)

    return mf.Rule(init, update, frozenset({"gramian"}))


Setting = tuple[float, ...]


class Method(NamedTuple):
    """How the domains are weighed; settings to choose from, one `[setting]` a run."""

    rule: Callable[[Tensor], mf.Rule]
    settings: tuple[Setting, ...]
    tasks: int = COUNT  # rows of the weightings
    probe: mf.Probe | None = None  # None weighs losses and measures nothing
    target: bool = False  # trains on the target's images instead
    aimed: bool = False  # its last row is the mean over the target's images


def mixtures(parts: int) -> tuple[Setting, ...]:
    """All static weights of the domains that are multiples of 1/parts."""
    every = itertools.product(range(parts + 1), repeat=COUNT)
    return tuple(tuple(k / parts for k in each) for each in every if sum(each) == parts)


def methods(*, quick: bool = False) -> dict[str, Method]:
    def static(weights: Tensor) -> mf.Rule:
        return mf.mean(preference=weights)

    plain = mf.jacobian(weightings=lambda batch: batch.weights)
    etas = tuple((eta,) for eta in ((0.1, 0.3) if quick else (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)))
    ups = (0.1,) if quick else (0.001, 0.01, 0.1)
    return {
        "uniform": Method(static, ((1 / COUNT,) * COUNT,)),
        "oracle": Method(static, mixtures(4)),
        "target alone": Method(static, ((1.0,) * COUNT,), target=True),
        "align": Method(lambda h: mf.align(h[0]), etas, probe=plain, aimed=True),
        "PiKE": Method(
            lambda h: pike(h[0], h[1]),
            tuple((up, share * up) for up in ups for share in (0.0, 1.0)),
            tasks=2 * COUNT,
            probe=plain,
        ),
    }


class Run(NamedTuple):
    validation: Tensor  # share of wrong answers, at the end
    test: Float[Tensor, " measurement"]  # the same, and along the run
    weights: Float[Tensor, "measurement domain"]


def train(
    params: Params, seed: Tensor, lr: Tensor, setting: Float[Tensor, " setting"], source: Digits, *,
    problem: str, method: Method, steps: int, tick: Callable[[int], None],
) -> Run:  # fmt: skip
    """One run: a pure function of parameters, seed, rate and setting; any may be batched."""
    data, matrix = task(problem, source, seed), rows(method.tasks)
    if method.aimed:
        matrix = torch.block_diag(matrix, torch.ones(1, TARGET) / TARGET)
    weighed = method.probe is not None
    step = mf.descend(
        by_image if weighed else by_row, method.rule(setting), method.probe or mf.losses_only(),
        mf.adam(lr),
    )  # fmt: skip

    def batch(number: int) -> Batch:
        drawn = mf.random.uniform(mf.random.fold_in(seed, 10 + number), (COUNT, BATCH))
        if method.target:
            index = (drawn.flatten() * TARGET).long()
            return Batch(Part(*(x[index] for x in data.target)), matrix)
        index = (drawn * data.domains.labels.shape[1]).long()
        images = torch.take_along_dim(data.domains.images, index[..., None], 1)
        labels = torch.take_along_dim(data.domains.labels, index, 1)
        seen = Part(images.flatten(0, 1), labels.flatten())
        if method.aimed:
            seen = Part(*map(torch.cat, zip(seen, data.target, strict=True)))
        return Batch(seen, matrix)

    state = step.init(params, batch(0))
    test, weights = [], []
    for number in range(steps):
        state, info = step.update(state, batch(number))
        if number % EVERY == EVERY - 1 or number == steps - 1:
            test.append(wrong(state.params, data.test))
            weights.append(info.weights[: method.tasks].unflatten(0, (COUNT, -1)).sum(1))
        tick(1)
    return Run(wrong(state.params, data.validation), torch.stack(test), torch.stack(weights))


def runs(
    problem: str, method: Method, seeds: Sequence[int], settings: Sequence[tuple[float, Setting]],
    source: Digits, steps: int, tick: Callable[[int], None],
) -> Run:  # fmt: skip
    """Every seed with every (rate, setting), in one program: leaves [seed, setting, …]."""
    with torch.random.fork_rng(devices=[]):
        nets = []
        for seed in seeds:
            torch.manual_seed(seed)
            nets.append(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))

    def one(params: Params, seed: Tensor, lr: Tensor, setting: Tensor) -> Run:
        own, common = (params, seed, lr, setting), {"problem": problem, "method": method}
        return train(*own, source, steps=steps, tick=tick, **common)

    rates = torch.tensor([rate for rate, _ in settings])
    chosen = torch.tensor([setting for _, setting in settings])
    every = vmap(vmap(one, (None, None, 0, 0)), (0, 0, None, None))
    return every(mf.stack(nets), torch.tensor(seeds), rates, chosen)


class Choice(NamedTuple):
    """A rate and a setting, with the share of wrong answers on validation images by both."""

    rate: float
    setting: tuple[float, ...]
    validation: list[float]


class Outcome(NamedTuple):
    """A finished method; plain numbers, ready for JSON."""

    test: list[list[float]]  # [seed][measurement]
    weights: list[list[list[float]]]  # [seed][measurement][domain]

    @property
    def error(self) -> list[float]:
        """Per cent of wrong answers at the end, one a seed."""
        return [100 * curve[-1] for curve in self.test]


def choose(problem: str, name: str, method: Method, source: Digits, steps: int) -> Choice:
    """The best of all rates and settings on seeds that are in no result."""
    every = list(itertools.product(RATES, method.settings))
    with Progress(steps, f"{problem}, choosing for {name}", "steps") as progress:
        found = runs(problem, method, TUNING, every, source, steps, progress.update)
    scores = found.validation.mean(0)
    rate, setting = every[int(scores.argmin())]
    return Choice(rate, setting, scores.tolist())


def study(
    problem: str, name: str, method: Method, choice: Choice, source: Digits, seeds: Sequence[int],
    steps: int,
) -> Outcome:  # fmt: skip
    """All seeds at the rate and the setting that were chosen."""
    chosen = [(choice.rate, choice.setting)]
    with Progress(steps, f"{problem}, {name}", "steps") as progress:
        found = runs(problem, method, seeds, chosen, source, steps, progress.update)
    return Outcome(found.test[:, 0].tolist(), found.weights[:, 0].tolist())
