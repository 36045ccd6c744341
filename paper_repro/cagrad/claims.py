"""The claims of CAGrad (Liu et al. 2021), as the ledger states them."""

from ..report.ledger import META_WORLD, MULTIMNIST, Row

ROWS = (
    Row(
        "CA-01",
        "data/RL",
        "Minimising the mean loss often leaves each task worse than alone.",
        needs=MULTIMNIST,
    ),
    Row(
        "CA-02",
        "synthetic",
        "Main cause: misaligned gradients, so the mean direction hurts some task; also "
        "unequal norms let a few tasks dominate.",
        "cagrad.diagnosis",
    ),
    Row(
        "CA-03",
        "exact",
        "Earlier methods are heuristics without convergence guarantee and/or may stop at "
        "any Pareto-stationary point.",
        "cagrad.fixed_points",
    ),
    Row(
        "CA-04",
        "synthetic",
        "MGDA and PCGrad stop learning once they meet the Pareto set.",
        "cagrad.toy_ends",
    ),
    Row(
        "CA-05",
        "exact",
        "A point is Pareto optimal when no direction improves all tasks at once.",
        "cagrad.definitions",
    ),
    Row(
        "CA-06",
        "synthetic",
        "Which Pareto point is reached depends strongly on the start; such runs may end "
        "unbalanced, some tasks good and others poor.",
        "cagrad.toy_ends",
    ),
    Row(
        "CA-07",
        "not here",
        "A method should not rest on meeting the Pareto set, but go on to where the mean is least.",
    ),
    Row(
        "CA-08",
        "exact",
        "At a Pareto-stationary point the mean loss is about the same whichever way one moves.",
        "cagrad.toy_ends",
    ),
    Row(
        "CA-09",
        "exact",
        "Conflict measure R(θ, d) = max_i (L_i(θ - ηd) - L_i(θ))/η ≈ -min_i ⟨g_i, d⟩; "
        "below 0 every loss falls, above 0 some loss rises.",
        "cagrad.definitions",
    ),
    Row(
        "CA-10",
        "exact",
        "Primal: max over d of min_i ⟨g_i, d⟩ subject to ‖d - g₀‖ <= c‖g₀‖.",
        "cagrad.dual",
    ),
    Row(
        "CA-11",
        "synthetic",
        "Keeping d in a ball around g₀ keeps the overall objective in view; c tunes how "
        "much the worst task counts.",
        "cagrad.role_of_c",
    ),
    Row(
        "CA-12",
        "exact",
        "Gradient descent (c = 0) and MGDA (c → ∞) are special cases.",
        "cagrad.role_of_c",
    ),
    Row(
        "CA-13",
        "exact",
        "Earlier methods in general are special cases.",
        "cagrad.special_cases",
    ),
    Row(
        "CA-14",
        "synthetic",
        "MGDA moves only where all agree and halts at disagreement; CAGrad puts the "
        "common good first and does not halt.",
        "cagrad.toy_ends",
    ),
    Row(
        "CA-15",
        "exact",
        "The primal has the model's dimension, the dual only T unknowns.",
        "cagrad.dual",
    ),
    Row(
        "CA-16",
        "exact",
        "Dual: min over the simplex of g_w·g₀ + √φ‖g_w‖, φ = c²‖g₀‖²; d = g₀ + (√φ/‖g_w‖) g_w.",
        "cagrad.dual",
    ),
    Row(
        "CA-17",
        "synthetic",
        "Standard optimisation libraries solve the dual efficiently.",
        "cagrad.dual_solvers",
    ),
    Row(
        "CA-18",
        "exact",
        "Fixed points of CAGrad are Pareto stationary (stated for c >= 1).",
        "cagrad.fixed_points",
    ),
    Row(
        "CA-19",
        "synthetic",
        "For 0 <= c < 1 the iterates approach stationary points of the mean loss.",
        "cagrad.convergence",
    ),
    Row(
        "CA-20",
        "synthetic",
        "Rate: Σ_k ‖g₀(θ_k)‖² <= 2(L₀(θ₀) - inf L₀)/(η(1 - c²)).",
        "cagrad.convergence",
    ),
    Row(
        "CA-21",
        "synthetic",
        "CAGrad's theorem shows convergence to the minimum of the mean.",
        "cagrad.convergence",
    ),
    Row(
        "CA-22",
        "synthetic",
        "CAGrad-Fast: gradients for a sampled subset of tasks (plus the mean), and only "
        "those in the minimum.",
        "cagrad.fast",
    ),
    Row(
        "CA-23",
        "synthetic",
        "Cost falls from T backward passes plus the solve to the subset's size plus one.",
        "cagrad.fast",
    ),
    Row(
        "CA-24",
        "synthetic",
        "The 2-D toy is reproducible: gradient descent, MGDA, PCGrad and CAGrad from five "
        "starts, Adam 1e-3, 1e5 steps.",
        "cagrad.toy_cusps",
    ),
    Row(
        "CA-25",
        "synthetic",
        "Gradient descent halts in 2 of 5 runs.",
        "cagrad.toy_cusps",
    ),
    Row(
        "CA-26",
        "synthetic",
        "MGDA and PCGrad end at different Pareto-stationary points by start; CAGrad "
        "reaches the minimum of the mean from all.",
        "cagrad.toy_ends",
    ),
    Row(
        "CA-27",
        "synthetic",
        "Depending on c, CAGrad's behaviour lies between gradient descent and MGDA.",
        "cagrad.toy_c",
    ),
    Row(
        "CA-28",
        "synthetic",
        "CAGrad is the most stable and predictable of the four.",
        "cagrad.toy_random_starts",
    ),
    Row(
        "CA-29",
        "exact",
        "Δm %: mean relative drop against single-task baselines, lower is better.",
        "cagrad.definitions",
    ),
    Row(
        "CA-30",
        "data/RL",
        "NYUv2: Δm .20 %, with surface normals no longer neglected.",
        needs="`python -m experiments.scenes --data FOLDER --full`, on NYUv2",
        published="Δm, %: CAGrad 0.20, others 1.38 to 6.96",
    ),
    Row(
        "CA-31",
        "data/RL",
        "CityScapes: Δm 11.64 %, better on depth.",
        needs="`python -m experiments.scenes --data FOLDER --full`, on CityScapes",
        published="Δm, %: CAGrad 11.64, others 18.29 to 90.02",
    ),
    Row(
        "CA-32",
        "data/RL",
        "Meta-World: success .83 on MT10 and .52 on MT50, above the others.",
        needs=META_WORLD,
        published="success on MT10 and MT50: CAGrad 0.83 and 0.52, others 0.49 to 0.73 and 0.36 to "
        "0.50",
    ),
    Row(
        "CA-33",
        "data/RL",
        "CAGrad-Fast is slightly below it: .82 and .50.",
        needs=(
            f"{META_WORLD}, with `mf.subset` as probe, which it does not offer. On two digits a "
            "subset of one task is all tasks; CA-22 has what a subset loses at one point, CA-34 "
            "its time"
        ),
        published="success on MT10 and MT50: 0.82 and 0.50",
    ),
    Row(
        "CA-34",
        "synthetic",
        "CAGrad-Fast is about 2× faster on MT10 and 5× on MT50.",
        "cagrad.fast",
        instead="Meta-World",
    ),
    Row(
        "CA-35",
        "data/RL",
        "Only CARE, which reads language descriptions of the tasks, does better.",
        needs="Meta-World and CARE with descriptions of its tasks, of which nothing here stands in",
        published="success of CARE on MT10 and MT50: 0.84 and 0.54",
    ),
    Row(
        "CA-36",
        "data/RL",
        "Semi-supervised CIFAR-10: highest mean accuracy for every number of labels.",
        needs="`python -m experiments.auxiliary --data FOLDER --full`, on CIFAR-10",
    ),
    Row(
        "CA-37",
        "synthetic",
        "MGDA neglects the main task and falls far below the baseline; CAGrad keeps main "
        "and auxiliary tasks balanced.",
        "cross_paper.auxiliaries",
        instead="CIFAR-10",
    ),
    Row(
        "CA-38",
        "data/RL",
        "Overall better than earlier gradient manipulation.",
        needs="what decides CA-30, CA-31, CA-32 and CA-36",
    ),
    Row(
        "CA-39",
        "synthetic",
        "CAGrad balances the objectives automatically.",
        "cagrad.role_of_c",
    ),
    Row(
        "CA-40",
        "synthetic",
        "A step of CAGrad costs K backward passes and the optimisation, O(KN + T), which does not "
        "depend on the model.",
        "cagrad.fast",
    ),
)
