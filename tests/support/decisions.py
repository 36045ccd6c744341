"""Numbers made to win and to lose, for decisions that are functions of their own.

By claim: a first case whole, then changes to it and the verdict that these must give.
"""

Numbers = dict[str, float]
Cases = list[tuple[Numbers, str]]
WON, PART, LOST, OPEN = "holds", "holds only when", "does not hold", "inconclusive"


def between(name: str, low: float, high: float) -> Numbers:
    """A number and its interval."""
    return {name: (low + high) / 2, f"{name}, low": low, f"{name}, high": high}


def both(name: str, cases: tuple[str, ...], low: float, high: float) -> Numbers:
    """The same interval in several cases; `{}` in the name."""
    return {
        key: value for case in cases for key, value in between(name.format(case), low, high).items()
    }


def each(name: str, cases: tuple[str, ...], value: float) -> Numbers:
    return {name.format(case): value for case in cases}


def foretelling(forecast: str, of: str = "") -> Cases:
    """Claims that a forecast orders the gains of groups, and no worse than one training of each."""
    own = f"{{}}{of}: rank correlation of {forecast}"
    less = f"{own} less that of trained groups"
    return [
        (both(own, TASKS, 0.2, 0.3) | both(less, TASKS, -0.04, 0.1), WON),
        (between(own.format("planted"), -0.1, 0.1), PART),
        (between(less.format("digits"), -0.3, -0.1), PART),
        # each half in one family alone is neither shown nor enough
        (between(own.format("digits"), -0.1, 0.1) | between(less.format("planted"), -1, 1), OPEN),
        (between(own.format("digits"), -0.3, -0.1) | between(less.format("planted"), -1, 1), LOST),
        (both(less, TASKS, -0.3, -0.1), LOST),
        (both(less, TASKS, -0.3, 0.3), OPEN),
        (both(own, TASKS, -0.1, 0.1), OPEN),
    ]


def raising(
    plain: tuple[str, ...], share: tuple[float, float], mended: tuple[str, ...], promised: Numbers
) -> Cases:
    """Claims that steps raise a loss in such a share of cases, and mended ones, whose smallest
    `promised` rates are not negative, in none.
    """
    return [
        (both(STEPS_UP, plain, *share) | both(STEPS_UP, mended, 0, 0.01) | promised, WON),
        (between(STEPS_UP.format(mended[1]), 0.1, 0.2), PART),
        (both(STEPS_UP, mended, 0.1, 0.2), LOST),
        ({next(iter(promised)): -0.1}, LOST),
        (both(STEPS_UP, mended, 0.01, 0.2), OPEN),
        (both(STEPS_UP, plain, 0, 0.1), OPEN),
    ]


