"""A study on another device than the CPU: where its tensors are made, and steps that are replayed.

Random numbers of `mf.random` are a hash of a key and a position: the same bits on every device
(normal ones may differ in the last). What draws by a generator of torch draws on the CPU, and is
moved.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from tqdm import tqdm

import mtlfunc as mf


class _ForNumpy(TorchFunctionMode):
    """What is handed to NumPy, SciPy and matplotlib is copied to the host first."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (Tensor.numpy, Tensor.__array__):
            args = args[0].cpu(), *args[1:]
        return function(*args, **(kwargs or {}))


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Tensors that name no device are made on this one, and NumPy can read what is there.

    Studies make tensors in some hundred places, so this is done once, beneath them. On the CPU it
    does nothing.
    """
    if device.type == "cpu":
        yield
        return
    with device, _ForNumpy():
        yield


def there(device: torch.device, perform: Callable[..., Any], *given: Any) -> Any:
    """`perform(*given)` on a device."""
    with on(device):
        return perform(*given)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor of another one's dtype and device.

    On a device by fills, as a graph copies nothing from the host.
    """
    if like.device.type == "cpu":
        return torch.tensor(values, dtype=like.dtype)
    return torch.stack([like.new_full((), value) for value in values])


def shown(device: torch.device) -> str:
    """A device by name."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return str(device)


def replayed(move: Callable[..., Any]) -> Callable[..., Any]:
    """A step of lanes, `(state, *rest) -> (state, *answers)`, captured where it can be.

    On the CPU it is `move`. On a CUDA device it is a replay of a recorded graph. A step that no
    graph can hold runs as it is, and a notice says why.
    """

    def init(*arguments: Any, **named: Any) -> Any:
        raise NotImplementedError("states of lanes are made by their questions")

    def together(state: Any, batch: Any) -> Any:
        return move(state, *batch)

    update: Callable[..., Any] = mf.capture(mf.Step(init, together)).update
    first = True

    def one(state: Any, *rest: Any) -> Any:
        nonlocal update, first
        try:
            return update(state, rest)
        except RuntimeError as error:
            if not first or update is together:
                raise
            tqdm.write(f"not captured, steps run one by one: {str(error).splitlines()[0]}")
            update = together
            return update(state, rest)
        finally:
            first = False

    return one


def alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """`vmap` over one lane, without its cost: a fifth of a run's time."""

    def one(*arguments: Any) -> Any:
        found = function(*tree_map(lambda x: x[0], arguments))
        return tree_map(lambda x: x[None], found)

    return one
