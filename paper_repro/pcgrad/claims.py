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
        "The largest gradient dominates the sum, and the tasks with small ones are under-served.",
        "pcgrad.dominance",
    ),
    Row(
        "PC-03",
        "synthetic",
        "Interference does harm only where conflict, unequal lengths and high curvature meet.",
        "pcgrad.interference",
    ),
    Row(
        "PC-04",
        "synthetic",
        "Figure 1: on a landscape of sharp valleys Adam on the sum is stuck and PCGrad "
        "gets through.",
        "pcgrad.figure1",
    ),
    Row(
        "PC-05",
        "exact",
        "That landscape is sharply curved in the sense of the theory.",
        "pcgrad.figure1",
    ),
    Row(
        "PC-06",
        "exact",
        "PCGrad edits gradients alone, so it fits any model, supervised, reinforcement or "
        "goal-conditioned.",
        "pcgrad.algorithm",
    ),
    Row(
        "PC-07",
        "data/RL",
        "It adds to the gain of other multi-task architectures.",
        needs=f"{MULTIMNIST}, in four architectures",
    ),
    Row(
        "PC-08",
        "data/RL",
        "It needs less data, optimises faster and ends better.",
        needs=META_WORLD,
    ),
    Row(
        "PC-09",
        "exact",
        "The loss is the plain sum of the tasks' losses, an expectation over tasks up to "
        "a factor T.",
        "pcgrad.algorithm",
    ),
    Row(
        "PC-10",
        "exact",
        "Definition 1: two gradients conflict when their cosine is negative.",
        "pcgrad.definitions",
    ),
    Row(
        "PC-11",
        "exact",
        "Definition 2: magnitude similarity Φ compares two lengths, 1 when they are equal.",
        "pcgrad.definitions",
    ),
    Row(
        "PC-12",
        "exact",
        "Definition 3: multi-task curvature is gᵀ∇²L g averaged over the step, read as "
        "the change of curvature along it.",
        "pcgrad.definitions",
    ),
    Row(
        "PC-13",
        "exact",
        "Definition 4: one plain step and one PCGrad step on the sum of two losses.",
        "pcgrad.definitions",
    ),
    Row(
        "PC-14",
        "exact",
        "Definition 5: ξ, the factor by which PCGrad changes the squared length of a "
        "conflicting sum.",
        "pcgrad.definitions",
    ),
    Row(
        "PC-15",
        "exact",
        "Algorithm 1: project each gradient off every conflicting other one in random "
        "order, and add them up.",
        "pcgrad.algorithm",
    ),
    Row(
        "PC-16",
        "exact",
        "A projected gradient no longer conflicts with the one it was projected off; "
        "without conflict nothing changes.",
        "pcgrad.algorithm",
    ),
    Row(
        "PC-17",
        "synthetic",
        "Theorem 1: on convex smooth losses with steps up to 1/ℒ PCGrad reaches opposed "
        "gradients or the optimum.",
        "pcgrad.theorem1",
    ),
    Row(
        "PC-18",
        "synthetic",
        "In practice it nearly always reaches the optimum, not opposed gradients.",
        "pcgrad.theorem1",
    ),
    Row(
        "PC-19",
        "synthetic",
        "Theorem 2: under conflict, high curvature and a long step, PCGrad's step ends no "
        "higher than the plain one.",
        "pcgrad.theorem2",
    ),
    Row(
        "PC-20",
        "synthetic",
        "So PCGrad converges faster than gradient descent where these three conditions meet.",
        "pcgrad.race",
    ),
    Row(
        "PC-21",
        "data/RL",
        "It wins on Meta-World MT10 and MT50, on supervised and on goal-conditioned benchmarks.",
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
        "Ablation: PCGrad's direction at the plain gradient's length does worse.",
        "pcgrad.ablation",
    ),
    Row(
        "PC-24",
        "synthetic",
        "Ablation: the plain direction at PCGrad's length does worse.",
        "pcgrad.ablation",
    ),
    Row(
        "PC-25",
        "synthetic",
        "Ablation: balancing lengths alone (GradNorm) does worse.",
        "pcgrad.ablation",
    ),
    Row(
        "PC-26",
        "synthetic",
        "Figure 5: the curvature rises about exponentially in training.",
        "pcgrad.training",
    ),
    Row(
        "PC-27",
        "synthetic",
        "Figure 5: conflict becomes more frequent in training.",
        "pcgrad.training",
    ),
    Row(
        "PC-28",
        "synthetic",
        "Figure 5: one task's progress dominates early on.",
        "pcgrad.training",
    ),
    Row(
        "PC-29",
        "synthetic",
        "Open question: does any logged quantity mark the moment at which the second task sets in?",
        "pcgrad.events",
    ),
    Row(
        "PC-30",
        "exact",
        "The theory covers two tasks; with three, projections can undo one another.",
        "pcgrad.orders",
    ),
    Row(
        "PC-31",
        "synthetic",
        "Open question: what does PCGrad do with three gradients at 120°, and does it "
        "converge for T ≥ 3?",
        "pcgrad.three_tasks",
    ),
    Row(
        "PC-32",
        "synthetic",
        "The random order of projections is the remedy for many tasks.",
        "pcgrad.three_tasks",
    ),
)
