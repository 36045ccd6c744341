"""Pictures of rules, runs and Gramians; matplotlib is loaded at the first one."""

from .rules import cone, front, gap, heatmap, portrait, simplex, trajectories, weights

__all__ = ["cone", "front", "gap", "heatmap", "portrait", "simplex", "trajectories", "weights"]
