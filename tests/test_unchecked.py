"""Compiled steps, and errors that enforced annotations would forestall: each file runs in a process
of its own, without the annotations' checks.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(path.stem[5:] for path in (ROOT / "tests" / "unchecked").glob("test_*.py"))
)
def test_without_enforced_annotations(name):
    path = ROOT / "tests" / "unchecked" / f"test_{name}.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"MTLFUNC_UNCHECKED": "1", "MTLFUNC_TYPES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
