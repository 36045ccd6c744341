"""The recipes of `docs/how-to/recipes.md` are what the options were that they replace."""

# pyright: reportAttributeAccessIssue=false

import re

import pytest
import torch
from torch.func import functional_call

import mtlfunc as mf
from tests.support import ROOT
from tests.support.every import every
from tests.support.oracles import rows_by_name
from tests.support.problems import below

PAGE = (ROOT / "docs/how-to/recipes.md").read_text()


def ran(section, **changed):
    """The names that the page's first lines and a section's code leave, with others `changed`."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    blocks = [re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in (PAGE, text)]
    scope: dict = {}
    exec(blocks[0][0], scope)
    scope |= changed
    for block in blocks[1]:
        exec(block, scope)
    return scope


def literal(net, losses, chosen=lambda name: True):
    """Rows `{name: [task, *shape]}`, by one pass a task, and the Gramian of those chosen."""
    matrix = rows_by_name(losses, dict(net.named_parameters()))
    flat = torch.cat([x.flatten(1) for n, x in matrix.items() if chosen(n)], 1)
    return matrix, flat @ flat.mT


def test_features():
    found = ran("A Gramian at features")
    net, x, y = found["net"], found["x"], found["y"]

    def encode(params, batch):
        return functional_call(net["trunk"], below(params, "trunk."), (x,))

    def decode(params, z, batch):
        heads = [
            (z @ params[f"heads.{t}.weight"].mT + params[f"heads.{t}.bias"] - y[t])
            for t in range(3)
        ]
        return [head.square().mean() for head in heads]

    probe = mf.representation(encode, decode, shared="trunk.*")
    step = mf.balance(lambda p, b: decode(p, encode(p, b), b), mf.mgda(), probe)
    params = mf.parameters(net)
    grads, _, info = step.update(params, (), step.init(params, ()))
    torch.testing.assert_close(found["weights"], info.weights)
    for name, leaf in net.named_parameters():
        torch.testing.assert_close(leaf.grad, grads[name])


def test_a_gramian_of_one_batch_with_another():
    found = ran("A Gramian of one batch with another")
    loss, params, held = found["each_loss"], dict(found["params"]), found["held_out"][0]
    rows, its = (mf.sample_gradients(loss, params, batch)[1] for batch in (found["x"], held))
    expected = sum(rows[k][:, 0].flatten(1) @ its[k][:, 0].flatten(1).mT for k in rows)
    torch.testing.assert_close(found["gramian"][:32, 32:], expected)


def test_a_gramian_in_another_dtype():
    found = ran("A Gramian in another dtype")
    net = found["net"]
    rows, gramian = literal(
        net, found["losses_of"](found["trunk"](found["x"])), lambda name: name.startswith("trunk")
    )
    weights = mf.weights(mf.mgda(), gramian.double()).float()
    torch.testing.assert_close(found["weights"], weights, rtol=1e-4, atol=1e-5)
    for name, leaf in net.named_parameters():
        torch.testing.assert_close(leaf.grad, torch.tensordot(weights, rows[name], 1))


def test_groups_of_parameters():
    found = ran("Groups of parameters")
    net = found["net"]
    losses = found["losses_of"](found["trunk"](found["x"]))
    rows, _ = literal(net, losses)
    wanted = {name: row.mean(0) for name, row in rows.items()}
    for layer in ("trunk.0.", "trunk.2."):
        _, gramian = literal(net, losses, lambda name, layer=layer: name.startswith(layer))
        weights = mf.weights(mf.mgda(), gramian)
        wanted |= {n: torch.tensordot(weights, x, 1) for n, x in rows.items() if layer in n}
    for name, leaf in net.named_parameters():
        torch.testing.assert_close(leaf.grad, wanted[name])


SCALED = "Losses times a scaler's factor"
RULES = {
    "cagrad": lambda: mf.cagrad(0.4),
    "pcgrad": mf.pcgrad,
    "gradnorm": lambda: mf.gradnorm(0.5),  # compares losses and lengths over time
    "nash_mtl": mf.nash_mtl,  # weights with the unit of a gradient's length
    "newton": lambda: mf.physics.gauss_newton(0.1, momentum=True),  # reads J c
}


@every("name", RULES)
def test_a_scalers_factor_changes_nothing_while_it_grows(name):
    """In float32; the scaler doubles its factor every third step."""
    end = []
    for enabled in (False, True):
        found = ran(SCALED)
        net = found["net"]
        scaler = torch.amp.GradScaler("cpu", 2.0, growth_interval=3, enabled=enabled)
        rule = found["unscaled"](RULES[name](), scaler) if enabled else RULES[name]()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)
        balancer = mf.Balancer(net, rule, "trunk.*", metric=optimizer if name == "newton" else None)
        for _ in range(8):
            losses = torch.stack(found["losses_of"](found["trunk"](found["x"])))
            optimizer.zero_grad()
            balancer.backward(scaler.scale(losses))
            scaler.step(optimizer)
            scaler.update()
        end.append([leaf.detach().clone() for leaf in net.parameters()])
    torch.testing.assert_close(*end)


def test_after_an_overflow_the_rules_state_stays_and_the_step_is_skipped():
    found = ran(SCALED)
    rule = found["unscaled"](mf.gradnorm(0.5), scaler := torch.amp.GradScaler("cpu", 2.0**4))
    scaler.scale(torch.ones(()))  # which sets the factor up
    geometry = mf.Geometry(
        torch.tensor([16.0, 32.0]), torch.eye(2), torch.full((2,), 0.5), torch.ones(2) > 0, {}
    )
    state = rule.init(geometry.losses, mf.random.key(0))
    _, state = rule.update(geometry, state)
    over = geometry._replace(gramian=torch.tensor([[float("inf"), 0.0], [0.0, 1.0]]))
    weights, after = rule.update(over, state)
    assert weights.isnan().all()
    leaves = torch.utils._pytree.tree_leaves
    assert all(map(torch.equal, leaves(after), leaves(state)))


def test_weights_are_of_a_part_and_move_all_parameters():
    found = ran("A Gramian over a part of the trunk")
    net, info = found["net"], found["info"]
    losses = found["losses_of"](net["trunk"](found["x"]))
    rows, gramian = literal(net, losses, lambda name: name.startswith("trunk.2."))
    torch.testing.assert_close(info.weights, mf.weights(mf.mgda(), gramian))
    for name, leaf in net.named_parameters():
        torch.testing.assert_close(leaf.grad, torch.tensordot(info.weights, rows[name], 1))


CARRIED = {
    "uw": (lambda: mf.uw(0.1), None), "imtl_l": (lambda: mf.imtl_l(0.1), None),
    "dwa": (lambda: mf.dwa(2), None), "gradnorm": (lambda: mf.gradnorm(1.5), "trunk.*"),
    "gradvac": (mf.gradvac, "trunk.*"), "pcd": (mf.pcd, "trunk.*"),
    "align": (lambda: mf.align(0.1, "mean"), "trunk.*"),
    "momentum": (lambda: mf.momentum(mf.normalize(mf.gradnorm(1.5))), "trunk.*"),
    "moco": (mf.moco, mf.moving_average("trunk.*")),
    "modo": (mf.modo, mf.double_sampling("trunk.*")),
}  # fmt: skip


@pytest.mark.parametrize("rule", CARRIED)
@pytest.mark.parametrize("after", ["ca", "bdac"])
def test_what_is_known_of_tasks_that_stay_is_carried_over(rule, after):
    """Entry by entry, by the names; and the next steps are those of a whole state."""
    found = ran("Tasks that join or leave")
    (make, probe), net, x, y = CARRIED[rule], found["net"], found["x"], found["y"]

    def losses(names, step):
        z = net["trunk"](x + 0.1 * step)
        every = [(net["heads"][t](z) - y[t]).square().mean() for t in range(3)]
        every = {**dict(zip("abc", every, strict=True)), "d": every[0] + 0.5 * every[2]}
        one = {name: every[name] for name in names}
        return (one, one) if rule == "modo" else one

    old, new = mf.Balancer(net, make(), probe), mf.Balancer(net, make(), probe)
    for step in range(3):
        old.weigh(losses("abc", step))
    new.weigh(losses(after, 3))
    was, fresh = old.state_dict(), new.state_dict()
    new.load_state_dict(found["carried"](was, fresh))
    past, own, now = (dict(x["state"]) for x in (was, fresh, new.state_dict()))
    assert now.keys() == own.keys()
    seen = 0
    for key, entries in now.items():
        tasks = sum(m != n for m, n in zip(past[key].shape, entries.shape, strict=True))
        if not tasks:
            assert torch.equal(entries, past[key])
        for i, name in enumerate(after if tasks else ""):
            for j, other in enumerate(after if tasks == 2 else "-"):
                at = (i, j) if tasks == 2 else (i,)
                known = set(name + other) <= set("abc-")
                there = tuple("abc".index(x) for x in (name + other).strip("-")) if known else at
                assert torch.equal(entries[at], (past if known else own)[key][there]), key
                seen += 1
    assert seen
    every = torch.stack([new.weigh(losses(after, step))[0] for step in range(4, 7)])
    assert bool(every.isfinite().all())
    if rule in ("gradnorm", "align", "moco", "modo"):
        assert every[-1].sum().item() == pytest.approx(1.0, abs=1e-5)
