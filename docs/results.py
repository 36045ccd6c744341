"""Write docs/benchmarks.md, docs/claims.md, their figures and docs/record/ from what ran.

`python docs/results.py`, after the commands below, each alone on the machine if it can be had; each
table of a benchmark says the load.

    python -m paper_repro
    python -m paper_repro --draw 1
    TORCHINDUCTOR_CACHE_DIR=$(mktemp -d) ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE \\
        python -m paper_repro --out paper_repro/out/other-arithmetic
    python -m experiments.multimnist (the first command of experiments/standins.py)
    python -m experiments.benchmarks.solvers
    python -m experiments.benchmarks.gramian
    python -m experiments.benchmarks.weights
    python -m experiments.benchmarks.steps --out experiments/benchmarks/out
    python -m experiments.benchmarks.memory
    python -m experiments.benchmarks.weightings --out experiments/benchmarks/out
    python -m paper_repro --full (hours, also question by question with --only)
    python -m experiments.arena
    python -m experiments.benchmarks.gpu (on a machine with a CUDA device; `python docs/results.py
        gpu PATH/gpu.json` then keeps its numbers in experiments/benchmarks/gpu.json)

`python docs/results.py claims` writes the claims alone, after the first two commands; `python
docs/results.py questions [FOLDER]` puts single questions that ran (`--only`) in their place of the
default run, and leaves out what other runs have of an older form of them; `python
docs/results.py arithmetic` keeps the third, a run that rounds as other processors may (with a cache
of its own, as compiled code of the usual setting is refused there); `python docs/results.py device
[FOLDER]` keeps one of `python -m paper_repro --device cuda`; `python docs/results.py images FOLDER`
one of `python -m experiments.multimnist --data …`; `python docs/results.py ledger`
writes the claims again if the ledger's sentences, modules or decisions changed, or after `python -m
experiments.standins`, with the other verdicts as they stand; a table's name (`--help` lists them;
`full` takes over what `--full` has answered, and writes the verdicts that this changes), `search`
(of `python -m experiments.auxiliary --search`) or `physics` writes that table alone. No number is
typed by hand, and a record that mixes settings is refused.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from docs import front, full, images, molecules, physics, power, versions
from docs.blocks import bullets, day, marked, paragraph, replaced
from docs.gradnorm import gradnorm_part
from docs.verdicts import (
    REPRODUCTIONS,
    ROOT,
    check_draw,
    claims_block,
    judged,
    judged_counts,
    keep_arithmetic,
    keep_device,
    keep_questions,
    keep_runs,
    of_default,
    standing,
    write_verdicts,
)
from experiments.benchmarks import (
    gpu_report,
    gramian,
    memory,
    record,
    steps,
    weightings,
    weights,
)
from experiments.benchmarks.networks import PROBLEMS
from experiments.benchmarks.record import described
from paper_repro.report import images as judged_images
from paper_repro.report import standins

DIGITS = ROOT / "experiments" / "multimnist" / "out" / "rules"
ARENA = ROOT / "experiments" / "arena" / "out"
MULTIMNIST = ROOT / "experiments" / "multimnist" / "out" / "default-mnist"
BENCHMARKS = ROOT / "experiments" / "benchmarks" / "out"
KINDS = {
    "min_norm": "min-norm (MGDA)",
    "cagrad": "CAGrad",
    "dual_cone": "dual cone (DualProj)",
    "upgrad": "UPGrad",
}


def load(path: Path) -> Any:
    """What an experiment left in a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        cure = "the commands that write it are at the top of docs/results.py"
        raise SystemExit(f"{path} cannot be read ({error}); {cure}") from error


SOLVERS = {
    ("active_set", 1): "`active_set`",
    ("active_set", 4096): "`active_set`, batch 4,096",
    ("TorchJD (defaults)", 1): "TorchJD, defaults",
}
"""Solver and batch of every column that the page shows."""


def solver_table(rows: list[record.Row]) -> str:
    """µs a problem and worst normalised gap on a CPU."""
    found = {(row["kind"], row["tasks"], row["solver"], row["batch"]): row for row in rows}
    lines = [
        [name, str(tasks), *(_solver_cell(found.get((kind, tasks, *column))) for column in SOLVERS)]
        for kind, name in KINDS.items()
        for tasks in sorted({row["tasks"] for row in rows})
    ]
    return record.markdown("", ["problem", "T", *SOLVERS.values()], lines)


