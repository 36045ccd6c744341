"""Solvers side by side on the same problems; every answer carries a duality gap."""

from .active_set import active_set as active_set
from .auto import auto as auto
from .certify import Certificate as Certificate
from .certify import certify as certify
from .cvx import cvx as cvx
from .faces import faces as faces
from .frank_wolfe import frank_wolfe as frank_wolfe
from .problems import CAGrad as CAGrad
from .problems import DualCone as DualCone
from .problems import MinNorm as MinNorm
from .problems import cagrad as cagrad
from .problems import dual_cone as dual_cone
from .problems import min_norm as min_norm
from .projected_gradient import projected_gradient as projected_gradient
