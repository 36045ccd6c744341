#!/usr/bin/env bash
# qpax 0.1.4 (jax 0.10.2, float64, CPU): `converged` is 1 for wrong weights and 0 for exact ones.
#
# The problem is the least norm of a mean of three gradients, min w'Gw/2 with w >= 0, sum w = 1,
# whose weights do not change where G is multiplied by a number. Error is the largest difference of
# a weight from the answer of the active sets, one by one:
#     G:        solver_tol not given: converged 1, error 1.4e-05;  1e-8: converged 0, error < 1e-15
#     1e-4 G:   solver_tol not given: converged 1, error 5.4e-02;  1e-8: converged 0, error < 1e-15
#     1e-6 G:   solver_tol not given: converged 1, error 3.5e-01;  1e-8: converged 0, error < 1e-15
# At solver_tol=1e-8 all 30 iterations are used, for G of every size, though the answer is exact to
# rounding. Without it the tolerance is absolute, and at 1e-6 G the answer is close to equal
# weights.
#
# Why it matters: qpax is written for batches of small problems under vmap and grad, as MGDA's
# weights are. Gradients of length 0.01 have G of about 1e-4, and there the default answer is wrong
# in the second digit and says that it converged. Who checks the flag at a tight tolerance throws
# the exact answers away. Normalise G first, and judge the answer by its optimality conditions.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q qpax==0.1.4 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END'
import itertools
import sys

import jax
import numpy as np
import qpax

jax.config.update("jax_enable_x64", True)
GRAMIAN = np.array([[4.0, 1.0, -0.5], [1.0, 2.0, 0.3], [-0.5, 0.3, 1.0]])


def by_active_sets(gramian):
    found = []
    for size in (1, 2, 3):
        for kept in itertools.combinations(range(3), size):
            part = np.linalg.solve(gramian[np.ix_(kept, kept)], np.ones(size))
            if part.min() >= 0:
                weights = np.zeros(3)
                weights[list(kept)] = part / part.sum()
                found.append((weights @ gramian @ weights, weights))
    return min(found, key=lambda pair: pair[0])[1]


exact, seen = by_active_sets(GRAMIAN), {}
constraints = np.ones((1, 3)), np.ones(1), -np.eye(3), np.zeros(3)
for scale in (1.0, 1e-4, 1e-6):
    for name, options in {"default": {}, "1e-8": {"solver_tol": 1e-8}}.items():
        weights, _, _, _, converged, steps = qpax.solve_qp(
            scale * GRAMIAN, np.zeros(3), *constraints, **options
        )
        error = abs(np.asarray(weights) - exact).max()
        seen[scale, name] = (int(converged), error)
        print(
            f"{scale:.0e} G, tolerance {name}: converged {int(converged)} in {int(steps)} "
            f"iterations, error {error:.1e}, weights {np.asarray(weights).round(4)}"
        )
print("exact:", exact.round(4))
holds = all(seen[scale, "default"][0] == 1 for scale in (1.0, 1e-4, 1e-6))
holds &= seen[1e-4, "default"][1] > 0.03 and seen[1e-6, "default"][1] > 0.3
holds &= all(seen[s, "1e-8"][0] == 0 and seen[s, "1e-8"][1] < 1e-12 for s in (1.0, 1e-4, 1e-6))
sys.exit(0 if holds else 1)
END
