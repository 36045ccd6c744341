"""The probe in parameter space: rows of the Jacobian, their Gramian, and the heads' gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from ..core import random
from ..core.checks import can_look, check_option, check_params, peers_here
from ..core.distributed import Group, agree, check_group, described, sharded
from ..core.expect import expect_function
from ..core.tree import select
from ..gradients.forward import split_output
from ..gradients.gramian import Engine, check_engine
from ..gradients.hooked import linearize_hooked
from ..gradients.layerwise import Hooks, Tapped, worth_watching
from ..gradients.linearize import (
    Keep,
    Linear,
    Watched,
    check_chunk_size,
    linearize,
    linearize_losses,
)
from ..types import (
    Batch,
    Combine,
    Geometry,
    LossesFn,
    Params,
    Probe,
    Rows,
    Select,
    State,
    TaskGradients,
)
from .common import (
    Present,
    check_dtype,
    check_leak,
    check_memory,
    check_present,
    checked_first,
    first_losses,
    fixed,
    is_empty,
    labelled,
    labels,
    leaves_of_each,
    mask_of,
    same_rows,
    weights_of,
    with_labels,
)
from .groups import Blocks, Groups, combine_groups, fixed_groups, gramians, partition
from .masks import EditRows, Mask, graddrop
from .together import Part, part_of, scaled, shares, united

Heads = Literal["plain", "own", "weighted"]


@runtime_checkable
class Mix(Protocol):
    """From a key and the number of tasks to (C [row, task], preference [row])."""

    def __call__(self, key: Tensor, count: int, /) -> tuple[Tensor, Tensor]: ...


class EditUpdate(Protocol):
    """The edited rows, what joins `geometry.extra`, and the next state."""

    def __call__(
        self, rows: Rows, present: Tensor, blocks: Blocks, state: Any, /
    ) -> tuple[Rows, dict[str, Tensor], State]: ...


class Edit(NamedTuple):
    """What a probe with a memory does to the rows between the backward passes and their Gramian."""

    init: Callable[[Rows], State]  # from zeros in the shape of the rows
    update: EditUpdate
    measures: frozenset[str]  # as in `Probe`, next to the Gramian


def jacobian(
    shared: Select = "*",
    *,
    measure: Select | None = None,
    mix: Mix | None = None,
    mask: EditRows | None = None,
    groups: Groups | None = None,
    present: Present | None = None,
    heads: Heads = "plain",
    engine: Engine = "auto",
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
    group: Group = None,
) -> Probe:
    """The geometry of the tasks' gradients in the shared parameters.

    One forward pass, and T backward passes that stop at the shared parameters. Absent tasks (see
    `present`) keep their losses in `Info.losses`, as `losses_fn` gave them; the rule sees loss 0, a
    zero row and column, preference 0. A mean over no labels may be NaN, but 0 times its derivative
    must be 0, as it is for `errors.where(labelled, 0.0).sum(0) / count`, for cross-entropy with
    `ignore_index`, and for `(errors * labelled).sum(0) / count.clamp_min(1)`, though not without
    the clamp: then the step raises, or is NaN where values cannot be read. Separate scalars are
    safe in any case if `present` can be read (on CPU, not batched, not compiled): absent ones are
    left out, backward pass included. A rule that reads initial losses (GradNorm) must start on a
    batch with all tasks.

    Args:
        shared: which parameters the tasks share: a glob on names, a predicate, a module, or several
            globs, modules or parameters; the rest are heads.
        measure: the shared leaves that the Gramian sums over; None is all of them. GradNorm's last
            shared layer.
        mix: `(key, T) -> (C [row, task], preference [row])`: rows are gradients of C @ losses, so
            that len(C) backward passes are paid, not T; the preference makes the rows average to
            the mean gradient. See `subset`.
        mask: `(key, rows) -> rows` edits the rows coordinate by coordinate before they are measured
            and combined.
        groups: the rule is applied to each group of shared parameters by itself; None is one group.
            `"layer"` groups by module, a function gives each name's label, a dict `{label: glob}`
            lists the groups. Gramian `[group, row, row]`, weights and rates `[group, row]`, the
            rule's state and key one a group, in the dict's order, else that of first appearance.
            Every engine forms the rows then.
        present: `batch -> Bool[task]`, the tasks that have labels in this batch, `lambda batch:
            batch[2].any(0)`. The step is then that on these tasks alone (heads included;
            `reduction="sum"` sums over them), and zero if there are none.
        heads: the other parameters get the gradient of the mean loss (`"plain"`), of Σ L_t, so that
            each head sees its own undiminished loss (`"own"`), or of the weighted loss
            (`"weighted"`: GradNorm and the other loss-weighting rules; one more backward pass).
        engine: as in `task_gramian`. Leaves without rows are combined by one more backward pass, of
            the weighted loss; `"auto"` counts that in, and keeps rows where they are cheaper.
        chunk_size: rows differentiated in one batched pass; None is all (on a CPU, convolutions one
            at a time), 1 a plain loop. What all passes bring back is kept until the end of the
            step.
        gramian_dtype: dtype of the Gramian's accumulation; None is the rows' own, at least float32.
        group: the processes whose batches are one batch: a process group of torch.distributed or a
            one-dimensional DeviceMesh; None is this process alone. Losses, Gramian, weights and
            gradient are then those of the union, the weights bit by bit on every rank, and every
            rank calls every step. Ranks count alike, or by `present`, which may then give numbers
            of labels `[task]`: unequal batches, and ranks without labels of a task. Rows are made
            whatever `engine` says; a rank keeps 1/R of their sum (`mask` needs all of it, for twice
            the traffic). Parameters may be DTensors on this mesh, which `losses_fn` gathers by
            `leaf.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial("avg")])`
            (or `full_tensor` with these `grad_placements`). Aux stays each rank's own.

    Returns:
        a probe whose `combine(weights)` gives Σ w_r row_r on the shared leaves and the heads'
        gradient on the others. Weights 1/T give the mean gradient over all parameters (with
        `heads="own"`: over the shared ones).

    Raises:
        TypeError: for a function that cannot be called as it will be.
        ValueError: for a bad engine or heads; `mix` with `present` (a mixture holds absent tasks);
            `heads="weighted"` with `groups` (whose weights?); at `init`, for a glob that matches
            nothing, a task that depends on no shared parameter, a group without parameters, a
            shared parameter in two groups or in none. A warning where `shared` holds a leaf that
            one task alone depends on, which changes the Gramian.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: torch.stack(
        ...     [(params["trunk"] * params["a"]).sum(), (params["trunk"] * params["b"]).sum()])
        >>> params = {"trunk": torch.ones(2), "a": torch.tensor([1.0, 0.0]), "b": torch.ones(2)}
        >>> step = mf.balance(losses, mf.mgda(), mf.jacobian(shared="trunk"))
        >>> grads, _, info = step.update(params, (), step.init(params, ()))
        >>> info.gramian.tolist(), grads["trunk"].tolist(), grads["b"].tolist()
        ([[1.0, 1.0], [1.0, 2.0]], [1.0, 0.0], [0.5, 0.5])
    """
    if mix is not None:
        expect_function(mix, "mix", "key, count")
    if mask is graddrop:
        raise TypeError("mask: got the function graddrop itself; call it, mtlfunc.graddrop()")
    if mask is not None:
        expect_function(mask, "mask", "key, rows")
    if mask is not None and engine == "layerwise":
        raise ValueError(
            'engine="layerwise" makes no rows, and mask edits them; use engine="rows" or "auto"'
        )
    if present is not None and isinstance(mask, Mask) and mask.needs_all:
        raise ValueError(
            "present: this mask ranks the rows of all tasks, and would rank an absent one's "
            "zeros; use it on batches with all labels"
        )
    if mix is not None and present is not None:
        raise ValueError(
            "present: a row of mix= is a mixture that may hold absent tasks; use one of the two"
        )
    return row_probe(
        RowOptions(
            shared,
            measure=measure,
            mix=mix,
            mask=mask.edit if isinstance(mask, Mask) else mask,
            groups=groups,
            present=present,
            heads=heads,
            engine=engine,
            chunk_size=chunk_size,
            gramian_dtype=gramian_dtype,
            group=group,
        )
    )


class RowOptions(NamedTuple):
    """The arguments of `jacobian` and of its relatives, which edit the rows with a state."""

    shared: Select
    measure: Select | None = None
    mix: Mix | None = None
    mask: EditRows | None = None
    edit: Edit | None = None  # not with mix or mask
    groups: Groups | None = None
    present: Present | None = None
    heads: Heads = "plain"
    engine: Engine = "auto"
    chunk_size: int | None = None
    gramian_dtype: torch.dtype | None = None
    group: Group = None


def row_probe(options: RowOptions) -> Probe:
    """The probe of these options, which are checked here."""
    options = checked_options(options)
    added = frozenset() if options.edit is None else options.edit.measures
    measures = added | {"gramian"}
    return Probe(partial(_init, options), partial(_update, options), options.group, measures)


def checked_options(options: RowOptions) -> RowOptions:
    """Options that serve every step, or an error that names the bad one."""
    check_engine(options.engine)
    check_chunk_size(options.chunk_size)
    check_heads(options.heads, options.groups)
    check_present(options.present)
    check_dtype(options.gramian_dtype)
    check_group(options.group)
    if options.group is not None and options.engine == "layerwise":
        raise ValueError(
            'engine="layerwise" makes no rows, and products of one process\'s gradients with '
            'another\'s need them; with group= use engine="rows" or "auto"'
        )
    return options._replace(
        shared=fixed(options.shared),
        measure=None if options.measure is None else fixed(options.measure),
        groups=fixed_groups(options.groups),
    )


def _init(
    options: RowOptions, losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
) -> tuple[Tensor, State]:
    peers = peers_here(options.group, params)

    def alone() -> tuple[tuple[Tensor, Tensor | None], dict[str, Any]]:
        check_params(params, options.group)
        names, _, _ = _layout(params, options)
        counts = labels(options.present, batch, counts=options.group is not None)
        here = mask_of(counts)
        losses = first_losses(losses_fn, params, batch, names, hint=True, present=here)
        if peers is None:
            return (losses, counts), {}
        return (losses, counts), {"the number of tasks": len(losses)} | agreed(options, params)

    losses, counts = agree(peers, alone)
    part = part_of(peers, counts)
    losses = losses if part is None else part.total(losses)
    names, _, blocks = _layout(params, options)
    state = ()
    if options.edit is not None:
        state = options.edit.init(_zero_rows(params, names, len(losses)))
    elif options.mix is not None or options.mask is not None:
        state = random.stream(key)
    if options.mix is not None:
        losses = _mixed(options.mix, random.fold_in(key, 0), len(losses))[0].to(losses) @ losses
    return torch.stack([losses] * len(blocks)) if blocks else losses, state


def agreed(options: RowOptions, params: Params) -> dict[str, Any]:
    """What processes must have in common, or they would wait for one another, or sum what differs;
    functions as far as they can be compared.
    """
    names, measured, blocks = _layout(params, options)
    same = {name: getattr(options, name) for name in ("mask", "mix", "edit", "gramian_dtype")}
    same |= {"shared": names, "measure": measured, "groups": blocks, "heads": options.heads}
    given = {"whether present= is given": options.present is not None}
    return {name: described(value) for name, value in same.items()} | given


def _update(
    options: RowOptions, losses_fn: LossesFn, params: Params, batch: Batch, state: State
) -> tuple[TaskGradients, State]:
    mix, mask, edit, groups = options.mix, options.mask, options.edit, options.groups
    names, measured, _ = _layout(params, options)
    with_rows = mask is not None or edit is not None or groups is not None
    key = torch.zeros((), dtype=torch.int64)
    if mix is not None or mask is not None:
        check_memory(isinstance(state, random.Stream))
        key, state = random.draw(state)
    elif edit is None:
        check_memory(is_empty(state))
    here = labels(options.present, batch, counts=options.group is not None)
    part = part_of(peers_here(options.group, params), here)
    linear = linearize(
        scaled(losses_fn, part, params) if part else with_labels(losses_fn, mask_of(here)),
        params,
        batch,
        shared=names,
        mix=None if mix is None else partial(_mixed, mix, key),
        heads=share_of(options.heads),
        measured=() if with_rows or part else measured,
        keep="rows" if with_rows or part else "combination",
        engine=options.engine,
        chunk_size=1 if any(map(sharded, params.values())) else options.chunk_size,
        gramian_dtype=options.gramian_dtype,
    )
    return _measured(options, linear, params, mask_of(here), key, state, part)


def _measured(
    options: RowOptions,
    linear: Linear,
    params: Params,
    here: Tensor | None,
    key: Tensor,
    state: State,
    part: Part | None = None,
) -> tuple[TaskGradients, State]:
    """What the rule sees of the rows, and the way back."""
    mask, edit, heads, dtype = options.mask, options.edit, options.heads, options.gramian_dtype
    _, measured, blocks = _layout(params, options)
    whole = mask is not None or edit is not None
    linear = united(linear, part, params, measured, blocks, whole=whole, dtype=dtype)
    found = labelled(linear, here if part is None else part.present)
    rows, extra = linear.rows, shares(part, linear.losses)
    if mask is not None:
        rows = _masked(mask, random.fold_in(key, 1), rows)
    if edit is not None:
        rows, added, state = edit.update(rows, found.present, blocks, state)
        extra |= added
    gramian = linear.gramian
    if gramian is None:
        gramian = gramians(rows, rows, measured, blocks, dtype)
    if here is not None or part is not None:
        check_leak(found, gramian, *linear.heads.values())
    geometry = Geometry(linear.mixed, gramian, found.preference, found.present, extra)
    share = found.share if heads == "plain" else None
    combine = _combination(linear, rows, blocks, params, share)
    return TaskGradients(found.losses, geometry, combine, found.aux), state


def first_of_losses(options: RowOptions, leaves: Params, out: Any, here: Tensor | None) -> Tensor:
    """The rule's first losses, `[row]` or `[group, row]`, of losses that exist already."""
    names, _, blocks = _layout(leaves, options)
    losses, scalars, _ = split_output(out)
    first = checked_first(
        losses.detach(),
        # the graph of a module under fully_shard ends in its gathered weights
        None if any(map(sharded, leaves.values())) else leaves_of_each(losses, scalars, leaves),
        names,
        heads=weights_of(leaves, names),
        present=here,
        otherwise=list,  # a forward that cannot be run again
        look=can_look(losses),
    )
    return torch.stack([first] * len(blocks)) if blocks else first


