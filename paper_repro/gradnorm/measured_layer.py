"""Are the norms those of the layers that are chosen, and does the choice matter?"""

from itertools import pairwise

import torch

import mtlfunc as mf

from ..report.decisions import Exact, exact
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings
from .common import LAST, TWO, initial_params, linear_maps, losses, norm_of, sample
from .lanes import size_of

CLAIMS = {
    "GN-08": Exact(
        "Norms are measured on a subset W of the weights, normally the last shared layer.",
        exact(
            ("largest relative difference from autograd", "<", 1e-9),
            ("smallest relative difference between two choices of W", ">", 1e-9),
        ),
    )
}


def run(settings: Settings) -> Findings:
    """The lengths before training, in float64, against autograd."""
    size = size_of(settings)
    problem = size.problem(TWO)
    start = initial_params(mf.random.key(0), problem)
    x, y = sample(mf.random.key(2), linear_maps(mf.random.key(1), problem), problem, size.batch)
    params, batch = {name: leaf.double() for name, leaf in start.items()}, (x.double(), y.double())
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    now = losses(leaves, batch)
    errors, values, ratios = [], [], {}
    for name, chosen in (
        ("first layer", "trunk.0."),
        ("last shared layer", LAST),
        ("whole trunk", "trunk."),
    ):
        found = mf.task_gramian(losses, params, batch, shared=f"{chosen}*")[1].diagonal().sqrt()
        own = [leaf for key, leaf in leaves.items() if key.startswith(chosen)]
        rows = [torch.autograd.grad(loss, own, retain_graph=True) for loss in now]
        errors.append((found / torch.stack([norm_of(row) for row in rows]) - 1).abs().max())
        ratio = float(found[1] / found[0])
        ratios[f"‖∇_W L_2‖/‖∇_W L_1‖ before training, {name}"] = ratio
        values += [ratio, float(found[0])]
    yield Claim(
        "GN-08",
        {
            "largest relative difference from autograd": largest(errors),
            **ratios,
            "smallest relative difference between two choices of W": smallest(
                b / a - 1 for a, b in pairwise(sorted(values))
            ),
        },
        "a definition: holds if the lengths are autograd's on each W and no two choices agree in "
        f"lengths or ratio; {problem}, two tasks, float64",
    )
