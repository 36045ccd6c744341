"""Nested arguments as a list of leaves and a form: torch's own pytrees in a fifth of the time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..core._torch import SUPPORTED_NODES, keystr, tree_flatten_with_path

LEAF = "leaf"


def flatten(tree: Any, leaves: list[Any]) -> Any:
    """Append the leaves, in the order of torch's pytrees; returns the form, which `==` compares."""
    kind = type(tree)
    if kind is Tensor:
        leaves.append(tree)
        return LEAF
    if kind is dict:
        return dict, tuple(tree), tuple([flatten(x, leaves) for x in tree.values()])
    if kind is tuple or kind is list or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return kind, None, tuple([flatten(x, leaves) for x in tree])
    if kind in SUPPORTED_NODES:
        children, context = SUPPORTED_NODES[kind].flatten_fn(tree)
        return kind, (context,), tuple([flatten(x, leaves) for x in children])
    leaves.append(tree)
    return LEAF


def unflatten(form: Any, leaves: Iterator[Any]) -> Any:
    """The tree of this form with these leaves."""
    if form is LEAF:
        return next(leaves)
    kind, context, forms = form
    children = [next(leaves) if x is LEAF else unflatten(x, leaves) for x in forms]
    if kind is dict:
        return dict(zip(context, children, strict=True))
    if kind is list or kind is tuple:
        return kind(children)
    if context is None:
        return kind(*children)
    return SUPPORTED_NODES[kind].unflatten_fn(children, context[0])


def containers(tree: Any) -> list[Any] | None:
    """The dicts and tuples of a tree of tensors, () aside, which is one for all trees; None where
    there is anything else.
    """
    kind = type(tree)
    if kind is Tensor or (kind is tuple and not tree):
        return []
    if kind not in (dict, tuple) and not (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return None
    found = [tree]
    for x in tree.values() if kind is dict else tree:
        inner = containers(x)
        if inner is None:
            return None
        found += inner
    return found


def leaf_name(names: tuple[str, ...], values: tuple[Any, ...], place: int) -> str:
    """What a user calls a leaf of several arguments: `state.params['x']`."""
    first, *rest = tree_flatten_with_path(values)[0][place][0]
    return names[first.idx] + keystr(tuple(rest))  # pyright: ignore
