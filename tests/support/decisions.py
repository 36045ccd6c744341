"""Numbers made to win and to lose, for decisions that are functions of their own. Of each claim a
first case, on which it holds, by names (`{a|b}`: one with a, one with b); then changes to it, by
patterns of its names, after the verdict that they give. An interval is `low..high`.
"""

import re
from collections.abc import Iterator
from itertools import product

from paper_repro.report.decisions import named_so

Numbers = dict[str, float]
VERDICTS = {"part": "holds only when", "lost": "does not hold", "open": "inconclusive"}
TABLE = """
PC-02
{SGD|Adam}, ρ = 1 to 3: change of task 1's fall = -2..-1
{SGD|Adam}: change of task 1's fall from ρ = 1 to 1000 = -3..-2
part | SGD, ρ = 1 to* = -2..1
lost | *fall = -2..1 & *from* = 1..2
open | *fall = -2..1 & *from* = -1..2
PC-03
conflict, gap, curvature; against the plain step: share of wins = 0.8..0.9
conflict, gap, curvature; against a plain step of the same length: share of wins = 0.8..0.9
conflict, gap, no curvature; against the plain step: share of wins = 0.1..0.2
conflict, gap, no curvature; against a plain step of the same length: share of wins = 0.1..0.2
part | *no curvature; against the* = 0.6..0.7
lost | *no curvature; against the* = 0.6..0.7 & *gap, curvature; against a* = 0.1..0.2
open | *gap, curvature* = 0.4..0.7
PC-04
steps = 250000
sum: L_2 at the end = 35
PCGrad: θ_1 at the end = -1
PCGrad: L_2 at the end = -90
lost | sum: L_2* = 10
lost | PCGrad: L_2* = 5
open | PCGrad: L_2* = 5 & steps = 1000
PC-05
{sum|PCGrad}: share of steps with H > 0 = 0.8
part | sum: share* = 0.1
lost | *0 = 0
PC-17
violations of the promised fall = 0
long runs that end with neither cos < -.999 nor excess < 1e-6 = 0
of these, conflicting = 9
lost | *fall = 1
open | long* = 2
open | of these* = 0
PC-19
draws that meet the corrected hypotheses = 9
violations of the {corrected|printed} theorem = 0
violations with weight 2(1 - s) = 0
counterexample: L(θ^PCGrad) = 0
counterexample: L(θ^MT) = 1
counterexample: {step|shortest step, uniform weight} = 4
part | *printed* = 3
part | *L(θ^MT) = -2
lost | *printed* = 3 & *corrected theorem = 1
PC-26
{regression|maze}: slope of log H, per 100 steps = 1..2
{regression|maze}: R² = 0.85..0.95
part | maze: R² = 0.4..0.6
lost | *R² = 0.4..0.6
open | *R² = 0.7..0.9
lost | *steps = -2..-1
open | *steps = -1..1
PC-29
{regression|maze}: closest quantity, share of seeds = 0.6..0.9
{regression|maze}: share by chance, about = 0.1
lost | *seeds = 0.1..0.4
open | *seeds = 0.05..0.7
# more than a half of the seeds, but not by the interval
open | *seeds = 0.29..0.73
lost | *about = 2
PC-31
equal, step 1: distance of the last iterate from the run's mean = 0
120°: orders of 8 with d = 0 = 8
equal, random order, 1/k: spread of the end points = 0.01
part | *mean = 0.1
lost | *mean = 0.1 & *points = 0.5
PC-32
{a|b}, random order: distance of the mean end point = 0.01
{a|b}, one order: distance of the mean end point = 0.4
part | a, random* = 0.5
lost | *random* = 0.5
open | *one* = 0.01
SU-14
share of runs in a cycle longer than 1 = 0.97..1
largest excess of 1 - max softmax over (T - 1) exp(-λ·margin) = 0
lost | share* = 0.5..0.7
open | share* = 0.9..1
lost | largest* = 0.1
SU-23
{interior|face}: share that reaches a relative gap of 1e-6 at the best step = 0.96..1
{interior|face}: best step at the grid's edge (1: yes) = 0
steps = 5000
part | face: share* = 0..0.2
lost | *step = 0..0.2
# 16 of 16
open | *step = 0.806..1
open | *step = 0..0.2 & steps = 100
open | *step = 0..0.2 & face: best* = 1
SU-24
{interior|face}: share that reaches 1e-6, best single step for scales 1e-4 to 1e4 = 0.1..0.3
{interior|face}: share that reaches 1e-6, step tuned to the scale = 0.96..1
part | face: share that reaches 1e-6, step* = 0..0.2
lost | *best* = 0.96..1
open | *best* = 0.9..1
open | *scale = 0..0.2
SU-25
{exact|loop}, T = 2, P = 9: operations of the solver over the step's = 0.5
part | exact* = 0.01
lost | *step's = 0.1
SU-27
{T rows|layerwise Gramian}, T = 32: peak memory over one gradient's = 30
relative difference of the two Gramians, largest = 0
part | layerwise* = 2
lost | T rows* = 3
SU-30
T = {2|5}: mean normalised end loss, MGDA-UB less MGDA = -0.01..0.01
T = {2|5}: share raising a task at initialisation = 0..0.01
draws in which MGDA itself raises a task = 0
open | *task = 1
part | T = 5: share* = 0.3..0.4
lost | *MGDA = 0.1..0.2
lost | *share* = 0.9..0.95
open | *MGDA = -0.1..0.2
SU-32
draws in which one optimum is 0 and the other is not, full row rank = 0
share whose bound direction raises a task, full row rank = 0..0.1
part | share* = 0.2..0.4
lost | draws* = 1
SU-35
MGDA-UB, step {2|1|0.5}: least distance of 0 from the hull in the last half, over the start's = 1.2
MGDA, step {2|1|0.5}: largest distance of 0 from the hull in the last half, over the start's = 0.1
part | *UB, step 2* = 0.9
lost | *UB* = 0.9
open | MGDA, step 1* = 1.1
SU-36
T = 2, q = 1, P = 61 = 0.2..0.3
T = 2, q = 1, P = 999 = 0..0.01
part | *999 = 0.05..0.1
lost | *999 = 0.2..0.3
open | *999 = 0.01..0.3
CA-03
T = {2|3}: largest ‖d‖ of {MGDA|PCGrad} = 0
part | T = 3: largest ‖d‖ of PCGrad = 0.4
lost | T = 2: largest ‖d‖ of PCGrad = 0.4
CA-04
steps = 100000
{MGDA|PCGrad}: largest movement after contact = 0
part | PCGrad* = 1
lost | *contact = 1
open | steps = 100
CA-05
draws in which 'no common descent' and '0 in the hull' disagree = 0
L_1 = L_2 = -x² at its stationary point 0 = 0
at 1/2 = 1
lost | at 1/2 = -0.25
open | draws* = 1
CA-08
smallest where |x₁| > 0.5 = 0
largest distance of 0 from the gradients' hull, same unit = 0
largest ‖g₀‖ over the longest gradient = 0
lost | smallest* = 0.1 & *gradient = 0.5
CA-13
T = {2|3}: share of PCGrad's directions met by some c = 0.97..1
c*: draws with the wrong sign at .95 c* and 1.05 c* = 0
c*: largest relative distance of d to DualProj's = 0
part | T = 3: share* = 0.1..0.2
lost | T = 3: share* = 0.1..0.2 & *DualProj's = 0.1
open | T = 3: share* = 0.8..1
CA-14
steps = 100000
exact, c = {0.2|0.5|0.8|0.9}: largest excess at the end = 0
exact, c = 3: smallest excess at the end, (0, 0) aside = 0
part | *aside = 5
lost | exact, c = 0.5* = 5
CA-17
{conic|SLSQP}, T = 2: most = 1e-8
part | SLSQP* = 0.1
lost | *most = 0.1
CA-19
c = {0.2|0.9}: share below 1e-3 = 0.95..1
steps = 800
lost | c = 0.9: share* = 0.4..0.6
# 49 of 50
open | c = 0.9: share* = 0.895..0.996
open | c = 0.9: share* = 0.4..0.6 & steps = 10
CA-21
largest ‖g₀‖ at the end = 0
share ending at the other minimum = 0
part | share* = 0.5
lost | share* = 1
open | *the end = 1
CA-24
steps = 100000
{GD|MGDA|PCGrad|CAGrad}: largest change of the mean loss at the end under a nudge = 0
part | GD* = 1
lost | *nudge = 1
CA-25
steps = 100000
stuck, printed starts = 2
stuck, printed starts, after 300000 steps (a literal loop) = 2
stuck, printed starts, after 1000000 steps (a literal loop) = 2
stuck, (-8.5, -5) for (-8.5, 5) = 2
part | *1000000 steps* = 0
part | *starts = 3
lost | *starts = 3 & *5) = 4 & *loop) = 0
CA-27
steps = 100000
starts that can tell = 6
of these, with a distance that never grows with c = 6
of these, with the largest c's contact within a tenth of the way = 6
part | *with c = 1
lost | *with c = 0
# too few for more
part | *tell = 2 & *with c = 2 & *the way = 2
open | *tell = 0
CA-26
steps = 100000
{MGDA|PCGrad}: spread of x₁ at the end = 12
{MGDA|PCGrad}: largest distance of 0 from the gradients' hull at the end, over the longest = 1e-6
{c = 0.2, printed sign|c = 0.5}: largest excess at the end = 1e-9
part | *sign* = 15.3
lost | c* = 15.3
lost | MGDA: spread* = 0.1
lost | PCGrad: largest* = 0.5
open | steps = 50
CA-28
steps = 100000
{GD|MGDA|PCGrad}: standard deviation of the mean loss at the end = 3
{GD|MGDA|PCGrad}: share arriving = 0.1..0.3
CAGrad: standard deviation of the mean loss at the end = 0.1
CAGrad: share arriving = 0.8..1
part | CAGrad: share* = 0.2..0.4
lost | CAGrad: share* = 0.2..0.4 & CAGrad: standard* = 9
CA-34
T = 10, n = 4: operations, full over fast = 2.1
T = 50, n = 8: operations, full over fast = 5.5
part | *4* = 9
lost | *4* = 9 & *8* = 1
X-01
steps = 100000
pairs that are not at rest = 0
dim {2|10}: share with an excess above 1 % of the initial gap = 0.01..0.04
toy: PCGrad's excess of the mean loss from (9, 9) = 0
part | *from* = 5
part | dim 2*gap = 0.1..0.2
lost | dim*gap = 0.1..0.2 & *from* = 5
open | pairs* = 2
X-02
steps = 100000
CAGrad: rise of the losing task after contact from {(10, -8)|(-8.5, -5)} = 5
MGDA: the same from (9, 9) = 0
lost | MGDA* = 1
lost | *-8) = 0
X-05
steps = 100000
{MGDA|PCGrad}: share of steps whose d raises a task = 0
{MGDA|PCGrad}: share of Adam's steps that raise a task, d raising none = 0.1
lost | MGDA: share of steps* = 0.1
lost | *none = 0
X-06
{MGDA, β₁ = 0|UPGrad, β₁ = 0.9}, on J Jᵀ: share of steps that raise a loss = 0.4..0.6
MGDA, β₁ = 0, on J P Jᵀ: share of steps that raise a loss = 0..0.01
UPGrad, β₁ = 0.9, on J P Jᵀ, safe: share of steps that raise a loss = 0..0.01
MGDA, β₁ = 0, on J P Jᵀ: smallest promised rate over the largest term = 0
UPGrad, β₁ = 0.9, on J P Jᵀ, safe: smallest promised rate over the largest term = 0
part | *safe: share* = 0.1..0.2
lost | *P J*: share* = 0.1..0.2
part | MGDA*: smallest* = -0.1
open | *P J*: share* = 0.01..0.2
open | *on J Jᵀ* = 0..0.1
X-07
exact polar factors, on J Jᵀ: share of steps that raise a loss = 0.7..0.9
Muon's Newton-Schulz steps, on J Jᵀ: share of steps that raise a loss = 0.7..0.9
exact polar factors, on the nuclear norm: share of steps that raise a loss = 0..0.01
Muon's Newton-Schulz steps, on the nuclear norm: share of steps that raise a loss = 0..0.01
exact polar factors, on the nuclear norm: smallest promised rate over the largest = 0.02
Muon's Newton-Schulz steps, on the nuclear norm: smallest promised rate over the largest = 0.02
part | Muon*norm: share* = 0.1..0.2
lost | *norm: share* = 0.1..0.2
part | exact*: smallest* = -0.1
lost | *: smallest* = -0.1
open | *norm: share* = 0.01..0.2
open | *on J Jᵀ* = 0..0.1
SI-26
{digits|planted}: rank correlation of Grad-TAG = 0.2..0.3
{digits|planted}: rank correlation of Grad-TAG less that of trained groups = -0.04..0.1
part | planted*Grad-TAG = -0.1..0.1
part | digits*groups = -0.3..-0.1
# each half in one family alone is neither shown nor enough
open | digits*Grad-TAG = -0.1..0.1 & planted*groups = -1..1
lost | digits*Grad-TAG = -0.3..-0.1 & planted*groups = -1..1
lost | *groups = -0.3..-0.1
open | *groups = -0.3..0.3
open | *Grad-TAG = -0.1..0.1
SI-28
{digits|planted}, three or more: rank correlation of averaged pairs = 0.2..0.3
digits, three or more: rank correlation of averaged pairs less that of trained groups = -0.04..0.1
planted, three or more: rank correlation of averaged pairs less that of trained groups = -0.04..0.1
part | planted*pairs = -0.1..0.1
part | digits*groups = -0.3..-0.1
open | digits*pairs = -0.1..0.1 & planted*groups = -1..1
lost | digits*pairs = -0.3..-0.1 & planted*groups = -1..1
lost | *groups = -0.3..-0.1
open | *groups = -0.3..0.3
open | *pairs = -0.1..0.1
SI-07
rank correlation of conflict with the excess training loss = 0.3..0.6
rank correlation of conflict with the excess test loss = -0.1..0.1
lost | *training loss = -0.6..-0.3
lost | *test loss = -0.6..-0.4
open | *test loss = 0.1..0.4
SI-10
Aligned-MTL, rank tolerance 0, weights {0.2 and 0.8|0.5 and 0.5}: \
share that ends at their optimum = 0.95..1
Aligned-MTL, rank tolerance 0, weights {0.2 and 0.8|0.5 and 0.5}: \
share that rests at another Pareto point = 0..0.05
part | *0.8: *optimum = 0.5..0.6
lost | *optimum = 0.5..0.6 & *0.5: *point = 0.3..0.5
open | *optimum = 0.5..0.6
SI-12
20 samples, shifted: rank correlation at overlap {0|10|20} = -0.1..0.1
20 samples, shifted: rank correlation at overlap {50|75|100} = 0.5..0.8
lost | *10 = 0.4..0.6
lost | *100 = 0..0.2
open | *50 = 0.2..0.6
GN-05
larger over smaller G_i, α = 0.12 = 1.1..1.3
w_2 at α = 1 over 0.5 = 0.7..1.1
w_2, α = 2 over α = 0 = 0.4..0.8
part | *over 0.5 = 1.1..1.2
part | *0 = 0.9..1.2
lost | larger* = 5..9 & *over 0.5 = 1.1..1.2
open | larger* = 5..9 & *0 = 0.9..1.2
GN-12
spread at α = 2 over α = 0 = 0.7..0.9
best α, √ scale, at the largest ratio less at 1 = 0.1..0.5
best α, √ scale, at the largest ratio less at 1, settles nothing = 0
part | *nothing = 1
part | *1 = -0.1..0.5
lost | spread* = 1.1..1.2 & *1 = -0.5..-0.1
open | spread* = 0.9..1.2 & *1 = -0.5..0.1
GN-19
their ratio = 0.98..1.02
lost | their ratio = 1.2..1.4
open | their ratio = 0.8..1.3
GN-20
smallest w_1/w_2 of a seed = 30
smallest w_1/w_2 of a seed after a quarter of the run = 20
path length of w_1 over its range = 1.1..1.3
part | path* = 5..9
part | *the run = 2
lost | *seed = 2
GN-25
runs of a full grid of 5 ratios, T = 2 = 5
runs of a full grid of 5 ratios, T = 5 = 625
values of α run, T = {2|10} = 3
lost | *5 = 12
lost | *10 = 30
GN-28
{sharper|noisy}: hard over easy task's L̃, equal weights = 1.2..1.4
{sharper|noisy} = 0.7..0.9
{sharper|noisy}, settles nothing = 0
part | sharper = 0.9..1.1
lost | sharper = 1.1..1.2 & noisy = 1.1..1.2
lost | *weights = 0.8..0.9
open | sharper = 0.9..1.1 & noisy = 0.9..1.1
open | *nothing = 1
SI-04
width {1|2}: share of draws in which MGDA ends at one = 0.1..0.3
width {1|2}: MGDA's worst loss less that of the best static weights there = -0.3..-0.1
width {1|2}: MGDA's worst loss less that of the best static weights there, settles nothing = 0
# each half at one width alone is neither shown nor enough
lost | width 1*there = 0.1..0.3 & width 2: share* = 0..0.08
part | width 1*there = 0.1..0.3
open | *there = -0.1..0.1
open | *nothing = 1
CA-37
summed, 9 steps: MGDA's weight on the main task = 0.1..0.2
summed, 9 steps: least cosine of d with a task, CAGrad minus equal weights = 0.1..0.2
summed, 9 steps: MGDA minus equal weights, accuracy = -0.3..-0.2
summed, 9 steps: CAGrad minus equal weights, accuracy = 0..0.1
summed, 9 steps: a best rate at the edge of its grid (1: yes) = 0
lost | *task = 0.5..0.6
lost | *MGDA minus* = -0.02..0.02
open | *steps: CAGrad* = -0.2..0.1
open | *best* = 1
"""


