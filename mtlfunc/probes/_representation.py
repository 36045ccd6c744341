"""MGDA-UB's probe: the geometry of the tasks measured at the shared representation, and one
pullback through the trunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from ..core.checks import can_look, check_params, recording
from ..core.tree import combine, dot, select
from ..gradients.forward import explained_vjp, split_output
from ..gradients.linearize import linearize
from ..types import Batch, Geometry, LossesFn, Params, Probe, Select, State, TaskGradients
from .common import Present, check_leak, first_losses, labelled, labels, leaves_of_each, with_labels

Encode = Callable[[Params, Batch], Any]
Decode = Callable[[Params, Any, Batch], Any]


def representation(
    encode: Encode, decode: Decode, *, shared: Select = "*", present: Present | None = None
) -> Probe:
    """Rows are ∂L_t/∂z at z = encode(params, batch): T passes through the heads, one through the
    trunk.

    With rule `mgda()` this is MGDA-UB: ‖Σ w_t ∂L_t/∂θ‖ <= ‖∂z/∂θ‖·‖Σ w_t ∂L_t/∂z‖, and the
    right-hand side is minimised. Zero exactly at Pareto-stationary points if ∂z/∂θ has full row
    rank; yet its direction can raise a task, because inner products of ∂L_t/∂z and of ∂L_t/∂θ may
    differ in sign (`python -m paper_repro --only mgda_ub`). When every sample supervises one task,
    rows are orthogonal and w_t is proportional to 1/‖∂L_t/∂z‖²: the bound sees no relation between
    tasks.

    Args:
        encode: `(params, batch) -> z`, a tensor or a dict of tensors.
        decode: `(params, z, batch) -> losses` in any form that `losses_fn` may have; `losses_fn` is
            the composition of the two.
        shared: the parameters that act through z, a glob or a predicate; `init` raises if encode
            uses another one.
        present: `batch -> Bool[task]`, the tasks that have labels in this batch, as in
            `mtlfunc.jacobian`.

    Returns:
        a probe whose `combine(weights)` is the gradient of Σ w_t L_t through z, plus that of the
        mean loss through decode (the heads). Weights 1/T give the mean gradient over all
        parameters. `Info.gramian` is that of ∂L_t/∂z.

    Raises:
        ValueError: at `init` if `shared` matches nothing, encode uses a parameter outside it,
            decode uses none of z, or decode∘encode is not `losses_fn`.

    Source:
        Sener & Koltun 2018, section 3.3.
    """

    def init(
        losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, State]:
        check_params(params)
        names = select(params, shared)
        here = labels(present, batch)
        losses = explained_vjp(lambda p: (split_output(losses_fn(p, batch))[0], ()), params)[0]
        losses = losses if here is None else losses.where(here, 0.0)
        if not can_look(batch, params):
            return losses, ()
        outside = tuple(name for name in params if name not in names)

        def used(params: Params) -> tuple[Tensor, Any]:
            nonlocal reached
            total = torch.stack(
                [leaf.sum() for leaf in _named(encode(params, batch)).values()]
            ).sum()
            reached = leaves_of_each(total, (total,), params)
            return total, ()

        reached: list[set[str]] | None = None
        vjp(used, params, has_aux=True)
        wrong = [name for name in outside if reached and name in reached[0]]
        if wrong:
            raise ValueError(
                f"shared={shared!r}: encode uses {', '.join(wrong)}, which it does not match; "
                "widen it"
            )
        z = {name: leaf.detach() for name, leaf in _named(encode(params, batch)).items()}
        decoded = first_losses(
            lambda leaves, batch: decode(params, _unnamed(leaves), batch),
            z,
            batch,
            tuple(z),
            present=here,
        )
        if decoded.shape != losses.shape or not torch.allclose(
            decoded, losses, rtol=1e-3, atol=0.0
        ):
            raise ValueError(
                f"representation: decode(encode(·)) gives losses {decoded.tolist()}, but "
                f"losses_fn gives {losses.tolist()}; they must be the same function"
            )
        return losses, ()

    def update(
        losses_fn: LossesFn, params: Params, batch: Batch, state: State
    ) -> tuple[TaskGradients, State]:
        z, pull, _ = explained_vjp(lambda p: (_named(encode(p, batch)), ()), params)
        leaves = {f"decode {name}": leaf for name, leaf in params.items()}

        def decode_leaves(both: Params, batch: Batch) -> Any:
            return decode(
                {name: both[f"decode {name}"] for name in params},
                _unnamed({name: both[name] for name in z}),
                batch,
            )

        here = labels(present, batch)
        linear = linearize(
            with_labels(decode_leaves, here),
            leaves | z,
            batch,
            shared=tuple(z),
            heads=lambda count: 1 / count,
        )
        found = labelled(linear, here)
        geometry = Geometry(
            linear.losses,
            dot(linear.rows, linear.rows, tuple(z)),
            found.preference,
            found.present,
            {},
        )
        check_leak(found, geometry.gramian, *linear.heads.values())

        def combined(weights: Tensor) -> Params:
            with recording((z, linear.rows, weights)):
                through = pull(combine(weights, linear.rows))[0]
            return {
                name: through[name] + linear.heads[f"decode {name}"] * found.share
                for name in params
            }

        return TaskGradients(found.losses, geometry, combined, found.aux), state

    return Probe(init, update)


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
    return (
        named["z"]
        if tuple(named) == ("z",)
        else {name.removeprefix("z "): leaf for name, leaf in named.items()}
    )
