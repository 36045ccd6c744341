"""What does solving for the weights cost within a training step?"""

import itertools

import torch.nn.functional as F
from torch import Tensor

import mtlfunc as mf

from ..report.bounds import A_FIFTH
from ..report.counting import operations
from ..report.decisions import Exact, Measured, Row, decided, exact, named_so
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings, Verdict
from .common import gram, rows_of
from .network import SAMPLES, losses, network, step_of, trunk_size


@decided("no way to solve takes a fifth of a step's operations in any cell", trained=False)
def judge_inner_iteration(measured: Measured) -> Verdict:
    names = named_so(measured, "*: operations of the solver over the step's")
    shares = [measured[name] for name in names]
    if max(shares) <= A_FIFTH.now:
        return "does not hold"
    return "holds" if min(shares) > A_FIFTH.now else "holds only when"


TIMED = True  # on a processor: another device may take another way to the Gramian
CLAIMS = {
    "SU-25": Row(
        "Smoothing and Frank–Wolfe both run an inner iteration at every training step, so the cost "
        "is considerable.",
        judge_inner_iteration,
        when="the iteration works on vectors rather than the Gramian: at 32 tasks and 303,104 "
        "parameters it takes {Frank–Wolfe on vectors, 100 iterations, T = 32, P = 303104, batch of "
        "32: operations of the solver over the step's} times a step's operations with batches of "
        "32, {Frank–Wolfe on vectors, 100 iterations, T = 32, P = 303104, batch of 512: operations "
        "of the solver over the step's} times with 512",
    ),
    "SU-26": Exact(
        "Inner products of gradients need computing once a step: ⟨g_t, Σ w_s g_s⟩ = Σ w_s "
        "G_ts, only w changes.",
        exact(
            ("largest difference of weights, vectors against Gramian", "<", 1e-9),
            ("operations of the Gramian over 2T²P", "<", 1 + 1e-9),
            ("operations of all iterations on the Gramian, *", "<", 1),
        ),
    ),
}

TASKS, WIDTHS, BATCHES, ITERATIONS = (2, 8, 32), (32, 128, 512), (SAMPLES, 512), 100


def on_vectors(rows: Tensor, steps: int) -> Tensor:
    """Frank–Wolfe, step 1/(n+1), with inner products of long vectors at every iteration."""
    weights = rows.new_full((len(rows),), 1 / len(rows))
    for n in range(1, steps + 1):
        toward = F.one_hot((rows @ (weights @ rows)).argmin(), len(rows)).to(weights)
        weights = weights + (toward - weights) / (n + 1)
    return weights


def run(settings: Settings) -> Findings:
    yield gramian_once()
    yield inner_iteration()


def gramian_once() -> Claim:
    tasks, size, steps = 8, 10000, 200

    def on_gramian(rows: Tensor) -> Tensor:
        solve = mf.solvers.frank_wolfe(steps, "1/(n+1)")
        return solve(mf.solvers.min_norm(gram(rows))).weights

    drawn = [rows_of(1, tasks, size, 420 + 2 * i, spread=4.0)[0] for i in range(4)]
    rows = drawn[0]  # counts are the same for all
    vectors = operations(lambda: on_vectors(rows, steps))
    return Claim(
        "SU-26",
        {
            "largest difference of weights, vectors against Gramian": largest(
                (on_vectors(each, steps) - on_gramian(each)).abs().max() for each in drawn
            ),
            "operations of the Gramian over 2T²P": operations(lambda: gram(rows))
            / (2 * tasks**2 * size),
            "operations of all iterations on the Gramian, the Gramian included, over those on "
            "vectors": operations(lambda: on_gramian(rows)) / vectors,
        },
        f"T = {tasks}, P = {size}, {steps} iterations of Frank–Wolfe, counted floating-point "
        "operations of matrix products",
    )


def inner_iteration() -> Claim:
    """Operations of a step's passes and Gramian, and of ways to solve for the weights. The step's
    are counted as it runs (matrix products alone); the solvers' are their formulas: a face solved
    takes 2T³/3 + 2T², an iteration on the Gramian 2T², one on vectors two products with the
    Jacobian, 4TP.
    """
    numbers: dict[str, float] = {}
    for batch, tasks, width in itertools.product(BATCHES, TASKS, WIDTHS):
        params, data = network(tasks, width)
        size, probe = trunk_size(params), mf.jacobian("trunk.*")
        whole = operations(step_of(tasks, width, probe, samples=batch))
        g = mf.task_gramian(losses, params, data, shared="trunk.*")[1]
        faces = float(mf.solvers.active_set()(mf.solvers.min_norm(g)).steps)
        for way, own in (
            ("exact, on the Gramian", faces * (2 * tasks**3 / 3 + 2 * tasks**2)),
            (f"Frank–Wolfe on the Gramian, {ITERATIONS} iterations", ITERATIONS * 2 * tasks**2),
            (f"Frank–Wolfe on vectors, {ITERATIONS} iterations", ITERATIONS * 4 * tasks * size),
        ):
            numbers[
                f"{way}, T = {tasks}, P = {size}, batch of {batch}: operations of the solver over "
                "the step's"
            ] = own / whole
    return Claim(
        "SU-25",
        numbers,
        "a ReLU trunk with a linear head a task; considerable: above a fifth of a step's "
        "operations. On the Gramian, and in the exact way, it is a small part of them",
    )
