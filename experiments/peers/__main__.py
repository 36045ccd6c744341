"""What other libraries' aggregators answer to a dozen Jacobians, next to the papers and to ours.

    python -m experiments.peers [--peers torchjd,LibMTL,...] [--all] | python docs/outside.py

LibMTL may be installed, or a clone on PYTHONPATH. A package that is missing is a row.
"""

import argparse
import datetime
import math
import platform
import subprocess
from collections.abc import Mapping
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtlfunc as mf
from common.arguments import among
from common.tables import markdown
from mtlfunc.testing.compare import alone

from . import papers
from .libraries import PEERS, asked, losses_of, ready
from .papers import ALPHA, BETA, FAIR, SPEED, C

LIMIT = 10.0  # seconds of a call
HEADS = ("call", "right", "leaves its paper", "paper has none", "error if right", "ours")
DETAILS = ("call", "gradients", "answer", "d", "rates", "paper's d", "paper's rates", "our d")
CASES = {
    "orthogonal": [[3, 0, 0], [0, 4, 0], [0, 0, 5]],
    "in conflict": [[3, 0, 1], [-2, 3, 0], [1, -1, 2]],
    "short, 2⁻¹⁷": [[3, 0, 1], [-2, 3, 0], [1, -1, 2]],
    "1 and 2¹⁷": [[3, 0, 1], [-(2**18), 3 * 2**17, 0]],
    "g and −g": [[1, 2, 2], [-1, -2, -2]],
    "g and 3g": [[1, 2, 2], [3, 6, 6]],
    "g and −2g": [[1, 2, 2], [-2, -4, -4]],
    "g and g": [[1, 2, 2], [1, 2, 2]],
    "g and 0": [[1, 2, 2], [0, 0, 0]],
    "three at 120°": [[2, -1, -1], [-1, 2, -1], [-1, -1, 2]],
    "four in a plane": [[4, 1, 0], [1, 4, 0], [-1, 3, 0], [3, -1, 0]],
    "near duplicates": [[1, 2, 2], [1 + 2**-20, 2 - 2**-19, 2]],
}
ORDER = "torch.arange(T).repeat(T, 1)"
OURS = {
    "mgda": "mgda()", "cagrad": f"cagrad({C})", "upgrad": "upgrad()", "dualproj": "dualproj()",
    "pcgrad": f"pcgrad({ORDER})", "gradvac": f"gradvac({BETA}, {ORDER})", "imtl_g": "imtl_g()",
    "aligned_mtl": "aligned_mtl()", "nash_mtl": "nash_mtl(max_norm=1.0)", "config": "config()",
    "fairgrad": f"fairgrad({FAIR})", "gradnorm": f"gradnorm({ALPHA}, speed, optimizer=sgd)",
}  # fmt: skip
SUMS = ("config", "gradnorm", "gradvac", "pcgrad")  # whose papers sum where others average


def jacobian(name: str) -> Tensor:
    precise = torch.float32 if name == "near duplicates" else torch.float64
    return torch.tensor(CASES[name], dtype=precise) * (2.0**-17 if "short" in name else 1.0)


def ours(method: str, J: Tensor) -> Any:
    """Our direction at the third step; None for what reads residuals."""
    net, speed = torch.nn.Module(), SPEED / float(J.norm(dim=1).amax())
    net.x = x = torch.nn.Parameter(J.new_zeros(J.shape[1]))
    if method not in OURS:
        return None
    rule = eval(OURS[method], vars(mf) | {"torch": torch, "T": len(J), "speed": speed})
    balancer = mf.Balancer(net, rule, reduction="sum" if method in SUMS else "mean")
    for now in losses_of(J).to(J):
        net.zero_grad()
        balancer.backward(now + J @ x)
    return None if x.grad is None else x.grad.double()


def size(d: Tensor, J: Tensor) -> float:
    return float(d.norm()) if d.norm() > 1e-9 * J.norm() else 0.0


def error(found: Tensor, d: Tensor, J: Tensor) -> float:
    """As a share of the paper's length, or of the shortest gradient where that is 0."""
    least = min(n for n in J.norm(dim=1).tolist() if n)
    return float((found - d).norm()) / (size(d, J) or least)


