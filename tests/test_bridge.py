"""The examples for other training loops run, and do what the library does by itself."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from experiments.bridge import accumulation, mixed_precision, stock_loop
from experiments.bridge.problem import Net, batches
from mtlfunc.core import checks
from mtlfunc.types import Params

STEPS, SIZE = 12, 8


def losses_of(net: nn.Module):
    def losses(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (functional_call(net, params, (batch[0],)) - batch[1]).square().mean(0)

    return losses


def clipped(decay: float, most: float) -> mf.Optimizer:
    """Adam after clipping by norm, with an exponential schedule, as an optimizer of the library."""

    def update(grads: Params, state, params: Params):
        step, inner = state
        norm = torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()
        grads = {name: grad * (most / (norm + 1e-6)).clamp_max(1) for name, grad in grads.items()}
        params, inner = mf.adam(1e-2 * decay**step).update(grads, inner, params)
        return params, (step + 1, inner)

    return mf.Optimizer(lambda params: (0, mf.adam(1e-2).init(params)), update)


@pytest.mark.parametrize(("clip", "decay"), [(float("inf"), 1.0), (0.5, 0.9)])
def test_the_stock_loop_is_descend(clip, decay):
    net, seen = stock_loop.main(STEPS, size=SIZE, clip=clip, decay=decay)
    data, other = batches(STEPS, SIZE), Net()
    step = mf.descend(
        losses_of(other), mf.pcgrad(), clipped(decay, clip), mf.jacobian(shared="trunk.*")
    )
    state, record = mf.rollout(step, step.init(mf.parameters(other), data[0], key=0), data)
    torch.testing.assert_close(seen, record.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mf.parameters(net), state.params, rtol=1e-4, atol=1e-5)


def test_the_stock_loop_resumes_bit_for_bit():
    net, seen = stock_loop.main(STEPS, size=SIZE)
    other, resumed = stock_loop.main(STEPS, size=SIZE, stop=5)
    assert torch.equal(seen, resumed)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_without_the_state_of_the_rule_a_resumed_run_is_another(monkeypatch):
    load = stock_loop.Run.load

    def forgetful(run, path):
        fresh = run.state
        load(run, path)
        run.state = fresh

    _, seen = stock_loop.main(STEPS, size=SIZE)
    monkeypatch.setattr(stock_loop.Run, "load", forgetful)
    _, resumed = stock_loop.main(STEPS, size=SIZE, stop=5)
    assert not torch.equal(seen, resumed)


def test_the_stock_loop_learns():
    _, seen = stock_loop.main(80)
    assert (seen[-10:].mean(0) < 0.5 * seen[:10].mean(0)).all()


LIGHTNING = [
    "ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning",  # its own use of torch
    "ignore:.*does not have many workers:UserWarning",  # advice, on machines of many cores
]


def quiet(test):
    for line in LIGHTNING:
        test = pytest.mark.filterwarnings(line)(test)
    return test


@quiet
def test_lightning_is_the_stock_loop(tmp_path):
    from experiments.bridge import lightning_module  # takes seconds to import

    options = {"enable_progress_bar": False, "default_root_dir": tmp_path}
    net, seen = lightning_module.main(STEPS, size=SIZE, **options)
    other, expected = stock_loop.main(STEPS, size=SIZE)
    assert torch.equal(seen, expected)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


@quiet
def test_lightnings_checkpoint_holds_the_state_of_the_rule(tmp_path):
    import lightning

    from experiments.bridge import lightning_module

    data = batches(STEPS, SIZE)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    module = lightning_module.Balanced(data[0])
    loader = torch.utils.data.DataLoader(
        data,  # pyright: ignore[reportArgumentType]
        batch_size=None,
    )
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = lightning_module.Balanced.load_from_checkpoint(tmp_path / "run.ckpt", example=data[0])
    fresh = lightning_module.Balanced(data[0])
    saved, loaded, initial = (tree_leaves(x.balance_state) for x in (module, again, fresh))
    assert all(torch.equal(a, b) for a, b in zip(saved, loaded, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(saved, initial, strict=True))


def pcgrad_step(net: Net, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The trunk's Jacobian [task, parameter] and the heads' mean gradient, by plain autograd."""
    trunk, heads = list(net.trunk.parameters()), list(net.heads.parameters())
    losses = (net(batch[0]) - batch[1]).square().mean(0)
    rows = [
        torch.cat([x.flatten() for x in torch.autograd.grad(loss, trunk, retain_graph=True)])
        for loss in losses
    ]
    return torch.stack(rows), torch.cat(
        [x.flatten() for x in torch.autograd.grad(losses.mean(), heads)]
    )


@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 1, 3, 2)])
def test_accumulated_rows_are_the_full_batch(sizes):
    found = accumulation.main(3, sizes=sizes)
    for full, once in zip(found["full batch"], found["one Gramian"], strict=True):
        for name in full:
            torch.testing.assert_close(once[name], full[name], rtol=1e-12, atol=1e-13)
    assert not torch.equal(*(found["one Gramian"][i]["trunk.0.weight"] for i in (0, 1)))


