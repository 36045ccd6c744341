"""Nested arguments as a list of leaves and a form: torch's own pytrees in a fifth of the time."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ..core._torch import SUPPORTED_NODES, keystr, tree_flatten_with_path

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
        return dict, tuple(tree), tuple([_form(x, leaves) for x in tree.values()])
    if kind is tuple or kind is list or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return kind, None, tuple([_form(x, leaves) for x in tree])
    if kind in SUPPORTED_NODES:
        children, context = SUPPORTED_NODES[kind].flatten_fn(tree)
        return kind, (context,), tuple([_form(x, leaves) for x in children])
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


def shape_of(leaf: Any) -> Any:
    return list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__


def changes(before: Any, after: Any, describe: Callable[[Any], Any] = shape_of) -> str:
    """How the leaves of a state differ from those before, by name; "" where they do not."""
    forms, leaves = zip(flatten(before), flatten(after), strict=True)
    if forms[0] == forms[1] and [*map(describe, leaves[0])] == [*map(describe, leaves[1])]:
        return ""
    was, now = (
        {f"state{keystr(path)}": describe(x) for path, x in tree_flatten_with_path(tree)[0]}
        for tree in (before, after)
    )
    names = [x for x in was | now if was.get(x) != now.get(x)][:3]
    return "; ".join(f"{x} was {was.get(x, 'absent')}, is {now.get(x, 'absent')}" for x in names)