STEPS_UP = "{}: share of steps that raise a loss"
PROMISED = "{}: smallest promised rate over the largest term"
PLAIN = ("MGDA, β₁ = 0, on J Jᵀ", "UPGrad, β₁ = 0.9, on J Jᵀ")
BY_J = ("exact polar factors, on J Jᵀ", "Muon's Newton-Schulz steps, on J Jᵀ")
BY_NORM = tuple(x.replace("J Jᵀ", "the nuclear norm") for x in BY_J)
LEAST_RATE = "{}: smallest promised rate over the largest"
REMEDIED = ("MGDA, β₁ = 0, on J P Jᵀ", "UPGrad, β₁ = 0.9, on J P Jᵀ, safe")
TASKS = ("digits", "planted")
GOES = "rank correlation of conflict with the {}"
TRAINING, GENERAL = "excess training loss", "excess test loss"
WEIGHTS = ("0.2 and 0.8", "0.5 and 0.5")
ENDS = "Aligned-MTL, rank tolerance 0, weights {}: share that ends at their optimum"
RESTS = "Aligned-MTL, rank tolerance 0, weights {}: share that rests at another Pareto point"
OVERLAP = "20 samples, shifted: rank correlation at overlap {}"
LITTLE, ABOVE = ("0", "10", "20"), ("50", "75", "100")
OPTIMIZERS, PROBLEMS = ("SGD", "Adam"), ("regression", "maze")
FALL, OVER = (
    "{}, ρ = 1 to 3: change of task 1's fall",
    "{}: change of task 1's fall from ρ = 1 to 1000",
)
THREE, TWO = "conflict, gap, curvature", "conflict, gap, no curvature"
RIVALS = ("the plain step", "a plain step of the same length")
WINS = "{}; against {}: share of wins"
PAIRS = "long runs that end with neither cos < -.999 nor excess < 1e-6"
SLOPE, ROUND = "{}: slope of log H, per 100 steps", "{}: R²"
CLOSEST, CHANCE = "{}: closest quantity, share of seeds", "{}: share by chance, about"
FAMILIES = ("interior", "face")
REACHED = "{}: share that reaches a relative gap of 1e-6 at the best step"
SINGLE = "{}: share that reaches 1e-6, best single step for scales 1e-4 to 1e4"
TUNED = "{}: share that reaches 1e-6, step tuned to the scale"
WORK = "{}, T = 2, P = 9: operations of the solver over the step's"
ROWS = "T rows, T = 32: peak memory over one gradient's"
LAYERS = "layerwise Gramian, T = 32: peak memory over one gradient's"
END = "T = {}: mean normalised end loss, MGDA-UB less MGDA"
RAISED = "T = {}: share raising a task at initialisation"
HELD = "distance of 0 from the gradients' hull less ‖d‖"
HULL = "{}: largest distance of 0 from the gradients' hull at the end, over the longest"
ARRIVES = ("c = 0.2, printed sign", "c = 0.5")
PARTED = "{}: hard over easy task's L̃, equal weights"
AT_ONE = "{}: share of draws in which MGDA ends at one"
WORST = "{}: MGDA's worst loss less that of the best static weights there"
AWAY = "{}: share of ends that are not stationary"
FULL, THIN = "full row rank, {}", "row rank 2 of 4, {}"
OPTIMAL = "convex pairs: share with an excess below 1 %"
MET = "T = {}: share of PCGrad's directions met by some c"
BELOW = "c = {}: share below 1e-3"
REST = "T = {}: largest ‖d‖ of {}"
METHODS = ("GD", "MGDA", "PCGrad", "CAGrad")
NUDGED = "{}: largest change of the mean loss at the end under a nudge"
SPREAD, ARRIVING = "{}: standard deviation of the mean loss at the end", "{}: share arriving"
PUSHED, LOSING = (
    "MGDA: the same from (9, 9)",
    "CAGrad: rise of the losing task after contact from {}",
)
OUTER = ("(10, -8)", "(-8.5, -5)")
DIRECT = "{}: share of steps whose d raises a task"
BY_ADAM = "{}: share of Adam's steps that raise a task, d raising none"
FAST, FASTER = (
    "T = 10, n = 4: operations, full over fast",
    "T = 50, n = 8: operations, full over fast",
)
GAMMA, FALLS = "larger over smaller G_i, α = 0.12", "w_2 at α = 1 over 0.5"
TREND = "w_2, α = 2 over α = 0"
DRAWN = "T = 10: GradNorm over the best of as many random draws"
STRENGTH = "best α, √ scale, at the largest ratio less at 1"
SCALE = "summed, 9 steps: {}"
EDGE = "summed, 9 steps: a best rate at the edge of its grid (1: yes)"
WHOLE = {"steps": 100_000.0}