def spread(name: str) -> list[str]:
    """All that a name with braces stands for."""
    parts = [part.split("|") for part in re.split(r"[{}]", name)[1::2]]
    return [re.sub("{[^}]*}", "{}", name).format(*chosen) for chosen in product(*parts)]


def values(text: str) -> Iterator[tuple[str, Numbers]]:
    """(name or pattern, what is appended to a name: its number) of ` & `-separated equations."""
    for equation in text.split(" & "):
        name, number = equation.rsplit(" = ", 1)
        ends = [float(end) for end in number.split("..")]
        found = {"": sum(ends) / len(ends)}
        yield name, found | (dict(zip((", low", ", high"), ends, strict=True)) if ends[1:] else {})


def read(table: str) -> dict[str, list[tuple[Numbers, str]]]:
    """By claim: a first case whole, then changes to it and the verdicts that these must give."""
    found: dict[str, list[tuple[Numbers, str]]] = {}
    cases: list[tuple[Numbers, str]] = []
    for line in table.strip().splitlines():
        word, _, changes = line.partition(" | ")
        if re.fullmatch(r"[A-Z]+-\d+", line):
            found[line] = cases = [({}, "holds")]
        elif word in VERDICTS:
            changed = {
                name + end: number
                for pattern, ends in values(changes)
                for name in named_so(cases[0][0], pattern)
                if not name.endswith((", low", ", high"))
                for end, number in ends.items()
            }
            cases.append((changed, VERDICTS[word]))
        elif not line.startswith("#"):
            for name, ends in values(line):
                cases[0][0].update({x + end: ends[end] for x in spread(name) for end in ends})
    return found


OTHERS = read(TABLE)
