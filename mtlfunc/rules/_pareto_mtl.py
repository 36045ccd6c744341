"""Pareto MTL: MGDA in the cone of loss vectors that are closest to one of several rays."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.checks import check_count, check_tensor, normalized_preference, poison
from ..core.expect import expect_solver
from ..core.transforms import values_readable
from ..core.tree import root
from ..solvers import min_norm
from ..solvers.default import weights_of
from ..solvers.problems import or_one
from ..types import Geometry, Rule, Solver, State, constructor
from .common import gramian_of, preference_of, reading


class ParetoMTLState(NamedTuple):
    # steps left to look for a first point of the region; 0 once one is found
    search: Int[Tensor, ""]


@constructor
def pareto_mtl(
    ray: Float[Tensor, " task"] | None = None,
    others: Float[Tensor, "vector task"] | None = None,
    search: int = 1000,
    solver: Solver | None = None,
) -> Rule:
    """The shortest convex combination of all g_t and of the violated constraints' gradients Σ_t
    (u_jt - u_t) g_t, constraint j being (u_j - u)·L <= 0.

    At first, until no constraint is violated, of the latter alone. u and u_j are brought to length
    1, so the region is {L: no u_j makes a smaller angle with L than u}.

    Args:
        ray: u `[task]` >= 0, a direction of the **loss vector**: a larger entry allows a
            larger loss, the reverse of `epo`. None is the geometry's preference.
        others: u_j `[vector, task]` >= 0, what u competes with, and may contain it; None is the T
            axes. Front: vmap over the rows of `others` as ray.
        search: most steps >= 0 spent on the constraints alone.
        solver: of `mtlfunc.solvers`, for `min_norm`; None is `auto()`, exact.

    Returns:
        weights α_t + Σ_j β_j (u_jt - u_t) with α, β >= 0, Σα + Σβ = 1; an entry may be negative and
        the sum differs from 1 while a constraint is violated. In the region it is `mgda`.

    Raises:
        ValueError: for a bad ray, negative or zero vectors or of another length, search < 0.

    Source:
        Lin et al. 2019; violated means > 0, as in the official code. Of that the toy takes unit
        vectors and the weights as they are and searches for 20 of 100 steps; the training script
        scales the weights to Σ|w| = T and searches for two epochs at most.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(pareto_mtl(), torch.eye(2), losses=torch.tensor([1.0, 1.0])).tolist()
        [0.5, 0.5]
    """
    check_count(search, "search", 0)
    if others is not None:
        check_tensor(others, "others", "[vector, task]")
        good = others.ndim == 2 and others.is_floating_point()
        if good and values_readable(others):
            good = bool(
                others.isfinite().all() and (others >= 0).all() and (others.sum(-1) > 0).all()
            )
        if not good:
            raise ValueError(
                "others: expected floating vectors [vector, task] with finite entries >= 0 and a "
                f"positive sum in every row, got {others.dtype} of shape {list(others.shape)}: "
                f"{others}"
            )
    expect_solver(solver)

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(ray, losses, "ray")
        if others is not None and others.shape[1] != len(losses):
            raise ValueError(
                f"others: made for {others.shape[1]} tasks, but there are {len(losses)} rows"
            )
        return ParetoMTLState(torch.zeros_like(losses[0], dtype=torch.int64) + search)

    def update(geometry: Geometry, state: ParetoMTLState) -> tuple[Tensor, State]:
        given, present = gramian_of(geometry), geometry.present
        gramian, count, eps = given.double(), len(given), torch.finfo(given.dtype).eps
        losses = geometry.losses.to(gramian)
        axes = torch.eye(count, dtype=gramian.dtype, device=gramian.device)
        u = preference_of(geometry, ray, gramian)
        vectors = (axes if others is None else others.to(gramian)) * present
        apart = vectors / or_one(vectors.norm(dim=-1, keepdim=True)) - u / or_one(u.norm())
        least = 8 * count * eps * losses.norm()
        violated = (apart @ losses > least) & (vectors > 0).any(-1)
        searching = violated.any() & (state.search > 0)

        used = torch.cat([present & ~searching, violated])
        rows = torch.cat([axes, apart])
        places = torch.arange(len(rows), device=used.device)
        first = torch.where(used, places, len(rows)).amin().clamp_max(len(rows) - 1)
        # a copy does not move the shortest vector
        rows = rows.index_select(0, torch.where(used, places, first))
        # where constraints' rows cancel, what rounding leaves must not be indefinite: that of the
        # Gramian, and that of the product here
        square, lengths = gramian.diagonal(), root(gramian.diagonal()) @ rows.abs().mT
        product = rows @ (gramian + 4 * count * eps * square.diag()) @ rows.mT
        noise = 8 * len(rows) * torch.finfo(gramian.dtype).eps * violated.any()
        inner = product + noise * (lengths**2).diag()
        weights = torch.where(present, weights_of(min_norm(inner), solver) @ rows, 0.0)
        left = torch.where(violated.any(), (state.search - 1).clamp_min(0), 0)
        left = torch.where(present.any(), left, state.search)
        return poison(weights, gramian, losses, u).to(given), ParetoMTLState(left)

    return Rule(init, update, reading("gramian", "losses", preference=ray), heads="weighted")
