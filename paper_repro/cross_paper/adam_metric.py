"""Is the guarantee back with the Gramian in Adam's own metric?"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import EXCEPTION
from ..report.decisions import Measured, Row, decided, ends, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import mean_interval, named
from ..since.common import normal


@decided(
    "in no case the remedy's promised rates are above -1e-6 of their terms, or of the largest, and "
    f"its share of steps that raise a loss lies below {EXCEPTION:.0%}; and in one a rate or the "
    "share is on the other side (open where the rule on J Jᵀ raises as few)"
)
def remedied(measured: Measured) -> Verdict:
    """In the metric without momentum, made safe with it, or in the norm of Muon."""
    share, kept, lost = "{}, on {}: share of steps that raise a loss", [], []
    for name in named_so(measured, "*: smallest promised rate over the largest*"):
        case, way = name.split(": smallest")[0].split(", on ")
        (low, high), plain = (ends(measured, share.format(case, x)) for x in (way, "J Jᵀ"))
        something, broken = plain[0] > EXCEPTION.now, measured[name] < -1e-6
        kept.append(something and not broken and high < EXCEPTION.now)
        lost.append(something and (broken or low > EXCEPTION.now))
    return verdict_of(kept, lost)


CLAIMS = {
    "X-06": Row(
        "X-05 has a remedy: on the Gramian in Adam's own metric the guarantee of MGDA and UPGrad "
        "is back without momentum, and with it by the least change of the step.",
        remedied,
        when="without momentum; with it, after the least change of the step, a share of "
        "{UPGrad, β₁ = 0.9, on J P Jᵀ, safe: share of steps that raise a loss} of UPGrad's steps "
        "raise a loss",
    )
}

RULES: dict[str, Callable[[], mf.Rule]] = {"MGDA": mf.mgda, "UPGrad": mf.upgrad}
REMEDY = {0.0: "J P Jᵀ", 0.9: "J P Jᵀ, safe"}
"""What is to bring the guarantee back, by Adam's β₁."""
IN, HIDDEN, SAMPLES, BATCH = 8, 16, 128, 32
FIRST, RATE = 10, 3e-3  # steps that are not judged: before the first one P is the rate alone
TOLERANCE = 0.01  # of a step's largest change: a smaller rise is what P lags behind Adam's step

Data = tuple[Tensor, Tensor]


def problem(key: Tensor) -> tuple[mf.types.Params, Data]:
    """One output that three tasks want to be three different functions."""
    x = normal(key, 0, SAMPLES, IN)
    y = (x @ normal(key, 1, IN, 3) / IN**0.5).tanh() * torch.tensor([1.0, 3.0, 0.5]).to(x)
    params = {
        "in.weight": normal(key, 2, IN, HIDDEN) / IN**0.5,
        "in.bias": torch.zeros_like(x[0, :1]).expand(HIDDEN).clone(),
        "out.weight": normal(key, 3, HIDDEN, 1) / HIDDEN**0.5,
    }
    return params, (x, y)


def batch_of(seed: Tensor | int, data: Data, moment: int) -> Data:
    key = mf.random.fold_in(mf.random.fold_in(mf.random.key(seed), 4), moment)
    order = mf.random.permutation(key, SAMPLES)[:BATCH]
    return data[0][order], data[1][order]


def losses(params: mf.types.Params, batch: Data) -> Tensor:
    hidden = (batch[0] @ params["in.weight"] + params["in.bias"]).tanh()
    return (hidden @ params["out.weight"] - batch[1]).square().mean(0)


def rise_of(rows: mf.types.Params, moved: mf.types.Params) -> Tensor:
    """The largest rise of a loss by a step, over the largest change, to first order."""
    change = torch.stack([rows[x].flatten(1) @ moved[x].flatten() for x in rows]).sum(0)
    return change.amax().clamp_min(0) / change.abs().amax()


def train(
    rule: mf.Rule, beta: float, *, metric: bool, seeds: int, steps: int
) -> tuple[Tensor, Tensor]:
    """What Adam's steps did to the losses of their own batches, `[step, seed]`: `rise_of`, and the
    smallest of `Info.rates` in units of the largest term that it is a sum of.
    """
    step = mf.descend(losses, rule, mf.jacobian(), mf.adam(RATE, (beta, 0.999)), metric=metric)
    keys = torch.arange(seeds)
    params, data = vmap(lambda seed: problem(mf.random.key(seed)))(keys)

    def move(state: mf.TrainState, batch: Data) -> tuple[mf.TrainState, Tensor, Tensor]:
        rows = mf.task_gradients(losses, state.params, batch)[1]
        after, info = step.update(state, batch)
        moved = {name: leaf - state.params[name] for name, leaf in after.params.items()}
        terms = info.gramian.abs() * info.weights.abs()
        return after, rise_of(rows, moved), info.rates.amin(-1) / terms.amax((-2, -1))

    state = vmap(step.init)(params, data)
    found, forward, batches = [], replayed(vmap(move)), vmap(batch_of, (0, 0, None))
    for moment in tqdm(range(steps), desc=f"Adam's metric, β₁ = {beta:g}", leave=False):
        state, *numbers = forward(state, batches(keys, data, moment))
        found.append(torch.stack(numbers))
    rise, promised = torch.stack(found, 1)
    return rise, promised


def run(settings: Settings) -> Findings:
    seeds, steps = settings.seeds, FIRST + settings.count(100)
    numbers: dict[str, float] = {}
    for (beta, remedy), (name, rule) in itertools.product(REMEDY.items(), RULES.items()):
        for way in ("J Jᵀ", remedy):
            own = mf.safe(rule()) if "safe" in way else rule()
            rise, promised = train(own, beta, metric=way == remedy, seeds=seeds, steps=steps)
            label = f"{name}, β₁ = {beta:g}, on {way}"
            share = mean_interval((rise[FIRST:] > TOLERANCE).double().mean(0))
            numbers |= named(f"{label}: share of steps that raise a loss", share)
            if way == remedy:
                least = float(promised.min())
                numbers[f"{label}: smallest promised rate over the largest term"] = least
    yield Claim(
        "X-06",
        numbers,
        f"three tasks on one output of a network of {IN}-{HIDDEN}-1, Adam by {RATE:g} on batches "
        f"of {BATCH}, steps {FIRST} to {steps}, {seeds} seeds; the real step to first order, a "
        f"rise above {TOLERANCE:.0%} of the largest change counts. The smallest promised rate is "
        "that of P before the step. 95 % t intervals over seeds",
    )
