"""MGDA-UB's probe: task geometry at the shared representation, one pullback through the trunk."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import vjp

from ..core.checks import can_look, check_params, recording
from ..core.expect import expect_function
from ..core.tasks import Tasks, aligned, tasks_of
from ..core.tree import combine, dot, select
from ..gradients.forward import explained_vjp, split_output
from ..gradients.linearize import linearize
from ..types import Batch, Geometry, LossesFn, Params, Probe, Select, State, TaskGradients
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
    with_labels,
)


@runtime_checkable
class Encode(Protocol):
    """The trunk: a tensor, or a dict of tensors."""

    def __call__(self, params: Params, batch: Batch, /) -> Any: ...


@runtime_checkable
class Decode(Protocol):
    """The heads: losses in any form that `LossesFn` may have."""

    def __call__(self, params: Params, z: Any, batch: Batch, /) -> Any: ...


def representation(
    encode: Encode, decode: Decode, *, shared: Select = "*", present: Present | None = None
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
    shared = fixed(shared)

    def init(
        losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, State]:
        check_params(params)
        names = select(params, shared)
        here = labels(present, batch)
        losses, tasks = _first(losses_fn, params, batch)
        losses = losses if here is None else losses.where(here, 0.0)
        if can_look(batch, params):
            _check_encode(encode, params, batch, names, shared)
            _check_decode(encode, decode, params, batch, here, tasks, losses)
        return losses, tasks

    def update(
        losses_fn: LossesFn, params: Params, batch: Batch, state: State
    ) -> tuple[TaskGradients, State]:
        check_memory(isinstance(state, dict | tuple) and not hasattr(state, "_fields"))
        z, pull, _ = explained_vjp(lambda p: (_named(encode(p, batch)), ()), params)
        leaves = {f"decode {name}": leaf for name, leaf in params.items()}

        def decoded(both: Params, batch: Batch) -> Any:
            own = {name: both[f"decode {name}"] for name in params}
            out = decode(own, _unnamed({name: both[name] for name in z}), batch)
            return _in_order(out, state)

        here = labels(present, batch)
        linear = linearize(
            with_labels(decoded, here),
            leaves | z,
            batch,
            shared=tuple(z),
            heads=lambda count: 1 / count,
        )
        found = labelled(linear, here)
        gramian = dot(linear.rows, linear.rows, tuple(z))
        geometry = Geometry(linear.losses, gramian, found.preference, found.present, {})
        check_leak(found, gramian, *linear.heads.values())

        def combined(weights: Tensor) -> Params:
            with recording((z, linear.rows, weights)):
                through = pull(combine(weights, linear.rows))[0]
            heads = {name: linear.heads[f"decode {name}"] * found.share for name in params}
            return {name: through[name] + heads[name] for name in params}

        return TaskGradients(found.losses, geometry, combined, found.aux), state

    return Probe(init, update)


def _first(losses_fn: LossesFn, params: Params, batch: Batch) -> tuple[Tensor, Tasks]:
    """The losses of one forward pass, and which tasks they are."""
    tasks: Tasks = ()

    def forward(params: Params) -> tuple[Tensor, Any]:
        nonlocal tasks
        out = losses_fn(params, batch)
        tasks = tasks_of(out)
        return split_output(out)[0], ()

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
        total = torch.stack([leaf.sum() for leaf in _named(encode(params, batch)).values()]).sum()
        reached = leaves_of_each(total[None], (total,), params)
        return total, ()

    vjp(used, params, has_aux=True)
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
    z = {name: leaf.detach() for name, leaf in _named(encode(params, batch)).items()}

    def decoded(leaves: Params, batch: Batch) -> Any:
        return _in_order(decode(params, _unnamed(leaves), batch), tasks)

    found = first_losses(decoded, z, batch, tuple(z), present=here)
    if found.shape != losses.shape or not torch.allclose(found, losses, rtol=1e-3, atol=0.0):
        raise ValueError(
            f"representation: decode(encode(·)) gives losses {found.tolist()}, but losses_fn gives "
            f"{losses.tolist()}; they must be the same function"
        )


def _named(z: Any) -> dict[str, Tensor]:
    named = z if isinstance(z, dict) else {"": z}
    if not named or not all(
        isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in named.values()
    ):
        raise TypeError(
            f"encode: expected a floating tensor or a dict of them, got {type(z).__name__}"
        )
    return {f"z {name}".strip(): leaf for name, leaf in named.items()}


def _unnamed(named: dict[str, Tensor]) -> Any:
    if tuple(named) == ("z",):
        return named["z"]
    return {name.removeprefix("z "): leaf for name, leaf in named.items()}
