"""The core works without the packages of the laboratory, which say how they are installed."""

import re
from pathlib import Path

import pytest

from mtlfunc.core.extras import expect_installed
from tests.support import python

SCRIPT = Path(__file__).parent / "support" / "light.py"


@pytest.mark.slow
def test_the_core_needs_torch_numpy_and_jaxtyping_alone():
    assert python(str(SCRIPT), "--hide", cwd=None).stdout.count("mtlfunc[lab]") == 2


def test_what_is_absent_is_named_with_its_cure():
    expect_installed("torch", "numpy", what="this")
    message = r"^this: absent_1 not installed; .*install absent_1$"
    with pytest.raises(ModuleNotFoundError, match=message):
        expect_installed("torch", "absent_1", what="this")


@pytest.mark.parametrize("room", ["experiments", "paper_repro"])
def test_what_a_command_lacks_is_named_before_anything_is_imported(room):
    code = f"import sys; sys.modules['tqdm'] = None; import {room}"
    said = python("-c", code, check=False).stderr
    assert re.search(r'tqdm not installed; .*install -e "\.\[repro\]"$', said.strip())
