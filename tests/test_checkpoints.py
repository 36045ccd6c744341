"""Checkpoints in pure functions are refused by name at every door, since torch runs them again in
the backward pass, when `functional_call` has given the module its own parameters back; and a pure
function whose operations have to be written out leaves what one run leaves.
The reference: the same module without checkpoints.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import mtlfunc as mf
from tests.support.every import every, in_turn

F64 = torch.float64
WORDS = "activation checkpointing"


def policy(_, op, *args, **kwargs):
    keeps = op == torch.ops.aten.addmm.default
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE


KINDS = {
    "checkpoint": lambda part, x: checkpoint(part, x, use_reentrant=False),
    "nested": lambda part, x: checkpoint(lambda x: checkpoint(part, x, use_reentrant=False), x,
        use_reentrant=False),
    "sequential": lambda part, x: checkpoint_sequential([part, nn.Identity()], 2, x,
        use_reentrant=False),
    "policy": lambda part, x: checkpoint(part, x, use_reentrant=False,
        context_fn=partial(create_selective_checkpoint_contexts, policy)),
    "reentrant": lambda part, x: checkpoint(part, x, use_reentrant=True),
}  # fmt: skip
LAYERS = {
    "linear": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
    "hardsigmoid": lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid()),
    "prelu": lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU(4)),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
}


class Net(nn.Module):
    def __init__(self, layer="linear", kind="checkpoint"):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.part, self.head = nn.Linear(4, 4), LAYERS[layer](), nn.Linear(4, 2)
        self.through = KINDS.get(kind, lambda part, x: part(x))
        self.to(F64)

    def encode(self, x):
        z = self.first(x)
        flat = not isinstance(self.part, nn.TransformerEncoderLayer)
        return self.through(self.part, z) if flat else self.through(self.part, z[:, None])[:, 0]

    def forward(self, x):
        return (self.head(self.encode(x)) - 1).square()


X = torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(1))


def choices(net):
    """The parameters that a pure function may be given: copies, the module's own, some of both."""
    every = {"copies": mf.parameters(net), "own": dict(net.named_parameters())}
    return every | {
        f"some {which}": {name: x for name, x in params.items() if not name.startswith("head")}
        for which, params in every.items()
    }


def step(probe, losses, params):
    taken = mf.balance(losses, mf.mean(), probe)
    return taken.update(params, X, taken.init(params, X))


def descend(losses, params, _):
    loop = mf.descend(losses, mf.upgrad(), mf.jacobian(), mf.sgd(0.1))
    return loop.update(loop.init(params, X), X)


def as_tuple(losses):
    return lambda params, x: tuple(losses(params, x))


DOORS = {
    "task_gramian": lambda tasks, each, params: mf.task_gramian(tasks, params, X),
    "rows": lambda tasks, each, params: mf.task_gramian(tasks, params, X, engine="rows"),
    "layerwise": lambda tasks, each, params: mf.task_gramian(tasks, params, X, engine="layerwise"),
    "scalars": lambda tasks, each, params: mf.task_gramian(as_tuple(tasks), params, X),
    "task_gradients": lambda tasks, each, params: mf.task_gradients(tasks, params, X),
    "one by one": lambda tasks, each, params: mf.task_gradients(tasks, params, X, chunk_size=1),
    "sample_gradients": lambda tasks, each, params: mf.sample_gradients(tasks, params, X),
    "a loop of samples": lambda tasks, each, params: mf.sample_gradients(tasks, params, X,
        samples_at_once=1),
    "sample_gramian": lambda tasks, each, params: mf.sample_gramian(each, params, X),
    "sample_norms": lambda tasks, each, params: mf.sample_norms(each, params, X),
    "weightings": lambda tasks, each, params: mf.task_gramian(each, params, X,
        weightings=torch.rand(2, 12, dtype=F64)),
    "explain_gramian": lambda tasks, each, params: mf.explain_gramian(tasks, params, X),
    "jacobian": lambda tasks, each, params: step(mf.jacobian(), tasks, params),
    "losses_only": lambda tasks, each, params: step(mf.losses_only(), tasks, params),
    "descend": lambda tasks, each, params: descend(tasks, params, each),
    "curvature": lambda tasks, each, params: mf.diagnostics.curvature(tasks, params, X),
    "a transform": lambda tasks, each, params: vmap(
        lambda s: mf.task_gramian(lambda p, x: s * tasks(p, x), params, X)
    )(torch.ones(2, dtype=F64)),
}  # fmt: skip


