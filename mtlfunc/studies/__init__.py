"""Many runs: a grid of settings, and every rule on small problems with known answers."""

from ._grid import grid

__all__ = ["grid"]
