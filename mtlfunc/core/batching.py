"""A function at many points: one vmap, a chunk of it, or a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.func import vmap

from ._torch import tree_map


def evaluate(f: Callable[[Any], Any], points: Any, count: int, argument: str) -> Any:
    """`f` at `count` points, a pytree of tensors `[count, …]`: one vmap, a plain call for one. What
    it gives, a pytree of tensors, is stacked along a new first axis.

    Raises:
        RuntimeError: naming `argument`, what the caller knows `f` as, and the way out, where `f`
            cannot be vmapped.
    """
    if count == 1:
        return tree_map(lambda leaf: leaf[None], f(tree_map(lambda leaf: leaf[0], points)))
    try:
        return vmap(f)(points)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("vmap", "data pointer", "storage")):
            raise
        raise RuntimeError(
            f"{argument}: cannot be vmapped; pass points_at_once=1, a plain loop, or write it "
            "without .item(), if and while on tensors, NumPy and torch's own random numbers "
            f"(mtlfunc.random has keys that can be vmapped). torch said: {error}"
        ) from error
