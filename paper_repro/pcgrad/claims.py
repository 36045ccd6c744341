"""The claims of PCGrad (Yu et al. 2020), as the ledger states them."""

from ..report.ledger import META_WORLD, MULTIMNIST, Row

ROWS = (
    Row(
        "PC-01",
        "data/RL",
        "Joint training on shared parameters can end below separate networks.",
        needs=MULTIMNIST,
    ),
    Row(
        "PC-02",
        "synthetic",
        "The summed gradient can be dominated by the largest one, which is then "
        "over-served while the others are under-served.",
        "pcgrad.dominance",
    ),
    Row(
        "PC-03",
        "synthetic",
        "Harmful interference needs three things together: conflict, very unequal "
        "magnitudes, strong curvature.",
        "pcgrad.interference",
    ),
    Row(
        "PC-04",
        "synthetic",
        "Figure 1: in sharp valley walls descent follows task 1's valley and learns task "
        "2 extremely slowly; PCGrad gets out.",
        "pcgrad.figure1",
    ),
    Row(
        "PC-05",
        "exact",
        "Figure 1 is an instance of sharp curvature in the sense of the theory.",
        "pcgrad.figure1",
    ),
    Row(
        "PC-06",
        "exact",
        "PCGrad edits gradients only, so it is model-agnostic: supervised, reinforcement "
        "and goal-conditioned problems alike.",
        "pcgrad.algorithm",
    ),
    Row(
        "PC-07",
        "data/RL",
        "PCGrad adds to the gain of other multi-task architectures.",
        needs=f"{MULTIMNIST}, in four architectures",
    ),
    Row(
        "PC-08",
        "data/RL",
        "PCGrad needs less data, optimises faster and ends better.",
        needs=META_WORLD,
    ),
    Row(
        "PC-09",
        "exact",
        "The training loss is the plain sum Σ L_i, T times the expectation over uniform "
        "tasks; a task-conditioned f(y given x, z) has the same gradients.",
        "pcgrad.algorithm",
    ),
    Row(
        "PC-10",
        "exact",
        "Definition 1: two gradients conflict if cos φ < 0.",
        "pcgrad.definitions",
    ),
    Row(
        "PC-11",
        "exact",
        "Definition 2: Φ = 2‖g_i‖‖g_j‖/(‖g_i‖² + ‖g_j‖²).",
        "pcgrad.definitions",
    ),
    Row(
        "PC-12",
        "exact",
        "Definition 3: H = ∫₀¹ gᵀ∇²L(θ + s(θ' - θ)) g ds, read as how the curvature "
        "changes over a step.",
        "pcgrad.definitions",
    ),
    Row(
        "PC-13",
        "exact",
        "Definition 4: L = L_1 + L_2, g = g_1 + g_2 with g_i = ∇L_i; θ^MT and θ^PCGrad "
        "are the parameters after one step along g or along PCGrad's sum.",
        "pcgrad.definitions",
    ),
    Row(
        "PC-14",
        "exact",
        "Definition 5: ξ = (1 - cos²φ)‖g_1 - g_2‖²/‖g_1 + g_2‖².",
        "pcgrad.definitions",
    ),
    Row(
        "PC-15",
        "exact",
        "Algorithm 1: project a copy of every gradient off the others it conflicts with, "
        "in random order; update with all the edited gradients.",
        "pcgrad.algorithm",
    ),
    Row(
        "PC-16",
        "exact",
        "After its projection a gradient has no component against the one it was "
        "projected on; gradients without conflict are left alone.",
        "pcgrad.algorithm",
    ),
    Row(
        "PC-17",
        "synthetic",
        "Theorem 1: for convex L_1, L_2 and t <= 1/ℒ PCGrad converges to a point with cos "
        "φ = -1 or to the minimum of L_1 + L_2.",
        "pcgrad.theorem1",
    ),
    Row(
        "PC-18",
        "synthetic",
        "Alternative (a), cos φ = -1, is hard to reach, so that in practice the method "
        "nearly always reaches the optimum.",
        "pcgrad.theorem1",
    ),
    Row(
        "PC-19",
        "synthetic",
        "Theorem 2: with curvature >= ℓ‖g‖², (a) cos φ <= -Φ, (b) ℓ >= ξ and (c) t >= "
        "2/(ℓ - ξℒ), L(θ^PCGrad) <= L(θ^MT).",
        "pcgrad.theorem2",
    ),
    Row(
        "PC-20",
        "synthetic",
        "With conflict, a large gap of magnitudes, high curvature and a large enough step "
        "PCGrad converges faster than plain descent.",
        "pcgrad.race",
    ),
    Row(
        "PC-21",
        "data/RL",
        "PCGrad wins on Meta-World MT10 and MT50, on supervised and on goal-conditioned "
        "benchmarks.",
        needs=f"{META_WORLD}; {MULTIMNIST}",
    ),
    Row(
        "PC-22",
        "data/RL",
        "The baselines there: one policy for all, a head a task, independent policies.",
        needs=(
            "a list of baselines, which no number could refute; the point mass has all three "
            "(`python -m experiments.control --parts points`), and so has Meta-World"
        ),
    ),
    Row(
        "PC-23",
        "synthetic",
        "Ablation: PCGrad's direction at the plain gradient's length is worse than PCGrad.",
        "pcgrad.ablation",
        instead="Meta-World",
    ),
    Row(
        "PC-24",
        "synthetic",
        "Ablation: the plain direction at PCGrad's length is worse than PCGrad.",
        "pcgrad.ablation",
        instead="Meta-World",
    ),
    Row(
        "PC-25",
        "synthetic",
        "Ablation: GradNorm, which balances magnitudes alone, is worse than PCGrad.",
        "pcgrad.ablation",
        instead="Meta-World",
    ),
    Row(
        "PC-26",
        "synthetic",
        "Figure 5, left: the multi-task curvature rises about exponentially during training.",
        "pcgrad.training",
        instead="Meta-World",
    ),
    Row(
        "PC-27",
        "synthetic",
        "Figure 5, middle: conflicts become more frequent as training proceeds.",
        "pcgrad.training",
        instead="Meta-World",
    ),
    Row(
        "PC-28",
        "synthetic",
        "Figure 5, right: one task's progress dominates while the other is not learnt.",
        "pcgrad.training",
        instead="Meta-World",
    ),
    Row(
        "PC-29",
        "synthetic",
        "Open: some logged quantity marks the step at which the second task starts to be "
        "learnt (curvature and conflict show no visible event).",
        "pcgrad.events",
    ),
    Row(
        "PC-30",
        "exact",
        "All theory covers two tasks; projections may clash when there are more.",
        "pcgrad.orders",
    ),
    Row(
        "PC-31",
        "synthetic",
        "Open: PCGrad rests at a stationary point with three gradients at 120°, and "
        "converges for three tasks.",
        "pcgrad.three_tasks",
    ),
    Row(
        "PC-32",
        "synthetic",
        "With many tasks the random order of the projections takes care of the bias that "
        "one order would have.",
        "pcgrad.three_tasks",
    ),
)
