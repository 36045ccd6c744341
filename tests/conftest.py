"""Shapes in signatures are enforced in every test; hypothesis draws the same examples on every
machine.
"""

import os

import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# torch.compile cannot trace the checks, so the compiled tests run without them (tests/unchecked).
if not os.environ.get("MTLFUNC_UNCHECKED"):
    install_import_hook("mtlfunc", "beartype.beartype")

torch.set_num_threads(1)

settings.register_profile(
    "mtlfunc",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mtlfunc")


def pytest_collection_modifyitems(items):
    """The longest tests first, so that no worker is left with one of them at the end."""
    items.sort(
        key=lambda item: "test_unchecked" not in item.nodeid and "test_notebooks" not in item.nodeid
    )


collect_ignore = [] if os.environ.get("MTLFUNC_UNCHECKED") else ["unchecked"]
