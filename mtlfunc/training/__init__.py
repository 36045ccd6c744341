"""Steps: a method and an optimizer become a pure function from state and batch to state."""

from ._balance import balance
from ._balancer import Balancer
from ._capture import capture
from ._descend import descend
from ._log_dict import log_dict

__all__ = ["Balancer", "balance", "capture", "descend", "log_dict"]
