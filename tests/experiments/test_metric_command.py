"""experiments/metric: the command's matrices, Muon by exact factors, estimates of influence."""

import pytest
import torch
from torch.func import grad, vmap

import mtlfunc as mf
from experiments.metric import __main__ as command
from experiments.metric import influence, steps
from experiments.metric.run import Cell, perform


def test_the_command_of_matrices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "HERE", tmp_path)
    assert command.main(["--matrices", "--quick", "--steps", "14", "--seeds", "2"]) == 0
    assert "| bottleneck | Muon " in capsys.readouterr().out
    # of its own: the results of other commands, and of longer runs, stay
    found = {x.name for x in (tmp_path / "out" / "matrices" / "quick").iterdir()}
    assert found == {"results.json", "table.md", "matrices.png"}


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
    """Beside one vmap over the samples of Adam as a function."""
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
    aim = grad(run.target)(params)
    derivative = influence.through_adam(run, rows, aim)
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


def test_the_command_of_influence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(influence, "HERE", tmp_path)
    assert influence.main(["--quick", "--seeds", "2"]) == 0
    assert "| transformer | Adam, β₁ = .9 |" in capsys.readouterr().out
    found = {x.name for x in (tmp_path / "out" / "influence" / "quick").iterdir()}
    assert found == {"results.json", "table.md", "influence.png"}
