"""How far each row of docs/from/torchjd.md and docs/from/libmtl.md is from ours:
`python docs/peers.py`.

LibMTL owns its loop. Its formulas are written out here from the files of LibMTL/weighting at commit
4336804; where they are TorchJD's, TorchJD answers.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchjd import aggregation as A
from torchjd import scalarization as S

import mtlfunc as mf
from mtlfunc.testing.families import REGULAR, jacobian

ROOT = Path(__file__).resolve().parent.parent
F64, P, LR = torch.float64, 6, 0.025
SCOPE: dict[str, Any] = vars(A) | vars(S) | {
    "mf": mf, "T": 3, "f": 0, "n": 1, "k": 1, "c": 0.4, "alpha": 2.0, "mu": 0.6, "penalty": 0.5,
    "theta": 5.0, "lr": LR, "epoch": 1, "first": 1, "then": 1, "torch": torch,
    "w": torch.tensor([0.5, 0.3, 0.2], dtype=F64), "rule": mf.aligned_mtl(),
    "weighting": A.AlignedMTLWeighting(),
}  # fmt: skip
PURE = (ROOT / "docs/how-to/pure-recipes.md").read_text(encoding="utf-8")
exec(
    PURE[PURE.index("def trimmed_mean") : PURE.index("balance = mf.balance(losses, mf.mean")], SCOPE
)
# two tasks where a random order decides, or one is exact; Krum needs more than three
TASKS = dict.fromkeys(["PCGrad", "PCGrad()", "GradVac", "GradVac()", "MGDA", 'mgda_gn="l2"'], 2)
TASKS |= {"Krum(f, n)": 7}


def drawn(seed: int, tasks: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Gradients and losses of four steps."""
    draw = torch.Generator().manual_seed(seed)
    matrices = [jacobian(REGULAR[seed % 3], tasks, seed + i, width=P + 2) for i in range(4)]
    return [(J, 0.5 + torch.rand(tasks, generator=draw, dtype=F64)) for J in matrices]


def after(losses: Tensor) -> Tensor:
    """The same losses after a step."""
    return losses * torch.tensor([0.9, 0.7, 1.1], dtype=F64)


