"""Write the README's results and figure from what the experiments left: `python docs/results.py`, after

    python -m paper_repro
    python -m experiments.digits
    python -m experiments.benchmarks.solvers --seconds 0.3 --instances 4 --tasks 2 8 32 128

No number of that section is typed by hand.
"""

import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAPERS = ROOT / "paper_repro" / "out"
DIGITS = ROOT / "experiments" / "digits" / "out"
BENCHMARKS = ROOT / "experiments" / "benchmarks" / "out"
KINDS = {"min_norm": "min-norm (MGDA)", "cagrad": "CAGrad", "dual_cone": "dual cone (DualProj)", "upgrad": "UPGrad"}


def interval(measured: dict[str, float], name: str) -> str:
    return f"{measured[name]:.3f} [{measured[f'{name}, low']:.3f}, {measured[f'{name}, high']:.3f}]"


def solver_table(rows: list[dict]) -> str:
    """µs a problem and worst normalised gap on CPU; one Gramian a call, and ours also 4,096 a call."""

    def cell(kind: str, solver: str, tasks: int, batch: int) -> str:
        found = [row for row in rows if (row["kind"], row["solver"], row["tasks"], row["batch"], row["device"]) == (kind, solver, tasks, batch, "cpu")]
        if not found:
            return "–"
        gap = max(family["gap"] for family in found[0]["families"].values() if family["solved"])
        return f"{1e6 * found[0]['median']:,.3g} ({gap:.0e})" if 1e6 * found[0]["median"] < 1000 else f"{1e6 * found[0]['median']:,.0f} ({gap:.0e})"

    lines = ["| problem | T | `active_set` | `active_set`, batch 4,096 | cvxpy + Clarabel | TorchJD |", "|---|---|---|---|---|---|"]
    for kind, name in KINDS.items():
        for tasks in sorted({row["tasks"] for row in rows}):
            columns = [("active_set", 1), ("active_set", 4096), ("cvxpy + Clarabel", 1), ("TorchJD", 1)]
            lines.append(f"| {name} | {tasks} | " + " | ".join(cell(kind, solver, tasks, batch) for solver, batch in columns) + " |")
    return "\n".join(lines)


def section() -> str:
    claims = {claim["id"]: claim for claim in json.loads((PAPERS / "claims.json").read_text())}
    gradnorm, static, direction = (claims[name]["measured"] for name in ("GN-21", "GN-22", "SU-34"))
    default = "default: Adam, x ~ N(0, I)"
    rate = "linear encoder, {}: rate of task {}"
    bound, exact = ([direction[rate.format(method, task)] for task in (1, 2)] for method in ("MGDA-UB", "MGDA"))
    verdicts = [claim["verdict"] for claim in claims.values()]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict!r}" for verdict in dict.fromkeys(sorted(verdicts)))
    table = [line for line in (DIGITS / "table.md").read_text().splitlines() if line.startswith("|")]
    benchmark = json.loads((BENCHMARKS / "solvers.json").read_text())
    settings = json.loads((DIGITS / "results.json").read_text())["settings"]
    static_ratio = interval(static, "default configuration: static over GradNorm, each at its best rate")
    return f"""## Results

**GradNorm's synthetic regression**, σ = (1, 100): final task-normalised test loss, GradNorm / equal weights (geometric mean of ratios paired by seed, 95 % t
interval; the first two rows 16 seeds and 2,000 steps, the others 4 seeds and 500 steps):

| configuration | GradNorm / equal weights |
|---|---|
| each method at its best learning rate (equal {gradnorm[default + ": best rate, equal"]:g}, GradNorm {gradnorm[default + ": best rate, GradNorm"]:g}) | \
{interval(gradnorm, default)} |
| Adam 3e-4 | {interval(gradnorm, "default at Adam 0.0003")} |
| SGD, each at its best | {interval(gradnorm, "SGD")} |
| inputs x ~ U(0, 1), each at its best | {interval(gradnorm, "x ~ U(0, 1)")} |

Static weights at GradNorm's time average end at {static_ratio} of GradNorm's loss, and at
{interval(static, "static average over the grid's best")} of the loss of the best static weights of a grid.

**MGDA-UB's counterexample**: with the bound's weights the tasks' rates are ({bound[0]:g}, {bound[1]:g}), so one loss rises; with exact MGDA's
({exact[0]:g}, {exact[1]:g}).

Verdicts on the {len(claims)} claims that the default run checks: {counts}; `paper_repro/out/report.html` has each with its numbers.

**Two overlaid digits** ({settings["seeds"]} seeds, {settings["epochs"]} epochs; mean ± standard error; Δm against single-task networks, lower is better, with
paired 95 % intervals; conflict on one common Gramian; milliseconds for {settings["seeds"]} × {len(settings["rates"])} vmapped runs together):

{chr(10).join(table)}

{chr(10).join(line for line in (DIGITS / "table.md").read_text().splitlines() if line.startswith("**Against"))}

**Solvers**, µs a problem, and in brackets the worst duality gap over thirteen hard families, in units of the longest gradient times Σ w_t‖g_t‖
({benchmark["machine"]}):

{solver_table(benchmark["rows"])}

![Time of one problem against its worst certified gap, for every solver](docs/solvers.png)

Taken on two CPU cores by `python -m paper_repro`, `python -m experiments.digits` and `python -m experiments.benchmarks.solvers --seconds 0.3 --instances 4
--tasks 2 8 32 128`, each alone on the machine; written here by `python docs/results.py`. The benchmark times whole calls from Gramian to weights, median of as
many as fit, all families mixed; gaps are recomputed from the weights by `solvers.certify`.
"""


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = re.sub(r"<!-- results -->.*<!-- end of results -->", lambda _: f"<!-- results -->\n\n{section()}\n<!-- end of results -->", text, flags=re.DOTALL)
    if new == text and section() not in text:
        raise SystemExit("README.md: the markers <!-- results --> and <!-- end of results --> are missing")
    readme.write_text(new)
    shutil.copy(BENCHMARKS / "solvers.png", ROOT / "docs" / "solvers.png")
    shutil.copy(PAPERS / "gradnorm-curves.png", ROOT / "docs" / "gradnorm.png")


if __name__ == "__main__":
    main()
