"""The memory of a recorded step: read and written at fixed addresses, and handed out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from ._forms import Arguments, flatten, unflatten
from ._recorder import Recorder, memory

KEEP = (
    "after b = update(a, batch) only a and b are kept: clone what you need for longer "
    "(torch.utils._pytree.tree_map(torch.clone, state)), and capture once for each run"
)
SMALL = 1024
"""Answers of at most so many entries are copied out together."""

holders_of: Callable[[int], int] = torch._C._storage_Use_Count  # pyright: ignore


class Overwritten(Tensor):
    """What a tensor of an older state becomes: its shape can be asked for, its values cannot."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Raise, but for attributes such as the shape."""
        if getattr(func, "__name__", "") == "__get__":
            return super().__torch_function__(func, types, args, kwargs or {})
        raise RuntimeError(f"a later update of a captured step has overwritten this state; {KEEP}")

    def __repr__(self) -> str:  # pyright: ignore
        return "<overwritten by a later update>"


class Kind(NamedTuple):
    """What one recording is for."""

    form: Any
    leaves: tuple[Any, ...]
    modes: tuple[bool, ...]


class Home:
    """The two memories of a state: an update reads one and writes the other.

    So the state that an update was given is whole until the next update, whatever ends this one.
    """

    def __init__(self, state: Sequence[Any], key: Any) -> None:
        self.key = key
        self.sides = [[_fixed(leaf) for leaf in state] for _ in range(2)]
        self.places = [i for i, leaf in enumerate(state) if isinstance(leaf, Tensor)]
        self.issued: list[dict[int, ref[Tensor]]] = [{}, {}]
        self.memories = [{i: memory(side[i]) for i in self.places} for side in self.sides]
        # how many tensors hold each memory while nothing of it is handed out
        self.holders = {x: holders_of(x) for each in self.memories for x in each.values()}

    def source(self, state: Sequence[Any]) -> tuple[int, list[int]]:
        """Which side holds most of a state, and the places of what it does not hold."""
        others = [
            [i for i in self.places if i not in issued or issued[i]() is not state[i]]
            for issued in self.issued
        ]
        if all(others):  # perhaps under other names
            others = [
                [i for i in some if not _same(self.sides[side][i], state[i])]
                for side, some in enumerate(others)
            ]
        side = int(len(others[1]) < len(others[0]))
        return side, others[side]

    def in_use(self, side: int, places: Iterable[int]) -> list[int]:
        """Where a view of what was handed out is alive: overwriting would change it unseen."""
        memories, issued = self.memories[side], self.issued[side]
        found = [
            i
            for i in places
            if holders_of(memories[i])
            > self.holders[memories[i]] + (i in issued and issued[i]() is not None)
        ]
        if found and gc.collect():  # perhaps they only wait to be collected
            return self.in_use(side, found)
        return found

    def take_back(self, side: int, places: Iterable[int]) -> None:
        """Let what was handed out, where it is kept, say that it is overwritten."""
        for i in places:
            handed = self.issued[side].pop(i, None)
            leaf = handed() if handed else None
            if leaf is not None:
                leaf._fix_weakref()  # pyright: ignore  # torch's rule for references like these
                leaf.data = leaf.new_empty(()).expand(leaf.shape)
                torch.autograd.graph.increment_version(leaf)
                leaf.__class__ = Overwritten

    def issue(self, side: int) -> list[Any]:
        """Hand the state of a side out."""
        found = [x.detach() if isinstance(x, Tensor) else x for x in self.sides[side]]
        self.issued[side] = {i: ref(found[i]) for i in self.places}
        return found


class Program(NamedTuple):
    """One graph. Replayed, it writes the answers `packs` and the other memory of the state."""

    replay: Callable[[], None]
    packs: list[Tensor]
    shapes: list[list[torch.Size]]  # in each pack
    order: list[Any]  # of the answers: (pack, place in it), or what no tensor is
    form: Any

    def answer(self) -> list[Any]:
        """The answers in memory of their own."""
        found: list[list[Tensor]] = []
        for pack, shapes in zip(self.packs, self.shapes, strict=True):
            own = pack.clone()
            parts = own.split([shape.numel() for shape in shapes]) if own.ndim == 1 else [own]
            found.append([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])
        leaves = [found[x[0]][x[1]] if type(x) is tuple else x for x in self.order]
        return unflatten(self.form, iter(leaves))


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
        before: list[Any] = []
        state: list[Any] = []
        flatten(args.values[: place[0]], before)
        self.state = flatten(args.values[place[0]], state)
        self.span = slice(len(before), len(before) + len(state))
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
        reused = {memory(x) for x in leaves if isinstance(x, Tensor)}
        notes: list[Any] = []

        def run() -> list[Tensor]:
            answer = list(update(*unflatten(self.kind.form, iter(leaves))))
            with torch.no_grad():
                state: list[Any] = []
                flatten(answer.pop(self.at), state)
                _copy(self.home.sides[1 - side], state)
                packs, *notes[:] = _pack(answer, reused)
            return packs

        packs, replay = self.recorder.record(run)
        # What losses_fn takes from elsewhere must stay where it is. Our own memory does, and is
        # counted: see `Home.in_use`.
        for x in (*self.inputs, *self.home.sides[0], *self.home.sides[1]):
            self.recorder.reads.pop(memory(x) if isinstance(x, Tensor) else 0, None)
        return Program(replay, packs, *notes)

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
                state[i].clone() if memory(state[i]) in home.holders else state[i] for i in others
            ]
            _copy(self.inputs, args.leaves)
            home.take_back(side, others)
            _copy([home.sides[side][i] for i in others], given)
            home.take_back(1 - side, home.places)
            program = self.programs[side]
            program.replay()
            answer = program.answer()
            answer.insert(self.at, unflatten(self.state, iter(home.issue(1 - side))))
        return tuple(answer)

    def free(self) -> None:
        """Give the memory back; states that were handed out stay as they are."""
        self.recorder.free()
        self.programs.clear()


def _fixed(leaf: Any) -> Any:
    """A copy at an address that stays."""
    return torch.empty_like(leaf).copy_(leaf) if isinstance(leaf, Tensor) else leaf


def _same(place: Tensor, leaf: Tensor) -> bool:
    """Whether a leaf is this memory as a whole, under another name."""
    return (
        leaf.data_ptr() == place.data_ptr()
        and leaf.shape == place.shape
        and leaf.stride() == place.stride()
        and leaf.numel() > 0
    )


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


def _pack(answer: list[Any], reused: set[int]) -> tuple[list[Tensor], list[Any], list[Any], Any]:
    """What `Program` keeps of answers: packs, shapes, order and form."""
    leaves: list[Any] = []
    form = flatten(answer, leaves)
    groups: dict[Any, list[Tensor]] = {}
    order: list[Any] = []
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            group = leaf.dtype if leaf.numel() <= SMALL else i
            order.append((group, len(groups.setdefault(group, []))))
            groups[group].append(leaf)
        else:
            order.append(leaf)
    packs = {
        group: torch.cat([leaf.reshape(-1) for leaf in some])
        if isinstance(group, torch.dtype)
        else (some[0].clone() if memory(some[0]) in reused else some[0].detach())
        for group, some in groups.items()
    }
    shapes = [[leaf.shape for leaf in some] for some in groups.values()]
    places = {group: i for i, group in enumerate(groups)}
    order = [(places[x[0]], x[1]) if type(x) is tuple else x for x in order]
    return list(packs.values()), shapes, order, form
