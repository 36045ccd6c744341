"""What the texts say of each other, as the ledger states it."""

from ..report.ledger import Row

ROWS = (
    Row(
        "X-01",
        "synthetic",
        "PCGrad practically reaches the optimum, or stops at Pareto points: the texts differ.",
        "cagrad.toy_aims",
    ),
    Row(
        "X-02",
        "synthetic",
        "Never raise a loss, or trade losses for a better mean: two aims that differ.",
        "cagrad.toy_aims",
    ),
    Row(
        "X-03",
        "exact",
        "GradNorm with α = 0 rests at the sum of unit gradients on W.",
        "cross_paper.rest_points",
    ),
    Row(
        "X-04",
        "exact",
        "Min-norm weights of orthogonal gradients are ∝ 1/‖g‖²: MGDA favours small ones.",
        "cagrad.definitions",
    ),
    Row(
        "X-05",
        "synthetic",
        "Descent guarantees hold for steps along d; the experiments step by Adam.",
        "cagrad.toy_aims",
    ),
)
