"""Shapes in signatures are enforced if `MTLFUNC_TYPES=1` (three times slower; `.ci/run` does so for
a tenth of the tests, `--share 10`); hypothesis draws the same examples on every machine; Gramians
get last-bit noise where that is asked for.
"""

import os
from contextlib import nullcontext
from zlib import crc32

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

from .support.rounding import nudged

if os.environ.get("MTLFUNC_TYPES"):
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


NUDGE = os.environ.get("MTLFUNC_NUDGE")


@pytest.fixture(scope="session", autouse=NUDGE is not None)
def another_processor():
    """The whole session on `MTLFUNC_NUDGE`, the seed of its roundings."""
    with nudged(int(NUDGE or 0)):
        yield


@pytest.fixture(scope="module", params=[NUDGE] if NUDGE else ["none", "1", "2"])
def roundings(request):
    """For `usefixtures`: a test on this processor's own roundings and on two others'."""
    with nudged(int(request.param)) if request.param not in ("none", NUDGE) else nullcontext():
        yield


@pytest.fixture
def formed(monkeypatch):
    """Shapes of all that the backward passes of a test give, as they come."""
    from mtlfunc.gradients.backward import Backward  # the import hook comes first

    shapes, original = [], Backward.__call__

    def watched(self, root, cotangent, targets):
        answers = original(self, root, cotangent, targets)
        shapes.extend(tuple(answer.shape) for answer in answers)
        return answers

    monkeypatch.setattr(Backward, "__call__", watched)
    return shapes


def pytest_addoption(parser):
    parser.addoption(
        "--share", type=int, default=1, help="run one in so many tests, chosen by their names"
    )


def pytest_collection_modifyitems(config, items):
    """The chosen share; the slow tests first, and of these those of whole files, so that no worker
    is left with one of them at the end.
    """
    share = config.getoption("--share")
    items[:] = [item for item in items if crc32(item.nodeid.encode()) % share == 0]
    items.sort(
        key=lambda item: (
            item.get_closest_marker("slow") is None,
            "test_unchecked" not in item.nodeid,
        )
    )


# each of these files runs in a process of its own (test_unchecked.py)
collect_ignore = [] if os.environ.get("MTLFUNC_UNCHECKED") else ["unchecked"]
