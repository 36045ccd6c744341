"""The commands of the smaller studies: metric, mixing and conflict."""

import math

import pytest
import torch
from torch.func import grad, vmap

import mtlfunc as mf
from experiments.metric import influence, steps
from experiments.metric.run import Cell, perform
from experiments.mixing import study


def test_muon_by_exact_factors_keeps_its_promise():
    cell = Cell("bottleneck", "Muon, exact factors", 3e-3, 32, "MGDA", "norm")
    found = perform(cell, 0, 30)
    assert found.risen == 0
    assert found.correlation > 0.999
    assert perform(cell._replace(way="G"), 0, 30).risen > 0.5


@pytest.fixture(scope="module")
def run() -> influence.Run:
    made = influence.Run("digits", steps.DIAGONAL[influence.ADAM], influence.RATE, 0)
    for step in range(3):
        made.step(step)
    return made


def test_the_truth_is_leave_one_out_of_adam(run):
    rows = run.rows(run.batch(3))
    params = mf.parameters(run.module)
    count = influence.SIZES["digits"]
    mean = {name: x.mean(0) for name, x in rows.items()}
    state = influence.adam_state(run)

    def loss(row: mf.types.Params, share: float) -> torch.Tensor:
        grads = {name: mean[name] - share * x for name, x in row.items()}
        return run.target(mf.adam(influence.RATE).update(grads, state, params)[0])

    known = vmap(lambda row: loss(row, 1 / count))(rows) - loss(mean, 0.0)
    torch.testing.assert_close(influence.truth(run, rows), known, rtol=1e-6, atol=1e-12)
    derivative = influence.through_adam(run, rows, grad(run.target)(params))
    # the step's own derivative is the truth but for second order
    assert torch.corrcoef(torch.stack([derivative, known]))[0, 1] > 0.95


@pytest.mark.parametrize("optimizer", [influence.ADAM, "SGD, momentum .9"])
def test_influence_is_a_product_of_rows_in_the_optimizers_metric(optimizer):
    made = influence.Run("digits", steps.DIAGONAL[optimizer], influence.RATE, 0)
    for step in range(3):
        made.step(step)
    batch, params = made.batch(3), mf.parameters(made.module)
    aim = grad(made.target)(params)
    scale = {name: torch.full_like(x, influence.RATE) for name, x in params.items()}
    if optimizer == influence.ADAM:
        for name, leaf in made.module.named_parameters():
            square = made.optimizer.state[leaf]["exp_avg_sq"] / (1 - 0.999**3)
            share = influence.RATE * (1 - 0.9) / (1 - 0.9**4)
            # nothing is known of a coordinate that has had no gradient
            scale[name] = (share / (square.sqrt() + 1e-8)).where(square > 0, 0.0)
    known = influence.products(made.rows(batch), {x: scale[x] * aim[x] for x in aim}, list(aim))
    seen = known.abs().max()
    assert (influence.influence(made, batch, made.target) - known).abs().max() <= 1e-9 * seen


def test_pike_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    rule, w = study.pike(torch.tensor(0.3), torch.tensor(0.2)), [0.25] * 4
    ones = torch.ones(8)
    state = rule.init(ones, mf.random.key(0))
    for _ in range(3):
        rows = torch.randn(8, 5, generator=generator)
        for k in range(4):
            one, other = rows[2 * k], rows[2 * k + 1]
            whole = float((one - other).square().sum()) / 2 / 2  # σ²/b, of both halves together
            w[k] *= math.exp(0.3 * float(one @ other) - 0.1 * whole)
        w = [x / sum(w) for x in w]
        geometry = mf.Geometry(ones, rows @ rows.mT, ones / 8, ones > 0, {})
        weights, state = rule.update(geometry, state)
        torch.testing.assert_close(weights, torch.tensor(w).repeat_interleave(2) / 2)
