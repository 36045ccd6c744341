"""Kernels compile once for a machine: with a line on stderr, or ahead of time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtlfunc.warmup import main

# the kernel that compiles the quickest; both processes and the warm-up go the same way with any
FIRST_USE = "import torch, mtlfunc as mf; print(mf.weights(mf.pcgrad(), torch.eye(2)).tolist())"


def started(arguments, cache):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    pipe = subprocess.PIPE
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_first_use_says_so_and_the_second_does_not(tmp_path):
    both = [started(["-c", FIRST_USE], tmp_path) for _ in range(2)]  # at once, into one cache
    said = ""
    for process in both:
        out, err = process.communicate(timeout=900)
        said += err
        assert process.returncode == 0, err
        assert out.split() == ["[0.5,", "0.5]"]
    assert "compiling the kernel surgery" in said
    assert "python -m mtlfunc.warmup" in said
    process = started(["-c", FIRST_USE], tmp_path)
    assert "compiling" not in process.communicate(timeout=900)[1]


def test_warmup_says_where_the_kernels_are(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert Path(line.partition(", cached in ")[2]).is_dir()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_warmup_compiles_what_is_missing(tmp_path):
    started(["-c", FIRST_USE], tmp_path).communicate(timeout=900)
    process = started(["-m", "mtlfunc.warmup"], tmp_path)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0
    assert str(tmp_path) in out
    assert "surgery" not in err
    assert "compiling the kernel active_set_cpu" in err  # the rest is compiled here
    out, err = started(["-m", "mtlfunc.warmup"], tmp_path).communicate(timeout=900)
    assert err == ""
    assert len(out.splitlines()) == 4


def test_importing_the_package_loads_no_compiler():
    heavy = {"cvxpy", "numba", "scipy"}
    code = (
        "import sys, torch; before = set(sys.modules); import mtlfunc; "
        f"print(sorted({heavy} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
