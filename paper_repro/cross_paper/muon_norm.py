"""Is the guarantee back under Muon with the steepest common descent in its norm?"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

import mtlfunc as mf
from common.muon import descent_in_norm, factors

from ..report.decisions import Row
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import mean_interval, named
from .adam_metric import FIRST, HIDDEN, IN, TOLERANCE, Data, batch_of, problem, remedied, rise_of

CLAIMS = {
    "X-07": Row(
        "So it is under Muon: steps by MGDA's weights on J Jᵀ raise losses, those of the steepest "
        "common descent in Muon's norm do not.",
        remedied,
        when="the polar factors are exact; by Muon's own a promised rate is {Muon's Newton-Schulz "
        "steps, on the nuclear norm: smallest promised rate over the largest} of the largest",
    )
}

SEEDS, RATE, ADAMS_RATE = 8, 3e-2, 3e-3
FACTORS = {"exact polar factors": 25, "Muon's Newton-Schulz steps": 100}
"""And the steps that are judged: fewer of those that are the steepest common descent itself."""


def network(params: mf.types.Params) -> nn.Module:
    """The problem's network: Muon steps on matrices, which its leaves are already."""
    net = nn.Sequential(nn.Linear(IN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1, bias=False))
    leaves = (params["in.weight"].T, params["in.bias"], params["out.weight"].T)
    for name, leaf in zip(("0.weight", "0.bias", "2.weight"), leaves, strict=True):
        setattr(net.get_submodule(name[0]), name[2:], nn.Parameter(leaf.clone()))
    return net


def train(seed: int, *, norm: bool, exact: bool, steps: int) -> Tensor:
    """Of every step the largest rise over the largest change, and the smallest promised rate over
    the largest, both to first order, `[step, 2]`.
    """
    params, data = problem(mf.random.key(seed))
    net = network(params)
    matrices, bias = ("0.weight", "2.weight"), "0.bias"
    muon = torch.optim.Muon([net.get_parameter(x) for x in matrices], RATE, weight_decay=0.0)
    adam = torch.optim.Adam([net.get_parameter(bias)], ADAMS_RATE, betas=(0.0, 0.999))
    beside = mf.Balancer(net, mf.mean(), mf.jacobian(bias, heads="weighted"), metric=adam)

    def losses(params: mf.types.Params, batch: Data) -> Tensor:
        return (functional_call(net, params, (batch[0],)) - batch[1]).square().mean(0)

    found = []
    for moment in range(steps):
        batch = batch_of(seed, data, moment)
        before = {name: leaf.clone() for name, leaf in mf.parameters(net).items()}
        rows = mf.task_gradients(losses, before, batch)[1]
        promised = torch.zeros(3)
        with factors(exact):
            if norm:
                gramian = beside.measure(losses(dict(net.named_parameters()), batch)).gramian
                grads, promised = descent_in_norm(muon, net, rows, gramian)
            else:
                flat = torch.cat([x.flatten(1) for x in rows.values()], 1)
                weights = mf.weights(mf.mgda(), flat @ flat.T)
                grads = {name: torch.tensordot(weights, row, 1) for name, row in rows.items()}
            mf.assign_gradients(net, grads)
            muon.step()
        adam.step()
        moved = {name: leaf - before[name] for name, leaf in mf.parameters(net).items()}
        least = promised.amin() / promised.abs().amax()
        found.append(torch.stack([rise_of(rows, moved), least]))
    return torch.stack(found)


def run(settings: Settings) -> Findings:
    lengths = {kind: FIRST + settings.count(steps) for kind, steps in FACTORS.items()}
    seeds, exactly = min(SEEDS, settings.seeds), next(iter(FACTORS))
    numbers: dict[str, float] = {}
    plan = [(kind, norm) for kind in FACTORS for norm in (False, True)]
    for kind, norm in tqdm(plan, desc="Muon's norm", leave=False):
        exact, steps = kind == exactly, lengths[kind]
        runs = [train(x, norm=norm, exact=exact, steps=steps) for x in range(seeds)]
        rises, promised = torch.stack(runs)[:, FIRST:].unbind(-1)
        label = f"{kind}, on {'the nuclear norm' if norm else 'J Jᵀ'}"
        share = mean_interval((~(rises <= TOLERANCE)).double().mean(1))  # NaN is a rise
        numbers |= named(f"{label}: share of steps that raise a loss", share)
        if norm:
            numbers[f"{label}: smallest promised rate over the largest"] = float(promised.min())
    yield Claim(
        "X-07",
        numbers,
        "the problem of X-06; MGDA's weights on J Jᵀ, or those of the steepest common descent in "
        f"the nuclear norm with the momentum cancelled; torch.optim.Muon by {RATE:g} on the "
        f"matrices, Adam by {ADAMS_RATE:g} with β₁ = 0 on the bias, steps {FIRST} to "
        f"{lengths[exactly]} with exact factors, to {max(lengths.values())} with Muon's, {seeds} "
        f"seeds; the real step to first order, a rise above {TOLERANCE:.0%} of the largest "
        "change counts. 95 % t intervals over seeds",
    )
