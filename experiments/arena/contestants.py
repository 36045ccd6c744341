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


def plain(shared: str) -> Probe:
    """For rules that combine gradients: all heads get the mean loss's, so that trunks compare."""
    return mf.jacobian(shared, heads="plain")


CONTESTANTS: dict[str, Contestant] = {
    "mean": Contestant(mf.mean, losses_only),
    "gradnorm": Contestant(lambda: mf.gradnorm(0.12), mf.jacobian),
    "mgda": Contestant(mf.mgda, plain),
    "mgda normalised": Contestant(lambda: mf.normalize(mf.mgda()), plain),
    "mgda momentum": Contestant(lambda: mf.momentum(mf.mgda()), plain),
    "pcgrad": Contestant(mf.pcgrad, plain),
    "cagrad": Contestant(lambda: mf.cagrad(0.4), plain),
    "cagrad-fast": Contestant(
        lambda: mf.cagrad(0.4), lambda shared: mf.jacobian(shared, mix=mf.subset(2))
    ),
    "dualproj": Contestant(mf.dualproj, plain),
    "upgrad": Contestant(mf.upgrad, plain),
    "imtl-g": Contestant(mf.imtl_g, plain),
    "config": Contestant(mf.config, plain),
    "aligned-mtl": Contestant(mf.aligned_mtl, plain),
    "nash-mtl": Contestant(mf.nash_mtl, plain),
    "fairgrad": Contestant(lambda: mf.fairgrad(2.0), plain),
    "gradvac": Contestant(mf.gradvac, plain),
    "graddrop": Contestant(mf.mean, lambda shared: mf.jacobian(shared, mask=mf.graddrop())),
    "krum": Contestant(mf.krum, plain),
    "epo": Contestant(mf.epo, plain),
    "pareto-mtl": Contestant(mf.pareto_mtl, plain),
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
