"""Tables that drive the tests: adding a rule, a solver or a probe is one line in one of them."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mtlfunc as mf
from mtlfunc import solvers
from mtlfunc.core import optim
from mtlfunc.rules.common import may_read
from mtlfunc.types import GRAMIANS, Geometry, Params, Solver
from tests.support.problems import decode, encode


class RuleCase(NamedTuple):
    """A rule and what it promises."""

    make: Callable[[], mf.Rule]
    convex: bool = True  # weights >= 0 that sum to 1
    # what the weights sum to when all tasks have one gradient and one loss
    shared_sum: float | None = 1.0
    random: bool = False
    homogeneous: bool = True
    symmetric: bool = True  # no task is special
    smooth: bool = True  # differentiable in G at generic Gramians: no solver that stops halfway
    # with tasks absent, what it gives on the others alone (inexact solvers and random orders aside)
    masks: bool = True
    # of weights on well conditioned problems: rounding, or what the solver inside reaches
    accuracy: float = 1e-9

    @property
    def reads_losses(self) -> bool:
        return may_read(self.make(), "losses")

    @property
    def reads_gramian(self) -> bool:
        return may_read(self.make(), "gramian")


def _softmin(gramian: Tensor) -> Tensor:
    agree = gramian.mean(-1) / gramian.diagonal().clamp_min(torch.finfo(gramian.dtype).tiny).sqrt()
    return torch.softmax(agree / agree.abs().amax().clamp_min(torch.finfo(gramian.dtype).tiny), -1)


def _normalised(x: Tensor) -> Tensor:
    return x / x.sum()


def _fed(rule: mf.Rule, extra: Callable[[Geometry], dict[str, Tensor]]) -> mf.Rule:
    """A rule that reads what a probe of its own measures, given it, from the losses."""
    assert rule.reads
    return mf.Rule(
        rule.init,
        lambda geometry, state: rule.update(geometry._replace(extra=extra(geometry)), state),
        (rule.reads & {"gramian", "losses", "preference", "present"}) | {"losses"},
    )


def _aimed(rule: mf.Rule) -> mf.Rule:
    """A rule that takes the last row as a target's, given a mixture of the others by preference."""

    def update(geometry: Geometry, state: Any) -> tuple[Tensor, Any]:
        if geometry.gramian is None:  # the rule says what it misses
            return rule.update(geometry, state)
        mixture = geometry.preference / geometry.preference.sum()
        matrix = torch.cat([torch.diag(torch.ones_like(mixture)), mixture[None]])
        more = Geometry(
            matrix.to(geometry.losses) @ geometry.losses,
            matrix.to(geometry.gramian) @ geometry.gramian @ matrix.to(geometry.gramian).mT,
            torch.cat([geometry.preference, torch.zeros_like(mixture[:1])]),
            torch.cat([geometry.present, torch.ones_like(geometry.present[:1])]),
            geometry.extra,
        )
        weights, state = rule.update(more, state)
        return weights[:-1], state

    def init(losses: Tensor, key: Tensor) -> Any:
        return rule.init(torch.cat([losses, losses[:1]]), key)

    return mf.Rule(init, update, frozenset({"gramian", "preference", "present"}))


def on_gramian(rule: mf.Rule) -> mf.Rule:
    """A rule on JJᵀ in place of what its own probe measures."""
    assert rule.reads
    return rule._replace(reads=(rule.reads - GRAMIANS) | {"gramian"})


def _last_batch(geometry: Geometry) -> dict[str, Tensor]:
    """As if the last step, on the same batch, had lowered the losses a little, unequally."""
    return {
        "last_losses": geometry.losses * (1.1 + geometry.losses / 10),
        "last_losses_now": geometry.losses,
        "last_present": geometry.present,
    }