PCGRAD: dict[str, Cases] = {
    "PC-02": [
        (both(FALL, OPTIMIZERS, -2, -1) | both(OVER, OPTIMIZERS, -3, -2), WON),
        (both(FALL, ("SGD",), -2, 1), PART),
        (both(FALL, OPTIMIZERS, -2, 1) | both(OVER, OPTIMIZERS, 1, 2), LOST),
        (both(FALL, OPTIMIZERS, -2, 1) | both(OVER, OPTIMIZERS, -1, 2), OPEN),
    ],
    "PC-03": [
        (
            {
                key: value
                for rival in RIVALS
                for key, value in (
                    between(WINS.format(THREE, rival), 0.8, 0.9)
                    | between(WINS.format(TWO, rival), 0.1, 0.2)
                ).items()
            },
            WON,
        ),
        (between(WINS.format(TWO, RIVALS[0]), 0.6, 0.7), PART),
        (
            between(WINS.format(TWO, RIVALS[0]), 0.6, 0.7)
            | between(WINS.format(THREE, RIVALS[1]), 0.1, 0.2),
            LOST,
        ),
        (
            between(WINS.format(THREE, RIVALS[0]), 0.4, 0.7)
            | between(WINS.format(THREE, RIVALS[1]), 0.4, 0.7),
            OPEN,
        ),
    ],
    "PC-04": [
        (
            {
                "steps": 250_000.0,
                "sum: L_2 at the end": 35.0,
                "PCGrad: θ_1 at the end": -1.0,
                "PCGrad: L_2 at the end": -90.0,
            },
            WON,
        ),
        ({"sum: L_2 at the end": 20.0}, LOST),
        ({"PCGrad: L_2 at the end": 5.0}, LOST),
        ({"PCGrad: L_2 at the end": 5.0, "steps": 1000.0}, OPEN),
    ],
    "PC-05": [
        (each("{}: share of steps with H > 0", ("sum", "PCGrad"), 0.8), WON),
        ({"sum: share of steps with H > 0": 0.1}, PART),
        (each("{}: share of steps with H > 0", ("sum", "PCGrad"), 0.0), LOST),
    ],
    "PC-17": [
        ({"violations of the promised fall": 0, PAIRS: 0, "of these, conflicting": 9}, WON),
        ({"violations of the promised fall": 1}, LOST),
        ({PAIRS: 2}, OPEN),
        ({"of these, conflicting": 0}, OPEN),
    ],
    "PC-19": [
        (
            {
                "draws that meet the corrected hypotheses": 9,
                "violations of the corrected theorem": 0,
                "violations with weight 2(1 - s)": 0,
                "violations of the printed theorem": 0,
                "counterexample: L(θ^MT)": 1,
                "counterexample: L(θ^PCGrad)": 0,
                "counterexample: step": 4,
                "counterexample: shortest step, uniform weight": 4,
            },
            WON,
        ),
        ({"violations of the printed theorem": 3}, PART),
        ({"counterexample: L(θ^MT)": -2}, PART),
        ({"violations of the printed theorem": 3, "violations of the corrected theorem": 1}, LOST),
    ],
    "PC-26": [
        (both(SLOPE, PROBLEMS, 1, 2) | both(ROUND, PROBLEMS, 0.85, 0.95), WON),
        (between(ROUND.format("maze"), 0.4, 0.6), PART),
        (both(ROUND, PROBLEMS, 0.4, 0.6), LOST),
        (both(ROUND, PROBLEMS, 0.7, 0.9), OPEN),
        (both(SLOPE, PROBLEMS, -2, -1), LOST),
        (both(SLOPE, PROBLEMS, -1, 1), OPEN),
    ],
    "PC-29": [
        (both(CLOSEST, PROBLEMS, 0.6, 0.9) | each(CHANCE, PROBLEMS, 0.1), WON),
        (both(CLOSEST, PROBLEMS, 0.1, 0.4), LOST),
        (both(CLOSEST, PROBLEMS, 0.05, 0.7), OPEN),
        # more than a half of the seeds, but not by the interval
        (both(CLOSEST, PROBLEMS, 0.29, 0.73), OPEN),
        (each(CHANCE, PROBLEMS, 2.0), LOST),
    ],
    "PC-31": [
        (
            {
                "equal, step 1: distance of the last iterate from the run's mean": 0.0,
                "120°: orders of 8 with d = 0": 8,
                "equal, random order, 1/k: spread of the end points": 0.01,
            },
            WON,
        ),
        ({"equal, step 1: distance of the last iterate from the run's mean": 0.1}, PART),
        (
            {
                "equal, step 1: distance of the last iterate from the run's mean": 0.1,
                "equal, random order, 1/k: spread of the end points": 0.5,
            },
            LOST,
        ),
    ],
    "PC-32": [
        (each("{}, random order: distance of the mean end point", ("a", "b"), 0.01), WON),
        ({"a, random order: distance of the mean end point": 0.5}, PART),
        (each("{}, random order: distance of the mean end point", ("a", "b"), 0.5), LOST),
    ],
}

