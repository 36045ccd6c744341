"""Frank–Wolfe as smoothed max–min: exact findings, and the parts by what they are made of."""

import pytest
import torch
from torch.func import grad, vmap

import mtlfunc as mf
from paper_repro.mgda import _counterexample as circling
from paper_repro.mgda import common, cost_of_weights, encoders, naive, pareto, smoothing, solvers


def test_naive_iteration_follows_the_smallest_product():
    rows = common.rows_of(5, 4, 6, 0)
    visited = naive.followed(common.gram(rows), 20)
    for draw, matrix in enumerate(rows):
        u = matrix.mean(0)
        for n in range(21):
            at = int((matrix @ u).argmin())
            assert at == visited[n, draw]
            u = matrix[at]


@pytest.mark.parametrize("sharpness", [0.1, 10.0, 1e3])
def test_smoothed_answer_is_the_entropy_regularised_minimum(sharpness):
    g = common.gram(common.rows_of(3, 4, 6, 2))
    logits = smoothing.smoothed(g, torch.tensor(sharpness, dtype=torch.float64))[0].log()

    def objective(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        w = torch.softmax(a, -1)
        return 0.5 * w @ g @ w + (w * w.log()).sum() / sharpness

    assert vmap(grad(objective))(logits, g).abs().max() < 1e-9 * g.abs().max()
    nearby = logits + 0.1 * common.normal(9, (50, 3, 4))
    values = vmap(lambda a: vmap(objective)(a, g))(nearby)
    assert (values >= vmap(objective)(logits, g) - 1e-12).all()


def test_softmax_grid_is_gradient_descent_and_depends_on_rate_times_scale():
    g = common.families(3)["interior"]
    gaps = solvers.softmax_grid(g, 30)
    scale, rate = 1, 8
    unit = float(solvers.SCALES[scale]) * common.scaled(g)
    logits = torch.zeros(len(g), g.shape[-1], dtype=torch.float64)
    slope = grad(lambda a: 0.5 * common.square(unit, torch.softmax(a, -1)).sum())
    for _ in range(30):
        logits = logits - solvers.RATES[rate] * slope(logits)
    direct = common.relative_gap(unit, torch.softmax(logits, -1))
    torch.testing.assert_close(gaps[scale, rate], direct, rtol=1e-9, atol=1e-15)
    assert float(solvers.SCALES[1] / solvers.SCALES[0]) == pytest.approx(
        float(solvers.RATES[16] / solvers.RATES[8])
    )
    torch.testing.assert_close(gaps[0, 16], gaps[1, 8], rtol=1e-8, atol=1e-12)


def test_weak_system_at_the_boundary_of_the_hull():
    """0 on an edge of conv{(1, 0), (-1, 0), (0, 1)}: yet Δ = (0, -1) solves JΔ <= 0."""
    edge = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    around = torch.tensor([[[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]]], dtype=torch.float64)
    assert pareto.stationary(edge).all()
    assert pareto.stationary(around).all()
    assert pareto.linear_programs(edge, weak=True).all()
    assert not pareto.linear_programs(edge, weak=False).any()
    assert not pareto.linear_programs(around, weak=True).any()


def test_no_task_is_raised_where_the_direction_is_rounding():
    """Opposite gradients, whose MGDA direction is 0; the lengths keep the Gramian from being so."""
    lengths = 10 ** torch.linspace(-6, 3, 500, dtype=torch.float64)
    row = torch.stack([lengths, lengths / 3 + 1e-3, -lengths / 7], -1)
    rows = torch.stack([row, -row * (1 + lengths[:, None])], 1)
    gramian = rows @ rows.mT
    weights = torch.stack([(1 + lengths) / (2 + lengths), 1 / (2 + lengths)], -1)
    assert not encoders.raises(gramian, weights).any()
    aside = torch.tensor([[0.0, 0.0, 0.0], [1e-5, 0.0, 0.0]], dtype=torch.float64)
    rows = rows + aside * rows.norm(dim=-1, keepdim=True)
    weights = weights + torch.tensor([1e-4, -1e-4], dtype=torch.float64)
    assert encoders.raises(rows @ rows.mT, weights).all()  # a small direction, and no rounding


def test_frank_wolfe_on_vectors_is_that_on_the_gramian():
    rows = common.rows_of(1, 5, 40, 1)[0]
    solved = mf.solvers.frank_wolfe(50, "1/(n+1)")(mf.solvers.min_norm(rows @ rows.mT)).weights
    torch.testing.assert_close(cost_of_weights.on_vectors(rows, 50), solved, rtol=1e-9, atol=1e-12)


def test_mgda_ub_circles_by_a_literal_loop():
    """Two tasks: weights of the foot of the perpendicular on the segment of the v_t, or the g_t."""

    def second(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ (a - b) / (a - b).square().sum()).clamp(0, 1)

    ends = torch.tensor([[-1, 0, 0], [1, 0, 0]], dtype=torch.float64)
    x, bends = (torch.tensor(m, dtype=ends.dtype) for m in (circling.ENCODER, circling.BENDS))
    for method, every in circling.distances().items():
        for rate, path in zip(circling.LENGTHS, every, strict=True):
            w, found = torch.tensor([0.0, 0.0, 1.0]).to(ends), []
            for _ in range(300):
                v1, v2 = (bends @ (x @ w - torch.linalg.solve(bends, end)) for end in ends)
                g1, g2 = x.T @ v1, x.T @ v2
                found.append(torch.lerp(g1, g2, second(g1, g2)).norm())
                share = second(v1, v2) if method == "MGDA-UB" else second(g1, g2)
                w = w - rate * torch.lerp(g1, g2, share)
            assert torch.allclose(path[:300], torch.stack(found) / found[0], 1e-6, 1e-9)
