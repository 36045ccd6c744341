"""What every process of `test_distributed.py` runs: a function, rank, size and folder."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

import mtlfunc as mf
from mtlfunc.gradients.losses import parse_losses
from mtlfunc.gradients.run import live
from mtlfunc.probes.common import joint_passes
from mtlfunc.processes import ALONE, Shares
from mtlfunc.processes.union import union_of
from mtlfunc.types import Metric
from tests.support import ROOT
from tests.support.oracles import near
from tests.support.problems import BATCH, PARAMS, TASKS, TrunkAndHeads, encode

TRUNK = "trunk.*"
RULES: dict[str, Callable[[], mf.Rule]] = {
    "mgda": mf.mgda,
    "cagrad": lambda: mf.cagrad(0.4),
    "pcgrad": mf.pcgrad,
    "gradnorm": lambda: mf.gradnorm(1.5),
    "upgrad": mf.upgrad,
    "famo": mf.famo,
}
net = TrunkAndHeads(0)


def world() -> Any:
    return dist.group.WORLD


@cache
def alone() -> Any:
    """A group of this process: what the others do is none of its business."""
    return dist.new_group([dist.get_rank()], use_local_synchronization=True)


def losses_of(params: dict[str, Tensor], batch: Any) -> tuple[Tensor, ...]:
    """Means over this process's samples."""
    x, y = batch
    out = functional_call(net, params, (x,))
    return tuple((one - y[:, task]).square().mean() for task, one in enumerate(out))


def part(batch: Any, rank: int, size: int) -> Any:
    return tuple(x.tensor_split(size)[rank] for x in batch)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda x: x.to(dtype), tree)


def probe_of(name: str, group: Any = None) -> mf.Probe:
    if name == "famo":
        return mf.second_evaluation(mf.losses_only(group=group))
    heads = "weighted" if name == "gradnorm" else "plain"
    return mf.jacobian(TRUNK, heads=heads, group=group)


def run(step: mf.Step, params: Any, batches: list[Any]) -> list[Any]:
    state, seen = step.init(params, batches[0], key=3), []
    for batch in batches:
        state, info = step.update(state, batch)
        seen += [info.losses.nan_to_num(), info.gramian, info.weights]
    return [*seen, *state.params.values()]


def same(found: list[Any], wanted: list[Any], dtype: torch.dtype, what: str = "") -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        near(one, other, 0, tolerance * scale, msg=lambda text, i=i: f"{what} {i}: {text}")


def bits(found: list[Any]) -> None:
    """All ranks hold the same bits."""
    flat = torch.cat([x.detach().double().flatten() for x in found])
    every = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(every, flat)
    assert all(torch.equal(one, every[0]) for one in every)