def _solver_cell(row: record.Row | None) -> str:
    if row is None or not row["median"]:
        return "–"
    time = 1e6 * row["median"]
    said = ", ".join(
        [f"{row['gap']:.0e}", *(f"{row[x]} {x}" for x in ("failed", "zero") if row[x])]
    )
    return f"{f'{time:,.3g}' if time < 1000 else f'{time:,.0f}'} ({said})"


def slower_solvers(rows: list[record.Row]) -> str:
    """Where a peer's median is below ours, one problem at a time."""
    found = {(row["kind"], row["tasks"], row["solver"]): row for row in rows if row["batch"] == 1}
    said = []
    for (kind, tasks, solver), row in found.items():
        ours = found.get((kind, tasks, "active_set"))
        if ours and solver in {name for name, _ in SOLVERS} and row["median"]:
            ratio = ours["median"] / row["median"]
            if ratio > 1:
                said.append(f"{KINDS[kind]}, T = {tasks} ({solver}, ours takes {ratio:.1f} times)")
    return f"A peer is faster on: {'; '.join(said) or 'none'}."


def gramian_table(rows: list[record.Row]) -> str:
    """Time of a Gramian in units of one mean gradient, and the peak memory."""
    lines, ways = [], [name for name in gramian.CONTENDERS if name != gramian.FLOOR]
    for family in PROBLEMS:
        case = {row["method"]: row for row in rows if row["family"] == family and "median" in row}
        if not case:
            continue
        floor = case.pop(gramian.FLOOR)
        cells = [
            f"{case[way]['median'] / floor['median']:.3g} ({case[way]['memory'] / 2**20:.3g})"
            if way in case
            else "–"
            for way in ways
        ]
        lines.append([floor["case"], f"{1e3 * floor['median']:.3g} ms", *cells])
    return record.markdown("", ["Gramian", gramian.FLOOR, *ways], lines)


def bars_missed(rows: list[record.Row]) -> str:
    """How many of the engine's bars on a CPU are met, and which are not."""
    bars = gramian.against_bars(rows)
    missed = [
        f"{bar['case']}: {bar['ratio']:.3g} of the {bar['against']}'s, at most {bar['limit']:.3g} "
        "wanted"
        for bar in bars
        if bar["ratio"] > bar["limit"]
    ]
    met = f'Of our {len(bars)} targets ("bars") on a CPU {len(bars) - len(missed)} are met'
    return f"{met}; missed:\n\n- {f'{chr(10)}- '.join(missed)}" if missed else f"{met}."


def arena_lines(result: dict) -> str:
    """Average ranks by mean score, and what the intervals say."""
    ranks = result["ranks"]["mean"]
    listed = "; ".join(
        f"{row['rule']} {row['rank']:.1f} [{row['problems']['low']:.1f}, "
        f"{row['problems']['high']:.1f}]"
        for row in ranks
    )
    against = [
        note for note in result["notes"] if note.startswith(("Average ranks", "Against mean"))
    ]
    return f"{listed}.\n\n{' '.join(against)}"


def section() -> str:
    """All results."""
    parts = [
        run_block(of_default()),
        claims_block(standing()),
        digits_part(),
        *benchmark_parts(),
        arena_block(),
        notes_block(),
    ]
    return "\n\n".join(parts)


def run_block(claims: dict[str, dict]) -> str:
    """What the page shows of the default run next to its verdicts."""
    return marked("run", gradnorm_part(claims), mgda_ub_part(claims))


def mgda_ub_part(claims: dict[str, dict]) -> str:
    """The bound's weights against exact ones."""
    measured = claims["SU-34"]["measured"]
    bound, exact = (
        [measured[f"linear encoder, {method}: rate of task {task}"] for task in (1, 2)]
        for method in ("MGDA-UB", "MGDA")
    )
    return paragraph(
        f"""**MGDA-UB's counterexample**: with the bound's weights the tasks' rates are
        ({bound[0]:g}, {bound[1]:g}), so one loss rises; with exact MGDA's ({exact[0]:g},
        {exact[1]:g})."""
    )


