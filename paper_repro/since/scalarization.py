"""Do rules reach anything beyond static weights that are tuned as well, or beyond the mean?"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import MATCH
from ..report.decisions import Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import Best, at_best, chosen, judged
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

Rules = Callable[[Tensor], mf.Rule]
"""A rule by task 1's share of static weights, which the others do not read."""
RULES: dict[str, Rules] = {
    "MGDA": lambda _: mf.mgda(),
    "CAGrad": lambda _: mf.cagrad(0.5),
    "PCGrad and UPGrad": lambda _: mf.pcgrad(),  # the same at T = 2
    "IMTL-G": lambda _: mf.imtl_g(),
}
SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)  # of task 1, static
RATES, DECAYS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), (0.0, 0.3, 1.0, 3.0)
INPUTS, HIDDEN, TRAIN, TEST, NOISE = 8, 3, 48, 256, 0.3


def static(share: Tensor) -> mf.Rule:
    return mf.mean(preference=torch.stack([share, 1 - share]))


def drawn(seed: Tensor) -> tuple[mf.types.Params, Data, Data]:
    """Two teachers of other sizes than the trunk has room for; training and test data."""
    key = mf.random.key(seed)
    x = normal(key, 0, TRAIN + TEST, INPUTS)
    clean = (2 * x @ normal(key, 1, INPUTS, 4) / INPUTS**0.5).tanh() @ normal(key, 2, 4, 2)
    y = (clean + NOISE * normal(key, 3, TRAIN + TEST, 2)) * torch.tensor([1.0, 3.0]).to(x)
    return (network(key, INPUTS, HIDDEN, 2), Data(x[:TRAIN], y[:TRAIN]), Data(x[TRAIN:], y[TRAIN:]))


def ended(rule_of: Rules, seeds: int, steps: int, shares: tuple[float, ...] = (0.5,)) -> Tensor:
    """Test losses at the end, `[lane, seed, task]`, of every share at every rate and decay."""
    grid = torch.tensor(list(itertools.product(shares, RATES, DECAYS)), dtype=torch.float64)

    def method(lane: Tensor) -> mf.Step:
        return mf.descend(losses, rule_of(lane[0]), mf.jacobian("trunk.*"), mf.adam(lane[1]))

    def move(lane: Tensor, state: mf.TrainState, data: Data) -> mf.TrainState:
        state, _ = method(lane).update(state, data)
        kept = 1 - lane[1] * lane[2]  # as AdamW's
        return state._replace(params={name: kept * x for name, x in state.params.items()})

    params, train, test = vmap(drawn)(torch.arange(seeds))
    first = vmap(lambda lane, p, d: method(lane).init(p, d), (None, 0, 0))
    state = vmap(first, (0, None, None))(grid, params, train)
    every = vmap(vmap(move, (None, 0, 0)), (0, 0, None))
    step = replayed(lambda state: (every(grid, state, train),))
    for _ in tqdm(range(steps), desc="rules and static weights", leave=False):
        (state,) = step(state)
    return vmap(vmap(losses), (0, None))(state.params, test)


def best_of(values: np.ndarray, least: np.ndarray) -> Best:
    """By the losses over each task's least of static weights, in the mean over tasks. An edge is
    the least or the largest rate, and the largest decay.
    """
    best = at_best((values / least).mean(-1), np.repeat(RATES, len(DECAYS)))
    largest = bool((best.choice % len(DECAYS) == len(DECAYS) - 1).any())
    return best._replace(edge=best.edge or largest)


def run(settings: Settings) -> Findings:
    steps, seeds = settings.count(150), settings.seeds
    weighted = ended(static, seeds, steps, SHARES).cpu().numpy()
    least, count = weighted.mean(1).min(0), len(RATES) * len(DECAYS)
    base = best_of(weighted[SHARES.index(0.5) * count :][:count], least)
    beyond: dict[str, float] = {}
    matches: dict[str, float] = {}
    for name, rule_of in RULES.items():
        values = ended(rule_of, seeds, steps).cpu().numpy()
        own = best_of(values, least)
        ended_at = values[own.choice, np.arange(seeds)]
        # the nearest static weights: the least worst ratio
        nearest = chosen(np.log(weighted / ended_at).max(-1))
        for task in range(2):
            ratio = ratio_interval(judged(weighted[..., task], nearest), ended_at[:, task])
            label = f"{name}, task {task + 1}: nearest static weights' loss over the rule's"
            beyond |= named(label, ratio, unsettled=own.edge)
        ratio = ratio_interval(base.scores, own.scores)
        label = f"{name}: the mean's loss over the rule's"
        matches |= named(label, ratio, unsettled=base.edge or own.edge)
    where = (
        f"two tasks of unlike size, a trunk of {HIDDEN} units, {TRAIN} samples to train on and "
        f"{TEST} to test, {steps} steps of Adam at {len(RATES)} rates and {len(DECAYS)} weight "
        f"decays, {seeds} seeds; every setting chosen on the other half of the seeds by the test "
        "losses. Geometric means of paired ratios, 95 % t intervals"
    )
    yield Claim(
        "SI-01",
        beyond,
        f"{where}; {len(SHARES)} static weights at every rate and decay, of which the nearest has "
        "the least worst ratio",
    )
    over = "loss: the mean over tasks of the loss over the least one of static weights"
    yield Claim("SI-02", matches, f"{where}; {over}")
