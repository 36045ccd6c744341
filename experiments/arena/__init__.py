"""Every rule on small problems with known answers, against a tuned static search: `python -m
experiments.arena`.
"""
