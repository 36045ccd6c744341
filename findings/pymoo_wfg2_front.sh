#!/usr/bin/env bash
# pymoo 0.6.2: most points of WFG2's Pareto front are dominated by others of it.
#
# get_problem("wfg2", ...).pareto_front() samples a whole curve (of three objectives: a surface), of which only
# pieces are Pareto optimal: WFG2's front is disconnected. The dominated rest is left in. Seen:
#     two objectives     62 to 70 of 100 points dominated, the worst by .7 to 1.2 in both objectives
#     three objectives   38 to 57 of 136
#     IGD of 5,441 points on the true front to it                     .14 to .19 (the sample is random)
#     the same, where the dominated points are taken out              less than .02
#     WFG1, and ZDT3, whose front is disconnected too                 none by more than rounding
# It is what GD, IGD and their plus forms take as the true front.
#
# Why it matters: IGD is a mean distance from each of these points. Those that no method can stay at make up
# nearly all of it, so a perfect front and a poor one differ little, and a method is rewarded for points
# that others of its own dominate.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q pymoo==0.6.2 moocore==0.3.2 numpy==2.4.6 scipy==1.17.1 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import moocore
import numpy as np
import pymoo
from pymoo.indicators.igd import IGD
from pymoo.problems import get_problem

print("pymoo", pymoo.__version__, "moocore", moocore.__version__, "numpy", np.__version__)


def dominated(front):
    """How many points another one dominates, and the widest margin in every objective."""
    front = np.asarray(front)
    margin = (front[:, None] - front[None]).min(-1).max()
    return int((~moocore.is_nondominated(front)).sum()), len(front), float(margin)


two = get_problem("wfg2", n_var=10, n_obj=2)
front = two.pareto_front()
found = {
    "wfg2, 2": dominated(front),
    "wfg2, 3": dominated(get_problem("wfg2", n_var=12, n_obj=3).pareto_front()),
    "wfg1, 2": dominated(get_problem("wfg1", n_var=10, n_obj=2).pareto_front()),
    "zdt3": dominated(get_problem("zdt3").pareto_front()),
}
for name, (some, every, margin) in found.items():
    print(f"{name}: {some} of {every} dominated, by up to {margin:.3f} in every objective")

position = np.repeat(np.linspace(0, 1, 20001)[:, None], 4, 1)  # optimal where the distance part is .35
points = two.evaluate(np.concatenate([position, np.full((20001, 6), 0.35)], 1) * two.xu)
true = points[moocore.is_nondominated(points)]
said, right = (float(IGD(x)(true)) for x in (front, front[moocore.is_nondominated(front)]))
print(f"IGD of {len(true)} true points: {said:.3f}, to the front without its dominated points {right:.4f}")
same = found["wfg2, 2"][0] >= 40 and found["wfg2, 2"][2] > 0.5 and found["wfg2, 3"][0] >= 30
same &= max(found["zdt3"][2], found["wfg1, 2"][2]) < 1e-6 and said > 0.1 and right < 0.02
sys.exit(0 if same else 1)
END
