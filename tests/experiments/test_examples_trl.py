"""The page for TRL's `GRPOTrainer`; skipped where trl is not installed."""

from typing import Any

import pytest
import torch

import mtlfunc as mf

trl = pytest.importorskip("trl", reason="the extra [trl] is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # trl's and datasets' own

PARTS: dict[str, Any] = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 16}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"loss_type": "dr_grpo", "reward_weights": [1.0, 0.5, 2.0]},
    PARTS | {"loss_type": "dapo"},
    {"beta": 0.1},
]
WEIGHED: list[dict[str, Any]] = [  # loss types that are linear on the policy's own samples
    {"loss_type": "bnpo"},
    {"loss_type": "cispo", "reward_weights": [1.0, 0.5, 2.0]},
    PARTS | {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    *(PARTS | {"loss_type": x} for x in ("dapo", "dr_grpo", "grpo", "cispo")),
    PARTS | {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    PARTS | {"loss_type": "luspo"},
]


@pytest.fixture
def page():
    from experiments.examples import trl_rewards

    return trl_rewards


def run(page, kind, folder, rule, steps=3, **options):
    quiet: dict[str, Any] = {"disable_tqdm": True, "optim": "sgd", "max_grad_norm": 0.0}
    return page.main(kind, str(folder), rule, steps, **quiet | options)


def kept(made, folder):
    made[0].save_pretrained(folder)
    return lambda: (type(made[0]).from_pretrained(folder), made[1])


@pytest.mark.parametrize("options", OPTIONS)
def test_static_weights_are_trls_own_sum(page, tmp_path, options, monkeypatch):
    if "beta" in options:  # the reference is read from where the model was
        monkeypatch.setattr(page, "network", kept(page.network(), tmp_path / "model"))
    plain = run(page, trl.GRPOTrainer, tmp_path, mf.mean(), **options)
    ours = run(page, page.Balanced, tmp_path, mf.mean(), **options)
    assert torch.equal(ours.weights, torch.ones(3))
    losses = [[x["loss"] for x in each.state.log_history if "loss" in x] for each in (plain, ours)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)
    before = page.network()[0].state_dict()
    for name, leaf in plain.model.state_dict().items():
        other, moved = ours.model.state_dict()[name], (leaf - before[name]).abs().max()
        assert (other - leaf).abs().max() <= 1e-3 * moved
    assert any((leaf != before[n]).any() for n, leaf in plain.model.state_dict().items())


@pytest.mark.parametrize("options", WEIGHED, ids=str)
def test_the_weights_are_those_of_trls_own_gradients(page, tmp_path, options):
    """A reward's gradient is what TRL's own trainer moves by if that reward alone counts."""
    options = options | {"learning_rate": 1.0}  # one step, far above the parameters' rounding
    scales = options.get("reward_weights", [1.0, 1.0, 1.0])
    before = torch.nn.utils.parameters_to_vector(page.network()[0].parameters()).detach()
    rows = []
    for k, scale in enumerate(scales):
        alone = [scale * (i == k) for i in range(3)]
        made = run(page, trl.GRPOTrainer, tmp_path, None, 1, **options | {"reward_weights": alone})
        rows.append(torch.nn.utils.parameters_to_vector(made.model.parameters()).detach() - before)
    rows = torch.stack(rows).double()

    class Watched(page.Balanced):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            seen.append(self.weights)
            return loss

    seen = []
    ours = run(page, Watched, tmp_path, mf.mgda(), 1, **options)
    assert all(x is seen[0] for x in seen)
    assert len(seen) == options.get("gradient_accumulation_steps", 1)
    share = (seen[0] / seen[0].sum()).double()
    point = share @ rows
    assert share.min() >= 0
    assert share.max() < 0.95
    assert (rows @ point).min() >= point @ point * (1 - 1e-3)  # nearest to 0 of the hull
    moved = torch.nn.utils.parameters_to_vector(ours.model.parameters()).detach() - before
    aim = seen[0].double() @ rows
    assert (moved - aim).norm() <= 1e-3 * aim.norm()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_iterations": 2}, "not linear"),
        ({"loss_type": "sapo"}, "not linear"),
        (PARTS | {"loss_type": "bnpo"}, "bnpo"),
        ({"top_entropy_quantile": 0.5}, "leaves out tokens"),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 1}, "not linear"),
        ({"scale_rewards": "group"}, "scale_rewards"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "scale_rewards"),
    ],
)
def test_what_is_not_linear_is_refused(page, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run(page, page.Balanced, tmp_path, mf.upgrad(), 1, **options)
