"""What are the targets Ḡ r_i^α, and do they add up to what the norms can reach?"""

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Claims, Exact, exact
from ..report.findings import Findings, Settings
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
claim = Claims(CLAIMS)


def update(key: Tensor, *, normalised: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One update of the library's rule, with SGD on the weights, at random lengths, losses and
    weights. The next weights less the formula's `[task]`, Σ targets/(T·Ḡ), and α.
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
    return following - tasks * moved / moved.sum(), target.sum() / (tasks * G.mean()), alpha


def run(settings: Settings) -> Findings:
    keys = torch.arange(4000)
    gap, total, alpha = vmap(lambda key: update(key, normalised=False))(keys)
    other_gap, other_total, _ = vmap(lambda key: update(key, normalised=True))(keys)
    yield claim(
        "GN-10",
        {
            "largest difference of the next weights from the formula's": gap.abs().max(),
            "the same, normalised targets": other_gap.abs().max(),
            "largest Σ targets/(T·Ḡ), 0 < α < 1": total[(alpha > 0) & (alpha < 1)].max(),
            "smallest Σ targets/(T·Ḡ), α = 2": total[alpha > 1].min(),
            "largest deviation of Σ targets/(T·Ḡ) from 1, normalised targets": (
                (other_total - 1).abs().max()
            ),
        },
        "4,000 draws of lengths, losses and weights of five tasks, α of 0, .12, .5, 1, 2, float64. "
        "Where the targets do not add up to T·Ḡ, L_grad has no zero",
    )
