"""The errors that say what was wrong with an argument."""

import math
import operator
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..types import Batch, Params, Probe, Rule, Scalar, State, TaskGradients
from .internals import keystr, tree_flatten_with_path
from .transforms import has_finite_sum, innermost_tensor, inside_transform, values_readable
from .tree import memory_dtype
from .wrappers import refuse_shards


def check_params(params: Params, *, mixed: bool = False) -> None:
    """Raise unless `params` is a dict of floats, real or complex, of one device and one precision;
    `mixed`: or of float32 and half precision, whose Gramians are in float32.
    """
    nested = hasattr(params, "flatten_keys")  # a TensorDict
    if nested or not isinstance(params, Mapping):
        flat = "dict(params.flatten_keys('.').items())"
        cure = flat if nested else "mtlfunc.parameters(module), before the batch"
        raise TypeError(
            f"params: expected a dict {{name: tensor}}, got {type(params).__name__}; use {cure}"
        )
    if not params:
        raise TypeError(
            "params: expected a non-empty dict {name: tensor}; frozen parameters "
            "(requires_grad=False) are not in mtlfunc.parameters(module)"
        )
    refuse_shards(params)
    first, like = next(iter(params.items()))
    for name, leaf in params.items():
        if not isinstance(name, str):
            raise TypeError(
                f"params: expected names that are strings, got {name!r}; use "
                "mtlfunc.parameters(module)"
            )
        if not isinstance(leaf, Tensor):
            raise TypeError(f"params[{name!r}]: expected a tensor, got {type(leaf).__name__}")
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(
                f"params[{name!r}] has dtype {leaf.dtype} and cannot be differentiated; leave it "
                "out of params (pass integer tensors in the batch or let the module keep them)"
            )
        if leaf.device != like.device:
            raise ValueError(
                f"params: {first!r} is on {like.device} but {name!r} is on {leaf.device}; move all "
                "to one device"
            )
        same = leaf.dtype == like.dtype or leaf.dtype.to_real() == like.dtype.to_real()
        if not same and not (mixed and torch.float64 not in (leaf.dtype, like.dtype)):
            raise ValueError(
                f"params: {first!r} is {like.dtype} but {name!r} is {leaf.dtype}; convert the "
                "module to one dtype (for mixed precision use autocast for the forward pass)"
            )
    refuse_meta(like, "params", "; call module.to_empty(device=...) and load or draw them first")


def refuse_meta(x: Tensor, what: str, cure: str = "") -> None:
    """Raise for a tensor of the meta device."""
    if x.is_meta:
        raise ValueError(f"{what}: on the meta device, which holds no values{cure}")


def check_autocast(params: Params, around: str = "call") -> None:
    """Raise if autocast is active: it would round the products of gradients to half precision."""
    if torch.is_autocast_enabled(next(iter(params.values())).device.type):
        raise RuntimeError(
            f"autocast is active around the {around} and would round rows and Gramian to half "
            "precision; open it inside losses_fn instead"
        )


def check_tensor(value: Any, name: str, shape: str, per_task: Sequence[int] | None = None) -> None:
    """Raise unless `value` is a tensor of this shape, in words, and `per_task` in numbers."""
    if not isinstance(value, Tensor):
        cure = "tensor([*given.values()])" if isinstance(value, Mapping) else "as_tensor"
        raise TypeError(
            f"{name}: expected a tensor {shape}, got {type(value).__name__}; use torch.{cure}"
        )
    if per_task is not None and value.shape != per_task:
        raise ValueError(
            f"{name}: expected shape {list(per_task)}, one entry a task, got {list(value.shape)}"
        )


def check_gramian(gramian: Tensor, *, symmetric: bool = False) -> None:
    """Raise unless this is a floating `[T, T]`, T >= 1, where seen finite (and `symmetric`)."""
    check_tensor(gramian, "gramian", "[T, T]")
    if gramian.ndim != 2 or gramian.shape[0] != gramian.shape[1] or gramian.shape[0] == 0:
        raise ValueError(
            f"gramian: expected a square matrix [T, T] with T >= 1, got shape "
            f"{tuple(gramian.shape)}; batch with torch.func.vmap"
        )
    if not gramian.is_floating_point():
        raise TypeError(
            f"gramian: expected a floating dtype, got {gramian.dtype}; convert it with .double()"
        )
    if gramian.layout != torch.strided:
        raise TypeError(f"gramian: expected a dense tensor, got {gramian.layout}; use .to_dense()")
    if not values_readable(gramian):
        return check_batch(gramian, "gramian")
    gramian = gramian.detach()
    # Nearly always all is well, and two operations say so; what follows finds out what is not.
    if has_finite_sum(gramian) and (not symmetric or torch.equal(gramian, gramian.mT)):
        return
    if bad := (~gramian.isfinite()).any(-1).nonzero().flatten().tolist():
        raise ValueError(
            f"gramian: NaN or infinite entries in rows {bad}; the gradients of these tasks are "
            "not finite"
        )
    if symmetric:
        scale, eps = gramian.diagonal().abs().sqrt(), torch.finfo(gramian.dtype).eps
        # J @ J.T in float32 is not quite symmetric, and may have been widened since
        rounding = max(1e3 * eps, 64 * torch.finfo(torch.float32).eps)
        worst = (gramian - gramian.mT).abs() - rounding * scale[:, None] * scale
        if bool((worst > 0).any()):
            i, j = divmod(int(worst.argmax()), gramian.shape[1])
            raise ValueError(
                f"gramian: not symmetric: entry [{i}, {j}] is {gramian[i, j]:.6g} but [{j}, {i}] "
                f"is {gramian[j, i]:.6g}; a Gramian is J @ J.T (symmetrise with (G + G.T) / 2)"
            )


