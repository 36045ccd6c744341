"""Nested arguments as a list of leaves and a form: torch's own pytrees in a fifth of the time."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..core.internals import SUPPORTED_NODES, keystr, tree_flatten_with_path

LEAF = "leaf"


def flatten(tree: Any) -> tuple[Any, list[Any]]:
    """The form, which `==` compares, and the leaves, in the order of torch's pytrees."""
    leaves: list[Any] = []
    return _form(tree, leaves), leaves


def _form(tree: Any, leaves: list[Any]) -> Any:
    kind = type(tree)
    if kind is Tensor:
        leaves.append(tree)
        return LEAF
    if kind is dict:
        return dict, [*tree], [_form(x, leaves) for x in tree.values()]
    if kind is tuple or kind is list or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return kind, None, [_form(x, leaves) for x in tree]
    if kind in SUPPORTED_NODES:
        children, context = SUPPORTED_NODES[kind].flatten_fn(tree)
        return kind, context, [_form(x, leaves) for x in children]
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
    if issubclass(kind, tuple):
        return kind(*children)
    return SUPPORTED_NODES[kind].unflatten_fn(children, context)


def leaf_name(names: tuple[str, ...], values: tuple[Any, ...], place: int) -> str:
    """What a user calls a leaf of several arguments: `state.params['x']`."""
    first, *rest = tree_flatten_with_path(values)[0][place][0]
    return names[first.idx] + keystr(tuple(rest))  # pyright: ignore


def changes(before: Any, after: Any) -> str:
    """How the leaves of a state differ from those before, by name; "" where they do not."""
    forms, leaves = zip(flatten(before), flatten(after), strict=True)
    if forms[0] == forms[1] and [*map(_shape, leaves[0])] == [*map(_shape, leaves[1])]:
        return ""
    was, now = (
        {f"state{keystr(path)}": _shape(x) for path, x in tree_flatten_with_path(tree)[0]}
        for tree in (before, after)
    )
    names = [x for x in was | now if was.get(x) != now.get(x)][:3]
    return "; ".join(f"{x} was {was.get(x, 'absent')}, is {now.get(x, 'absent')}" for x in names)


def _shape(leaf: Any) -> Any:
    return list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
