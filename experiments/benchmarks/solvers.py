"""Solvers of the small problems against each other: time a problem and worst certificate, on
thirteen hard families.

    python -m experiments.benchmarks.solvers [--out DIR] [--seconds S] [--instances N] [--tasks 2 8
    ...] [--batches 1 64 ...]

Writes solvers.json (after every cell; a run that was stopped goes on where it was), solvers.md and
solvers.png. Time: the whole call from Gramians to weights, problems of all families mixed; solvers
that take one problem at a time are looped over as many as fit in the time allowed. Accuracy:
`certify` on every instance that was solved, in float64. On a GPU, ours and TorchJD's also run
there, the active-set kernel as a replayed CUDA graph, too.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

from experiments.benchmarks.families import FAMILIES, gramians
from experiments.benchmarks.files import write
from mtlfunc import solvers

mpl.use("Agg")
import matplotlib.pyplot as plt

C = 0.5
KINDS = ("min_norm", "cagrad", "dual_cone", "upgrad")
Weigh = Callable[[Tensor], Tensor]


def problem(kind: str, g: Tensor, w: Tensor | None = None) -> Any:
    if kind == "min_norm":
        return solvers.min_norm(g)
    if kind == "cagrad":
        # a number would be copied to the GPU, which no CUDA graph can do
        return solvers.cagrad(g, g.new_full((), C) if g.is_cuda else C)
    return solvers.dual_cone(g, torch.full_like(g[0], 1 / len(g)) if w is None else w)


def ours(make: Callable[[], Any], kind: str) -> Weigh:
    """Through the public call, for one Gramian."""
    solve = make()
    if kind == "upgrad":
        return lambda g: vmap(lambda w: solve(problem(kind, g, w)).weights)(
            torch.eye(len(g), dtype=g.dtype, device=g.device) / len(g)
        ).sum(0)
    return lambda g: solve(problem(kind, g)).weights


def torchjd(kind: str) -> Weigh:
    from torchjd import aggregation  # a test dependency

    make = {
        "min_norm": aggregation.MGDAWeighting,
        "cagrad": lambda: aggregation.CAGradWeighting(c=C),
    }
    make |= {"dual_cone": aggregation.DualProjWeighting, "upgrad": aggregation.UPGradWeighting}
    return make[kind]()


def plain_cvxpy(kind: str) -> Weigh:
    """The problem as one would write it, built anew for every Gramian, Clarabel at its default
    tolerances.
    """

    def weigh(g: Tensor) -> Tensor:
        count = len(g)
        values, vectors = np.linalg.eigh(g.numpy() / float(g.diagonal().max()))
        root = np.sqrt(values.clip(0))[:, None] * vectors.T
        w = cp.Variable(count, nonneg=True)
        mean = np.full(count, 1 / count)
        if kind == "dual_cone":
            cp.Problem(cp.Minimize(cp.sum_squares(root @ (w + mean)))).solve(solver=cp.CLARABEL)
            return torch.from_numpy(mean + np.asarray(w.value))
        center = root @ mean
        objective = (
            cp.sum_squares(root @ w)
            if kind == "min_norm"
            else center @ root @ w + C * np.linalg.norm(center) * cp.norm(root @ w)
        )
        cp.Problem(cp.Minimize(objective), [cp.sum(w) == 1]).solve(solver=cp.CLARABEL)  # pyright: ignore[reportArgumentType]
        answer = np.asarray(w.value).clip(0)
        answer /= answer.sum()
        if kind == "min_norm":
            return torch.from_numpy(answer)
        # g_w = 0: d cannot be read off the dual; NaN counts as failed
        with np.errstate(divide="ignore", invalid="ignore"):
            return torch.from_numpy(
                mean + C * np.linalg.norm(center) / np.linalg.norm(root @ answer) * answer
            )

    return weigh


def quadprog(kind: str) -> Weigh:
    """Goldfarb and Idnani's dual method; raises for a singular Gramian."""
    from quadprog import solve_qp  # a test dependency

    def weigh(g: Tensor) -> Tensor:
        count = len(g)
        matrix = g.numpy() / float(g.diagonal().max())
        if kind == "dual_cone":
            return torch.from_numpy(
                solve_qp(matrix, np.zeros(count), np.eye(count), np.full(count, 1 / count))[0]
            )
        return torch.from_numpy(
            solve_qp(
                matrix,
                np.zeros(count),
                np.vstack([np.ones(count), np.eye(count)]).T,
                np.eye(count + 1)[0],
                1,
            )[0]
        )

    return weigh


