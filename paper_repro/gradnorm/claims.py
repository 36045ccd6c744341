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
        "Imbalance shows in unequal gradient norms, and slows training.",
        "gradnorm.difficulty",
    ),
    Row(
        "GN-03",
        "exact",
        "The loss is Σ w_i(t) L_i with weights updated at every step.",
        "gradnorm.definitions",
    ),
    Row("GN-04", "synthetic", "Balanced tasks train at similar rates.", "gradnorm.regression"),
    Row(
        "GN-05",
        "synthetic",
        "Acting on gradient norms balances them, and α controls how.",
        "gradnorm.alpha",
    ),
    Row(
        "GN-06",
        "synthetic",
        "Tuning α alone matches or beats a grid search over the weights.",
        "gradnorm.search",
    ),
    Row(
        "GN-07",
        "synthetic",
        "Two aims: gradient norms on one scale, and similar training rates.",
        "gradnorm.two_aims",
    ),
    Row(
        "GN-08",
        "exact",
        "Norms are measured on the last shared layer W.",
        "gradnorm.measured_layer",
    ),
    Row(
        "GN-09",
        "exact",
        "Definitions of G_i, of the loss ratio L̃_i and of the relative inverse rate r_i.",
        "gradnorm.definitions",
    ),
    Row("GN-10", "exact", "A task's target norm is Ḡ r_i^α.", "gradnorm.targets"),
    Row(
        "GN-11",
        "synthetic",
        "A slow task has a larger target and so speeds up.",
        "gradnorm.two_aims",
    ),
    Row(
        "GN-12",
        "synthetic",
        "α sets the strength of the pull: larger for more unequal tasks.",
        "gradnorm.alpha",
    ),
    Row(
        "GN-13",
        "exact",
        "L_grad adds up the distances of the norms from their targets, which are held constant.",
        "gradnorm.algorithm",
    ),
    Row(
        "GN-14",
        "exact",
        "L_grad moves the weights alone, never the network.",
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
        "The whole loop: norms, rates, a step on the weights, a step on the network, rescaling.",
        "gradnorm.algorithm",
    ),
    Row(
        "GN-17",
        "synthetic",
        "With equal weights the task of the larger scale dominates.",
        "gradnorm.regression",
    ),
    Row(
        "GN-18",
        "synthetic",
        "The toy: regressions σ_i tanh((B + ε_i)x) by a ReLU network with a head a task.",
        "gradnorm.difficulty",
    ),
    Row(
        "GN-19",
        "exact",
        "The tasks differ in σ_i alone, so adding loss ratios is a fair metric.",
        "gradnorm.regression",
    ),
    Row(
        "GN-20",
        "synthetic",
        "T = 2: the small task's weight rises early, and the curves stay smooth.",
        "gradnorm.regression",
    ),
    Row(
        "GN-21",
        "synthetic",
        "So balanced the tasks end lower, in units of their first losses, than with equal weights.",
        "gradnorm.reach",
    ),
    Row(
        "GN-22",
        "synthetic",
        "Its weights, averaged over time and kept fixed, come close to the best of a grid.",
        "gradnorm.alpha",
    ),
    Row("GN-23", "synthetic", "Ten tasks gain as well.", "gradnorm.ten_tasks"),
    Row(
        "GN-24",
        "synthetic",
        "The gain grows with the number of tasks.",
        "gradnorm.ten_tasks",
    ),
    Row(
        "GN-25",
        "synthetic",
        "A grid search is exponential in T; GradNorm takes a few runs whatever T.",
        "gradnorm.search",
    ),
    Row(
        "GN-26",
        "data/RL",
        "It beats separate networks and other weightings in many settings.",
        needs=f"{MULTIMNIST}, in four architectures",
    ),
    Row("GN-27", "synthetic", "It reduces overfitting.", "gradnorm.difficulty"),
    Row(
        "GN-28",
        "synthetic",
        "It helps where tasks differ in difficulty, not in scale alone.",
        "gradnorm.difficulty",
    ),
)
