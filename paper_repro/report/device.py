"""Questions on another device than the CPU: which run there, and steps that are replayed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import mtlfunc as mf


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor of another one's dtype and device.

    On a device by fills, as a graph copies nothing from the host.
    """
    if like.device.type == "cpu":
        return torch.tensor(values, dtype=like.dtype)
    return torch.stack([like.new_full((), value) for value in values])


TIMED = (
    "cagrad.dual",
    "cagrad.dual_solvers",
    "cagrad.fast",
    "mgda.cost_of_gradients",
    "mgda.cost_of_weights",
    "mgda.solvers",
)
"""Questions about a processor's time or memory, which stay on the CPU."""


def shown(device: torch.device) -> str:
    """A device by name."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return str(device)


def of(question: str, device: torch.device) -> torch.device:
    """Where a question runs."""
    return torch.device("cpu") if question in TIMED else device


def replayed(move: Callable[..., Any]) -> Callable[..., Any]:
    """A step of lanes, `(state, *rest) -> (state, *answers)`, captured where it can be.

    On the CPU it is `move`. On a CUDA device it is a replay of a recorded graph: a state is
    overwritten by the step after the next, so what is kept of it must be copied; answers are kept.
    A step that no graph can hold runs as it is, and a notice says why.
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
