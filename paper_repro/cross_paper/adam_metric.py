"""Is the guarantee back with the Gramian in Adam's own metric?"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import EXCEPTION
from ..report.decisions import Claims, Measured, Row, decided, ends, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import mean_interval, named, ratio_interval


@decided(
    "a promised rate is below -1e-6 of its terms, or of the largest; or if in no case the remedy's "
    f"share of steps that raise a loss lies below {EXCEPTION:.0%}, and in one above (open where "
    "the rule on J Jᵀ raises as few)"
)
def remedied(measured: Measured) -> Verdict:
    """In the metric without momentum, made safe with it, or in the norm of Muon."""
    share, kept, lost = "{}, on {}: share of steps that raise a loss", [], []
    for name in named_so(measured, "*: smallest promised rate over the largest*"):
        case, way = name.split(": smallest")[0].split(", on ")
        if measured[name] < -1e-6:
            return "does not hold"
        (low, high), plain = (ends(measured, share.format(case, x)) for x in (way, "J Jᵀ"))
        something = plain[0] > EXCEPTION.now
        kept.append(something and high < EXCEPTION.now)
        lost.append(something and low > EXCEPTION.now)
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
claim = Claims(CLAIMS)

RULES: dict[str, Callable[[], mf.Rule]] = {"MGDA": mf.mgda, "UPGrad": mf.upgrad}
WAYS = ("J Jᵀ", "J P Jᵀ", "J P Jᵀ, safe")
REMEDY = {0.0: "J P Jᵀ", 0.9: "J P Jᵀ, safe"}
"""What is to bring the guarantee back, by Adam's β₁."""
IN, HIDDEN, SAMPLES, BATCH = 8, 16, 128, 32
FIRST, RATE = 10, 3e-3  # steps that are not judged: before the first one P is the rate alone
TOLERANCE = 0.01  # of a step\'s largest change: a smaller rise is what P lags behind Adam\'s step

Data = tuple[Tensor, Tensor]


def problem(key: Tensor) -> tuple[mf.types.Params, Data]:
    """One output that three tasks want to be three different functions."""

    def normal(tag: int, *shape: int) -> Tensor:
        return mf.random.normal(mf.random.fold_in(key, tag), shape, torch.float64)

    x = normal(0, SAMPLES, IN)
    y = (x @ normal(1, IN, 3) / IN**0.5).tanh() * torch.tensor([1.0, 3.0, 0.5]).to(x)
    params = {
        "in.weight": normal(2, IN, HIDDEN) / IN**0.5,
        "in.bias": torch.zeros_like(x[0, :1]).expand(HIDDEN).clone(),
        "out.weight": normal(3, HIDDEN, 1) / HIDDEN**0.5,
    }
    return params, (x, y)


def losses(params: mf.types.Params, batch: Data) -> Tensor:
    hidden = (batch[0] @ params["in.weight"] + params["in.bias"]).tanh()
    return (hidden @ params["out.weight"] - batch[1]).square().mean(0)


class Runs(NamedTuple):
    """What Adam's steps did to the losses of their own batches, to first order."""

    rise: Tensor  # [step, seed], the largest rise over the largest change
    # [step, seed], the smallest of `Info.rates`, in units of the largest term that it is a sum of
    promised: Tensor
    loss: Tensor  # [seed], the mean over all data at the end


def train(rule: mf.Rule, beta: float, *, metric: bool, seeds: int, steps: int) -> Runs:
    """All seeds at once."""
    step = mf.descend(losses, rule, mf.jacobian(), mf.adam(RATE, (beta, 0.999)), metric=metric)
    keys = torch.arange(seeds)
    params, data = vmap(lambda seed: problem(mf.random.key(seed)))(keys)

    def batch_of(seed: Tensor, data: Data, moment: int) -> Data:
        key = mf.random.fold_in(mf.random.fold_in(mf.random.key(seed), 4), moment)
        order = mf.random.permutation(key, SAMPLES)[:BATCH]
        return data[0][order], data[1][order]

    def move(state: mf.TrainState, batch: Data) -> tuple[mf.TrainState, Tensor, Tensor]:
        rows = mf.task_gradients(losses, state.params, batch)[1]
        after, info = step.update(state, batch)
        moved = {name: leaf - state.params[name] for name, leaf in after.params.items()}
        change = sum(rows[name].flatten(1) @ moved[name].flatten() for name in rows)
        assert isinstance(change, Tensor)
        rise = change.amax(-1).clamp_min(0) / change.abs().amax(-1)
        terms = info.gramian.abs() * info.weights.abs()
        return after, rise, info.rates.amin(-1) / terms.amax((-2, -1))

    state = vmap(step.init)(params, data)
    found, forward = [], replayed(vmap(move))
    for moment in tqdm(range(steps), desc=f"Adam's metric, β₁ = {beta:g}", leave=False):
        batch = vmap(lambda seed, d, moment=moment: batch_of(seed, d, moment))(keys, data)
        state, *numbers = forward(state, batch)
        found.append(numbers)
    rise, promised = (torch.stack(x) for x in zip(*found, strict=True))
    return Runs(rise, promised, vmap(losses)(state.params, data).mean(-1))


def run(settings: Settings) -> Findings:
    steps = FIRST + settings.count(100)
    runs = {
        (name, beta, way): train(
            mf.safe(rule()) if way == "J P Jᵀ, safe" else rule(),
            beta,
            metric=way != "J Jᵀ",
            seeds=settings.seeds,
            steps=steps,
        )
        for beta in REMEDY
        for name, rule in RULES.items()
        for way in WAYS
        if way != "J P Jᵀ, safe" or beta
    }
    yield remedy(runs, steps, settings)


Every = dict[tuple[str, float, str], Runs]


def remedy(runs: Every, steps: int, settings: Settings) -> Claim:
    numbers: dict[str, float] = {}
    for (name, beta, way), found in runs.items():
        label = f"{name}, β₁ = {beta:g}, on {way}"
        share = mean_interval((found.rise[FIRST:] > TOLERANCE).double().mean(0))
        numbers |= named(f"{label}: share of steps that raise a loss", share)
        largest = mean_interval(found.rise[FIRST:].mean(0))
        numbers |= named(f"{label}: largest rise over largest change", largest)
        if way == REMEDY[beta]:
            numbers[f"{label}: smallest promised rate over the largest term"] = float(
                found.promised.min()
            )
            plain = runs[name, beta, "J Jᵀ"]
            ratio = ratio_interval(found.loss, plain.loss)
            numbers |= named(f"{label}: mean loss at the end over that on J Jᵀ", ratio)
    return claim(
        "X-06",
        numbers,
        f"three tasks on one output of a network of {IN}-{HIDDEN}-1, Adam by {RATE:g} on batches "
        f"of {BATCH}, steps {FIRST} to {steps}, {settings.seeds} seeds; the real step to first "
        f"order, a rise above {TOLERANCE:.0%} of the largest change counts. The Gramian takes P "
        "from the state before the step, while Adam's second moment has the new gradient in it: "
        "the smallest promised rate is that of P before the step. It is no better training: see "
        "the mean losses at the end. 95 % t intervals over seeds",
    )
