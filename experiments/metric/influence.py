"""`python -m experiments.metric.influence`: which estimate of a sample's influence is right?

The truth is that of leaving a sample out: how much higher a loss on held-out data is after the
optimizer's next real step where the sample's gradient is not in the batch's mean.
"""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import mtlfunc as mf
from common import command
from common.intervals import Estimate, bracket, estimate
from common.progress import counted
from common.tables import as_dicts, intervals, markdown, report

from .networks import NETWORKS
from .steps import DIAGONAL, Make

HERE = Path(__file__).parent
SIZES = {"digits": 128, "transformer": 32}  # of batches
HELD_OUT, RATE = 64, 1e-3
PROJECTED = 64  # dimensions of the random projection
ADAM = "Adam, β₁ = .9"
METRIC, END, STEP = "influence", "influence, target after the step", "derivative of Adam's step"
PLAIN, PROXY = "plain gradients", "plain gradients, after SGD"
LAST, PROJECTION = "plain gradients, last layer", "plain gradients, projected"
WAYS = (METRIC, END, STEP, PLAIN, PROXY, LAST, PROJECTION)

Params = mf.types.Params
Batch = tuple[Tensor, ...]


class Setting(NamedTuple):
    network: str
    optimizer: str


class Run:
    """One network in training, and data that it is not trained on."""

    def __init__(self, network: str, make: Make, rate: float, seed: int) -> None:
        self.problem = problem = NETWORKS[network](seed)
        self.network, self.seed, self.module = network, seed, problem.module.double()
        self.make: Callable[[nn.Module], torch.optim.Optimizer]
        self.make = lambda module: make(module.parameters(), rate)
        self.optimizer = self.make(self.module)
        data = tuple(x.double() if x.is_floating_point() else x for x in problem.data)
        self.held_out = tuple(x[:HELD_OUT] for x in data)
        self.data = tuple(x[HELD_OUT:] for x in data)

    def batch(self, step: int) -> Batch:
        key = mf.random.fold_in(mf.random.key(self.seed), step)
        order = mf.random.permutation(key, len(self.data[0]))[: SIZES[self.network]]
        return tuple(x[order] for x in self.data)

    def losses(self, params: Params, batch: Batch) -> Tensor:
        """Of every sample, the mean over tasks."""
        return self.problem.by_sample(params, batch).mean(1)

    def target(self, params: Params) -> Tensor:
        """The loss on held-out data."""
        return self.losses(params, self.held_out).mean()

    def target_after(self, moved: Params, params: Params) -> Tensor:
        """The same after a step."""
        return self.target({name: x + moved[name] for name, x in params.items()})

    def rows(self, batch: Batch) -> Params:
        """Every sample's gradient, `{name: [sample, *shape]}`."""

        def alone(params: Params, *one: Tensor) -> Tensor:
            return self.losses(params, tuple(x[None] for x in one))[0]

        spread = (None, *(0 for _ in batch))
        return vmap(grad(alone), spread)(mf.parameters(self.module), *batch)

    def step(self, step: int) -> None:
        means = {name: rows.mean(0) for name, rows in self.rows(self.batch(step)).items()}
        mf.assign_gradients(self.module, means)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def after(self, grads: Params) -> Params:
        """The parameters after the optimizer's real step on a copy."""
        other = deepcopy(self.module)
        optimizer = self.make(other)
        # which takes tensors as they are, and a step would write into them
        optimizer.load_state_dict(deepcopy(self.optimizer.state_dict()))
        mf.assign_gradients(other, grads)
        optimizer.step()
        return mf.parameters(other)


def truth(run: Run, rows: Params) -> Tensor:
    """How much higher the held-out loss is after the step without each sample."""
    mean = {name: x.mean(0) for name, x in rows.items()}
    count = len(next(iter(rows.values())))
    without = [
        run.after({name: mean[name] - x[n] / count for name, x in rows.items()})
        for n in range(count)
    ]
    with torch.no_grad():
        return torch.stack([run.target(x) for x in without]) - run.target(run.after(mean))


def products(rows: Params, aim: Params, names: Sequence[str]) -> Tensor:
    return torch.stack([rows[x].flatten(1) @ aim[x].flatten() for x in names]).sum(0)


def projected(rows: Params, aim: Params, seed: int) -> Tensor:
    """Of `PROJECTED` random combinations of all coordinates."""
    wide = torch.cat([x.flatten(1) for x in rows.values()], 1)
    flat = torch.cat([aim[x].flatten() for x in rows])
    key = mf.random.fold_in(mf.random.key(seed), 99)
    drawn = mf.random.normal(key, (len(flat), PROJECTED), torch.float64)
    return (wide @ drawn) @ (flat @ drawn)


def adam_state(run: Run) -> Any:
    """The named tuple of `mf.adam`."""
    states = {name: run.optimizer.state[leaf] for name, leaf in run.module.named_parameters()}
    keys = "exp_avg", "exp_avg_sq"
    mean, square = ({name: x[key] for name, x in states.items()} for key in keys)
    steps = next(iter(states.values()))["step"].long()
    return mf.adam(1.0).init(mean)._make([steps, mean, square])


