"""Every claim of the four texts, one row each: what it says, how it can be checked, and which
reproduction decides it.

Numbers and verdicts are not here: they come from the runs. A row that the reproductions do not
decide says what deciding it would take.
"""

from typing import Literal, NamedTuple

Kind = Literal["exact", "synthetic", "data/RL", "not here"]

PAPERS = {
    "PC": "PCGrad (Yu et al. 2020)",
    "SU": "MGDA and MGDA-UB (Sener & Koltun 2018; Su 2022)",
    "CA": "CAGrad (Liu et al. 2021)",
    "GN": "GradNorm (Chen et al. 2018)",
    "X": "Links between the texts",
}
"""Titles by the letters that an id starts with."""

KINDS: dict[Kind, str] = {
    "exact": "algebra, fractions or a deterministic computation",
    "synthetic": "a seeded experiment on made-up problems",
    "data/RL": "needs real data or a reinforcement-learning benchmark",
    "not here": "a choice or an aim: nothing to measure",
}


class Row(NamedTuple):
    id: str
    kind: Kind
    statement: str  # one sentence; Δ, w, g, d as in the papers
    # the reproduction that decides it; an exact or synthetic row without one is open
    module: str = ""
    needs: str = ""  # what else deciding it takes

    @property
    def paper(self) -> str:
        return self.id.split("-")[0]


ONLY_FULL = "--full: the default run leaves it out"

