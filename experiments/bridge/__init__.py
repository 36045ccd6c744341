"""mtlfunc in other training loops, four short examples: `python -m experiments.bridge.<name>`."""