def _carrying(rule: mf.Rule) -> mf.Rule:
    """As if the optimizer carried the mean less 1.5 times the first present task's gradient."""
    assert rule.reads

    def update(geometry: Geometry, state: Any) -> tuple[Tensor, Any]:
        if geometry.gramian is not None:
            first = geometry.present & (geometry.present.cumsum(0) == 1)
            off = geometry.preference - 1.5 * first.to(geometry.preference)
            carried = geometry.gramian @ off.to(geometry.gramian)
            geometry = geometry._replace(extra={"carried": carried})
        return rule.update(geometry, state)

    return mf.Rule(rule.init, update, rule.reads - {"carried"})


RULES: dict[str, RuleCase] = {
    "mean": RuleCase(mf.mean),
    "mgda": RuleCase(mf.mgda),
    "mgda-cvx": RuleCase(lambda: mf.mgda(solvers.cvx()), masks=False, accuracy=1e-5),
    "mgda-frank-wolfe": RuleCase(lambda: mf.mgda(solvers.frank_wolfe(30, "2/(n+2)")), smooth=False,
        masks=False),
    "mgda-projected-gradient": RuleCase(lambda: mf.mgda(solvers.projected_gradient(30)),
        smooth=False, masks=False),
    "cagrad": RuleCase(lambda: mf.cagrad(0.4), convex=False, shared_sum=1.4),
    "cagrad-cvx": RuleCase(lambda: mf.cagrad(0.4, solvers.cvx()), convex=False, shared_sum=1.4,
        masks=False, accuracy=1e-5),
    "cagrad-1+c": RuleCase(lambda: mf.cagrad(0.4, rescale="1+c"), convex=False),
    "cagrad-1+c^2": RuleCase(lambda: mf.cagrad(0.4, rescale="1+c^2"), convex=False,
        shared_sum=1.4 / 1.16),
    "cagrad-1+lambda": RuleCase(lambda: mf.cagrad(0.4, rescale="1+lambda"), convex=False),
    "pcgrad": RuleCase(mf.pcgrad, convex=False, random=True, masks=False),
    "gradnorm": RuleCase(lambda: mf.gradnorm(1.5)),
    "gradnorm-normalized": RuleCase(lambda: mf.gradnorm(0.5, normalize_targets=True)),
    "gradnorm-sgd": RuleCase(lambda: mf.gradnorm(1.5, 1e-3, optimizer=optim.sgd),
        homogeneous=False),
    "gradnorm-multiplicative": RuleCase(lambda: mf.gradnorm(1.5, optimizer=optim.multiplicative)),
    "uw": RuleCase(lambda: mf.uw(0.1), convex=False, shared_sum=None),
    "imtl_l": RuleCase(lambda: mf.imtl_l(0.1), convex=False, shared_sum=None),
    "dwa": RuleCase(lambda: mf.dwa(1)),
    "gls": RuleCase(mf.gls, convex=False),
    "cosmos": RuleCase(lambda: mf.cosmos(0.3), convex=False),
    "pbi": RuleCase(mf.pbi, convex=False),
    "stch": RuleCase(lambda: mf.stch(0.3)),
    "stch-warmup": RuleCase(lambda: mf.stch(0.3, warmup=(1, 1)), convex=False, shared_sum=None),
    "famo-full-batch": RuleCase(lambda: mf.famo(full_batch=True)),
    "famo": RuleCase(lambda: _fed(mf.famo(), _last_batch)),
    "excess_mtl": RuleCase(
        lambda: _fed(mf.excess_mtl(), lambda geometry: {"excess_risk": geometry.losses})),
    "ntk": RuleCase(lambda: _fed(mf.physics.ntk(), lambda geometry: {"trace": geometry.losses}),
        convex=False, shared_sum=None),
    "align": RuleCase(lambda: _aimed(mf.align(0.3)), homogeneous=False),
    "align-mean": RuleCase(lambda: mf.align(0.3, "mean"), homogeneous=False),
    "modo": RuleCase(lambda: on_gramian(mf.modo()), homogeneous=False),
    "moco": RuleCase(lambda: on_gramian(mf.moco(decay=0.5)), homogeneous=False),
    "sdmgrad": RuleCase(lambda: on_gramian(mf.sdmgrad(lr=0.3))),
    # steps of 10 overshoot, and multiply rounding
    "sdmgrad-default": RuleCase(lambda: on_gramian(mf.sdmgrad()), smooth=False),
    "db_mtl": RuleCase(lambda: on_gramian(mf.db_mtl()), convex=False),
    "gradvac": RuleCase(lambda: mf.gradvac(0.3), convex=False, random=True, masks=False),
    "krum": RuleCase(mf.krum),
    "krum-select": RuleCase(lambda: mf.krum(select=2)),
    "pcd": RuleCase(mf.pcd, convex=False, masks=False, symmetric=False),
    "epo": RuleCase(mf.epo),
    "pareto_mtl": RuleCase(mf.pareto_mtl, convex=False),
    "normalize-norm": RuleCase(lambda: mf.normalize(mf.mgda()), convex=False),
    "normalize-loss": RuleCase(lambda: mf.normalize(mf.cagrad(0.4), "loss"), convex=False,
        shared_sum=1.4),
    "normalize-both": RuleCase(lambda: mf.normalize(mf.gradnorm(1.5), "both"), convex=False),
    "momentum": RuleCase(lambda: mf.momentum(mf.mgda(), 0.6)),
    "momentum-normalize-gradnorm": RuleCase(
        lambda: mf.momentum(mf.normalize(mf.gradnorm(1.5), "loss"), 0.6), convex=False),
    "safe": RuleCase(lambda: _carrying(mf.safe(mf.mgda())), convex=False, shared_sum=None,
        symmetric=False),
    "rlw": RuleCase(mf.rlw, random=True, masks=False),
    "dualproj": RuleCase(mf.dualproj, convex=False),
    "upgrad": RuleCase(mf.upgrad, convex=False),
    "upgrad-faces": RuleCase(lambda: mf.upgrad(solver=solvers.faces()), convex=False),
    "imtl_g": RuleCase(mf.imtl_g, convex=False),
    "config": RuleCase(mf.config, convex=False),
    "conicgrad": RuleCase(lambda: mf.conicgrad(0.5), convex=False),
    # eigenvalues know G to ε·cond(G): tests/test_rules_gramian.py
    "aligned_mtl": RuleCase(mf.aligned_mtl, convex=False, masks=False),
    "aligned_mtl-median": RuleCase(lambda: mf.aligned_mtl(scale="median"), convex=False,
        masks=False),
    "aligned_mtl-rmse": RuleCase(lambda: mf.aligned_mtl(scale="rmse"), convex=False, masks=False),
    # ‖d‖ = √T at every scale
    "nash_mtl": RuleCase(mf.nash_mtl, convex=False, shared_sum=None, homogeneous=False),
    "nash_mtl-sum": RuleCase(lambda: mf.nash_mtl(rescale="sum")),
    "fairgrad": RuleCase(lambda: mf.fairgrad(2.0), convex=False, shared_sum=None,
        homogeneous=False),
    "fairgrad-sum": RuleCase(lambda: mf.fairgrad(0.5, rescale="sum")),
    "gauss_newton": RuleCase(lambda: mf.physics.gauss_newton(0.1), convex=False, shared_sum=None,
        homogeneous=False),
    "gauss_newton-momentum": RuleCase(
        lambda: _carrying(mf.physics.gauss_newton(0.1, momentum=True)), convex=False,
        shared_sum=None, homogeneous=False, symmetric=False),
    "stateless": RuleCase(lambda: mf.stateless(_softmin), masks=False),
    "stateless-losses": RuleCase(
        lambda: mf.stateless(lambda gramian, losses: _normalised(_softmin(gramian) * losses)),
        masks=False),
}  # fmt: skip