# name -> (problems it takes, most tasks, whether it vmaps and runs on a GPU, how to make it)
SOLVERS: dict[str, tuple[tuple[str, ...], int, bool, Callable[[str], Weigh]]] = {
    "active_set": (KINDS, 128, True, lambda kind: ours(solvers.active_set, kind)),
    "auto": (KINDS, 128, True, lambda kind: ours(solvers.auto, kind)),
    "faces": (KINDS[:3], 3, True, lambda kind: ours(solvers.faces, kind)),
    "frank_wolfe(1000)": (KINDS[:2], 128, True, lambda kind: ours(solvers.frank_wolfe, kind)),
    "projected_gradient(1000)": (
        KINDS[:3],
        128,
        True,
        lambda kind: ours(solvers.projected_gradient, kind),
    ),
    "cvx (DPP, 1e-12)": (KINDS[:3], 128, False, lambda kind: ours(solvers.cvx, kind)),
    "cvxpy + Clarabel": (KINDS[:3], 128, False, plain_cvxpy),
    "quadprog": (("min_norm", "dual_cone"), 128, False, quadprog),
    "TorchJD": (KINDS, 128, False, torchjd),
}


def mixed(count: int, batch: int) -> Tensor:
    """Gramians of all families in turn, as many of each as are needed."""
    each = -(-batch // len(FAMILIES))
    return torch.stack([gramians(name, count, each, 1) for name in FAMILIES], 1).flatten(0, 1)[
        :batch
    ]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_a_problem(
    weigh: Weigh, batched: bool, g: Tensor, seconds: float
) -> tuple[float, float, int, int]:
    """Median and fastest time a problem, how many problems were timed together, how many failed."""
    if batched and len(g) > 1:
        call, size = vmap(weigh), len(g)
        call(g)
        synchronize(g.device)
        times, end = [], time.perf_counter() + seconds
        while len(times) < 3 or (time.perf_counter() < end and len(times) < 100):
            start = time.perf_counter()
            call(g)
            synchronize(g.device)
            times.append((time.perf_counter() - start) / size)
        return float(np.median(times)), min(times), size, 0
    failed, times, end = 0, [], time.perf_counter() + seconds
    pool = list(g) if len(g) > 1 else list(mixed(g.shape[-1], len(FAMILIES)).to(g.device))
    number = 0
    while number < 3 or (time.perf_counter() < end and number < max(1000, len(g))):
        one = pool[number % len(pool)]
        number += 1
        start = time.perf_counter()
        try:
            weigh(one)
        except (ValueError, RuntimeError, cp.SolverError):
            failed += 1
            continue
        synchronize(g.device)
        times.append(time.perf_counter() - start)
    return (
        (float(np.median(times)), min(times), len(times), failed)
        if times
        else (float("nan"), float("nan"), 0, failed)
    )


def replay_seconds(weigh: Weigh, g: Tensor, seconds: float) -> float:
    """Median time a problem when the call is captured once in a CUDA graph and replayed: the work
    on the GPU without Python's share.
    """
    call, given = (vmap(weigh), g) if len(g) > 1 else (weigh, g[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(given)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 100):
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / len(g))
    return float(np.median(times))


def audit(
    weigh: Weigh, kind: str, batched: bool, problems: dict[str, Tensor], seconds: float
) -> dict[str, dict[str, float]]:
    """For each family: worst kappa away from stationarity, worst relative gap and infeasibility,
    instances solved and failed.
    """
    table = {}
    for name, g in problems.items():
        end = time.perf_counter() + seconds / len(FAMILIES)
        answers, kept, failed = [], [], 0
        if batched:
            answers, kept = list(vmap(weigh)(g).cpu()), list(g)
        else:
            for one in g:
                try:
                    answers.append(weigh(one).detach().cpu().double())
                    kept.append(one)
                except (ValueError, RuntimeError, cp.SolverError):
                    failed += 1
                if time.perf_counter() > end:
                    break
        row: dict[str, float] = {"solved": len(kept), "failed": failed}
        if kept:
            row |= measure(kind, torch.stack(kept).cpu(), torch.stack(answers))
        table[name] = row
    return table


def measure(kind: str, g: Tensor, w: Tensor) -> dict[str, float]:
    n = g.diagonal(dim1=-2, dim2=-1).sqrt()
    magnitude = (n * w.abs()).sum(-1)
    rates = torch.einsum("bij,bj->bi", g, w)
    if kind == "upgrad":  # a sum of projections: no conflict is what is left to certify
        worst = (rates / n.where(n > 0, 1.0)).amin(-1) / magnitude
        return {
            "kappa": 1 + float(worst.amin().clamp_max(0)),
            "gap": float((-worst).amax().clamp_min(0)),
            "infeasibility": 0.0,
        }
    found = vmap(lambda g, w: tuple(solvers.certify(problem(kind, g), w)))(g, w)
    certificate = solvers.Certificate(*found)
    clear = (
        (w * rates).sum(-1) > 1e-6 * magnitude**2 if kind == "min_norm" else ~certificate.stationary
    )
    kappa = float(certificate.kappa[clear].amin()) if bool(clear.any()) else float("nan")
    return {
        "kappa": kappa,
        "gap": float(certificate.relative_gap.amax()),
        "infeasibility": abs(float(certificate.infeasibility.amax())),
    }


def worst(row: dict[str, Any], key: str) -> float:
    values = [
        family[key]
        for family in row["families"].values()
        if key in family and not np.isnan(family[key])
    ]
    return (min(values) if key == "kappa" else max(values)) if values else float("nan")


def tables(rows: list[dict[str, Any]], machine: str) -> str:
    lines = ["# Solvers of the small problems", "", machine, ""]
    graphs = any("graph" in row for row in rows)
    lines += [
        "µs a problem: median (fastest). kappa: the worst of all families, away from "
        "stationarity; gap and infeasibility: the worst of all.",
        "",
    ]
    for kind in KINDS:
        chosen = [row for row in rows if row["kind"] == kind]
        if not chosen:
            continue
        lines += [
            f"## {kind}",
            "",
            "| solver | device | T | batch | µs a problem | worst kappa | worst gap | "
            "infeasibility | failed |" + " µs, CUDA graph |" * graphs,
            "|---|---|---|---|---|---|---|---|---|" + "---|" * graphs,
        ]
        for row in chosen:
            failed = sum(int(family["failed"]) for family in row["families"].values())
            solved = sum(int(family["solved"]) for family in row["families"].values())
            lines.append(
                f"| {row['solver']} | {row['device']} | {row['tasks']} | {row['batch']} | "
                f"{1e6 * row['median']:.3g} ({1e6 * row['fastest']:.3g}) "
                f"| {worst(row, 'kappa'):.10g} | {worst(row, 'gap'):.1e} | "
                f"{worst(row, 'infeasibility'):.1e} | {failed} of {failed + solved} |"
                + (f" {1e6 * row['graph']:.3g} |" if "graph" in row else " |" * graphs)
            )
        lines.append("")
    return "\n".join(lines)


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    panels, axes = plt.subplots(
        1,
        len(kinds),
        figsize=(4.2 * len(kinds), 4.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    colours = {name: f"C{i}" for i, name in enumerate(SOLVERS)}
    for axis, kind in zip(axes[0], kinds, strict=True):
        for row in rows:
            if row["kind"] == kind and row["batch"] == 1 and np.isfinite(row["median"]):
                size = 12 + 14 * np.log2(row["tasks"])
                marker = "o" if row["device"] == "cpu" else "^"
                colour, failed = (
                    colours[row["solver"]],
                    any(family["failed"] for family in row["families"].values()),
                )
                face = "none" if failed else colour
                axis.scatter(
                    1e6 * row["median"],
                    max(worst(row, "gap"), 1e-18),
                    s=size,
                    marker=marker,
                    facecolors=face,
                    edgecolors=colour,
                    alpha=0.75,
                )
        axis.set(xscale="log", yscale="log", xlabel="time of one problem (µs)", title=kind)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("worst normalised gap, 13 families")
    used = [name for name in SOLVERS if any(row["solver"] == name for row in rows)]
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=colours[name], label=name)
        for name in used
    ]
    panels.legend(
        handles=handles,
        loc="outside lower center",
        ncols=5,
        frameon=False,
        title="a dot a number of tasks, the larger the more; hollow: some problems were not "
        "solved at all, and are left out",
    )
    panels.savefig(path.with_suffix(".part.png"), dpi=150)
    plt.close(panels)
    os.replace(path.with_suffix(".part.png"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="time allowed for each cell's timing, and again for its audit",
    )
    parser.add_argument(
        "--instances",
        type=int,
        default=64,
        help="problems audited, of each family and number of tasks",
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 8, 32, 64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 4096])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=list(SOLVERS))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    record = given.out / "solvers.json"
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {given.seconds:g} s a cell"
    )
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    rows: list[dict[str, Any]] = json.loads(record.read_text())["rows"] if record.exists() else []
    done = {(row["kind"], row["solver"], row["device"], row["tasks"], row["batch"]) for row in rows}
    cells = [
        (kind, name, device, count)
        for kind in given.kinds
        for name in given.solvers
        for device in (
            ["cpu", "cuda"]
            if torch.cuda.is_available() and (SOLVERS[name][2] or name == "TorchJD")
            else ["cpu"]
        )
        for count in given.tasks
        if kind in SOLVERS[name][0] and count <= SOLVERS[name][1]
    ]
    try:
        for kind, name, device, count in (bar := tqdm(cells)):
            bar.set_description(f"{kind} {name} T={count} {device}")
            _, _, batched, make = SOLVERS[name]
            # A thousand eager iterations on thousands of large problems need minutes and gigabytes
            # and show nothing new.
            batches = [
                b
                for b in given.batches
                if (kind, name, device, count, b) not in done
                and (
                    b * count**2 <= 2**20 or name in ("active_set", "auto", "faces") or not batched
                )
            ]
            batches = [b for b in batches if b == 1 or batched]
            batches = [b for b in batches if kind != "upgrad" or b == 1]
            if not batches:
                continue
            weigh = make(kind)
            problems = {
                family: gramians(family, count, given.instances, 2).to(device)
                for family in FAMILIES
            }
            families = audit(weigh, kind, batched and kind != "upgrad", problems, given.seconds)
            for batch in batches:
                g = mixed(count, batch).to(device)
                median, fastest, timed, failed = seconds_a_problem(weigh, batched, g, given.seconds)
                row: dict[str, Any] = {
                    "kind": kind,
                    "solver": name,
                    "device": device,
                    "tasks": count,
                    "batch": batch,
                    "median": median,
                    "fastest": fastest,
                }
                if device == "cuda" and name in ("active_set", "auto"):
                    row["graph"] = replay_seconds(weigh, g, given.seconds)
                rows.append(row | {"timed": timed, "failed": failed, "families": families})
                write(record, json.dumps({"machine": machine, "rows": rows}, indent=1))
    except KeyboardInterrupt:
        tqdm.write(f"stopped; {len(rows)} cells are in {record}, the next run goes on from there")
    write(given.out / "solvers.md", tables(rows, machine))
    if rows:
        figure(rows, given.out / "solvers.png")


if __name__ == "__main__":
    main()