def pure(rank: int, size: int) -> None:
    """Every rule, one in a metric, for a group and a mesh: three steps as on the union; two
    processes in float32.
    """
    batch = tuple(x[: 8 // size * size] for x in BATCH)
    mesh = init_device_mesh("cpu", (size,))
    for dtype in (torch.float64, torch.float32)[: 4 - size]:
        params, whole = cast(PARAMS, dtype), cast(batch, dtype)
        mine = part(whole, rank, size)
        for name, rule in RULES.items():
            optimizer, metric = mf.sgd(0.1, momentum=0.9), name == "mgda"
            make = partial(mf.descend, losses_of, optimizer=optimizer, metric=metric)
            wanted = run(make(rule(), probe_of(name, alone())), params, [whole] * 3)
            for group in (world(), mesh):
                found = run(make(rule(), probe_of(name, group)), params, [mine] * 3)
                same(found, wanted, dtype, f"{name} {group}")
                bits(found)


def jacobians(rank: int, size: int) -> None:
    """J summed over the ranks is that of the union, with a 0-d parameter; of weightings, too."""
    x, matrix, found = BATCH[0][:8, :2], BATCH[0][:2, :6].repeat(1, 2)[:, :8], []
    params = cast({"a": torch.tensor(0.7), "b": torch.tensor([0.2, 1.4, -1.0])}, torch.float64)
    weights, step = matrix[0, :2], {name: 1 + leaf.cos() for name, leaf in params.items()}
    samples = lambda p, x: (p["a"] * x + p["b"][:2]).sin()  # noqa: E731
    for group, mine in ((alone(), slice(None)), (world(), slice(rank, None, size))):
        found.append([])
        tasks = mf.task_jacobian(lambda p, x: samples(p, x).mean(0), params, x[mine])
        mixed = mf.task_jacobian(samples, params, x[mine], weightings=matrix[:, mine, None] * x[0])
        for J in (tasks.summed(group), mixed.summed(group)):
            for y in (J.measure(gramian=True), J.measure(gramian=True, rows=True)):
                found[-1] += [y.losses, y.gramian, y.combine(weights)["b"], J.rows()["b"], J @ step]
            found[-1] += [J.gramian(metric=Metric(step, {})), (weights @ J)["a"]]
            found[-1] += [(matrix[:, :2] @ J).gramian()]
            assert J.gramian(dtype=torch.float32).dtype == torch.float32
    same(found[1], found[0], torch.float64)
    bits(found[1][:6])


def stock(net: nn.Module, balancer: mf.Balancer, batches: list[Any], counts: Any = None) -> Any:
    """A stock loop: what it saw, and the parameters at its end."""
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
    for x, y in batches:
        out = net(x)
        losses = [(one - y[:, task]).square().mean() for task, one in enumerate(out)]
        info = balancer.backward(losses, present=counts)
        optimizer.step()
        optimizer.zero_grad()
        seen += [info.losses, info.gramian, info.weights]
    return [*seen, *(leaf.detach() for leaf in net.parameters())]


def balancer_of(net: nn.Module, name: str, group: Any) -> mf.Balancer:
    if name == "famo":
        return mf.Balancer(net, mf.famo(full_batch=True), None, group=group, key=3)
    heads = "weighted" if name == "gradnorm" else "own"
    return mf.Balancer(net, RULES[name](), mf.jacobian(TRUNK, heads=heads, group=group), key=3)


def modules(rank: int, size: int) -> None:
    """A stock loop on plain modules and under DistributedDataParallel."""
    kinds: dict[str, Callable[[TrunkAndHeads], Any]] = {
        "plain": lambda net: net,
        "ddp": DistributedDataParallel,
        "unused": lambda net: DistributedDataParallel(net, find_unused_parameters=True),
    }
    for dtype in (torch.float64, torch.float32):
        whole = cast(tuple(x[: 8 // size * size] for x in BATCH), dtype)
        mine = part(whole, rank, size)
        for name in RULES:
            one = TrunkAndHeads(0).to(dtype)
            wanted = stock(one, balancer_of(one, name, alone()), [whole] * 3)
            for kind, wrap in kinds.items():
                other = wrap(TrunkAndHeads(0).to(dtype))
                found = stock(other, balancer_of(other, name, world()), [mine] * 3)
                same(found, wanted, dtype, f"{name} {kind}")
                bits(found)


def labelled(params: dict[str, Tensor], batch: Any) -> tuple[Tensor, ...]:
    """Means over the labels that there are; the others are NaN."""
    return means(functional_call(net, params, (batch[0],)), batch[1], 0)


def means(out: Any, y: Tensor, least: int = 1) -> tuple[Tensor, ...]:
    here = ~y.isnan()
    return tuple(
        (one - y[:, t]).where(here[:, t], 0.0).square().sum() / here[:, t].sum().clamp_min(least)
        for t, one in enumerate(out)
    )


def labels_in(batch: Any) -> Tensor:
    return (~batch[1].isnan()).sum((0, 2))


def uneven(rank: int, size: int) -> tuple[Any, Any]:
    """Two batches, one of which lacks a task everywhere, and this rank's part of them."""
    x, y = BATCH[0], BATCH[1].clone()
    y[5:, 1] = float("nan")  # the last ranks have no labels of task 1
    y[2, 0, 1] = float("nan")
    other = y.clone()
    other[:, 2] = float("nan")
    cuts = [[5, 7], [6]][size == 2]
    whole = [(x, y), (x.flip(0), other)]
    return whole, [tuple(z.tensor_split(cuts)[rank] for z in one) for one in whole]


def ragged(rank: int, size: int) -> None:
    """Batches of other sizes and other labels on every rank, with every probe."""
    whole, mine = uneven(rank, size)

    def with_labels(make: Callable[..., mf.Probe]) -> Callable[[Any], mf.Probe]:
        return lambda group: make(present=labels_in, group=group)

    probes = {
        "plain": with_labels(partial(mf.jacobian, TRUNK)),
        "own": with_labels(partial(mf.jacobian, TRUNK, heads="own")),
        "weighted": with_labels(partial(mf.jacobian, TRUNK, heads="weighted")),
        "z": with_labels(partial(mf.representation, encode, decode_labelled, shared=TRUNK)),
        "mask": with_labels(partial(mf.jacobian, TRUNK, mask=mf.graddrop())),
        "tracked": with_labels(partial(mf.moving_average, TRUNK)),
        "risk": with_labels(partial(mf.excess_risk, TRUNK)),
        "after": lambda group: mf.second_evaluation(with_labels(mf.losses_only)(group)),
    }
    rules: dict[str, mf.Rule] = {"mask": mf.mean(), "after": mf.famo()}
    for name, probe in probes.items():
        rule = rules.get(name, mf.mgda())
        wanted = run(mf.descend(labelled, rule, probe(alone()), mf.sgd(0.1)), PARAMS, whole)
        found = run(mf.descend(labelled, rule, probe(world()), mf.sgd(0.1)), PARAMS, mine)
        same(found, wanted, torch.float64, name)
        bits(found)


def decode_labelled(params: dict[str, Tensor], z: Tensor, batch: Any) -> tuple[Tensor, ...]:
    out = [z @ params[f"heads.{t}.weight"].mT + params[f"heads.{t}.bias"] for t in range(TASKS)]
    return means(out, batch[1])


def unlabelled_modules(rank: int, size: int) -> None:
    """A stock loop where a rank has no labels of a task, nor a graph for its loss."""
    whole, mine = uneven(rank, size)

    def loop(net: nn.Module, group: Any, batches: list[Any], in_turn: bool = False) -> list[Any]:
        balancer, seen = mf.Balancer(net, mf.mgda(), TRUNK, group=group), []
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
        for x, y in batches:

            def loss(t: int, out: Any = None, x: Tensor = x, y: Tensor = y) -> Tensor:
                out, here = (net(x) if out is None else out)[t] - y[:, t], ~y[:, t].isnan()
                return out[here].square().mean() if here.any() else x.new_zeros(())

            if in_turn:
                losses = [partial(loss, t) for t in range(TASKS)]
            else:
                losses = [loss(t, out) for out in [net(x)] for t in range(TASKS)]
            info = balancer.backward(losses, present=labels_in((x, y)))
            optimizer.step()
            optimizer.zero_grad()
            seen += [info.losses.where(labels_in(whole[len(seen) // 2]) > 0, 0.0), info.weights]
        return [*seen, *(leaf.detach() for leaf in net.parameters())]

    wanted = loop(TrunkAndHeads(0), alone(), whole)
    for wrap in (lambda net: net, DistributedDataParallel):
        for in_turn in (False, True):
            found = loop(wrap(TrunkAndHeads(0)), world(), mine, in_turn)
            same(found, wanted, torch.float64, "unlabelled")
            bits(found)


class Summed(torch.autograd.Function):
    """x summed over a group, and so is its gradient, as in SyncBatchNorm; None talks to nobody."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group, total = group, x.clone()
        if group is not None:
            dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return Summed.forward(ctx, grads[0], ctx.group), None


def talking_backward(rank: int, size: int) -> None:
    """The network takes a mean over all ranks, some without a task's labels; or nothing talks."""
    whole, mine = uneven(rank, size)

    def step(group: Any, batch: Any, talks: bool = True) -> list[Any]:
        net, counts = TrunkAndHeads(0), labels_in(batch)
        h, talking = net.trunk(batch[0]), group if talks else None
        sums: Any = Summed.apply(torch.cat([h, torch.ones_like(h)], 1).sum(0), talking)
        h = (h - sums[: h.shape[1]] / sums[-1] if talks else h * sums[-1] / len(h)).tanh()
        losses = means([head(h) for head in net.heads], batch[1], least=talks)
        info = mf.Balancer(net, mf.mgda(), TRUNK, group=group).backward(losses, present=counts)
        return [info.losses, info.gramian, *(leaf.grad for leaf in net.trunk.parameters())]

    def pure(group: Any, batch: Any) -> list[Any]:
        """Of one vector: what a task reads is found by NaN parameters, if nobody would wait."""

        def losses(params: Any, batch: Any) -> Tensor:
            total: Any = Summed.apply(params["w"] * batch[0].sum(0), group)
            return 1.0 * torch.stack(means([(batch[0] @ total)[:, None]] * TASKS, batch[1]))

        step = mf.balance(losses, mf.mgda(), mf.jacobian(present=labels_in, group=group))
        params = {"w": batch[0].new_ones(batch[0].shape[1])}
        grads, _, info = step.update(params, batch, step.init(params, batch))
        return [info.weights, grads["w"]]

    for union, own in zip(whole, mine, strict=True):
        same(step(world(), own), step(alone(), union), torch.float64)
        same(pure(world(), own), pure(alone(), union), torch.float64)
    same(step(world(), mine[0], False), step(alone(), whole[0], False), torch.float64)
    leaf, here = torch.ones(2, requires_grad=True), torch.tensor([False, False])  # others have

    def joint() -> Any:
        quiet: Any = Summed.apply(leaf, None)
        losses = parse_losses([quiet.sum(), quiet.mean() / 0])  # a mean over no labels is left out
        return joint_passes(live(losses, {"leaf": leaf}), Shares(ALONE, 0.5, here, ~here))

    assert joint().tolist() == [True, False]
    Summed.__name__ = "SyncBatchNorm"
    fails(joint, "present: another rank", "clamp_min")
    Summed.__name__, Summed.__module__ = "_DDPSink", DistributedDataParallel.__module__
    assert joint() is None  # which is known to talk to nobody


def weighed(rank: int, size: int) -> None:
    """`weigh` and the user's own backward, accumulated under `no_sync`, too, and `backward`."""
    whole, mine = uneven(rank, size)

    def gradient(net: nn.Module, group: Any, batches: Any, own: bool = False) -> list[Any]:
        optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
        balancer = mf.Balancer(net, mf.mgda(), TRUNK, group=group, metric=optimizer)
        quiet = getattr(net, "no_sync", nullcontext)
        for i, batch in enumerate(batches):
            with nullcontext() if i == len(batches) - 1 else quiet():
                losses = torch.stack(means(net(batch[0]), batch[1]))
                if own:
                    info = balancer.backward(losses, present=labels_in(batch))
                else:
                    weights, info = balancer.weigh(losses, present=labels_in(batch))
                    (weights * losses).sum().backward()
            seen += [info.losses, info.weights, info.rates]
        return [*seen, *(leaf.grad for leaf in net.parameters())]

    for count, own in ((1, False), (2, False), (2, True)):
        wanted = gradient(TrunkAndHeads(0), alone(), whole[:count], own)
        ddp = DistributedDataParallel(TrunkAndHeads(0))
        found = gradient(ddp, world(), mine[:count], own)
        same(found, wanted, torch.float64, f"weighed {count} {own}")
        bits(found)


def resumed(rank: int, size: int) -> None:
    """FAMO, at every step from the first rank's state anew, where ranks have other labels."""
    whole, mine = uneven(rank, size)

    def weights(group: Any, batches: Any, *, anew: bool) -> list[Any]:
        net, seen = TrunkAndHeads(0), []
        balancer = mf.Balancer(net, mf.famo(), None, group=group)
        for batch in batches * 2:
            losses = partial(labelled, dict(net.named_parameters()), batch)
            seen.append(balancer.backward(losses(), present=labels_in(batch)).weights)
            torch.optim.SGD(net.parameters(), lr=0.1).step()
            balancer.observe(losses())
            if anew:
                saved = [balancer.state_dict()]
                dist.broadcast_object_list(saved)
                balancer = mf.Balancer(net, mf.famo(), None, group=group)
                balancer.load_state_dict(saved[0])
        return seen

    same(weights(world(), mine, anew=True), weights(alone(), whole, anew=False), torch.float64)


def weightings(rank: int, size: int) -> None:
    """Sums over ranks, unlike in samples; rank 0 lacks task 1 at first, then all ranks do."""
    wide = nn.Sequential(nn.Linear(6, 128), nn.Tanh(), nn.Linear(128, 128), nn.LayerNorm(128))
    torch.manual_seed(0)
    x, matrix = torch.randn(7, 6), torch.randn(3, 7)
    matrix[1, :5] = 0
    for leaf in wide.parameters():
        nn.init.normal_(leaf, std=0.2)
    mine = slice(0, 5) if rank == 0 else slice(4 + rank, 5 + rank if rank + 1 < size else None)
    without = matrix * torch.tensor([[1.0], [0.0], [1.0]])
    whole = [{"x": x, "A": each} for each in (matrix, without, matrix)]
    local = [{"x": x[mine], "A": each["A"][:, mine]} for each in whole]

    def losses(params: dict[str, Tensor], batch: Any) -> Tensor:
        return functional_call(wide, params, (batch["x"],)).sin().sum(1)

    def probe(group: Any) -> mf.Probe:
        return mf.jacobian("[02].*", weightings=lambda batch: batch["A"], group=group)

    params = mf.parameters(wide)
    for name in ("mgda", "upgrad"):
        rule = RULES[name]
        step = mf.descend(losses, rule(), probe(alone()), mf.sgd(0.1))
        wanted = run(step, params, whole)
        found = run(mf.descend(losses, rule(), probe(world()), mf.sgd(0.1)), params, local)
        same(found, wanted, torch.float32, name)
        bits(found)
        kinds = (lambda net: net, DistributedDataParallel)
        expected: list[Any] = []
        live = [(kinds[0], alone(), whole), *((kind, world(), local) for kind in kinds)]
        for kind, group, batches in live:
            net = kind(deepcopy(wide))
            balancer = mf.Balancer(net, rule(), "*[02].*", group=group, key=3)
            optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
            for step, batch in enumerate(batches):
                out = net(batch["x"]).sin().sum(1)
                given = {"weightings": batch["A"]}
                if name == "mgda":  # says which task is absent, by its labels on this rank
                    given = {"weightings": batches[0]["A"], "present": [1, step != 1, 2]}
                weights, info = balancer.weigh(out, **given)
                factor = 1 if group == alone() else size  # DDP's mean of what is a sum
                near(weights, factor * info.weights)
                info = balancer.backward(out, **given)
                optimizer.step()
                optimizer.zero_grad()
                seen += [info.losses, info.gramian, info.weights]
            found = [*seen, *(leaf.detach() for leaf in net.parameters())]
            expected = expected or found
            same(found, expected, torch.float32, f"{name} live")


def several_batches(rank: int, size: int) -> None:
    """Two and three independent batches a step."""
    whole = tuple(x[: 8 // size * size] for x in BATCH)
    batches = [whole, tuple(x.flip(0) * 1.5 for x in whole), tuple(x + 0.1 for x in whole)]
    for count, options in ((2, {}), (3, {"heads": "own"})):

        def steps(group: Any, batch: Any, options: Any = options) -> list[Any]:
            probe = mf.double_sampling(TRUNK, group=group, **options)
            return run(mf.descend(losses_of, mf.modo(0.5), probe, mf.sgd(0.1)), PARAMS, [batch] * 3)

        wanted = steps(alone(), tuple(batches[:count]))
        found = steps(world(), tuple(part(one, rank, size) for one in batches[:count]))
        same(found, wanted, torch.float64, f"{count} batches {options}")
        bits(found)


def fails(call: Callable[[], Any], *words: str) -> None:
    """`call` raises on this rank, with these words."""
    with pytest.raises(Exception) as found:
        call()
    assert all(word in str(found.value) for word in words), found.value


def disagree(rank: int, size: int) -> None:
    """Ranks that were started differently: an error on each, which says what differs where."""

    def begin(rule=None, losses=losses_of, params=PARAMS, key=0, shared: Any = TRUNK, **options):
        probe = mf.jacobian(shared, group=world(), **options)
        return lambda: mf.balance(losses, rule or mf.mgda(), probe).init(params, BATCH, key)

    def two(params: Any, batch: Any) -> Any:
        return losses_of(params, batch)[: 3 - rank]

    def named(params: Any, batch: Any) -> Any:
        names = ["a", "b", "c"] if rank == 0 else ["a", "c", "b"]
        return dict(zip(names, losses_of(params, batch), strict=True))

    wide = PARAMS | {"more": torch.zeros(2 + rank, dtype=torch.float64)}
    other = {name: leaf + rank for name, leaf in PARAMS.items()}
    fails(begin(mf.mgda() if rank else mf.cagrad(0.4)), "differ in rule", "cagrad", "on rank 1")
    fails(begin(mf.cagrad(0.4 + rank)), "differ in rule", "0.4", "1.4")
    fails(begin(losses=two), "number of tasks", "3 on rank 0, 2 on rank 1")
    fails(begin(losses=named), "names of the tasks")
    begin(shared=["trunk.0.*", "trunk.*"][:: 1 - 2 * rank])()  # an order says nothing
    fails(begin(losses=lambda p, b: [x / (1 - rank) for x in losses_of(p, b)]), "NaN or infinite")
    fails(begin(params=wide), "params['more']", "[2] on rank 0", "[3] on rank 1")
    fails(begin(params=other), "the values of params['trunk.0.weight']")
    fails(begin(key=rank), "key: 0 on rank 0, 1 on rank 1")
    fails(begin(heads="own" if rank else "plain"), "differ in heads")
    fails(begin(mask=mf.graddrop() if rank else None), "differ in mask")
    fails(begin(present=labels_in if rank else None), "whether present= is given")
    tracked = mf.moving_average(TRUNK, rate=0.1 * (1 + rank), group=world())
    fails(lambda: mf.balance(losses_of, mf.mean(), tracked).init(PARAMS, BATCH), "differ in rate")
    fails(lambda: mf.jacobian(engine="layerwise", group=world()), "layerwise")
    fails(lambda: mf.jacobian(group="world"), "process group")
    fails(lambda: mf.Balancer(DistributedDataParallel(TrunkAndHeads(0)), mf.mgda()), "group=")
    mesh = init_device_mesh("cpu", (1, size), mesh_dim_names=("a", "b"))
    fails(lambda: mf.jacobian(group=mesh), "one-dimensional", "('a', 'b')")
    step = mf.balance(losses_of, mf.mgda(), mf.jacobian(TRUNK, group=mesh["b"]))
    state = step.init(PARAMS, BATCH)
    fails(
        lambda: torch.func.vmap(lambda x: step.update(PARAMS, (x, BATCH[1]), state)[2].losses)(
            BATCH[0][None]
        ),
        "inside a transform",
    )
    meta = {name: leaf.to("meta") for name, leaf in PARAMS.items()}
    fails(begin(params=meta), "backends are", "meta")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        mf.balance(losses_of, mf.mgda(), mf.jacobian(TRUNK)).init(PARAMS, BATCH)
        mf.Balancer(TrunkAndHeads(0), mf.mgda())
        mf.balance(losses_of, mf.mgda(), mf.jacobian(TRUNK, group=alone())).init(PARAMS, BATCH)
    assert [str(one.message)[:15] for one in seen] == ["2 processes run"] * 2, seen


def volume(rank: int, size: int) -> None:
    """Numbers sent a step, by kind of collective, are those of the documentation."""
    sent: dict[str, list[int]] = {}
    inputs = {"all_reduce": 0, "reduce_scatter": 1, "all_gather": 1, "broadcast": 0}
    kept = {name: getattr(dist, name) for name in inputs}

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            given = args[inputs[name]]
            many = given if isinstance(given, list) else [given]
            sent.setdefault(name, []).append(sum(x.numel() for x in many))
            return kept[name](*args, **options)

        return call

    trunk = sum(leaf.numel() for name, leaf in PARAMS.items() if name.startswith("trunk"))
    heads = sum(leaf.numel() for leaf in PARAMS.values()) - trunk
    shard = sum(-(-x.numel() // size) for n, x in PARAMS.items() if n.startswith("trunk"))
    small = TASKS * TASKS + 2 * TASKS  # the Gramian, and the losses twice
    step = mf.balance(losses_of, mf.mgda(), mf.jacobian(TRUNK, group=world()))
    state, mine = step.init(PARAMS, BATCH), part(BATCH, rank, size)
    for name in inputs:
        setattr(dist, name, counted(name))
    step.update(PARAMS, mine, state)
    for name, function in kept.items():
        setattr(dist, name, function)
    assert sent == {
        "reduce_scatter": [TASKS * size * shard],
        "all_reduce": [small, heads],
        "broadcast": [small],
        "all_gather": [shard],
    }, sent


def documentation(rank: int, size: int) -> None:
    """The code of `docs/distributed.md` runs, and gives all the same."""
    page = (ROOT / "docs" / "distributed.md").read_text()
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "distributed.md", "exec"), scope)
    bits([*scope["net"].parameters()])


def dies(rank: int, size: int) -> None:
    """A rank that is killed in the second step: the others' collectives end with an error."""
    step = mf.balance(losses_of, mf.mgda(), mf.jacobian(TRUNK, group=world()))
    state = step.init(PARAMS, BATCH)
    step.update(PARAMS, BATCH, state)
    if rank == size - 1:
        os._exit(9)
    try:
        step.update(PARAMS, BATCH, state)
    except RuntimeError as error:
        print(f"ended with {type(error).__name__}", flush=True)
        os._exit(0)


def metric(rank: int, size: int) -> None:
    """The Gramian in Adam's metric, and the momentum."""

    def losses(module: nn.Module, batch: Any) -> list[Tensor]:
        return [(x - batch[1][:, task]).square().mean() for task, x in enumerate(module(batch[0]))]

    batch = tuple(x[: 8 // size * size] for x in BATCH)
    both = TrunkAndHeads(0), TrunkAndHeads(0)
    optimizers = [torch.optim.Adam(module.parameters(), 1e-2) for module in both]
    balancers = [
        mf.Balancer(module, mf.safe(mf.mgda()), TRUNK, metric=optimizer, group=group)
        for module, optimizer, group in zip(both, optimizers, (world(), alone()), strict=True)
    ]
    for _ in range(4):
        found = balancers[0].backward(losses(both[0], part(batch, rank, size)))
        known = balancers[1].backward(losses(both[1], batch))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        near(found.gramian, known.gramian, 1e-9, 1e-12)
        near(found.rates, known.rates, 1e-8, 1e-12)
        near(found.weights, known.weights, 1e-6, 1e-8)


def orders(rank: int, size: int) -> None:
    """Gradients whose names come in another order on every rank."""
    leaves = {name: torch.full((count,), 1.0 + count) for name, count in (("a", 1), ("b", 2))}
    mine = {name: leaves[name] for name in ("ab" if rank else "ba")}
    found = union_of(world(), leaves).gradient(mine)
    assert all(torch.equal(found[name], size * leaf) for name, leaf in leaves.items())


CHECKS: dict[str, list[Callable[[int, int], None]]] = {
    "two": [
        *(pure, jacobians, modules, disagree, volume, unlabelled_modules, weighed, weightings),
        *(resumed, talking_backward, metric, documentation, orders, dies),
    ],
    "three": [
        *(pure, ragged, unlabelled_modules, talking_backward, weighed, several_batches, metric),
        *(resumed, dies),
    ],
}


Checks = Sequence[Callable[[int, int], None]]


def begin(check: str | Checks, rank: int, size: int, folder: Path) -> None:
    """Run checks, or those of one name, as a rank of so many, with all output in `folder`."""
    with (folder / f"{rank}.log").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main(check, rank, size, folder)


def main(check: str | Checks, rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    named = isinstance(check, str)
    for one in CHECKS.get(check) or [globals()[check]] if named else check:
        one(rank, size)
        print(f"{one.__name__}: ok", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
