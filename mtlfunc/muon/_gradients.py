"""What `torch.optim.Muon` will do with a gradient, and the gradient that makes it lower all losses.

A matrix moves by -rate·polar(a·g + b·B) - decay·θ, B being the buffer of its momentum and polar
the orthogonal factor: U V of the singular value decomposition U diag(s) V.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.checks import check_vector
from ..solvers.problems import or_one
from ..types import Params, Rows, Solution
from ._nuclear import check_rows, nuclear

Muon: Any = getattr(torch.optim, "Muon", None)  # from torch 2.9 on


def gradients(
    optimizer: Any,
    module: nn.Module,
    rows: Rows,
    gramian: Float[Tensor, "task task"] | None = None,
    *,
    carried: Float[Tensor, " task"] | None = None,
    weights: Float[Tensor, " task"] | None = None,
) -> tuple[Solution, Params]:
    """The `.grad` after which the next step of `torch.optim.Muon` is the steepest common descent,
    and what that step does.

    Its step is the polar factor of a sum of the gradient and its momentum. The answer cancels the
    momentum, (Σ w g - b B)/a, so that the step is the polar factor of Σ w g with the weights of
    `mtlfunc.muon.nuclear`, which count weight decay, each layer at its own learning rate. The
    buffer stays bounded: in it is what is left of the last few Σ w g. With `weights` the answer is
    Σ w g itself, and the rates say what the step will do to each loss, momentum included.

    Where Σ w g is singular no polar factor is the best step, and Muon's, five Newton-Schulz steps
    in bfloat16, is none. So the optimizer makes its step twice on copies: of Σ w g, and of the best
    step D of `nuclear` as long as Σ w g. The answer is the one whose smallest rate is larger, and
    `rates` and `gap` are those of that step.

    Args:
        optimizer: a `torch.optim.Muon`, between two steps. Its state is read and left as it is.
        module: holds its parameters, and perhaps others.
        rows: the tasks' gradients of its matrices, `{name: [task, m, n]}`, as from
            `mtlfunc.task_gradients`. What a matrix without rows does is not counted.
        gramian: of the other parameters: J P Jᵀ with P of the optimizer that steps on them.
        carried: J c `[task]` of the other parameters, what that optimizer's momentum and decay
            take from each loss: `info.rates - info.gramian @ info.weights` of a `Balancer`.
        weights: w `[task]` that a rule chose.

    Returns:
        the solution, at least float32, and `{name: [m, n]}` in the dtype of the rows, for
        `mtlfunc.assign_gradients`. `rates`: by how much each loss falls in the next step, to first
        order, weight decay and learning rates included.
        `value` + ½wᵀGw: the smallest rate of the best step, with `gramian` G and the best step's w.
        `gap` bounds what this step lacks of it, and is large where Muon cannot make that step. A
        rate below 0 says that the step raises this loss.

    Raises:
        TypeError: for an optimizer that is not `torch.optim.Muon`; subclasses may step otherwise.
        ValueError: for rows of what the optimizer does not hold or in other shapes, for a buffer
            in another shape, for momentum 1, and as in `nuclear`.
        NotImplementedError: for a module of several processes.

    Source:
        `torch.optim.Muon` of torch 2.11 to 2.13: `adjust_lr_fn`, `nesterov`, decoupled decay.

    Examples:
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> optimizer = torch.optim.Muon(net.parameters(), lr=0.1, weight_decay=0.0)
        >>> rows = {"weight": torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]])}
        >>> solution, grads = gradients(optimizer, net, rows)
        >>> solution.weights, (solution.rates > 0).tolist()
        (tensor([0., 1.]), [True, True])
    """
    check_rows(rows, gramian, carried)
    if Muon is None or type(optimizer) is not Muon:
        raise TypeError(
            f"optimizer: expected a torch.optim.Muon, got {type(optimizer).__name__}; diagonal "
            "ones go into mtlfunc.Balancer(..., metric=optimizer)"
        )
    params, given = dict(module.named_parameters()), rows
    rows = {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in given.items()}
    steps = {name: _step_of(optimizer, params, name, leaf) for name, leaf in rows.items()}
    scaled = {name: steps[name].rate * leaf for name, leaf in rows.items()}
    decay = torch.stack([_products(x, steps[name].decay) for name, x in rows.items()]).sum(0)
    anyway = decay if carried is None else decay + carried
    solution, best = nuclear(scaled, gramian, carried=anyway)
    w = solution.weights if weights is None else torch.as_tensor(weights).to(solution.weights)
    check_vector(w, solution.weights[None], "weights")
    mixed = {name: torch.einsum("t,tmn->mn", w.to(x), x) for name, x in rows.items()}
    tried = [mixed]
    if weights is None:  # without what the momentum will add
        tried.append({name: mixed[name].norm() / or_one(x.norm()) * x for name, x in best.items()})
        tried = [
            {name: (x - steps[name].buffer) / steps[name].share for name, x in one.items()}
            for one in tried
        ]
    curve = torch.zeros_like(w) if gramian is None else gramian.to(w) @ w
    made = []
    for one in tried:
        grads = {name: x.to(given[name]) for name, x in one.items()}
        moves = _moves_of(optimizer, params, grads)
        fall = torch.stack([_products(x, moves[name].to(x)) for name, x in rows.items()]).sum(0)
        made.append((fall + curve + anyway, grads))
    rates, grads = max(made, key=lambda each: float(each[0].amin()))
    gap = (solution.value + 0.5 * w @ curve - rates.amin()).clamp_min(0)
    return solution._replace(weights=w, dual=w, rates=rates, gap=gap), grads


def _moves_of(optimizer: Optimizer, params: Mapping[str, Tensor], grads: Params) -> Params:
    """-θ' after the optimizer's step with these gradients from θ = 0, where nothing decays."""
    copies = {name: torch.zeros_like(params[name]).requires_grad_() for name in grads}
    groups = [
        group
        | {"params": [x for name, x in copies.items() if any(params[name] is y for y in held)]}
        for group in optimizer.param_groups
        for held in [group["params"]]
    ]
    twin = Muon([group for group in groups if group["params"]])
    for name, copied in copies.items():
        copied.grad = grads[name].to(copied)
        state = optimizer.state.get(params[name], {})
        twin.state[copied] = {key: torch.clone(x) for key, x in state.items()}
    twin.step()
    return {name: -copied.detach() for name, copied in copies.items()}


class _Step(NamedTuple):
    """A matrix's next move: -rate·polar(share·g + buffer) - decay."""

    rate: float
    share: float
    buffer: Tensor
    decay: Tensor