def influence(run: Run, batch: Batch, target: Callable[[Params], Tensor]) -> Tensor:
    """By how much every sample's gradient lowers the target in the next step, to first order:
    ⟨target's gradient, P g_n⟩ in the optimizer's metric P, by one pass in forward mode.
    """
    params, adam = mf.parameters(run.module), isinstance(run.optimizer, torch.optim.Adam)
    same, state = (mf.adam(RATE), adam_state(run)) if adam else (mf.sgd(RATE), ())
    assert same.scales is not None
    scale, _ = same.scales(state, params)
    moved = {name: scale[name] * aim for name, aim in grad(target)(params).items()}
    return jvp(lambda p: run.losses(p, batch), (params,), (moved,))[1]


def through_adam(run: Run, rows: Params, aim: Params) -> Tensor:
    """⟨target's gradient, ∂step/∂g · g_n⟩ at the batch's mean gradient g, which is also in P."""
    params, state = mf.parameters(run.module), adam_state(run)

    def fall(grads: Params) -> Tensor:
        after, _ = mf.adam(RATE).update(grads, state, params)
        return torch.stack([((params[x] - after[x]) * aim[x]).sum() for x in params]).sum()

    return products(rows, grad(fall)({x: y.mean(0) for x, y in rows.items()}), list(rows))


def correlations(setting: Setting, seed: int, looks: Sequence[int]) -> dict[str, float]:
    """Of every estimate with the truth over the samples of a batch, the mean over `looks`."""
    run = Run(setting.network, DIAGONAL[setting.optimizer], RATE, seed)
    proxy = Run(setting.network, DIAGONAL["SGD, momentum .9"], RATE, seed)
    found: dict[str, list[float]] = {}
    for step in range(max(looks) + 1):
        if step in looks:
            batch = run.batch(step)
            rows = run.rows(batch)
            params = mf.parameters(run.module)
            aim, names = grad(run.target)(params), list(params)
            last = [x for x in names if not x.startswith("trunk")]
            apart = grad(proxy.target)(mf.parameters(proxy.module))
            whole = run.after({name: x.mean(0) for name, x in rows.items()})
            moved = {name: whole[name] - x for name, x in params.items()}
            answers = {
                METRIC: influence(run, batch, run.target),
                END: influence(run, batch, partial(run.target_after, moved)),
                PLAIN: products(rows, aim, names), PROXY: products(proxy.rows(batch), apart, names),
                LAST: products(rows, aim, last), PROJECTION: projected(rows, aim, seed),
            }  # fmt: skip
            if setting.optimizer == ADAM:
                answers[STEP] = through_adam(run, rows, aim)
            known = truth(run, rows)
            for way, answer in answers.items():
                both = torch.stack([answer.detach(), known])
                found.setdefault(way, []).append(torch.corrcoef(both)[0, 1].item())
        run.step(step)
        proxy.step(step)
    return {way: sum(values) / len(values) for way, values in found.items()}


Found = dict[Setting, dict[str, Estimate]]


def table(found: Found) -> str:
    """A line for every network and optimizer, and a column for every estimate."""
    lines = [
        [*setting, *(bracket(each.get(way), 2) for way in WAYS)] for setting, each in found.items()
    ]
    said = (
        "Correlation over the samples of a batch with the truth: the rise of a held-out loss where "
        "the sample is left out of the optimizer's next real step. Means over seeds with 95 % t "
        "intervals."
    )
    return f"{said}\n\n{markdown(['network', 'optimizer', *WAYS], lines)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all, and write a table and a figure."""
    parser = command.brief(
        "metric.influence",
        "How well do estimates of a sample's influence on a held-out loss agree with leaving it "
        "out of the optimizer's next real step? Two networks under Adam and SGD.",
        (6, 6),
        devices=False,
    )
    given = command.settled(parser, argv, HERE / "out" / "influence")
    torch.set_num_threads(1)
    optimizers = [ADAM] if given.quick else [ADAM, "SGD, momentum .9"]
    networks = ["transformer"] if given.quick else list(SIZES)
    looks = (10, 20) if given.quick else (10, 30, 60)
    planned = [Setting(*x) for x in product(networks, optimizers)]
    pairs = [(setting, seed) for setting in planned for seed in given.seeds]
    values: dict[Setting, list[dict[str, float]]] = {setting: [] for setting in planned}
    with sdpa_kernel(SDPBackend.MATH):  # the attention that has a forward mode
        for setting, seed in counted(pairs, "runs", "runs"):
            values[setting].append(correlations(setting, seed, looks))
    found = {
        setting: {way: estimate([x[way] for x in each]) for way in each[0]}
        for setting, each in values.items()
    }
    settings = {"seeds": list(given.seeds), "looks": looks, "torch": torch.__version__}
    numbers = {
        "settings": settings,
        "correlations": [as_dicts(x) | {"ways": as_dicts(y)} for x, y in found.items()],
    }
    drawn = intervals({", ".join(setting): each for setting, each in found.items()})
    report(given.out, numbers, table(found), {"influence": drawn})
    return 0


if __name__ == "__main__":
    sys.exit(main())
