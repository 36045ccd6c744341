"""Compiled loops of the solvers, one problem after the other."""
