"""Steps of a stock loop with separate losses beside a plain loop, while the module changes."""

# pyright: reportArgumentType=false

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from mtlfunc.gradients import backward
from mtlfunc.gradients.layerwise import plan
from tests.support.every import every
from tests.support.memory import Largest
from tests.support.oracles import rows_of

FORMS = {
    "list": list,
    "tuple": tuple,
    "dict": lambda losses: {f"task {k}": loss for k, loss in enumerate(losses)},
    "vector": torch.stack,
}


class Net(nn.Module):
    """A trunk, a head a task, two that autograd gives one gradient, and one that no loss reads."""

    def __init__(self, trunk, tasks=3):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(tasks))
        self.one, self.other, self.spare = (nn.Parameter(torch.ones(1)) for _ in range(3))
        self.saving = False

    def forward(self, x):
        z = checkpoint(self.trunk, x, use_reentrant=False) if self.saving else self.trunk(x)
        z = z[0][:, -1] if isinstance(z, tuple) else z
        z = z * (self.one + self.other)
        return [(head(z) - k).square().mean() for k, head in enumerate(self.heads)]


class Checkpointed(nn.Module):
    """Counts its forward passes."""

    runs = 0

    def __init__(self, inputs=5):
        super().__init__()
        self.layer0 = nn.Linear(inputs, 8)

    def forward(self, x):
        def counted(x):
            self.runs += 1
            return self.layer0(x).tanh()

        return checkpoint(counted, x, use_reentrant=False)


TRUNKS = {
    "layers": lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8)),
    "norms": lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.LayerNorm(8)),
    "recurrent": lambda: nn.Sequential(nn.GRU(5, 8, batch_first=True)),
    "a checkpoint": Checkpointed,
}


def check_step(net, balancer, x, shared, form=list, given=None, **options):
    """One step beside a loop of one pass a task on a copy, from the same `.grad`."""
    twin = deepcopy(net)
    before = {n: None if x.grad is None else x.grad.clone() for n, x in net.named_parameters()}
    leaves = {name: leaf for name, leaf in twin.named_parameters() if leaf.requires_grad}
    losses = twin(x)
    rows = [
        torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        for loss in losses
    ]
    info = balancer.backward(form(net(x)) if given is None else given, **options)
    torch.testing.assert_close(info.losses, torch.stack(losses).detach())
    gramian = torch.zeros_like(info.gramian)
    for i, (name, leaf) in enumerate(leaves.items()):
        found = [row[i] for row in rows]
        grad = net.get_parameter(name).grad
        if all(x is None for x in found):
            assert grad is before[name] is None or torch.equal(grad, before[name]), name
            continue
        matrix = torch.stack([torch.zeros_like(leaf) if x is None else x for x in found])
        weights = torch.ones_like(info.weights)  # MGDA's heads follow their own losses
        if name in shared:
            weights = info.weights
            gramian += matrix.flatten(1) @ matrix.flatten(1).mT
        wanted = torch.tensordot(weights, matrix, 1)
        torch.testing.assert_close(grad, wanted if before[name] is None else wanted + before[name])
    torch.testing.assert_close(info.gramian, gramian)
    return info


def names(net, prefix="trunk"):
    return {name for name, _ in net.named_parameters() if name.startswith(prefix)}


def batch(trunk, *shape):
    return torch.randn(6, 4, 5) if trunk == "recurrent" else torch.randn(*(shape or (6, 5)))


@every("trunk", TRUNKS)
@every("form", FORMS)
def test_steps_are_those_of_a_plain_loop(trunk, form):
    torch.manual_seed(0)
    for kind in (torch.float64, torch.float32):
        net = Net(TRUNKS[trunk]()).to(kind)
        balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
        for _ in range(3):
            check_step(net, balancer, batch(trunk).to(kind), names(net), FORMS[form])
            with torch.no_grad():
                for leaf in net.parameters():
                    if leaf.grad is not None:
                        leaf.sub_(leaf.grad, alpha=0.1)


def test_what_is_shared_may_change():
    torch.manual_seed(8)
    net, part = Net(TRUNKS["layers"]()), ["trunk.0"]
    balancer = mf.Balancer(net, mf.mgda(), lambda name: name.startswith(part[0]))
    for prefix in ("trunk.0", "trunk.0", "trunk.2", "trunk"):
        part[0] = prefix
        check_step(net, balancer, batch("layers"), names(net, prefix))


