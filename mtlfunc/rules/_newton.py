"""α-fair bargaining on the Gramian by Newton's method, for Nash-MTL and FairGrad."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import poison
from ..core.linear import solve_factored
from ..core.operators import define
from ..core.transforms import is_differentiated, values_readable
from ..solvers.problems import precision

# At most 40 for powers from 1/3 to 3: 6 do for Nash-MTL, 5 to 30 for others, and where 0 is in the
# hull of the gradients 18 to 30, after which rounding moves the answer. All of them on a device.
STEPS = 40
# At most 256 for other powers: 180 do for 1/50 and 50 with 32 lengths over eight orders of
# magnitude. After STEPS only those are made that are large or shrink fast.
MORE = 256
FACTOR = 8.0  # no unknown changes by more than e^8 in a step


def bargain(
    gramian: Float[Tensor, "row row"], power: float | Tensor, share: Float[Tensor, " row"]
) -> tuple[Tensor, Tensor]:
    """The w >= 0 with (G w)_i = (w_i / s_i)^-power: the minimiser of ½ wᵀG w - Σ s_i^power φ(w_i),
    φ' = w^-power.

    On unit rows C, with every task's weight in units of what it would get alone, w = w₀ z, this
    reads C(c z) = c z^-power, where c_i = ‖g_i‖^((power-1)/(power+1)) s_i^(power/(power+1)): blind
    to the gradients' lengths when power = 1. Newton's method takes the logarithms of z and of the
    rates r = C(c z) as unknowns, so that both stay positive without a line search. A ridge 4Tε on C
    keeps z below about 1/√ε where 0 is in the hull of the gradients and no solution exists. A last
    step, on z alone, is without the ridge.

    Where something differentiates, a step on z alone that starts from the solution, held constant,
    makes derivatives of order one exact; the last step makes those of order two exact.

    Returns:
        (weights for gradients scaled so that the longest has length 1, that length): w is weights ·
        length^(-2/(power+1)). The weights of zero rows and of zero shares are 0.
    """
    ridge = 4 * len(gramian) * precision(len(gramian), gramian.dtype)
    given, gramian, share = gramian, gramian.double(), share.double()
    diagonal = gramian.diagonal()
    real = (diagonal > 0) & (share > 0)
    length = torch.where(real, diagonal, 1.0).sqrt()
    longest = torch.where(real, length, 0.0).amax()
    longest = longest.where(longest > 0, 1.0)
    relative = torch.where(real, length / longest, 1.0)
    unit = torch.where(real, 1 / length, 0.0)
    # tasks without gradient or share bargain alone, and get nothing in the end
    cosine = gramian * unit * unit[:, None] + torch.diag((~real).to(unit))
    own = power / (power + 1)
    c = relative ** (2 * own - 1) * torch.where(real, share, 1.0) ** own
    most = STEPS if isinstance(power, float) and 1 / 3 <= power <= 3 else MORE
    # one operator, as a compiler takes a minute for the code of all steps
    z, settled = (_bargain if gramian.is_cpu else _solve)(
        cosine.detach().nan_to_num(0.0, 0.0, 0.0),
        c.detach(),
        (power + torch.zeros_like(c[0])).detach(),  # 0-d, a number too
        most,
        ridge,
    )
    if values_readable(settled, given) and not bool(settled) and bool(given.isfinite().all()):
        failed = f"Newton's method has not settled within {most} steps"
        apart = "the gradients' lengths, or the entries of the preference, are too far apart"
        raise ValueError(
            f"gramian: {failed}; {apart}: take a more even preference, or normalize(...) the rule"
            if most == STEPS
            else f"alpha: {failed}; with a fairness so near to 0 or so large {apart} (alpha from "
            "1/3 to 3 allows for eight orders of magnitude): take a milder alpha, or "
            "normalize(...) the rule"
        )
    z = torch.where(settled, z, float("nan"))
    if is_differentiated((cosine, c, power)):
        rates = c * z**-power
        missing = rates - cosine @ (c * z) - ridge * c * z
        z = z * (1 + _step(cosine, c * z, rates, missing, power, ridge))
    rates = c * z**-power
    last = _step(cosine, c * z, rates, rates - cosine @ (c * z), power, ridge)
    # 1 + last to first order, and positive where the ridge was what held z up
    z = z * torch.where(last < 0, 1 / (1 - last.clamp_max(0)), 1 + last)
    return poison(torch.where(real, c / relative * z, 0.0), given, share), longest


def _solve(
    cosine: Tensor, c: Tensor, power: Tensor, most: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """z, and whether it has settled: where 0 is in the hull rounding moves it by a few percent for
    ever, elsewhere by nothing. Of one problem, or of a batch as `define` describes it.

    The logarithms of y = c z and of the rates are rows 0 and 1 of one tensor.
    """
    power, start = power[..., None], c.log()
    logs, wanted = torch.stack([start, start]), (1 + power) * start
    change = torch.full_like(c[..., 0], torch.inf)
    for count in range(most):
        y, rates = logs.exp()
        missing = wanted - logs[1] - power * logs[0]
        missed = rates * (1 + missing) - (cosine @ y[..., None])[..., 0] - ridge * y
        step = _step(cosine, y, rates, missed, power, ridge)
        steps = torch.stack([step, missing - power * step])
        before, change = change, steps.abs().amax((0, -1))
        share = (FACTOR / change).clamp_max(1.0)
        if count >= STEPS:  # what is neither large nor shrinks fast is rounding, near a solution
            far = (change >= 1) | (change < 0.7 * before) | ~_is_near(cosine, ridge, y, rates)
            share = share.where(far, 0.0)
            if values_readable(share) and float(share.amax()) == 0:
                break
        logs = logs + share[..., None] * steps
        # the steps that remain would change nothing but rounding
        if values_readable(change) and float(change.amax()) < 1e-9:
            break
    return (logs[0] - start).exp(), (change < 1) & _is_near(cosine, ridge, *logs.exp())


def _is_near(cosine: Tensor, ridge: float, y: Tensor, rates: Tensor) -> Tensor:
    """Whether C y and the ridge miss the rates by little of what cancels in C y: rounding is .007
    of that where 0 is in the hull, and small powers make small steps where .1 is missing.
    """
    terms, found = cosine.abs() @ y[..., None], cosine @ y[..., None] + ridge * y[..., None]
    return ((found - rates[..., None]).abs() <= terms / 32).all(-2)[..., 0]


def _step(
    cosine: Tensor, y: Tensor, rates: Tensor, missing: Tensor, power: float | Tensor, ridge: float
) -> Tensor:
    """The relative change e of y with (C diag(y) + power diag(rates)) e = missing, but for a ridge
    at rounding level of the diagonal.
    """
    diagonal = rates / y * (power * (1 + ridge)) + ridge
    factor = torch.linalg.cholesky_ex(cosine + torch.diag_embed(diagonal))[0]
    return solve_factored(missing[..., None], factor)[..., 0] / y


_bargain = define(
    "bargain(Tensor cosine, Tensor c, Tensor power, int most, float ridge) -> (Tensor, Tensor)",
    _solve,
    (2, 1, 0),
    lambda lead, cosine, c, *_: (c.new_empty((*lead, c.shape[-1])), c.new_empty(lead).bool()),
    ("CPU",),
)
