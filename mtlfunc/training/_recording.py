"""The memory of a recorded step: read and written at fixed addresses, and handed out."""

import gc
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter, is_
from sys import getrefcount
from typing import Any, NamedTuple
from weakref import getweakrefcount

import torch
from torch import Tensor

from ..core._torch import copy_each, holders_of, memory
from ._forms import containers, flatten, leaf_name, unflatten

KEEP = (
    "after b = update(a, batch) only a and b are kept: clone what you need for longer "
    "(torch.utils._pytree.tree_map(torch.clone, state)), and capture once for each run"
)
SMALL = 1024
"""Answers of at most so many entries are copied out together."""

WHERE = (Tensor.data_ptr, Tensor.size, Tensor.stride)
FACTS = (*WHERE, attrgetter("requires_grad"))


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
    """What a recording is for: the form of arguments, what their leaves are, and modes of torch."""

    form: Any
    leaves: tuple[Any, ...]
    modes: tuple[Any, ...]


class Handed:
    """A state that was handed out: whether it is as it was, and whether someone has it still.

    One that the caller let go of is handed out again: making new tensors would take longer than the
    rest of a replay.
    """

    def __init__(self, form: Any, leaves: list[Tensor]) -> None:
        self.leaves: list[Any] = leaves  # None where it was overwritten
        self.tree = unflatten(form, iter(leaves))
        parts = containers(self.tree)
        self.facts = None if parts is None else self._facts()
        self.parts = parts or []
        self.dicts = [(x, [*x], [*x.values()]) for x in self.parts if type(x) is dict]
        self.parts += leaves
        self.counts = [*map(getrefcount, self.parts)]

    def whole(self) -> bool:
        """Whether no part was replaced; values may have been changed in place."""
        return (
            self.facts is not None
            and all([*x] == keys and all(map(is_, x.values(), had)) for x, keys, had in self.dicts)
            and self._facts() == self.facts
        )

    def _facts(self) -> list[Any]:
        return [[*map(fact, self.leaves)] for fact in FACTS]

    def alone(self) -> bool:
        """Whether all others let go of every part."""
        held = [*map(getrefcount, self.parts)] != self.counts
        return not held and not any(map(getweakrefcount, self.leaves))

    def overwrite(self, place: int, where: int) -> bool:
        """Let a tensor of a memory say that it is overwritten; returns False if it did before."""
        self.tree = self.facts = None
        self.parts, self.dicts = [], []
        leaf, self.leaves[place] = self.leaves[place], None
        if leaf is None:
            return False
        if memory(leaf) != where:  # its .data was set to another's
            return True
        leaf.data = leaf.new_empty(()).expand(leaf.shape)
        torch.autograd.graph.increment_version(leaf)
        leaf.__class__ = Overwritten
        return True


class Home:
    """The two memories of a state: an update reads one and writes the other.

    So the state that an update was given is whole until the next update, whatever ends this one.
    """

    def __init__(self, kind: Kind, state: list[Tensor]) -> None:
        self.kind, self.places = kind, range(len(state))
        with torch.inference_mode(False), torch.no_grad():
            self.sides = [[_fixed(leaf) for leaf in state] for _ in range(2)]
        self.handed: list[Handed | None] = [None, None]
        self.memories = [[memory(leaf) for leaf in side] for side in self.sides]
        # how many tensors hold each memory: ours, and those of `handed`
        self.holders = [[holders_of(x) for x in each] for each in self.memories]

    def side_of(self, state: Any) -> int | None:
        """The side of a state that was handed out and is as it was."""
        for side, handed in enumerate(self.handed):
            if handed is not None and handed.tree is state and handed.whole():
                return side
        return None

    def source(self, state: list[Tensor]) -> tuple[int, dict[int, Tensor]]:
        """Which side holds most of a state, and what it does not hold, by place."""
        others = [[i for i in self.places if not _same(side[i], state[i])] for side in self.sides]
        side = int(len(others[1]) < len(others[0]))
        return side, {i: state[i] for i in others[side]}

    def check_free(self, side: int, places: Collection[int]) -> None:
        """Raise where a view of what was handed out is alive: it would change unseen."""
        held = self._held(side, places)
        if held and gc.collect():  # perhaps they only wait to be collected
            held = self._held(side, places)
        if held:
            state = unflatten(self.kind.form, iter(self.sides[side]))
            raise RuntimeError(
                f"{leaf_name(('state',), (state,), held[0])}: a view of this tensor of an earlier "
                "state (.detach(), a slice, a module's .data) is in use, and this update would "
                f"overwrite it; clone it where it is made, or let go of it: {KEEP}"
            )

    def _held(self, side: int, places: Collection[int]) -> list[int]:
        counts = [*map(holders_of, self.memories[side])] if places else self.holders[side]
        if counts == self.holders[side]:
            return []
        return [i for i in places if counts[i] > self.holders[side][i]]

    def fill(self, side: int, state: dict[int, Tensor]) -> None:
        """Write tensors to places of a side; they may be memory of either side."""
        ours = {*self.memories[0], *self.memories[1]}
        values = [x.clone() if memory(x) in ours else x for x in state.values()]
        self._overwrite(side, state)
        _copy([self.sides[side][i] for i in state], values)

    def take_back(self, side: int) -> Any:
        """The state that was handed out of a side, if it was let go of; else it is marked."""
        handed = self.handed[side]
        if handed is not None and handed.whole() and handed.alone():
            # a graph of autograd may have it: then its backward pass raises an error
            torch.autograd.graph.increment_version(handed.leaves)
            return handed.tree
        self._overwrite(side, self.places)
        return None

    def _overwrite(self, side: int, places: Iterable[int]) -> None:
        handed = self.handed[side]
        for i in places if handed is not None else ():
            self.holders[side][i] -= handed.overwrite(i, self.memories[side][i])  # pyright: ignore

    def hand_out(self, side: int) -> Any:
        """The state of a side, in new tensors of its memory."""
        leaves = [x.detach() for x in self.sides[side]]
        self.holders[side] = [count + 1 for count in self.holders[side]]
        self.handed[side] = handed = Handed(self.kind.form, leaves)
        return handed.tree


