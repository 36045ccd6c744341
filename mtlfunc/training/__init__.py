"""Steps: a method and an optimizer become a pure function from state and batch to state."""

from .step import Interrupted, balance, descend, rollout

__all__ = ["Interrupted", "balance", "descend", "rollout"]
