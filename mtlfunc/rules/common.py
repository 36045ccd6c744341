"""What several rules share: the demand for a Gramian, and rules without state."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import all_present, can_look, normalized_preference
from ..types import Geometry, Rule, State


def gramian_of(
    geometry: Geometry, rule: str, *, symmetric: bool = True
) -> Float[Tensor, "row row"]:
    """The Gramian, or an error that says which probe to use; `symmetric` unless the rule is made
    for J₁J₂ᵀ of two batches.
    """
    if symmetric and "second_losses" in geometry.extra:
        raise ValueError(
            f"{rule} needs the Gramian JJᵀ of one batch, but the probe measures J₁J₂ᵀ of two; "
            "use mtlfunc.jacobian(...), or mtlfunc.modo() or sdmgrad() as rule"
        )
    count = geometry.losses.shape[0]
    if tuple(geometry.gramian.shape) != (count, count):
        raise ValueError(
            f"{rule} needs the Gramian of {count} rows, but the geometry holds one of shape "
            f"{list(geometry.gramian.shape)}; "
            "use mtlfunc.jacobian(...) or mtlfunc.representation(...) as probe, not losses_only()"
        )
    return geometry.gramian


def preference_of(
    geometry: Geometry, preference: Tensor | None = None, like: Tensor | None = None
) -> Float[Tensor, " row"]:
    """The rule's own preference, or else the geometry's, over the present rows: it sums to 1, or is
    all zero where none is present.

    In the dtype of `like`, of the losses if that is None.
    """
    own = normalized_preference(
        preference, geometry.preference.to(geometry.losses if like is None else like)
    )
    if all_present(geometry.present):
        return own
    kept = own.where(geometry.present, 0.0)
    total = kept.sum().where(~geometry.present.all(), 1.0)  # nobody absent: not one bit changes
    return kept / total.where(total > 0, 1.0)


def stand_ins(gramian: Tensor, present: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The Gramian with absent rows replaced by copies of the first present one, and the way back
    from weights of the copies.

    For rules whose direction does not change when a gradient without a say in the mean is listed
    twice: min-norm points, CAGrad, dual cones. The way back adds the copies' weights to the
    original's; absent rows get 0, and so do all if none is present.
    """
    if all_present(present):
        return gramian, lambda weights: weights
    tasks = torch.arange(len(present), device=present.device)
    first = torch.where(present, tasks, len(present)).amin().clamp_max(len(present) - 1)
    owner = torch.where(present, tasks, first)

    def back(weights: Tensor) -> Tensor:
        return (weights @ (owner[:, None] == tasks).to(weights)).where(present, 0.0)

    return gramian.index_select(0, owner).index_select(1, owner), back


def mean_present(x: Tensor, present: Tensor) -> Tensor:
    """The mean of `x` [row] over the present rows; 0 if there are none."""
    if all_present(present):
        return x.mean()
    return x.where(present, 0.0).sum() / present.sum().clamp_min(1)


def total_present(x: Tensor, present: Tensor, whole: float) -> Tensor:
    """The sum of `x` [row] over the present rows where some are absent; `whole`, what it is by
    construction, where none is; 1 if all are.
    """
    if all_present(present):
        return torch.full_like(x[0], whole)
    total = x.where(present, 0.0).sum()
    return torch.where(present.all(), whole, total.where(total > 0, 1.0))


def refuse_absent(weights: Tensor, geometry: Geometry, rule: str) -> Tensor:
    """`weights`, or an error where a row is absent and the rule cannot do without it (NaN where
    that cannot be seen).
    """
    if all_present(geometry.present):
        return weights
    if can_look(geometry.present) and not bool(geometry.present.all()):
        raise ValueError(
            f"{rule} needs every task in every batch, but tasks "
            f"{(~geometry.present).nonzero().flatten().tolist()} are absent from this one"
        )
    return weights.where(geometry.present.all(), float("nan"))


def stateless(f: Callable[..., Tensor]) -> Rule:
    """A rule from a function of the Gramian `[row, row]`, or of the Gramian and the losses `[row]`,
    to weights `[row]`.

    `f` sees every row, so a batch from which tasks are absent is refused; a rule that is to know
    `geometry.present` is written as a `Rule`.

    Raises:
        TypeError: for a function with neither one nor two positional arguments. ValueError: at a
        step, for absent tasks.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(mf.stateless(lambda gramian: torch.softmax(-gramian.diagonal(), -1)), torch.eye(2)).tolist()
        [0.5, 0.5]
    """
    count = _arguments(f)
    if count not in (1, 2):
        raise TypeError(
            f"stateless: expected f(gramian) or f(gramian, losses), got {count} arguments "
            "without defaults"
        )
    name = getattr(f, "__name__", "the rule")

    def init(losses: Tensor, key: Tensor) -> State:
        return ()

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry, name, symmetric=False)
        weights = f(gramian) if count == 1 else f(gramian, geometry.losses)
        return refuse_absent(weights, geometry, name), ()

    return Rule(init, update)


def _arguments(f: Callable[..., Tensor]) -> int:
    """How many positional arguments without defaults `f` has."""
    # so that a rule may be built while the compiler traces: it cannot follow inspect
    if isinstance(f, FunctionType):
        return f.__code__.co_argcount - len(f.__defaults__ or ())
    return sum(
        p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        for p in inspect.signature(f).parameters.values()
    )