def measured_losses(
    options: RowOptions,
    leaves: Params,
    out: Any,
    watched: Watched,
    here: Tensor | None,
    keep: Keep,
    part: Part | None = None,
) -> TaskGradients:
    """What the probe of these options measures, on losses that exist already.

    Args:
        options: without mix, mask, edit and present.
        leaves: the parameters.
        out: losses in any form, with their graph.
        watched: what was seen of the forward.
        here: the tasks that have labels; None is all.
        keep: "combination", or "nothing" where the answer's `combine` is not called.
        part: of this process in a group, with its own labels.
    """
    names, measured, blocks = _layout(leaves, options)
    heads = None if keep == "nothing" else share_of(options.heads)
    local = scaled(lambda *_: out, part, leaves) if part else with_labels(lambda *_: out, here)
    if any(map(sharded, leaves.values())):
        linear = linearize_hooked(local(leaves, ()), leaves, shared=names, heads=heads)
        return _measured(options, linear, leaves, here, linear.losses, (), part)[0]
    linear = linearize_losses(
        local(leaves, ()),
        leaves,
        watched,
        shared=names,
        heads=heads,
        measured=() if blocks or part else measured,
        keep="rows" if blocks or part else keep,
        engine=options.engine,
        chunk_size=options.chunk_size,
        gramian_dtype=options.gramian_dtype,
    )
    return _measured(options, linear, leaves, here, linear.losses, (), part)[0]


