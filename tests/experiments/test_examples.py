"""Pages for other training loops: they learn, by the gradients of a loop over the tasks."""

import copy
import functools
import io
import math
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn

import mtlfunc as mf
from experiments.examples import accumulation, mixed_precision
from experiments.examples.checkpointing import Checkpointed
from experiments.examples.compiled import compiled
from experiments.examples.problem import Net, batches, difference, on
from experiments.examples.stock_loop import balanced, plain

STEPS, SIZE = 12, 8


def falls(seen: Tensor) -> None:
    count = len(seen) // 4
    assert (seen[-count:].mean(0) < 0.6 * seen[:count].mean(0)).all()


def test_stock_loop():
    data = batches(60, 32)
    mean, (seen, off) = plain(data, Net()), balanced(data, Net())
    assert off < 1e-5
    falls(mean)
    falls(seen)
    assert torch.equal(mean[0], seen[0])
    assert not torch.equal(mean[-1], seen[-1])


def test_the_stock_loop_resumes_bit_for_bit_by_the_state_of_the_rule(monkeypatch):
    data = batches(STEPS, SIZE)
    whole, _ = balanced(data, Net())
    file = io.BytesIO()
    first, _ = balanced(data[:5], Net(), file=file)
    second, _ = balanced(data[5:], Net(), file=copy.deepcopy(file), resume=True)
    assert torch.equal(torch.cat([first, second]), whole)
    monkeypatch.setattr(mf.Balancer, "load_state_dict", lambda *_: None)
    other, _ = balanced(data[5:], Net(), file=file, resume=True)
    assert not torch.equal(other, second)


def test_activation_checkpointing():
    data, net, other = batches(60, 32), Checkpointed(), Checkpointed()
    seen, off = balanced(data, net)
    assert off < 1e-5
    torch.testing.assert_close(seen, balanced(data, Net())[0], rtol=1e-4, atol=1e-5)
    falls(seen)
    plain(data, other)
    assert net.forwards == other.forwards == 2 * len(data)  # once again for a vector of losses


def test_a_compiled_network():
    data = batches(60, 32)
    before = torch._functorch.config.donated_buffer
    try:
        seen, off = balanced(data, *compiled("aot_eager"))
        first = plain(data[:2], *compiled("aot_eager"))[0]
    finally:
        torch._functorch.config.donated_buffer = before
    assert off < 1e-5
    falls(seen)
    assert torch.equal(first, seen[0])
    torch.testing.assert_close(seen, balanced(data, Net())[0], rtol=1e-3, atol=1e-4)


def test_one_pass_of_a_compiled_module_needs_no_setting():
    """It frees its graph in the first backward pass, as it does in a plain loop."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 4)
    called = torch.compile(net)  # its inductor donates the buffers of a graph
    info = mf.Balancer(net, mf.gls(), None).backward(called(x).square().mean(0))
    grads = [leaf.grad for leaf in net.parameters()]
    net.zero_grad()  # to None: the tensors stay
    (info.weights * net(x).square().mean(0)).sum().backward()
    for grad, leaf in zip(grads, net.parameters(), strict=True):
        torch.testing.assert_close(grad, leaf.grad)


@pytest.mark.parametrize("rule", [mf.cagrad(0.4), mf.mgda(), mf.mean()])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 1, 3, 2)])
def test_one_graph_and_one_gramian_are_the_full_batch(sizes, rule):
    found = accumulation.main(sizes, rule)
    for way in ("one graph", "one Gramian"):
        for name, full in found["full batch"].items():
            torch.testing.assert_close(found[way][name], full, rtol=1e-9, atol=1e-11)


HALVES = {torch.bfloat16: 0.02, torch.float16: 0.003}


@pytest.mark.parametrize("rule", [mf.mean(), mf.cagrad(0.4)])
@pytest.mark.parametrize("half", HALVES)
def test_mixed_precision(half, rule):
    seen, off = mixed_precision.balanced(batches(60, 32), half, rule)
    assert 1e-6 < off < HALVES[half]  # autocast did something
    falls(seen)


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
                self.grads = [leaf.grad.clone() for leaf in pl_module.net.parameters()]
                self.logged = {k: float(v) for k, v in trainer.callback_metrics.items()}

    first, module = First(), page.Balanced()
    own: Any = {"enable_progress_bar": False, "default_root_dir": tmp_path, "callbacks": [first]}
    falls(page.main(module, 60, precision="32-true", **own))
    twin, (x, y) = page.Net(), batches(60, 32)[0]
    weights = mf.Balancer(twin, mf.pcgrad(), "trunk.*").weigh(on(x, y)(twin))[0]
    for leaf, grad in zip(twin.parameters(), first.grads, strict=True):
        leaf.grad = grad
    assert difference(twin, on(x, y), weights) < 1e-5
    assert abs(first.logged["weight/third"] - float(weights[2])) < 1e-6
    trainer = lightning.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = page.Balanced.load_from_checkpoint(tmp_path / "run.ckpt")
    here, there = (each.balancer.weigh(on(x, y)(each.net))[0] for each in (module, again))
    assert torch.equal(here, there)


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
    rule = mf.pcgrad()
    seen, off, _ = page.balanced(data, accelerator_of(mixed_precision=precision), rule)
    assert off < most
    falls(seen)
    micro = accelerator_of(mixed_precision=precision, gradient_accumulation_steps=2)
    assert page.balanced(data[:2], micro, rule)[1] < most


def test_accelerate_keeps_the_state_of_the_rule(accelerator_of, tmp_path):
    from experiments.examples import accelerate_loop as page

    accelerator = accelerator_of()
    _, _, balancer = page.balanced(batches(3, 8), accelerator, mf.pcgrad())
    accelerator.save_state(str(tmp_path))
    ((x, y),) = batches(1, 8)

    def weights() -> Tensor:
        return balancer.weigh(on(x, y)(balancer._module))[0]

    one, two = weights(), weights()
    accelerator.load_state(str(tmp_path))
    assert torch.equal(weights(), one)
    assert torch.equal(weights(), two)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # their own
def test_transformers(tmp_path, monkeypatch):
    """Without dropout, so that a second forward is the same."""
    from experiments.examples import transformers_trainer as page

    off: list[float] = []

    class Compared(page.Balanced):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Tensor:
            loss = super().training_step(model, inputs, *rest, **more)
            off.append(difference(model, lambda net: net(**inputs)["losses"], self.weights))
            return loss

    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    make = functools.partial(page.transformers.BertConfig, **still)
    monkeypatch.setattr(page.transformers, "BertConfig", make)
    own: Any = {"disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0}
    page.main(Compared, str(tmp_path), 3, **own)
    assert max(off) < 1e-4
    for kind in (page.Plain, page.Balanced):
        loss = page.main(kind, str(tmp_path), 60, **own).evaluate()["eval_loss"]
        assert loss < 0.9 * math.log(2)  # what guessing costs
