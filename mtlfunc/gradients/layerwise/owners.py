"""Which loss reads which entries of every activation, as far as the autograd graph alone proves it.

Each place in the graph is given owners: for every entry the one loss that depends on it, none, or
several. They are walked from the losses to the parameters. An operation is followed entry by entry
if it is known, by the shapes and axes that its node holds and never by values; any other is taken
to let every output depend on all of its inputs. What is said to be separate is so for all
numbers, and so are all of its derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from .follow import (
    NOBODY,
    SEVERAL,
    Owners,
    Place,
    by_entry,
    compress_owners,
    concatenation,
    owners_of_input,
    permutation,
    piece,
    reduce_owners,
    view,
)
from .formulas import Layout, layouts
from .graph import Graph
from .nodes import facts_of, operation_of
from .uses import Node, Use, shape_of


class SamplesMix(Exception):
    """The samples of one pass are not separate, or nothing shows that they are."""

    def __init__(self, use: Use) -> None:
        self.use = use  # a call in whose output they mix


def refusal(graph: Graph, losses: Tensor, use: Use) -> ValueError:
    """For an error: the operation nearest to the losses in which samples mix."""
    causes: dict[Node, Node] = {}
    walk(tuple(graph.reach), [_root(losses, len(losses))], lambda *_: None, causes)
    cause, where = causes.get(use.edge.node), f"at {use.part.leaf} ({use.op}), in another order"
    if cause is not None:
        read = [child for child, _ in cause.next_functions]
        turned = [x.next_functions[0][0] for x in read if x and x.name() == "TBackward0"]
        held = [
            name for name, leaf in graph.leaf_nodes.items() if leaf in read + turned and "." in name
        ]
        owner = f" of the module {held[0].rpartition('.')[0]}" if held else ""
        known = "" if facts_of(cause).rule else ", of which nothing is known here"
        where = f"in {operation_of(cause)}{owner}{known}"
    return ValueError(
        "losses: entry i of them has to depend on sample i alone, and the graph does not prove it: "
        f"the samples mix {where}. Call module.eval() if that is a norm in train mode. Else use "
        'engine="rows", which differentiates entry by entry, whatever they depend on'
    )


def _root(losses: Tensor, count: int) -> tuple[Place, np.ndarray]:
    """Each of several equal runs of the losses is an owner."""
    assert losses.grad_fn is not None
    each = np.arange(len(losses)) // (len(losses) // count)
    return (losses.grad_fn, losses.output_nr), each.reshape(-1, *(1,) * (losses.ndim - 1))


def entry_layouts(
    graph: Graph, losses: Tensor, uses: Sequence[Use], samples: int | None = None, *,
    terms: bool = False,
) -> tuple[Layout, ...]:  # fmt: skip
    """Where each call's output has what the entries of the losses' first axis depend on.

    The graph and the calls, `uses`, are of the pass of losses [sample] or [sample, task]. A flat
    vector of losses has `samples` equal runs, each an entry. `terms`: a call may have some of the
    entries alone, one after the other. Raises SamplesMix unless the graph proves a layout for each.
    """
    if not uses:
        return ()
    count = samples or len(losses)
    wanted: dict[Place, list[Use]] = {}
    for use in uses:
        wanted.setdefault((use.edge.node, use.edge.output_nr), []).append(use)
    found: dict[Place, Layout] = {}

    def visit(place: Place, owners: Owners) -> None:
        calls = wanted.get(place)
        if calls is not None and not (isinstance(owners, int) and owners == NOBODY):
            layout = layout_of(owners, calls, count, terms=terms)
            if layout is None:
                raise SamplesMix(calls[0])
            found[place] = layout

    walk(tuple(graph.reach), [_root(losses, count)], visit)
    for place, calls in wanted.items():
        if place not in found:  # no loss reads it: its deltas are zero, wherever they are
            possible = layouts(calls[0], count)
            if not possible or not all(possible[0] in layouts(use, count) for use in calls):
                raise SamplesMix(calls[0])
            found[place] = possible[0]
    return tuple(found[use.edge.node, use.edge.output_nr] for use in uses)


def layout_of(
    owners: Owners, uses: Sequence[Use], count: int, *, terms: bool = False
) -> Layout | None:
    """Owners 0, 1, … in equal runs, or by turns, along one axis of positions of one output; of
    `terms` some of them, one after the other.
    """
    if isinstance(owners, int) or count == 1:  # all of it is one entry's
        axis = next((x for x in uses[0].axes if all(x in use.axes for use in uses)), None)
        if axis is None or count == 1 or not isinstance(owners, int):
            return None if axis is None else Layout(axis, True)
        return None if owners < 0 else Layout(axis, True, owners, 1)
    owners = compress_owners(owners)
    for axis in range(owners.ndim):
        size = owners.shape[axis]
        if size == 1 or size != uses[0].shape[axis] or not all(axis in use.axes for use in uses):
            continue
        # entries along the other axes may be unread, such as positions of one sample
        others = [i for i in range(owners.ndim) if i != axis]
        along = reduce_owners(owners, others).reshape(-1)
        ranges = [(0, count)]
        known = along[along >= 0]
        if terms and known.size:
            ranges.append((int(known.min()), int(np.ptp(known)) + 1))
        index = np.arange(size)
        for start, several in ranges:
            each, rest = divmod(size, several)
            if rest:
                continue
            for major, expected in ((True, index // each), (False, index % several)):
                if ((along == start + expected) | (along == NOBODY)).all():
                    own = (start, several) if several < count else (0, None)
                    return Layout(axis, major, *own)
    return None


def walk(
    order: Sequence[Node],
    roots: Sequence[tuple[Place, Owners]],
    visit: Callable[[Place, Owners], object],
    causes: dict[Node, Node] | None = None,
) -> None:
    """Give every place its owners, consumers first. `causes` gets the nodes some of whose entries
    belong to several, and with each the operation in which they first did.
    """
    known: dict[Node, dict[int, Owners]] = {}
    inside = set(order)

    def add(node: Node, place: int, owners: Owners, by: Node | None = None) -> None:
        places = known.setdefault(node, {})
        places[place] = _merge_owners(places[place], owners) if place in places else owners
        if causes is not None and node not in causes and np.any(np.equal(places[place], SEVERAL)):
            # what is broadcast over samples mixed them before
            spread = facts_of(by).rule is by_entry and np.any(np.equal(owners, SEVERAL))
            causes[node] = causes.get(by, _source(node) if spread else by)

    for (node, place), owners in roots:
        add(node, place, owners)
    for node in reversed(order):
        places = known.pop(node, {})
        for place, owners in places.items():
            visit((node, place), owners)
        rule = facts_of(node).rule
        for index, (child, at) in enumerate(node.next_functions):
            if child is not None and child in inside and child.next_functions:  # no leaf
                for owners in owners_of_input(rule, node, index, places, (child, at)):
                    add(child, at, owners, node)


def _source(node: Node) -> Node:
    """What made the entries that a node has, and those before it, each alone."""
    while facts_of(node).rule in (by_entry, view, permutation, piece, concatenation):
        reads = [place for place in node.next_functions if place[0] is not None]
        if len(reads) != 1 or not reads[0][0].next_functions:
            break
        if math.prod(shape_of(*reads[0])) != math.prod(shape_of(node, 0)):
            break
        node = reads[0][0]
    return node


def _merge_owners(one: Owners, other: Owners) -> Owners:
    """Of an entry that two consumers read."""
    if isinstance(one, int) and isinstance(other, int):
        return one if other in {one, NOBODY} else other if one == NOBODY else SEVERAL
    a, b = np.asarray(one), np.asarray(other)
    return np.where((a == b) | (b == NOBODY), a, np.where(a == NOBODY, b, SEVERAL))
