"""MGDA-UB's probe: task geometry at the shared representation, one pullback through the trunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.checks import can_look, check_params, peers_here, recording
from ..core.distributed import Group, agree, check_group, sharded
from ..core.expect import expect_function
from ..core.tasks import Tasks, aligned, tasks_of
from ..core.tree import combine, dot, select
from ..gradients.forward import forward_pass, split_output
from ..gradients.leaves import explained_vjp, without_trace
from ..gradients.linearize import Linear, Watched, linearize, linearize_losses
from ..types import Batch, Geometry, LossesFn, Params, Probe, Rows, Select, State, TaskGradients
from .common import (
    Present,
    check_leak,
    check_memory,
    check_present,
    first_losses,
    fixed,
    labelled,
    labels,
    leaves_of_each,
    mask_of,
    with_labels,
)
from .together import Part, part_of, scaled, shares, summed, totals


@runtime_checkable
class Encode(Protocol):
    """The trunk: a tensor, or a dict of tensors."""

    def __call__(self, params: Params, batch: Batch, /) -> Any: ...


@runtime_checkable
class Decode(Protocol):
    """The heads: losses in any form that `LossesFn` may have."""

    def __call__(self, params: Params, z: Any, batch: Batch, /) -> Any: ...


def representation(
    encode: Encode,
    decode: Decode,
    *,
    shared: Select = "*",
    present: Present | None = None,
    group: Group = None,
) -> Probe:
    """The geometry at z = encode(params, batch): T passes through the heads, one through the trunk.

    Rows are ∂L_t/∂z. With rule `mgda()` this is MGDA-UB: ‖Σ w_t ∂L_t/∂θ‖ <=
    ‖∂z/∂θ‖·‖Σ w_t ∂L_t/∂z‖, and the right-hand side is minimised. Zero exactly at
    Pareto-stationary points if ∂z/∂θ has full row rank; yet its direction can raise a task, because
    inner products of ∂L_t/∂z and of ∂L_t/∂θ may differ in sign (`python -m paper_repro --only
    mgda_ub`). When every sample supervises one task, rows are orthogonal and w_t is proportional to
    1/‖∂L_t/∂z‖²: the bound sees no relation between tasks.

    Args:
        encode: `(params, batch) -> z`, a tensor or a dict of tensors.
        decode: `(params, z, batch) -> losses` in any form that `losses_fn` may have (a dict if that
            gives one); `losses_fn` is the composition of the two.
        shared: the parameters that act through z: a glob, a predicate, a module, or several globs,
            modules or parameters; `init` raises if encode uses another one.
        present: `batch -> Bool[task]`, the tasks that have labels in this batch, as in
            `mtlfunc.jacobian`; None is all.
        group: the processes whose batches are one batch, as in `mtlfunc.jacobian`. z of the union
            is the concatenation, so that the Gramian is a sum and one gradient is all-reduced.

    Returns:
        a probe whose `combine(weights)` is the gradient of Σ w_t L_t through z, plus that of the
        mean loss through decode (the heads). Weights 1/T give the mean gradient over all
        parameters. `Info.gramian` is that of ∂L_t/∂z.

    Raises:
        TypeError: for functions that cannot be called as they will be.
        ValueError: at `init` if `shared` matches nothing, encode uses none of the parameters or
            one outside, decode uses none of z, or decode∘encode is not `losses_fn`.

    Source:
        Sener & Koltun 2018, section 3.3.

    Examples:
        >>> import mtlfunc as mf
        >>> encode = lambda params, x: params["trunk"] * x
        >>> decode = lambda params, z, x: torch.stack([z, 2 * z])
        >>> losses = lambda params, x: decode(params, encode(params, x), x)
        >>> step = mf.balance(losses, mf.mgda(), representation(encode, decode))
        >>> params, x = {"trunk": torch.tensor(1.0)}, torch.tensor(5.0)
        >>> grads, _, info = step.update(params, x, step.init(params, x))
        >>> info.gramian.tolist(), grads["trunk"].item()
        ([[1.0, 2.0], [2.0, 4.0]], 5.0)
    """
    expect_function(encode, "encode", "params, batch")
    expect_function(decode, "decode", "params, z, batch")
    check_present(present)
    check_group(group)
    shared = fixed(shared)

    def init(
        losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, State]:
        peers = peers_here(group, params)

        def alone() -> tuple[tuple[Tensor, Tensor | None, Tasks], dict[str, Any]]:
            check_params(params, group)
            names = select(params, shared)
            counts = labels(present, batch, counts=group is not None)
            here = mask_of(counts)
            losses, tasks = _first(losses_fn, params, batch)
            losses = losses if here is None else losses.where(here, 0.0)
            if can_look(batch, params):
                _check_encode(encode, params, batch, names, shared)
                _check_decode(encode, decode, params, batch, here, tasks, losses)
            facts = {"the number of tasks": len(losses), "shared": names}
            given = {"whether present= is given": present is not None}
            return (losses, counts, tasks), facts | given

        losses, counts, tasks = agree(peers, alone)
        part = part_of(peers, counts)
        return losses if part is None else part.total(losses), tasks

    def update(
        losses_fn: LossesFn, params: Params, batch: Batch, state: State
    ) -> tuple[TaskGradients, State]:
        check_memory(isinstance(state, dict | tuple) and not hasattr(state, "_fields"))
        outside = torch.is_grad_enabled()

        def encoded(params: Params) -> tuple[Params, Params]:
            ran = forward_pass(lambda: encode(params, batch), params, outside=outside)
            z = _named(ran.out)
            return z, ran.released(z)

        _, pull, z = explained_vjp(encoded, params)
        leaves = {f"decode {name}": leaf for name, leaf in params.items()}

        def decoded(both: Params, batch: Batch) -> Any:
            own = {name: both[f"decode {name}"] for name in params}
            out = decode(own, _unnamed({name: both[name] for name in z}), batch)
            return _in_order(out, state)

        counts = labels(present, batch, counts=group is not None)
        part, here = part_of(peers_here(group, params), counts), mask_of(counts)
        linear = linearize(
            scaled(decoded, part, params) if part else with_labels(decoded, here),
            leaves | z,
            batch,
            shared=tuple(z),
            heads=lambda count: 1 / count,
            chunk_size=1 if any(map(sharded, params.values())) else None,
        )

        def through(gradient: Params) -> Params:
            with recording((z, linear.rows, gradient)):
                return pull(gradient)[0]

        heads = {name: linear.heads[f"decode {name}"] for name in params}
        return _measured(linear, here, through, heads, part), state

    return Probe(init, update, group, frozenset({"gramian"}))


def _measured(
    linear: Linear,
    here: Tensor | None,
    through: Callable[[Params], Params],
    heads: Params,
    part: Part | None = None,
) -> TaskGradients:
    """The geometry of rows at z; `through` pulls a gradient at z back through the trunk."""
    gramian = dot(linear.rows, linear.rows, tuple(linear.rows))
    if part is not None:
        linear, (gramian,) = totals(linear, part, gramian)
        here = part.present
    found = labelled(linear, here)
    extra = shares(part, linear.losses)
    geometry = Geometry(linear.losses, gramian, found.preference, found.present, extra)
    check_leak(found, gramian, *heads.values())

    def combined(weights: Tensor) -> Params:
        trunk = through(combine(weights, linear.rows))
        grads = {name: trunk[name] + heads[name] * found.share for name in trunk}
        return summed(grads, part.peers if part else None)

    return TaskGradients(found.losses, geometry, combined, found.aux)


def measured_features(
    out: Any,
    features: Any,
    leaves: Params,
    names: tuple[str, ...],
    here: Tensor | None,
    part: Part | None = None,
) -> TaskGradients:
    """What `representation` measures, of losses and features that exist already.

    Args:
        out: losses in any form, with their graph.
        features: z, a tensor or a dict of tensors in that graph.
        leaves: the parameters.
        names: those that may act through z.
        here: the tasks that have labels; None is all.
        part: of this process in a group, with its own labels.

    Raises:
        ValueError: where z has no graph, a loss does not depend on it, or another parameter acts
            through it.
    """
    z = _named(features, "features")
    if not all(leaf.requires_grad for leaf in z.values()):
        raise ValueError(
            "features: expected what the trunk computed in this forward, with its graph; neither "
            "detach it nor work under torch.no_grad"
        )
    behind = set().union(
        *((leaves_of_each(x[None], (x,), leaves) or [set()])[0] for x in z.values())
    )
    wrong = [name for name in leaves if name in behind and name not in names]
    if wrong:
        raise ValueError(
            f"shared: the features depend on {', '.join(wrong)}, which it does not match; widen it"
        )
    local = scaled(lambda *_: out, part, leaves) if part else with_labels(lambda *_: out, here)
    linear = linearize_losses(
        local(leaves, ()),
        leaves | z,
        Watched(None, True),
        shared=tuple(z),
        heads=lambda count: 1 / count,
    )
    silent = [t for t in range(len(linear.losses)) if not _any(linear.rows, t, here)]
    if silent and can_look(linear.losses):
        raise ValueError(f"features: the losses of tasks {silent} do not depend on them")

    def through(gradient: Params) -> Params:
        grads = torch.autograd.grad(
            list(z.values()),
            list(leaves.values()),
            list(gradient.values()),
            retain_graph=True,
            allow_unused=True,
        )
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }

    # the mean loss' whole gradient, less what of it goes through z
    heads = {name: linear.heads[name] for name in leaves}
    if any(bool(heads[name].any()) for name in behind):
        count = len(linear.losses)
        inside = through({name: rows.sum(0) / count for name, rows in linear.rows.items()})
        heads = {n: x - inside[n] if n in behind else x for n, x in heads.items()}
    return _measured(linear, here, through, heads, part)


def _any(rows: Rows, task: int, here: Tensor | None) -> bool:
    absent = here is not None and not bool(here[task])
    return absent or any(bool(leaf[task].any()) for leaf in rows.values())


def _first(losses_fn: LossesFn, params: Params, batch: Batch) -> tuple[Tensor, Tasks]:
    """The losses of one forward pass, and which tasks they are."""
    tasks: Tasks = ()
    outside = torch.is_grad_enabled()

    def forward(params: Params) -> tuple[Tensor, Any]:
        nonlocal tasks
        with without_trace(params):
            ran = forward_pass(lambda: losses_fn(params, batch), params, outside=outside)
        tasks = tasks_of(ran.out)
        return ran.released(split_output(ran.out)[0]), ()

    return explained_vjp(forward, params)[0], tasks


def _in_order(out: Any, tasks: Tasks) -> Any:
    """What decode returned, a dict of losses in the order of `losses_fn`'s."""
    named = isinstance(tasks_of(out), dict)
    if named and tasks and not isinstance(tasks, dict):
        raise ValueError(
            "decode returned a dict of losses, so losses_fn must, too: their names say which loss "
            "is which"
        )
    return aligned(out, tasks, "decode") if named or not isinstance(tasks, dict) else out


