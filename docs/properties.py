"""The table of properties of all rules, as the audit finds them: `python docs/properties.py` prints
it in markdown.

`python docs/properties.py --write` puts it into the README, between its two markers. One audit
takes about a second.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import mtlfunc as mf
from mtlfunc.audit import Report, audit

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- properties -->", "<!-- end of properties -->"

RULES = (
    "mean()",
    "mgda()",
    "pcgrad()",
    "cagrad(0.4)",
    "cagrad(1.0)",
    "gradnorm(1.5)",
    "dualproj()",
    "upgrad()",
    "imtl_g()",
    "config()",
    "aligned_mtl()",
    "nash_mtl()",
    "fairgrad(2.0)",
    "gradvac()",
    "krum()",
    "epo()",
    "pareto_mtl()",
    "pcd()",
    "modo()",
    "moco()",
    "sdmgrad()",
    "db_mtl()",
    "excess_mtl()",
    "rlw()",
    "uw(0.1)",
    "imtl_l(0.1)",
    "dwa(1)",
    "gls()",
    "stch(0.3)",
    "famo(full_batch=True)",
    "cosmos(0.3)",
    "pbi()",
    "normalize(mgda())",
    "momentum(mgda(), 0.6)",
    "every(mgda(), 2)",
)
"""As one writes them after `from mtlfunc import *`."""

HEADS = {
    "permutation equivariance": "order",
    "positive homogeneity": "scale",
    "invariance to rescaling one task": "task scale",
    "invariance to shifting a loss": "loss shift",
    "identical tasks": "identical",
    "duplicate tasks": "duplicates",
    "non-conflict": "no conflict",
    "identity without conflict": "identity",
    "convex weights": "convex",
    "Pareto-stationary fixed points": "rests",
    "linear under scaling": "linear",
    "continuity": "continuous",
    "differentiability": "smooth",
    "T = 1": "T = 1",
}
LEGEND = """\
✓ holds over all instances of the audit; ✗ fails; (✗) fails only where gradients are linearly dependent; – not applicable. *order*: equivariant to the
order of the tasks, for one key of a random rule; *scale*: d(sJ) = s·d(J); *task scale*: the direction does not turn when one task is multiplied; *loss
shift*: nor when a constant is added to a loss; *identical*: d = g where all tasks are one; *duplicates*: a task listed twice changes nothing; *no
conflict*: no task is ever raised to first order; *identity*: the mean where nothing conflicts; *convex*: weights >= 0 that sum to 1; *rests*: d = 0
where a positive combination of the gradients is 0; *linear*: d(diag(c)J) is linear in c > 0; *continuous*; *smooth*: right derivatives away from kinks;
*T = 1*: d = g; *computes*: finite weights at every T up to 128, in float32 and for zero gradients, NaN for NaN, vmap equals loop, pure, states that can
be saved, no weight for absent tasks. A rule with state is judged over three updates. `mf.audit(rule)` shows the smallest counterexample of every ✗."""


def measured(jacobian: torch.Tensor, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the probes of special rules put into `geometry.extra`: for `excess_mtl` the first step's
    excess risks, Σ|J|.
    """
    return {"excess_risk": jacobian.abs().sum(-1)}


def report(rule: str) -> Report:
    return audit(eval(rule, vars(mf).copy()), name=rule, extra=measured)


def cell(found: Report, name: str) -> str:
    row = found[name]
    return (
        "–"
        if row.status == "not applicable"
        else "✓"
        if row.status == "holds"
        else "(✗)"
        if row.dependent
        else "✗"
    )


def table(rules: tuple[str, ...] = RULES) -> str:
    """Rules by properties, what the symbols mean, and what the audit found wrong with how a rule
    computes.
    """
    lines = [
        "| rule | " + " | ".join(HEADS.values()) + " | computes |",
        "|---|" + ":-:|" * (len(HEADS) + 1),
    ]
    defects = []
    for rule in tqdm(rules, desc="audits", leave=False):
        found = report(rule)
        broken = [row for row in found.rows if row.contract and row.status == "fails"]
        lines.append(
            f"| `{rule}` | "
            + " | ".join(cell(found, name) for name in HEADS)
            + f" | {'✗' if broken else '✓'} |"
        )
        defects += [f"`{rule}`, {row.name}: {row.detail} at `{row.literal}`." for row in broken]
    return "\n".join(
        [
            *lines,
            "",
            LEGEND,
            *(["", "\n".join(f"- {defect}" for defect in defects)] if defects else []),
        ]
    )


def inserted(readme: str, text: str) -> str:
    """The README with `text` between the markers.

    Raises:
        ValueError: if it has no markers.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"expected the markers {BEGIN} and {END} once each")
    head, rest = readme.split(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Rules by properties, in markdown.")
    parser.add_argument(
        "--write", action="store_true", help="put the table into README.md, between its markers"
    )
    options = parser.parse_args()
    text = table()
    if not options.write:
        print(text)
        return 0
    written = README.with_name(README.name + ".part")
    written.write_text(inserted(README.read_text(), text))
    os.replace(written, README)
    return 0


if __name__ == "__main__":
    sys.exit(main())
