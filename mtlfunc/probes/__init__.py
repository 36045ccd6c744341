"""What is differentiated, and where the geometry of the tasks is measured."""

from .jacobian import jacobian as jacobian
from .jacobian import subset as subset
from .losses_only import losses_only as losses_only
from .representation import representation as representation