class Program(NamedTuple):
    """One graph. Replayed, it writes the answers `packs` and the other memory of the state."""

    replay: Callable[[], None]
    packs: list[Tensor]
    order: list[Any]  # of answers: the pack and where in it, None for all; or what no tensor is
    form: Any

    def answer(self) -> list[Any]:
        """The answers in memory of their own."""
        own = [pack.clone() for pack in self.packs]
        leaves = [_part(own, *x) if type(x) is tuple else x for x in self.order]
        return unflatten(self.form, iter(leaves))


class Recording:
    """The two graphs of one kind of arguments, from each memory of the state to the other."""

    def __init__(
        self,
        update: Callable[..., Any],
        place: tuple[int, int],
        kind: Kind,
        inputs: list[Any],
        home: Home,
        recorder: Any,  # as `CudaRecorder`
    ) -> None:
        self.place, self.kind, self.home, self.recorder = place, kind, home, recorder
        with torch.inference_mode(False), torch.no_grad():
            self.inputs = [_fixed(leaf) for leaf in inputs]
        self.programs = [self._record(update, side) for side in range(2)]

    def _record(self, update: Callable[..., Any], side: int) -> Program:
        home, (at, after) = self.home, self.place
        ours = {memory(x) for x in self.inputs if isinstance(x, Tensor)}
        ours |= {*home.memories[0], *home.memories[1]}
        notes: list[Any] = []

        def run() -> list[Tensor]:
            args = list(unflatten(self.kind.form, iter(self.inputs)))
            args.insert(at, unflatten(home.kind.form, iter(home.sides[side])))
            answer = list(update(*args))
            with torch.no_grad():
                _copy(home.sides[1 - side], flatten(answer.pop(after))[1])
                packs, *notes[:] = _pack(answer, ours)
            return packs

        packs, replay = self.recorder.record(run)
        # What losses_fn takes from elsewhere must stay where it is. Our own memory does, and those
        # who hold it are counted.
        for each in ours:
            self.recorder.reads.pop(each, None)
        return Program(replay, packs, *notes)

    def step(self, inputs: list[Any], side: int, state: dict[int, Tensor]) -> tuple[Any, ...]:
        """One update of the state on a side, some of whose leaves come from elsewhere.

        Raises:
            RuntimeError: where a view is in use of what this would overwrite; nothing is changed.
        """
        home, program = self.home, self.programs[side]
        home.check_free(1 - side, home.places)
        home.check_free(side, state)
        with torch.no_grad():
            _copy(self.inputs, inputs)
            if state:
                home.fill(side, state)
            again = home.take_back(1 - side)
            program.replay()
            answer = program.answer()
            answer.insert(self.place[1], again or home.hand_out(1 - side))
        return tuple(answer)

    def free(self) -> None:
        """Give the memory back; states that were handed out stay as they are."""
        self.recorder.free()
        self.programs.clear()


def _fixed(leaf: Any) -> Any:
    """A copy at an address that stays."""
    return torch.empty_like(leaf).copy_(leaf) if isinstance(leaf, Tensor) else leaf


def _same(place: Tensor, leaf: Tensor) -> bool:
    """Whether a leaf is this memory, as a whole."""
    return all(fact(leaf) == fact(place) for fact in WHERE)


def _copy(to: Sequence[Any], values: Sequence[Any]) -> None:
    """Copy the tensors that have a place, those of one dtype in one launch."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for place, value in zip(to, values, strict=True):
        if isinstance(place, Tensor):
            into, given = groups.setdefault(place.dtype, ([], []))
            into.append(place)
            given.append(value)
    for into, given in groups.values():
        copy_each(into, given)


def _part(packs: list[Tensor], pack: int, where: Any) -> Tensor:
    return packs[pack] if where is None else packs[pack].as_strided(*where)


def _pack(answer: list[Any], ours: set[int]) -> tuple[list[Tensor], list[Any], Any]:
    """Answers as `Program` keeps them: small ones of one dtype side by side, for one launch."""
    form, leaves = flatten(answer)
    order, alone = [*leaves], list[Tensor]()
    small = {i: x for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.numel() <= SMALL}
    rows: dict[torch.dtype, list[Tensor]] = {x.dtype: [] for x in small.values()}
    for i, leaf in enumerate(leaves):
        if i in small:
            row = rows[leaf.dtype]
            strides = torch.empty(leaf.shape, device="meta").stride()
            order[i] = [*rows].index(leaf.dtype), (leaf.shape, strides, sum(map(len, row)))
            row.append(leaf.reshape(-1))
        elif isinstance(leaf, Tensor):
            order[i] = len(rows) + len(alone), None
            alone.append(leaf.clone() if memory(leaf) in ours else leaf.detach())
    return [*(torch.cat(row) for row in rows.values()), *alone], order, form