def check_batch(value: Tensor, name: str) -> None:
    """Raise if a `vmap` around runs over an axis of length 0; torch's own words differ."""
    active = not torch.compiler.is_compiling() and inside_transform()
    if active and value.numel() and not innermost_tensor(value).numel():
        raise ValueError(
            f"{name}: torch.func.vmap runs over an axis of length 0; leave the call out if "
            "there is nothing to compute"
        )


def check_vector(value: Tensor, like: Tensor, name: str, of: str = "gramian") -> None:
    """Raise unless `value` is a finite vector `[T]` like `like` `[…, T]`, a part `of` the input."""
    check_tensor(value, name, "[task]", like.shape[-1:])
    if value.dtype != like.dtype or value.device != like.device:
        raise ValueError(
            f"{name} is {value.dtype} on {value.device} but the {of} is {like.dtype} on "
            f"{like.device}; convert one to the other"
        )
    check_finite(value, name)


def check_dtype(dtype: Any, name: str, *, none: bool = False) -> None:
    """Raise TypeError unless this is a floating dtype, or None if that is allowed."""
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if not (floating or (none and dtype is None)):
        kind = "None or a floating dtype" if none else "a floating dtype"
        raise TypeError(f"{name}: expected {kind} such as torch.float64, got {dtype!r}")


def check_finite(value: Tensor, name: str, tasks: Any = (), cures: str = "") -> None:
    """Raise if NaN or infinity can be seen in `value`. `tasks` are the names of the entries, in a
    mapping or in order; anything else is none. `cures`: after what is always to be checked.
    """
    if not values_readable(value) or has_finite_sum(value) or bool(value.isfinite().all()):
        return
    bad = (~value.isfinite()).nonzero().flatten().tolist() if value.ndim == 1 else []
    names = list(tasks) if tasks and all(isinstance(task, str) for task in tasks) else []
    known = bool(names) and len(names) == len(value)
    named = f" of {', '.join(repr(names[t]) for t in bad)}" if known else ""
    raise ValueError(
        f"{name}: NaN or infinite entries{f' {bad}' if bad else ''}{named}; check the data, the "
        f"losses and the learning rate{cures}"
    )


def expect_answer(answer: Any, what: str = "rule: expected (weights, state) from update") -> Any:
    """An answer and a state, of a rule's update or of what else is expected."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError(f"{what}, got {type(answer).__name__}; without memory the state is ()")
    return answer


def expect_measurement(answer: Any) -> tuple[TaskGradients, State]:
    """What a probe's update gave, if its Gramian is one of its losses."""
    found = answer[0] if isinstance(answer, tuple) and len(answer) == 2 else answer
    if not isinstance(found, TaskGradients) or found is answer:
        raise TypeError(f"probe: expected (TaskGradients, state), got {type(found).__name__}")
    gramian, count = found.geometry.gramian, len(found.geometry.losses)
    if gramian is not None and gramian.numel() and gramian.shape != (count, count):
        raise ValueError(f"probe: a Gramian {list(gramian.shape)} beside {count} losses")
    return answer


def init_rule(rule: Rule, losses: Tensor, key: Tensor) -> State:
    """The rule's first state, for losses [row]."""
    return _of_tensors(rule.init(losses.to(memory_dtype(losses)), key), "rule", rule)


def init_probe(probe: Probe, run: Any, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
    """The losses [row] before the first step, and the probe's first state."""
    losses, state = expect_answer(probe.init(run, batch, key), "probe: expected (losses, state)")
    return losses, _of_tensors(state, "probe", probe)


def _of_tensors(state: State, part: str, made: Any) -> State:
    """A first state, if it holds tensors alone: others could not be saved or mapped."""
    for path, leaf in [] if torch.compiler.is_compiling() else tree_flatten_with_path(state)[0]:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{part}: state{keystr(path)} from init of {made!r} is a {type(leaf).__name__}, "
                "and a state holds tensors alone: use torch.as_tensor, and () for nothing"
            )
    return state


