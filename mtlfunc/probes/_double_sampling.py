"""Several independent batches a step: an unbiased stochastic Gramian (MoDo, SDMGrad)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_params
from ..core.transforms import all_rows_mask
from ..core.tree import gramians, map_params, select
from ..gradients.run import Forward
from ..processes import Group
from ..types import Batch, Geometry, Heads, Params, Probe, Select, State, TaskGradients, constructor
from .common import EXPECTED, Run, check_memory, check_options, first_losses


@constructor
def double_sampling(
    shared: Select = "*", *, heads: Heads | None = None, group: Group = None
) -> Probe:
    """The Gramian J₁J₂ᵀ of two independent batches, whose expectation is E[J]E[J]ᵀ.

    One batch's JJᵀ adds the covariance of the gradient noise to it. The batch of a step is a tuple
    of batches, drawn independently: `(first, second)`, and the combination is of the rows' mean
    (J₁ + J₂)/2; or `(first, second, third)`, and it is of J₃, independent of the weights too, at
    the price of one forward and one backward pass.

    Args:
        shared: which parameters the tasks share, as in `mtlfunc.jacobian`.
        heads: as in `mtlfunc.jacobian`; from the mean of two batches or from the third.
        group: as in `mtlfunc.jacobian`, of whose processes the first batches are one batch, the
            second ones another; every rank counts alike, and keeps the whole rows.

    Returns:
        a probe whose Gramian `[task, task]` is **not symmetric** and whose diagonal may be
        negative: for `mtlfunc.modo` and `mtlfunc.sdmgrad`. It measures "cross_gramian", so
        `mtlfunc.balance` refuses rules that read "gramian", JJᵀ. `geometry.extra["second_losses"]`
        are the second batch's. Losses are those of the batches combined; aux is a tuple by batch.

    Raises:
        ValueError: for what `mtlfunc.jacobian` refuses.
        TypeError: for a batch that is not a tuple of two or three.

    Source:
        Chen et al. 2023 (MoDo), eqs. 2.9a–b: two batches and their mean, with a third as the
        official code's option; Xiao et al. 2023 (SDMGrad), Algorithm 1: three. LibMTL steps on
        MoDo's third and SDMGrad's first, and leaves SDMGrad's decoders with the sum over three.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: batch * params["x"]
        >>> probe, params = double_sampling(), {"x": torch.zeros(())}
        >>> batches = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
        >>> _, state = probe.init(mf.Run.of(losses, params), batches, mf.random.key(0))
        >>> probe.update(mf.Run.of(losses, params), batches, state)[0].geometry.gramian.tolist()
        [[3.0, 5.0], [6.0, 10.0]]
    """
    options = check_options(shared, heads=heads, group=group, engine="rows")

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        check_params(run.params)
        names, several = select(run.params, options.shared), _several(batch)
        try:
            losses = [first_losses(run, one, names, several=True) for one in stepped_on(several)]
        except Exception as error:
            error.add_note("double_sampling: each entry of the batch is a batch of its own")
            raise
        losses = torch.stack(losses).mean(0)
        return run.started(losses, None, shared=names, heads=heads, batches=len(several)), ()

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        check_memory(isinstance(state, tuple) and not state)
        if run.labels(None, batch) is not None:
            raise ValueError(
                "present: double_sampling multiplies two batches' gradients, of which every task "
                "needs labels; leave present out"
            )
        # of the third no rows are kept
        measured = [options.measure(run, one, rows=i < 2) for i, one in enumerate(_several(batch))]
        found, metric = [x for x, _ in measured], measured[0][1]
        first, second, stepped = found[0], found[1], stepped_on(found)
        losses = torch.stack([x.losses for x in stepped]).mean(0)
        extra = {"second_losses": second.losses}
        gramian, carried = gramians(first.rows, second.rows, metric)
        if carried is not None:
            _, its = gramians(second.rows, first.rows, metric)
            assert its is not None
            extra["carried"] = 0.5 * (carried + its)
        geometry = Geometry(losses, gramian, first.preference, all_rows_mask(losses), extra)

        def combine(weights: Tensor) -> Params:
            grads = [x.combine(weights) for x in stepped]
            return map_params(lambda a, b: 0.5 * (a + b), *grads) if grads[1:] else grads[0]

        aux = tuple(x.aux for x in found)
        return TaskGradients(losses, geometry, combine, () if aux[0] == () else aux), state

    measures = frozenset({"cross_gramian", "second_losses"})
    return Probe(init, update, group, measures, options.shared, metric=True)


def _several(batch: Batch) -> tuple[Any, ...]:
    if isinstance(batch, Forward):  # in a Balancer
        raise ValueError(EXPECTED)
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        found = f"{len(batch)} entries" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(
            "batch: double_sampling takes two or three independent batches a step, (first, "
            f"second) or (first, second, third), got {found}"
        )
    return tuple(batch)


def stepped_on(several: Any) -> Any:
    """Those of two or three that the step is made of: both, or the third."""
    return several if len(several) == 2 else several[2:]
