"""What all rooms use; imported first, it refuses a torch that is too old for what follows."""

import torch

OLDEST, NEWEST = (2, 6), (2, 15)  # tested, by docs/limits.md
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
if VERSION < OLDEST:
    raise ImportError(f"mtlfunc needs torch 2.6 or later, but this is torch {torch.__version__}")
