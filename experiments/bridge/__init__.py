"""mtlfunc in training loops as they are, one page each: `python -m experiments.bridge.<name>`."""
