"""Kernels answer at once, interpreted; their compiled form comes from a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mtlfunc as mf
from mtlfunc.core import compiling
from mtlfunc.rules._kernels import equiangular, surgery
from mtlfunc.solvers._kernels import active_set_cpu
from mtlfunc.warmup import main
from tests.support import python

# the kernel that compiles the quickest; both processes and the warm-up go the same way with any
FIRST_USE = "import torch, mtlfunc as mf; print(mf.weights(mf.pcgrad(), torch.eye(2)).tolist())"


def started(arguments, cache, **more):
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"NUMBA_CACHE_DIR": str(cache)} | more
    pipe = subprocess.PIPE
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def without_surgery(tmp_path, monkeypatch):
    """A cache that has the solvers' kernels, which take the longest to compile, and no other."""
    kernel = active_set_cpu._range
    with monkeypatch.context() as patch:
        patch.setattr("numba.config.CACHE_DIR", str(tmp_path))
        again = compiling.Kernel(kernel.function, kernel.fastmath)
        folder = compiling.cache_of(again.dispatcher)
    full = compiling.cache_of(kernel.dispatcher)
    assert full is not None
    assert folder is not None
    shutil.copytree(full, folder, dirs_exist_ok=True)
    return tmp_path


SEVERAL = f"""
import os, sys, time, torch
from mtlfunc.core.compiling import COMPILER
for count in (3, 1):
    for _ in range(count):
        if not os.fork():
            {FIRST_USE}
            if COMPILER.child:
                COMPILER.child.wait()
            elif count > 1:
                time.sleep(8)
            sys.stdout.flush()
            os._exit(0)
    assert not sum(os.wait()[1] for _ in range(count))
    print("end", file=sys.stderr, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_one_of_several_first_uses_compiles_and_none_waits(without_surgery):
    """Each in a child of one process that has imported torch; then one finds what was compiled."""
    out, err = started(["-c", SEVERAL], without_surgery).communicate(timeout=900)
    assert out.replace("\n", "") == "[0.5, 0.5]" * 4, err
    said, afterwards, _ = err.split("end\n")
    assert said.count("being compiled for this machine") == 1
    assert "python -m mtlfunc.warmup" in said
    assert not afterwards


def test_warmup_says_where_the_kernels_are(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert Path(line.partition(": cached in ")[2]).is_dir()


UNUSABLE = {
    "is not installed": "raise ModuleNotFoundError('No module', name='numba')",
    "numba 0.58.1 is older than 0.59": "__version__ = '0.58.1'",
    "Numba needs NumPy 1.26 or less": "raise ImportError('Numba needs NumPy 1.26 or less')",
}
EACH = f"""
import os, sys, torch
for folder in sys.argv[1:]:
    if not os.fork():
        sys.path.insert(0, folder)
        for _ in range(2):
            {FIRST_USE}
        import mtlfunc.warmup
        print(mtlfunc.warmup.main([]), flush=True)
        print("end", file=sys.stderr, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_numba_that_cannot_be_used_is_named_once(tmp_path):
    """Each in a child of one process that has imported torch."""
    folders = [tmp_path / str(i) for i in range(len(UNUSABLE))]
    for folder, numba in zip(folders, UNUSABLE.values(), strict=True):
        (folder / "numba" / "core").mkdir(parents=True)
        (folder / "numba" / "__init__.py").write_text(numba)
        for name in ("__init__.py", "event.py"):
            (folder / "numba" / "core" / name).touch()
    out, err = started(["-c", EACH, *folders], tmp_path).communicate(timeout=900)
    assert out == "[0.5, 0.5]\n[0.5, 0.5]\n1\n" * len(UNUSABLE)
    for reason, said in zip(UNUSABLE, err.split("end\n"), strict=False):
        absent = reason == "is not installed"
        assert said.count("RuntimeWarning") == (not absent)
        assert absent or f"could not be compiled ({reason}); they stay interpreted" in said
        assert "numba >= 0.59 is not installed" in said


def test_the_first_call_leaves_scipy_to_who_uses_it():
    code = FIRST_USE + "; import sys, numba, numpy as np; print('scipy.linalg' in sys.modules)"
    code += "; print(numba.njit(lambda x: np.dot(x, x))(np.eye(2))[0, 0])"  # by SciPy's BLAS
    code += "; from scipy.linalg import cython_blas; print(hasattr(cython_blas, '__file__'))"
    assert python("-c", code).stdout.splitlines()[1:] == ["False", "1.0", "True"]


def interpret(patch):
    """All kernels as in a process that has no compiler."""
    patch.setitem(compiling.COMPILER.__dict__, "installed", False)
    for kernel in (active_set_cpu._range, surgery._range, equiangular.solve):
        patch.setattr(kernel, "ready", None)


PROBLEMS = {
    "min_norm": lambda g: mf.weights(mf.mgda(), g),
    "cagrad": lambda g: mf.weights(mf.cagrad(0.7), g),
    "dual_cone": lambda g: mf.weights(mf.upgrad(), g),
    "surgery": lambda g: mf.weights(mf.pcgrad(), g, key=3),
    "adaptive": lambda g: mf.weights(mf.gradvac(), g, key=3),
    "angles": lambda g: mf.weights(mf.config(), g),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_interpreted_answers_are_the_compiled_ones(name, monkeypatch):
    @given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 5, 9]), st.integers(-8, 8))
    def check(seed, count, power):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(count, count + 2)) * 10.0 ** rng.uniform(-1, 1, (count, 1))
        gramian = torch.from_numpy(rows @ rows.T * 10.0**power)
        compiled = PROBLEMS[name](gramian)
        with monkeypatch.context() as patch:
            interpret(patch)
            answer = PROBLEMS[name](gramian)
        torch.testing.assert_close(answer, compiled, rtol=1e-9, atol=1e-11)

    check()


