"""Do rules reach anything beyond static weights that are tuned as well, or beyond the mean?"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import MATCH
from ..report.decisions import Claims, Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_edge, chosen, judged
from ..report.intervals import named, ratio_interval
from .common import Data, losses, network, normal

CLAIMS = {
    "SI-01": Row(
        "Xin et al. 2022: rules for several tasks reach nothing beyond what static weights reach "
        "that are tuned as well.",
        sided(("*: nearest static weights' loss over the rule's", "<", MATCH)),
        instead="benchmarks of images and translation",
        finding="the loss of the nearest static weights over the rule's, on the two tasks. Below 1 "
        "static weights are better. "
        + "; ".join(
            f"{rule} {{{rule}, task 1: nearest static weights' loss over the rule's}} and "
            f"{{{rule}, task 2: nearest static weights' loss over the rule's}}"
            for rule in ("MGDA", "CAGrad", "PCGrad and UPGrad")
        ),
    ),
    "SI-02": Row(
        "Kurin et al. 2022: the plain mean, with the regularisation and the search of a single "
        "task, matches or improves upon the rules.",
        sided(("*: the mean's loss over the rule's", "<", MATCH)),
        instead="benchmarks of images and reinforcement learning",
    ),
}
claim = Claims(CLAIMS)

RULES: dict[str, mf.Rule] = {
    "MGDA": mf.mgda(),
    "CAGrad": mf.cagrad(0.5),
    "PCGrad and UPGrad": mf.pcgrad(),  # the same at T = 2
    "IMTL-G": mf.imtl_g(),
}
SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)  # of task 1, static
RATES, DECAYS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), (0.0, 0.3, 1.0, 3.0)
INPUTS, HIDDEN, TRAIN, TEST, NOISE = 8, 3, 48, 256, 0.3


def drawn(seed: Tensor) -> tuple[mf.types.Params, Data, Data]:
    """Two teachers of other sizes than the trunk has room for; training and test data."""
    key = mf.random.key(seed)
    x = normal(key, 0, TRAIN + TEST, INPUTS)
    clean = (2 * x @ normal(key, 1, INPUTS, 4) / INPUTS**0.5).tanh() @ normal(key, 2, 4, 2)
    y = (clean + NOISE * normal(key, 3, TRAIN + TEST, 2)) * torch.tensor([1.0, 3.0]).to(x)
    return (network(key, INPUTS, HIDDEN, 2), Data(x[:TRAIN], y[:TRAIN]), Data(x[TRAIN:], y[TRAIN:]))


class Lanes(NamedTuple):
    """Every rate with every decay, `[lane]`."""

    lr: Tensor
    decay: Tensor


def lanes() -> Lanes:
    pairs = torch.tensor(list(itertools.product(RATES, DECAYS)), dtype=torch.float64)
    return Lanes(*pairs.unbind(1))


def ended(rule: mf.Rule, settings: Settings, steps: int, share: Tensor | None = None) -> Tensor:
    """Test losses at the end of all lanes, `[lane, seed, task]`; `share`: of static weights."""

    def method(lane: Lanes, share: Tensor | None) -> mf.Step:
        static = None if share is None else torch.stack([share, 1 - share])
        chosen = rule if static is None else mf.mean(preference=static)
        return mf.descend(losses, chosen, mf.jacobian("trunk.*"), mf.adam(lane.lr))

    def move(lane: Lanes, share: Tensor | None, state: mf.TrainState, data: Data) -> mf.TrainState:
        state, _ = method(lane, share).update(state, data)
        kept = 1 - lane.lr * lane.decay  # as AdamW's
        return state._replace(params={name: kept * x for name, x in state.params.items()})

    grid, seeds = lanes(), torch.arange(settings.seeds)
    if share is not None:  # the shares are lanes, too
        count = len(share)
        share = share.repeat_interleave(len(grid.lr))
        grid = Lanes(*(part.repeat(count) for part in grid))
    params, train, test = vmap(drawn)(seeds)
    along = None if share is None else 0
    state = vmap(
        vmap(lambda lane, s, p, d: method(lane, s).init(p, d), (None, None, 0, 0)),
        (0, along, None, None),
    )(grid, share, params, train)
    every = vmap(vmap(move, (None, None, 0, 0)), (0, along, 0, None))
    step = replayed(lambda state: (every(grid, share, state, train),))
    for _ in tqdm(range(steps), desc="rules and static weights", leave=False):
        (state,) = step(state)
    return vmap(vmap(losses), (0, None))(state.params, test)


def run(settings: Settings) -> Findings:
    steps = settings.count(150)
    found = {name: ended(rule, settings, steps).numpy() for name, rule in RULES.items()}
    shares = torch.tensor(SHARES, dtype=torch.float64)
    static = ended(mf.mean(), settings, steps, shares).numpy()
    where = (
        f"two tasks of unlike size, a trunk of {HIDDEN} units, {TRAIN} samples to train on and "
        f"{TEST} to test, {steps} steps of Adam at {len(RATES)} rates and {len(DECAYS)} weight "
        f"decays, {settings.seeds} seeds; every setting chosen on the other half of the seeds by "
        f"the test losses. A match: no more than {MATCH:g} times as high. Geometric means of "
        "paired ratios, 95 % t intervals"
    )
    yield beyond_static(found, static, where)
    yield mean_matches(found, static, where)


def relative(values: np.ndarray, static: np.ndarray) -> np.ndarray:
    """Mean over the tasks of losses `[lane, seed, task]` over a task's best static ones."""
    return (values / static.mean(1).min(0)).mean(-1)


class Best(NamedTuple):
    """At the lane that is best on the other half of the seeds."""

    losses: np.ndarray  # [seed, task]
    edge: bool  # the rate is the least or the largest, or the decay the largest


def at_best(values: np.ndarray, static: np.ndarray) -> Best:
    choice = chosen(relative(values, static))
    rates, decays = choice // len(DECAYS), choice % len(DECAYS)
    edge = at_edge(rates, len(RATES)) or bool((decays == len(DECAYS) - 1).any())
    return Best(values[choice, np.arange(values.shape[1])], edge)


def beyond_static(found: dict[str, np.ndarray], static: np.ndarray, where: str) -> Claim:
    numbers: dict[str, float] = {}
    for name, values in found.items():
        own, edge = at_best(values, static)
        # the nearest: the least worst task
        score = np.log(static / own).max(-1)
        choice = chosen(score)
        for task in range(2):
            rival = judged(static[..., task], choice)
            ratio = ratio_interval(rival, own[:, task])
            label = f"{name}, task {task + 1}: nearest static weights' loss over the rule's"
            numbers |= named(label, ratio, unsettled=edge)
    return claim(
        "SI-01",
        numbers,
        f"{where}; {len(SHARES)} static weights at every rate and decay, of which the nearest has "
        "the least worst ratio. A rule lies beyond them where they match it in no setting",
    )


def mean_matches(found: dict[str, np.ndarray], static: np.ndarray, where: str) -> Claim:
    count = len(RATES) * len(DECAYS)
    equal = static[SHARES.index(0.5) * count :][:count]
    numbers: dict[str, float] = {}
    base = at_best(equal, static)
    for name, values in found.items():
        own, label = at_best(values, static), f"{name}: the mean's loss over the rule's"
        two = ((x.losses / static.mean(1).min(0)).mean(-1) for x in (base, own))
        numbers |= named(label, ratio_interval(*two), unsettled=base.edge or own.edge)
    return claim(
        "SI-02",
        numbers,
        f"{where}; loss: the mean over tasks of the loss over the least one of static weights",
    )
