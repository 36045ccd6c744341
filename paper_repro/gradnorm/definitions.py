"""Does the library compute the norms, ratios and weights that GradNorm defines?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import mtlfunc as mf

from ..report.decisions import Claims, Condition, Exact, exact
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings
from .common import ALPHA, losses, norm_of, three_tasks
from .lanes import LAST

STEPPED = Condition(
    "largest difference of parameters from an SGD step on Σ w_i L_i, w fixed", "<", 1e-9
)
CLAIMS = {
    "GN-03": Exact(
        "The loss is Σ w_i(t) L_i, with weights that are updated at every step.",
        exact(STEPPED, ("smallest change of the weights in a step", ">", 0)),
    ),
    "GN-09": Exact(
        "G_i = ‖∇_W(w_i L_i)‖, L̃_i = L_i(t)/L_i(0), r_i = L̃_i/mean L̃.",
        exact(
            ("largest difference of w_i‖∇_W L_i‖ from G_i", "<", 1e-9),
            ("largest change of L_i(0)", "==", 0),
            ("largest deviation of mean r_i from 1", "<", 1e-9),
            ("L_i(0) = 0 is refused (1: yes)", "==", 1),
            ("reference in place of L_i(0), less log 10", "<", 1e-6),
        ),
    ),
    "GN-14": Exact(
        "L_grad moves the weights alone; they scale each task's gradient, and no gradient "
        "of L_grad reaches the network.",
        exact(STEPPED, ("length of the gradient of L_grad in the network, *, smallest", ">", 0)),
    ),
}
claim = Claims(CLAIMS)

LR = 1e-2


class Steps(NamedTuple):
    """What a step of the library did, against autograd; one entry a step."""

    apart: list[float]  # parameters from an SGD step on Σ w_i L_i, w fixed
    moved: list[float]  # the weights' largest change
    leaks: list[float]  # the length of L_grad's gradient in the network, over the model's
    lengths: list[float]  # w_i‖∇_W L_i‖ from G_i
    kept: list[float]  # L_i(0) from its start
    mean_rate: float  # largest deviation of mean r_i from 1

    @property
    def where(self) -> str:
        """The configuration in words."""
        return f"three tasks, {len(self.apart)} SGD steps, float64; holds below 1e-9"

    @property
    def weighted(self) -> dict[str, float]:
        """Numbers of two claims."""
        return {
            "largest difference of parameters from an SGD step on Σ w_i L_i, w fixed": largest(
                self.apart
            ),
            "steps": len(self.apart),
        }


def followed() -> Steps:
    """Twenty steps of GradNorm in float64."""
    params, batches = three_tasks(20)
    probe = mf.jacobian(f"{LAST}*", heads="weighted")
    step = mf.descend(losses, mf.gradnorm(ALPHA, 1e-2), probe, mf.sgd(LR), reduction="sum")
    state = step.init(params, batches[0])
    start = state.balance.rule.initial
    rates = torch.stack([losses(params, batch) / start for batch in batches])
    mean_rate = float(((rates / rates.mean(1, keepdim=True)).mean(1) - 1).abs().max())
    found = Steps([], [], [], [], [], mean_rate)
    for batch in batches:
        before, weights = state, state.balance.rule.weights
        state, info = step.update(state, batch)
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in before.params.items()}
        G, leak, model = by_autograd(leaves, weights, start, batch)
        found.apart.append(
            largest(
                float((state.params[name] - leaf.detach() + LR * g).abs().max())
                for (name, leaf), g in zip(leaves.items(), model, strict=True)
            )
        )
        found.moved.append(float((state.balance.rule.weights - weights).abs().max()))
        found.leaks.append(float(norm_of(leak) / norm_of(model)))
        length = weights * info.gramian.diagonal().sqrt()
        found.lengths.append(float((length - G).abs().max()))
        found.kept.append(float((state.balance.rule.initial - start).abs().max()))
    return found


def by_autograd(
    leaves: mf.types.Params, weights: Tensor, start: Tensor, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, list[Tensor], Sequence[Tensor]]:
    """G, the gradient of L_grad in the network, and that of the model's loss."""
    now = losses(leaves, batch)
    last = [leaf for name, leaf in leaves.items() if name.startswith(LAST)]
    rows = [torch.autograd.grad(weights[i] * now[i], last, create_graph=True) for i in range(3)]
    G = torch.stack([norm_of(row) for row in rows])
    rate = (now / start / (now / start).mean()).detach() ** ALPHA
    l_grad = (G - (G.mean() * rate).detach()).abs().sum()
    every = list(leaves.values())
    leak = torch.autograd.grad(l_grad, every, retain_graph=True, allow_unused=True)
    model = torch.autograd.grad((weights * now).sum(), every)
    return G.detach(), [part for part in leak if part is not None], model


def run(settings: Settings) -> Findings:
    steps = followed()
    yield loss(steps)
    yield no_leak(steps)
    yield measures(steps)


def loss(steps: Steps) -> Claim:
    return claim(
        "GN-03",
        {**steps.weighted, "smallest change of the weights in a step": smallest(steps.moved)},
        "the model steps along the gradient at detached weights, and no step leaves the weights "
        f"as they were; {steps.where}",
    )


def no_leak(steps: Steps) -> Claim:
    return claim(
        "GN-14",
        {
            **steps.weighted,
            "length of the gradient of L_grad in the network, over the model's, smallest": smallest(
                steps.leaks
            ),
            "largest": largest(steps.leaks),
        },
        f"that gradient is not zero, so that a leak would show; {steps.where}",
    )


def measures(steps: Steps) -> Claim:
    root, zero = mf.random.key(0), torch.tensor([1.0, 0.0])
    try:
        mf.gradnorm(ALPHA).init(zero, root)
        refused = 0
    except ValueError:
        refused = 1
    given = torch.full((2,), float(np.log(10)))
    reference = mf.gradnorm(ALPHA, reference=given).init(zero, root).initial
    return claim(
        "GN-09",
        {
            "largest difference of w_i‖∇_W L_i‖ from G_i": largest(steps.lengths),
            "largest change of L_i(0)": largest(steps.kept),
            "largest deviation of mean r_i from 1": steps.mean_rate,
            "L_i(0) = 0 is refused (1: yes)": refused,
            "reference in place of L_i(0)": float(reference[0]),
            "reference in place of L_i(0), less log 10": float((reference - given).abs().max()),
        },
        f"needs L_i(0) > 0, or a reference such as log K; {steps.where}",
    )
