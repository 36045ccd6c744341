"""Is conflict a matter of several tasks, and what does it predict?"""

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import ALIKE, PREDICTS
from ..report.decisions import Measured, Row, decided, ends, sided, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import mean_interval, named
from .common import Data, losses, network, normal, rank_correlation, sample_losses


@decided(
    "conflict has a negative rank correlation with the excess training loss, or one beyond "
    f"±{PREDICTS} with the excess loss on held-out samples"
)
def conflict_and_gap(measured: Measured) -> Verdict:
    training = ends(measured, "rank correlation of conflict with the excess training loss")
    # not the gap: it is a difference with the training loss, which stands on the other side
    other, most = ends(measured, "rank correlation of conflict with the excess test loss"), PREDICTS
    shown = training[0] > 0 and other[0] > -most.now and other[1] < most.now
    lost = training[1] < 0 or other[0] > most.now or other[1] < -most.now
    return verdict_of([shown], [lost])


CLAIMS = {
    "SI-06": Row(
        "Elich et al. 2023: conflicting angles are not a problem of several tasks alone: cosines "
        "of tasks are no lower than those of one task's samples.",
        # not the end: where the mean of both rests its two gradients are opposed
        sided(
            ("cosine of two tasks less that of two *, start", ">", ALIKE),
            ("cosine of two tasks less that of two *, middle", ">", ALIKE),
            trained=False,
        ),
        instead="networks for scenes and faces",
    ),
    "SI-07": Row(
        "Mueller et al. 2024: the amount of conflict goes with worse training losses and does not "
        "predict generalization.",
        conflict_and_gap,
        instead="benchmarks of images and text",
    ),
}

INPUTS, HIDDEN, TRAIN, TEST, NOISE, RATE = 8, 3, 32, 256, 0.3, 1e-2


def drawn(seed: Tensor) -> tuple[mf.types.Params, Data, Data]:
    """Two tasks whose teachers are alike to a degree from -1 to 1; training and test data."""
    key = mf.random.key(seed)
    like = 2 * mf.random.uniform(mf.random.fold_in(key, 9), (), torch.float64) - 1
    x, teachers = normal(key, 0, TRAIN + TEST, INPUTS), normal(key, 1, 2, INPUTS, 2) / INPUTS**0.5
    second = like * teachers[0] + (1 - like.square()).sqrt() * teachers[1]
    clean = torch.stack([(2 * x @ w).tanh().sum(-1) for w in (teachers[0], second)], -1)
    y = clean + NOISE * normal(key, 2, TRAIN + TEST, 2)
    params = network(key, INPUTS, HIDDEN, 2)
    return params, Data(x[:TRAIN], y[:TRAIN]), Data(x[TRAIN:], y[TRAIN:])


def gramians(params: mf.types.Params, data: Data) -> Tensor:
    """Of samples over the trunk, `[pair, 2n, 2n]`."""
    one = vmap(lambda p, d: mf.sample_gramian(sample_losses, p, d, shared="trunk.*")[1])
    return one(params, data)


def train(pairs: int, steps: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Train both tasks and each alone, as three lanes of one program over all pairs.

    Returns, on the way of both, their cosine over the trunk `[pair, step]` and `gramians` halfway;
    training and test losses at the end, each `[pair, arm, task]` of both, task 1 and task 2 alone.
    """
    arms = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)

    def step_of(share: Tensor) -> mf.Step:
        rule = mf.mean(preference=share)
        return mf.descend(losses, rule, mf.jacobian("trunk.*"), mf.adam(RATE))

    params, data, test = vmap(drawn)(torch.arange(pairs))
    first = vmap(lambda s, p, d: step_of(s).init(p, d), (0, None, None))
    state = vmap(first, (None, 0, 0))(arms, params, data)
    every = vmap(vmap(lambda s, x, d: step_of(s).update(x, d), (0, 0, None)), (None, 0, 0))
    move = replayed(lambda state, data: every(arms, state, data))
    found, middle = [], torch.empty(0)
    for moment in tqdm(range(steps), desc="pairs of tasks", leave=False):
        if moment == steps // 2:
            both = {name: leaf[:, 0] for name, leaf in state.params.items()}
            middle = gramians(both, data)
        state, info = move(state, data)
        found.append(cosines(info.gramian[:, 0])[:, 0, 1])
    measure = vmap(vmap(losses, (0, None)))
    return torch.stack(found, 1), middle, [measure(state.params, part) for part in (data, test)]


def cosines(gramian: Tensor) -> Tensor:
    length = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
    return gramian / length[..., None] / length[..., None, :]


def run(settings: Settings) -> Findings:
    pairs, steps = 16 * settings.seeds, settings.count(150)
    many = settings.count(16 * pairs)
    cosine, middle, ended = train(pairs, steps)
    blocks = torch.arange(many).split(256)
    start = torch.cat([gramians(*vmap(drawn)(block)[:2]) for block in blocks])
    where = (
        f"{pairs} pairs of tasks, alike to degrees from -1 to 1, a trunk of {HIDDEN} units, "
        f"{TRAIN} samples, {steps} steps of Adam by {RATE:g} on the mean of both"
    )
    yield of_samples({"start": start, "middle": middle}, f"{where}; at the start {many} pairs")
    yield predicts(-cosine.mean(-1), ended, f"{where}, and on each task alone")


def of_samples(moments: dict[str, Tensor], where: str) -> Claim:
    """Cosines of two tasks, of two samples of one task, and of two halves of its samples."""
    numbers: dict[str, float] = {}
    for moment, gramian in moments.items():
        g = gramian.unflatten(1, (TRAIN, 2)).unflatten(3, (TRAIN, 2))  # [pair, n, task, n, task]
        tasks = cosines(g.mean((1, 3)))[:, 0, 1]
        own = g.diagonal(dim1=2, dim2=4).movedim(-1, 1)  # [pair, task, n, n]
        samples = (cosines(own).sum((-2, -1)) - TRAIN) / (TRAIN * (TRAIN - 1))
        blocks = own.unflatten(2, (2, -1)).unflatten(4, (2, -1)).mean((3, 5))
        halves = cosines(blocks)[..., 0, 1]
        for label, rival in (("samples of one", samples), ("halves of one's samples", halves)):
            less = mean_interval(tasks - rival.mean(1))
            numbers |= named(f"cosine of two tasks less that of two {label}, {moment}", less)
    return Claim(
        "SI-06",
        numbers,
        f"{where}; gradients over the trunk at the start and in the middle. Tasks by their means "
        "over all samples. Two samples are also noisier than two means: so two halves of one "
        "task's samples as well. 95 % t intervals over pairs",
    )


def predicts(conflict: Tensor, ended: list[Tensor], where: str) -> Claim:
    numbers: dict[str, float] = {}
    for name, end in zip(("training", "test"), ended, strict=True):
        alone = torch.stack([end[:, 1, 0], end[:, 2, 1]], -1)
        excess = (end[:, 0] / alone).log().mean(-1)
        label = f"rank correlation of conflict with the excess {name} loss"
        numbers |= named(label, rank_correlation(conflict, excess))
    return Claim(
        "SI-07",
        numbers,
        f"{where}; conflict: minus the mean cosine over the steps; excess: of the log losses of "
        "both over those of each alone, mean of the tasks; the test loss is that of held-out "
        "samples. Spearman's correlations with Fisher's intervals",
    )
