"""The pages for mixed precision, Lightning, Accelerate and the Trainer of transformers."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import mtlfunc as mf
from experiments.examples import mixed_precision
from experiments.examples.problem import Net, batches, difference, on
from tests.support.examples import falls, rows_of

HALVES = {torch.bfloat16: 0.02, torch.float16: 0.003}


@pytest.mark.parametrize("half", HALVES)
def test_mixed_precision(half):
    data = batches(60, 32)
    plain, (seen, off) = mixed_precision.plain(data, half), mixed_precision.balanced(data, half)
    assert 1e-6 < off < HALVES[half]  # autocast did something
    assert torch.equal(plain[0], seen[0])
    falls(plain)
    falls(seen)


def test_float16_measures_faint_gradients_where_the_losses_are_scaled():
    """Residuals and heads of 1e-3: what reaches the trunk is below 6e-8, where float16 ends."""
    net, ((x, y),) = Net(), batches(1, 8)
    with torch.no_grad():
        for leaf in net.heads.parameters():
            leaf.mul_(1e-3)
    y, double = 1e-3 * y, copy.deepcopy(net).double()
    rows, _ = rows_of(double, (x.double(), y.double()))
    exact, error = rows @ rows.mT, {}
    for scale in (None, 2.0**14):
        balancer = mf.Balancer(net, mf.cagrad(0.4), "trunk.*")
        with torch.autocast("cpu", torch.float16):
            losses = (net(x).float() - y).square().mean(0)
        gramian = balancer.measure(losses * (scale or 1)).gramian / (scale or 1) ** 2
        error[scale] = float((gramian - exact).norm() / exact.norm())
    assert error[2.0**14] < 0.01, error
    assert error[None] > 3 * error[2.0**14], error


def test_what_is_not_finite_is_an_error():
    net, ((x, y),) = Net(), batches(1, 8)
    balancer = mf.Balancer(net, mf.cagrad(0.4), "trunk.*")
    with torch.autocast("cpu", torch.float16):
        losses = (net(x).float() - y).square().mean(0)
    with pytest.raises(ValueError, match="gradients"):
        balancer.weigh(losses * 2.0**24)


LIGHTNING = [
    "ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning",  # its own use of torch
    "ignore:.*does not have many workers:UserWarning",  # advice, on machines of many cores
]


def quiet(test):
    for line in LIGHTNING:
        test = pytest.mark.filterwarnings(line)(test)
    return test


@quiet
def test_lightning(tmp_path):
    import lightning

    from experiments.examples import lightning_module as page  # takes seconds to import

    class First(lightning.Callback):
        """The gradient that Lightning hands to the first optimizer step, and what was logged."""

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 0:
                x, y = batches(60, 32)[0]
                self.grads = [leaf.grad.clone() for leaf in pl_module.net.parameters()]
                rows = rows_of(copy.deepcopy(pl_module.net).double(), (x.double(), y.double()))[0]
                self.gramian = rows @ rows.mT
                self.logged = {k: float(v) for k, v in trainer.callback_metrics.items()}

    first, module = First(), page.Balanced()
    own: Any = {"enable_progress_bar": False, "default_root_dir": tmp_path, "callbacks": [first]}
    seen = page.main(module, 60, precision="32-true", **own)
    falls(seen)
    twin, (x, y) = page.Net(), batches(60, 32)[0]
    weights = mf.Balancer(twin, mf.pcgrad(), "trunk.*").weigh(on(x, y)(twin))[0]
    for leaf, grad in zip(twin.parameters(), first.grads, strict=True):
        leaf.grad = grad
    assert difference(twin, on(x, y), weights) < 1e-5
    cosine = first.gramian[0, 1] / (first.gramian[0, 0] * first.gramian[1, 1]).sqrt()
    assert abs(first.logged["cosine/first-second"] - float(cosine)) < 1e-5
    assert abs(first.logged["weight/third"] - float(weights[2])) < 1e-6

    half = page.main(page.Balanced(), 60, **own | {"callbacks": []})
    falls(half)
    assert not torch.equal(half, seen)


@quiet
def test_lightnings_checkpoint_and_copies_hold_the_state_of_the_rule(tmp_path):
    import lightning

    from experiments.examples import lightning_module as page

    module = page.Balanced()
    own: Any = {"enable_progress_bar": False, "default_root_dir": tmp_path}
    page.main(module, 5, **own)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, **own)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = page.Balanced.load_from_checkpoint(tmp_path / "run.ckpt")
    (x, y), losses = batches(1, 32)[0], []
    for each in (module, again, copy.deepcopy(module)):
        each.zero_grad()
        out = on(x, y)(each.net)
        losses.append(each.balancer.weigh(out)[0])
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


@pytest.fixture
def accelerator_of():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def make(**options: Any) -> Any:
        AcceleratorState._reset_state(True)
        return Accelerator(cpu=True, **options)

    yield make
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(("precision", "most"), [("no", 1e-5), ("bf16", 0.02)])
def test_accelerate(accelerator_of, precision, most):
    from experiments.examples import accelerate_loop as page

    data = batches(60, 32)
    plain = page.plain(data, accelerator_of(mixed_precision=precision))
    seen, off, _ = page.balanced(data, accelerator_of(mixed_precision=precision))
    assert off < most
    assert torch.equal(plain[0], seen[0])
    falls(seen)
    micro = accelerator_of(mixed_precision=precision, gradient_accumulation_steps=2)
    assert page.balanced(data[:2], micro)[1] < most


def test_accelerate_keeps_the_state_of_the_rule(accelerator_of, tmp_path):
    from experiments.examples import accelerate_loop as page

    accelerator = accelerator_of()
    _, _, balancer = page.balanced(batches(3, 8), accelerator)
    accelerator.save_state(str(tmp_path))
    ((x, y),) = batches(1, 8)

    def weights() -> Tensor:
        return balancer.weigh(on(x, y)(balancer._module))[0]

    one, two = weights(), weights()
    accelerator.load_state(str(tmp_path))
    assert torch.equal(weights(), one)
    assert torch.equal(weights(), two)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # their own
def test_transformers(tmp_path):
    import transformers

    from experiments.examples import transformers_trainer as page

    off = []

    class Still(page.Classifier):
        """Without dropout, so that a second forward is the same."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: Any = {}
            for part in self.modules():
                if isinstance(part, torch.nn.Dropout):
                    part.p = 0.0
            layers: Any = self.trunk.encoder.layer
            for layer in layers:
                layer.attention.self.dropout.p = 0.0

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            self.seen = {"input_ids": input_ids, "labels": labels}
            return super().forward(input_ids, labels)

    class Compared(page.Balanced):
        def create_optimizer(self, model: Any = None) -> Any:
            self.add_callback(Check(self))
            return super().create_optimizer(model)

    class Check(transformers.TrainerCallback):
        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            net, batch = self.trainer.model, dict(self.trainer.model.seen)
            off.append(difference(net, lambda n: n(**batch)["losses"], self.trainer.weights))

    own: Any = {"disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "Classifier", Still)
        trainer: Any = page.main(Compared, str(tmp_path), 3, **own)
        assert len(off) == 3
        assert max(off) < 1e-4
        assert trainer.weights.shape == (3,)
        half: Any = page.main(page.Balanced, str(tmp_path), 2, **own, bf16=True)
        assert torch.isfinite(half.weights).all()
    for kind in (page.Plain, page.Balanced):
        loss = page.main(kind, str(tmp_path), 60, **own).evaluate()["eval_loss"]
        assert loss < 0.9 * math.log(2)  # what guessing costs