MGDA: dict[str, Cases] = {
    "SU-14": [
        (
            between("share of runs in a cycle longer than 1, optimum no vertex", 0.97, 1)
            | {"largest excess of 1 - max softmax over (T - 1) exp(-λ·margin)": 0},
            WON,
        ),
        (between("share of runs in a cycle longer than 1, optimum no vertex", 0.5, 0.7), LOST),
        (between("share of runs in a cycle longer than 1, optimum no vertex", 0.9, 1), OPEN),
        ({"largest excess of 1 - max softmax over (T - 1) exp(-λ·margin)": 0.1}, LOST),
    ],
    "SU-23": [
        (
            both(REACHED, FAMILIES, 0.96, 1.0)
            | each("{}: best step at the grid's edge (1: yes)", FAMILIES, 0)
            | {"steps": 5000},
            WON,
        ),
        (between(REACHED.format("face"), 0.0, 0.2), PART),
        (both(REACHED, FAMILIES, 0.0, 0.2), LOST),
        # 16 of 16
        (both(REACHED, FAMILIES, 0.806, 1.0), OPEN),
        (both(REACHED, FAMILIES, 0.0, 0.2) | {"steps": 100}, OPEN),
        (
            both(REACHED, FAMILIES, 0.0, 0.2) | {"face: best step at the grid's edge (1: yes)": 1},
            OPEN,
        ),
    ],
    "SU-24": [
        (both(SINGLE, FAMILIES, 0.1, 0.3) | both(TUNED, FAMILIES, 0.96, 1.0), WON),
        (between(TUNED.format("face"), 0.0, 0.2), PART),
        (both(SINGLE, FAMILIES, 0.96, 1.0), LOST),
        (both(SINGLE, FAMILIES, 0.9, 1.0), OPEN),
        (both(TUNED, FAMILIES, 0.0, 0.2), OPEN),
    ],
    "SU-25": [
        (each(WORK, ("exact", "loop"), 0.5), WON),
        ({WORK.format("exact"): 0.01}, PART),
        (each(WORK, ("exact", "loop"), 0.1), LOST),
    ],
    "SU-27": [
        ({ROWS: 30, LAYERS: 30, "relative difference of the two Gramians, largest": 0}, WON),
        ({LAYERS: 2}, PART),
        ({ROWS: 3}, LOST),
    ],
    "SU-30": [
        (
            both(END, ("2", "5"), -0.01, 0.01)
            | both(RAISED, ("2", "5"), 0, 0.01)
            | {"draws in which MGDA itself raises a task": 0},
            WON,
        ),
        ({"draws in which MGDA itself raises a task": 1}, OPEN),
        (between(RAISED.format("5"), 0.3, 0.4), PART),
        (both(END, ("2", "5"), 0.1, 0.2), LOST),
        (both(RAISED, ("2", "5"), 0.9, 0.95), LOST),
        (both(END, ("2", "5"), -0.1, 0.2), OPEN),
    ],
    "SU-32": [
        (
            {"draws in which one optimum is 0 and the other is not, full row rank": 0}
            | between("share whose bound direction raises a task, full row rank", 0, 0.1),
            WON,
        ),
        (between("share whose bound direction raises a task, full row rank", 0.2, 0.4), PART),
        ({"draws in which one optimum is 0 and the other is not, full row rank": 1}, LOST),
    ],
    "SU-35": [
        (
            between(AWAY.format(FULL.format("MGDA")), 0, 0.05)
            | between(AWAY.format(FULL.format("MGDA-UB")), 0, 0.05)
            | between(AWAY.format(THIN.format("MGDA")), 0, 0.05)
            | between(AWAY.format(THIN.format("MGDA-UB")), 0, 0.05)
            | {f"{HELD} of MGDA-UB, over the longest gradient": 0.3},
            WON,
        ),
        ({f"{HELD} of MGDA-UB, over the longest gradient": 1e-9}, LOST),
        (
            between(AWAY.format(FULL.format("MGDA-UB")), 0.3, 0.5)
            | {f"{HELD} of MGDA-UB, over the longest gradient": 1e-9},
            PART,
        ),
        (
            between(AWAY.format(FULL.format("MGDA")), 0.3, 0.5)
            | {f"{HELD} of MGDA-UB, over the longest gradient": 1e-9},
            OPEN,
        ),
    ],
    "SU-36": [
        (
            between("T = 2, q = 1, P = 61", 0.2, 0.3) | between("T = 2, q = 1, P = 999", 0, 0.01),
            WON,
        ),
        (between("T = 2, q = 1, P = 999", 0.05, 0.1), PART),
        (between("T = 2, q = 1, P = 999", 0.2, 0.3), LOST),
        (between("T = 2, q = 1, P = 999", 0.01, 0.3), OPEN),
    ],
}

