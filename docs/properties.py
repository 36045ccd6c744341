"""The table of properties of all rules, as the audit finds them, in markdown.

`python docs/properties.py` prints it, `python docs/properties.py --write` puts it into
`docs/properties.md`, between its two markers. One audit takes a second or two.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import mtlfunc as mf
from mtlfunc.audit import Report, audit
from mtlfunc.core.files import write_whole

PAGE = Path(__file__).parent / "properties.md"
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
    "conicgrad(0.5)",
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
    'align(0.3, "mean")',
    "physics.gauss_newton()",
    "rlw()",
    "uw(0.1)",
    "imtl_l(0.1)",
    "dwa(1)",
    "gls()",
    "stch(0.3)",
    "famo(full_batch=True)",
    "physics.ntk()",
    "cosmos(0.3)",
    "pbi()",
    "normalize(mgda())",
    "momentum(mgda(), 0.6)",
    "safe(mean())",
)
"""As one writes them after `from mtlfunc import *`."""

HEADS = {
    "permutation equivariance": "order",
    "positive homogeneity": "scale",
    "invariance to rescaling one task": "task scale",
    "invariance to shifting a loss": "loss shift",
    "identical tasks": "identical",
    "duplicate tasks": "duplicates",
    "preference": "preference",
    "non-conflict": "no conflict",
    "identity without conflict": "identity",
    "convex weights": "convex",
    "Pareto-stationary fixed points": "rests",
    "linear under scaling": "linear",
    "continuity": "continuous",
    "differentiability": "smooth",
}
LEGEND = """\
✓ holds over all instances of the audit; ✗ fails; (✗) fails only where gradients are linearly
dependent; – not applicable. *order*: equivariant to the order of the tasks, for one key of a random
rule; *scale*: d(sJ) = s·d(J); *task scale*: the direction does not turn when one task is
multiplied; *loss shift*: it does not change when a constant is added to a loss; *identical*: d = g
if all tasks are one, also for T = 1; *duplicates*: a task listed twice changes nothing;
*preference*: twice the preference for a task is the task listed twice; *no conflict*: no task is
ever raised to first order; *identity*: the mean if nothing conflicts; *convex*: weights >= 0 that
sum to 1; *rests*: d = 0 if a positive combination of the gradients is 0; *linear*: d(diag(c)J) is
linear in c > 0; *continuous*: no jump between close gradients; *smooth*: right first and second
derivatives away from kinks; *computes*: finite weights at every T that is tried up to 128, in
float32, for zero gradients and for losses of 0 or below (or a refusal), NaN for NaN, vmap equals
loop, pure, states that can be saved, no weight for absent tasks. T is 1 to 8, two numbers between
and 128. A rule with state is tested over three updates, its weights for finite numbers over
32. A ✗ does not hang on the last bits: it stays when gradients and losses move by 1e-13 of
their size. `mf.audit(rule)` shows the smallest counterexample of every ✗."""


def measured(jacobian: torch.Tensor, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """What special probes put into `geometry.extra`: for `excess_mtl` the first step's Σ|J|; for
    `safe` what an optimizer without momentum carries along; for `ntk` traces, as if every loss were
    one residual.
    """
    return {
        "excess_risk": jacobian.abs().sum(-1),
        "carried": torch.zeros_like(losses),
        "trace": jacobian.square().sum(-1),
    }


def report(rule: str) -> Report:
    return audit(eval(rule, vars(mf) | {"physics": mf.physics}), name=rule, extra=measured)


def cell(found: Report, name: str) -> str:
    row = found[name]
    if row.status == "fails":
        return "(✗)" if row.dependent else "✗"
    return "✓" if row.status == "holds" else "–"


def reports(rules: tuple[str, ...] = RULES) -> dict[str, Report]:
    """The audits of rules, written as one writes them after `from mtlfunc import *`."""
    return {rule: report(rule) for rule in tqdm(rules, desc="audits", leave=False)}


def table(found: dict[str, Report]) -> str:
    """Rules by properties, what the symbols mean, and what is wrong with how a rule computes."""
    lines = [
        "| rule | " + " | ".join(HEADS.values()) + " | computes |",
        "|---|" + ":-:|" * (len(HEADS) + 1),
    ]
    defects = []
    for rule, audited in found.items():
        broken = [row for row in audited.rows if row.contract and row.status == "fails"]
        cells = [*(cell(audited, name) for name in HEADS), "✗" if broken else "✓"]
        lines.append(f"| `{rule}` | " + " | ".join(cells) + " |")
        defects += [f"- `{rule}`, {row.name}: {row.detail} at `{row.literal}`." for row in broken]
    return "\n".join([*lines, "", LEGEND, *(["", *defects] if defects else [])])


def inserted(page: str, text: str) -> str:
    """The page with `text` between the markers.

    Raises:
        ValueError: if it has no markers.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"expected the markers {BEGIN} and {END} once each")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Rules by properties, in markdown.")
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the table into docs/properties.md, between its markers",
    )
    options = parser.parse_args()
    text = table(reports())
    if not options.write:
        print(text)
        return 0
    write_whole(PAGE, inserted(PAGE.read_text(), text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
