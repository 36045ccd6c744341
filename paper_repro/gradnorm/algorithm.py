"""Is the library's step GradNorm's, by its definitions and by its algorithm box?"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Condition, Exact, exact
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings
from .common import (
    ALPHA,
    LAST,
    TWO,
    initial_params,
    linear_maps,
    losses,
    norm_of,
    sample,
    three_tasks,
)
from .lanes import EVERY_ALPHA, size_of

LITERAL = (
    Condition("largest difference of weights", "<", 1e-9),
    Condition("largest difference of parameters", "<", 1e-9),
)
STEPPED = Condition(
    "largest difference of parameters from an SGD step on Σ w_i L_i, w fixed", "<", 1e-9
)
CLAIMS = {
    "GN-03": Exact(
        "The loss is Σ w_i(t) L_i, with weights that are updated at every step.",
        exact(STEPPED, ("smallest change of the weights in a step", ">", 0)),
    ),
    "GN-08": Exact(
        "Norms are measured on a subset W of the weights, normally the last shared layer.",
        exact(
            ("largest relative difference from autograd", "<", 1e-9),
            ("smallest relative difference between two choices of W", ">", 1e-9),
        ),
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
    "GN-10": Exact(
        "A task's target length is Ḡ r_i^α.",
        exact(
            ("largest difference of the next weights from the formula's", "<", 1e-9),
            ("the same, normalised targets", "<", 1e-9),
        ),
    ),
    "GN-14": Exact(
        "L_grad moves the weights alone; they scale each task's gradient, and no gradient "
        "of L_grad reaches the network.",
        exact(STEPPED, ("length of the gradient of L_grad in the network, *, smallest", ">", 0)),
    ),
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
    """Twenty steps of the library, against autograd."""
    yield from loop()
    yield measured_layer(settings)
    yield targets()
    params, batches = three_tasks(20)
    probe = mf.jacobian(f"{LAST}*")
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


def loop() -> Findings:
    """The library's steps against the box, in float64."""
    params, batches = three_tasks(30)
    probe = mf.jacobian(f"{LAST}*")
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


def measured_layer(settings: Settings) -> Claim:
    """The lengths before training, in float64, against autograd."""
    size = size_of(settings)
    problem = size.problem(TWO)
    start = initial_params(mf.random.key(0), problem)
    x, y = sample(mf.random.key(2), linear_maps(mf.random.key(1), problem), problem, size.batch)
    params, batch = {name: leaf.double() for name, leaf in start.items()}, (x.double(), y.double())
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    now = losses(leaves, batch)
    errors, values = [], []
    for chosen in ("trunk.0.", LAST, "trunk."):
        found = mf.task_gramian(losses, params, batch, shared=f"{chosen}*")[1].diagonal().sqrt()
        own = [leaf for key, leaf in leaves.items() if key.startswith(chosen)]
        rows = [torch.autograd.grad(loss, own, retain_graph=True) for loss in now]
        errors.append((found / torch.stack([norm_of(row) for row in rows]) - 1).abs().max())
        values.append((float(found[1] / found[0]), float(found[0])))
    return Claim(
        "GN-08",
        {
            "largest relative difference from autograd": largest(errors),
            "smallest relative difference between two choices of W": smallest(
                b / a - 1 for each in zip(*values, strict=True) for a, b in pairwise(sorted(each))
            ),
        },
        f"the first layer, the last shared one and the whole trunk; {problem}, two tasks, float64",
    )


def gap(key: Tensor, normalised: bool) -> Tensor:
    """The next weights, by SGD at random lengths and losses, less the formula's `[task]`."""
    tasks, lr = 5, 1e-5
    u = mf.random.uniform(mf.random.fold_in(key, 7), (4, tasks), torch.float64)
    length, now, begin = 10 ** (3 * u[:3] - 1.5)
    w = 0.05 + u[3]
    w = tasks * w / w.sum()
    alpha = torch.tensor(EVERY_ALPHA, dtype=torch.float64)[key % 5]
    rule = mf.gradnorm(alpha, lr, optimizer=mf.sgd, floor=1e-6, normalize_targets=normalised)
    state = rule.init(begin, key)._replace(weights=w)
    one = torch.ones(tasks, dtype=torch.float64)
    geometry = mf.types.Geometry(now, torch.diag(length**2), one / tasks, one > 0, {})
    following = rule.update(geometry, state)[1].weights
    G, rate = w * length, (now / begin) / (now / begin).mean()
    target = G.mean() * rate**alpha
    target = target / (rate**alpha).mean() if normalised else target
    slope = torch.where(target < G, length, -length)
    moved = (w - lr * slope).clamp_min(1e-6)
    return following - tasks * moved / moved.sum()


def targets() -> Claim:
    """By the next weights."""
    keys = torch.arange(4000)
    plain, normalised = (vmap(gap, (0, None))(keys, which) for which in (False, True))
    return Claim(
        "GN-10",
        {
            "largest difference of the next weights from the formula's": plain.abs().max(),
            "the same, normalised targets": normalised.abs().max(),
        },
        "4,000 draws of lengths, losses and weights of five tasks, α of 0, .12, .5, 1, 2, float64",
    )