@pytest.mark.parametrize("small", [False, True], ids=["as it is", "as if it were large"])
@every("form", ["list", "vector"])
def test_what_is_kept_follows_the_module(form, small, monkeypatch):
    for price in ("FEW_PARAMETERS", "GROUP", "NUMBER") if small else ():
        monkeypatch.setattr(plan, price, 0)
    torch.manual_seed(1)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")

    def same():
        net.zero_grad()
        trained = {name for name in names(net) if net.get_parameter(name).requires_grad}
        check_step(net, balancer, x, trained, FORMS[form])

    same()
    net.trunk[0].requires_grad_(False)
    same()
    net.trunk[2] = nn.Linear(8, 8)
    same()
    net.trunk[0].requires_grad_(True)
    net.double()
    x = torch.randn(40, 5).double()
    same()
    net.trunk.append(nn.Linear(8, 8).double())
    net.trunk[3].weight = net.trunk[2].weight  # tied
    same()
    net.heads[0] = net.heads[1]  # a head of two losses
    same()
    hooks = [
        net.trunk[2].register_full_backward_hook(lambda module, up, down: (2 * up[0],)),
        net.trunk[1].register_forward_hook(
            lambda _, x, out: [out.register_hook(lambda g: 3 * g)][1:] or None
        ),
    ]
    same()
    for hook in hooks:
        hook.remove()
    same()
    net.saving = True
    same()
    # what waits in .grad is added to, in the parameter's own memory
    before = net.trunk[0].weight.grad
    kept = before.clone()
    balancer.backward(net(x))
    assert net.trunk[0].weight.grad is before
    torch.testing.assert_close(before, 2 * kept)
    grads = [leaf.grad for leaf in net.parameters() if leaf.grad is not None]
    versions = [grad._version for grad in grads]
    for k, grad in enumerate(grads):
        grad.fill_(k)  # no entry is another's, and no change counts as another's
    assert all(bool((grad == k).all()) for k, grad in enumerate(grads))
    assert [x._version - old for x, old in zip(grads, versions, strict=True)] == [1] * len(grads)


def test_what_no_loss_reads_has_no_rows():
    torch.manual_seed(0)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    net.trunk.spare = nn.Parameter(torch.ones(1000, 1000))  # whose rows would be asked for
    net.trunk.vector, net.heads.spare = (nn.Parameter(torch.ones(1001)) for _ in range(2))
    balancer, most = mf.Balancer(net, mf.mgda(), "trunk.*"), 0
    for _ in range(3):
        with Largest() as largest:
            balancer.backward(net(x))
        most = largest.most
    assert most <= net.trunk.spare.numel()  # zeros once, and not a row a task


@every("part", ["trunk", "trunk.0", "heads"])
def test_what_is_frozen_and_unfrozen_again_trains_again(part):
    """Also where the steps between were errors, since nothing that is shared was left."""
    torch.manual_seed(3)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    for frozen in (False, True, False, True, False):
        net.get_submodule(part).requires_grad_(not frozen)
        net.zero_grad()
        if frozen and part == "trunk":
            with pytest.raises(ValueError, match="frozen ones are not among"):
                balancer.backward(net(x))
            continue
        held = {name for name in names(net) if net.get_parameter(name).requires_grad}
        check_step(net, balancer, x, held)


ANY_HEADS = {
    "linear": lambda: nn.Linear(4, 1),
    "two layers": lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)),
    "without a gradient": lambda: nn.Sequential(nn.Linear(4, 3), Dead(), nn.Linear(3, 1)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 1)),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 4), nn.Flatten()),
    "prelu": lambda: nn.Sequential(nn.PReLU(4), nn.Linear(4, 1, bias=False)),
}


class Dead(nn.Module):
    """As a ReLU below 0."""

    def forward(self, x):
        return 0 * x


SPLIT = FORMS | {
    "one": lambda losses: torch.cat([x.reshape(1) for x in losses]).log().exp(),
    "unbound": lambda losses: list((2 * torch.stack(losses)).unbind()),
}
"""Also a vector whose graph does not tell its entries apart, and its entries."""


@pytest.mark.filterwarnings("ignore:shared. only one task depends:UserWarning")
@pytest.mark.parametrize("form", SPLIT)
@pytest.mark.parametrize("head", ANY_HEADS)
def test_what_absent_tasks_alone_read_gets_none(head, form):
    """A present task's gradient may be zeros; None where the graph does not tell who reads it."""
    torch.manual_seed(0)
    trunk, parts = nn.Linear(3, 4), nn.ModuleList(ANY_HEADS[head]() for _ in "abc")
    net = nn.ModuleDict({"trunk": trunk, "heads": parts})
    for shared, heads in (("trunk.*", "plain"), ("*", "own"), ("trunk.*", "weighted")):
        balancer = mf.Balancer(net, mf.mean(), mf.jacobian(shared, heads=heads))
        for present in ([True, True, True], [True, False, True], [False, False, True]):
            net.zero_grad()
            z = trunk(torch.randn(5, 3))
            losses = [part(z).square().mean() + 1 for part in parts]
            balancer.backward(SPLIT[form](losses), present=torch.tensor(present))
            for there, part in zip(present, parts, strict=True):
                first, *_, last = part.parameters()
                assert (last.grad is not None) == there, (shared, present)
                zeros = head == "without a gradient" and form in ("one", "unbound")
                assert (first.grad is not None) == (there and not (zeros and not all(present)))