ROWS = (
    # ---- PCGrad ----
    Row(
        "PC-01",
        "data/RL",
        "Joint training on shared parameters can end below separate networks.",
        needs="tuned joint and single-task networks on data",
    ),
    Row(
        "PC-02",
        "synthetic",
        "The largest gradient dominates the sum, and the tasks with small ones are under-served.",
        "pcgrad_training",
    ),
    Row(
        "PC-03",
        "synthetic",
        "Interference does harm only where conflict, unequal lengths and high curvature meet.",
        "pcgrad_theory",
    ),
    Row(
        "PC-04",
        "synthetic",
        "Figure 1: on a landscape of sharp valleys Adam on the sum is stuck and PCGrad gets "
        "through.",
        "pcgrad_landscape",
    ),
    Row(
        "PC-05",
        "exact",
        "That landscape is sharply curved in the sense of the theory.",
        "pcgrad_landscape",
    ),
    Row(
        "PC-06",
        "exact",
        "PCGrad edits gradients alone, so it fits any model, supervised, reinforcement or "
        "goal-conditioned.",
        "pcgrad_definitions",
    ),
    Row(
        "PC-07",
        "data/RL",
        "It adds to the gain of other multi-task architectures.",
        needs="several architectures with and without it, on data",
    ),
    Row(
        "PC-08",
        "data/RL",
        "It needs less data, optimises faster and ends better.",
        needs="tuned methods on data",
    ),
    Row(
        "PC-09",
        "exact",
        "The loss is the plain sum of the tasks' losses, an expectation over tasks up to a "
        "factor T.",
        "pcgrad_definitions",
    ),
    Row(
        "PC-10",
        "exact",
        "Definition 1: two gradients conflict when their cosine is negative.",
        "pcgrad_definitions",
    ),
    Row(
        "PC-11",
        "exact",
        "Definition 2: magnitude similarity Φ compares two lengths, 1 when they are equal.",
        "pcgrad_definitions",
    ),
    Row(
        "PC-12",
        "exact",
        "Definition 3: multi-task curvature is gᵀ∇²L g averaged over the step, read as the "
        "change of curvature along it.",
        "pcgrad_definitions",
    ),
    Row(
        "PC-13",
        "exact",
        "Definition 4: one plain step and one PCGrad step on the sum of two losses.",
        "pcgrad_definitions",
    ),
    Row(
        "PC-14",
        "exact",
        "Definition 5: ξ, the factor by which PCGrad changes the squared length of a conflicting "
        "sum.",
        "pcgrad_definitions",
    ),
    Row(
        "PC-15",
        "exact",
        "Algorithm 1: project each gradient off every conflicting other one in random order, and "
        "add them up.",
        "pcgrad_definitions",
    ),
    Row(
        "PC-16",
        "exact",
        "A projected gradient no longer conflicts with the one it was projected off; without "
        "conflict nothing changes.",
        "pcgrad_definitions",
    ),
    Row(
        "PC-17",
        "synthetic",
        "Theorem 1: on convex smooth losses with steps up to 1/ℒ PCGrad reaches opposed "
        "gradients or the optimum.",
        "pcgrad_theory",
    ),
    Row(
        "PC-18",
        "synthetic",
        "In practice it nearly always reaches the optimum, not opposed gradients.",
        "pcgrad_theory",
    ),
    Row(
        "PC-19",
        "synthetic",
        "Theorem 2: under conflict, high curvature and a long step, PCGrad's step ends no higher "
        "than the plain one.",
        "pcgrad_theory",
    ),
    Row(
        "PC-20",
        "synthetic",
        "So PCGrad converges faster than gradient descent where these three conditions meet.",
        "pcgrad_theory",
    ),
    Row(
        "PC-21",
        "data/RL",
        "It wins on Meta-World MT10 and MT50, on supervised and on goal-conditioned benchmarks.",
        needs="these benchmarks",
    ),
    Row(
        "PC-22",
        "data/RL",
        "The baselines there: one policy for all, a head a task, independent policies.",
        needs="these benchmarks",
    ),
    Row(
        "PC-23",
        "synthetic",
        "Ablation: PCGrad's direction at the plain gradient's length does worse.",
        "pcgrad_landscape",
    ),
    Row(
        "PC-24",
        "synthetic",
        "Ablation: the plain direction at PCGrad's length does worse.",
        "pcgrad_landscape",
    ),
    Row(
        "PC-25",
        "synthetic",
        "Ablation: balancing lengths alone (GradNorm) does worse.",
        "pcgrad_landscape",
    ),
    Row(
        "PC-26",
        "synthetic",
        "Figure 5: the curvature rises about exponentially in training.",
        "pcgrad_training",
    ),
    Row(
        "PC-27",
        "synthetic",
        "Figure 5: conflict becomes more frequent in training.",
        "pcgrad_training",
    ),
    Row(
        "PC-28", "synthetic", "Figure 5: one task's progress dominates early on.", "pcgrad_training"
    ),
    Row(
        "PC-29",
        "synthetic",
        "Open question: does any logged quantity mark the moment at which the second task sets in?",
        "pcgrad_training",
    ),
    Row(
        "PC-30",
        "exact",
        "The theory covers two tasks; with three, projections can undo one another.",
        "pcgrad_many",
    ),
    Row(
        "PC-31",
        "synthetic",
        "Open question: what does PCGrad do with three gradients at 120°, and does it converge "
        "for T ≥ 3?",
        "pcgrad_many",
    ),
    Row(
        "PC-32",
        "synthetic",
        "The random order of projections is the remedy for many tasks.",
        "pcgrad_many",
    ),
    # ---- MGDA and MGDA-UB ----
    Row(
        "SU-01",
        "exact",
        "Weights 1/‖g_i‖ make the update blind to the scale and the offset of every loss.",
        "maxmin_theory",
    ),
    Row(
        "SU-02",
        "exact",
        "These weights add up unit gradients: designing losses is designing gradients.",
        "maxmin_theory",
    ),
    Row(
        "SU-03",
        "exact",
        "To first order a step lowers a loss when it makes an obtuse angle with the gradient; "
        "steepest is against it.",
        "maxmin_theory",
    ),
    Row("SU-04", "not here", "Equal importance of tasks means that no step may raise any loss."),
    Row(
        "SU-05",
        "exact",
        "Pareto optimal: every change that lowers one loss raises another.",
        "maxmin_theory",
    ),
    Row(
        "SU-06",
        "exact",
        "Steps with ⟨g_i, Δ⟩ ≤ 0 for all tasks always exist: Δ = 0 is one.",
        "maxmin_theory",
    ),
    Row(
        "SU-07",
        "exact",
        "Where Δ = 0 is the only one the point is Pareto stationary.",
        "maxmin_theory",
    ),
    Row(
        "SU-08",
        "exact",
        "Pareto stationarity is necessary for optimality, not sufficient.",
        "maxmin_theory",
    ),
    Row(
        "SU-09",
        "exact",
        "The sum of unit gradients never raises one of two losses and rests only at "
        "stationarity; of three it may raise one.",
        "maxmin_theory",
    ),
    Row(
        "SU-10",
        "exact",
        "Maximising the smallest ⟨g_i, u⟩ gives a common descent direction, and is unbounded "
        "without a penalty.",
        "maxmin_theory",
    ),
    Row(
        "SU-11",
        "exact",
        "With the penalty ½‖u‖² the maximiser descends on every task at a rate of at least half "
        "its squared length.",
        "maxmin_adam",
    ),
    Row(
        "SU-12",
        "exact",
        "The smallest product can be smoothed by a log-sum-exp of temperature 1/λ.",
        "maxmin",
    ),
    Row(
        "SU-13",
        "exact",
        "At the smoothed optimum u is a softmax-weighted mean of the gradients.",
        "maxmin",
    ),
    Row(
        "SU-14",
        "exact",
        "As λ grows this becomes u ← the gradient of the smallest product, an iteration that "
        "oscillates.",
        "maxmin",
    ),
    Row(
        "SU-15",
        "synthetic",
        "The running average of that iteration converges to the optimum.",
        "maxmin",
    ),
    Row(
        "SU-16",
        "exact",
        "The limit is a convex combination of the gradients: its weights are the best weighting "
        "of the tasks.",
        "maxmin_theory",
    ),
    Row(
        "SU-17",
        "exact",
        "A minimum over tasks is a minimum over distributions on them.",
        "maxmin_theory",
    ),
    Row(
        "SU-18",
        "exact",
        "Maximum and minimum may be swapped, by von Neumann's theorem.",
        "maxmin_theory",
    ),
    Row(
        "SU-19",
        "exact",
        "The dual problem is the shortest convex combination of the gradients.",
        "maxmin_theory",
    ),
    Row(
        "SU-20",
        "exact",
        "For two tasks it is a perpendicular dropped on a segment: a clipped quotient.",
        "maxmin_theory",
    ),
    Row(
        "SU-21",
        "synthetic",
        "For more, Frank–Wolfe with that quotient as its line search solves it, feasible "
        "throughout.",
        "maxmin",
    ),
    Row(
        "SU-22",
        "exact",
        "With step 1/(n+1) Frank–Wolfe is the averaged smoothing iteration.",
        "maxmin",
    ),
    Row(
        "SU-23",
        "synthetic",
        "Gradient descent on w = softmax(a) solves it without constraints.",
        "maxmin",
    ),
    Row(
        "SU-24",
        "synthetic",
        "Open question: why nobody does that; perhaps because of its learning rate.",
        "maxmin",
    ),
    Row(
        "SU-25",
        "synthetic",
        "Solving for the weights within each training step costs considerably.",
        "maxmin_cost",
    ),
    Row(
        "SU-26",
        "exact",
        "Inner products of gradients are needed once a step: only the weights change inside.",
        "maxmin_cost",
    ),
    Row(
        "SU-27",
        "synthetic",
        "Even T separate gradients are out of reach for a very large model.",
        "maxmin_cost",
    ),
    Row(
        "SU-28",
        "exact",
        "Task gradients are pulled back from the representation, so their combination is bounded "
        "by the one taken there.",
        "mgda_ub",
    ),
    Row(
        "SU-29",
        "synthetic",
        "Minimising that bound needs gradients at the representation alone, which is much cheaper.",
        "maxmin_cost",
    ),
    Row(
        "SU-30",
        "synthetic",
        "Minimising the bound gives about what minimising the exact norm gives.",
        "mgda_ub",
    ),
    Row(
        "SU-31",
        "exact",
        "With disjointly labelled samples the bound ignores how the tasks relate.",
        "mgda_ub",
    ),
    Row(
        "SU-32",
        "exact",
        "With an encoder Jacobian of full rank the bound's optimum finds Pareto-stationary points.",
        "mgda_ub",
    ),
    Row("SU-33", "exact", "The published proof uses a lemma that is false.", "mgda_ub"),
    Row(
        "SU-34",
        "exact",
        "No other proof can exist: a full-rank encoder does not keep the bound's direction from "
        "raising a task.",
        "mgda_ub",
    ),
    Row("SU-35", "synthetic", "Hence the method may miss Pareto-stationary points.", "mgda_ub"),
    Row(
        "SU-36",
        "synthetic",
        "It works in practice because networks have parameters to spare.",
        "mgda_ub",
    ),
    Row(
        "SU-37",
        "data/RL",
        "The original experiments with the bound look good.",
        needs="their datasets",
    ),
    # ---- CAGrad ----
    Row(
        "CA-01",
        "data/RL",
        "Minimising the mean loss often leaves each task worse than alone.",
        needs="tuned joint and single-task networks on data",
    ),
    Row(
        "CA-02",
        "synthetic",
        "The main cause is gradients at odds: the mean direction hurts some task.",
        "cagrad_theory",
    ),
    Row(
        "CA-03",
        "exact",
        "Earlier methods can rest anywhere on the Pareto-stationary set.",
        "cagrad_theory",
    ),
    Row(
        "CA-04",
        "synthetic",
        "MGDA and PCGrad stop as soon as they meet the Pareto set.",
        "cagrad_toy",
    ),
    Row(
        "CA-05",
        "exact",
        "Where no direction lowers every loss the point is Pareto optimal.",
        "cagrad_theory",
    ),
    Row(
        "CA-06",
        "synthetic",
        "Which Pareto point they reach depends on the start, and some are unbalanced.",
        "cagrad_toy",
    ),
    Row(
        "CA-07",
        "not here",
        "A method should not rest on meeting the Pareto set, but go on to where the mean is least.",
    ),
    Row(
        "CA-08",
        "exact",
        "The mean loss is about level around any Pareto-stationary point.",
        "cagrad_toy",
    ),
    Row(
        "CA-09",
        "exact",
        "The conflict measure R(θ, d) is minus the smallest rate, to first order.",
        "cagrad_theory",
    ),
    Row(
        "CA-10",
        "exact",
        "The primal: the largest worst rate in a ball of radius c‖g₀‖ around the mean gradient.",
        "cagrad_theory",
    ),
    Row(
        "CA-11",
        "synthetic",
        "The ball keeps the mean objective in view, and c sets how much the worst task counts.",
        "cagrad_theory",
    ),
    Row("CA-12", "exact", "It is gradient descent at c = 0 and MGDA as c → ∞.", "cagrad_theory"),
    Row("CA-13", "exact", "Other earlier methods are special cases as well.", "cagrad_theory"),
    Row("CA-14", "synthetic", "MGDA halts where tasks disagree; CAGrad does not.", "cagrad_toy"),
    Row(
        "CA-15",
        "exact",
        "The dual has T unknowns where the primal has as many as the model.",
        "cagrad_theory",
    ),
    Row(
        "CA-16",
        "exact",
        "The dual is g_w·g₀ + √φ‖g_w‖ over the simplex, and gives d in closed form.",
        "cagrad_theory",
    ),
    Row("CA-17", "synthetic", "Standard optimisers solve the dual efficiently.", "cagrad_fast"),
    Row("CA-18", "exact", "CAGrad's fixed points are Pareto stationary.", "cagrad_theory"),
    Row(
        "CA-19",
        "synthetic",
        "For c < 1 it approaches stationary points of the mean loss.",
        "cagrad_theory",
    ),
    Row(
        "CA-20",
        "synthetic",
        "The squared mean gradients sum to at most 2(L₀(θ₀) - inf L₀)/(η(1 - c²)).",
        "cagrad_theory",
    ),
    Row(
        "CA-21", "synthetic", "This shows convergence to the minimum of the mean.", "cagrad_theory"
    ),
    Row(
        "CA-22",
        "synthetic",
        "CAGrad-Fast: the minimum runs over a sampled subset of tasks.",
        "cagrad_fast",
    ),
    Row(
        "CA-23",
        "synthetic",
        "Its cost is one backward pass for each sampled task, and one for the mean.",
        "cagrad_fast",
    ),
    Row(
        "CA-24",
        "synthetic",
        "The toy: four methods from five starts, 100,000 steps of Adam.",
        "cagrad_toy",
    ),
    Row("CA-25", "synthetic", "Gradient descent halts in two of the five runs.", "cagrad_toy"),
    Row(
        "CA-26",
        "synthetic",
        "MGDA's and PCGrad's end points depend on the start, CAGrad's is the minimum of the mean "
        "throughout.",
        "cagrad_toy",
    ),
    Row(
        "CA-27",
        "synthetic",
        "As c grows CAGrad's behaviour goes from gradient descent's to MGDA's.",
        "cagrad_toy",
    ),
    Row(
        "CA-28",
        "synthetic",
        "Of the four, CAGrad is the steadiest and the easiest to predict.",
        "cagrad_toy",
    ),
    Row(
        "CA-29",
        "exact",
        "Δm is the relative drop against networks of one task each, averaged over all metrics.",
        "cagrad_theory",
    ),
    Row(
        "CA-30",
        "data/RL",
        "NYUv2: Δm .20 %, with surface normals no longer neglected.",
        needs="NYUv2",
    ),
    Row("CA-31", "data/RL", "CityScapes: Δm 11.64 %, better on depth.", needs="CityScapes"),
    Row(
        "CA-32",
        "data/RL",
        "Meta-World: success .83 on MT10 and .52 on MT50, above the others.",
        needs="Meta-World",
    ),
    Row("CA-33", "data/RL", "CAGrad-Fast is slightly below it: .82 and .50.", needs="Meta-World"),
    Row(
        "CA-34",
        "synthetic",
        "CAGrad-Fast is about twice as fast for ten tasks and five times for fifty.",
        "cagrad_fast",
    ),
    Row(
        "CA-35",
        "data/RL",
        "Only CARE, which reads language descriptions of the tasks, does better.",
        needs="Meta-World",
    ),
    Row(
        "CA-36",
        "data/RL",
        "Semi-supervised CIFAR-10: highest mean accuracy for every number of labels.",
        needs="CIFAR-10, or digits as a stand-in",
    ),
    Row(
        "CA-37",
        "synthetic",
        "There MGDA neglects the main task, and CAGrad keeps the balance.",
        "links",
    ),
    Row(
        "CA-38",
        "data/RL",
        "Overall better than earlier gradient manipulation.",
        needs="tuned methods on many problems",
    ),
    # ---- GradNorm ----
    Row(
        "GN-01",
        "data/RL",
        "One network can beat many, but is hard to balance.",
        needs="tuned joint and single-task networks on data",
    ),
    Row(
        "GN-02",
        "synthetic",
        "Imbalance shows in unequal gradient norms, and slows training.",
        "gradnorm_rates",
    ),
    Row(
        "GN-03",
        "exact",
        "The loss is Σ w_i(t) L_i with weights updated at every step.",
        "gradnorm_rates",
    ),
    Row("GN-04", "synthetic", "Balanced tasks train at similar rates.", "gradnorm"),
    Row(
        "GN-05",
        "synthetic",
        "Acting on gradient norms balances them, and α controls how.",
        "gradnorm",
    ),
    Row(
        "GN-06",
        "synthetic",
        "Tuning α alone matches or beats a grid search over the weights.",
        "gradnorm_rates",
    ),
    Row(
        "GN-07",
        "synthetic",
        "Two aims: gradient norms on one scale, and similar training rates.",
        "gradnorm_rates",
    ),
    Row("GN-08", "exact", "Norms are measured on the last shared layer W.", "gradnorm_rates"),
    Row(
        "GN-09",
        "exact",
        "Definitions of G_i, of the loss ratio L̃_i and of the relative inverse rate r_i.",
        "gradnorm_rates",
    ),
    Row("GN-10", "exact", "A task's target norm is Ḡ r_i^α.", "gradnorm_rates"),
    Row(
        "GN-11", "synthetic", "A slow task has a larger target and so speeds up.", "gradnorm_rates"
    ),
    Row(
        "GN-12",
        "synthetic",
        "α sets the strength of the pull: larger for more unequal tasks.",
        "gradnorm",
    ),
    Row(
        "GN-13",
        "exact",
        "L_grad adds up the distances of the norms from their targets, which are held constant.",
        "gradnorm",
    ),
    Row("GN-14", "exact", "L_grad moves the weights alone, never the network.", "gradnorm_rates"),
    Row("GN-15", "exact", "After each update the weights are rescaled to sum to T.", "gradnorm"),
    Row(
        "GN-16",
        "exact",
        "The whole loop: norms, rates, a step on the weights, a step on the network, rescaling.",
        "gradnorm",
    ),
    Row(
        "GN-17",
        "synthetic",
        "With equal weights the task of the larger scale dominates.",
        "gradnorm",
    ),
    Row(
        "GN-18",
        "synthetic",
        "The toy: regressions σ_i tanh((B + ε_i)x) by a ReLU network with a head a task.",
        "gradnorm_rates",
    ),
    Row(
        "GN-19",
        "exact",
        "The tasks differ in σ_i alone, so adding loss ratios is a fair metric.",
        "gradnorm",
    ),
    Row(
        "GN-20",
        "synthetic",
        "T = 2: the small task's weight rises early, and the curves stay smooth.",
        "gradnorm",
    ),
    Row(
        "GN-21",
        "synthetic",
        "So balanced the tasks end lower, in units of their first losses, than with equal weights.",
        "gradnorm",
    ),
    Row(
        "GN-22",
        "synthetic",
        "Its weights, averaged over time and kept fixed, come close to the best of a grid.",
        "gradnorm",
    ),
    Row("GN-23", "synthetic", "Ten tasks gain as well.", "gradnorm", ONLY_FULL),
    Row("GN-24", "synthetic", "The gain grows with the number of tasks.", "gradnorm", ONLY_FULL),
    Row(
        "GN-25",
        "exact",
        "A grid search is exponential in T; GradNorm takes a few runs whatever T.",
        "gradnorm_rates",
    ),
    Row(
        "GN-26",
        "data/RL",
        "It beats separate networks and other weightings in many settings.",
        needs="tuned methods on data",
    ),
    Row("GN-27", "synthetic", "It reduces overfitting.", "gradnorm_rates"),
    Row(
        "GN-28",
        "synthetic",
        "It helps where tasks differ in difficulty, not in scale alone.",
        "gradnorm_rates",
    ),
    # ---- between the texts ----
    Row(
        "X-01",
        "synthetic",
        "PCGrad practically reaches the optimum, or stops at Pareto points: the texts differ.",
        "cagrad_toy",
    ),
    Row(
        "X-02",
        "synthetic",
        "Never raise a loss, or trade losses for a better mean: two aims that differ.",
        "cagrad_toy",
    ),
    Row("X-03", "exact", "GradNorm with α = 0 rests at the sum of unit gradients on W.", "links"),
    Row(
        "X-04",
        "exact",
        "Min-norm weights of orthogonal gradients are ∝ 1/‖g‖²: MGDA favours small ones.",
        "cagrad_theory",
    ),
    Row(
        "X-05",
        "synthetic",
        "Descent guarantees hold for steps along d; the experiments step by Adam.",
        "cagrad_toy",
    ),
)
LEDGER = {row.id: row for row in ROWS}
