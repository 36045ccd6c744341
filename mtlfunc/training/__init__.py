"""Steps: a method and an optimizer become a pure function from state and batch to state."""

from . import optim
from ._balance import balance
from ._descend import descend
from ._rollout import Interrupted, rollout
from .optim import adam, sgd

__all__ = ["Interrupted", "adam", "balance", "descend", "optim", "rollout", "sgd"]
