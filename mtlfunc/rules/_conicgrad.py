"""ConicGrad: the best worst-task rate in a cone around the mean gradient."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_scalar, poison
from ..core.operators import define, leading_shape
from ..solvers.exact import run
from ..solvers.face_solve import face_hull
from ..solvers.problems import RESOLUTION, MinNorm, or_one, precision, resolution, root, rounding
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import fill_absent, gramian_of, no_state, preference_if_any, reading

ROUNDS = 20
"""At most so many on a CPU: two to four do where a direction of the cone lowers every loss."""
POINTS, FEW_ROUNDS = 31, 4
"""Elsewhere, where nobody can look, all of so many rounds of so many points: 32^4 = 2^20."""


@constructor
def conicgrad(c: Scalar = 0.5, *, preference: Float[Tensor, " task"] | None = None) -> Rule:
    """The best worst rate in a cone around g₀ = Σ p_t g_t, made as long as g₀: max over ‖d‖ <= ‖g₀‖
    with g₀·d >= c‖g₀‖² of min_t g_t·d. Such a d has a cosine of at least c with g₀.

    If MGDA's direction lies in the cone, it is the answer. Otherwise the answer lies on the cone's
    surface, and is CAGrad's direction for the radius that reaches the surface. If gradients cancel
    (a Pareto-stationary point), it is g₀ without its part in their span, if that is in the cone.

    Where some direction of the cone lowers every loss, the optimum has the length ‖g₀‖, and none of
    the cone with that length has a better worst rate. Where none does, the answer raises a loss or
    leaves one as it is, and the optimum may be shorter. Made longer, it still has the best worst
    rate for each unit of g₀·d, but another direction of the cone, as long, may have a better one.
    A gradient of 0 has the rate 0: the others decide, and its weight is p_t.

    Args:
        c: smallest cosine in [0, 1) of direction and mean gradient; 0 gives MGDA's direction.
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.

    Returns:
        weights of a direction as long as the mean gradient; 1 in sum if all tasks share one
        gradient. The optimum attains its dual bound, ‖g₀‖ times the min over the simplex and μ >= 0
        of ‖g_w + μg₀‖ - μc‖g₀‖. It is the answer, or c‖g₀‖²/(g₀·d) of it where that raises a loss.

    Raises:
        ValueError: for c outside [0, 1) or a bad preference.

    Source:
        Hassanpour et al. 2025 (arXiv 2502.00217), the constrained problem of its section 3. The
        paper fixes the multiplier of the cone and takes gradient steps on w, so its direction is
        neither optimal nor always in the cone; here both multipliers are exact.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.aggregate(conicgrad(0.5), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([0.5000, 0.5000])
    """
    check_scalar(c, "c", below=1.0)

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        moved = gramian.diagonal() != 0
        filled, restore = fill_absent(gramian, geometry.present & moved)
        p, some = preference_if_any(geometry, preference, gramian)
        count, dtype, others = len(p), gramian.dtype, p.where(moved, 0.0).double()
        eps = precision(count, dtype)
        # the Gramian tells wᵀG w to within this times (Σ w_t‖g_t‖)²
        least = min(resolution(count, eps), rounding(count, dtype) + RESOLUTION)
        weights = restore(_best_in_cone(filled.double(), others, c, eps, least).to(dtype))
        return poison(some * weights.where(moved, p), fill_absent(gramian, geometry.present)[0]), ()

    return Rule(no_state(preference), update, reading("gramian", preference=preference))


def _best_in_cone(gramian: Tensor, p: Tensor, c: Scalar, eps: float, least: float) -> Tensor:
    """The weights of `conicgrad`'s direction; `eps` is the noise of the Gramian's entries."""
    fixed = c.to(gramian).detach() if isinstance(c, Tensor) else gramian.new_full((), c)
    inside, support = _conic_faces(gramian.detach(), p.detach(), fixed, eps, least)
    linear = gramian @ p
    mean = root(p @ linear)
    # On a face the direction is g_w + μg₀ less its part in the face: q + μq₀, with q the shortest
    # vector of the face's hull and q₀ what is left of g₀.
    hull, delta = face_hull(gramian, support, linear)
    along = p + delta
    square = along @ gramian @ along
    off = hull - (hull @ gramian @ along) / or_one(square) * along
    height = off @ gramian @ off
    # cos(d, g₀) = c divides the unit vector among q₀ and what of q is orthogonal to it
    cosine = c * mean / or_one(root(square))
    sizes = torch.stack([hull.abs() + (hull - off).abs(), along.abs()]) @ root(gramian.diagonal())
    resolved = (height > least * sizes[0] ** 2) & (square > (least - RESOLUTION) * sizes[1] ** 2)
    sine = torch.where(resolved & (cosine < 1), root(1 - cosine**2), 0.0)
    cosine = cosine.where(sine > 0, 1.0)
    surface = cosine / or_one(root(square)) * along + sine / or_one(root(height)) * off
    return mean * torch.where(inside, hull / or_one(root(hull @ gramian @ hull)), surface)


def _search(
    gramian: Tensor, p: Tensor, c: Tensor, eps: float, least: float, look: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Whether MGDA's direction is in the cone; and its face if so, or else that of the direction on
    the cone's surface. Of one problem, or of a batch.

    The shortest vector d of the hull of (1 - s)g_t + s g₀ turns from MGDA's direction to g₀ as s
    goes from 0 to 1, and cos(d, g₀) never falls. While its face stays the same, d is linear in s.
    So a round tries the s where the chord between both ends reaches the surface, the answer if they
    have one face, and others at equal distances between the ends.
    """
    lead, count = leading_shape(zip((gramian, p, c), _RANKS, strict=True)), p.shape[-1]
    gramian, p, c = (
        x.detach().expand((*lead, *x.shape[x.ndim - rank :]))
        for x, rank in zip((gramian, p, c), _RANKS, strict=True)
    )
    n = root(gramian.diagonal(0, -2, -1))
    # (1 - s)g_t + s g₀ can be far shorter than what it is made of, and its products, made of the
    # Gramian's entries, would then be rounding.
    unit = or_one(n)
    cosine = (gramian / unit.unsqueeze(-1) / unit.unsqueeze(-2)).nan_to_num()
    n = n / or_one(n.amax(-1, keepdim=True))  # fourth powers of lengths follow
    ridge = 4 * count * eps
    added = ridge * torch.eye(count, dtype=n.dtype, device=n.device)
    rows = n.unsqueeze(-1) * torch.linalg.cholesky_ex(cosine + added)[0]
    mean = _sum(p, rows)
    whole = torch.linalg.vector_norm(mean, dim=-1, keepdim=True)

    def at(s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For s `[…, K]`: whether d is in the cone, and whether it is on the surface, up to
        rounding; d `[…, K, T]` and the face that it lies on.
        """
        share = s[..., None, None]
        shifted = (1 - share) * rows.unsqueeze(-3) + share * mean[..., None, None, :]
        report, support, _ = run(MinNorm(shifted @ shifted.mT), torch.finfo(s.dtype).eps)
        w = report[..., :count]
        d = _sum(w, shifted)
        parts = torch.lerp(w, p.unsqueeze(-2), share.squeeze(-1)) * n.unsqueeze(-2)
        size, length = parts.sum(-1), torch.linalg.vector_norm(d, dim=-1)
        spare = (d @ mean.unsqueeze(-1)).squeeze(-1) - c.unsqueeze(-1) * length * whole
        noise = 64 * count * torch.finfo(s.dtype).eps * size * whole
        # less what the ridge adds to ‖d‖² beyond `least`
        square = length.square() - max(ridge - least, 0.0) * parts.square().sum(-1)
        good = (square > least * size.square()) & (spare >= -noise)
        return good, good & (spare <= noise), d, support[..., 0, :]

    low, high = torch.zeros_like(c).unsqueeze(-1), torch.ones_like(c).unsqueeze(-1)
    good, _, d, support = at(low)
    inside, outside, shortest = good.squeeze(-1), d.squeeze(-2), support.squeeze(-2)
    last = (rows @ mean.unsqueeze(-1)).squeeze(-1).argmin(-1, keepdim=True)  # as s nears 1
    face, within, found = torch.arange(count, device=p.device) == last, mean, inside
    look = gramian.is_cpu if look is None else look
    points, rounds = (1, ROUNDS) if look else (POINTS, FEW_ROUNDS)
    grid = torch.linspace(0, 1, points + 2, dtype=p.dtype, device=p.device)[1:-1]
    for _ in range(rounds):
        if look and bool(found.all()):
            break
        chord = _chord(mean, c, outside, within).unsqueeze(-1)
        tried = torch.lerp(low, high, torch.cat([chord, grid.expand((*lead, points))], -1))
        good, close, d, support = at(tried)
        found = found | close.any(-1)
        s = torch.cat([tried, low, high], -1)
        good = torch.cat([good, low > high, low <= high], -1)
        d = torch.cat([d, outside.unsqueeze(-2), within.unsqueeze(-2)], -2)
        support = torch.cat([support, face.unsqueeze(-2), face.unsqueeze(-2)], -2)
        high, above = s.where(good, torch.inf).min(-1, keepdim=True)
        low, below = s.where(~good & (s < high), -torch.inf).max(-1, keepdim=True)
        outside, within, face = _take(d, below), _take(d, above), _take(support, above)
    return inside.clone(), torch.where(inside.unsqueeze(-1), shortest, face)


def _sum(weights: Tensor, rows: Tensor) -> Tensor:
    return (weights.unsqueeze(-2) @ rows).squeeze(-2)


def _take(x: Tensor, place: Tensor) -> Tensor:
    """x `[…, K, T]` at place `[…, 1]`."""
    return x.gather(-2, place.unsqueeze(-1).expand(*x.shape[:-2], 1, x.shape[-1])).squeeze(-2)


def _chord(mean: Tensor, c: Tensor, outside: Tensor, within: Tensor) -> Tensor:
    """The t in (0, 1) where outside + t(within - outside) reaches the surface; ½ if there is none.

    It is the larger root of (d·g₀)² - c²‖d‖²‖g₀‖² below 1.
    """
    along, level = within - outside, c**2 * mean.square().sum(-1)
    x, y = (outside * mean).sum(-1), (along * mean).sum(-1)
    first = x * x - level * outside.square().sum(-1)
    second = x * y - level * (outside * along).sum(-1)
    third = y * y - level * along.square().sum(-1)
    apart = root(second * second - first * third)
    t = torch.where(second < 0, (apart - second) / third, -first / (second + apart))
    return torch.where((t > 0) & (t < 1), t, 0.5)


_RANKS = (2, 1, 0)
_conic_faces = define(
    "conic_faces(Tensor gramian, Tensor p, Tensor c, float eps, float least) -> (Tensor, Tensor)",
    _search,
    _RANKS,
    lambda lead, _, p, *__: (p.new_empty(lead).bool(), p.new_empty((*lead, p.shape[-1])).bool()),
)