def test_nothing_is_said_of_zeros_and_infinities(monkeypatch):
    """Warnings are errors here; the compiled form divides by zero in silence, too."""
    interpret(monkeypatch)
    zero = torch.zeros(3, 3, dtype=torch.float64)
    for answer in PROBLEMS.values():
        answer(zero)
    infinite, none, found = np.full((1, 3, 3), np.inf), np.zeros((1, 0, 0)), np.empty((2, 1, 3, 3))
    surgery._range.run(infinite, np.zeros(1, int), none.astype(int), none, 1e-16, 0, 1, *found)
    assert np.isnan(found[0]).all()


@pytest.fixture
def compiler(monkeypatch):
    """That of a process which has not needed a kernel yet, and asks again at once."""
    made = compiling._Compiler()
    monkeypatch.setattr(compiling, "COMPILER", made)
    monkeypatch.setattr(compiling, "RETRY", 0.0)
    return made


def kernel_of(source=lambda x: x + 1.0):
    source.__module__ = "mtlfunc.tests"
    return compiling.Kernel(source, False)


def missing(*_):
    raise compiling.NotCompiled


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no room left >&2; exit 3", "no room left"),
        ("kill -9 $$", "it ended with -9"),
        ("", "could not be compiled"),
    ],
    ids=["refused", "killed", "not started"],
)
def test_a_process_that_cannot_compile_says_so_once(
    script, reason, compiler, monkeypatch, tmp_path, capfd
):
    kernel = kernel_of()
    kernel.__dict__["dispatcher"] = missing
    monkeypatch.setattr(compiling, "cache_of", lambda _: tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    if script:
        (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "python").chmod(0o755)

    def twice():
        first = kernel.run(1.0)
        if compiler.child is not None:
            compiler.child.wait()
        return first, kernel.run(1.0)

    with pytest.warns(RuntimeWarning, match=f"{reason}.*stay interpreted"):
        assert twice() == (2.0, 2.0)
    assert kernel.run(1.0) == 2.0  # and no more is said
    assert "compiled for this machine" in capfd.readouterr().err


@pytest.mark.parametrize("many", [False, True])
def test_a_broken_cache_leaves_the_interpreter(many, compiler, monkeypatch):
    def cut_off(*_):
        raise EOFError("pickle data was truncated")

    kernel = kernel_of()
    kernel.__dict__["dispatcher"] = cut_off
    with pytest.warns(RuntimeWarning, match="EOFError: pickle data was truncated.*interpreted"):
        assert kernel.run(1.0, many=many) == 2.0
    assert kernel.run(1.0, many=many) == 2.0  # and no more is said


@pytest.mark.slow
def test_without_a_folder_that_can_be_written_many_problems_compile_here(compiler, monkeypatch):
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    kernel = kernel_of()
    assert kernel.run(1.0) == 2.0
    assert compiling.cache_of(kernel.dispatcher) is None
    assert kernel.ready is None
    assert compiler.child is None
    assert kernel.run(1.0, many=True) == 2.0
    assert kernel.ready is not None
    assert kernel.run(np.ones(2)).tolist() == [2.0, 2.0]  # an argument of another kind
