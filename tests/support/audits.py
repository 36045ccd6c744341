"""All audits that the tests look at, by a process of its own."""

import pickle
from pathlib import Path

import torch

from docs import properties
from mtlfunc.audit import audit
from mtlfunc.core.files import write_whole
from tests.support.broken_rules import BROKEN


def write(path: str) -> None:
    """Whole audits of all rules, the built-in and the broken ones."""
    torch.set_num_threads(1)
    found = properties.reports()
    broken = {name: audit(case.rule, name=name, instances=20) for name, case in BROKEN.items()}
    write_whole(Path(path), pickle.dumps((found, broken)))
