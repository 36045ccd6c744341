"""ConicGrad: the best worst-task rate in a cone around the mean gradient."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.checks import can_look, check_scalar, poison
from ..solvers import auto
from ..solvers.face_solve import face_hull, lengths
from ..solvers.problems import min_norm, or_one, resolution, root
from ..types import Geometry, Rule, Scalar, State
from .common import fill_absent, gramian_of, no_state, preference_of, reading

ROUNDS = 20
"""Faces tried at most: two to five where values can be read, all of them elsewhere."""


def conicgrad(c: Scalar = 0.5, *, preference: Float[Tensor, " task"] | None = None) -> Rule:
    """max over ‖d‖ = ‖g₀‖ with cos(d, g₀) >= c of min_t g_t·d, where g₀ = Σ p_t g_t is the mean
    gradient.

    If MGDA's direction lies in the cone, it is the answer. Otherwise the answer lies on the cone's
    surface, and is CAGrad's direction for the radius that reaches the surface. It may raise a loss
    where every direction of the cone does. If gradients cancel (a Pareto-stationary point), it is
    what remains of g₀ after its part in their span is removed, if that lies in the cone.

    Args:
        c: smallest cosine in [0, 1) of the direction with the mean gradient. 0 gives MGDA's
            direction.
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T unless tasks were
            mixed.

    Returns:
        weights of a direction as long as the mean gradient; 1 in sum if all tasks share one
        gradient. No task's rate is above that of the optimum's dual bound, min over the simplex
        and μ >= 0 of ‖g_w + μg₀‖ - μc‖g₀‖, which it attains.

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
        filled, restore = fill_absent(gramian, geometry.present)
        p = preference_of(geometry, preference, gramian)
        p = p.where(p.sum() != 0, 1 / len(p))  # no task is present: any answer, which is dropped
        weights = _best_in_cone(filled.double(), p.double(), c, torch.finfo(gramian.dtype).eps)
        return restore(poison(weights.to(gramian.dtype), filled)), ()

    return Rule(no_state(preference), update, reading("gramian", preference=preference))


def _best_in_cone(gramian: Tensor, p: Tensor, c: Scalar, eps: float) -> Tensor:
    """The weights of `conicgrad`'s direction; `eps` is the noise of the Gramian's entries."""
    fixed = c.detach() if isinstance(c, Tensor) else c
    inside, shortest, support = _search(gramian.detach(), p.detach(), fixed, eps)
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
    size = (hull.abs() + (hull - off).abs()) @ root(gramian.diagonal())
    resolved = height > resolution(len(p), eps) * size**2
    sine = torch.where(resolved & (cosine < 1), root(1 - cosine**2), 0.0)
    cosine = cosine.where(sine > 0, 1.0)
    surface = cosine / or_one(root(square)) * along + sine / or_one(root(height)) * off
    own = face_hull(gramian, shortest, linear)[0]
    return mean * torch.where(inside, own / or_one(root(own @ gramian @ own)), surface)


def _search(
    gramian: Tensor, p: Tensor, c: Scalar, eps: float
) -> tuple[Tensor, Bool[Tensor, " task"], Bool[Tensor, " task"]]:
    """Whether MGDA's direction is in the cone, its face, and the face of the direction on the
    cone's surface.

    The shortest vector d of the hull of (1 - s)g_t + s g₀ turns from MGDA's direction to g₀ as s
    goes from 0 to 1, and cos(d, g₀) never falls.
    """
    solve, linear = auto(), gramian @ p
    square, least = p @ linear, resolution(len(p), eps)
    n = lengths(gramian)
    # Vectors with these products: (1 - s)g_t + s g₀ can be far shorter than what it is made of, and
    # its products, made of the Gramian's entries, would then be rounding.
    values, basis = torch.linalg.eigh((gramian / (n[:, None] * n)).nan_to_num())
    rows = n[:, None] * basis * values.where(values > least, 0.0).sqrt()
    mean = p @ rows

    def at(s: Tensor) -> tuple[Tensor, Tensor]:
        """Whether d is in the cone, and the face that it lies on."""
        shifted = (1 - s) * rows + s * mean
        w = solve(min_norm(shifted @ shifted.mT)).weights
        d, size = w @ shifted, (1 - s) * (w @ n) + s * (p @ n)
        length = root(d @ d)
        inside = (length > least**0.5 * size) & (d @ mean >= c * length * root(square))
        return inside, w > 0

    def surface(support: Tensor) -> Tensor:
        """The s at which the hull of this face reaches the cone's surface; NaN if it never does."""
        hull, delta = face_hull(gramian, support, linear)
        along = p + delta
        kept, product = along @ gramian @ along, hull @ linear
        apart = root((hull @ gramian @ hull) * kept - product**2) / root(kept - c**2 * square)
        mu = (c * root(square) * apart - product) / kept
        return mu / (1 + mu)

    inside, shortest = at(torch.zeros_like(square))
    low, high = torch.zeros_like(square), torch.ones_like(square)
    tasks = torch.arange(len(p), device=p.device)
    face = tasks == linear.argmin()  # the face as s nears 1
    s, proposed, done = surface(shortest), shortest, inside
    for i in range(ROUNDS):
        if can_look(done) and bool(done):
            break
        middle = 0.5 * (low + high)
        fits = (s > low) & (s < high) & (i % 3 < 2)
        tried = torch.where(fits, s, middle)
        good, support = at(tried)
        found = fits & (support == proposed).all()
        face = torch.where(done | ~(good | found), face, support)
        low, high = torch.where(good, low, tried), torch.where(good, tried, high)
        s, proposed, done = surface(support), support, done | found
    return inside, shortest, face
