"""Solvers side by side on the same problems; every answer carries a duality gap."""

from ._active_set import active_set as active_set
from ._auto import auto as auto
from ._certify import Certificate as Certificate
from ._certify import certify as certify
from ._cvx import cvx as cvx
from ._faces import faces as faces
from ._frank_wolfe import frank_wolfe as frank_wolfe
from ._projected_gradient import projected_gradient as projected_gradient
from .problems import CAGrad as CAGrad
from .problems import DualCone as DualCone
from .problems import MinNorm as MinNorm
from .problems import cagrad as cagrad
from .problems import dual_cone as dual_cone
from .problems import min_norm as min_norm
