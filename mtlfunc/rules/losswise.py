"""What rules that learn weights share: positive losses, softmax, learned numbers, unit vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.checks import check_scalar, check_tensor, poison
from ..core.expect import expect_function, expect_optimizer
from ..core.internals import tree_map
from ..core.transforms import all_present, values_readable
from ..types import Optimizer, Scalar, State


def check_shape(given: Tensor | None, losses: Float[Tensor, " row"], argument: str) -> None:
    """Raise unless `given`, if there is one, has an entry for each loss."""
    if given is not None:
        check_tensor(given, argument, "[task]", losses.shape)


MAY_BE_0 = ", or pass eps=1e-8 where one may be 0"


def require_positive(
    losses: Float[Tensor, " row"], present: Bool[Tensor, " row"], rule: str, cure: str = ""
) -> Float[Tensor, " row"]:
    """The losses, 1 for absent tasks; an error where one is not positive, NaN if it is unseen."""
    if values_readable(losses, present) and bool((present & (losses <= 0)).any()):
        raise ValueError(
            f"losses: {rule} takes logarithms and ratios, which need losses > 0, got "
            f"{losses.tolist()}; shift them by a lower bound{cure}"
        )
    return torch.where(present, losses.where(losses > 0, float("nan")), 1.0)


def require_nonnegative(losses: Float[Tensor, " row"], use: str) -> Float[Tensor, " row"]:
    """The losses; an error about this `use` where one is below 0, NaN if it is unseen."""
    if values_readable(losses) and bool((losses < 0).any()):
        raise ValueError(
            f"{use} losses >= 0, got {losses.tolist()}; shift the losses, or bound them below"
        )
    return losses.where(losses >= 0, float("nan"))


def softmax(
    x: Float[Tensor, " row"], prior: Float[Tensor, " row"], unit: Scalar | None = None
) -> Float[Tensor, " row"]:
    """prior∘exp(x/unit) / Σ prior∘exp(x/unit): softmax for a constant prior, 0 where that is 0."""
    inside = prior > 0
    every = all_present(inside)
    if unit is not None or not every:  # shifted first, or halves overflow
        x = (x - x.where(inside, x.amin()).amax()) / (1.0 if unit is None else unit)
    if every:
        return torch.softmax(x + prior.log(), -1)
    grown = prior * torch.exp(x.where(inside, 0.0))
    total = grown.sum()
    return grown / total.where(total != 0, 1.0)


def exponentiate(
    logits: Float[Tensor, " task"], slope: Float[Tensor, " task"], present: Bool[Tensor, " task"]
) -> tuple[Tensor, Tensor]:
    """w = softmax(logits + slope) over the present tasks, 0 for the others, and the next logits.

    Σ exp(logits) stays T. The present tasks share what they had together, and of an absent one
    nothing moves. Where a slope is not finite, all that moves is NaN.
    """
    moved = logits + slope
    if all_present(present):
        shares = poison(torch.log_softmax(moved, 0), slope)
        return shares.exp(), shares + math.log(len(shares))

    def total(x: Tensor) -> Tensor:
        return x.where(present, -torch.inf).where(present.any(), 0.0).logsumexp(0)

    before = total(logits)
    moved = poison(moved - total(moved) + before, slope).where(present, logits)
    return (moved - before).exp().where(present, 0.0), moved


def optimizer_at(make: Callable[[Scalar], Optimizer], lr: Scalar) -> Optimizer:
    """The optimizer of what a rule learns; an error unless `make` makes one of a learning rate."""
    check_scalar(lr, "lr", positive=True)
    kind = make if isinstance(make, type) else type(make)
    if issubclass(kind, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: got torch.optim.{kind.__name__}, which moves parameters in place, but a "
            "rule is a pure function; pass mtlfunc.adam or mtlfunc.sgd, not called"
        )
    expect_function(make, "optimizer", "lr")
    move = make(lr)
    expect_optimizer(move)
    return move


def begin(move: Optimizer, x: Float[Tensor, " row"]) -> State:
    """The optimizer's first state for x, in which every task has counters of its own."""
    zero, state = torch.zeros_like(x), move.init({"x": x})
    return tree_map(lambda y: y + zero.to(y) if isinstance(y, Tensor) else y, state)


def learn(
    move: Optimizer,
    x: Float[Tensor, " row"],
    slope: Float[Tensor, " row"],
    state: State,
    present: Bool[Tensor, " row"],
) -> tuple[Tensor, State]:
    """One step of an optimizer on x along its slope; nothing of an absent task moves."""
    moved, following = move.update({"x": slope.where(present, 0.0)}, state, {"x": x})
    following = tree_map(lambda new, old: new.where(present, old), following, state)
    return moved["x"].where(present, x), following


def unit_and_length(x: Float[Tensor, " row"]) -> tuple[Float[Tensor, " row"], Float[Tensor, ""]]:
    """x/‖x‖ and ‖x‖, without squares that leave the range of floats; zeros for zeros."""
    top = x.abs().amax()
    scaled = x / top.where(top != 0, 1.0)
    length = (scaled @ scaled).where(top != 0, 1.0).sqrt()
    return scaled / length, top * length
