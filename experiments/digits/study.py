"""One run as a pure function, and all seeds and learning rates of a rule in one vmapped program."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from experiments.common.progress import Progress
from mtlfunc import Probe, Rule
from mtlfunc.types import Params

from .data import OFFSET, Digits, Pairs, splits

TASKS = ("left", "right")
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)  # one grid for every rule
BATCH = 128
MEASURE_EVERY = 8  # steps between two measurements of the common Gramian
WIDTH, REPRESENTATION = 64, 32


class Net(nn.Module):
    """A fully connected trunk and one linear head a task."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        # nn.Linear draws from the global generator: leave it as it was
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(
                nn.Linear((8 + OFFSET) ** 2, WIDTH),
                nn.ReLU(),
                nn.Linear(WIDTH, REPRESENTATION),
                nn.ReLU(),
            )
            self.left = nn.Linear(REPRESENTATION, 10)
            self.right = nn.Linear(REPRESENTATION, 10)


_skeleton = Net(0)  # functional_call takes the architecture from it, never the values


def encode(params: Params, batch: Pairs) -> Float[Tensor, "pair feature"]:
    """The shared representation."""
    return functional_call(_skeleton.trunk, _part(params, "trunk."), (batch.canvases,))


def logits(
    params: Params, z: Float[Tensor, "pair feature"]
) -> tuple[Float[Tensor, "pair digit"], Float[Tensor, "pair digit"]]:
    left = functional_call(_skeleton.left, _part(params, "left."), (z,))
    right = functional_call(_skeleton.right, _part(params, "right."), (z,))
    return left, right


def decode(params: Params, z: Float[Tensor, "pair feature"], batch: Pairs) -> tuple[Tensor, Tensor]:
    """Cross-entropies of the two digits, in nats."""
    left, right = logits(params, z)
    return F.cross_entropy(left, batch.labels[:, 0]), F.cross_entropy(right, batch.labels[:, 1])


def losses(params: Params, batch: Pairs) -> tuple[Tensor, Tensor]:
    return decode(params, encode(params, batch), batch)


def accuracy(params: Params, pairs: Pairs) -> Float[Tensor, "2"]:
    """Share of right answers, left and right."""
    answers = torch.stack([head.argmax(-1) for head in logits(params, encode(params, pairs))], -1)
    return (answers == pairs.labels).to(torch.float32).mean(0)


def _part(params: Params, prefix: str) -> Params:
    return {
        name.removeprefix(prefix): leaf for name, leaf in params.items() if name.startswith(prefix)
    }


class Method(NamedTuple):
    """A probe, a rule, and the tasks that are learnt."""

    probe: Probe
    rule: Rule
    tasks: tuple[str, ...] = TASKS


def baselines(device: torch.device | str = "cpu") -> dict[str, Method]:
    """One task alone: all weight on its loss, so that the other's head is never trained."""
    weight = dict(zip(TASKS, torch.eye(len(TASKS), device=device), strict=True))
    return {
        f"{task} alone": Method(mf.losses_only(), mf.mean(preference=weight[task]), (task,))
        for task in TASKS
    }


def methods() -> dict[str, Method]:
    """The rules to choose from, each with the probe that its paper measures with."""
    trunk = "trunk.*"
    return {
        "mean": Method(mf.losses_only(), mf.mean()),
        "gradnorm": Method(
            mf.jacobian(trunk, measure="trunk.2.*", heads="weighted"), mf.gradnorm(alpha=0.12)
        ),
        "mgda": Method(mf.jacobian(trunk), mf.mgda()),
        "mgda-ub": Method(mf.representation(encode, decode, shared=trunk), mf.mgda()),
        "pcgrad": Method(mf.jacobian(trunk), mf.pcgrad()),
        "cagrad": Method(mf.jacobian(trunk), mf.cagrad(c=0.4)),
        "cagrad-fast": Method(mf.jacobian(trunk, mix=mf.subset(2)), mf.cagrad(c=0.4)),
    }


class Run(NamedTuple):
    """What one training run leaves behind."""

    params: Params
    validation: Float[Tensor, "epoch 2"]  # accuracy after every epoch
    # g_left·g_right < 0 over the trunk, on the batch that the step is about to use
    conflict: Bool[Tensor, " measurement"]


