"""What every worker needs, imported once, in the process that all of them are forked from."""

import torch

from mtlfunc.warmup import warmup

from ..__main__ import reproductions

torch.set_num_threads(1)
reproductions()
warmup()
