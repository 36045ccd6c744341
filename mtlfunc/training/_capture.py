"""A step recorded once on the device, then replayed: one launch for hundreds."""

from collections.abc import Callable
from threading import RLock
from types import NoneType
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from ..core.checks import check_count
from ..core.internals import copy_each, is_traced
from ..core.transforms import inside_transform
from ..types import Balance, Step
from ._forms import flatten, leaf_name, unflatten
from ._recorder import RECORDERS

S = TypeVar("S", Step, Balance)


def capture(step: S, *, graphs: int = 8) -> S:
    """The same step, whose updates on a CUDA device are replays of a recorded graph.

    The first update for a structure, shapes and dtypes of its arguments runs as usual and is then
    recorded. Later ones copy the arguments in, replay without Python and the host's launches, and
    copy the answer out, so the state is read and written twice a step. On a CPU, inside a transform
    of `torch.func` and inside another recording, the update is the step's own.

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
            in its arguments that is not a tensor (a replay would repeat its first value).
        ValueError: from update, for tensors on several devices, or that require grad.
        RuntimeError: from update, for an operation that no graph holds (a value read on the host).
        OutOfMemoryError: from update, where the device has too little memory for a recording.

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
    names = ("state", "batch") if isinstance(step, Step) else ("params", "batch", "state")
    return cast("S", step._replace(update=cast("Any", Captured(step.update, names, int(graphs)))))


class Recording(NamedTuple):
    """A graph, which reads `inputs` and writes `outputs`, where they are."""

    kind: Any  # of arguments
    inputs: list[tuple[list[int], list[Tensor]]]  # by dtype, with their places among the leaves
    outputs: list[tuple[list[int], list[Tensor]]]
    leaves: list[Any]  # of the answer
    form: Any
    replay: Callable[[], None]
    free: Callable[[], None]

    @torch.no_grad()
    def step(self, leaves: list[Any]) -> Any:
        """One update of these arguments, whose answer shares no memory with any other tensor."""
        for places, inputs in self.inputs:
            copy_each(inputs, [leaves[i] for i in places])
        self.replay()
        answer = [*self.leaves]
        for places, outputs in self.outputs:
            own = [*map(torch.empty_like, outputs)]
            copy_each(own, outputs)
            for i, x in zip(places, own, strict=True):
                answer[i] = x
        return unflatten(self.form, iter(answer))


class Captured:
    """An update that records itself for every kind of arguments and replays what it recorded."""

    def __init__(self, update: Callable[..., Any], names: tuple[str, ...], graphs: int) -> None:
        self.update, self.names, self.graphs = update, names, graphs
        self.recordings: list[Recording] = []  # the last one was used last
        self.lock = RLock()  # losses_fn may call this

    def __repr__(self) -> str:
        return f"captured {self.update!r}"

    def __call__(self, *args: Any, **named: Any) -> Any:
        """One step: the plain update, or a replay."""
        given = dict(zip(self.names, args, strict=False)) | named
        if given.keys() != set(self.names) or len(args) + len(named) != len(self.names):
            return self.update(*args, **named)  # which says what is missing
        args = tuple(given[name] for name in self.names)
        if inside_transform() or torch.compiler.is_compiling() or is_traced():
            return self.update(*args)
        form, leaves = flatten(args)
        device = next((x.device for x in leaves if isinstance(x, Tensor)), torch.device("cpu"))
        recorder = RECORDERS.get(device.type)
        if recorder is None or recorder.busy():
            return self.update(*args)
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled(device.type)
        kind = form, _kinds(self.names, args, leaves, device), device, modes
        with self.lock:
            found = next((x for x in self.recordings if x.kind == kind), None)
            if found is None:
                return self._record(args, kind, leaves, recorder(device))
            self.recordings = [*(x for x in self.recordings if x is not found), found]
            return found.step(leaves)

    def _record(self, args: tuple[Any, ...], kind: Any, leaves: list[Any], recorder: Any) -> Any:
        """The answer of the plain update, which is recorded for the next time."""
        answer = recorder.warm_up(lambda: self.update(*args))
        names = ("state", "info") if len(self.names) == 2 else ("grads", "state", "info")
        with torch.no_grad():
            _kinds((*names, *["answer"] * len(answer)), answer, flatten(answer)[1], kind[2])
        while len(self.recordings) >= self.graphs:
            self.recordings.pop(0).free()

        def run() -> tuple[Any, list[Any]]:
            form, found = flatten(self.update(*unflatten(kind[0], iter(inputs))))
            return form, [x.detach() if isinstance(x, Tensor) else x for x in found]

        try:
            with torch.inference_mode(False), torch.no_grad():
                inputs = [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]
            (form, outputs), replay = recorder.record(run)
        except BaseException as error:
            recorder.free()
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            raise torch.OutOfMemoryError(
                "capture: too little memory for a recording, which keeps the memory of one step "
                f"and of its arguments ({len(self.recordings)} other recordings are kept); take "
                "graphs=1, a smaller batch or model, or update of the step that was given to "
                f"mtlfunc.capture, which goes on from this state. torch said: {error}"
            ) from error
        groups = _by_dtype(inputs), _by_dtype(outputs)
        self.recordings.append(Recording(kind, *groups, outputs, form, replay, recorder.free))
        return answer


def _by_dtype(leaves: list[Any]) -> list[tuple[list[int], list[Tensor]]]:
    """The tensors of each dtype, which one launch copies, and their places."""
    groups: dict[torch.dtype, tuple[list[int], list[Tensor]]] = {}
    for i, x in enumerate(leaves):
        if isinstance(x, Tensor):
            places, found = groups.setdefault(x.dtype, ([], []))
            places.append(i)
            found.append(x)
    return [*groups.values()]


def _kinds(names: tuple[str, ...], args: Any, leaves: list[Any], device: torch.device) -> list[Any]:
    """What a recording is for, leaf by leaf; raises for what a graph cannot hold."""
    grad, found = torch.is_grad_enabled(), []
    for i, x in enumerate(leaves):
        plain = type(x) is Tensor or type(x) is nn.Parameter
        fits = plain and x.device == device and x.layout is torch.strided
        if type(x) in (bool, str, NoneType) or (fits and not (grad and x.requires_grad)):
            found.append((x.shape, x.dtype) if plain else x)
            continue
        name = leaf_name(names, args, i)
        if not plain:
            cure = "use plain tensors in tuples, lists and dicts"
            if isinstance(x, int | float | complex):
                cure = "make it a tensor on the device"
            raise TypeError(
                f"{name}: expected a tensor, got {type(x).__name__}, and a replay would repeat "
                f"what it was in the recording; {cure}"
            )
        if x.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got {x.layout}; use .to_dense()")
        if x.device != device:
            raise ValueError(
                f"{name} is on {x.device}, but the first tensor on {device}: a graph runs on one "
                "device; move it there before the step, by .to(device)"
            )
        raise ValueError(
            f"{name} requires grad, but a replay has no derivative; detach it (parameters come "
            "from mtlfunc.parameters(module)), or call update of the step that was given to "
            "mtlfunc.capture"
        )
    return found
