"""Kernels that are loaded once, in the process that those of `test_distributed.py` are forks of."""

from mtlfunc.warmup import warmup

warmup()