def several(J: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same gradients in three batches."""
    return J, J + 0.1 * J.flip(1), J + 0.1


def ours(rule, steps, probe="*", of="losses", **options) -> Tensor:
    net, found = nn.Module(), []
    net.x = nn.Parameter(torch.zeros(P + 2, dtype=F64))
    balancer = mf.Balancer(net, rule, probe, **options)
    for J, L in steps:
        net.zero_grad()
        losses = [L + x @ net.x for x in several(J)]
        balancer.backward(
            {"losses": losses[0], "logs": losses[0].log(), "batches": tuple(losses)}[of]
        )
        if probe is None:
            balancer.observe(after(L))
        found.append(net.x.grad)
    return torch.stack(found)


def by(make, factor=1.0):
    """The directions of TorchJD's aggregator, weighting or scalarizer, times a factor."""

    def run(steps):
        peer = make().double()
        adam = torch.optim.Adam([*peer.parameters(), torch.zeros(1)], LR)
        for J, L in steps:
            if isinstance(peer, S.Scalarizer):
                x = L.clone().requires_grad_()
                peer(x).backward()
                yield factor * x.grad @ J
                if isinstance(peer, S.FAMO):
                    peer.update(after(L))
                getattr(peer, "step", adam.step)()
                adam.zero_grad()
            elif isinstance(peer, A.Aggregator):
                yield factor * peer(J)
            else:
                two = isinstance(peer, A.MoDoWeighting | A.SDMGradWeighting)
                first, second, third = several(J) if two else (J, J, J)
                yield peer(first @ second.mT) @ third

    return run


def learned(start, direction, objective):
    """Adam learns s, one number for each task."""

    def run(steps):
        s = torch.full((3,), start, dtype=F64, requires_grad=True)
        adam = torch.optim.Adam([s], LR)
        for J, L in steps:
            yield direction(s.detach(), J)
            (s.grad,) = torch.autograd.grad(objective(s, L), s)
            adam.step()

    return run


def stch(steps):
    for step, (J, L) in enumerate(steps):
        x, mu, nadir = L.clone().requires_grad_(), SCOPE["mu"], steps[1][1]  # the second step's
        smooth = 3 * mu * torch.logsumexp((x / nadir).log() / mu, 0)
        (x.log().sum() if step < 2 else smooth).backward()
        yield x.grad @ J


def mgda(steps, norms=lambda J: 1.0):
    """Of two, where an end of the segment is 0.999."""
    for J, _ in steps:
        g, h = rows = J / norms(J)
        weight = float((h @ (h - g)) / (g - h).square().sum())
        weight = 0.001 if weight <= 0 else 0.999 if weight >= 1 else weight
        yield torch.tensor([weight, 1 - weight], dtype=F64) @ rows


def excess(steps):
    squares, weights, first = 0.0, torch.ones(3, dtype=F64), None
    for J, _ in steps:
        squares = squares + J.square()
        risk = (J.square() / squares.sqrt().where(squares > 0, 1.0)).sum(1)
        weights = weights if first is None else weights * torch.exp(0.01 * risk / first)
        first = risk if first is None else first
        weights = 3 * weights / weights.sum()
        yield weights @ J


def db_mtl(steps):
    kept = 0.0
    for J, L in steps:
        kept = 0.1 * J / L[:, None] + 0.9 * kept
        yield (kept.norm(dim=1).amax() / kept.norm(dim=1)) @ kept


LIBMTL = {
    "EW": by(A.Sum), "PCGrad": by(A.PCGrad), "GradVac": by(A.GradVac),
    "DWA": by(S.DWA), "GLS": by(S.GeometricMean), "RLW": by(A.Random), "STCH": stch,
    "FairGrad": by(partial(A.FairGrad, SCOPE["alpha"])), "FAMO": by(partial(S.FAMO, 3)),
    "Aligned_MTL": by(A.AlignedMTL, 3), "CAGrad": by(partial(A.CAGrad, 0.4), 1 / 1.16),
    "UW": learned(-0.5, lambda s, J: 0.5 / s.exp() @ J,
                  lambda s, L: 0.5 * (L / s.exp() + s).sum()),
    "IMTL": learned(0.0, lambda s, J: A.IMTLG()(s.exp()[:, None] * J),
                    lambda s, L: (s.exp() * L - s).sum()),
    "MGDA": mgda, 'mgda_gn="l2"': partial(mgda, norms=lambda J: J.norm(dim=1, keepdim=True)),
    # Gα = 1/α, whose direction is cut to the length 1
    "Nash_MTL": lambda steps: (A.FairGrad(1.0)(J) / 3**0.5 for J, _ in steps),
    "UPGrad": by(A.UPGrad), "ExcessMTL": excess, "DB_MTL": db_mtl,
    "MoDo": by(partial(A.MoDoWeighting, gamma=1e-3)),
    "SDMGrad": by(partial(A.SDMGradWeighting, lr=5.0)),
}  # fmt: skip


def table(page: str, section: str) -> list[list[str]]:
    text = (ROOT / "docs/from" / page).read_text(encoding="utf-8")
    lines = text[text.index(f"## {section}\n") :].split("\n## ")[0].splitlines()
    return [line[2:-2].split(" | ") for line in lines if line.startswith("| ")][1:]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def pairs():
    """Theirs, the cell of ours, and which of its rules."""
    for left, right in [*table("torchjd.md", "Rules"), *table("libmtl.md", "Names")]:
        named = [x for x in spans(left) if "(" in x or x in LIBMTL]
        assert named or "](../how-to/" in right, f"a row without a test: {left}"
        named = named[-1:] if 'mgda_gn="l2"' in named else named
        yield from ((x, right, i) for i, x in enumerate(named))


def both(left: str, right: str, which: int, seed: int, key: int = 0) -> tuple[Tensor, Tensor]:
    """The directions of ours and of theirs [step, parameter]."""
    steps = drawn(seed, TASKS.get(left, 3))
    rules, options = [], {"of": "logs" if "log losses" in right else "losses"}
    options |= {"of": "batches"} if "mf.double_sampling()" in right else {}
    length = re.search(r"`([^`]+)` times as long", right)
    for span in spans(right):
        if span.startswith(("reduction=", "probe=")):
            options |= eval(f"dict({span})")
        elif re.match(r"mf\.\w+\(", span):
            value = eval(span, SCOPE)
            options |= {} if isinstance(value, mf.Rule) else {"probe": value}
            rules += [value] if isinstance(value, mf.Rule) else []
    torch.manual_seed(key)
    theirs = torch.stack([*(LIBMTL.get(left) or by(lambda: eval(left, SCOPE)))(steps)])
    scopes = [SCOPE | {"norms": J.norm(dim=1)} for J, _ in steps]
    longer = [float(eval(length[1], x)) if length else 1.0 for x in scopes]
    found = ours(rules[which], steps, key=key, **options)
    return found / torch.tensor(longer, dtype=F64)[:, None], theirs


def gaps(left: str, right: str, which: int) -> Tensor:
    """Relative differences of three draws [draw, step]."""
    found = [both(left, right, which, seed) for seed in range(3)]
    return torch.stack([(a - b).norm(dim=1) / b.norm(dim=1) for a, b in found])


if __name__ == "__main__":
    for left, right, which in pairs():
        if not left.startswith("NashMTL"):  # which needs another package
            print(f"{float(gaps(left, right, which).amax()):8.0e}  {left:24}  {right}")
