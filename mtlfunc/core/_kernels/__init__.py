"""Compiled loops of the core, one problem after the other."""
