"""What are the targets Ḡ r_i^α?"""

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Exact, exact
from ..report.findings import Claim, Findings, Settings
from .lanes import EVERY_ALPHA

CLAIMS = {
    "GN-10": Exact(
        "A task's target length is Ḡ r_i^α.",
        exact(
            ("largest difference of the next weights from the formula's", "<", 1e-9),
            ("the same, normalised targets", "<", 1e-9),
        ),
    )
}


def gap(key: Tensor, normalised: bool) -> Tensor:
    """The next weights less the formula's `[task]`: one update of the library's rule, with SGD on
    the weights, at random lengths, losses and weights.
    """
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


def run(settings: Settings) -> Findings:
    keys = torch.arange(4000)
    plain, normalised = (vmap(gap, (0, None))(keys, which) for which in (False, True))
    yield Claim(
        "GN-10",
        {
            "largest difference of the next weights from the formula's": plain.abs().max(),
            "the same, normalised targets": normalised.abs().max(),
        },
        "4,000 draws of lengths, losses and weights of five tasks, α of 0, .12, .5, 1, 2, float64",
    )
