"""Does the library compute the norms, ratios and weights that GradNorm defines?"""

import math

import torch

import mtlfunc as mf

from ..report.decisions import Condition, Exact, exact
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings
from .algorithm import LR, written_out
from .common import ALPHA, LAST, losses, norm_of, three_tasks

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


def run(settings: Settings) -> Findings:
    """Twenty steps of the library, against autograd."""
    params, batches = three_tasks(20)
    probe = mf.jacobian(f"{LAST}*", heads="weighted")
    step = mf.descend(losses, mf.gradnorm(ALPHA, 1e-2), probe, mf.sgd(LR), reduction="sum")
    state = step.init(params, batches[0])
    start = state.balance.rule.initial
    ratios = torch.stack([losses(params, batch) / start for batch in batches])
    rates = ratios / ratios.mean(1, keepdim=True)
    apart, moved, leaks, lengths, kept = [], [], [], [], []
    for batch in batches:
        before, weights = state.params, state.balance.rule.weights
        state, info = step.update(state, batch)
        box = written_out(before, weights, start, batch)
        apart += [
            (state.params[name] - leaf + LR * grad).abs().max()
            for (name, leaf), grad in zip(before.items(), box.model, strict=True)
        ]
        moved.append((state.balance.rule.weights - weights).abs().max())
        leaks.append(norm_of(box.leak) / norm_of(box.model))
        lengths.append((weights * info.gramian.diagonal().sqrt() - box.G).abs().max())
        kept.append((state.balance.rule.initial - start).abs().max())
    where = "20 SGD steps of three tasks, float64"
    stepped = {STEPPED.name: largest(apart)}
    yield Claim(
        "GN-03", stepped | {"smallest change of the weights in a step": smallest(moved)}, where
    )
    leak = "length of the gradient of L_grad in the network, over the model's, smallest"
    yield Claim(
        "GN-14",
        stepped | {leak: smallest(leaks)},
        f"that gradient is not zero, so that a leak would show; {where}",
    )
    key, given = mf.random.key(0), torch.full((2,), math.log(10))
    zero = torch.tensor([1.0, 0.0])
    try:
        mf.gradnorm(ALPHA).init(zero, key)
        refused = 0
    except ValueError:
        refused = 1
    reference = mf.gradnorm(ALPHA, reference=given).init(zero, key).initial
    yield Claim(
        "GN-09",
        {
            "largest difference of w_i‖∇_W L_i‖ from G_i": largest(lengths),
            "largest change of L_i(0)": largest(kept),
            "largest deviation of mean r_i from 1": (rates.mean(1) - 1).abs().max(),
            "L_i(0) = 0 is refused (1: yes)": refused,
            "reference in place of L_i(0), less log 10": (reference - given).abs().max(),
        },
        f"needs L_i(0) > 0, or a reference such as log K; {where}",
    )