# Rules are pure, and under the type checker making one costs a hundred times what a step does;
# `inspect.unwrap(make)` makes a new one.
RULES = {name: case._replace(make=cache(case.make)) for name, case in RULES.items()}


class SolverCase(NamedTuple):
    """A solver, the problems that it takes and how good it is."""

    make: Callable[[], Solver]
    problems: tuple[str, ...] = ("min_norm", "cagrad", "dual_cone")
    # how close to the optimum, in units of the squared largest norm; 0 is rounding, None no promise
    objective: float | None = None
    most_tasks: int = 128
    implicit: bool = False  # derivatives from the closed form on the support


_SIMPLEX = ("min_norm", "cagrad")

SOLVERS: dict[str, SolverCase] = {
    "faces": SolverCase(solvers.faces, objective=0.0, most_tasks=6, implicit=True),
    "active_set": SolverCase(solvers.active_set, objective=0.0, implicit=True),
    "cvx": SolverCase(solvers.cvx, objective=1e-12, implicit=True),
    "auto": SolverCase(solvers.auto, objective=0.0, implicit=True),
    "projected_gradient": SolverCase(lambda: solvers.projected_gradient(50)),
    "frank_wolfe-line-search": SolverCase(lambda: solvers.frank_wolfe(30), _SIMPLEX),
    "frank_wolfe-1/(n+1)": SolverCase(lambda: solvers.frank_wolfe(30, "1/(n+1)"), _SIMPLEX),
    "frank_wolfe-2/(n+2)": SolverCase(lambda: solvers.frank_wolfe(30, "2/(n+2)"), _SIMPLEX),
    "frank_wolfe-away": SolverCase(lambda: solvers.frank_wolfe(30, "away"), _SIMPLEX),
    "frank_wolfe-pairwise": SolverCase(lambda: solvers.frank_wolfe(30, "pairwise"), _SIMPLEX),
}

