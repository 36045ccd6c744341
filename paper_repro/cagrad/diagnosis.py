"""Does the mean gradient hurt tasks where gradients are at odds?"""

import numpy as np
import torch
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import TELLS
from ..report.decisions import Row, exact
from ..report.findings import Claim, Findings, Settings
from .common import gram, quadratic_losses, quadratics, rows_of

CLAIMS = {
    "CA-02": Row(
        "Main cause: misaligned gradients, so the mean direction hurts some task; also "
        "unequal norms let a few tasks dominate.",
        exact(
            ("pairs in which 'g₀ raises a task' and * differ", "==", 0),
            only_when=(
                "rank correlation of the worst task's end with the cosine at the start",
                ">=",
                TELLS,
            ),
        ),
        when="only the first order is asked for; the cosine does not predict the end",
    )
}


def foretold(pairs: int, steps: int) -> float:
    """Rank correlation of the worst task's end, by descent on the mean, with the first cosine."""
    from scipy.stats import rankdata

    problem = quadratics(pairs, 2, 5, 160)
    eta, batch = 0.9 / problem.smoothness, (problem.matrix, problem.middle)
    matrix = problem.matrix.mean(1)
    pull = torch.einsum("dtij,dtj->di", problem.matrix, problem.middle) / 2
    x = problem.start
    first = vmap(quadratic_losses)({"x": x}, batch)
    start = vmap(lambda x, b: mf.task_gramian(quadratic_losses, {"x": x}, b)[1])(x, batch)
    for _ in tqdm(range(steps), desc="mean loss", leave=False):
        x = x - eta[:, None] * (torch.einsum("dij,dj->di", matrix, x) - pull)
    excess = (vmap(quadratic_losses)({"x": x}, batch) / first).amax(-1)  # each task alone reaches 0
    cosine = start[:, 0, 1] / start.diagonal(dim1=-2, dim2=-1).prod(-1).sqrt()
    return float(np.corrcoef(rankdata(cosine.numpy()), rankdata(excess.numpy()))[0, 1])


def run(settings: Settings) -> Findings:
    draws, pairs, steps = settings.count(4000), settings.count(300), settings.count(1000)
    g = gram(rows_of(draws, 2, 4, 150) * rows_of(draws, 2, 1, 151).exp())
    n = g.diagonal(dim1=-2, dim2=-1).sqrt()
    cos, ratio = g[:, 0, 1] / n.prod(-1), n.amin(-1) / n.amax(-1)
    raised = g.mean(-1) < 0
    hurt = raised.any(-1)
    short = raised.gather(-1, n.argmin(-1, keepdim=True))[hurt]
    rank = foretold(pairs, steps)
    differ = "pairs in which 'g₀ raises a task' and 'cos < -shorter/longer' differ"
    yield Claim(
        "CA-02",
        {
            differ: (hurt != (cos < -ratio)).sum(),
            "share of these in which the shorter gradient's task is the one": short.double().mean(),
            "rank correlation of the worst task's end with the cosine at the start": rank,
        },
        f"{draws} normal pairs with log-normal lengths; {pairs} pairs of convex quadratics, "
        f"{steps} steps on the mean, worst loss at the end over its start. To first order exact",
    )
