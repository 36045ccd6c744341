"""C a = p for well conditioned matrices of cosines, compiled: Cholesky's factor, with the proof
that no eigenvalue is small.
"""

from typing import no_type_check

import numpy as np
from numba import njit

Array = np.ndarray

# sums may be reordered; NaN and infinity keep their meaning
_jit = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})


@_jit
@no_type_check
def solve(gramian: Array, cosines: Array, noise: float, unit: Array, a: Array) -> bool:
    """Fill 1/‖g‖ and a; False, and nothing of use in them, unless every eigenvalue of C is seen to
    exceed `noise`.
    """
    count = len(cosines)
    for i in range(count):
        unit[i] = 1 / np.sqrt(gramian[i, i])
        for j in range(i + 1, count):  # what is not read below
            if not np.isfinite(gramian[i, j]):
                return False
    # L with the inverse of its diagonal, and L⁻¹
    factor, inverse = np.empty((count, count)), np.zeros((count, count))
    trace = 0.0
    for i in range(count):
        for j in range(i + 1):
            entry = gramian[i, j] * unit[i] * unit[j]
            for l in range(j):
                entry -= factor[i, l] * factor[j, l]
            factor[i, j] = entry * factor[j, j] if j < i else 1 / np.sqrt(entry)
        inverse[i, i] = factor[i, i]
        for j in range(i):
            for l in range(j + 1):
                inverse[i, l] -= factor[i, j] * inverse[j, l]
        for l in range(i):
            inverse[i, l] *= factor[i, i]
        for l in range(i + 1):
            trace += inverse[i, l] ** 2
        # the trace of C⁻¹, which is 1/its smallest eigenvalue at least; NaN ends up here, too
        if not trace * noise < 1:
            return False
    for i in range(count):
        a[i] = 0.0
        entry = cosines[i]
        for j in range(i):
            entry -= factor[i, j] * a[j]
        a[i] = entry * factor[i, i]
    for i in range(count - 1, -1, -1):
        a[i] *= factor[i, i]
        for j in range(i):
            a[j] -= factor[i, j] * a[i]
    return True
