"""`python -m mtlfunc.warmup`: compile all CPU kernels ahead of time, for images, CI and clusters.

Without it each kernel is compiled, with a line on stderr, the first time that a process needs it,
and loaded from numba's cache on disk from then on. The cache is `NUMBA_CACHE_DIR` if that is set,
else it lies next to the package, else (where that folder cannot be written) in the user's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def warmup() -> dict[str, Path]:
    """Compile the CPU kernels that are not cached yet: solvers, random numbers, rules.

    Returns:
        the folder of the cache for each kernel.

    Raises:
        RuntimeError: when numba finds no folder that it can write to.
    """
    return {name: _folder(compiled()) for name, compiled in _KERNELS.items()}


def _solvers() -> Any:
    from .solvers._kernels import active_set_batch, active_set_cpu

    # one kernel for all three problems
    active_set_batch.solve(np.eye(2)[None], None, None, 1e-16, 1)
    return active_set_cpu._range


def _random() -> Any:
    from .core._kernels import random

    random.fold_in(0, 0)
    random.fill_symmetric(0, np.empty(1))
    for dtype, digits in ((np.float32, 24), (np.float64, 53)):
        out = np.empty(1, dtype)
        random.uniform(0, digits, out)
        random.scale_into(np.empty(1), 1.0, out)
    return random.fold_in


def _surgery() -> Any:
    from .rules._kernels import surgery

    surgery.solve(np.eye(2)[None], np.zeros(1, np.int64), None, None, 1e-16, 1, 1)
    return surgery._range


def _equiangular() -> Any:
    from .rules._kernels import equiangular

    equiangular.solve(np.eye(2), np.ones(2), 1e-16, np.empty(2), np.empty(2))
    return equiangular.solve


_KERNELS: dict[str, Callable[[], Any]] = {
    "solvers": _solvers,
    "random numbers": _random,
    "gradient surgery": _surgery,
    "equal angles": _equiangular,
}


def _folder(kernel: Any) -> Path:
    return Path(kernel.stats.cache_path)


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser("mtlfunc.warmup", description=__doc__).parse_args(arguments)
    for name, compiled in _KERNELS.items():
        start = time.perf_counter()
        try:
            folder = _folder(compiled())
        except (RuntimeError, OSError) as error:
            print(
                f"mtlfunc.warmup: {name}: the cache cannot be written ({error}); set "
                "NUMBA_CACHE_DIR to a folder that can",
                file=sys.stderr,
            )
            return 1
        print(f"{name}: ready in {time.perf_counter() - start:.1f} s, cached in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
