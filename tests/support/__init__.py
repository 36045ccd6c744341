"""What test modules import, for none of them imports another."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def python(*arguments: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess:
    """This interpreter in the repository, on one thread by default; it must end well if `check`."""
    env = {"OMP_NUM_THREADS": "1"} | os.environ
    options = {"cwd": ROOT, "capture_output": True, "text": True, "env": env} | more
    done = subprocess.run([sys.executable, *arguments], check=False, **options)
    assert not check or done.returncode == 0, (done.stdout[-20_000:], done.stderr[-3000:])
    return done


def wheel_in(folder: Path) -> Path:
    """A wheel of the package, made in that folder."""
    python("-c", f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})")
    (path,) = folder.glob("*.whl")
    return path