def judged(found: Any, d: Tensor | None, J: Tensor) -> str:
    """How an answer leaves the paper's d; nothing where it does not."""
    if not isinstance(found, Tensor):
        return found if isinstance(found, str) else "does not finish in ten seconds"
    if not found.isfinite().all():
        return "NaN" if found.isnan().any() else "infinite"
    up = (J @ found < -1e-4 * J.norm(dim=1) * found.norm()) & (found.norm() > 1e-9 * J.norm())
    raises = [f"raises loss {t + 1}" for t in up.nonzero().flatten().tolist()]
    if d is None or error(found, d, J) <= 1e-3:
        return ", ".join(raises) if d is None else ""
    own, long = float(found.norm()), size(d, J)
    if not long:
        return ", ".join([f"length {own:.2g}, not 0", *raises])
    if own <= 1e-3 * long:
        return f"length {own:.2g}, not {long:.2g}"
    angle = math.degrees(math.acos(max(-1.0, min(1.0, float(found @ d) / own / long))))
    turned = [f"{angle:.2g}° away"] * (angle > 0.05)
    turned += [f"{own / long:.4g} times as long"] * (abs(own / long - 1) > 1e-3)
    return ", ".join(turned + raises * bool((J @ d >= -1e-9 * J.norm() * long).all()))


def numbers(values: Any) -> str:
    if values is None:
        return "–"
    return " ".join(
        f"{x:.2g}" for x in values.where(~(values.abs() <= 1e-12 * values.abs().amax()), 0.0)
    )


def compared(module: str, peer: Any, calls: Mapping[str, str], every: bool = False) -> Any:
    """A line a call, and lines of the Jacobians at which it leaves its paper, or of all."""
    lines, details = [], []
    for call, method in calls.items():
        kinds, right, off = [], [0.0], [0.0]
        given = [(peer, call, J.tolist(), J.dtype == torch.float64) for J in map(jacobian, CASES)]
        answers = alone(asked, given, LIMIT, len(CASES), partial(ready, module))
        for name, said in zip(CASES, answers, strict=True):
            J, own = jacobian(name).double(), ours(method, jacobian(name))
            exact: Any = partial(getattr(papers, method), J, losses_of(J))
            found = torch.tensor(said).double() if isinstance(said, list) else said
            d: Any = exact(found if isinstance(found, Tensor) else J.mean(0))
            words = judged(found, d, J)
            kinds.append("none" if d is None else "left" if words else "right")
            right += [error(found, d, J)] if d is not None and not words else []
            off += [] if d is None or own is None else [error(own, exact(own), J)]
            if not isinstance(found, Tensor) and details and details[-1][::2] == [call, words]:
                details[-1][1] += f", {name}"
            elif not isinstance(found, Tensor):
                details.append([call, name, words])
            elif words or every:
                more = (found, J @ found, *((None, None) if d is None else (d, J @ d)), own)
                words = words or ("right" if d is not None else "the paper has none")
                details.append([call, name, words, *map(numbers, more)])
        counts = [str(kinds.count(x)) for x in ("right", "left", "none")]
        tail = f"{max(off):.0e}" if method in OURS else "–"
        lines.append([call, *counts, f"{max(right):.0e}", tail])
    return lines, details


def label(package: str, spec: ModuleSpec) -> str:
    """With its version, or the commit of a clone."""
    folder = Path(str(spec.origin)).parents[1]
    if not (folder / ".git").exists():
        return f"{package} {version(package)}"
    said = subprocess.check_output(["git", "-C", folder, "rev-parse", "--short=7", "HEAD"])
    return f"{package} at {said.decode().strip()}"


def main(argv: list[str] | None = None) -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser("python -m experiments.peers", description=__doc__)
    parser.add_argument("--peers", type=among([*PEERS]), default=PEERS, help=", ".join(PEERS))
    parser.add_argument("--all", action="store_true", help="also the answers that are right")
    given = parser.parse_args(argv)
    lines, details = [], []
    for package in given.peers:
        module, peer, calls = PEERS[package]
        if (spec := find_spec(module.split(".")[0])) is None:
            lines.append([f"{package} is not installed"])
            continue
        for rows, more in zip(
            (lines, details), compared(module, peer, calls, given.all), strict=True
        ):
            rows += [[f"{label(package, spec)}: `{x}`", *cells] for x, *cells in more]
    print(f"{datetime.date.today()}, Python {platform.python_version()}, torch {version('torch')}.")
    for heads, rows in ((HEADS, lines), (DETAILS, details)):
        print("", markdown(heads, [[*x, *["–"] * (len(heads) - len(x))] for x in rows]), sep="\n")


if __name__ == "__main__":
    main()
