"""Which questions run on another device than the CPU."""

import torch

TIMED = (
    "cagrad.dual",
    "cagrad.dual_solvers",
    "cagrad.fast",
    "mgda.cost_of_gradients",
    "mgda.cost_of_weights",
    "mgda.solvers",
)
"""Questions about a processor's time or memory, which stay on the CPU."""


def of(question: str, device: torch.device) -> torch.device:
    """Where a question runs."""
    return torch.device("cpu") if question in TIMED else device
