"""Steps: a method and an optimizer become a pure function from state and batch to state."""

from ._balance import balance
from ._descend import descend
from ._rollout import Interrupted, rollout

__all__ = ["Interrupted", "balance", "descend", "rollout"]
