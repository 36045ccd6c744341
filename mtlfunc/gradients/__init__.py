"""From stateless losses to gradients and Gramians: one forward, then backward passes."""

from .gramian import explain_gramian, sample_gramian, sample_norms, task_gramian
from .operator import TaskJacobian, task_jacobian
from .rows import sample_gradients, task_gradients

__all__ = [
    "TaskJacobian", "explain_gramian", "sample_gradients", "sample_gramian", "sample_norms",
    "task_gradients", "task_gramian", "task_jacobian",
]  # fmt: skip
