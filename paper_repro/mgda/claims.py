"""The claims of MGDA and MGDA-UB (Sener & Koltun 2018; Su 2022), as the ledger states them."""

from ..report.ledger import MULTIMNIST, Row

ROWS = (
    Row(
        "SU-01",
        "exact",
        "Weighting each task by 1/‖g_t‖ makes the update independent of rescaling and of "
        "shifting any single loss.",
        "mgda.unit_gradients",
    ),
    Row(
        "SU-02",
        "exact",
        "Weights 1/‖g_t‖ are the same as adding unit task gradients, so designing losses is "
        "at bottom designing gradients.",
        "mgda.unit_gradients",
    ),
    Row(
        "SU-03",
        "exact",
        "To first order L(θ + Δ) < L(θ) means ⟨∇L, Δ⟩ < 0, an angle of more than 90°; "
        "-η∇L is the natural choice.",
        "mgda.pareto",
    ),
    Row("SU-04", "not here", "Equal importance of tasks means that no step may raise any loss."),
    Row(
        "SU-05",
        "exact",
        "Pareto optimality: at θ every change raises some loss; no task can gain "
        "without another's loss.",
        "mgda.pareto",
    ),
    Row(
        "SU-06",
        "exact",
        "Seek Δ with ⟨g_t, Δ⟩ <= 0 for all t; Δ = 0 is always feasible, so the set is never empty.",
        "mgda.pareto",
    ),
    Row(
        "SU-07",
        "exact",
        "If the system has no solution but Δ = 0, the point is Pareto stationary.",
        "mgda.pareto",
    ),
    Row(
        "SU-08",
        "exact",
        "Pareto stationarity is necessary for Pareto optimality but not sufficient.",
        "mgda.pareto",
    ),
    Row(
        "SU-09",
        "exact",
        "For two tasks u = g_1/‖g_1‖ + g_2/‖g_2‖ always has ⟨g_t, u⟩ >= 0, so gradient "
        "normalisation reaches Pareto stationarity; with more the normalised sum no "
        "longer suffices.",
        "mgda.unit_gradients",
    ),
    Row(
        "SU-10",
        "exact",
        "Maximising the smallest inner product, max over u of min_t ⟨g_t, u⟩, yields the "
        "desired direction; without a penalty the maximum is infinite as soon as one good "
        "direction exists.",
        "mgda.pareto",
    ),
    Row(
        "SU-11",
        "exact",
        "Regularised problem: max over u of min_t ⟨g_t, u⟩ - ½‖u‖². Where it is "
        "largest min_t ⟨g_t, u⟩ >= ½‖u‖² >= 0, so a non-zero u gives common descent along -u.",
        "mgda.adam",
    ),
    Row(
        "SU-12",
        "exact",
        "First method: replace the minimum by -(1/λ) log Σ exp(-λ x_t), which lies "
        "between min x - log T/λ and min x.",
        "mgda.smoothing",
    ),
    Row(
        "SU-13",
        "exact",
        "Stationarity of the smoothed problem: u = Σ softmax(-λ⟨g, u⟩)_t g_t.",
        "mgda.smoothing",
    ),
    Row(
        "SU-14",
        "exact",
        "If the inner products differ by far more than 1/λ, λ → ∞ gives u = g_τ, τ = "
        "argmin ⟨g_t, u⟩; the naive iteration u ← g_τ will very likely oscillate.",
        "mgda.naive",
    ),
    Row(
        "SU-15",
        "synthetic",
        "The naive iteration oscillates around the optimum, so the running average "
        "u_{n+1} = (n·u_n + g_τ)/(n + 1) converges to it.",
        "mgda.naive",
    ),
    Row(
        "SU-16",
        "exact",
        "The limit is a weighted mean of the g_t, its weights the current best task "
        "weighting; the smoothing route is heuristic, though the result is right.",
        "mgda.duality",
    ),
    Row(
        "SU-17",
        "exact",
        "The set of T-ary distributions is the simplex, and min_t x_t is the minimum over "
        "it of Σ w_t x_t.",
        "mgda.duality",
    ),
    Row(
        "SU-18",
        "exact",
        "The objective is concave in u and convex in w, both domains are convex, so by "
        "von Neumann's minimax theorem maximum and minimum swap.",
        "mgda.duality",
    ),
    Row(
        "SU-19",
        "exact",
        "In the dual the inner maximum is u = Σ w_t g_t, so the problem is to find the shortest "
        "convex combination: the minimum of ½‖Σ w_t g_t‖².",
        "mgda.duality",
    ),
    Row(
        "SU-20",
        "exact",
        "T = 2: dropping a perpendicular in a triangle, w_1 = clip((G_22 - G_12)/(G_11 + "
        "G_22 - 2G_12), 0, 1); three cases.",
        "mgda.duality",
    ),
    Row(
        "SU-21",
        "synthetic",
        "T > 2: Frank–Wolfe, towards τ = argmin ⟨g_t, Σ w g⟩, with a search on the "
        "segment from w to e_τ, which is the T = 2 problem; it suits convex sets.",
        "mgda.solvers",
    ),
    Row(
        "SU-22",
        "exact",
        "With the fixed step 1/(n+1) in place of the search, Frank–Wolfe coincides with "
        "the averaged smoothing iteration.",
        "mgda.naive",
    ),
    Row(
        "SU-23",
        "synthetic",
        "Gradient descent on w = softmax(a) solves the min-norm problem without constraints.",
        "mgda.solvers",
    ),
    Row(
        "SU-24",
        "synthetic",
        "A guess: nobody uses the unconstrained form because its learning rate needs tuning.",
        "mgda.solvers",
    ),
    Row(
        "SU-25",
        "synthetic",
        "Smoothing and Frank–Wolfe both run an inner iteration at every training step, so the cost "
        "is considerable.",
        "mgda.cost_of_weights",
    ),
    Row(
        "SU-26",
        "exact",
        "Inner products of gradients need computing once a step: ⟨g_t, Σ w_s g_s⟩ = Σ w_s "
        "G_ts, only w changes.",
        "mgda.cost_of_weights",
    ),
    Row(
        "SU-27",
        "synthetic",
        "For very large models even T separate gradients are infeasible.",
        "mgda.cost_of_gradients",
    ),
    Row(
        "SU-28",
        "exact",
        "∂L_t/∂θ is the pullback of ∂L_t/∂Z, and ‖Σ w_t ∇_θ L_t‖ <= ‖∂Z/∂θ‖·‖Σ w_t ∇_Z L_t‖.",
        "mgda.bound",
    ),
    Row(
        "SU-29",
        "synthetic",
        "Minimise the bound's right-hand side: only gradients with respect to encodings "
        "are needed, which is much cheaper.",
        "mgda.cost_of_gradients",
    ),
    Row(
        "SU-30",
        "synthetic",
        "Minimising the upper bound gives results like minimising the exact norm.",
        "mgda.random_encoders",
    ),
    Row(
        "SU-31",
        "exact",
        "With disjoint labelled sets the encoding gradients are orthogonal and the bound "
        "ignores how tasks relate: w_t is proportional to 1/‖v_t‖².",
        "mgda.bound",
    ),
    Row(
        "SU-32",
        "exact",
        "With a full-rank ∂Z/∂θ the bound's optimum also finds Pareto-stationary points "
        "(and otherwise a direction that lowers all losses).",
        "mgda.full_rank",
    ),
    Row(
        "SU-33",
        "exact",
        "The published proof uses a false lemma: for symmetric positive definite M, xᵀMy "
        ">= 0 iff xᵀy >= 0.",
        "mgda.counterexample",
    ),
    Row(
        "SU-34",
        "exact",
        "The proof cannot be repaired: even with a full-rank encoder Jacobian the bound's "
        "direction may raise a task.",
        "mgda.counterexample",
    ),
    Row(
        "SU-35",
        "synthetic",
        "So MGDA-UB may fail to find a Pareto-stationary point.",
        "mgda.counterexample",
    ),
    Row(
        "SU-36",
        "synthetic",
        "The bound works well in experiments because deep networks have so many "
        "parameters that there is room to move.",
        "mgda.random_encoders",
        instead="deep networks on real data",
    ),
    Row(
        "SU-37",
        "data/RL",
        "The original experiments with the bound look good.",
        published=(
            "MultiMNIST, left and right, %: one task alone 97.23 and 95.90, mean loss 96.46 and "
            "94.99, uncertainty weighting 96.47 and 95.29, GradNorm 96.27 and 94.84, the bound "
            "97.26 and 95.90 (Sener & Koltun 2018, Table 3)"
        ),
        needs=(
            f"{MULTIMNIST}; `python -m experiments.scenes --data FOLDER --rules "
            "mean,mgda,mgda_ub`, on CityScapes, with a small network: the papers' has no one "
            "representation for the bound"
        ),
    ),
)
