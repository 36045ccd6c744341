"""The claims of MGDA and MGDA-UB (Sener & Koltun 2018; Su 2022), as the ledger states them."""

from ..report.ledger import Row

ROWS = (
    Row(
        "SU-01",
        "exact",
        "Weights 1/‖g_i‖ make the update blind to the scale and the offset of every loss.",
        "mgda.unit_gradients",
    ),
    Row(
        "SU-02",
        "exact",
        "These weights add up unit gradients: designing losses is designing gradients.",
        "mgda.unit_gradients",
    ),
    Row(
        "SU-03",
        "exact",
        "To first order a step lowers a loss when it makes an obtuse angle with the "
        "gradient; steepest is against it.",
        "mgda.pareto",
    ),
    Row("SU-04", "not here", "Equal importance of tasks means that no step may raise any loss."),
    Row(
        "SU-05",
        "exact",
        "Pareto optimal: every change that lowers one loss raises another.",
        "mgda.pareto",
    ),
    Row(
        "SU-06",
        "exact",
        "Steps with ⟨g_i, Δ⟩ ≤ 0 for all tasks always exist: Δ = 0 is one.",
        "mgda.pareto",
    ),
    Row(
        "SU-07",
        "exact",
        "Where Δ = 0 is the only one the point is Pareto stationary.",
        "mgda.pareto",
    ),
    Row(
        "SU-08",
        "exact",
        "Pareto stationarity is necessary for optimality, not sufficient.",
        "mgda.pareto",
    ),
    Row(
        "SU-09",
        "exact",
        "The sum of unit gradients never raises one of two losses and rests only at "
        "stationarity; of three it may raise one.",
        "mgda.unit_gradients",
    ),
    Row(
        "SU-10",
        "exact",
        "Maximising the smallest ⟨g_i, u⟩ gives a common descent direction, and is "
        "unbounded without a penalty.",
        "mgda.pareto",
    ),
    Row(
        "SU-11",
        "exact",
        "With the penalty ½‖u‖² the maximiser descends on every task at a rate of at "
        "least half its squared length.",
        "mgda.adam",
    ),
    Row(
        "SU-12",
        "exact",
        "The smallest product can be smoothed by a log-sum-exp of temperature 1/λ.",
        "mgda.smoothing",
    ),
    Row(
        "SU-13",
        "exact",
        "At the smoothed optimum u is a softmax-weighted mean of the gradients.",
        "mgda.smoothing",
    ),
    Row(
        "SU-14",
        "exact",
        "As λ grows this becomes u ← the gradient of the smallest product, an iteration "
        "that oscillates.",
        "mgda.naive",
    ),
    Row(
        "SU-15",
        "synthetic",
        "The running average of that iteration converges to the optimum.",
        "mgda.naive",
    ),
    Row(
        "SU-16",
        "exact",
        "The limit is a convex combination of the gradients: its weights are the best "
        "weighting of the tasks.",
        "mgda.duality",
    ),
    Row(
        "SU-17",
        "exact",
        "A minimum over tasks is a minimum over distributions on them.",
        "mgda.duality",
    ),
    Row(
        "SU-18",
        "exact",
        "Maximum and minimum may be swapped, by von Neumann's theorem.",
        "mgda.duality",
    ),
    Row(
        "SU-19",
        "exact",
        "The dual problem is the shortest convex combination of the gradients.",
        "mgda.duality",
    ),
    Row(
        "SU-20",
        "exact",
        "For two tasks it is a perpendicular dropped on a segment: a clipped quotient.",
        "mgda.duality",
    ),
    Row(
        "SU-21",
        "synthetic",
        "For more, Frank–Wolfe with that quotient as its line search solves it, feasible "
        "throughout.",
        "mgda.solvers",
    ),
    Row(
        "SU-22",
        "exact",
        "With step 1/(n+1) Frank–Wolfe is the averaged smoothing iteration.",
        "mgda.naive",
    ),
    Row(
        "SU-23",
        "synthetic",
        "Gradient descent on w = softmax(a) solves it without constraints.",
        "mgda.solvers",
    ),
    Row(
        "SU-24",
        "synthetic",
        "Open question: why nobody does that; perhaps because of its learning rate.",
        "mgda.solvers",
    ),
    Row(
        "SU-25",
        "synthetic",
        "Solving for the weights within each training step costs considerably.",
        "mgda.cost_of_weights",
    ),
    Row(
        "SU-26",
        "exact",
        "Inner products of gradients are needed once a step: only the weights change inside.",
        "mgda.cost_of_weights",
    ),
    Row(
        "SU-27",
        "synthetic",
        "Even T separate gradients are out of reach for a very large model.",
        "mgda.cost_of_gradients",
    ),
    Row(
        "SU-28",
        "exact",
        "Task gradients are pulled back from the representation, so their combination is "
        "bounded by the one taken there.",
        "mgda.bound",
    ),
    Row(
        "SU-29",
        "synthetic",
        "Minimising that bound needs gradients at the representation alone, which is much cheaper.",
        "mgda.cost_of_gradients",
    ),
    Row(
        "SU-30",
        "synthetic",
        "Minimising the bound gives about what minimising the exact norm gives.",
        "mgda.random_encoders",
    ),
    Row(
        "SU-31",
        "exact",
        "With disjointly labelled samples the bound ignores how the tasks relate.",
        "mgda.bound",
    ),
    Row(
        "SU-32",
        "exact",
        "With an encoder Jacobian of full rank the bound's optimum finds Pareto-stationary points.",
        "mgda.full_rank",
    ),
    Row("SU-33", "exact", "The published proof uses a lemma that is false.", "mgda.counterexample"),
    Row(
        "SU-34",
        "exact",
        "No other proof can exist: a full-rank encoder does not keep the bound's "
        "direction from raising a task.",
        "mgda.counterexample",
    ),
    Row(
        "SU-35",
        "synthetic",
        "Hence the method may miss Pareto-stationary points.",
        "mgda.counterexample",
    ),
    Row(
        "SU-36",
        "synthetic",
        "It works in practice because networks have parameters to spare.",
        "mgda.random_encoders",
    ),
    Row(
        "SU-37",
        "data/RL",
        "The original experiments with the bound look good.",
        needs=(
            "`python -m experiments.scenes --data FOLDER --rules mean,mgda,mgda_ub`, on "
            "CityScapes, with a small network: the papers' has no one representation for the bound"
        ),
    ),
)
