"""A study on another device than the CPU: where its tensors are made.

Random numbers of `mf.random` are a hash of a key and a position: the same bits on every device
(normal ones may differ in the last). What draws by a generator of torch draws on the CPU, and is
moved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


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
