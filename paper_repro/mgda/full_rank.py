"""Are the bound's optima Pareto stationary where the encoder has full rank?"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Claims, Exact, Measured, decided
from ..report.findings import Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from .encoders import raises


@decided("an optimum is 0 and the other is not, at full row rank", trained=False)
def same_zeros(measured: Measured) -> Verdict:
    name = "draws in which one optimum is 0 and the other is not, full row rank"
    if measured[name] > 0:
        return "does not hold"
    raised = measured["share whose bound direction raises a task, full row rank, low"]
    return "holds only when" if raised > 0 else "holds"


CLAIMS = {
    "SU-32": Exact(
        "With a full-rank ∂Z/∂θ the bound's optimum also finds Pareto-stationary points "
        "(and otherwise a direction that lowers all losses).",
        same_zeros,
        when="common descent is left out: stationary points are found, directions may raise a task",
    )
}
claim = Claims(CLAIMS)


def weights_of(gramian: Tensor) -> Tensor:
    """Min-norm weights, batched over the first axis."""
    return vmap(lambda g: mf.solvers.auto()(mf.solvers.min_norm(g)).weights)(gramian)


def normals(tag: int, draws: int, shape: tuple[int, ...]) -> Tensor:
    def draw(key: Tensor) -> Tensor:
        return mf.random.normal(mf.random.fold_in(key, tag), shape, torch.float64)

    return vmap(draw)(torch.arange(draws))


class Optima(NamedTuple):
    """Both methods' optima at v_t and an encoder's Jacobian, `[draw]`."""

    exact: Tensor  # the exact one's length, in units of the longest gradient
    bound: Tensor  # the bound's
    raises: Tensor  # whether the bound's direction raises a task
    weights: Tensor  # how far one is from the other


def optima(v: Tensor, a: Tensor) -> Optima:
    g = v @ a
    exact, bound = g @ g.mT, v @ v.mT
    w_exact, w_bound = weights_of(exact), weights_of(bound)

    def size(w: Tensor, rows: Tensor) -> Tensor:
        point = torch.einsum("dt,dtp->dp", w, rows)
        return torch.linalg.vector_norm(point, dim=-1) / torch.linalg.vector_norm(
            rows, dim=-1
        ).amax(-1)

    return Optima(
        size(w_exact, g),
        size(w_bound, v),
        raises(exact, w_bound),
        (w_exact - w_bound).abs().amax(-1),
    )


def run(settings: Settings) -> Findings:
    draws, tasks, encodings = settings.count(2000), 3, 6
    v = normals(0, draws, (tasks, encodings))
    mix = normals(1, draws, (tasks - 1,)).abs()
    # 0 in the interior of conv{v_t}
    inside = torch.cat([v[:, :-1], -(mix[:, :, None] * v[:, :-1]).sum(1, keepdim=True)], 1)
    full, thin = normals(2, draws, (encodings, 9)), normals(3, draws, (encodings, 2))
    orthogonal = torch.linalg.qr(full.mT)[0].mT * 3  # A Aᵀ = 9 I
    stationary, generic = optima(inside, full), optima(v, full)
    deficient, scalar = optima(v, thin), optima(v, orthogonal)
    zero = 1e-6
    disagree = sum(
        int(((case.exact < zero) != (case.bound < zero)).sum()) for case in (stationary, generic)
    )
    missed = share_interval(int(((deficient.exact < zero) & (deficient.bound > zero)).sum()), draws)
    raised = share_interval(int(generic.raises.sum()), draws)
    apart, scalar_raised = float(scalar.weights.max()), int(scalar.raises.sum())
    numbers = {
        "draws in which one optimum is 0 and the other is not, full row rank": float(disagree),
        "stationary draws found by both": float(
            ((stationary.exact < zero) & (stationary.bound < zero)).sum()
        ),
        **named("share whose bound direction raises a task, full row rank", raised),
        **named("rank 2 of 6: share stationary, bound not 0", missed),
        "A Aᵀ = 9 I: largest difference of weights": apart,
        "A Aᵀ = 9 I: draws that raise a task": float(scalar_raised),
    }
    yield claim(
        "SU-32",
        numbers,
        f"{draws} random draws each, T = {tasks}, 6 encodings, A of 9, 2 (rank-deficient) and 9 "
        f"orthogonal columns; 0 means below {zero:g} "
        "of the longest gradient. Zero-iff-stationary "
        "holds with full row rank, common descent only where A Aᵀ is a multiple of the identity. "
        "Wilson intervals",
    )
