"""Conflict, Δm, Pareto stationarity, min-norm weights: are they as stated?"""

from fractions import Fraction

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

import mtlfunc as mf

from ..report.bounds import FIRST_HIGH, FIRST_LOW, SIGNS
from ..report.decisions import Claims, Exact, Measured, decided, exact
from ..report.findings import Claim, Findings, Settings, Verdict
from .common import gram, length, min_norm, rows_of, stationary_rows


@decided(
    "no common descent and 0 in the hull agree, and such a point is improved on", trained=False
)
def wording(measured: Measured) -> Verdict:
    if measured["draws in which 'no common descent' and '0 in the hull' disagree"] > 0:
        return "inconclusive"
    beaten = measured["at 1/2"] < measured["L_1 = L_2 = -x² at its stationary point 0"]
    return "does not hold" if beaten else "holds"


CLAIMS = {
    "CA-05": Exact(
        "A point is Pareto optimal when no direction improves all tasks at once.", wording
    ),
    "CA-09": Exact(
        "Conflict measure R(θ, d) = max_i (L_i(θ - ηd) - L_i(θ))/η ≈ -min_i ⟨g_i, d⟩; "
        "below 0 every loss falls, above 0 some loss rises.",
        exact(
            ("error at η = 1e-4 over that at 1e-6", ">", FIRST_LOW),
            ("error at η = 1e-4 over that at 1e-6", "<", FIRST_HIGH),
            ("share with the other sign at η = 1e-06", "<", SIGNS),
        ),
    ),
    "CA-29": Exact(
        "Δm %: mean relative drop against single-task baselines, lower is better.",
        exact(("library less the fractions", "<", 1e-12)),
    ),
    "X-04": Exact(
        "Min-norm weights of orthogonal gradients are proportional to 1/‖g‖²: MGDA "
        "favours small gradients.",
        exact(("largest difference of weights", "<", 1e-12)),
    ),
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    draws = settings.count(1000)
    yield pareto_points(settings)
    yield conflict_measure(draws)
    yield delta_m()
    yield orthogonal(draws)


def pareto_points(settings: Settings) -> Claim:
    # Gordan: a common descent direction exists iff 0 is outside the hull; found here by a linear
    # program, there by the shortest point.
    some = settings.count(200)
    outside, inside = rows_of(some, 3, 4, 20), stationary_rows(some, 3, 4, 22)
    disagree = 0
    for rows in (outside, inside):
        shortest = length(gram(rows), min_norm(gram(rows))) / rows.norm(dim=-1).amax(-1)
        for j, short in zip(rows.numpy(), shortest.tolist(), strict=True):
            # max s: J d >= s, |d_i| <= 1, s <= 1
            program = optimize.linprog(
                [0, 0, 0, 0, -1],
                A_ub=np.c_[-j, np.ones(len(j))],
                b_ub=np.zeros(len(j)),
                bounds=[(-1, 1)] * 4 + [(None, 1)],
            )
            disagree += (-program.fun > 1e-8) != (short > 1e-8)
    # both tasks: L(x) = -x², stationary at 0
    hill = [-(Fraction(x) ** 2) for x in (Fraction(0), Fraction(1, 2))]
    return claim(
        "CA-05",
        {
            "draws in which 'no common descent' and '0 in the hull' disagree": float(disagree),
            "draws": float(2 * some),
            "L_1 = L_2 = -x² at its stationary point 0": float(hill[0]),
            "at 1/2": float(hill[1]),
        },
        "the condition is 0 in conv{g_t}, Pareto stationarity (linear program against the "
        "shortest point, half of the draws stationary); "
        "L_1 = L_2 = -x² meets it at 0, where every step improves both",
    )


def orthogonal(draws: int) -> Claim:
    q = torch.linalg.qr(rows_of(draws, 5, 5, 30))[0] * rows_of(draws, 5, 1, 31).exp()
    w, inverse = min_norm(gram(q)), 1 / q.square().sum(-1)
    off = float((w - inverse / inverse.sum(-1, keepdim=True)).abs().max())
    return claim(
        "X-04",
        {"largest difference of weights": off, "draws": float(draws)},
        "five orthogonal rows of log-normal lengths",
    )


def conflict_measure(draws: int) -> Claim:
    """R(θ, d) on quadratics L_t = ½(θ - m_t)ᵀA_t(θ - m_t), along the mean gradient."""
    root = rows_of(3 * draws, 6, 6, 40).reshape(draws, 3, 6, 6)
    matrix, middle = root @ root.mT / 6, rows_of(draws, 3, 6, 41)

    def values(x: Tensor) -> Tensor:
        off = x[:, None] - middle
        return 0.5 * torch.einsum("dti,dtij,dtj->dt", off, matrix, off)

    x = rows_of(draws, 1, 6, 42)[:, 0]
    rows = torch.einsum("dtij,dtj->dti", matrix, x[:, None] - middle)
    d = rows.mean(1)
    limit = -torch.einsum("dti,di->dt", rows, d).amin(-1)
    etas = (1e-6, 1e-4, 1e-2, 0.3, 1.0)
    measured = {eta: ((values(x - eta * d) - values(x)) / eta).amax(-1) for eta in etas}
    error = {
        eta: float(((m - limit).abs() / limit.abs().clamp_min(1e-12)).median())
        for eta, m in measured.items()
    }
    flips = {eta: float(((m > 0) != (limit > 0)).double().mean()) for eta, m in measured.items()}
    return claim(
        "CA-09",
        {f"median relative error at η = {eta:g}": e for eta, e in error.items()}
        | {f"share with the other sign at η = {eta:g}": f for eta, f in flips.items()}
        | {"error at η = 1e-4 over that at 1e-6": error[1e-4] / error[1e-6]},
        f"{draws} random triples of quadratics, d = g₀. It is first order: at training steps "
        "signs differ",
    )


def delta_m() -> Claim:
    metrics = {"accuracy": 0.75, "error": 1.0}
    baselines = {"accuracy": 1.0, "error": 0.5}
    higher = {"accuracy": True, "error": False}
    by_hand = Fraction(100, 2) * (-(Fraction(3, 4) - 1) / 1 + (1 - Fraction(1, 2)) / Fraction(1, 2))
    library = mf.diagnostics.delta_m(metrics, baselines, higher)
    five = {f"a{i}": 1.2 for i in range(5)} | {"b": 1.0}
    weighed = mf.diagnostics.delta_m(five, dict.fromkeys(five, 1.0), dict.fromkeys(five, False))
    return claim(
        "CA-29",
        {
            "worked example, fractions": float(by_hand),
            "library": library,
            "library less the fractions": abs(library - float(by_hand)),
            "a task with five metrics 20 % worse, one unchanged with a single metric": weighed,
        },
        "accuracy .75 against 1, error 1 against .5; the average runs over metrics, so a task "
        "with five of them counts five times",
    )
