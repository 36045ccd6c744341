"""The simple noise scale: exact over all draws of a finite population, against a literal loop, and
for Gaussian gradients.
"""

from itertools import product

import pytest
import torch
from torch.func import grad, vmap

import mtlfunc as mf

F64 = torch.float64
noise_scale, sample_noise = mf.diagnostics.noise_scale, mf.diagnostics.sample_noise


def gradients(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def literal(rows: torch.Tensor) -> float:
    """tr Σ / ‖E g‖² of rows [sample, param], each part an average over pairs of samples."""
    count = len(rows)
    pairs = [(b, c) for b in range(count) for c in range(count) if b != c]
    signal = sum(float(rows[b] @ rows[c]) for b, c in pairs) / len(pairs)
    noise = sum(float((rows[b] - rows[c]).square().sum()) / 2 for b, c in pairs) / len(pairs)
    return noise / signal if signal > 0 else float("inf")


@pytest.mark.parametrize(("samples", "tasks"), [(2, 1), (5, 1), (7, 3)])
def test_it_is_the_literal_loop_over_pairs(samples, tasks):
    rows = gradients(samples, samples, tasks, 4) + 1
    flat = rows.flatten(0, 1)
    known = torch.tensor([literal(rows[:, task]) for task in range(tasks)], dtype=F64)
    torch.testing.assert_close(noise_scale(flat @ flat.mT, tasks=tasks), known)
    lengths, total = rows.norm(dim=2), rows.mean(0).norm(dim=1)
    torch.testing.assert_close(noise_scale(lengths, total), known)
    torch.testing.assert_close(noise_scale(lengths[:, 0], total[0]), known[0])


def test_both_parts_are_unbiased_over_all_draws():
    """All 3⁴ draws of 4 samples from a population of three: the means are the population's."""
    population = gradients(0, 3, 2)
    found = []
    for draw in product(range(3), repeat=4):
        rows = population[list(draw)]
        found.append(torch.stack(sample_noise(rows @ rows.mT)[:2]))
    signal, noise = torch.stack(found).mean(0)
    mean = population.mean(0)
    torch.testing.assert_close(signal[0], mean.square().sum())
    torch.testing.assert_close(noise[0], (population - mean).square().sum(1).mean())


def test_mean_squares_over_draws_give_the_population_exactly():
    """As its docstring advises: statistics first, then one ratio."""
    population = gradients(3, 3, 2)
    draws = [population[list(draw)] for draw in product(range(3), repeat=4)]
    squares = torch.stack([rows.square().sum(1) for rows in draws]).mean(0)
    total = torch.stack([rows.mean(0).square().sum() for rows in draws]).mean()
    mean = population.mean(0)
    known = (population - mean).square().sum(1).mean() / mean.square().sum()
    torch.testing.assert_close(noise_scale(squares.sqrt(), total.sqrt()), known)
    gramians = torch.stack([rows @ rows.mT for rows in draws]).mean(0)
    torch.testing.assert_close(noise_scale(gramians)[0], known)


def test_hidden_gradients_have_no_finite_scale():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert noise_scale(rows @ rows.mT).item() == float("inf")
    assert noise_scale(torch.zeros(3, 2), torch.zeros(2)).tolist() == [float("inf")] * 2
    assert noise_scale(torch.tensor([1.0, float("nan")]), torch.tensor(1.0)).isnan()
    slope = grad(lambda x: noise_scale(x, torch.zeros(())))(torch.ones(3))
    assert slope.isfinite().all()


def test_vmap_is_a_loop():
    lengths, totals = gradients(2, 5, 4, 3).abs() + 1, gradients(4, 5, 3).abs()
    torch.testing.assert_close(
        vmap(noise_scale)(lengths, totals),
        torch.stack([noise_scale(x, y) for x, y in zip(lengths, totals, strict=True)]),
    )


def test_what_it_refuses():
    with pytest.raises(ValueError, match="samples: expected the lengths"):
        noise_scale(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match="at least two"):
        noise_scale(torch.ones(1), torch.ones(()))
    with pytest.raises(ValueError, match="no tasks="):
        noise_scale(torch.ones(4, 2), torch.ones(2), tasks=2)
    with pytest.raises(ValueError, match="size"):
        noise_scale(torch.ones(4), torch.ones(()), size=0)