def digits_part() -> str:
    """The table of the digits, and what its intervals say."""
    lines = (DIGITS / "table.md").read_text(encoding="utf-8").splitlines()
    results = load(DIGITS / "results.json")
    # without the last column, of time, which other tables have from an idle machine
    table = "\n".join(f"{x.rsplit('|', 2)[0]}|" for x in lines if x.startswith("|"))
    said = next(line for line in lines if line.startswith("**Mean loss"))
    title = f"""**Two overlaid digits** ({len(results["plan"]["seeds"])} seeds,
        {results["settings"]["epochs"]} epochs; mean ± standard error; Δm against single-task
        networks, lower is better; in brackets paired 95 % intervals, widened for the number of
        rivals; {day(DIGITS / "results.json")}):"""
    return f"{paragraph(title)}\n\n{table}\n\n{said}"


def steps_block() -> str:
    """Whole steps of a stock loop, from the one command that takes them."""
    chosen, rows = record.only(BENCHMARKS / "steps.json")
    line = paragraph(
        f"""**Steps of a stock loop**, in units of a plain mean-loss step, median processor time,
        contenders taking turns ({described(chosen, rows)}). `shortest loop` is one `backward()` per
        task whose `.grad` is read into a row, and our solver; `LibMTL-style` one `backward()` per
        task whose `.grad` is copied into a row of a matrix, and Frank-Wolfe on its products
        (LibMTL's way, our own code: LibMTL is not run); TorchJD its `mtl_backward`, or without
        heads its `backward`. The rule is MGDA on the trunk. The last two columns compare
        `mf.Balancer` with the shortest loop:"""
    )
    behind, missed = steps.behind(rows), steps.missed(rows)
    said = f"A peer is faster on: {'; '.join(behind) or 'none'}."
    if behind:
        said += """ There rows are the cheapest form (`explain_gramian` says so), and the peer makes
            the same passes with less around them. Ours reads the graph (hooks, stale losses,
            heads), checks losses, Gramian, weights and gradients, and solves the rule's problem
            exactly. To lose nothing these calls would have to be in C++. On long steps runs of the
            benchmark differ by several per cent."""
    if missed:
        said += f""" The bar is missed on: {"; ".join(missed)}. Short steps miss it by these calls,
            longer ones by passes alone, one per task."""
    return marked("steps", steps.table(rows, line), paragraph(said))


def memory_block() -> str:
    """Memory of a ResNet's step, from the one command that counts it."""
    chosen, rows = record.only(BENCHMARKS / "memory.json")
    line = paragraph(
        f"""**Memory of a step**: MiB of all that a step of ResNet-18 makes and that is alive at
        once, parameters aside, with a head for each task and MGDA on the trunk; the second of two
        steps, 32 × 32 pixels, the contenders of the table above ({described(chosen, rows)}):"""
    )
    return marked("memory", line, memory.table(rows, ""))


def solvers_block() -> str:
    """The solvers against their peers, from the one command that takes them."""
    chosen, rows = record.only(BENCHMARKS / "solvers.json")
    line = f"""**Solvers**, µs a problem (median), and in brackets the worst duality gap over all
        hard families, in units of the longest gradient times Σ w_t‖g_t‖
        ({described(chosen, rows)}). TorchJD runs at its defaults, which bound its accuracy; "zero"
        counts answers whose weights are all 0, which its CAGrad gives where the dual's vector, of a
        Gramian scaled to length 1, is shorter than its norm_eps, 1e-4."""
    return marked("solvers", paragraph(line), solver_table(rows), paragraph(slower_solvers(rows)))


def weights_block() -> str:
    """`mf.weights` for two tasks against TorchJD's, from the one command that takes it."""
    chosen, rows = record.only(BENCHMARKS / "weights.json")
    line = f"""**Weights for two tasks**: µs of a call of `mf.weights(mf.mgda(), gramian)`, which
        checks all that it is given, of TorchJD's weighting at its defaults and of the solver alone,
        fastest blocks ({described(chosen, rows)}):"""
    times = next(row["µs"] for row in rows if row["tasks"] == 2)
    missed = times[weights.OURS] > weights.MOST * times[weights.PEER]
    said = f"The bar is {'missed' if missed else 'met'}."
    return marked("weights", weights.table(rows, paragraph(line)), said)


