"""Losses, parsed once where they enter: from a `losses_fn`, or from the user's own forward pass."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_batch, check_finite, refuse_meta
from ..core.internals import tree_leaves

Tasks = dict[Any, tuple[()]] | tuple[tuple[()], ...]
"""The tasks that a state remembers, in order: `{name: ()}`, or `((), ...)` if losses have no names.
It holds no tensor, so that transforms, compilers and files see structure alone.
"""


class Losses(NamedTuple):
    """What `losses_fn` returned, or what the user holds, in one form."""

    vector: Tensor  # [task]; of samples [sample] or [sample, task]
    scalars: tuple[Tensor, ...] | None = None  # the same, if they came as separate scalars
    names: tuple[Any, ...] | None = None  # if they came in a dict
    aux: Any = ()
    # of samples, [sample] or [sample, part], whose flattened vector that is
    shape: torch.Size | None = None

    @property
    def tasks(self) -> Tasks:
        return ((),) * len(self.vector) if self.names is None else dict.fromkeys(self.names, ())

    @property
    def roots(self) -> tuple[Tensor, ...]:
        """The tensors that the user made."""
        return self.scalars or (self.vector,)


def _is_pair(out: Any) -> bool:
    """Whether this is (losses, aux) rather than a tuple of two scalar losses."""
    pair = isinstance(out, tuple) and len(out) == 2
    return pair and not (isinstance(out[0], Tensor) and out[0].ndim == 0)


def parse_losses(
    out: Any, what: str = "losses_fn", *, tasks: Tasks = (), first: str = "init"
) -> Losses:
    """Parse losses in any form; a dict is put into the order of `tasks`.

    Args:
        out: a vector `[task]`, a tuple, list or dict of T scalars, or a pair (losses, aux): a tuple
            whose first entry is not a 0-d tensor.
        what: gave the losses, in errors.
        tasks: those of the first step; () accepts any.
        first: when that was, in errors. Raises one unless these are floating losses of `tasks`.
    """
    out, aux = out if _is_pair(out) else (out, ())
    if isinstance(out, Tensor):
        if out.ndim != 1 or out.shape[0] == 0:
            cure = (
                f"{'return' if what == 'losses_fn' else 'pass'} losses[None] if there is one task, "
                "else one loss per task"
                if out.ndim == 0
                else "reduce over samples, for instance with .mean(0)"
            )
            cure = cure if 0 not in out.shape else "there has to be one task at least"
            raise ValueError(
                f"{what}: expected losses of shape [task], got {list(out.shape)}; {cure}"
            )
        losses = Losses(out, None, None, aux)
        if tasks:
            _check_tasks(losses.tasks, tasks, what, first)
    else:
        names = tuple(out) if isinstance(out, Mapping) else None
        found: Any = out.values() if names is not None else out
        several = tuple(found if names is not None or isinstance(found, tuple | list) else ())
        if tasks and several:
            given = dict.fromkeys(names) if names else ((),) * len(several)
            _check_tasks(given, tasks, what, first)
            if names is not None and names != tuple(tasks):
                names, several = tuple(tasks), tuple(out[name] for name in tasks)
        wrong = [
            f"{list(x.shape) if isinstance(x, Tensor) else type(x).__name__} for task {task!r}"
            for task, x in zip(names or range(len(several)), several, strict=True)
            if not isinstance(x, Tensor) or x.ndim
        ]
        if wrong or not several:
            raise ValueError(
                f"{what}: expected a vector [task], or a tuple or dict of scalar tensors, got "
                f"{', '.join(wrong) or type(out).__name__}; {_cure(out, several)}"
            )
        losses = Losses(torch.stack(several), several, names, aux)
    if not losses.vector.is_floating_point():
        raise TypeError(f"{what}: expected floating losses, got {losses.vector.dtype}")
    refuse_meta(losses.vector, what)
    check_batch(losses.vector, what)
    return losses


def _cure(out: Any, several: tuple[Any, ...]) -> str:
    """What to do about losses that are not scalar tensors."""
    found = several or (out,)
    if out is None:
        return "the function that makes them returns nothing"
    if any(map(callable, found)):
        return "call the function; `backward` and `measure` also take one function a task"
    if any(x is None for x in found):
        return "a task without labels in this batch takes the loss torch.zeros(()) and present="
    if any(type(x).__module__ == "numpy" or isinstance(x, int | float) for x in found):
        return "pass tensors with their graph, without .item(), .detach() or .numpy()"
    if not several and isinstance(out, Iterable) and not isinstance(out, str):
        if isinstance(out, tuple | list | Mapping):
            return "there has to be one task at least"
        return "make it a list, whose order is that of the tasks"
    return "reduce each loss to one number, for instance with .mean()"


def parse_existing(losses: Any, tasks: Tasks = (), first: str = "init") -> Losses:
    """`parse_losses` of a user's own, of which two in a tuple are never (losses, aux)."""
    listed = list(losses) if isinstance(losses, tuple) else losses
    return parse_losses(listed, "losses", tasks=tasks, first=first)


def parse_declared(out: Any, tasks: Tasks, *, has_aux: bool) -> Losses:
    """`parse_losses` of what `losses_fn` returned, if that is what `has_aux` says."""
    if has_aux:
        _declared(out)
        if not _is_pair(out):
            raise ValueError("losses_fn: got one scalar and aux; of one task return losses[None]")
    elif _is_pair(out):
        raise ValueError(
            "losses_fn returned (losses, aux): pass has_aux=True; or, if these are two losses, "
            "reduce each to one number"
        )
    return parse_losses(out, tasks=tasks)


