"""MGDA-UB's probe: task geometry at the shared representation, one pullback through the trunk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_params
from ..core.expect import expect_function
from ..core.transforms import depth, is_differentiated, values_readable
from ..core.tree import real_of, select
from ..gradients.levels import explained_vjp, without_trace
from ..gradients.losses import Losses, Tasks, parse_losses
from ..gradients.run import observe
from ..gradients.run import run as run_once
from ..gradients.safe_ops import SafeOps
from ..processes import ALONE, Group, mask_of
from ..types import Batch, Heads, Params, Probe, Select, State, TaskGradients, constructor
from .common import Present, Run, answered, check_memory, checked, first_losses

Encode = Callable[[Params, Batch], Any]
"""The trunk: a tensor, or a dict of tensors."""

Decode = Callable[[Params, Any, Batch], Any]
"""The heads, `(params, z, batch)`: losses in any form that `LossesFn` may have."""


@constructor
def representation(
    encode: Encode,
    decode: Decode,
    *,
    shared: Select = "*",
    present: Present | None = None,
    heads: Heads | None = None,
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
        heads: the gradient of the parameters through decode, as in `mtlfunc.jacobian`.
        group: the processes whose batches are one batch, as in `mtlfunc.jacobian`. z of the union
            is the concatenation, so that the Gramian is a sum and one gradient is all-reduced.

    Returns:
        a probe whose `combine(weights)` is the gradient of Σ w_t L_t through z, plus that of the
        heads through decode. With `heads="plain"` weights 1/T give the mean gradient over all
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
    shared = checked(shared, heads, present, group)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        params = run.params
        check_params(params)
        names = select(params, shared)
        counts = run.labels(present, batch, counts=group is not None)
        forward = run.first(batch)
        losses, tasks = forward.value, forward.losses.tasks
        mask = mask_of(counts, len(losses))
        losses = losses if mask is None else losses.where(mask, 0.0)
        if values_readable(batch, params):
            _check_functions(encode, decode, params, batch, names, shared, mask, tasks, losses)
        return run.started(losses, counts, shared=names, heads=heads), tasks

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        check_memory(isinstance(state, dict | tuple) and not hasattr(state, "_fields"))
        params, outside = run.params, torch.is_grad_enabled()

        def encoded(leaves: Params) -> tuple[Params, Params]:
            if torch.compiler.is_compiling():
                with SafeOps():
                    z = _named(encode(leaves, batch))
                return z, z
            seen = observe(
                lambda: encode(leaves, batch), leaves, _parse_features, params=leaves,
                outside=outside,
            )  # fmt: skip
            names: tuple[str, ...] = seen.losses.names or ()
            z = dict(zip(names, seen.losses.roots, strict=True))
            return z, z if seen.recorded or depth() else {n: x.detach() for n, x in z.items()}

        _, pull, z = explained_vjp(encoded, params)
        leaves = {f"decode {name}": leaf for name, leaf in params.items()}

        def decoded(both: Params, batch: Batch) -> Any:
            own = {name: both[f"decode {name}"] for name in params}
            return decode(own, _unnamed({name: both[name] for name in z}), batch)

        both = Run.of(decoded, leaves | z, lambda x: _parse_decoded(x, state), union=run.union)
        jacobian = both(batch, run.labels(present, batch, counts=group is not None))
        # z of the union is a concatenation: rows are each process's own, and their Gramians add up
        shares = jacobian.shares
        jacobian = replace(jacobian, columns=tuple(z), shares=shares._replace(union=ALONE))
        found = jacobian.measure(gramian=True, rows=True, heads=heads or run.heads)
        assert found.gramian is not None
        part = shares.part(found.losses)
        found, (gramian,) = shares.totals(found, found.gramian)

        def combine(weights: Tensor) -> Params:
            grads = found.combine(weights)
            at_z = {name: grads[name] for name in z}
            outside = is_differentiated((z, found.rows, at_z))
            with nullcontext() if outside else torch.no_grad():
                trunk = real_of(pull(at_z)[0])
            return shares.union.gradient({x: trunk[x] + grads[f"decode {x}"] for x in params})

        answer = answered(found._replace(gramian=gramian, part=part), {})
        return answer._replace(combine=combine), state

    measures = frozenset({"gramian"})
    return Probe(init, update, group, measures, calls_model=True)


def _parse_decoded(out: Any, tasks: Tasks) -> Losses:
    """What decode returned, a dict of losses in the order of `losses_fn`'s."""
    losses = parse_losses(out, "decode")
    if losses.names is None or not tasks:
        return losses
    if not isinstance(tasks, dict):
        raise ValueError(
            "decode returned a dict of losses, so losses_fn must, too: their names say which loss "
            "is which"
        )
    return parse_losses(out, "decode", tasks=tasks)


def _parse_features(z: Any) -> Losses:
    """Features in the form of losses: what is differentiated is one tensor after the other."""
    named = _named(z)
    several = tuple(named.values())
    return Losses(several[0], several, tuple(named))


def _check_functions(
    encode: Encode, decode: Decode, params: Params, batch: Batch, names: tuple[str, ...],
    shared: Select, here: Tensor | None, tasks: Tasks, losses: Tensor,
) -> None:  # fmt: skip
    """Raise where encode uses a parameter that is not shared, a task does not use z, or
    decode∘encode is not `losses_fn`.
    """
    with without_trace(params):
        forward = run_once(encode, params, batch, parse=_parse_features)
    reached = forward.graph.leaf_nodes
    if not reached:
        raise ValueError(
            "encode: z depends on no parameter; compute it from params, without detach or no_grad"
        )
    wrong = [name for name in params if name not in names and name in reached]
    if wrong:
        raise ValueError(
            f"shared={shared!r}: encode uses {', '.join(wrong)}, which it does not match; widen it"
        )
    features = forward.losses
    decoded = Run.of(
        lambda leaves, batch: decode(params, _unnamed(leaves), batch),
        {name: x.detach() for name, x in zip(features.names or (), features.roots, strict=True)},
        parse=lambda out: _parse_decoded(out, tasks),
    )
    found = first_losses(decoded, batch, tuple(decoded.params), counts=here)
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
