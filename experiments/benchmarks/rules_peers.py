"""Every rule of ours, and what TorchJD has of it, at its defaults."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

import mtlfunc as mf


class Problem(NamedTuple):
    """What a rule sees, with or without a batch in front."""

    jacobian: Tensor  # [task, param]
    gramian: Tensor
    losses: Tensor


Call = Callable[[Problem], Tensor]


class Peer(NamedTuple):
    """What TorchJD has, for T tasks."""

    name: str
    takes: str
    make: Callable[[int], Call]
    batched: Callable[[int], Call]  # what vmap is tried on


class Entry(NamedTuple):
    """A rule of ours and its peer."""

    make: Callable[[], mf.Rule]
    peer: Peer | None = None
    random: bool = False
    wide: bool = False  # memory of T Gramians a problem: its batch comes in several vmaps
    door: Callable[[mf.Rule, Problem], Tensor] | None = None  # None is `rule.update`


def on_gramian(name: str, *args: Any, **options: Any) -> Peer:
    """A weighting that takes the Gramian."""

    def make(count: int) -> Call:
        weigh = _peer("aggregation", name, *args, **options)
        return lambda problem: weigh(problem.gramian)

    return Peer(name, "Gramian", make, make)


def on_jacobian(name: str, make: Callable[[int], Callable[[Tensor], Tensor]] | None = None) -> Peer:
    """A weighting or an aggregator that takes the Jacobian."""

    def of(count: int) -> Call:
        weigh = make(count) if make else _peer("aggregation", name)
        return lambda problem: weigh(problem.jacobian)

    return Peer(name, "Jacobian", of, of)


def on_losses(
    name: str,
    make: Callable[[int], Any] | None = None,
    after: Callable[[Any], Callable[[Tensor], Any]] | None = None,
) -> Peer:
    """A scalarizer; `after(scalarizer)` is called with the losses at the end of each step."""

    def scalarizer(count: int) -> Any:
        return make(count) if make else _peer("scalarization", name)

    def of(count: int) -> Call:
        scalarize = scalarizer(count)
        finish = after(scalarize) if after else None

        def call(problem: Problem) -> Tensor:
            losses = problem.losses.detach().requires_grad_()
            scalarize(losses).backward()
            if finish:
                finish(problem.losses)
            assert losses.grad is not None
            return losses.grad

        return call

    def pure(count: int) -> Call:
        gradient = grad(scalarizer(count))
        return lambda problem: gradient(problem.losses)

    return Peer(name, "losses", of, of if after else pure)


def _peer(module: str, name: str, *args: Any, **options: Any) -> Any:
    import torchjd.aggregation  # a test dependency
    import torchjd.scalarization

    return getattr(getattr(torchjd, module), name)(*args, **options)


def _learned(scalarizer: Any) -> Callable[[Tensor], None]:
    optimizer = torch.optim.Adam(scalarizer.parameters(), lr=0.01)

    def step(losses: Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def equal(count: int) -> Tensor:
    """Equal preferences."""
    return torch.full((count,), 1 / count)


def accumulated(rule: mf.Rule) -> mf.Rule:
    """ExcessMTL with its sum of squared gradients: here the probe's, in TorchJD the weighting's."""

    def init(losses: Tensor, key: Tensor) -> Any:
        return losses.new_zeros(len(losses), 2 * len(losses)), rule.init(losses, key)

    def update(geometry: mf.Geometry, state: Any) -> tuple[Tensor, Any]:
        square = geometry.extra["jacobian"].square()
        total = state[0] + square
        weights, inner = rule.update(
            geometry._replace(extra={"excess_risk": (square / total.sqrt()).sum(-1)}), state[1]
        )
        return weights, (total, inner)

    return mf.Rule(init, update)


def _smoothed() -> Call:
    weigh = _peer("aggregation", "CRMOGMWeighting", _peer("aggregation", "MGDAWeighting"))
    return lambda problem: weigh(problem.gramian)


RULES: dict[str, Entry] = {
    "mean": Entry(mf.mean, on_gramian("MeanWeighting")),
    "rlw": Entry(mf.rlw, on_jacobian("RandomWeighting"), random=True),
    "mgda": Entry(mf.mgda, on_gramian("MGDAWeighting")),
    "cagrad": Entry(lambda: mf.cagrad(0.4), on_gramian("CAGradWeighting", c=0.4)),
    "pcgrad": Entry(mf.pcgrad, on_gramian("PCGradWeighting"), random=True),
    "gradvac": Entry(
        lambda: mf.gradvac(0.5), on_gramian("GradVacWeighting", beta=0.5), random=True
    ),
    "dualproj": Entry(mf.dualproj, on_gramian("DualProjWeighting")),
    "upgrad": Entry(mf.upgrad, on_gramian("UPGradWeighting"), wide=True),
    "imtl_g": Entry(mf.imtl_g, on_gramian("IMTLGWeighting")),
    "aligned_mtl": Entry(mf.aligned_mtl, on_gramian("AlignedMTLWeighting")),
    "config": Entry(mf.config, on_jacobian("ConFIG")),
    "conicgrad": Entry(mf.conicgrad),
    "nash_mtl": Entry(
        lambda: mf.nash_mtl(max_norm=1.0),
        on_jacobian("NashMTL", lambda count: _peer("aggregation", "NashMTL", count).weighting),
    ),
    "fairgrad": Entry(lambda: mf.fairgrad(2.0), on_gramian("FairGradWeighting", 2.0)),
    "krum": Entry(mf.krum, on_gramian("KrumWeighting", 0)),
    "pcd": Entry(mf.pcd, on_gramian("PCDWeighting")),
    "modo": Entry(mf.modo, on_gramian("MoDoWeighting")),
    "sdmgrad": Entry(mf.sdmgrad, on_gramian("SDMGradWeighting")),
    "excess_mtl": Entry(lambda: accumulated(mf.excess_mtl(1.0)), on_jacobian("ExcessMTLWeighting")),
    "align": Entry(lambda: mf.align(0.1, "mean")),
    "momentum": Entry(
        lambda: mf.momentum(mf.mgda()),
        Peer("CRMOGMWeighting", "Gramian", lambda count: _smoothed(), lambda count: _smoothed()),
    ),
    "uw": Entry(
        lambda: mf.uw(0.01),
        on_losses("UW", lambda count: _peer("scalarization", "UW", count), _learned),
    ),
    "imtl_l": Entry(
        lambda: mf.imtl_l(0.01),
        on_losses("IMTLL", lambda count: _peer("scalarization", "IMTLL", count), _learned),
    ),
    "dwa": Entry(
        lambda: mf.dwa(1),
        on_losses("DWA", None, lambda scalarizer: lambda losses: scalarizer.step()),
    ),
    "gls": Entry(mf.gls, on_losses("GeometricMean")),
    "stch": Entry(
        lambda: mf.stch(0.3), on_losses("STCH", lambda count: _peer("scalarization", "STCH", 0.3))
    ),
    "cosmos": Entry(
        lambda: mf.cosmos(0.3),
        on_losses("COSMOS", lambda count: _peer("scalarization", "COSMOS", 0.3, equal(count))),
    ),
    "pbi": Entry(
        mf.pbi, on_losses("PBI", lambda count: _peer("scalarization", "PBI", 5.0, equal(count)))
    ),
    "famo": Entry(
        lambda: mf.famo(full_batch=True),
        on_losses(
            "FAMO", lambda count: _peer("scalarization", "FAMO", count), lambda famo: famo.update
        ),
    ),
    "gradnorm": Entry(lambda: mf.gradnorm(0.12)),
    "db_mtl": Entry(mf.db_mtl),
    "moco": Entry(mf.moco),
    "epo": Entry(mf.epo),
    "pareto_mtl": Entry(mf.pareto_mtl),
    "normalize": Entry(lambda: mf.normalize(mf.mgda())),
}

FEW = [2, 3]
"""Tasks where what stands around a kernel takes more time than the kernel."""
DOORS: dict[str, Entry] = {
    "mf.weights": Entry(
        mf.mgda,
        on_gramian("MGDAWeighting"),
        door=lambda rule, problem: mf.weights(rule, problem.gramian),
    ),
    "mf.aggregate": Entry(
        mf.mgda,
        on_jacobian("MGDA"),
        door=lambda rule, problem: mf.aggregate(rule, problem.jacobian),
    ),
}
"""The functions that apply a fresh rule once, with all that they check."""
