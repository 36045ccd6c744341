"""mtlfunc in other training loops, one file per loop: `python -m experiments.examples.<name>`."""