SIGNS = "share of |tanh| above .99, {}"
STUCK = "stuck, printed starts, after {} steps (a literal loop)"
CAGRAD: dict[str, Cases] = {
    "CA-03": [
        ({REST.format(t, name): 0 for t in (2, 3) for name in ("MGDA", "PCGrad")}, WON),
        ({REST.format(3, "PCGrad"): 0.4}, PART),
        ({REST.format(2, "PCGrad"): 0.4}, LOST),
    ],
    "CA-04": [
        (WHOLE | each("{}: largest movement after contact", ("MGDA", "PCGrad"), 0), WON),
        ({"PCGrad: largest movement after contact": 1}, PART),
        (each("{}: largest movement after contact", ("MGDA", "PCGrad"), 1), LOST),
        ({"steps": 100}, OPEN),
    ],
    "CA-05": [
        (
            {
                "draws in which 'no common descent' and '0 in the hull' disagree": 0,
                "L_1 = L_2 = -x² at its stationary point 0": 0,
                "at 1/2": 1,
            },
            WON,
        ),
        ({"at 1/2": -0.25}, LOST),
        ({"draws in which 'no common descent' and '0 in the hull' disagree": 1}, OPEN),
    ],
    "CA-08": [
        (
            {
                "smallest where |x₁| > 0.5": 0,
                "largest distance of 0 from the gradients' hull, same unit": 0,
                "largest ‖g₀‖ over the longest gradient": 0,
            },
            WON,
        ),
        ({"smallest where |x₁| > 0.5": 0.1, "largest ‖g₀‖ over the longest gradient": 0.5}, LOST),
    ],
    "CA-13": [
        (
            both(MET, ("2", "3"), 0.97, 1)
            | {
                "c*: draws with the wrong sign at .95 c* and 1.05 c*": 0,
                "c*: largest relative distance of d to DualProj's": 0,
            },
            WON,
        ),
        (between(MET.format("3"), 0.1, 0.2), PART),
        (
            between(MET.format("3"), 0.1, 0.2)
            | {"c*: largest relative distance of d to DualProj's": 0.1},
            LOST,
        ),
        (between(MET.format("3"), 0.8, 1), OPEN),
    ],
    "CA-14": [
        (
            WHOLE
            | each("exact, c = {}: largest excess at the end", ("0.2", "0.5", "0.8", "0.9"), 0)
            | {"exact, c = 3: smallest excess at the end, (0, 0) aside": 0},
            WON,
        ),
        ({"exact, c = 3: smallest excess at the end, (0, 0) aside": 5}, PART),
        ({"exact, c = 0.5: largest excess at the end": 5}, LOST),
    ],
    "CA-17": [
        (each("{}, T = 2: most", ("conic", "SLSQP"), 1e-8), WON),
        ({"SLSQP, T = 2: most": 0.1}, PART),
        (each("{}, T = 2: most", ("conic", "SLSQP"), 0.1), LOST),
    ],
    "CA-19": [
        (both(BELOW, ("0.2", "0.9"), 0.95, 1) | {"steps": 800}, WON),
        (between(BELOW.format("0.9"), 0.4, 0.6), LOST),
        # 49 of 50
        (between(BELOW.format("0.9"), 0.895, 0.996), OPEN),
        (between(BELOW.format("0.9"), 0.4, 0.6) | {"steps": 10}, OPEN),
    ],
    "CA-21": [
        ({"largest ‖g₀‖ at the end": 0, "share ending at the other minimum": 0}, WON),
        ({"share ending at the other minimum": 0.5}, PART),
        ({"share ending at the other minimum": 1}, LOST),
        ({"largest ‖g₀‖ at the end": 1}, OPEN),
    ],
    "CA-24": [
        (WHOLE | each(NUDGED, METHODS, 0), WON),
        ({NUDGED.format("GD"): 1}, PART),
        (each(NUDGED, METHODS, 1), LOST),
    ],
    "CA-25": [
        (
            WHOLE
            | {"stuck, printed starts": 2, "stuck, (-8.5, -5) for (-8.5, 5)": 2}
            | each(STUCK, ("300000", "1000000"), 2),
            WON,
        ),
        ({STUCK.format(1_000_000): 0}, PART),
        ({"stuck, printed starts": 3}, PART),
        (
            {"stuck, printed starts": 3, "stuck, (-8.5, -5) for (-8.5, 5)": 4}
            | each(STUCK, ("300000", "1000000"), 0),
            LOST,
        ),
    ],
    "CA-27": [
        (
            WHOLE
            | {
                "starts that can tell": 6,
                "of these, with a distance that never grows with c": 6,
                "of these, with the largest c's contact within a tenth of the way": 6,
            },
            WON,
        ),
        ({"of these, with a distance that never grows with c": 1}, PART),
        ({"of these, with a distance that never grows with c": 0}, LOST),
        (
            {
                "starts that can tell": 2,
                "of these, with a distance that never grows with c": 2,
                "of these, with the largest c's contact within a tenth of the way": 2,
            },
            PART,  # too few for more
        ),
        ({"starts that can tell": 0}, OPEN),
    ],
    "CA-26": [
        (
            WHOLE
            | each("{}: spread of x₁ at the end", ("MGDA", "PCGrad"), 12)
            | each(HULL, ("MGDA", "PCGrad"), 1e-6)
            | each("{}: largest excess at the end", ARRIVES, 1e-9),
            WON,
        ),
        ({"c = 0.2, printed sign: largest excess at the end": 15.3}, PART),
        (each("{}: largest excess at the end", ARRIVES, 15.3), LOST),
        ({"MGDA: spread of x₁ at the end": 0.1}, LOST),
        ({HULL.format("PCGrad"): 0.5}, LOST),
        ({"steps": 50}, OPEN),
    ],
    "CA-28": [
        (
            WHOLE
            | each(SPREAD, METHODS[:3], 3)
            | both(ARRIVING, METHODS[:3], 0.1, 0.3)
            | {SPREAD.format("CAGrad"): 0.1}
            | between(ARRIVING.format("CAGrad"), 0.8, 1),
            WON,
        ),
        (between(ARRIVING.format("CAGrad"), 0.2, 0.4), PART),
        (between(ARRIVING.format("CAGrad"), 0.2, 0.4) | {SPREAD.format("CAGrad"): 9}, LOST),
    ],
    "CA-34": [({FAST: 2.1, FASTER: 5.5}, WON), ({FAST: 9}, PART), ({FAST: 9, FASTER: 1}, LOST)],
    "X-01": [
        (
            WHOLE
            | between("convex pairs: share ending Pareto stationary", 0.97, 1)
            | between(OPTIMAL, 0.93, 0.99)
            | {"toy: PCGrad's excess of the mean loss from (9, 9)": 0},
            WON,
        ),
        ({"toy: PCGrad's excess of the mean loss from (9, 9)": 5}, PART),
        (between(OPTIMAL, 0.1, 0.2), PART),
        (
            between(OPTIMAL, 0.1, 0.2) | {"toy: PCGrad's excess of the mean loss from (9, 9)": 5},
            LOST,
        ),
        (between("convex pairs: share ending Pareto stationary", 0.4, 0.6), OPEN),
    ],
    "X-02": [
        (WHOLE | each(LOSING, OUTER, 5) | {PUSHED: 0}, WON),
        ({PUSHED: 1}, LOST),
        ({LOSING.format(OUTER[0]): 0}, LOST),
    ],
    "X-05": [
        (WHOLE | each(DIRECT, ("MGDA", "PCGrad"), 0) | each(BY_ADAM, ("MGDA", "PCGrad"), 0.1), WON),
        ({DIRECT.format("MGDA"): 0.1}, LOST),
        (each(BY_ADAM, ("MGDA", "PCGrad"), 0), LOST),
    ],
}

