"""Are the updates of two rules closer than their directions, after Adam?"""

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..cross_paper.adam_metric import BATCH, RATE, SAMPLES, Data, losses, problem
from ..report.bounds import CLOSER
from ..report.decisions import Claims, Row, sided
from ..report.findings import Findings, Settings
from ..report.intervals import mean_interval, named, ratio_interval

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
claim = Claims(CLAIMS)

RIVALS: dict[str, mf.Rule] = {
    "MGDA": mf.mgda(),
    "CAGrad": mf.cagrad(0.5),
    "UPGrad": mf.upgrad(),
    "PCGrad": mf.pcgrad(),
}
FIRST = 10  # steps before it is measured: Adam's first step has no past


def flat(grads: mf.types.Params) -> Tensor:
    return torch.cat([grads[name].flatten() for name in sorted(grads)])


def apart(beta: float, seeds: int, steps: int) -> dict[str, Tensor]:
    """1 - cosine of every rule's direction and of its update with the mean's, `[step, seed, 2]`.
    Every rule starts from Adam's state on the path of the mean loss.
    """
    adam, keys = mf.adam(RATE, (beta, 0.999)), torch.arange(seeds)
    rules = {"mean": mf.mean()} | RIVALS
    balances = {name: mf.balance(losses, rule, mf.jacobian()) for name, rule in rules.items()}
    params, data = vmap(lambda seed: problem(mf.random.key(seed)))(keys)

    def move(
        params: mf.types.Params, state: mf.types.Params, seed: Tensor, data: Data, moment: int
    ) -> tuple[mf.types.Params, mf.types.Params, dict[str, Tensor]]:
        key = mf.random.fold_in(mf.random.fold_in(mf.random.key(seed), 4), moment)
        order = mf.random.permutation(key, SAMPLES)[:BATCH]
        batch = data[0][order], data[1][order]
        grads = {
            name: step.update(params, batch, step.init(params, batch, seed))[0]
            for name, step in balances.items()
        }
        moved = {name: adam.update(g, state, params) for name, g in grads.items()}
        updates = {name: flat(params) - flat(after) for name, (after, _) in moved.items()}
        cosine = torch.nn.functional.cosine_similarity
        found = {
            name: torch.stack(
                [
                    1 - cosine(flat(grads[name]), flat(grads["mean"]), dim=0),
                    1 - cosine(updates[name], updates["mean"], dim=0),
                ]
            )
            for name in RIVALS
        }
        return *moved["mean"], found

    state, rows = vmap(adam.init)(params), []
    for moment in tqdm(range(steps), desc=f"Adam's updates, β₁ = {beta:g}", leave=False):
        params, state, found = vmap(lambda p, s, k, d, moment=moment: move(p, s, k, d, moment))(
            params, state, keys, data
        )
        rows.append(found)
    return {name: torch.stack([row[name] for row in rows[FIRST:]]) for name in RIVALS}


def run(settings: Settings) -> Findings:
    steps, numbers = FIRST + settings.count(50), {}
    for beta in (0.9, 0.0):
        for name, found in apart(beta, settings.seeds, steps).items():
            directions, updates = found.mean(0).unbind(-1)
            label = f"mean and {name}" if beta else f"without momentum, {name}"
            if beta:
                about = "1 - cosine of the directions"
                numbers |= named(f"{label}: {about}", mean_interval(directions))
            about = "1 - cosine of the updates, over that of the directions"
            numbers |= named(f"{label}: {about}", ratio_interval(updates, directions))
    yield claim(
        "SI-11",
        numbers,
        f"three conflicting tasks, a network of one output, Adam by {RATE:g} on batches of "
        f"{BATCH}, steps {FIRST} to {steps} of the mean's own path, {settings.seeds} seeds: from "
        "the same state of Adam, how far another rule's direction and update are from the mean's. "
        "Far closer: less than half as far. What a rule does to the state itself, step after step, "
        "is not in it. Geometric means with 95 % t intervals",
    )