def _check_encode(
    encode: Encode, params: Params, batch: Batch, names: tuple[str, ...], shared: Select
) -> None:
    """Raise where encode uses a parameter that is not shared."""
    reached: list[set[str]] | None = None

    def used(params: Params) -> tuple[Tensor, Any]:
        nonlocal reached
        with without_trace(params):
            z = encode(params, batch)
        total = torch.stack([leaf.sum() for leaf in _named(z).values()]).sum()
        reached = leaves_of_each(total[None], (total,), params)
        return total, ()

    explained_vjp(used, params)
    found = reached[0] if reached else set()
    if not found:
        raise ValueError(
            "encode: z depends on no parameter; compute it from params, without detach or no_grad"
        )
    wrong = [name for name in params if name not in names and name in found]
    if wrong:
        raise ValueError(
            f"shared={shared!r}: encode uses {', '.join(wrong)}, which it does not match; widen it"
        )


def _check_decode(
    encode: Encode,
    decode: Decode,
    params: Params,
    batch: Batch,
    here: Tensor | None,
    tasks: Tasks,
    losses: Tensor,
) -> None:
    """Raise where a task does not use z, or decode∘encode is not `losses_fn`."""
    with without_trace(params):
        z = {name: leaf.detach() for name, leaf in _named(encode(params, batch)).items()}

    def decoded(leaves: Params, batch: Batch) -> Any:
        return _in_order(decode(params, _unnamed(leaves), batch), tasks)

    found = first_losses(decoded, z, batch, tuple(z), present=here)
    if found.shape != losses.shape or not torch.allclose(found, losses, rtol=1e-3, atol=0.0):
        raise ValueError(
            f"representation: decode(encode(·)) gives losses {found.tolist()}, but losses_fn gives "
            f"{losses.tolist()}; they must be the same function"
        )


def _named(z: Any, what: str = "encode") -> dict[str, Tensor]:
    named = z if isinstance(z, dict) else {"": z}
    if not named or not all(
        isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in named.values()
    ):
        raise TypeError(
            f"{what}: expected a floating tensor or a dict of them, got {type(z).__name__}"
        )
    return {f"z {name}".strip(): leaf for name, leaf in named.items()}


def _unnamed(named: dict[str, Tensor]) -> Any:
    if tuple(named) == ("z",):
        return named["z"]
    return {name.removeprefix("z "): leaf for name, leaf in named.items()}
