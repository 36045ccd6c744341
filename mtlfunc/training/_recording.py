"""The memory of a recorded step: what is read and written at fixed addresses, and handed out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_unflatten,
)

from ._recorder import Recorder

KEEP = (
    "after b = update(a, batch) only a and b are kept: clone what you need for longer "
    "(torch.utils._pytree.tree_map(torch.clone, state)), and capture once for each run"
)
_PACKED = 1024
"""Answers of at most so many entries are copied out together."""


class Overwritten(Tensor):
    """What a tensor of an older state becomes: its shape can be asked for, its values cannot."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Raise, but for attributes such as the shape."""
        if getattr(func, "__name__", "") == "__get__":
            return super().__torch_function__(func, types, args, kwargs or {})
        raise RuntimeError(
            f"this state was overwritten by a later update of a captured step; {KEEP}"
        )

    def __repr__(self) -> str:  # pyright: ignore
        return "<overwritten by a later update>"


class Arguments:
    """Arguments of an update as leaves, which have names for errors."""

    def __init__(self, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        self.names, self.values = names, values
        self.leaves, self.structure = tree_flatten(values)

    @cached_property
    def device(self) -> torch.device:
        """Of the first tensor."""
        return next(leaf.device for leaf in self.leaves if isinstance(leaf, Tensor))

    def name(self, place: int) -> str:
        """What a user calls a leaf, `state.params['x']`."""
        first, *rest = tree_flatten_with_path(self.values)[0][place][0]
        return self.names[first.idx] + keystr(tuple(rest))  # pyright: ignore


class Kind(NamedTuple):
    """What one recording is for."""

    structure: TreeSpec
    leaves: tuple[Any, ...]
    modes: tuple[bool, ...]


class Home:
    """The two memories of a state: an update reads one and writes the other."""

    def __init__(self, state: Sequence[Any], key: Any) -> None:
        self.key = key
        self.sides = [[_fixed(leaf) for leaf in state] for _ in range(2)]
        self.places = [i for i, leaf in enumerate(state) if isinstance(leaf, Tensor)]
        self.issued: list[dict[int, Tensor]] = [{}, {}]
        memories = [_memory(side[i]) for side in self.sides for i in self.places]
        # how many hold each memory while nothing of it is handed out
        self.holders = {x: torch._C._storage_Use_Count(x) for x in memories}

    def source(self, state: Sequence[Any]) -> tuple[int, list[int]]:
        """Which side holds most of a state, and the places of what it does not hold."""
        others = [
            [i for i in self.places if state[i] is not issued.get(i)] for issued in self.issued
        ]
        side = int(len(others[1]) < len(others[0]))
        return side, others[side]

    def in_use(self, side: int, places: Iterable[int]) -> list[int]:
        """Where a view of what was handed out is alive: overwriting would change it unseen."""
        found = [
            i
            for i in places
            if torch._C._storage_Use_Count(key := _memory(self.sides[side][i]))
            > self.holders[key] + (i in self.issued[side])
        ]
        if found and gc.collect():  # perhaps they only wait to be collected
            return self.in_use(side, found)
        return found

    def take_back(self, side: int, places: Iterable[int]) -> None:
        """Let what was handed out say that it is overwritten."""
        for i in places:
            if i in self.issued[side]:
                self.issued[side].pop(i).__class__ = Overwritten

    def issue(self, side: int) -> list[Any]:
        """Hand the state of a side out."""
        found = [x.detach() if isinstance(x, Tensor) else x for x in self.sides[side]]
        self.issued[side] = {i: found[i] for i in self.places}
        return found


class Packed(NamedTuple):
    """Answers of a recording: most in a few tensors, which are quick to copy."""

    packs: list[Tensor]
    places: list[tuple[int, int, torch.Size] | Any]  # (pack, first entry, shape), or no tensor
    structure: TreeSpec

    def copied(self) -> list[Any]:
        """The answers in memory of their own."""
        copies = [pack.clone() for pack in self.packs]
        leaves = [_view(copies, place) if type(place) is tuple else place for place in self.places]
        return tree_unflatten(leaves, self.structure)


class Program(NamedTuple):
    """One graph: replayed, it writes the packed answers."""

    replay: Callable[[], None]
    packed: Packed


class Recording:
    """The two graphs of one kind of arguments, from each memory of the state to the other."""

    def __init__(
        self,
        update: Callable[..., Any],
        place: tuple[int, int],
        args: Arguments,
        kind: Kind,
        recorder: Recorder,
        homes: list[Home],
    ) -> None:
        self.kind, self.recorder, self.at = kind, recorder, place[1]
        before, state = (
            tree_flatten(x)[0] for x in (args.values[: place[0]], args.values[place[0]])
        )
        self.span = slice(len(before), len(before) + len(state))
        self.state = tree_flatten(args.values[place[0]])[1]
        key = self.state, kind.leaves[self.span]
        with torch.inference_mode(False), torch.no_grad():
            same = [home for home in homes if home.key == key]
            self.home = same[0] if same else Home(state, key)
            self.inputs = [_fixed(leaf) for leaf in args.leaves]
            self.inputs[self.span] = [None] * len(state)
        self.programs = [self._record(update, side) for side in range(2)]

    def _record(self, update: Callable[..., Any], side: int) -> Program:
        leaves = list(self.inputs)
        leaves[self.span] = self.home.sides[side]

        def run() -> Packed:
            answer = list(update(*tree_unflatten(leaves, self.kind.structure)))
            with torch.no_grad():
                _copy(self.home.sides[1 - side], tree_flatten(answer.pop(self.at))[0])
                return _pack(answer, {_memory(x) for x in leaves if isinstance(x, Tensor)})

        packed, replay = self.recorder.record(run)
        return Program(replay, packed)

    def step(self, args: Arguments) -> tuple[Any, ...]:
        """Copy in what is not there, replay, and hand the answers out."""
        home, state = self.home, args.leaves[self.span]
        side, others = home.source(state)
        for where, places in ((1 - side, home.places), (side, others)):
            for i in home.in_use(where, places):
                raise RuntimeError(
                    f"{args.name(self.span.start + i)}: a view of this tensor of an earlier state "
                    "(.detach(), a slice, a module's .data) is in use, and this update would "
                    f"overwrite it; clone it where it is made, or let go of it: {KEEP}"
                )
        with torch.no_grad():
            given = [
                state[i].clone() if _memory(state[i]) in home.holders else state[i] for i in others
            ]
            _copy(self.inputs, args.leaves)
            home.take_back(side, others)
            _copy([home.sides[side][i] for i in others], given)
            home.take_back(1 - side, home.places)
            program = self.programs[side]
            program.replay()
            answer = program.packed.copied()
            answer.insert(self.at, tree_unflatten(home.issue(1 - side), self.state))
        return tuple(answer)

    def free(self) -> None:
        """Give the memory back; states that were handed out stay as they are."""
        self.recorder.free()
        self.programs.clear()


def _fixed(leaf: Any) -> Any:
    """A copy at an address that stays."""
    return torch.empty_like(leaf).copy_(leaf) if isinstance(leaf, Tensor) else leaf


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _copy(to: Sequence[Any], values: Sequence[Any]) -> None:
    """Copy the tensors that have a place, those of one dtype in one launch."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for place, value in zip(to, values, strict=True):
        if isinstance(place, Tensor):
            into, given = groups.setdefault(place.dtype, ([], []))
            into.append(place)
            given.append(value)
    for into, given in groups.values():
        torch._foreach_copy_(into, given)


def _pack(answer: list[Any], reused: set[int]) -> Packed:
    """Small tensors of one dtype side by side, others alone, in memory of their own."""
    leaves, structure = tree_flatten(answer)
    small: dict[Any, list[Tensor]] = {}
    packs: list[Tensor] = []
    places: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.numel() <= _PACKED:
            small.setdefault(leaf.dtype, []).append(leaf.reshape(-1))
    kinds, taken = list(small), dict.fromkeys(small, 0)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            places.append(leaf)
        elif leaf.numel() <= _PACKED:
            places.append((kinds.index(leaf.dtype), taken[leaf.dtype], leaf.shape))
            taken[leaf.dtype] += leaf.numel()
        else:
            places.append((len(kinds) + len(packs), -1, leaf.shape))
            packs.append(leaf.clone() if _memory(leaf) in reused else leaf.detach())
    return Packed([*(torch.cat(some) for some in small.values()), *packs], places, structure)


def _view(copies: list[Tensor], place: tuple[int, int, torch.Size]) -> Tensor:
    pack, first, shape = place
    if first < 0:
        return copies[pack]
    return copies[pack][first : first + shape.numel()].view(shape)