def test_weights_for_every_micro_batch_are_the_mean_of_its_own_steps():
    sizes = (5, 1, 3)
    found = accumulation.main(1, sizes=sizes)["weights for every micro-batch"][0]
    net = Net(dtype=torch.float64)
    ((x, y),) = batches(1, sum(sizes), dtype=torch.float64)
    balance = mf.balance(losses_of(net), mf.pcgrad(), mf.jacobian(shared="trunk.*"))
    state = balance.init(mf.parameters(net), (x, y), key=0)
    trunk, heads = 0, 0
    for micro in zip(x.split(sizes), y.split(sizes), strict=True):
        rows, own = pcgrad_step(net, micro)
        # for the orders that PCGrad draws here
        _, state, info = balance.update(mf.parameters(net), micro, state)
        torch.testing.assert_close(info.gramian, rows @ rows.mT)
        trunk, heads = (
            trunk + len(micro[0]) / sum(sizes) * info.weights @ rows,
            heads + len(micro[0]) / sum(sizes) * own,
        )
    for part, expected in (("trunk", trunk), ("heads", heads)):
        torch.testing.assert_close(
            torch.cat([leaf.flatten() for name, leaf in found.items() if name.startswith(part)]),
            expected,
            rtol=1e-10,
            atol=1e-12,
        )


def test_micro_batches_of_their_own_weights_are_another_method():
    found = accumulation.main(1)
    full, apart = (
        found[name][0]["trunk.0.weight"] for name in ("full batch", "weights for every micro-batch")
    )
    assert (full - apart).norm() > 0.01 * full.norm()


def test_bfloat16_stays_near_float32():
    _, exact, _ = mixed_precision.main(STEPS, size=SIZE, half=None)
    _, half, _ = mixed_precision.main(STEPS, size=SIZE)
    eps = torch.finfo(torch.bfloat16).eps
    assert not torch.equal(half[0], exact[0])  # autocast did something
    assert ((half[0] - exact[0]).abs() <= 2 * eps * exact[0]).all()
    assert ((half - exact).abs() <= 16 * eps * exact).all()


@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_the_scaler_changes_no_bit_that_stays_in_range(half):
    net, seen, _ = mixed_precision.main(STEPS, size=SIZE, half=half)
    other, scaled, _ = mixed_precision.main(STEPS, size=SIZE, half=half, scale=2.0**16)
    assert torch.equal(seen, scaled)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_rule_that_compares_losses_over_time_must_not_see_the_scale(monkeypatch):
    """The scale doubles on the way; GradNorm would take that for losses that doubled."""
    grown = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp,
        "GradScaler",
        lambda device, **options: grown(device, growth_interval=3, **options),
    )
    _, plain, _ = mixed_precision.main(STEPS, size=SIZE, half=None)
    _, scaled, last = mixed_precision.main(STEPS, size=SIZE, half=None, scale=2.0)
    assert last == 2.0 ** (1 + STEPS // 3)
    assert torch.equal(plain, scaled)


def test_float16_loses_small_gradients_without_the_scaler_and_keeps_them_with_it(monkeypatch):
    """Residuals and heads of 1e-3: what reaches the trunk is below 6e-8, where float16 ends."""

    class Faint(Net):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                for leaf in self.heads.parameters():
                    leaf.mul_(1e-3)

    monkeypatch.setattr(mixed_precision, "Net", Faint)
    monkeypatch.setattr(
        mixed_precision,
        "batches",
        lambda steps, size: [(x, 1e-3 * y) for x, y in batches(steps, size)],
    )
    seen = {}
    for name, half, scale in (
        ("float32", None, None),
        ("plain", torch.float16, None),
        ("scaled", torch.float16, 2.0**14),
    ):
        net, _, _ = mixed_precision.main(1, size=SIZE, half=half, scale=scale)
        seen[name] = torch.cat(
            [x.grad.flatten() for x in net.trunk.parameters() if x.grad is not None]
        )
    error = {
        name: float((seen[name] - seen["float32"]).norm() / seen["float32"].norm())
        for name in ("plain", "scaled")
    }
    assert error["scaled"] < 0.01, error
    assert error["plain"] > 3 * error["scaled"], error


def test_a_step_that_overflows_is_skipped_and_leaves_the_rule_where_it_was(monkeypatch):
    """As on a GPU, where no value is looked at."""
    monkeypatch.setattr(checks, "can_look", lambda *_: False)
    updates = []
    gradnorm = mf.gradnorm

    def watched(alpha):
        rule = gradnorm(alpha)

        def update(geometry, state):
            weights, after = rule.update(geometry, state)
            updates.append((state, after))
            return weights, after

        return mf.Rule(rule.init, update)

    monkeypatch.setattr(mf, "gradnorm", watched)
    net, seen, last = mixed_precision.main(STEPS, size=SIZE, half=torch.float16, scale=2.0**20)
    skipped = [following is before for (before, _), (following, _) in pairwise(updates)] + [False]
    assert 0 < sum(skipped) < STEPS / 2
    assert last == 2.0 ** (20 - sum(skipped))
    assert seen.isfinite().all()
    for (_, after), (following, _), skip in zip(
        updates[:-1], updates[1:], skipped[:-1], strict=True
    ):
        assert skip or following is after
        assert skip or after.weights.isfinite().all()
    # what was left out would have stayed
    assert any(not after.weights.isfinite().all() for _, after in updates)
    assert all(bool(x.isfinite().all()) for x in net.parameters())


def test_on_a_cpu_the_overflow_is_an_error():
    with pytest.raises(ValueError, match="gradients"):
        mixed_precision.main(1, size=SIZE, half=torch.float16, scale=2.0**24)


def test_the_problem_is_the_same_every_time_and_its_tasks_conflict():
    assert all(
        torch.equal(a, b) for a, b in zip(Net(3).parameters(), Net(3).parameters(), strict=True)
    )
    for (x, y), (again, _) in zip(batches(3, SIZE), batches(3, SIZE), strict=True):
        assert torch.equal(x, again)
        assert y.shape == (SIZE, 3)
    assert any(not torch.equal(a[0], b[0]) for a, b in pairwise(batches(3, SIZE)))
    rows, _ = pcgrad_step(Net(), batches(1, SIZE)[0])
    assert (rows @ rows.mT < 0).any()
