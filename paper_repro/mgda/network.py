"""A trunk with a head a task, and what its steps cost: operations, time, memory."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mtlfunc as mf
from common.memory import with_peak

from .common import normal

INPUTS, SAMPLES = 64, 32
LARGE = "heads with 512 units"
Encoded = dict[str, Tensor]


def network(
    tasks: int, width: int, *, code: int = 16, head: int = 0, samples: int = SAMPLES
) -> tuple[mf.types.Params, Encoded]:
    """A ReLU trunk of two layers with `width` units and a code, and a batch. A linear head a task,
    or one with `head` hidden units.
    """
    layers = {"trunk.0": (width, INPUTS), "trunk.1": (width, width), "trunk.2": (code, width)}
    params = {
        name: (normal(400 + i, shape) / shape[1] ** 0.5).float()
        for i, (name, shape) in enumerate(layers.items())
    }
    if head:
        params["heads.0"] = (normal(410, (tasks, head, code)) / code**0.5).float()
    params["heads.1"] = (normal(411, (tasks, head or code)) / (head or code) ** 0.5).float()
    return params, {
        "x": normal(412, (samples, INPUTS)).float(),
        "y": normal(413, (samples, tasks)).float(),
    }


def encode(params: mf.types.Params, batch: Encoded) -> Tensor:
    hidden = F.linear(F.linear(batch["x"], params["trunk.0"]).relu(), params["trunk.1"]).relu()
    return F.linear(hidden, params["trunk.2"])


def decode(params: mf.types.Params, z: Tensor, batch: Encoded) -> Tensor:
    if "heads.0" in params:
        hidden = torch.einsum("bc,thc->bth", z, params["heads.0"]).relu()
        out = torch.einsum("bth,th->bt", hidden, params["heads.1"])
    else:
        out = F.linear(z, params["heads.1"])
    return (out - batch["y"]).square().mean(0)


def losses(params: mf.types.Params, batch: Encoded) -> Tensor:
    return decode(params, encode(params, batch), batch)


def step_of(tasks: int, width: int, probe: mf.Probe, **sizes: int) -> Callable[[], Any]:
    params, batch = network(tasks, width, **sizes)
    step = mf.balance(losses, mf.mgda(), probe)
    state = step.init(params, batch)
    return lambda: step.update(params, batch, state)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that a call holds beyond what there was, the second time it runs."""
    call()
    return with_peak(call)[1]


def trunk_size(params: mf.types.Params) -> int:
    """Number of shared parameters."""
    return sum(leaf.numel() for name, leaf in params.items() if name.startswith("trunk"))
