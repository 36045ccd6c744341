"""The page for TRL's `GRPOTrainer`; skipped where trl is not installed."""

import inspect
from typing import Any

import pytest
import torch

import mtlfunc as mf

trl = pytest.importorskip("trl", reason="the extra [trl] is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # trl's and datasets' own

OPTIONS: list[dict[str, Any]] = [
    {},
    {"loss_type": "dr_grpo", "reward_weights": [1.0, 0.5, 2.0]},
    {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 16, "loss_type": "bnpo"},
    {"beta": 0.1},
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


@pytest.mark.parametrize("options", [{}, OPTIONS[2]])
def test_the_weights_are_those_of_the_whole_generation_batch(page, tmp_path, options):
    """Against a loop of single passes over the rewards and Frank-Wolfe's condition."""
    seen = []

    class Watched(page.Balanced):
        def _compute_loss(self, model, inputs):
            first = self._step % self.args.steps_per_generation == 0
            if first:
                self.before = {n: leaf.detach().clone() for n, leaf in model.named_parameters()}
            loss = super()._compute_loss(model, inputs)
            if first:
                seen.append((self.weights, rows_of(self, model)))
            else:
                assert self.weights is seen[-1][0]
            return loss

    run(page, Watched, tmp_path, mf.mgda(), **options)
    assert len(seen) == 3
    for weights, rows in seen:
        share = (weights / weights.sum()).double()
        assert share.min() >= 0
        point = share @ rows
        assert (rows @ point).min() >= point @ point * (1 - 1e-3)  # nearest to 0 of the hull
        assert (point @ point) < 0.9 * (rows @ rows.mT).diagonal().max()


def rows_of(trainer, model):
    """Rewards' gradients [reward, parameter], by a plain forward and a loop."""
    parts = trainer._buffered_inputs
    whole = {
        x: torch.cat([part[x] for part in parts]) for x in parts[0] if x != "num_items_in_batch"
    }
    ids = torch.cat([whole["prompt_ids"], whole["completion_ids"]], 1)
    mask = torch.cat([whole["prompt_mask"], whole["completion_mask"]], 1)
    keep = whole["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1]
    found = logits.log_softmax(-1).gather(2, whole["completion_ids"][..., None])[..., 0]
    each = -(found * whole["completion_mask"]).sum(1)
    leaves = [leaf for leaf in model.parameters() if leaf.requires_grad]
    rows = [
        torch.autograd.grad(each @ whole["by_reward"][:, k], leaves, retain_graph=True)
        for k in range(3)
    ]
    return torch.stack([torch.cat([x.flatten() for x in row]) for row in rows]).double()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_iterations": 2}, "not linear"),
        ({"loss_type": "sapo"}, "not linear"),
        ({"loss_type": "grpo"}, "not linear"),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 1}, "not linear"),
        ({"scale_rewards": "group"}, "scale_rewards"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "scale_rewards"),
    ],
)
def test_what_is_not_linear_is_refused(page, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run(page, page.Balanced, tmp_path, mf.upgrad(), 1, **options)


def test_a_reward_without_a_number_is_refused(page, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "short", lambda completion_ids, **_: [None for _ in completion_ids])
    with pytest.raises(ValueError, match="None"):
        run(page, page.Balanced, tmp_path, mf.upgrad(), 1)


def test_both_methods_have_trls_signatures(page):
    for name in ("_generate_and_score_completions", "_compute_loss"):
        own, theirs = (
            inspect.signature(getattr(x, name)) for x in (page.Balanced, trl.GRPOTrainer)
        )
        assert list(own.parameters) == list(theirs.parameters)


def test_the_page_says_how_to_run_it_and_what_can_go_wrong(page):
    assert "python -m experiments.examples.trl_rewards\n" in page.__doc__
    assert "What can go wrong" in page.__doc__
