"""Which task is which: a dict of losses is read by name, whatever its order at a step."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .checks import is_pair

Tasks = dict[Any, tuple[()]] | tuple[tuple[()], ...]
"""The tasks that a state remembers, in order: `{name: ()}`, or `((), ...)` where losses have no
names. It holds no tensor, so that transforms, compilers and files see structure alone.
"""


def tasks_of(out: Any) -> Tasks:
    """The tasks in what `losses_fn` returned; () where it is no losses at all."""
    losses = out[0] if is_pair(out) else out
    if isinstance(losses, Mapping):
        return dict.fromkeys(losses, ())
    if isinstance(losses, Tensor):
        return ((),) * losses.shape[0] if losses.ndim == 1 else ()
    return ((),) * len(losses) if isinstance(losses, tuple | list) else ()


def aligned(out: Any, tasks: Tasks, function: str = "losses_fn", first: str = "init") -> Any:
    """What `losses_fn` returned, a dict of losses put into the order of `tasks`.

    Raises:
        ValueError: naming the tasks that are missing or new.
    """
    found = tasks_of(out)
    named = isinstance(tasks, dict)
    if not tasks or not found or (named and tuple(found) == tuple(tasks)):
        return out
    if named != isinstance(found, dict):
        forms = ("a dict", "without names") if named else ("without names", "a dict")
        raise ValueError(
            f"{function}: the losses were {forms[0]} at {first} and are {forms[1]} at this step; "
            "return one form at every step"
        )
    absent = "return every task at every step, and say with present= which have labels"
    if not isinstance(found, dict):
        if len(found) != len(tasks):
            raise ValueError(
                f"{function}: {len(tasks)} losses at {first}, {len(found)} at this step; {absent} "
                "(for other tasks, start anew)"
            )
        return out
    missing = [name for name in tasks if name not in found]
    new = [name for name in found if name not in tasks]
    if missing:
        raise ValueError(
            f"{function}: no loss at this step for {_listed(missing)}, which {first} saw; {absent}"
        )
    if new:
        raise ValueError(
            f"{function}: {_listed(new)} is new at this step, {first} saw {_listed(list(tasks))}; "
            "start anew for other tasks"
        )
    losses = {name: (out[0] if is_pair(out) else out)[name] for name in tasks}
    return (losses, out[1]) if is_pair(out) else losses


def _listed(names: list[Any]) -> str:
    return ", ".join(map(repr, names))
