"""ConicGrad: the best worst-task rate in a cone around the mean gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from ..core.checks import check_scalar, inside_transform, poison
from ..core.operators import flatten_batch, leading_shape, register_batching, with_vmap
from ..solvers import auto
from ..solvers.face_solve import face_hull, lengths
from ..solvers.problems import min_norm, or_one, resolution, root
from ..types import Geometry, Rule, Scalar, State
from .common import fill_absent, gramian_of, no_state, preference_of, reading

ROUNDS = 20
"""Faces tried at most: two to five on a CPU, all of them elsewhere."""


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
    direct = not torch.compiler.is_compiling() and not inside_transform()
    search = _search if direct else torch.ops.mtlfunc.conic_faces
    fixed = torch.as_tensor(c).to(gramian).detach()
    inside, shortest, support = search(gramian.detach(), p.detach(), fixed, eps)
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


class _Problem(NamedTuple):
    """A Gramian and its mean gradient g₀, for the search."""

    gramian: Tensor
    p: Tensor
    c: Tensor
    linear: Tensor  # G p
    rows: Tensor  # vectors with the products of the Gramian
    mean: Tensor  # p @ rows


class _State(NamedTuple):
    """What a round of the search leaves to the next one."""

    s: Tensor  # to be tried
    proposed: Tensor  # the face that gave it
    face: Tensor  # the nearest one on the cone's side
    low: Tensor
    high: Tensor
    done: Tensor


def _search(gramian: Tensor, p: Tensor, c: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Whether MGDA's direction is in the cone, its face, and the face of the direction on the
    cone's surface; of one problem, or of a batch.

    The shortest vector d of the hull of (1 - s)g_t + s g₀ turns from MGDA's direction to g₀ as s
    goes from 0 to 1, and cos(d, g₀) never falls.
    """
    lead, count = leading_shape(zip((gramian, p, c), _RANKS, strict=True)), p.shape[-1]
    given = [x.detach() for x in (gramian, p, c)]
    start: Any = partial(_start, eps=eps)
    turn: Any = partial(_turn, eps=eps)
    if lead:
        given = [
            flatten_batch(x, lead, rank).expand(lead.numel(), *x.shape[x.ndim - rank :])
            for x, rank in zip(given, _RANKS, strict=True)
        ]
        start, turn = vmap(start), vmap(turn, (0, 0, None))
    problem, shortest, state = start(*given)
    inside = state.done
    face, places = state.face.clone(), torch.arange(lead.numel(), device=p.device)
    for i in range(ROUNDS):
        if gramian.is_cpu and lead:  # the others have their faces
            left = (~state.done).nonzero().flatten()
            if len(left) < len(places):
                face[places] = state.face
                places, problem, state = tree_map(
                    lambda x, at=left: x[at], (places, problem, state)
                )
        if gramian.is_cpu and bool(state.done.all()):
            break
        state = turn(problem, state, torch.tensor(i % 3 < 2, device=p.device))
    if lead:
        face[places] = state.face
    else:
        face = state.face
    return (
        inside.clone().reshape(lead),
        shortest.clone().reshape(*lead, count),
        face.reshape(*lead, count),
    )


def _start(gramian: Tensor, p: Tensor, c: Tensor, eps: float) -> tuple[_Problem, Tensor, _State]:
    linear, n = gramian @ p, lengths(gramian)
    # (1 - s)g_t + s g₀ can be far shorter than what it is made of, and its products, made of the
    # Gramian's entries, would then be rounding.
    values, basis = torch.linalg.eigh((gramian / (n[:, None] * n)).nan_to_num())
    rows = n[:, None] * basis * values.where(values > resolution(len(p), eps), 0.0).sqrt()
    problem = _Problem(gramian, p, c, linear, rows, p @ rows)
    inside, shortest = _at(problem, torch.zeros_like(c), eps)
    face = torch.arange(len(p), device=p.device) == linear.argmin()  # as s nears 1
    low, high = torch.zeros_like(c), torch.ones_like(c)
    state = _State(_surface(problem, shortest, eps), shortest, face, low, high, inside)
    return problem, shortest, state


def _turn(problem: _Problem, state: _State, proposes: Tensor, eps: float) -> _State:
    """One round: the s that the last face proposes, or else the middle of what is left."""
    s, proposed, face, low, high, done = state
    fits = (s > low) & (s < high) & proposes
    tried = torch.where(fits, s, 0.5 * (low + high))
    good, support = _at(problem, tried, eps)
    found = fits & (support == proposed).all()
    face = torch.where(done | ~(good | found), face, support)
    low, high = torch.where(good, low, tried), torch.where(good, tried, high)
    return _State(_surface(problem, support, eps), support, face, low, high, done | found)


def _at(problem: _Problem, s: Tensor, eps: float) -> tuple[Tensor, Bool[Tensor, " task"]]:
    """Whether d is in the cone, and the face that it lies on."""
    gramian, p, c, linear, rows, mean = problem
    n, square = lengths(gramian), p @ linear
    shifted = (1 - s) * rows + s * mean
    w = auto()(min_norm(shifted @ shifted.mT)).weights
    d, size = w @ shifted, (1 - s) * (w @ n) + s * (p @ n)
    length = root(d @ d)
    resolved = length > resolution(len(p), eps) ** 0.5 * size
    return resolved & (d @ mean >= c * length * root(square)), w > 0


def _surface(problem: _Problem, support: Tensor, eps: float) -> Tensor:
    """The s at which the hull of this face reaches the cone's surface; NaN if it never does."""
    gramian, p, c, linear, *_ = problem
    square = p @ linear
    hull, delta = face_hull(gramian, support, linear)
    along = p + delta
    kept, product = along @ gramian @ along, hull @ linear
    size = along.abs() @ lengths(gramian)
    kept = kept.where(kept > resolution(len(p), eps) * size**2, torch.nan)  # else g₀ is cancelled
    apart = root((hull @ gramian @ hull) * kept - product**2) / root(kept - c**2 * square)
    mu = (c * root(square) * apart - product) / kept
    return mu / (1 + mu)


_RANKS = (2, 1, 0)
_LIBRARY = torch.library.Library("mtlfunc", "FRAGMENT")
_LIBRARY.define(
    "conic_faces(Tensor gramian, Tensor p, Tensor c, float eps) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("conic_faces", with_vmap(_search), "CPU")
_LIBRARY.impl("conic_faces", with_vmap(_search), "CUDA")


@torch.library.register_fake("mtlfunc::conic_faces", lib=_LIBRARY)
def _(gramian: Tensor, p: Tensor, c: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    lead, count = leading_shape(zip((gramian, p, c), _RANKS, strict=True)), p.shape[-1]
    face = gramian.new_empty((*lead, count), dtype=torch.bool)
    return gramian.new_empty(lead, dtype=torch.bool), face, torch.empty_like(face)


register_batching(_LIBRARY, "conic_faces", _RANKS)
