"""The core works without the packages of the laboratory, which say how they are installed."""

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


def test_what_a_command_lacks_is_named_before_anything_is_imported():
    for room in ("experiments", "paper_repro"):
        said = python("-c", f"import sys; sys.modules['tqdm'] = None; import {room}", check=False)
        assert "tqdm not installed; in the clone: python" in said.stderr
