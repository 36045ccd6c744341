"""The claims of GradNorm (Chen et al. 2018), as the ledger states them."""

from ..report.ledger import MULTIMNIST, Row

ROWS = (
    Row(
        "GN-01",
        "data/RL",
        "One network can beat many, but is hard to balance.",
        needs=MULTIMNIST,
    ),
    Row(
        "GN-02",
        "synthetic",
        "Imbalance between tasks shows in unequal gradient lengths, and slows training.",
        "gradnorm.difficulty",
    ),
    Row(
        "GN-03",
        "exact",
        "The loss is Σ w_i(t) L_i, with weights that are updated at every step.",
        "gradnorm.definitions",
    ),
    Row(
        "GN-04",
        "synthetic",
        "Balance means that all tasks train at similar rates.",
        "gradnorm.regression",
    ),
    Row(
        "GN-05",
        "synthetic",
        "Acting on gradient lengths balances them, and α controls the dynamics: the final "
        "weights move monotonically with it.",
        "gradnorm.alpha",
    ),
    Row(
        "GN-06",
        "synthetic",
        "Tuning α alone matches or beats an exhaustive search over the weights.",
        "gradnorm.search",
        instead="NYUv2",
    ),
    Row(
        "GN-07",
        "synthetic",
        "Two aims: gradient lengths on one scale, and tasks that train at similar rates.",
        "gradnorm.two_aims",
    ),
    Row(
        "GN-08",
        "exact",
        "Norms are measured on a subset W of the weights, normally the last shared layer.",
        "gradnorm.measured_layer",
    ),
    Row(
        "GN-09",
        "exact",
        "G_i = ‖∇_W(w_i L_i)‖, L̃_i = L_i(t)/L_i(0), r_i = L̃_i/mean L̃.",
        "gradnorm.definitions",
    ),
    Row("GN-10", "exact", "A task's target length is Ḡ r_i^α.", "gradnorm.targets"),
    Row(
        "GN-11",
        "synthetic",
        "A slow task has a larger target and so speeds up.",
        "gradnorm.two_aims",
    ),
    Row(
        "GN-12",
        "synthetic",
        "α sets the strength of the pull back to a common rate: larger for more unequal tasks.",
        "gradnorm.alpha",
    ),
    Row(
        "GN-13",
        "exact",
        "L_grad = Σ abs(G_i - Ḡ r_i^α) with the target held constant; its slope in w_i is "
        "sign(G_i - target_i)‖∇_W L_i‖.",
        "gradnorm.algorithm",
    ),
    Row(
        "GN-14",
        "exact",
        "L_grad moves the weights alone; they scale each task's gradient, and no gradient "
        "of L_grad reaches the network.",
        "gradnorm.definitions",
    ),
    Row(
        "GN-15",
        "exact",
        "After each update the weights are rescaled to sum to T.",
        "gradnorm.regression",
    ),
    Row(
        "GN-16",
        "exact",
        "The full loop: losses, G_i, Ḡ, r_i, L_grad, a step on w, a step on the network "
        "with the old weights, renormalisation.",
        "gradnorm.algorithm",
    ),
    Row(
        "GN-17",
        "synthetic",
        "With equal weights the large-scale, large-gradient task dominates: the small one "
        "is left behind.",
        "gradnorm.regression",
    ),
    Row(
        "GN-18",
        "synthetic",
        "The toy: σ_i tanh((B + ε_i)x), 250 inputs, 100 outputs, B ~ N(0, 10) common and "
        "ε_i ~ N(0, 3.5) private, four layers of 100 and a head per task, α = .12.",
        "gradnorm.difficulty",
    ),
    Row(
        "GN-19",
        "exact",
        "Tasks differ only in σ_i, so L_i(0)/σ_i² is the same for all and the sum of loss "
        "ratios is a fair metric.",
        "gradnorm.regression",
    ),
    Row(
        "GN-20",
        "synthetic",
        "From equal weights w_1 rises far above w_2; the curves separate early and stay smooth.",
        "gradnorm.regression",
    ),
    Row(
        "GN-21",
        "synthetic",
        "Balanced by GradNorm the tasks reach a lower normalised test error than with "
        "equal weights.",
        "gradnorm.reach",
    ),
    Row(
        "GN-22",
        "synthetic",
        "Static weights set to GradNorm's time average nearly match a grid search over "
        "static weights.",
        "gradnorm.alpha",
        instead="NYUv2",
    ),
    Row("GN-23", "synthetic", "Ten tasks also gain from GradNorm.", "gradnorm.ten_tasks"),
    Row(
        "GN-24",
        "synthetic",
        "The benefit grows with the number of tasks.",
        "gradnorm.ten_tasks",
    ),
    Row(
        "GN-25",
        "exact",
        "A grid search costs exponentially many runs in T, GradNorm a few whatever T.",
        "gradnorm.search",
    ),
    Row(
        "GN-26",
        "data/RL",
        "It beats separate networks and other weightings in many settings.",
        needs=f"{MULTIMNIST}, in four architectures",
    ),
    Row(
        "GN-27",
        "synthetic",
        "GradNorm reduces overfitting.",
        "gradnorm.difficulty",
        instead="NYUv2",
    ),
    Row(
        "GN-28",
        "synthetic",
        "Tasks of different difficulty fall out of step, and GradNorm helps; not scale alone.",
        "gradnorm.difficulty",
    ),
    Row(
        "GN-29",
        "synthetic",
        "GradNorm works for regression and classification losses alike.",
        "gradnorm.reach",
    ),
)