def watching(options: RowOptions, leaves: Params) -> Hooks:
    """A mode that sees as much of a forward as a probe of these options makes use of."""
    _, measured, blocks = _layout(leaves, options)
    small = options.engine == "auto" and not worth_watching(leaves, measured)
    if blocks or options.engine == "rows" or options.group is not None or small:
        return Hooks()
    return Tapped(leaves, local=False)  # a bias' rows cost no more than its deltas


def check_heads(heads: Heads, groups: Groups | None) -> None:
    """Raise unless `heads` is an option, and one that groups allow."""
    check_option(heads, "heads", get_args(Heads))
    if heads == "weighted" and groups is not None:
        raise ValueError(
            'heads="weighted": with groups there is one weight a group and task, and none for '
            'the heads; use "plain" or "own"'
        )


def share_of(heads: Heads) -> Callable[[int], float | None]:
    """From the number of tasks to each one's weight on the heads; None where the rule's counts."""
    return lambda count: {"plain": 1 / count, "own": 1.0, "weighted": None}[heads]


def _layout(params: Params, options: RowOptions) -> tuple[tuple[str, ...], tuple[str, ...], Blocks]:
    """Names of the shared leaves, of those the Gramian sums over, and of those in each group."""
    names = measured = select(params, options.shared)
    if options.measure is not None:
        measured = select({name: params[name] for name in names}, options.measure, "measure")
    found = {} if options.groups is None else partition(names, options.groups)
    for label, members in found.items():
        if not set(members) & set(measured):
            raise ValueError(
                f"measure={options.measure!r}: group {label!r} has none of these parameters, and "
                "so no Gramian"
            )
    return names, measured, tuple(found.values())


