"""What the processes of `test_distributed.py` have imported and compiled before they are forked."""

from mtlfunc import random

random.fold_in(random.key(0), 0)
