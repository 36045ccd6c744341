"""From stateless losses to gradients and Gramians: one forward, then backward passes."""

from .explain import explain_gramian
from .gramian import sample_gramian, sample_norms, task_gramian
from .rows import sample_gradients, task_gradients

__all__ = [
    "explain_gramian", "sample_gradients", "sample_gramian", "sample_norms", "task_gradients",
    "task_gramian",
]  # fmt: skip
