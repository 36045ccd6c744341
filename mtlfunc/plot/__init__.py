"""Pictures of rules, runs and Gramians; matplotlib is loaded at the first one."""

from .rules import cone, heatmap, portrait, simplex
from .runs import front, gap, weights

__all__ = ["cone", "front", "gap", "heatmap", "portrait", "simplex", "weights"]
