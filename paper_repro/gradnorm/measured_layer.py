"""Does it matter on which layer GradNorm measures the norms?"""

from itertools import pairwise

import torch

import mtlfunc as mf

from ..report.decisions import Claims, Exact, exact
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import named, ratio_interval
from .common import ALPHA, initial_params, linear_maps, losses, norm_of, sample
from .lanes import LAST, PAIRED, TWO, Lane, Size, Trace, size_of
from .rivals import two_tasks
from .train_lanes import train

CLAIMS = {
    "GN-08": Exact(
        "Norms are measured on a subset W of the weights, normally the last shared layer.",
        exact(
            ("largest relative difference from autograd", "<", 1e-9),
            ("smallest relative difference between two choices of W", ">", 1e-9),
        ),
    )
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    size = size_of(settings)
    lanes = [Lane("GradNorm", lr) for lr in size.two]
    (trunk,) = train({"norms of the whole trunk": ("trunk", lanes)}, size, settings)
    yield measured_layer(two_tasks(settings)[1], trunk, size)


def measured_layer(learnt: Trace, trunk: Trace, size: Size) -> Claim:
    problem = size.problem(TWO)
    start = initial_params(mf.random.key(0), problem)
    params = {name: leaf.double() for name, leaf in start.items()}
    x, y = sample(mf.random.key(2), linear_maps(mf.random.key(1), problem), problem, size.batch)
    batch = (x.double(), y.double())
    leaves = {name: leaf.requires_grad_() for name, leaf in params.items()}
    rows = []
    for loss in losses(leaves, batch):
        parts = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        rows.append(dict(zip(leaves, parts, strict=True)))
    plain = {name: leaf.detach() for name, leaf in leaves.items()}
    errors, ratios = [], {}
    for name, chosen in (
        ("first layer", "trunk.0.*"),
        ("last shared layer", f"{LAST}*"),
        ("whole trunk", "trunk.*"),
    ):
        found = mf.task_gramian(losses, plain, batch, shared=chosen)[1].diagonal().sqrt()
        expected = torch.stack(
            [
                norm_of([part for key, part in row.items() if key.startswith(chosen[:-1])])
                for row in rows
            ]
        )
        errors.append(float((found / expected - 1).abs().max()))
        ratios[f"‖∇_W L_2‖/‖∇_W L_1‖ before training, {name}"] = float(found[1] / found[0])
        ratios[f"‖∇_W L_1‖, {name}"] = float(found[0])
    values = sorted(ratios.values())
    apart = smallest(b / a - 1 for a, b in pairwise(values))
    effect = ratio_interval(trunk.judged("GradNorm"), learnt.judged(f"GradNorm, {ALPHA:g}"))
    return claim(
        "GN-08",
        {
            "largest relative difference from autograd": largest(errors),
            **ratios,
            "smallest relative difference between two choices of W": apart,
            **named("final loss, whole trunk over last layer", effect),
        },
        "a definition: holds if the lengths are autograd's on each W (below 1e-9) and no two "
        f"choices agree; training: T = 2, α = {ALPHA}, {size}; {PAIRED}",
    )
