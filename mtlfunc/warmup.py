"""`python -m mtlfunc.warmup`: compile all CPU kernels ahead of time, for images, CI and clusters.

Without it the first process that needs a kernel starts this command in the background, and answers
with interpreted kernels until the compiled ones are in numba's cache. The cache is
`NUMBA_CACHE_DIR` if that is set, else it lies next to the package, else (where that folder cannot
be written) in the user's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .core._kernels.compiling import COMPILER, Kernel, cache_of


def warmup() -> dict[str, Path | None]:
    """Compile the CPU kernels that are not cached yet, and load those that are.

    Returns:
        the folder of the cache for each kernel; None where numba finds none that it can write to,
        and the kernels are compiled for this process alone.

    Raises:
        RuntimeError: when numba is not installed.
    """
    if not COMPILER.installed:
        raise RuntimeError("numba is not installed; pip install numba, or go on without: slower")
    return {name: cache_of(make().dispatcher) for name, make in _KERNELS.items()}


def _solvers() -> Kernel:
    from .solvers._kernels import active_set_batch, active_set_cpu

    # one kernel for all three problems
    with COMPILER.allowed():
        active_set_batch.solve(np.eye(2)[None], None, None, 1e-16, 1)
    return active_set_cpu._range


def _surgery() -> Kernel:
    from .rules._kernels import surgery

    with COMPILER.allowed():
        surgery.solve(np.eye(2)[None], np.zeros(1, np.int64), None, None, 1e-16, 1, 1)
    return surgery._range


def _equiangular() -> Kernel:
    from .rules._kernels import equiangular

    with COMPILER.allowed():
        equiangular.solve.run(np.eye(2), np.ones(2), 1e-16, np.empty(2), np.empty(2))
    return equiangular.solve


_KERNELS: dict[str, Callable[[], Kernel]] = {
    "solvers": _solvers,
    "gradient surgery": _surgery,
    "equal angles": _equiangular,
}


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser("mtlfunc.warmup", description=__doc__).parse_args(arguments)
    if not COMPILER.installed:
        print("mtlfunc.warmup: numba is not installed; kernels stay interpreted", file=sys.stderr)
        return 1
    for name, make in _KERNELS.items():
        start = time.perf_counter()
        try:
            folder = cache_of(make().dispatcher)
        except (RuntimeError, ImportError, OSError) as error:
            print(f"mtlfunc.warmup: {name}: {error}", file=sys.stderr)
            return 1
        if folder is None:
            print(
                f"mtlfunc.warmup: {name}: the cache cannot be written; set NUMBA_CACHE_DIR to a "
                "folder that can",
                file=sys.stderr,
            )
            return 1
        print(f"{name}: ready in {time.perf_counter() - start:.1f} s, cached in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
