"""Are the updates of two rules closer than their directions, after Adam?"""

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..cross_paper.adam_metric import BATCH, RATE, Data, batch_of, losses, problem
from ..report.bounds import CLOSER
from ..report.decisions import Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import named, ratio_interval
from .common import flat

CLAIMS = {
    "SI-11": Row(
        "After Miao et al. 2026 (our words): the gradient of a step is a small part of Adam's "
        "update, so that the updates of two rules are far closer than their directions.",
        sided(
            ("mean and *: 1 - cosine of the updates, over that of the directions", "<", CLOSER),
            trained=False,
        ),
    )
}

RULES: dict[str, mf.Rule] = {
    "mean": mf.mean(),
    "MGDA": mf.mgda(),
    "CAGrad": mf.cagrad(0.5),
    "UPGrad": mf.upgrad(),
    "PCGrad": mf.pcgrad(),
}
FIRST = 10  # steps before it is measured: Adam's first step has no past


def apart(seeds: int, steps: int) -> Tensor:
    """1 - cosine of every rule's direction and of its update with the mean's, `[step, seed, rule,
    2]`. Every rule starts from Adam's state on the path of the mean loss.
    """
    adam, keys = mf.adam(RATE), torch.arange(seeds)
    balances = [mf.balance(losses, rule, mf.jacobian()) for rule in RULES.values()]

    def move(
        params: mf.types.Params, state: mf.types.Params, seed: Tensor, data: Data, moment: int
    ) -> tuple[mf.types.Params, mf.types.Params, Tensor]:
        batch = batch_of(seed, data, moment)
        grads = [step.update(params, batch, step.init(params, batch, seed))[0] for step in balances]
        moved = [adam.update(g, state, params) for g in grads]
        both = [map(flat, grads), (flat(params) - flat(after) for after, _ in moved)]
        rows = torch.stack([torch.stack([*each]) for each in both], 1)  # [rule, 2, parameter]
        cosines = torch.nn.functional.cosine_similarity(rows, rows[:1], dim=-1)
        return *moved[0], 1 - cosines

    params, data = vmap(lambda seed: problem(mf.random.key(seed)))(keys)
    state, found, every = vmap(adam.init)(params), [], vmap(move, (0, 0, 0, 0, None))
    for moment in tqdm(range(steps), desc="Adam's updates", leave=False):
        params, state, rows = every(params, state, keys, data, moment)
        found.append(rows)
    return torch.stack(found[FIRST:])


def run(settings: Settings) -> Findings:
    steps = FIRST + settings.count(50)
    directions, updates = apart(settings.seeds, steps).mean(0).unbind(-1)
    numbers: dict[str, float] = {}
    for i, name in enumerate(RULES):
        if i:
            label = f"mean and {name}: 1 - cosine of the updates, over that of the directions"
            numbers |= named(label, ratio_interval(updates[:, i], directions[:, i]))
    yield Claim(
        "SI-11",
        numbers,
        f"three conflicting tasks, a network of one output, Adam by {RATE:g} on batches of "
        f"{BATCH}, steps {FIRST} to {steps} of the mean's own path, {settings.seeds} seeds: from "
        "the same state of Adam, how far another rule's direction and update are from the mean's. "
        "What a rule does to the state is not in it. Geometric means with 95 % t intervals",
    )
