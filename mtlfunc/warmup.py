"""`python -m mtlfunc.warmup`: compile all CPU kernels ahead of time, for images, CI and clusters.

Without it the first process that needs a kernel starts this command in the background, and answers
with interpreted kernels until the compiled ones are in numba's cache. The cache is
`NUMBA_CACHE_DIR` if that is set, else it lies next to the package, else (where that folder cannot
be written) in the user's own.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from .core.compiling import COMPILER, cache_of


def warmup() -> dict[str, Path | None]:
    """Compile the CPU kernels that are not cached yet, and load those that are.

    Returns:
        the folder of the cache for each kernel; None where numba finds none that it can write to,
        and the kernels are compiled for this process alone.

    Raises:
        RuntimeError: when numba is not installed.
    """
    if not COMPILER.installed:
        raise RuntimeError(
            "numba >= 0.59 is not installed: pip install numba, or go on without, slower"
        )
    from .rules._kernels import equiangular, surgery
    from .solvers._kernels import active_set_batch, active_set_cpu

    two, many = np.eye(2), np.eye(2)[None]
    with COMPILER.allowed():
        active_set_batch.solve(many, None, None, 1e-16, 1)  # one kernel for all three problems
        key, none = np.zeros(1, np.int64), np.zeros((1, 0, 0))
        surgery.solve(many, key, none.astype(np.int64), none, 1e-16, 1, 1)
        equiangular.solve.run(two, np.ones(2), 1e-16, np.empty(2), np.empty(2))
    kernels = {
        "solvers": active_set_cpu._range,
        "gradient surgery": surgery._range,
        "equal angles": equiangular.solve,
    }
    return {name: cache_of(kernel.dispatcher) for name, kernel in kernels.items()}


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser("mtlfunc.warmup", description=__doc__).parse_args(arguments)
    try:
        for name, folder in warmup().items():
            if folder is None:
                raise OSError("set NUMBA_CACHE_DIR to a folder that can be written")
            print(f"{name}: cached in {folder}")
    except (RuntimeError, ImportError, OSError) as error:
        print(f"mtlfunc.warmup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