def _mixed(mix: Mix, key: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What `mix` answers, if it is a matrix `[row, task]` and a preference `[row]`."""
    matrix, preference = mix(key, count)
    if matrix.ndim != 2 or matrix.shape[1] != count or preference.shape != matrix.shape[:1]:
        raise ValueError(
            f"mix: expected C [row, {count}] and a preference [row], got {list(matrix.shape)} and "
            f"{list(preference.shape)}"
        )
    return matrix, preference


def _masked(mask: EditRows, key: Tensor, rows: Rows) -> Rows:
    """What `mask` answers, if it is rows as they were given."""
    edited = mask(key, rows)
    if not same_rows(edited, rows):
        raise ValueError(
            "mask: expected rows with the names and shapes of those given, "
            f"{ {name: list(row.shape) for name, row in rows.items()} }"
        )
    return edited


def _zero_rows(params: Params, names: tuple[str, ...], count: int) -> Rows:
    return {name: params[name].new_zeros((count, *params[name].shape)) for name in names}


def _combination(
    linear: Linear, rows: Rows, blocks: Blocks, params: Params, share: Tensor | float | None
) -> Combine:
    """The weighted sum of rows, and the heads' gradient, times `share` if that is given."""

    def combine(weights: Tensor) -> Params:
        heads = linear.heads
        if isinstance(share, Tensor) or share not in (None, 1.0):
            heads = {name: grad * share for name, grad in heads.items()}
        grads = linear.restore(combine_groups(weights, rows, blocks)) | heads
        # no row of theirs was kept, or they are heads of the weighted loss
        left = tuple(name for name in params if name not in grads)
        grads |= linear.pullback(weights, left) if left else {}
        return {name: grads[name] for name in params}

    return combine


def subset(n: int) -> Mix:
    """CAGrad-Fast's `mix`: n - 1 tasks drawn without replacement, and the mean of the others.

    Args:
        n: rows, from 1 to T.

    Returns:
        a mix for `mtlfunc.jacobian(..., mix=subset(n))`. Its preference, 1/T for each drawn task
        and (T - n + 1)/T for the rest, makes the rows average to the true mean gradient.

    Raises:
        ValueError: for n < 1, or n > T when it is called.

    Source:
        Liu et al. 2021, section 3.3, in the form of the public MT-RL code, which leaves one task
        out of the rest by mistake.

    Examples:
        >>> matrix, preference = subset(2)(random.key(0), 4)
        >>> matrix.shape, (preference @ matrix).tolist()
        (torch.Size([2, 4]), [0.25, 0.25, 0.25, 0.25])
    """
    if not isinstance(n, Integral) or n < 1:
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
