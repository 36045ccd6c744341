"""GradNorm's part of docs/benchmarks.md: a curve over learning rates, from the default run."""

import re

from docs import full
from docs.blocks import paragraph
from paper_repro.gradnorm.common import OWN_RATE
from paper_repro.gradnorm.paper_size import AT_BEST, AT_ONE
from paper_repro.report.bounds import GAP
from paper_repro.report.decisions import APART, settles_nothing


def interval(measured: dict[str, float], name: str) -> str:
    """A number and its interval."""
    return f"{measured[name]:.3f} [{measured[f'{name}, low']:.3f}, {measured[f'{name}, high']:.3f}]"


CURVES = """\
![Test loss of equal, GradNorm's and static weights](reproductions/gradnorm.png)

*Test losses in units of their initial values, all methods at one learning rate; mean and 95 % band
over seeds.*

![Final test loss over the learning rate](reproductions/gradnorm-rates.png)

*The same at the end, by learning rate, and the ratio to equal weights at the same rate.*"""


def gradnorm_part(claims: dict[str, dict]) -> str:
    """GradNorm against equal and static weights, of the default run: a curve over rates."""
    two, ten, static = (claims[name]["measured"] for name in ("GN-21", "GN-23", "GN-22"))
    sizes = re.search(
        r"T = 2, (\d+ inputs.*?), α.*?(\d+ steps, \d+ seeds)", claims["GN-21"]["where"]
    )
    assert sizes is not None, "GN-21 says no longer how large its runs are"
    title = f"""**GradNorm's synthetic regression** ({sizes[1]}, {sizes[2]}), σ = (1, 100):
        final test loss over that of an untrained network, and GradNorm's over equal weights'
        (geometric mean of ratios paired by seed, 95 % t intervals). Rates are refined around the
        best of each; the rate of GradNorm's weights is {OWN_RATE:g} throughout, fixed
        beforehand (the paper states none for this problem). No ratio where equal weights learn
        nothing, that is where they end at 1 or more:"""
    curve = "{} at Adam {}, loss over an untrained network's"
    found = (re.fullmatch(r"(?:equal|GradNorm) at Adam ([^,]*), loss over .*'s", x) for x in two)
    lines = ["| learning rate | equal weights | GradNorm | ratio |", "|---|---|---|---|"]
    for rate in sorted({one[1] for one in found if one}, key=float):
        names = [*(curve.format(x, rate) for x in ("equal", "GradNorm")), f"both at Adam {rate}"]
        cells = [interval(two, name) if name in two else "–" for name in names]
        lines.append(f"| {rate} | {' | '.join(cells)} |")
    ratio = f"GradNorm over equal, {AT_BEST}"
    lines.append(f"| {AT_BEST} | – | – | {interval(two, ratio)} |")
    verdict = "Not settled" if settles_nothing(two, ratio) else "Settled"
    settled = f"""{verdict}: next to the best rates losses differ by up to
        {two[ratio + APART]:.2g} half widths of the ratio's interval, at most {GAP:g} wanted. The
        default run stops after {sizes[2]}."""
    if not any("GN-21" in answer.numbers for answer in full.read().values()):
        settled += " No run of this question at the paper's length (`--full`) is kept."
    average = interval(static, "the paper's size: static over GradNorm, both at Adam 0.001")
    searched = interval(static, "static average over the grid's best")
    gap = ", which settles nothing" * settles_nothing(ten, ratio)
    one = f"GradNorm over equal, {AT_ONE}"
    simple = interval(ten, "GradNorm over 1/L_i(0)")
    fixed = f"""Static weights at GradNorm's time average end at {average} of GradNorm's loss
        (T = 2, both at Adam 0.001), and in a reduced problem at {searched} of the loss of the best
        static weights of a grid. For ten tasks GradNorm's loss is {interval(ten, one)} of equal
        weights' at Adam 0.001, {interval(ten, ratio)} at the better of two rates{gap}, and {simple}
        times that of static weights 1/L_i(0), which need no search, both at Adam 0.001."""
    table = "\n".join(lines)
    return "\n\n".join([paragraph(title), table, paragraph(settled), CURVES, paragraph(fixed)])