PROBLEMS: dict[str, Callable[[Tensor], Any]] = {
    "min_norm": solvers.min_norm,
    "cagrad": lambda gramian: solvers.cagrad(gramian, 0.4),
    "dual_cone": lambda G: solvers.dual_cone(G, torch.full_like(G[0], 1 / len(G))),
}

SOLVES = [(solver, problem) for solver, case in SOLVERS.items() for problem in case.problems]


def _signs(key: Tensor, rows: Params) -> Params:
    """A mask that keeps about half of the coordinates, the same for every task."""
    return {
        name: leaf
        * (mf.random.uniform(mf.random.fold_in(key, i), tuple(leaf.shape[1:]), leaf.dtype) < 0.5)
        for i, (name, leaf) in enumerate(rows.items())
    }


class ProbeCase(NamedTuple):
    """A probe for the network of `tests.support.problems`, and what it promises."""

    make: Callable[[], mf.Probe]
    shared: str = "trunk.*"
    random: bool = False
    rows: int = 3

    @property
    def gramian(self) -> bool:
        return "gramian" in (self.make().measures or ())


PROBES: dict[str, ProbeCase] = {
    "jacobian": ProbeCase(lambda: mf.jacobian("trunk.*")),
    "jacobian-subset": ProbeCase(lambda: mf.jacobian("trunk.*", mix=mf.subset(2)), random=True,
        rows=2),
    "jacobian-mask": ProbeCase(lambda: mf.jacobian("trunk.*", mask=_signs), random=True),
    "jacobian-own": ProbeCase(lambda: mf.jacobian("trunk.*", heads="own")),
    "jacobian-weighted": ProbeCase(lambda: mf.jacobian("trunk.*", heads="weighted")),
    "jacobian-chunk-1": ProbeCase(lambda: mf.jacobian("trunk.*", chunk_size=1)),
    "jacobian-chunk-2": ProbeCase(lambda: mf.jacobian("trunk.*", chunk_size=2)),
    "representation": ProbeCase(lambda: mf.representation(encode, decode, shared="trunk.*")),
    "losses_only": ProbeCase(mf.losses_only, shared="*"),
}  # fmt: skip
