"""Is the library's step GradNorm's algorithm box?"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import mtlfunc as mf

from ..report.decisions import Condition, Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from .common import ALPHA, LAST, losses, norm_of, three_tasks

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

LR, WEIGHT_LR = 1e-2, 1e-3


class Box(NamedTuple):
    """A step of the algorithm box, at the weights before it, by autograd."""

    G: Tensor  # [task]
    slope: Tensor  # [task], of L_grad in the weights
    leak: Sequence[Tensor]  # of L_grad in the network
    model: Sequence[Tensor]  # of Σ w_i L_i in the network, w fixed


def written_out(
    params: mf.types.Params, w: Tensor, initial: Tensor, batch: tuple[Tensor, Tensor]
) -> Box:
    """The box for three tasks, with a double backward."""
    params = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    every, w = list(params.values()), w.detach().requires_grad_()
    now = losses(params, batch)
    last = [leaf for name, leaf in params.items() if name.startswith(LAST)]
    rows = [torch.autograd.grad(w[i] * now[i], last, create_graph=True) for i in range(3)]
    G = torch.stack([norm_of(row) for row in rows])
    rate = (now / initial / (now / initial).mean()).detach()
    l_grad = (G - (G.mean() * rate**ALPHA).detach()).abs().sum()
    slope, *leak = torch.autograd.grad(
        l_grad, [w, *every], retain_graph=True, allow_unused=True, materialize_grads=True
    )
    model = torch.autograd.grad((w.detach() * now).sum(), every)
    return Box(G.detach(), slope, leak, model)


def run(settings: Settings) -> Findings:
    """The library's steps against the box, in float64."""
    params, batches = three_tasks(30)
    probe = mf.jacobian(f"{LAST}*", heads="weighted")
    rule = mf.gradnorm(ALPHA, WEIGHT_LR, optimizer=mf.sgd)
    step = mf.descend(losses, rule, probe, mf.sgd(LR), reduction="sum")
    state = step.init(params, batches[0])
    w, initial = torch.ones(3, dtype=torch.float64), losses(params, batches[0])
    weights, ends, totals = [], [], []
    for batch in batches:
        state, info = step.update(state, batch)
        weights.append((info.weights - w).abs().max())
        totals.append(abs(float(w.sum()) - 3))
        box = written_out(params, w, initial, batch)
        params = {
            name: leaf - LR * grad
            for (name, leaf), grad in zip(params.items(), box.model, strict=True)
        }
        w = w - WEIGHT_LR * box.slope
        w = 3 * w / w.sum()
        ends += [(state.params[name] - leaf).abs().max() for name, leaf in params.items()]
    numbers = {
        "largest difference of weights": largest(weights),
        "largest difference of parameters": largest(ends),
    }
    where = f"{len(batches)} steps of three tasks, SGD on model and weights, float64"
    yield Claim("GN-13", numbers, f"the closed form against autograd; {where}")
    yield Claim(
        "GN-16",
        numbers | {"largest deviation of the sum of weights from T": largest(totals)},
        f"the library's step against a literal loop with double backward; {where}",
    )