def _step_of(optimizer: Optimizer, params: Mapping[str, Tensor], name: str, rows: Tensor) -> _Step:
    leaf = params.get(name)
    group = next((g for g in optimizer.param_groups if any(leaf is x for x in g["params"])), None)
    if leaf is None or group is None:
        raise ValueError(
            f"rows[{name!r}]: the optimizer does not hold it; pass rows of the matrices that Muon "
            "steps on, and the Gramian of the others as gramian="
        )
    buffer = optimizer.state.get(leaf, {}).get("momentum_buffer", torch.zeros_like(leaf))
    if rows.shape[1:] != leaf.shape or buffer.shape != leaf.shape:
        raise ValueError(
            f"rows[{name!r}]: {list(rows.shape)}, the parameter {list(leaf.shape)} and its "
            f"momentum buffer {list(buffer.shape)} do not fit; pass rows [task, *shape], and the "
            "state of this model"
        )
    momentum, rate, (m, n) = group["momentum"], float(group["lr"]), leaf.shape
    if momentum == 1:
        raise ValueError("optimizer: momentum=1 never reads a gradient; take one below 1")
    share, kept = 1 - momentum, momentum
    if group["nesterov"]:
        share, kept = share * (1 + momentum), momentum**2
    wider = {"original": max(1, m / n) ** 0.5, "match_rms_adamw": 0.2 * max(m, n) ** 0.5}
    adjusted = rate * wider[group["adjust_lr_fn"] or "original"]
    buffer, decay = buffer.to(rows), rate * group["weight_decay"] * leaf.detach().to(rows)
    return _Step(adjusted, share, kept * buffer, decay)


def _products(rows: Tensor, step: Tensor) -> Tensor:
    return torch.einsum("tmn,mn->t", rows, step)
