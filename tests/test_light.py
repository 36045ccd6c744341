"""The core works without the packages of the laboratory, which say how they are installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from mtlfunc.core.extras import expect_installed

SCRIPT = Path(__file__).parent / "support" / "light.py"


@pytest.mark.slow
def test_the_core_needs_torch_numpy_and_jaxtyping_alone():
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--hide"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("mtlfunc[lab]") == 2


def test_what_is_absent_is_named_with_its_cure():
    expect_installed("torch", "numpy", what="this")
    with pytest.raises(
        ModuleNotFoundError, match=r"^this: absent_1 not installed; .*install absent_1$"
    ):
        expect_installed("torch", "absent_1", what="this")
