"""A batch of small problems on the CPU, in threads around the compiled kernels."""

import numpy as np

from ..problems import resolution
from .active_set_cpu import CAGRAD, DUAL_CONE, MIN_NORM, SHARED, _range

Array = np.ndarray
PARALLEL_WORK = 100_000
"""batch · (T² + 64) from which starting threads pays."""


def solve(
    gramian: Array, vector: Array | None, c: Array | None, eps: float, threads: int
) -> tuple[Array, Array, Array]:
    """Solve a batch: min-norm from the Gramian alone, the dual cone with a vector, CAGrad with
    both; an array of batch length 1 is shared by all.

    Args:
        gramian: float64 `[batch, T, T]`, contiguous; or `[batch / r, T, T]`, each for r in a row.
        vector: float64 `[batch, T]`: weights (dual cone) or preference (CAGrad).
        c: float64 `[batch]`: CAGrad's radius.
        eps: noise level of the Gramian's entries, the epsilon of the dtype it was computed in.
        threads: the most at work.

    Returns:
        `[batch, 3T + 2]` weights, dual, rates, value, gap; `[batch, 2, T]` bool, the support of the
        dual and of CAGrad's step to the dual cone; `[batch, 2]` int64, the number of faces solved
        and whether CAGrad's answer is that of a Pareto-stationary point (-1: an indefinite
        Gramian). NaN where an input is not finite or the Gramian is indefinite.
    """
    count = gramian.shape[-1]
    kind = MIN_NORM if vector is None else DUAL_CONE if c is None else CAGRAD
    vector, c = np.zeros((1, count)) if vector is None else vector, np.zeros(1) if c is None else c
    batch = max(len(gramian), len(vector), len(c))
    report = np.empty((batch, 3 * count + 2))
    support = np.empty((batch, 2, count), dtype=np.bool_)
    info = np.empty((batch, 2), dtype=np.int64)
    given = gramian, vector, c, kind, eps, resolution(count, eps)
    many = batch * (count * count + 64) >= PARALLEL_WORK
    if threads == 1 or not many:
        _range.run(*given, 0, batch, report, support, info, many=many)
        return report, support, info
    # every range prepares the Gramian that it shares again: there are no more than needed
    unit = SHARED if len(gramian) < batch else 1
    units = -(-batch // unit)
    pieces = min(units, (1 if len(gramian) == 1 else 4) * threads)
    cuts = (unit * np.linspace(0, units, pieces + 1).astype(int)).clip(max=batch).tolist()
    _range.run_in_threads(given, cuts, (report, support, info), threads)
    return report, support, info
