"""What is differentiated, and where the geometry of the tasks is measured."""

from ._double_sampling import double_sampling
from ._excess_risk import excess_risk
from ._jacobian import graddrop, jacobian, subset
from ._losses_only import losses_only
from ._moving_average import moving_average
from ._representation import representation
from .common import Run
from .last_losses import second_evaluation

__all__ = [
    "Run", "double_sampling", "excess_risk", "graddrop", "jacobian", "losses_only",
    "moving_average", "representation", "second_evaluation", "subset",
]  # fmt: skip
