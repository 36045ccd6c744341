"""The probe in parameter space: rows of the Jacobian, their Gramian, and the heads' gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import random
from ..core.checks import check_count
from ..core.expect import expect_function
from ..core.transforms import values_readable
from ..core.tree import same_shapes
from ..gradients.operator import Engine
from ..processes import Group
from ..types import Batch, Heads, Probe, Rows, Select, State, TaskGradients, constructor
from .common import Mix, Present, Run, Weightings, answer, check_memory, check_options, expect_rows

EditRows = Callable[[Tensor, Rows], Rows]
"""From a key and rows `{name: [task, *shape]}` to edited ones."""


@constructor
def jacobian(
    shared: Select = "*", *, mix: Mix | None = None, mask: EditRows | None = None,
    present: Present | None = None, weightings: Weightings | None = None,
    heads: Heads | None = None, engine: Engine = "auto", chunk_size: int | None = None,
    group: Group = None,
) -> Probe:  # fmt: skip
    """The geometry of the tasks' gradients in the shared parameters.

    One forward pass, and T backward passes that stop at the shared parameters. Absent tasks (see
    `present`) keep their losses in `Info.losses`, as `losses_fn` gave them; the rule sees loss 0, a
    zero row and column, preference 0. A mean over no labels may be NaN, but 0 times its derivative
    must be 0, as it is for `errors.where(labelled, 0.0).sum(0) / count`, though not for a division
    by a count of 0: then the step raises, or is NaN where values cannot be read. Separate scalars
    are safe if `present` can be read (on CPU, not batched, not compiled): absent ones are left out.
    A rule that reads initial losses (GradNorm) must start on a batch with all tasks.

    Args:
        shared: which parameters the Gramian sums over, those that the tasks share: a glob on names,
            a predicate, a module, or several globs, modules or parameters; the rest are heads.
        mix: `(key, T) -> (C [row, task], preference [row])`: rows are gradients of C @ losses, so
            that len(C) backward passes are paid, not T; the preference makes the rows average to
            the mean gradient. See `subset`.
        mask: `(key, rows) -> rows` edits the rows coordinate by coordinate before all else.
        present: `batch -> Bool[task]`, the tasks that have labels in this batch, `lambda batch:
            batch[2].any(0)`. The step is then that on these tasks alone (heads included;
            `reduction="sum"` sums over them), and zero if there are none.
        weightings: `batch -> A`, `lambda batch: batch["A"]`: `losses_fn` returns the losses of
            samples, ℓ `[sample]` or `[sample, part]`, and task k is their weighting Σ A_kn ℓ_n with
            row k of A `[task, sample]` or `[task, sample, part]`. Any number of tasks then costs
            one backward pass (one per part), if that is cheaper than one per task. A row of zeros
            is an absent task, as one that `present` says is absent, whatever its row; their losses
            are 0. With `group` the ranks' losses are summed, and a task is absent where its row is
            zero on every rank. Not with `mix`.
        heads: the other parameters get the gradient of the mean loss (`"plain"`), of Σ L_t, so that
            each head sees its own undiminished loss (`"own"`), or of Σ w_t L_t (`"weighted"`, one
            more backward pass). None asks the rule: docs/methods/heads.md.
        engine: as in `task_jacobian`; leaves without rows are combined by one more backward pass.
        chunk_size: how many rows one backward pass carries, as in `task_jacobian`.
        group: the processes whose batches are one batch: a process group of torch.distributed or a
            one-dimensional DeviceMesh; None is this process alone. Losses, Gramian, weights and
            gradient are then those of the union, the weights bit by bit on every rank, and every
            rank calls every step. Ranks count alike, or by `present`, which may then give numbers
            of labels `[task]`. Rows are made whatever `engine` says; a rank keeps 1/R of their sum.

    Returns:
        a probe whose `combine(weights)` gives Σ w_r row_r on the shared leaves and the heads'
        gradient on the others. Weights 1/T give the mean gradient over all parameters (where heads
        get their own: over the shared ones).

    Raises:
        TypeError: for a function that cannot be called as it will be.
        ValueError: for a bad engine or heads; `mix` with `present` (a mixture holds absent tasks)
            or `weightings`; weightings that do not fit the losses or `present`; "layerwise" where
            samples mix; at `init`, for a glob that matches nothing, and for a task that depends on
            no shared parameter. A warning where `shared` holds a matrix that one task alone depends
            on, which changes the Gramian.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: torch.stack(
        ...     [(params["trunk"] * params["a"]).sum(), (params["trunk"] * params["b"]).sum()])
        >>> params = {"trunk": torch.ones(2), "a": torch.tensor([1.0, 0.0]), "b": torch.ones(2)}
        >>> step = mf.balance(losses, mf.mgda(), mf.jacobian(shared="trunk"))
        >>> grads, _, info = step.update(params, (), step.init(params, ()))
        >>> info.gramian.tolist(), grads["trunk"].tolist(), grads["b"].tolist()
        ([[1.0, 1.0], [1.0, 2.0]], [1.0, 0.0], [1.0, 1.0])
    """
    options = check_options(
        shared, heads=heads, present=present, group=group, weightings=weightings, mix=mix,
        engine=engine, chunk_size=chunk_size,
    )  # fmt: skip
    if mask is graddrop:
        raise TypeError("mask: got the function graddrop itself; call it, mtlfunc.graddrop()")
    if mask is not None:
        expect_function(mask, "mask", "key, rows")
        expect_rows(engine, "mask edits them")
    draws = not (mix is mask is None)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        losses = options.start(run, batch, key=key, mask=mask)
        return losses, random.stream(key) if draws else ()

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        key = None
        if draws:
            check_memory(isinstance(state, random.Stream))
            key, state = random.draw(state)
        else:
            check_memory(isinstance(state, tuple) and not state)
        edits = mask is not None
        found, metric = options.measure(run, batch, gramian=not edits, rows=edits, key=key)
        if mask is not None and key is not None:
            edited = mask(random.fold_in(key, 1), found.rows)
            if not same_shapes(edited, found.rows):
                raise ValueError(
                    "mask: expected rows with the names and shapes of those given, "
                    f"{ {name: list(row.shape) for name, row in found.rows.items()} }"
                )
            found = found._replace(rows=edited)
        return answer(found, metric), state

    return Probe(
        init, update, group, frozenset({"gramian"}), options.shared,
        weightings=None if mix else weightings is not None, mixes=mix is not None, metric=True,
    )  # fmt: skip


@constructor
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
    check_count(n, "n")

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


@constructor
def graddrop(
    leak: float | Float[Tensor, " task"] = 0.0, f: Callable[[Tensor], Tensor] | None = None
) -> EditRows:
    """In every coordinate keep the entries of one sign, the positive one with probability P.

    P = ½(1 + Σ_t g_t / Σ_t|g_t|). The draw depends on the key and the names of the leaves, not on
    the order in which they come.

    Args:
        leak: ℓ in [0, 1], one for all or one per task `[task]`: the share that passes in any case.
        f: monotone from [0, 1] to [0, 1], applied to P; None is the identity.

    Returns:
        a mask for `mtlfunc.jacobian(..., mask=graddrop())`: row t becomes (ℓ_t + (1 - ℓ_t)M_t)∘g_t,
        with one uniform number a coordinate for all tasks. With rule `mean()` the direction is the
        **mean** of these rows: g when all tasks share one gradient g; `reduction="sum"` gives the
        paper's sum. Where tasks disagree, entries of the sign that is kept are not made up for
        those dropped: in expectation the mean over all tasks of P·g⁺ + (1 - P)·g⁻.

    Raises:
        ValueError: for leaks outside [0, 1]; of another length, at a step.

    Source:
        Chen et al. 2020, Algorithm 1, lines 10–15, on parameters as TorchJD has it. The paper's
        layer and LibMTL act on the shared representation instead, multiplied by its sign and summed
        over the batch. A tie P = U keeps the negative entries here, so that U = 0 never drops all.

    Examples:
        >>> rows = {"x": torch.tensor([[1.0, -2.0, 3.0], [2.0, -1.0, 0.0]])}
        >>> graddrop()(random.key(0), rows)["x"].tolist()
        [[1.0, -2.0, 3.0], [2.0, -1.0, 0.0]]
    """
    told, readable = torch.as_tensor(leak), not isinstance(leak, Tensor) or values_readable(leak)
    if readable and (told.ndim > 1 or not bool(((told >= 0) & (told <= 1)).all())):
        raise ValueError(f"leak: expected a number in [0, 1], or one a task, got {told.tolist()}")
    if f is not None:
        expect_function(f, "f", "purity")

    def mask(key: Tensor, rows: Rows) -> Rows:
        edited = {}
        position = {name: i for i, name in enumerate(sorted(rows))}
        for name, row in rows.items():
            total, size = row.sum(0), row.abs().sum(0)
            purity = 0.5 * (1 + total / size.where(size != 0, 1.0))
            dtype = torch.promote_types(row.dtype, torch.float32)
            u = random.uniform(random.fold_in(key, position[name]), tuple(row.shape[1:]), dtype)
            positive = (purity if f is None else f(purity)) > u
            kept = torch.where(row > 0, positive, ~positive).to(row.dtype)
            share = torch.as_tensor(leak, dtype=row.dtype, device=row.device)
            if share.ndim and len(share) != len(row):
                raise ValueError(f"leak: expected one a task, {len(row)}, got {len(share)}")
            passes = share.reshape(-1, *(1,) * (row.ndim - 1))
            edited[name] = (passes + (1 - passes) * kept) * row
        return edited

    return mask
