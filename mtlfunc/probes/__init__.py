"""What is differentiated, and where the geometry of the tasks is measured."""

from ._double_sampling import double_sampling
from ._excess_risk import excess_risk
from ._jacobian import jacobian, subset
from ._log_losses import log_losses
from ._losses_only import losses_only
from ._representation import representation
from ._second_evaluation import second_evaluation
from ._tracked import tracked
from .common import Run
from .masks import graddrop, trimmed_mean

__all__ = [
    "Run",
    "double_sampling",
    "excess_risk",
    "graddrop",
    "jacobian",
    "log_losses",
    "losses_only",
    "representation",
    "second_evaluation",
    "subset",
    "tracked",
    "trimmed_mean",
]
