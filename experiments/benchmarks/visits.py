"""Which files of the package a live loss enters in one `Balancer.backward`, and how often it comes
back to a file that it had left.

    python -m experiments.benchmarks.visits [--all]

A profiler's hook sees every call. A call counts if the loss is among its arguments: the losses as
the user holds them, one of them, their vector, or a `Losses` or `Forward` that holds them. A stay
is a run of such calls in one file; a return is a stay in a file that had one before. `--all` counts
every call, whatever its arguments.
"""

import argparse
import sys
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import mtlfunc as mf

ROOT = Path(mf.__file__).parent
HOLDERS = ("Losses", "Forward")


def stays(everything: bool = False) -> list[tuple[str, int]]:
    """(file, calls) of every stay, in order, at the second step of a small network."""
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(200, 200), nn.ReLU()), nn.ModuleList()
    heads.extend(nn.Linear(200, 1) for _ in range(3))
    net = nn.ModuleDict({"trunk": trunk, "heads": heads})
    balancer = mf.Balancer(net, mf.mgda(), shared="trunk.*")
    entered: list[str] = []
    held: set[int] = set()

    def see(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "call" or ROOT not in path.parents or frame.f_code.co_name.startswith("<"):
            return
        given = frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount
        values = [frame.f_locals.get(name) for name in frame.f_code.co_varnames[:given]]
        flat = [x for value in values for x in (value if type(value) is list else (value,))]
        if everything or any(id(x) in held or type(x).__name__ in HOLDERS for x in flat):
            entered.append(path.relative_to(ROOT).with_suffix("").as_posix())

    for step in range(2):
        with balancer:
            z = trunk(torch.randn(8, 200))
            losses = [head(z).square().mean() for head in heads]
        held.update(map(id, (losses, *losses)))
        if step:
            sys.setprofile(see)
        try:
            balancer.backward(losses)
        finally:
            sys.setprofile(None)
    return [(name, len(list(calls))) for name, calls in groupby(entered)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--all", action="store_true", help="count every call")
    found = stays(parser.parse_args().all)
    names = dict.fromkeys(name for name, _ in found)
    for name in names:
        mine = [calls for other, calls in found if other == name]
        print(f"{name:32} {sum(mine):4} calls in {len(mine):3} stays")
    print(f"{len(names)} files, {len(found)} stays, {len(found) - len(names)} returns")


if __name__ == "__main__":
    main()