def check_weights(weights: Any, shape: Sequence[int]) -> None:
    """Raise unless a rule's update gave weights of this shape, finite where seen."""
    if not isinstance(weights, Tensor) or weights.shape != shape:
        found = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"rule: expected weights of shape {list(shape)} from update, got {found}")
    if weights.is_complex():
        raise ValueError(f"rule: expected real weights from update, got {weights.dtype}")
    check_finite(weights, "weights (the rule's answer)", cures=", and the rule for 0/0")


def check_losses(losses: Tensor, tasks: Any) -> None:
    """Raise if NaN or infinity can be seen in losses `[task]`, 0 for tasks without labels."""
    check_finite(
        *(losses, "losses", tasks),
        "; say with present= which tasks have labels, if a mean over none is NaN; shift losses "
        "above 0, if their logarithms are taken",
    )


def user_level() -> int:
    """The `stacklevel` of a warning that names the line of the user's own which led here."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("mtlfunc."):
        frame, level = frame.f_back, level + 1
    return level


def check_gradients(grads: Params, params: Params) -> Params:
    """Raise where a leaf has none, or NaN or infinity can be seen in it, naming the leaf."""
    if missing := sorted(params.keys() - grads.keys()):
        raise ValueError(f"probe: no gradient of {missing[0]!r}; measure with heads=run.heads")
    if grads and values_readable(*grads.values()) and not has_finite_sum(*grads.values()):
        for name, leaf in grads.items():
            check_finite(leaf, f"gradient of {name!r}")
    return grads


def check_scalar(
    value: Scalar, name: str, *, positive: bool = False, below: float = float("inf")
) -> None:
    """Raise unless `value` is a number or a 0-d tensor, where that can be seen >= 0, or > 0 if
    `positive`, and less than `below`. Errors call it `name`.
    """
    expected = f"{name}: expected a number or a 0-d tensor, got"
    if isinstance(value, Tensor):
        if value.ndim:
            shape = list(value.shape)
            raise ValueError(f"{expected} shape {shape}; batch over it with torch.func.vmap")
        if not values_readable(value):
            return
        value = value.item()
    elif not isinstance(value, Real):  # NumPy's scalars, too
        raise TypeError(f"{expected} {type(value).__name__}")
    number = float(value)
    if not (number > 0 if positive else number >= 0) or not number < below:
        limit = "" if below == float("inf") else f" and < {below:g}"
        raise ValueError(
            f"{name}: expected a finite number {'> 0' if positive else '>= 0'}{limit}, got {number}"
        )


def check_count(value: Any, name: str, least: int = 1, *, none: bool = False) -> None:
    """Raise ValueError unless `value` is a whole number >= `least`, or None if that is allowed."""
    try:
        good = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:  # None, or a fraction
        good = none and value is None
    if not good:
        kind = "None or a whole number" if none else "a whole number"
        raise ValueError(f"{name}: expected {kind} >= {least}, got {value!r}")


def check_option(value: object, name: str, options: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of `options`, for instance `get_args` of a Literal."""
    if value not in options:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, options))}")


def normalized_preference(
    preference: Tensor | None, fallback: Tensor, argument: str = "preference"
) -> Tensor:
    """The preference scaled to sum 1, or `fallback` where none was given; raises on a bad one."""
    if preference is None:
        return fallback
    check_tensor(preference, argument, "[task]", fallback.shape)
    if not preference.is_floating_point() or preference.device != fallback.device:
        raise ValueError(
            f"{argument}: expected a floating tensor on {fallback.device}, got {preference.dtype} "
            f"on {preference.device}"
        )
    if not values_readable(preference):
        preference = preference.where(preference >= 0, float("nan"))
    elif not (bool((preference >= 0).all()) and 0 < float(preference.detach().sum()) < math.inf):
        raise ValueError(
            f"{argument}: expected finite entries >= 0 with a positive sum, got "
            f"{preference.tolist()}"
        )
    wide = preference.to(torch.promote_types(preference.dtype, fallback.dtype))
    return (wide / wide.sum()).to(fallback.dtype)


def poison(answer: Any, *inputs: Tensor, right: Sequence[Tensor] = ()) -> Any:
    """`answer` if all inputs are finite and these 0-d masks true; else NaN, its derivatives too."""
    if values_readable(answer, *inputs, *right) and has_finite_sum(*inputs) and all(right):
        return answer
    every = [*right, *(x.isfinite().all() for x in inputs)]
    every = every[0] if len(every) == 1 else torch.stack(every).all()
    return answer * torch.where(every, 1.0, torch.nan).to(answer)
