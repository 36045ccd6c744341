"""Hooks that bring back what nodes have saved, as checkpoints do, and hooks on derivatives."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from .internals import Trust, nodes_made, tells_hooks

Node = Any  # torch.autograd.graph.Node


def is_hooked(raw: Any) -> bool:
    """Whether a hook brings this tensor back; if torch does not tell, it is read through one."""
    return getattr(raw, "unpack_hook", None) is not None


def has_saved_hooks(nodes: Collection[Node]) -> bool:
    """Whether a hook brings something back; where torch does not tell, a checkpoint."""
    return next(_hooks(nodes), None) is not None if tells_hooks else has_checkpoint(nodes)


def has_checkpoint(nodes: Collection[Node]) -> bool:
    """Whether `torch.utils.checkpoint` brings back what some node has saved."""
    if tells_hooks:
        return "torch.utils.checkpoint" in [getattr(x, "__module__", "") for x in _hooks(nodes)]
    before = nodes_made()
    with torch.no_grad():  # a part of the forward pass that is run again makes nodes all the same
        for kind, node in zip(map(type, nodes), nodes, strict=True):
            for name in _saved_names(kind):
                try:  # _raw_saved_tensors is saved_tensors; all others are _saved_…
                    found = getattr(node, name[4:] if hasattr(kind, name[4:]) else name[5:])
                except RuntimeError:  # freed, or written to since
                    break
                if nodes_made() != before:
                    return True
                if found is not None:  # a checkpoint takes all that a node has saved
                    break
    return False


def _hooks(nodes: Iterable[Node]) -> Iterator[Any]:
    for node, name in [(x, name) for x in nodes for name in _saved_names(type(x))]:
        try:
            for saved in found if type(found := getattr(node, name)) is tuple else (found,):
                if (hook := saved.unpack_hook) is not None:
                    yield hook
        except RuntimeError:  # freed, or what torch cannot show, as cuDNN's weights of a GRU
            continue


@cache
def _saved_names(kind: type) -> list[str]:
    """Of the tensors that nodes of a kind keep, as they were saved."""
    return [name for name in dir(kind) if name.startswith("_raw_saved_")]


class Handles:
    """Whether hooks can have been put on derivatives, at any time since it was made.

    Every hook on a tensor, a node or a module has a handle with a number of its own. Nodes are also
    numbered: on those from before `since` hooks may have been put earlier. That a tensor retains
    its gradient has no number, and changes no derivative.
    """

    def __init__(self) -> None:
        self.first: int = RemovableHandle.next_id
        self.since: int = nodes_made() if Trust.private else 2**62

    @property
    def hooked(self) -> bool:
        return not Trust.private or self.first != RemovableHandle.next_id


def refuse_inner_steps(leaves: Mapping[str, Any]) -> None:
    """Raise for a parameter that an optimizer moves inside the backward pass that reaches it."""
    for name, leaf in leaves.items():
        if found := getattr(leaf, "_in_backward_optimizers", None):
            raise NotImplementedError(
                f"{name}: {type(found[0]).__name__} steps inside the backward pass through this "
                "parameter (_apply_optimizer_in_backward), and mtlfunc's passes stop before it, so "
                "that it would never move; make the module without, and call optimizer.step() "
                "yourself, or step in a hook (register_post_accumulate_grad_hook), which is called"
            )