OTHERS: dict[str, Cases] = {
    **PCGRAD,
    **MGDA,
    **CAGRAD,
    "X-06": raising(PLAIN, (0.4, 0.6), REMEDIED, each(PROMISED, REMEDIED, 0.0)),
    "X-07": raising(BY_J, (0.7, 0.9), BY_NORM, each(LEAST_RATE, BY_NORM, 0.02)),
    "SI-26": foretelling("Grad-TAG"),
    "SI-28": foretelling("averaged pairs", ", three or more"),
    "SI-07": [
        (between(GOES.format(TRAINING), 0.3, 0.6) | between(GOES.format(GENERAL), -0.1, 0.1), WON),
        (between(GOES.format(TRAINING), -0.6, -0.3), LOST),
        (between(GOES.format(GENERAL), -0.6, -0.4), LOST),
        (between(GOES.format(GENERAL), 0.1, 0.4), OPEN),
    ],
    "SI-10": [
        (both(ENDS, WEIGHTS, 0.95, 1) | both(RESTS, WEIGHTS, 0, 0.05), WON),
        (between(ENDS.format(WEIGHTS[0]), 0.5, 0.6), PART),
        (both(ENDS, WEIGHTS, 0.5, 0.6) | between(RESTS.format(WEIGHTS[1]), 0.3, 0.5), LOST),
        (both(ENDS, WEIGHTS, 0.5, 0.6), OPEN),
    ],
    "SI-12": [
        (both(OVERLAP, LITTLE, -0.1, 0.1) | both(OVERLAP, ABOVE, 0.5, 0.8), WON),
        (between(OVERLAP.format(LITTLE[1]), 0.4, 0.6), LOST),
        (between(OVERLAP.format(ABOVE[2]), 0.0, 0.2), LOST),
        (between(OVERLAP.format(ABOVE[0]), 0.2, 0.6), OPEN),
    ],
    "GN-05": [
        (between(GAMMA, 1.1, 1.3) | between(FALLS, 0.7, 1.1) | between(TREND, 0.4, 0.8), WON),
        (between(FALLS, 1.1, 1.2), PART),
        (between(TREND, 0.9, 1.2), PART),
        (between(GAMMA, 5, 9) | between(FALLS, 1.1, 1.2), LOST),
        (between(GAMMA, 5, 9) | between(TREND, 0.9, 1.2), OPEN),
    ],
    "GN-12": [
        (
            between("spread at α = 2 over α = 0", 0.7, 0.9)
            | between(STRENGTH, 0.1, 0.5)
            | {f"{STRENGTH}, settles nothing": 0},
            WON,
        ),
        ({f"{STRENGTH}, settles nothing": 1}, PART),
        (between(STRENGTH, -0.1, 0.5), PART),
        (between("spread at α = 2 over α = 0", 1.1, 1.2) | between(STRENGTH, -0.5, -0.1), LOST),
        (between("spread at α = 2 over α = 0", 0.9, 1.2) | between(STRENGTH, -0.5, 0.1), OPEN),
    ],
    "GN-19": [
        (between("their ratio", 0.98, 1.02), WON),
        (between("their ratio", 1.2, 1.4), LOST),
        (between("their ratio", 0.8, 1.3), OPEN),
    ],
    "GN-20": [
        (
            {
                "smallest w_1/w_2 of a seed": 30,
                "smallest w_1/w_2 of a seed after a quarter of the run": 20,
            }
            | between("path length of w_1 over its range", 1.1, 1.3),
            WON,
        ),
        (between("path length of w_1 over its range", 5, 9), PART),
        ({"smallest w_1/w_2 of a seed after a quarter of the run": 2}, PART),
        ({"smallest w_1/w_2 of a seed": 2}, LOST),
    ],
    "GN-25": [
        (
            {
                "runs of a full grid of 5 ratios, T = 2": 5,
                "runs of a full grid of 5 ratios, T = 5": 625,
                "values of α run, T = 2": 3,
                "values of α run, T = 10": 3,
            },
            WON,
        ),
        ({"runs of a full grid of 5 ratios, T = 5": 12}, LOST),
        ({"values of α run, T = 10": 30}, LOST),
    ],
    "GN-28": [
        (
            both(PARTED, ("sharper", "noisy"), 1.2, 1.4)
            | both("{}", ("sharper", "noisy"), 0.7, 0.9)
            | each("{}, settles nothing", ("sharper", "noisy"), 0),
            WON,
        ),
        (between("sharper", 0.9, 1.1), PART),
        (both("{}", ("sharper", "noisy"), 1.1, 1.2), LOST),
        (both(PARTED, ("sharper", "noisy"), 0.8, 0.9), LOST),
        (both("{}", ("sharper", "noisy"), 0.9, 1.1), OPEN),
        (each("{}, settles nothing", ("sharper", "noisy"), 1), OPEN),
    ],
    "SI-04": [
        (
            both(AT_ONE, ("width 1", "width 2"), 0.1, 0.3)
            | both(WORST, ("width 1", "width 2"), -0.3, -0.1)
            | each(f"{WORST}, settles nothing", ("width 1", "width 2"), 0),
            WON,
        ),
        # each half at one width alone is neither shown nor enough
        (
            between(WORST.format("width 1"), 0.1, 0.3) | between(AT_ONE.format("width 2"), 0, 0.08),
            LOST,
        ),
        (between(WORST.format("width 1"), 0.1, 0.3), PART),
        (both(WORST, ("width 1", "width 2"), -0.1, 0.1), OPEN),
        (each(f"{WORST}, settles nothing", ("width 1", "width 2"), 1), OPEN),
    ],
    "CA-37": [
        (
            between(SCALE.format("MGDA's weight on the main task"), 0.1, 0.2)
            | between(SCALE.format("MGDA minus equal weights, accuracy"), -0.3, -0.2)
            | between(SCALE.format("CAGrad minus equal weights, accuracy"), 0.0, 0.1)
            | between(
                SCALE.format("least cosine of d with a task, CAGrad minus equal weights"), 0.1, 0.2
            )
            | {EDGE: 0},
            WON,
        ),
        (between(SCALE.format("MGDA's weight on the main task"), 0.5, 0.6), LOST),
        (between(SCALE.format("MGDA minus equal weights, accuracy"), -0.02, 0.02), LOST),
        (between(SCALE.format("CAGrad minus equal weights, accuracy"), -0.2, 0.1), OPEN),
        ({EDGE: 1}, OPEN),
    ],
}
