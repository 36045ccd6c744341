"""Compiled loops of the rules, one problem after the other."""
