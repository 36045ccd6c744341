"""Rows averaged over steps: the geometry of tracked gradients (MoCo, DB-MTL)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.checks import check_scalar
from ..core.expect import expect_function
from ..core.transforms import values_readable
from ..core.tree import same_shapes
from ..processes import Group
from ..types import Batch, Heads, Probe, Rows, Scalar, Select, State, TaskGradients, constructor
from .common import Present, Run, answer, check_memory, check_options

Rate = Scalar | Callable[[Tensor], Tensor]


class MovingAverageState(NamedTuple):
    """The averaged rows, and for each task how far the average is from its start."""

    rows: Rows  # Y, {name: [task, *shape]}
    # how much of Y is gradients, the rest being its start at 0: 1 - Π(1 - β)
    mass: Float[Tensor, " task"]
    steps: Int[Tensor, " task"]


@constructor
def moving_average(
    shared: Select = "*", *, rate: Rate = 0.1, corrected: bool = False,
    present: Present | None = None, heads: Heads | None = None, group: Group = None,
) -> Probe:  # fmt: skip
    """`mtlfunc.jacobian` on rows averaged over the steps: Y ← Y - β(Y - J), from Y = 0.

    Args:
        shared: which parameters the tasks share, as in `mtlfunc.jacobian`.
        rate: β in (0, 1], or a function of the step, counted from 1 for each task `[task]`: `lambda
            k: 0.5 / k**0.5`; 1 does not average at all.
        corrected: divide Y by 1 - Π(1 - β), as Adam does: an average of gradients from the first
            step on, where Y itself starts β times as long.
        present: as in `mtlfunc.jacobian`; a task's row stands still where it is absent.
        heads: the gradient of the other parameters, as in `mtlfunc.jacobian`.
        group: as in `mtlfunc.jacobian`; all processes keep the same memory.

    Returns:
        a probe that remembers T rows over the shared parameters; the Gramian is YYᵀ, and the
        combination is of the rows of Y. Weights 1/T give the tracked mean gradient there, the
        current one on the heads.

    Raises:
        ValueError: for what `mtlfunc.jacobian` refuses, and for a rate outside (0, 1].

    Source:
        Fernando et al. 2023, Algorithm 1 (MoCo: `rate` is β_k, not corrected). DB-MTL's average
        (Lin et al. 2023, section 3.2), with decay β/k^σ, is `rate=lambda k: 1 - 0.9 / k**0.5,
        corrected=True`; its code does not correct, so the first step is a tenth as long.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: batch * params["x"]
        >>> step = mf.balance(losses, mf.mean(), moving_average(rate=0.5))
        >>> params, batch = {"x": torch.zeros(())}, torch.tensor([2.0, 6.0])
        >>> state = step.init(params, batch)
        >>> for _ in range(2):
        ...     grads, state, _ = step.update(params, batch, state)
        ...     grads["x"].item()
        2.0
        3.0
    """
    if callable(rate):
        expect_function(rate, "rate", "steps")
    else:
        check_scalar(rate, "rate", positive=True)
        if values_readable(rate) and rate > 1:
            raise ValueError(f"rate: expected a number in (0, 1], got {float(rate)}")

    options = check_options(shared, heads=heads, present=present, group=group)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        losses = options.start(run, batch, rate=rate, corrected=corrected)
        zeros = options.zeros(run, len(losses))
        mass = next(iter(zeros.values())).new_zeros(len(losses))
        return losses, MovingAverageState(zeros, mass, mass.to(torch.int64))

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        found, metric = options.measure(run, batch, rows=True)
        rows, present = found.rows, found.present
        check_memory(isinstance(state, MovingAverageState) and same_shapes(state.rows, rows))
        steps = state.steps + present
        beta = rate(steps.clamp_min(1).to(state.mass)) if callable(rate) else rate
        beta = beta * torch.ones_like(state.mass)
        if callable(rate) and values_readable(beta) and not bool(((beta > 0) & (beta <= 1)).all()):
            raise ValueError(
                f"rate: expected numbers in (0, 1], got {beta.tolist()} at steps {steps.tolist()}"
            )
        beta = beta.to(state.mass).where(present, 0.0)
        mass = state.mass + beta * (1 - state.mass)
        kept = {name: y + _over(beta, y) * (rows[name] - y) for name, y in state.rows.items()}
        shown = present.to(mass) / mass.where(mass > 0, 1.0) if corrected else present.to(mass)
        rows = {name: (_over(shown, y) * y).to(rows[name]) for name, y in kept.items()}
        following = MovingAverageState(kept, mass, steps)
        return answer(found._replace(rows=rows), metric), following

    measures = frozenset({"gramian", "tracked_gramian"})
    return Probe(init, update, group, measures, options.shared, metric=True)


def _over(vector: Tensor, leaf: Tensor) -> Tensor:
    """A vector [task], shaped to multiply rows [task, *shape]."""
    return vector.reshape(-1, *[1] * (leaf.ndim - 1)).to(leaf.dtype)
