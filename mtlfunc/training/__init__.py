"""Steps: a method and an optimizer become a pure function from state and batch to state."""

from ._balance import balance
from ._balancer import Balancer
from ._descend import descend
from ._log_dict import log_dict
from ._rollout import Interrupted, rollout

__all__ = ["Balancer", "Interrupted", "balance", "descend", "log_dict", "rollout"]
