"""Nested arguments as a list of leaves and a form: torch's own pytrees in a fifth of the time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import SUPPORTED_NODES, keystr, tree_flatten_with_path

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
    if kind is list:
        return children
    if kind is tuple:
        return tuple(children)
    if context is None:
        return kind(*children)
    return SUPPORTED_NODES[kind].unflatten_fn(children, context[0])


class Arguments:
    """Arguments of an update as leaves, which have names for errors."""

    def __init__(self, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        self.names, self.values = names, values
        self.leaves: list[Any] = []
        self.form = flatten(values, self.leaves)

    @cached_property
    def device(self) -> torch.device:
        """Of the first tensor."""
        return next(leaf.device for leaf in self.leaves if isinstance(leaf, Tensor))

    def name(self, place: int) -> str:
        """What a user calls a leaf: `state.params['x']`."""
        first, *rest = tree_flatten_with_path(self.values)[0][place][0]
        return self.names[first.idx] + keystr(tuple(rest))  # pyright: ignore
