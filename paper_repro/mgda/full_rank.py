"""Are the bound's optima Pareto stationary where the encoder has full rank?"""

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Exact, Measured, decided
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from .common import gram, mixed, shortest
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
        when="common descent is left out: the optimum is 0 at stationary points alone, but its "
        "direction may raise a task, and steps along it may circle (SU-35)",
    )
}


def normals(tag: int, draws: int, shape: tuple[int, ...]) -> Tensor:
    keys = vmap(lambda key: mf.random.fold_in(key, tag))(torch.arange(draws))
    return vmap(lambda key: mf.random.normal(key, shape, torch.float64))(keys)


def is_zero(weights: Tensor, rows: Tensor) -> Tensor:
    """Whether the combination is below 1e-6 of the longest row."""
    return mixed(weights, rows).norm(dim=-1) / rows.norm(dim=-1).amax(-1) < 1e-6


def run(settings: Settings) -> Findings:
    draws, tasks, encodings = settings.count(2000), 3, 6
    v = normals(0, draws, (tasks, encodings))
    mix = normals(1, draws, (tasks - 1,)).abs()
    # 0 in the interior of conv{v_t}
    inside = torch.cat([v[:, :-1], -(mix[:, :, None] * v[:, :-1]).sum(1, keepdim=True)], 1)
    full = normals(2, draws, (encodings, 9))
    disagree, raised = 0, 0
    for rows in (inside, v):
        g = rows @ full
        exact, bound = shortest(gram(g)), shortest(gram(rows))
        disagree += int((is_zero(exact, g) != is_zero(bound, rows)).sum())
        raised = int(raises(gram(g), bound).sum())  # of the last: at no stationary point
    yield Claim(
        "SU-32",
        {
            "draws in which one optimum is 0 and the other is not, full row rank": disagree,
            **named(
                "share whose bound direction raises a task, full row rank",
                share_interval(raised, draws),
            ),
        },
        f"{draws} random draws with 0 in the hull of the v_t and as many without, T = {tasks}, 6 "
        "encodings, A of 9 columns; 0 means below 1e-6 of the longest gradient. Wilson interval",
    )
