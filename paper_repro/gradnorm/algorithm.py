"""Is the library's step GradNorm's algorithm box?"""

from typing import NamedTuple

import torch
from torch import Tensor

import mtlfunc as mf

from ..report.decisions import Claims, Condition, Exact, exact
from ..report.extremes import largest
from ..report.findings import Findings, Settings
from .common import ALPHA, LAYERS, losses, norm_of, three_tasks

LITERAL = (
    Condition("largest difference of weights", "<", 1e-9),
    Condition("largest difference of parameters", "<", 1e-9),
)

CLAIMS = {
    "GN-13": Exact(
        "L_grad = Σ abs(G_i - Ḡ r_i^α) with the target held constant; its slope in w_i is "
        "sign(G_i - target_i)‖∇_W L_i‖.",
        exact(*LITERAL),
    ),
    "GN-16": Exact(
        "The full loop: losses, G_i, Ḡ, r_i, L_grad, a step on w, a step on the network "
        "with the old weights, renormalisation.",
        exact(*LITERAL, ("largest deviation of the sum of weights from T", "<", 1e-9)),
    ),
}
claim = Claims(CLAIMS)

LR, WEIGHT_LR = 1e-2, 1e-3
Batch = tuple[Tensor, Tensor]


class Gaps(NamedTuple):
    """Largest differences over the steps."""

    weights: float
    params: float
    total: float  # of the sum of weights from T
    steps: int


def literal_step(
    params: mf.types.Params, w: Tensor, initial: Tensor, batch: Batch
) -> tuple[mf.types.Params, Tensor]:
    """A step of the algorithm box, written out with a double backward."""
    params = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    w = w.detach().requires_grad_()
    now = losses(params, batch)
    measured = [leaf for name, leaf in params.items() if name.startswith(f"trunk.{LAYERS - 1}.")]
    rows = [torch.autograd.grad(w[i] * now[i], measured, create_graph=True) for i in range(3)]
    norms = torch.stack([norm_of(row) for row in rows])
    rate = now.detach() / initial / (now.detach() / initial).mean()
    l_grad = (norms - (norms.mean() * rate**ALPHA).detach()).abs().sum()
    slope = torch.autograd.grad(l_grad, w, retain_graph=True)[0]
    grads = torch.autograd.grad((w.detach() * now).sum(), list(params.values()))
    params = {
        name: (leaf - LR * grad).detach()
        for (name, leaf), grad in zip(params.items(), grads, strict=True)
    }
    w = w.detach() - WEIGHT_LR * slope
    return params, 3 * w / w.sum()


def against_literal() -> Gaps:
    """The library's step against the box, in float64."""
    params, batches = three_tasks(30)
    step = mf.descend(
        losses,
        mf.gradnorm(ALPHA, WEIGHT_LR, optimizer=mf.sgd),
        mf.jacobian(f"trunk.{LAYERS - 1}.*", heads="weighted"),
        mf.sgd(LR),
        reduction="sum",
    )
    state = step.init(params, batches[0])
    w, initial = torch.ones(3, dtype=torch.float64), losses(params, batches[0])
    gaps = Gaps(0.0, 0.0, 0.0, len(batches))
    for batch in batches:
        state, info = step.update(state, batch)
        weights = float((info.weights - w).abs().max())
        total = abs(float(w.sum()) - 3)
        params, w = literal_step(params, w, initial, batch)
        apart = largest(
            float((state.params[name] - leaf).abs().max()) for name, leaf in params.items()
        )
        gaps = Gaps(
            largest(gaps.weights, weights),
            largest(gaps.params, apart),
            largest(gaps.total, total),
            gaps.steps,
        )
    return gaps


def run(settings: Settings) -> Findings:
    gaps = against_literal()
    numbers = {
        "largest difference of weights": gaps.weights,
        "largest difference of parameters": gaps.params,
        "steps": gaps.steps,
    }
    where = "three tasks, SGD on model and weights, float64; holds below 1e-9"
    yield claim(
        "GN-13", numbers, f"the closed form against autograd of the detached target; {where}"
    )
    yield claim(
        "GN-16",
        {**numbers, "largest deviation of the sum of weights from T": gaps.total},
        f"the library's step against a literal loop with double backward; {where}",
    )
