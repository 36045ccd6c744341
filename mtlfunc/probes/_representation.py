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
from ..gradients.levels import explained_vjp
from ..gradients.losses import Losses, Tasks, parse_losses
from ..gradients.run import observe
from ..gradients.safe_ops import SafeOps
from ..processes import ALONE, Group, mask_of
from ..types import Batch, Heads, Params, Probe, Select, State, TaskGradients, constructor
from .common import Present, Run, answer, check_memory, check_options, first_losses

Encode = Callable[[Params, Batch], Any]
"""The trunk: a tensor, or a dict of tensors."""

Decode = Callable[[Params, Any, Batch], Any]
"""The heads, `(params, z, batch)`: losses in any form that `LossesFn` may have."""


@constructor
def representation(
    encode: Encode, decode: Decode, *, shared: Select = "*", present: Present | None = None,
    heads: Heads | None = None, group: Group = None,
) -> Probe:  # fmt: skip
    """The geometry at z = encode(params, batch): T passes through the heads, one through the trunk.

    Rows are ∂L_t/∂z. With rule `mgda()` this is MGDA-UB: ‖Σ w_t ∂L_t/∂θ‖ <=
    ‖∂z/∂θ‖·‖Σ w_t ∂L_t/∂z‖, and the right-hand side is minimised. Zero exactly at
    Pareto-stationary points if ∂z/∂θ has full row rank; yet its direction can raise a task, because
    inner products of ∂L_t/∂z and of ∂L_t/∂θ may differ in sign, and steps along it can circle
    around such points (`python -m paper_repro --only mgda.counterexample`). When every sample
    supervises one task, rows are orthogonal and w_t is proportional to 1/‖∂L_t/∂z‖²: the bound sees
    no relation between tasks.

    Args:
        encode: `(params, batch) -> z`, a tensor or a dict of tensors.
        decode: `(params, z, batch) -> losses` in any form that `losses_fn` may have (a dict if that
            gives one); `losses_fn` is the composition of the two.
        shared: the parameters that act through z, in any form that `mtlfunc.jacobian` takes; `init`
            raises if encode uses another one.
        present: the tasks that have labels in this batch, as in `mtlfunc.jacobian`.
        heads: the gradient of the parameters through decode, as in `mtlfunc.jacobian`.
        group: as in `mtlfunc.jacobian`. z of the union is the concatenation, so that the Gramian is
            a sum and one gradient is all-reduced.

    Returns:
        a probe whose `combine(weights)` is the gradient of Σ w_t L_t through z, plus that of the
        heads through decode. With `heads="plain"` weights 1/T give the mean gradient over all
        parameters. `Info.gramian` is that of ∂L_t/∂z.

    Raises:
        TypeError: for functions that cannot be called as they will be.
        ValueError: at `init` if `shared` matches nothing, a part of z depends on no parameter,
            encode uses one outside, decode uses none of z, or decode∘encode is not `losses_fn`.

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
    options = check_options(shared, heads=heads, present=present, group=group)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        params = run.params
        check_params(params)
        names, counts = select(params, options.shared), run.labels(present, batch)
        forward = run.first(batch)
        losses, tasks = forward.value, forward.losses.tasks
        mask = mask_of(counts, len(losses))
        losses = losses if mask is None else losses.where(mask, 0.0)
        if values_readable(batch, params):
            z = _features(encode, params, batch, names, options.shared)
            decoded = Run.of(
                lambda leaves, batch: decode(params, _unnamed(leaves), batch), z,
                lambda out: _parse_decoded(out, tasks),
            )  # fmt: skip
            found = first_losses(decoded, batch, tuple(z), counts=counts)
            if found.shape != losses.shape or not torch.allclose(found, losses, 1e-3, 0.0):
                raise ValueError(
                    f"representation: decode(encode(·)) gives losses {found.tolist()}, but "
                    f"losses_fn gives {losses.tolist()}; they must be the same function, at init "
                    "without random numbers (call module.eval() before, and train() after it)"
                )
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
            z: Params = dict(zip(seen.losses.names or (), seen.losses.roots, strict=True))
            return z, z if seen.recorded or depth() else {n: x.detach() for n, x in z.items()}

        _, pull, z = explained_vjp(encoded, params)
        leaves = {f"decode {name}": leaf for name, leaf in params.items()}

        def decoded(both: Params, batch: Batch) -> Any:
            own = {name: both[f"decode {name}"] for name in params}
            return decode(own, _unnamed({name: both[name] for name in z}), batch)

        both = Run.of(decoded, leaves | z, lambda x: _parse_decoded(x, state), union=run.union)
        jacobian = both(batch, run.labels(present, batch))
        # z of the union is a concatenation: rows are each process's own, and their Gramians add up
        shares = jacobian.shares
        jacobian = replace(jacobian, columns=tuple(z), shares=shares._replace(union=ALONE))
        found = jacobian.measure(gramian=True, rows=True, heads=heads or run.heads)
        assert found.gramian is not None
        found, (gramian,) = shares.totals(found, found.gramian)

        def combine(weights: Tensor) -> Params:
            grads = found.combine(weights)
            at_z = {name: grads[name] for name in z}
            with nullcontext() if is_differentiated((z, found.rows, at_z)) else torch.no_grad():
                trunk = real_of(pull(at_z)[0])
            return shares.union.gradient({x: trunk[x] + grads[f"decode {x}"] for x in params})

        measured = answer(found._replace(gramian=gramian))
        return measured._replace(combine=combine), state

    return Probe(init, update, group, frozenset({"gramian"}), calls_model=True)


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


def _features(
    encode: Encode, params: Params, batch: Batch, names: tuple[str, ...], shared: Select
) -> Params:
    """z by name, for which encode used some parameters, and of these `names` alone."""
    forward = Run.of(encode, params, _parse_features).first(batch)
    reached, z = forward.graph.leaf_nodes, forward.losses
    still = [name for name, x in zip(z.names or (), z.roots, strict=True) if not x.requires_grad]
    if still or not reached:
        raise ValueError(
            f"encode: {', '.join(still) or 'z'} depends on no parameter; compute it from params, "
            "without detach or no_grad, or let decode compute it"
        )
    wrong = [name for name in params if name not in names and name in reached]
    if wrong:
        raise ValueError(
            f"shared={shared!r}: encode uses {', '.join(wrong)}, which it does not match; widen it"
        )
    return {name: x.detach() for name, x in zip(z.names or (), z.roots, strict=True)}


def _named(z: Any) -> dict[str, Tensor]:
    named = z if isinstance(z, dict) else {"": z}
    fits = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in named.values()]
    if not named or not all(fits):
        raise TypeError(
            f"encode: expected a floating tensor or a dict of them, got {type(z).__name__}"
        )
    return {f"z {name}".strip(): leaf for name, leaf in named.items()}


def _unnamed(named: dict[str, Tensor]) -> Any:
    if tuple(named) == ("z",):
        return named["z"]
    return {name.removeprefix("z "): leaf for name, leaf in named.items()}
