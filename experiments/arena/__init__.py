"""Every rule on small problems with known answers: `python -m experiments.arena`."""