def train(
    params: Params,
    seed: Int[Tensor, ""],
    lr: Float[Tensor, ""],
    training: Pairs,
    validation: Pairs,
    *,
    method: Method,
    epochs: int,
    around: Callable[[], Any] = nullcontext,
) -> Run:
    """One run: a pure function of parameters, seed, rate and data, any of which may be batched.

    Args:
        params: at the start.
        seed: of the order of the batches and of the rule.
        lr: learning rate of Adam.
        training: the pairs that are learnt.
        validation: the pairs on which accuracy is measured after every epoch.
        method: probe, rule and tasks.
        epochs: passes over the training pairs.
        around: called once per step for a context manager that the step runs in; `study` passes a
            stopwatch.
    """
    step = mf.descend(losses, method.rule, method.probe, mf.adam(lr))
    order_key, rule_key = mf.random.fold_in(seed, 10), mf.random.fold_in(seed, 11)
    state = step.init(
        params, _take(training, torch.arange(BATCH, device=seed.device)), key=rule_key
    )
    count = len(training.labels)
    curve, conflict = [], []
    for epoch in range(epochs):
        order = mf.random.permutation(mf.random.fold_in(order_key, epoch), count)
        for i in range(count // BATCH):
            batch = _take(training, order[i * BATCH : (i + 1) * BATCH])
            if (epoch * (count // BATCH) + i) % MEASURE_EVERY == 0:
                _, gramian = mf.task_gramian(losses, state.params, batch, shared="trunk.*")
                conflict.append(mf.diagnostics.negative_products(gramian)[0, 1])
            with around():
                state, _ = step.update(state, batch)
        curve.append(accuracy(state.params, validation))
    return Run(state.params, torch.stack(curve), torch.stack(conflict))


def _take(pairs: Pairs, index: Int[Tensor, " pair"]) -> Pairs:
    return Pairs(*(leaf.index_select(0, index) for leaf in pairs))


class Outcome(NamedTuple):
    """A finished study of one rule; plain numbers, ready for JSON."""

    rates: list[float]
    best: int  # index of the chosen learning rate
    # validation accuracy after the last epoch by learning rate: mean over learnt tasks and seeds
    grid: list[float]
    test: dict[str, list[float]]  # by learnt task, one entry a seed, at the chosen rate
    # validation accuracy at the chosen rate, mean over the learnt tasks: [seed][epoch]
    curve: list[list[float]]
    # share of measurements with g_left·g_right < 0 at the chosen rate, by seed; None for one task
    conflict: list[float] | None
    conflict_grid: list[float] | None  # by learning rate: mean over the seeds
    step_ms: float  # median wall time of one vmapped step, all seeds and rates together
    steps: int


def study(
    name: str,
    method: Method,
    source: Digits,
    seeds: Sequence[int],
    epochs: int,
    rates: tuple[float, ...] = RATES,
) -> Outcome:
    """Train every seed at every rate, choose the rate on validation data, then measure on test.

    Args:
        name: shown next to the progress bar.
        method: probe, rule and tasks.
        source: all single digits.
        seeds: of the runs.
        epochs: passes over the training pairs.
        rates: learning rates to choose from.
    """
    device, dtype = source.images.device, source.images.dtype
    keys = torch.tensor(seeds, device=device)
    data = vmap(lambda key: splits(source, key))(keys)
    params = {
        leaf: value.to(device, dtype)
        for leaf, value in mf.stack([Net(seed) for seed in seeds]).items()
    }
    lr = torch.tensor(rates, dtype=dtype, device=device)
    steps = epochs * (data.train.labels.shape[1] // BATCH)

    with Progress(steps, name, "steps") as progress:
        watch = _Stopwatch(device, progress)

        def run(
            params: Params, seed: Tensor, lr: Tensor, training: Pairs, validation: Pairs
        ) -> Run:
            return train(
                params,
                seed,
                lr,
                training,
                validation,
                method=method,
                epochs=epochs,
                around=lambda: watch,
            )

        over_rates = vmap(run, (None, None, 0, None, None))
        runs = vmap(over_rates, (0, 0, None, 0, 0))(params, keys, lr, data.train, data.validation)

    learnt = [TASKS.index(task) for task in method.tasks]
    grid = runs.validation[:, :, -1, learnt].mean((0, 2))
    best = int(grid.argmax())
    conflict = runs.conflict.to(torch.float64).mean(-1)
    test = vmap(accuracy)({leaf: value[:, best] for leaf, value in runs.params.items()}, data.test)
    return Outcome(
        rates=list(rates),
        best=best,
        grid=grid.tolist(),
        test={task: test[:, TASKS.index(task)].tolist() for task in method.tasks},
        curve=runs.validation[:, best][..., learnt].mean(-1).tolist(),
        conflict=conflict[:, best].tolist() if len(learnt) > 1 else None,
        conflict_grid=conflict.mean(0).tolist() if len(learnt) > 1 else None,
        step_ms=1e3 * watch.median(),
        steps=steps,
    )


class _Stopwatch:
    """A context manager around every step: its wall time, and one tick of the progress."""

    def __init__(self, device: torch.device, progress: Progress) -> None:
        self.device, self.progress, self.times, self.start = device, progress, [], 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> None:
        self.start = self._now()

    def __exit__(self, *stopped: object) -> None:
        self.times.append(self._now() - self.start)
        self.progress.update()

    def median(self) -> float:
        return sorted(self.times)[len(self.times) // 2]
