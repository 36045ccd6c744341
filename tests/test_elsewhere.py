"""The package's own tests with enforced types, and with the last bits of other processors."""

import os

import pytest

from tests.support import python

PLAIN, TWO = {"MKL_CBWR": "COMPATIBLE"}, {"OMP_NUM_THREADS": "2"}
ELSEWHERE = {
    "enforced types": {"MTLFUNC_TYPES": "1"},
    "noise, one thread": {"MTLFUNC_NUDGE": "1"},
    "noise, two threads": {"MTLFUNC_NUDGE": "2"} | TWO,
    "no vector instructions, one thread": PLAIN,
    "no vector instructions, noise, two threads": {"MTLFUNC_NUDGE": "3"} | PLAIN | TWO,
}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("where", ELSEWHERE)
def test_the_suite(where, share):
    env = {"OMP_NUM_THREADS": "1"} | os.environ | ELSEWHERE[where]
    rooms = "--share", share, "tests", "mtlfunc", "tests/laboratory", "tests/compiled"
    python("-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *rooms, env=env)
