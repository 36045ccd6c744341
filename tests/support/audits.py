"""The audits that the package's tests look at, by a process of its own."""

import pickle
from pathlib import Path

import torch

from docs import properties
from mtlfunc.audit import audit
from mtlfunc.core.files import write_whole
from tests.support.broken_rules import BROKEN

RULES = {
    "mean": "mean()",
    "mgda": "mgda()",
    "pcgrad": "pcgrad()",
    "cagrad": "cagrad(0.4)",
    "cagrad-1": "cagrad(1.0)",
    "gradnorm": "gradnorm(1.5)",
    "upgrad": "upgrad()",
    "dualproj": "dualproj()",
}
"""Those whose textbook is checked, as the table in docs/properties.md names them."""


def write(path: str) -> None:
    """Whole audits of the textbook's rules and of the broken ones."""
    torch.set_num_threads(1)
    found = properties.reports(tuple(RULES.values()))
    broken = {name: audit(case.rule, name=name, instances=20) for name, case in BROKEN.items()}
    write_whole(Path(path), pickle.dumps((found, broken)))
