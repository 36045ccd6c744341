"""A step recorded once on the device, then replayed: one launch for hundreds."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..core._torch import is_traced
from ..core.checks import check_count, inside_transform
from ..types import Balance, Step
from ._forms import changes, flatten, leaf_name
from ._recorder import RECORDERS
from ._recording import KEEP, Home, Kind, Overwritten, Recording

S = TypeVar("S", Step, Balance)


def capture(step: S, *, graphs: int = 8) -> S:
    """The same step, whose updates on a CUDA device are replays of a recorded graph.

    The first update for a structure, shapes and dtypes of its arguments runs as usual and is then
    recorded; later ones copy the batch in and replay, without Python and the host's launches. On a
    CPU, and inside a transform of `torch.func`, the update is the step's own.

    **States are overwritten.** A state that update returned is memory of the graph. After
    `b = update(a, batch)` both hold what they should; every older state raises where it is read.
    Clone what is to be kept: `torch.utils._pytree.tree_map(torch.clone, state)`. States from
    elsewhere (`init`, a file) stay as they are. Capture once for each run.

    **What Python did is fixed.** Numbers in a closure, the mode of a module (`train()`, `eval()`)
    and settings of torch such as TF32 stay those of the recording. What changes from step to step
    must be a tensor of the batch or the state. Tensors that `losses_fn` takes from elsewhere are
    read where they were. Dropout draws new numbers.

    Args:
        step: from `mtlfunc.descend` or `mtlfunc.balance`. For many runs side by side map its
            update first: `mtlfunc.capture(step._replace(update=vmap(step.update)))`.
        graphs: how many recordings to keep, one for every structure, shapes and dtypes; the one
            that was used longest ago is freed.

    Returns:
        a step with the same `init` and an `update` of the same arguments and answers.

    Raises:
        TypeError: for a step that is something else; from update, for a number or another object
            in the state or the batch that is not a tensor (a replay would repeat its first value).
        ValueError: from update, for tensors on several devices, or that require grad.
        RuntimeError: from update, for an operation that a graph cannot hold (a value read on the
            host), for a state that was overwritten, or would be while a view of it is in use.
        OutOfMemoryError: from update, where the memory of the device does not suffice for a
            recording. The state is untouched after each of these.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> losses = lambda params, batch: (params["x"] - batch).square()
        >>> step = mf.capture(mf.descend(losses, mf.mgda(), mf.jacobian(), mf.sgd(0.25)))
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> batch = torch.tensor([1.0, 3.0], device=device)
        >>> state = step.init({"x": torch.zeros((), device=device)}, batch)
        >>> for _ in range(3):
        ...     state, info = step.update(state, batch)
        >>> state.params["x"].item()
        0.875
    """
    if not isinstance(step, Step | Balance):
        raise TypeError(
            "step: expected a step, such as mtlfunc.descend(losses_fn, rule, probe, optimizer) or "
            f"mtlfunc.balance(losses_fn, rule, probe), got {type(step).__name__}; a function "
            "alone goes in by step._replace(update=function)"
        )
    check_count(graphs, "graphs")
    alone = isinstance(step, Step)
    names = ("state", "batch") if alone else ("params", "batch", "state")
    update = Captured(step.update, names, 0 if alone else 1, int(graphs))
    return cast("S", step._replace(update=cast("Any", update)))


class Captured:
    """An update that records itself for every kind of arguments and replays what it recorded."""

    def __init__(
        self, update: Callable[..., Any], names: tuple[str, ...], answer: int, graphs: int
    ) -> None:
        self.update, self.names, self.graphs = update, names, graphs
        self.place = names.index("state"), answer  # of the state, in arguments and answers
        self.recordings: list[Recording] = []  # the last one was used last
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return f"captured {self.update!r}"

    def __call__(self, *args: Any, **named: Any) -> Any:
        """One step: the plain update, or a replay."""
        given = dict(zip(self.names, args, strict=False)) | named
        if given.keys() != set(self.names) or len(args) + len(named) != len(self.names):
            return self.update(*args, **named)  # which says what is missing
        args = tuple(given[name] for name in self.names)
        elsewhere = inside_transform() or torch.compiler.is_compiling() or is_traced()
        first = None if elsewhere else next(_tensors(args), None)
        recorder = None if first is None else RECORDERS.get(first.device.type)
        if first is None or recorder is None:
            return self.update(*args)
        if recorder.busy():
            raise RuntimeError(
                "capture: update of a captured step was called inside another recording; call "
                "update of the step that was given to mtlfunc.capture there"
            )
        if not self.lock.acquire(blocking=False):
            raise RuntimeError(
                "capture: update was called while it runs, in another thread or by its own "
                "losses_fn; capture the step once for each"
            )
        try:
            return self._step(args, first.device, recorder)
        finally:
            self.lock.release()

    def _step(self, args: tuple[Any, ...], device: torch.device, recorder: Any) -> tuple[Any, ...]:
        at = self.place[0]
        modes = device, torch.is_inference_mode_enabled(), torch.is_autocast_enabled(device.type)
        names, values = self.names[:at] + self.names[at + 1 :], args[:at] + args[at + 1 :]
        form, inputs = flatten(values)
        kind = Kind(form, _kinds(names, values, inputs, device), modes)
        fitting = [x for x in self.recordings if x.kind == kind]
        for recording in reversed(fitting):  # most often the state is what the last update returned
            side = recording.home.side_of(args[at])
            if side is not None:
                self._last(recording)
                return recording.step(inputs, side, {})
        form, state = flatten(args[at])
        kinds = _kinds(("state",), (args[at],), state, device, tensors=True)
        of_state = Kind(form, kinds, (device,))
        for recording in fitting:
            if recording.home.kind == of_state:
                self._last(recording)
                return recording.step(inputs, *recording.home.source(state))
        made = recorder(device)
        answer = made.warm_up(lambda: self.update(*args))
        _check_answer(args, answer, *self.place)
        while len(self.recordings) >= self.graphs:
            self.recordings.pop(0).free()
        try:
            same = [x.home for x in self.recordings if x.home.kind == of_state]
            home = same[0] if same else Home(of_state, state)
            self._last(Recording(self.update, self.place, kind, inputs, home, made))
        except torch.OutOfMemoryError as error:
            made.free()
            raise torch.OutOfMemoryError(
                "capture: too little memory for a recording, which keeps the memory of one step "
                f"and the state twice ({len(self.recordings)} other recordings are kept); take "
                "graphs=1, a smaller batch or model, or update of the step that was given to "
                f"mtlfunc.capture, which goes on from this state. torch said: {error}"
            ) from error
        except BaseException:
            made.free()
            raise
        return answer

    def _last(self, recording: Recording) -> None:
        """Note that this one was used last."""
        self.recordings = [*(x for x in self.recordings if x is not recording), recording]


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in arguments, in order; only as far as they are asked for."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list | dict):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _kinds(
    names: tuple[str, ...],
    values: tuple[Any, ...],
    leaves: list[Any],
    device: torch.device,
    *,
    tensors: bool = False,
) -> tuple[Any, ...]:
    """What a recording is for, leaf by leaf; raises where it cannot be for this."""
    grad, found = torch.is_grad_enabled(), []
    for i, leaf in enumerate(leaves):
        if type(leaf) is Tensor or type(leaf) is nn.Parameter:
            fits = leaf.device == device and leaf.layout is torch.strided
            if not fits or (grad and leaf.requires_grad):
                raise _refused(leaf_name(names, values, i), leaf, device)
            found.append((leaf.shape, leaf.dtype))
        elif tensors or not (leaf is None or type(leaf) in (bool, str)):
            raise _refused(leaf_name(names, values, i), leaf, device)
        else:
            found.append(leaf)
    return tuple(found)


def _refused(name: str, leaf: Any, device: torch.device) -> Exception:
    """Why this leaf cannot be in a graph, and what to do."""
    if isinstance(leaf, Overwritten):
        return RuntimeError(
            f"{name}: a later update of a captured step has overwritten this state; {KEEP}"
        )
    if type(leaf) not in (Tensor, nn.Parameter):
        cure = "pass it as a tensor on the device"
        if not isinstance(leaf, int | float | complex):
            cure = "pass plain tensors, in tuples, lists and dicts"
        return TypeError(
            f"{name}: expected a tensor, got {type(leaf).__name__}, and a replay would repeat what "
            f"it was in the recording; {cure}"
        )
    if leaf.layout != torch.strided:
        return TypeError(f"{name}: expected a dense tensor, got {leaf.layout}; use .to_dense()")
    if leaf.device != device:
        return ValueError(
            f"{name} is on {leaf.device}, but the first tensor on {device}: a graph runs on one "
            "device; move it there before the step, by .to(device)"
        )
    return ValueError(
        f"{name} requires grad, but a replay has no derivative; detach it (parameters come from "
        "mtlfunc.parameters(module)), or call update of the step that was given to mtlfunc.capture"
    )


def _check_answer(args: tuple[Any, ...], answer: Any, place: int, at: int) -> None:
    """Raise where a replay could not repeat this answer."""
    changed = changes(args[place], answer[at], _described)
    if changed or flatten(args[place])[0] != flatten(answer[at])[0]:
        raise ValueError(
            "capture: the state after an update has another structure, shape or dtype than before "
            f"({changed or 'its structure'}). A recording writes the new state where the old one "
            "was; go on without capture, or let the state keep its form"
        )
    rest = *answer[:at], *answer[at + 1 :]
    for i, leaf in enumerate(flatten(rest)[1]):
        if not (isinstance(leaf, Tensor | bool | str) or leaf is None):
            names = "grads" if len(rest) > 1 else "info", "info"
            raise TypeError(
                f"{leaf_name(names, rest, i)}: expected a tensor, got {type(leaf).__name__}, and a "
                "replay would repeat what it was in the recording; let losses_fn return a tensor "
                "in aux"
            )


def _described(leaf: Any) -> Any:
    return f"{list(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else repr(leaf)
