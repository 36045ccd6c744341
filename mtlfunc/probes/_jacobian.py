"""The probe in parameter space: rows of the Jacobian over the shared parameters, their Gramian, and
the heads' own gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..core import random
from ..core.checks import check_option, check_params
from ..core.tree import select
from ..gradients.gramian import Engine, check_engine
from ..gradients.linearize import check_chunk_size, linearize
from ..types import Batch, Geometry, LossesFn, Params, Probe, Rows, Select, State, TaskGradients
from .common import Present, check_leak, first_losses, labelled, labels, with_labels
from .groups import Blocks, Groups, combine_groups, gramians, partition

Heads = Literal["plain", "own", "weighted"]


class Edit(NamedTuple):
    """What a probe with a memory does to the rows between the backward passes and their Gramian."""

    init: Callable[[Rows], State]  # from zeros in the shape of the rows
    # (rows, present, blocks, S) -> (rows, geometry.extra, S)
    update: Callable[[Rows, Tensor, Blocks, State], tuple[Rows, dict[str, Tensor], State]]


def jacobian(
    shared: Select = "*",
    *,
    measure: Select | None = None,
    mix: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None,
    mask: Callable[[Tensor, Rows], Rows] | None = None,
    groups: Groups | None = None,
    present: Present | None = None,
    heads: Heads = "plain",
    engine: Engine = "auto",
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> Probe:
    """The geometry of the tasks' gradients with respect to the shared parameters: one forward, T
    backward passes that stop at them.

    Args:
        shared: which parameters the tasks share, a glob on names or a predicate; the rest are
            heads.
        measure: the shared leaves that the Gramian sums over; None is all of them. GradNorm's last
            shared layer.
        mix: `(key, T) -> (C [row, task], preference [row])`: rows are gradients of C @ losses, so
            that len(C) backward passes are paid, not T; the preference makes the rows average to
            the mean gradient. See `subset`.
        mask: `(key, rows) -> rows` edits the rows coordinate by coordinate before they are measured
            and combined.
        groups: the rule is applied to each group of shared parameters by itself: `"layer"` groups
            by module, a function gives each name's label, a dict `{label: glob}` lists the groups.
            Gramian `[group, row, row]`, weights and rates `[group, row]`, the rule's state and key
            one a group, in the dict's order, else that of first appearance. Every engine forms the
            rows then.
        present: `batch -> Bool[task]`, the tasks that have labels in this batch, `lambda batch:
            batch[2].any(0)`. The step is then that on these tasks alone (heads included;
            `reduction="sum"` sums over them), and zero if there are none. See below for losses that
            are NaN.
        heads: the other parameters get the gradient of the mean loss (`"plain"`), of Σ L_t, so that
            each head sees its own undiminished loss (`"own"`), or of the weighted loss
            (`"weighted"`: GradNorm and the other loss-weighting rules; one more backward pass).
        engine: as in `task_gramian`. Without rows the combination is one more backward pass, of the
            weighted loss; `"auto"` counts that in, and keeps rows where they are cheaper.
        chunk_size: rows differentiated in one batched pass; None is all (on a CPU, convolutions one
            at a time), 1 a plain loop. What all passes bring back is kept until the end of the
            step.
        gramian_dtype: dtype of the Gramian's accumulation; None is the rows' own, at least float32.

    Returns:
        a probe whose `combine(weights)` gives Σ w_r row_r on the shared leaves and the heads'
        gradient on the others. Weights 1/T give the mean gradient over all parameters (with
        `heads="own"`: over the shared ones).

    Absent tasks: `Info.losses` shows their losses as `losses_fn` gave them; the rule sees loss 0, a
    zero row and column, preference 0. A mean over no labels may be NaN, but 0 times its derivative
    must be 0, as it is for `errors.where(labelled, 0.0).sum(0) / count`, for cross-entropy with
    `ignore_index`, and for `(errors * labelled).sum(0) / count.clamp_min(1)`, though not without
    the clamp: then the step raises, or is NaN where values cannot be looked at. Separate scalars
    are safe in any case if `present` can be read (on CPU, not batched, not compiled): absent ones
    are left out, backward pass included. A rule that reads initial losses (GradNorm) must start on
    a batch with all tasks.

    Raises:
        ValueError: at `init`, for a glob that matches nothing, a task that depends on no shared
            parameter, a bad engine or heads, a group without parameters, a shared parameter in two
            groups or in none; `mix` with `present` (a mixture holds absent tasks),
            `heads="weighted"` with `groups` (whose weights?). Warns where `shared` holds a leaf
            that one task alone depends on, which changes the Gramian.
    """
    if mask is not None and engine == "layerwise":
        raise ValueError(
            'engine="layerwise" makes no rows, and mask edits them; use engine="rows" or "auto"'
        )
    if present is not None and getattr(mask, "ranks_rows", False):
        raise ValueError(
            "present: this mask ranks the rows of all tasks, and would rank an absent one's "
            "zeros; use it on batches with all labels"
        )
    if mix is not None and present is not None:
        raise ValueError(
            "present: a row of mix= is a mixture that may hold absent tasks; use one of the two"
        )
    return row_probe(
        shared,
        measure=measure,
        mix=mix,
        mask=mask,
        groups=groups,
        present=present,
        heads=heads,
        engine=engine,
        chunk_size=chunk_size,
        gramian_dtype=gramian_dtype,
    )


def row_probe(
    shared: Select,
    *,
    measure: Select | None = None,
    mix: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None,
    mask: Callable[[Tensor, Rows], Rows] | None = None,
    edit: Edit | None = None,
    groups: Groups | None = None,
    present: Present | None = None,
    heads: Heads = "plain",
    engine: Engine = "auto",
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> Probe:
    """`jacobian`, and its relatives that edit the rows with a state (`edit`, without mix and mask)."""
    check_engine(engine)
    check_chunk_size(chunk_size)
    check_option(heads, "heads", get_args(Heads))
    if heads == "weighted" and groups is not None:
        raise ValueError(
            'heads="weighted": with groups there is one weight a group and task, and none for '
            'the heads; use "plain" or "own"'
        )
    with_rows = mask is not None or edit is not None or groups is not None

    def names_of(params: Params) -> tuple[tuple[str, ...], tuple[str, ...], Blocks]:
        names = select(params, shared)
        measured = (
            names
            if measure is None
            else select({name: params[name] for name in names}, measure, "measure")
        )
        found = {} if groups is None else partition(names, groups)
        for label, members in found.items():
            if not set(members) & set(measured):
                raise ValueError(
                    f"measure={measure!r}: group {label!r} has none of these parameters, and so "
                    "no Gramian"
                )
        return names, measured, tuple(found.values())

    def init(
        losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, State]:
        check_params(params)
        names, _, blocks = names_of(params)
        losses = first_losses(
            losses_fn, params, batch, names, hint=True, present=labels(present, batch)
        )
        state = random.stream(key) if mix is not None or mask is not None else ()
        if edit is not None:
            state = edit.init(
                {name: params[name].new_zeros((len(losses), *params[name].shape)) for name in names}
            )
        if mix is not None:
            losses = mix(random.fold_in(key, 0), losses.shape[0])[0].to(losses) @ losses
        return torch.stack([losses] * len(blocks)) if blocks else losses, state

    def update(
        losses_fn: LossesFn, params: Params, batch: Batch, state: State
    ) -> tuple[TaskGradients, State]:
        names, measured, blocks = names_of(params)
        key = torch.zeros((), dtype=torch.int64)
        if mix is not None or mask is not None:
            key, state = random.draw(state)
        here = labels(present, batch)
        linear = linearize(
            with_labels(losses_fn, here),
            params,
            batch,
            shared=names,
            mix=None if mix is None else partial(mix, key),
            heads=lambda count: {"plain": 1 / count, "own": 1.0, "weighted": None}[heads],
            measured=() if with_rows else measured,
            keep="rows" if with_rows else "combination",
            engine=engine,
            chunk_size=chunk_size,
            gramian_dtype=gramian_dtype,
        )
        found, rows, extra = labelled(linear, here), linear.rows, {}
        if mask is not None:
            rows = mask(random.fold_in(key, 1), rows)
        if edit is not None:
            rows, extra, state = edit.update(rows, found.present, blocks, state)
        gramian = (
            gramians(rows, rows, measured, blocks, gramian_dtype)
            if linear.gramian is None
            else linear.gramian
        )
        check_leak(found, gramian, *linear.heads.values())
        geometry = Geometry(linear.mixed, gramian, found.preference, found.present, extra)
        on_heads = (
            {name: grad * found.share for name, grad in linear.heads.items()}
            if heads == "plain"
            else linear.heads
        )

        def combined(weights: Tensor) -> Params:
            grads = combine_groups(weights, rows, blocks) | on_heads
            # no row of theirs was kept, or they are heads of the weighted loss
            left = tuple(name for name in params if name not in grads)
            grads |= linear.pullback(weights, left) if left else {}
            return {name: grads[name] for name in params}

        return TaskGradients(found.losses, geometry, combined, found.aux), state

    return Probe(init, update)


def subset(n: int) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """CAGrad-Fast's `mix`: n - 1 tasks drawn without replacement, and the mean of all the others,
    as n rows.

    Its preference, 1/T for each drawn task and (T - n + 1)/T for the rest, makes the rows average
    to the true mean gradient.

    Raises:
        ValueError: for n < 1, or n > T when it is called.

    Source:
        Liu et al. 2021, section 3.3, in the form of the public MT-RL code, which leaves one task
        out of the rest by mistake.
    """
    if n < 1:
        raise ValueError(f"subset: expected n >= 1 rows, got {n}")

    def mix(key: Tensor, count: int) -> tuple[Tensor, Tensor]:
        if n > count:
            raise ValueError(f"subset: n = {n} rows, but there are only {count} tasks")
        drawn = random.permutation(key, count)[: n - 1]
        single = (drawn[:, None] == torch.arange(count, device=key.device)).to(torch.float64)
        remaining = count - n + 1
        rest = (1 - single.sum(0)) / remaining
        share = torch.full((n,), 1 / count, dtype=torch.float64, device=key.device)
        last = torch.arange(n, device=key.device) == n - 1
        return torch.cat([single, rest[None]]), torch.where(last, remaining / count, share)

    return mix