ALONE = {"sample_gradients", "a loop of samples", "curvature"}
"""Doors that train-mode batch norm does not pass."""


@pytest.mark.parametrize(("layer", "kind"), in_turn(LAYERS, KINDS, 1))
@every("kind")
def test_every_door_refuses_a_checkpoint_by_name(layer, kind):
    net = Net(layer, kind)
    for params in choices(net).values():

        def each(params, x):
            return functional_call(net, params, (x,))

        def tasks(params, x):
            return each(params, x).mean(0)

        for door, call in DOORS.items():
            net.train(layer != "batch norm" or door not in ALONE)
            before = [x.clone() for x in net.parameters()]
            with pytest.raises(RuntimeError, match=f"{WORDS}.*Balancer"):
                call(tasks, each, params)
            assert all(map(torch.equal, before, net.parameters()))


@pytest.mark.parametrize("where", ["encode", "decode"])
def test_representation_refuses_a_checkpoint(where):
    net = Net()

    def encode(params, x):
        z = x @ params["first.weight"].mT
        return checkpoint(torch.sin, z, use_reentrant=False) if where == "encode" else z

    def decode(params, z, x):
        out = (z @ params["head.weight"].mT).square()
        out = checkpoint(torch.sin, out, use_reentrant=False) if where == "decode" else out
        return out.mean(0)

    def losses(params, x):
        return (x @ params["first.weight"].mT @ params["head.weight"].mT).square().mean(0)

    with pytest.raises(RuntimeError, match=WORDS):
        step(mf.representation(encode, decode, shared="first.*"), losses, mf.parameters(net))


class Twice(nn.Module):
    """What has to be written out, where something after it may be differentiated again."""

    def __init__(self, final):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()
        self.head, self.final, self.calls = nn.Linear(4, 2), final, 0
        self.register_buffer("seen", torch.zeros(()))
        self.to(F64)

    def forward(self, x):
        self.calls, self.seen = self.calls + 1, self.seen + 1
        return self.head(self.final(self.drop(self.norm(self.trunk(x))))).square().mean(0)


FINAL = {
    "hardsigmoid": nn.functional.hardsigmoid,
    "attention": lambda z: nn.functional.scaled_dot_product_attention(*(z[None, None],) * 3)[0, 0],
    "cdist": lambda z: z + torch.cdist(z, z).mean(),
    "solve": lambda z: torch.linalg.solve(torch.eye(4, dtype=F64) + 0.1 * z.mT @ z, z.mT).mT,
}


@pytest.mark.parametrize("final", FINAL)
@pytest.mark.parametrize("given", ["copies", "own", "some copies", "some own"])
def test_a_pure_function_leaves_what_one_run_leaves(final, given):
    """Statistics, counters and random numbers, whether gradients are enabled around it or not."""
    left = {}
    for enabled in (False, True):
        net = Twice(FINAL[final])
        params = choices(net)[given]
        torch.manual_seed(3)
        losses_fn = partial(lambda net, p, x: functional_call(net, p, (x,)), net)
        with torch.set_grad_enabled(enabled):
            losses, gramian = mf.task_gramian(losses_fn, params, X)
        state = {name: x.detach().clone() for name, x in net.state_dict().items()}
        left[enabled] = (losses.detach(), gramian.detach(), torch.rand(3), state)
    torch.testing.assert_close(left[True], left[False])
