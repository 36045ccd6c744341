"""Steps of every kind on the network of `tests.support.problems`."""

from typing import Any

import torch

import mtlfunc as mf
from mtlfunc.types import Rows
from tests.support.loops import rollout
from tests.support.problems import BATCH, F64, SHARED, decode, encode, opaque


def keep_positive(key: torch.Tensor, rows: Rows) -> Rows:
    """A random coordinate-wise edit, to test masks with."""
    return {
        name: row * (mf.random.uniform(key, tuple(row.shape[1:]), row.dtype) > 0.3)
        for name, row in rows.items()
    }


METHODS = {
    "mean": lambda: (mf.mean(), mf.jacobian(SHARED)),
    "mean, losses only": lambda: (mf.mean(), mf.losses_only()),
    "mean, masked": lambda: (mf.mean(), mf.jacobian(SHARED, mask=keep_positive)),
    "static weights": lambda: (
        mf.mean(preference=torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)), mf.losses_only()),
    "gradnorm": lambda: (mf.gradnorm(0.12, 0.025), mf.jacobian("trunk.2.*", heads="weighted")),
    "mgda": lambda: (mf.mgda(), mf.jacobian(SHARED)),
    "mgda-ub": lambda: (mf.mgda(), mf.representation(encode, decode, shared=SHARED)),
    "pcgrad": lambda: (mf.pcgrad(), mf.jacobian(SHARED, heads="own")),
    "cagrad": lambda: (mf.cagrad(0.4), mf.jacobian(SHARED, chunk_size=2)),
    "cagrad-fast": lambda: (mf.cagrad(0.4), mf.jacobian(SHARED, mix=mf.subset(2))),
    "stateless": lambda: (
        mf.stateless(lambda gramian, losses: torch.softmax(losses / gramian.diagonal(), -1)),
        mf.jacobian(SHARED)),
}  # fmt: skip


def step_of(name: str, lr: float | torch.Tensor = 0.02) -> mf.Step:
    rule, probe = METHODS[name]()
    return mf.descend(opaque, rule, probe, mf.adam(lr))


_generator = torch.Generator().manual_seed(3)


BATCHES = tuple(
    tuple(x + 0.5 * torch.randn(x.shape, generator=_generator, dtype=F64) for x in BATCH)
    for _ in range(3)
)


PAIR = BATCHES[:2]


STATEFUL = {
    "align": (lambda: mf.align(0.3), lambda: mf.jacobian(SHARED), BATCH),
    "modo, two batches": (lambda: mf.modo(0.05, 0.1), lambda: mf.double_sampling(SHARED), PAIR),
    "modo, three batches": (lambda: mf.modo(0.05, 0.1), lambda: mf.double_sampling(SHARED),
        BATCHES),
    "sdmgrad": (lambda: mf.sdmgrad(0.3, lr=0.3),
        lambda: mf.double_sampling(SHARED, heads="weighted"), BATCHES),
    "moco": (lambda: mf.moco(0.05, 0.1, 0.5),
        lambda: mf.moving_average(SHARED, rate=lambda k: 0.5 / k**0.5), BATCH),
    "db_mtl": (mf.db_mtl,
        lambda: mf.moving_average(SHARED, rate=lambda k: 1 - 0.9 / k**0.5, corrected=True), BATCH),
    "excess_mtl": (lambda: mf.excess_mtl(0.3), lambda: mf.excess_risk(SHARED), BATCH),
    "famo": (mf.famo, lambda: mf.second_evaluation(mf.losses_only()), BATCH),
    "cagrad, tracked": (lambda: mf.cagrad(0.4),
        lambda: mf.moving_average(SHARED, rate=0.5, corrected=True), BATCH),
}  # fmt: skip


def parts(name: str) -> tuple[mf.Rule, mf.Probe, Any]:
    """Rule, probe and batch, of either table."""
    if name in METHODS:
        return *METHODS[name](), BATCH
    rule, probe, batch = STATEFUL[name]
    return rule(), probe(), batch


def run(name: str, params: Any, seed: Any, lr: Any, steps: int, losses_fn: Any = opaque) -> Any:
    """The last state and all infos."""
    rule, probe, batch = parts(name)
    step = mf.descend(losses_fn, rule, probe, (mf.adam if name in METHODS else mf.sgd)(lr))
    return rollout(step, step.init(params, batch, key=seed), [batch] * steps)