def weightings_block() -> str:
    """K weightings of samples, from the one command that takes them."""
    chosen, rows = record.only(BENCHMARKS / "weightings.json")
    line = f"""**Weightings of samples**: losses, the Gramian of K tasks that are weightings of one
        batch's samples, and their combination, in units of a plain step; smallest times,
        contenders taking turns ({described(chosen, rows)}), by
        `python -m experiments.benchmarks.weightings`. `K passes` is a loop of
        `torch.autograd.grad`; TorchJD its autogram and one more `backward()`:"""
    missed = weightings.missed(rows)
    said = f"""Slower than the bar: {"; ".join(missed) or "none"}. At K = 2 the bar is that of K
        passes times 1.1."""
    return marked("weightings", weightings.table(rows, paragraph(line)), paragraph(said))


def benchmark_parts() -> list[str]:
    """Every table of a benchmark."""
    return [
        solvers_block(),
        gramians_block(),
        weights_block(),
        steps_block(),
        memory_block(),
        weightings_block(),
        gpu_block(),
        versions.block(),
        full_block(),
    ]


def gramians_block() -> str:
    """Gramians by every way, from the one command that takes them."""
    chosen, rows = record.only(BENCHMARKS / "gramian.json")
    line = f"""**Gramians**: time in units of one mean gradient (median), and in brackets the peak
        of what was allocated, MiB ({described(chosen, rows)}):"""
    return marked("gramians", paragraph(line), gramian_table(rows), bars_missed(rows))


def arena_block() -> str:
    """The arena's ranks."""
    arena = load(ARENA / "results.json")
    settings = arena["settings"]
    title = f"""**Arena**: average rank of {len(arena["ranks"]["mean"])} contestants by mean score
        over {len(arena["problems"])} problems ({settings["seeds"]} seeds, learning rates chosen on
        {settings["tuning seeds"]} others; {day(ARENA / "results.json")}), 95 % intervals over
        problems and seeds:"""
    return marked("arena", paragraph(title), arena_lines(arena))


def notes_block() -> str:
    """How the tables were taken."""
    line = """Taken on two CPU cores by the commands that `docs/results.py` names, on one thread.
        Each table says its day and the machine's load, if it is known. Processor time is counted,
        but other work on the machine slows memory and caches all the same. The arena's ranks do not
        depend on time. Written here by `python docs/results.py`. The solvers' benchmark times whole
        calls from Gramian to weights, median of as many as fit, all families mixed; gaps are
        recomputed from the weights by `solvers.certify`. The Gramians' takes turns among the
        contenders of a case."""
    return marked("notes", paragraph(line))


def summary(page: str) -> str:
    """The README's honest result: numbers as docs/benchmarks.md has them."""

    def said(pattern: str) -> str:
        found = re.search(pattern, flowing)
        if not found:
            raise SystemExit(f"docs/benchmarks.md: nothing matches {pattern!r}")
        return found[1]

    flowing = " ".join(page.split())
    count = judged_counts(standing())
    rivals = int(said(r"average rank of ([0-9]+)")) - 1  # one is the mean loss
    problems = said(r"contestants by mean score over ([0-9]+) problems")
    against = said(r"Against mean, one rule at a time: (better [^;.]*)[;.]")
    better = against.removeprefix("better ")
    who, are = ("none", "is") if better == "none" else (better, "are")
    lines = [
        f"""Of {count["judged"]} claims judged on their own data, about PCGrad, MGDA, CAGrad,
        GradNorm and others, {count["holds"]} hold as stated, {count["does not hold"]} do not, and
        [the others](docs/claims.md) need a condition or stay open.""",
        power.sentence(),
        molecules.sentence(),
        f"""On {problems} small problems {who} of {rivals} methods at its best rate {are}
        significantly better than the mean.""",
    ]
    return marked("summary", bullets(lines))


def write_front() -> None:
    """The two parts of the README that hold numbers, and the ratios by version."""
    readme, page = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
    versions.keep()
    page.write_text(replaced(page.read_text(), "versions", versions.block()))
    text = replaced(readme.read_text(), "summary", summary(page.read_text()))
    readme.write_text(replaced(text, "numbers", front.block()))


