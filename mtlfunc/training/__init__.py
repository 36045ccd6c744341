"""Steps: a method and an optimizer become a pure function from state and batch to state."""

from . import optim
from .optim import adam, sgd
from .step import Interrupted, balance, descend, rollout

__all__ = ["Interrupted", "adam", "balance", "descend", "optim", "rollout", "sgd"]