MORE = {
    "weighted heads": ({"heads": "weighted"}, {}),
    "an absent task": ({}, {"present": torch.tensor([True, False, True])}),
    "a half": ({}, {}),
}


@every("case", MORE)
def test_rows_are_made_in_one_matrix(case, monkeypatch):
    """A list of rows that is stacked would hold them twice."""
    options, given = MORE[case]
    made, whole = [], backward.rows_of

    def noting(*args, **rest):
        made.append(args[0])
        return whole(*args, **rest)

    monkeypatch.setattr(backward, "rows_of", noting)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    dtype = torch.bfloat16 if case == "a half" else torch.float32
    balancer = mf.Balancer(net.to(dtype), mf.mgda(), mf.jacobian("trunk.*", **options))
    balancer.backward(net(x.to(dtype)), **given)
    assert [len(matrix) for matrix in made] == [3]


def test_a_checkpoint_runs_once_a_task():
    net, x = Net(Checkpointed()), torch.randn(6, 5)
    head = Checkpointed(8)
    net.heads[0] = nn.Sequential(head, nn.Linear(8, 1))
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    for _ in range(3):
        net.trunk.runs = head.runs = 0
        balancer.backward(net(x))
        # forward, and in every pass that enters it: the head's own task alone
        assert (net.trunk.runs, head.runs) == (1 + len(net.heads), 2)


@every("which", ["trunk.0.weight", "heads.0.weight"])
@every("size", [(8, 3), (8, 7)])
def test_a_parameter_of_another_shape_than_in_its_graph_is_an_error(which, size):
    torch.manual_seed(10)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    balancer.backward(net(x))
    net.zero_grad()
    losses = net(x)
    net.get_parameter(which).data = torch.randn(size)
    with pytest.raises(RuntimeError, match=r"size|shape"):
        balancer.backward(losses)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_leaves_that_are_pieces_of_one_tensor():
    flat = torch.randn(48, requires_grad=True)

    class Pieces(Net):
        def __init__(self):
            super().__init__(nn.Linear(5, 8))
            self.requires_grad_(False)
            del self.trunk._parameters["weight"]
            self.trunk._parameters["weight"] = flat[:40].view(8, 5)

    net, x = Pieces(), torch.randn(6, 5)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    for _ in range(2):
        info = balancer.backward(net(x), retain_graph=True)
        matrix = rows_of(net(x), [flat])[:, :40]
        torch.testing.assert_close(info.gramian, matrix @ matrix.mT)


HEADS = {"light": lambda: nn.Linear(32, 1), "heavy": lambda: nn.Linear(32, 4096)}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(8, 32, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


NETWORKS = {
    "layers": (lambda: nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32)), (64, 8)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 32)
        ),
        (16, 3, 8, 8),
    ),
    "attention": (lambda: nn.TransformerEncoderLayer(32, 2, 32, batch_first=True), (8, 5, 32)),
    "a recurrence": (Recurrent, (16, 4, 8)),
    "norms": (lambda: nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU()), (64, 8)),
}


def bytes_saved(losses):
    """Of the tensors that the nodes of these graphs still hold."""
    found, todo = {}, [loss.grad_fn for loss in losses]
    seen = set(todo)
    for node in todo:  # it grows while it is read
        for name in dir(node):
            if name.startswith("_saved_"):
                try:
                    saved = getattr(node, name)
                except RuntimeError:  # freed
                    continue
                held = saved if isinstance(saved, tuple) else (saved,)
                for x in held:
                    if isinstance(x, torch.Tensor):
                        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                todo.append(child)
    return sum(found.values())


@every("network", NETWORKS)
@every("heads", HEADS)
def test_no_step_keeps_what_the_graph_has_saved(network, heads):
    """As `loss.backward()` keeps nothing, in whatever order the losses come."""
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    trunk, head = make(), nn.ModuleList(HEADS[heads]() for _ in range(3))
    net, x = nn.ModuleDict({"trunk": trunk, "heads": head}), torch.randn(shape)
    for form in FORMS.values():
        balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
        for order in ((0, 1, 2), (2, 0, 1)):
            z = trunk(x)
            # the first reads all samples, the others a few: graphs of unlike sizes
            losses = [(head[k](z if k == 0 else z[:2]) - k).square().mean() for k in range(3)]
            assert bytes_saved(losses) > z.nbytes
            balancer.backward(form([losses[k] for k in order]))
            assert bytes_saved(losses) == 0