def full_block() -> str:
    """How long every question takes with --full."""
    line, table = full.described()
    return marked("full", paragraph(line), table)


def gpu_block() -> str:
    """What a CUDA device did, each number with its day."""
    rows = record.read(gpu_report.KEPT)
    line = """**On a device**, by `python -m experiments.benchmarks.gpu`, wall clock with
        synchronisation, medians, contenders taking turns. Each line says the device, the day and
        the torch that it was taken with; a later run replaces a line, or leaves it:"""
    above = "; ".join(gpu_report.missed(rows)) or "none"
    said = paragraph(f"Above its bar: {above}.")
    return marked("gpu", paragraph(line), *gpu_report.tables(rows), said)


BLOCKS = {
    "solvers": solvers_block,
    "gramians": gramians_block,
    "arena": arena_block,
    "weights": weights_block,
    "steps": steps_block,
    "memory": memory_block,
    "weightings": weightings_block,
    "gpu": gpu_block,
    "versions": versions.block,
    "full": full_block,
    "notes": notes_block,
}
"""Parts that are written alone."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write docs/benchmarks.md and docs/claims.md from what the experiments left."
    )
    alone = (
        "one table alone; the claims, from a run (claims), from one of single questions "
        "(questions), after a run with other arithmetic "
        "(arithmetic) or on a device (device), with the verdicts as they stand (ledger), or after "
        "a run on real images (images, power); the search for auxiliary tasks; physics; molecules. "
        "Without it: "
        "everything"
    )
    choices = [
        "claims",
        "questions",
        "arithmetic",
        "device",
        "ledger",
        "search",
        "physics",
        "molecules",
        "power",
        "images",
    ]
    choices += BLOCKS
    parser.add_argument("part", nargs="?", choices=choices, help=alone)
    of_run = "of a run on a device: its gpu.json with the part gpu, its folder with device; of "
    of_run += "single questions and of real images: its folder"
    parser.add_argument("run", nargs="?", type=Path, help=of_run)
    return parser


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    part = given.part
    if given.run is not None:
        if part not in ("gpu", "device", "questions", "images"):
            parser.error(f"run: goes with the parts gpu, device, questions and images, got {part}")
        if part == "gpu":
            gpu_report.take_over(given.run)
    page = ROOT / "docs" / "benchmarks.md"
    if part == "full":
        full.take_over()
    if part in BLOCKS:
        text = replaced(page.read_text(), part, BLOCKS[part]())
        if part == "full":
            text = replaced(text, "claims", claims_block(standing()))
            write_verdicts()
        page.write_text(text)
        write_front()
        return
    if part == "search":
        readme = ROOT / "experiments" / "auxiliary" / "README.md"
        table = (readme.parent / "out" / "search" / "table.md").read_text(encoding="utf-8").strip()
        readme.write_text(replaced(readme.read_text(), "search", marked("search", table)))
        return
    if part in ("physics", "molecules"):
        {"physics": physics, "molecules": molecules}[part].write()
        return write_front()
    if part == "power":
        power.write()
    elif part == "arithmetic":
        keep_arithmetic(REPRODUCTIONS / "other-arithmetic")
    elif part == "questions":
        keep_questions(given.run or REPRODUCTIONS)
    elif part == "device":
        keep_device(given.run or REPRODUCTIONS / "cuda")
    elif part == "images":
        folder = given.run or MULTIMNIST
        found = load(folder / "results.json")
        judged_images.keep(found)
        images.write(folder, found)
    elif part != "ledger":
        claims, others = judged(), judged(REPRODUCTIONS / "draw-1")
        check_draw(claims, others)
        keep_runs(claims, others)
    if part:
        text = replaced(page.read_text(), "claims", claims_block(standing()))
        page.write_text(replaced(text, "run", run_block(of_default())))
    else:
        page.write_text(replaced(page.read_text(), "results", marked("results", section())))
    write_verdicts()
    page.write_text(replaced(page.read_text(), "fresh", marked("fresh", standins.agreement())))
    write_front()


if __name__ == "__main__":
    main()