def _declared(out: Any) -> tuple[Any, Any]:
    """The same, or an error unless it is a pair (losses, aux) with a pytree of tensors."""
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError("has_aux=True, but losses_fn did not return a pair (losses, aux)")
    if strange := [leaf for leaf in tree_leaves(out[1]) if not isinstance(leaf, Tensor)]:
        raise TypeError(
            f"losses_fn: aux holds {strange[0]!r}, but all its leaves must be tensors; use "
            "torch.as_tensor, and () for nothing"
        )
    return out


def parse_alone(out: Any) -> Losses:
    """`parse_losses` of what `losses_fn` returned, which must not be (losses, aux)."""
    if _is_pair(out):
        raise ValueError(
            "losses_fn: got a pair of which the first is not a scalar; reduce each loss to one "
            "number, or leave aux out"
        )
    return parse_losses(out)


def parse_samples(
    out: Any, what: str = "losses_fn", part: str = "task", cure: str = "none of them 0"
) -> Losses:
    """Losses `[sample]` or `[sample, part]`, floating; raises an error for others."""
    if not isinstance(out, Tensor) or out.ndim not in (1, 2) or 0 in out.shape:
        found = f"shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"{what}: expected one tensor [sample] or [sample, {part}], got {found}; {cure}"
        )
    if not out.is_floating_point():
        raise TypeError(f"{what}: expected floating losses, got {out.dtype}")
    return Losses(out)


def parse_weightings(out: Any, what: str = "losses_fn", *, has_aux: bool = False) -> Losses:
    """Losses `[sample]` or `[sample, part]` of weightings, flattened; an error for others."""
    out, aux = _declared(out) if has_aux else (out, ())
    cure = (
        "weightings= make tasks of the losses of samples: reduce over the positions or tokens of "
        "every sample alone, for instance with .flatten(1).sum(1), and never over the samples"
    )
    parse_samples(out, what, "part", cure)
    return Losses(out if out.ndim == 1 else out.flatten(), aux=aux, shape=out.shape)


def expect_weightings(weightings: Any) -> Tensor:
    """Weightings `[task, sample]` or `[task, sample, part]`, as far as no losses are needed."""
    known = isinstance(weightings, Tensor)
    if not known or not weightings.is_floating_point() or weightings.layout != torch.strided:
        found = f"{weightings.dtype}, {weightings.layout}" if known else type(weightings).__name__
        raise TypeError(
            "weightings: expected a floating tensor [task, sample], or [task, sample, part], got "
            f"{found}; a mask becomes one by .to(losses.dtype), a sparse tensor by .to_dense()"
        )
    if weightings.ndim not in (2, 3) or 0 in weightings.shape:
        cure = "weights of tokens go into the losses, which are sums over the tokens of a sample"
        if 0 in weightings.shape:
            cure = "without tasks or samples: a step or rank that has none takes one, of weight 0"
        raise ValueError(
            "weightings: expected [task, sample], or [task, sample, part] for losses [sample, "
            f"part], got {list(weightings.shape)}; {cure}"
        )
    return weightings


def flat_weightings(weightings: Tensor, losses: Losses, value: Tensor) -> Tensor:
    """Weightings [task, entry] of these losses, flattened as they are; raises an error for another
    number of samples, another dtype or device, or NaN.
    """
    shape = value.shape if losses.shape is None else losses.shape
    if weightings.shape[1:] != shape:
        raise ValueError(
            f"weightings: expected [task, {', '.join(map(str, shape))}], one weight for every "
            f"entry of the losses, which are {list(shape)}; got {list(weightings.shape)}"
        )
    if weightings.dtype != value.dtype or weightings.device != value.device:
        raise ValueError(
            f"weightings: they are {weightings.dtype} on {weightings.device}, and the losses "
            f"{value.dtype} on {value.device}; convert them by weightings.to(losses)"
        )
    check_finite(weightings, "weightings")
    return weightings.flatten(1)


def check_task_count(losses: Tensor, tasks: Tasks, first: str) -> None:
    """Raise unless there are as many weightings as at the first step."""
    if tasks and len(losses) != len(tasks):
        raise ValueError(
            f"weightings: {len(tasks)} tasks at {first}, {len(losses)} at this step; give every "
            "task a row at every step, of zeros where it has no samples (for other tasks, start "
            "anew)"
        )


def _check_tasks(found: Any, tasks: Tasks, what: str, first: str) -> None:
    """Raise unless the losses found are of the tasks of the first step."""
    named = isinstance(tasks, dict)
    if named != isinstance(found, dict):
        forms = ("a dict", "without names") if named else ("without names", "a dict")
        raise ValueError(
            f"{what}: the losses were {forms[0]} at {first} and are {forms[1]} at this step; "
            "return one form at every step"
        )
    absent = "return every task at every step, and say with present= which have labels"
    if not isinstance(found, dict):
        if len(found) != len(tasks):
            raise ValueError(
                f"{what}: {len(tasks)} losses at {first}, {len(found)} at this step; {absent} "
                "(for other tasks, start anew)"
            )
        return
    missing = [name for name in tasks if name not in found]
    new = [name for name in found if name not in tasks]
    if missing:
        raise ValueError(
            f"{what}: no loss at this step for {_named(missing)}, which {first} saw"
            f"{f', but one for {_named(new)}' if new else ''}; {absent}"
        )
    if new:
        raise ValueError(
            f"{what}: {_named(new)} is new at this step, {first} saw {_named(list(tasks))}; "
            "start anew for other tasks: docs/how-to/recipes.md#tasks-that-join-or-leave"
        )


def _named(names: list[Any]) -> str:
    return ", ".join(map(repr, names))
