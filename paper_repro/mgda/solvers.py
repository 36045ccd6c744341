"""Which solver finds the shortest convex combination, and how fast?"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import NEARLY_ALL, SEARCHED
from ..report.decisions import Measured, Row, decided, ends, exact, verdict_of
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.grids import at_edge
from ..report.intervals import Interval, named, share_interval
from .common import TASKS, families, relative_gap, scaled, shortest, solved
from .naive import counts_of

ENOUGH = 5000  # steps of the softmax form


@decided(
    f"in both families fewer than 95 % of the Gramians get there, at {ENOUGH} steps or more, by "
    "Wilson's interval"
)
def judge_softmax_form(measured: Measured) -> Verdict:
    name = "{}: share that reaches a relative gap of 1e-6 at the best step"
    there, short = [], []
    for family in ("interior", "face"):
        edge = measured[f"{family}: best step at the grid's edge (1: yes)"]
        settled = measured["steps"] >= ENOUGH and not edge
        low, high = ends(measured, name.format(family))
        there.append(low > NEARLY_ALL.now)
        short.append(settled and high < NEARLY_ALL.now)
    return verdict_of(there, [all(short)])


@decided("one step length serves all scales in 95 % of the draws of both families, by the interval")
def judge_learning_rate(measured: Measured) -> Verdict:
    single, tuned = (
        [
            ends(measured, f"{family}: share that reaches 1e-6, {name}")
            for family in ("interior", "face")
        ]
        for name in ("best single step for scales 1e-4 to 1e4", "step tuned to the scale")
    )
    if all(low > NEARLY_ALL.now for low, _ in single):
        return "does not hold"
    # as long as one step may serve all, or tuning does not help either, the step is not the reason
    if all(high >= NEARLY_ALL.now for _, high in single) or tuned[0][0] <= NEARLY_ALL.now:
        return "inconclusive"
    if tuned[1][0] > NEARLY_ALL.now:
        return "holds"
    return "holds only when" if tuned[1][1] < NEARLY_ALL.now else "inconclusive"


TIMED = True  # its grids of steps are on the CPU
CLAIMS = {
    "SU-21": Row(
        "T > 2: Frank–Wolfe, towards τ = argmin ⟨g_t, Σ w g⟩, with a search on the "
        "segment from w to e_τ, which is the T = 2 problem; it suits convex sets.",
        exact(
            ("one searched step against the closed form for T = 2, *", "<", 1e-9),
            ("all steps, largest negative weight or |Σw - 1|", "<", 1e-9),
        ).open_unless(("optimum *, line search: median relative gap at the end", "<=", SEARCHED)),
    ),
    "SU-23": Row(
        "Gradient descent on w = softmax(a) solves the min-norm problem without constraints.",
        judge_softmax_form,
        when="the optimum lies inside the simplex; on a face it is not reached",
    ),
    "SU-24": Row(
        "A guess: nobody uses the unconstrained form because its learning rate needs tuning.",
        judge_learning_rate,
        when="the optimum lies inside the simplex; on a face no step is fast enough",
    ),
}


def run(settings: Settings) -> Findings:
    steps = settings.count(30000 if settings.full else ENOUGH)
    # enough for an interval of a share within 5 % of 1
    grids = {name: softmax_grid(g, steps) for name, g in families(settings.count(80)).items()}
    yield line_search(settings.count(32), counts_of(settings))
    yield from softmax_form(grids, steps)


def line_search(draws: int, counts: Sequence[int]) -> Claim:
    """The search, and whether any step leaves the simplex, after each of `counts` iterations."""
    gramians = torch.cat([scaled(g) for g in families(draws).values()])
    weights, infeasible = gramians[:, 0], 0.0
    for kind in ("1/(n+1)", "2/(n+2)", "away", "pairwise", "line-search"):
        for count in tqdm(counts, desc=kind, leave=False):
            weights = solved(mf.solvers.frank_wolfe(count, kind), gramians).weights
            infeasible = largest(infeasible, -weights.min(-1).values, (weights.sum(-1) - 1).abs())
    inside, face = relative_gap(gramians, weights).chunk(2)  # of the search
    # one step of the search from equal weights is the T = 2 problem of the mean and the task that
    # it serves worst
    mean = torch.full_like(gramians[:, 0], 1 / TASKS)
    toward = F.one_hot((gramians @ mean[:, :, None])[..., 0].argmin(-1), TASKS).to(mean)
    pair = torch.stack([mean, toward], 1)
    by_hand = torch.einsum("dk,dkt->dt", shortest(pair @ gramians @ pair.mT), pair)
    step = solved(mf.solvers.frank_wolfe(1), gramians).weights
    apart = "one searched step against the closed form for T = 2, largest difference of weights"
    return Claim(
        "SU-21",
        {
            apart: (by_hand - step).abs().max(),
            "all steps, largest negative weight or |Σw - 1|": infeasible,
            "optimum inside, line search: median relative gap at the end": inside.median(),
            "optimum face, line search: median relative gap at the end": face.median(),
        },
        f"{len(gramians)} Gramians of {TASKS} tasks, {counts[-1]} iterations, seen at "
        f"{len(counts)} counts. On a face the search zig-zags",
    )


SMALL = 1e-6  # the relative gap that counts as reached
SCALES = torch.logspace(-4, 4, 3, dtype=torch.float64)
UNIT = 1  # the place of scale 1
RATES = torch.logspace(-4, 8, 25, dtype=torch.float64)


def softmax_grid(gramians: Tensor, steps: int) -> Tensor:
    """Relative gaps `[scale, rate, draw]` of w = softmax(a) and gradient descent on a from a = 0,
    ∇_a ½wᵀGw = w ∘ (Gw - wᵀGw), G at every one of `SCALES`.
    """
    g = scaled(gramians)
    # only scale times step enters: one matrix a draw serves all of both
    moves = (SCALES[:, None] * RATES).reshape(-1, 1)
    a = torch.zeros(len(g), len(moves), g.shape[-1], dtype=torch.float64)
    for _ in tqdm(range(steps), desc="softmax form", leave=False):
        w = torch.softmax(a, -1)
        speed = w @ g
        a = a - moves * w * (speed - (w * speed).sum(-1, keepdim=True))
    gaps = relative_gap(g.repeat_interleave(len(moves), 0), torch.softmax(a, -1).flatten(0, 1))
    return gaps.reshape(len(g), len(SCALES), -1).movedim(0, -1)


def at_best_rate(reached: Tensor) -> Interval:
    """The share of draws at the rate that serves most, of flags `[rate, draw]`."""
    return share_interval(int(reached.sum(-1).max()), reached.shape[-1])


def softmax_form(grids: dict[str, Tensor], steps: int) -> Findings:
    form: dict[str, float] = {"steps": steps}
    lengths: dict[str, float] = {}
    for family, gaps in grids.items():
        best = int(gaps[UNIT].median(-1).values.argmin())
        single, tuned = at_best_rate((gaps < SMALL).all(0)), at_best_rate(gaps[UNIT] < SMALL)
        form |= {
            **named(f"{family}: share that reaches a relative gap of 1e-6 at the best step", tuned),
            f"{family}: best step at the grid's edge (1: yes)": at_edge([best], len(RATES)),
        }
        reaches = f"{family}: share that reaches 1e-6"
        lengths |= named(f"{reaches}, best single step for scales 1e-4 to 1e4", single)
        lengths |= named(f"{reaches}, step tuned to the scale", tuned)
    yield Claim(
        "SU-23",
        form,
        f"{steps} steps at the best of {len(RATES)} step lengths, {grids['face'].shape[-1]} "
        "Gramians a family; an optimum on a face needs infinite logits, and "
        "the descent rests at every vertex",
    )
    yield Claim(
        "SU-24",
        lengths,
        f"{steps} steps, 25 step lengths, G times 1e-4, 1 and 1e4; motives cannot be measured: "
        "judged is whether the step is what stands in the way. Frank–Wolfe has no step to tune",
    )
