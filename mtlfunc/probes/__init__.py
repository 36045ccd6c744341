"""What is differentiated, and where the geometry of the tasks is measured."""

from ._double_sampling import double_sampling as double_sampling
from ._excess_risk import excess_risk as excess_risk
from ._jacobian import jacobian as jacobian
from ._jacobian import subset as subset
from ._log_losses import log_losses as log_losses
from ._losses_only import losses_only as losses_only
from ._representation import representation as representation
from ._second_evaluation import second_evaluation as second_evaluation
from ._tracked import tracked as tracked
from .masks import graddrop as graddrop
from .masks import trimmed_mean as trimmed_mean
