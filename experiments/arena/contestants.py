"""The rules that meet, each with the probe that it measures with: one line a rule.

Hyper-parameters are the papers' defaults where they are pure numbers; those with a unit or a
schedule are set once, for all problems: uncertainty and IMTL-L weights move by .025 per step, as
FAMO's and GradNorm's do, DWA's epoch is 10 steps, STCH's μ is .1. Not here: what needs three tasks
(trimmed mean), ranks one task above the others (PCD) or needs a network with an encoder (MGDA-UB,
IMTL-G on representations).
"""

import mtlfunc as mf
from mtlfunc.studies.arena import Contestant
from mtlfunc.types import Probe


def losses_only(shared: str) -> Probe:
    return mf.losses_only()


def weighted(shared: str) -> Probe:
    """For rules that weigh losses: the heads also get the weights."""
    return mf.jacobian(shared, heads="weighted")


CONTESTANTS: dict[str, Contestant] = {
    "mean": Contestant(mf.mean, losses_only),
    "gradnorm": Contestant(lambda: mf.gradnorm(0.12), weighted),
    "mgda": Contestant(mf.mgda, mf.jacobian),
    "mgda normalised": Contestant(lambda: mf.normalize(mf.mgda()), mf.jacobian),
    "mgda momentum": Contestant(lambda: mf.momentum(mf.mgda()), mf.jacobian),
    "pcgrad": Contestant(mf.pcgrad, mf.jacobian),
    "cagrad": Contestant(lambda: mf.cagrad(0.4), mf.jacobian),
    "cagrad-fast": Contestant(
        lambda: mf.cagrad(0.4), lambda shared: mf.jacobian(shared, mix=mf.subset(2))
    ),
    "dualproj": Contestant(mf.dualproj, mf.jacobian),
    "upgrad": Contestant(mf.upgrad, mf.jacobian),
    "imtl-g": Contestant(mf.imtl_g, mf.jacobian),
    "config": Contestant(mf.config, mf.jacobian),
    "aligned-mtl": Contestant(mf.aligned_mtl, mf.jacobian),
    "nash-mtl": Contestant(mf.nash_mtl, mf.jacobian),
    "fairgrad": Contestant(lambda: mf.fairgrad(2.0), mf.jacobian),
    "gradvac": Contestant(mf.gradvac, mf.jacobian),
    "graddrop": Contestant(mf.mean, lambda shared: mf.jacobian(shared, mask=mf.graddrop())),
    "krum": Contestant(mf.krum, mf.jacobian),
    "epo": Contestant(mf.epo, mf.jacobian),
    "pareto-mtl": Contestant(mf.pareto_mtl, mf.jacobian),
    "modo": Contestant(mf.modo, mf.double_sampling, batches=2),
    "sdmgrad": Contestant(mf.sdmgrad, mf.double_sampling, batches=3),
    "moco": Contestant(mf.moco, mf.moving_average),
    "db-mtl": Contestant(
        mf.db_mtl, lambda shared: mf.moving_average(shared, corrected=True), logs=True
    ),
    "excess-mtl": Contestant(mf.excess_mtl, mf.excess_risk),
    "uncertainty": Contestant(lambda: mf.uw(0.025), losses_only),
    "imtl-l": Contestant(lambda: mf.imtl_l(0.025), losses_only),
    "dwa": Contestant(lambda: mf.dwa(10), losses_only),
    "gls": Contestant(mf.gls, losses_only),
    "stch": Contestant(lambda: mf.stch(0.1), losses_only),
    "famo": Contestant(mf.famo, lambda shared: mf.second_evaluation(mf.losses_only())),
    "random weights": Contestant(mf.rlw, losses_only),
}
