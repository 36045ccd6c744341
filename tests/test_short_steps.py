"""The short way through a step of a `Balancer` answers what the ordinary one does, bit for bit."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from mtlfunc.gradients import backward, separate
from mtlfunc.gradients.layerwise import graph, plan
from mtlfunc.training import _balancer
from tests.support.every import every
from tests.support.memory import Largest

RULES = {
    "mgda": mf.mgda,
    "pcgrad": mf.pcgrad,
    "momentum": lambda: mf.momentum(mf.cagrad(0.4), 0.5),
    "gradnorm": lambda: mf.gradnorm(1.5),
    "upgrad": mf.upgrad,
}


ALONE = {"gls": mf.gls, "rlw": mf.rlw, "mean": mf.mean}


class Net(nn.Module):
    """A trunk, a head a task, and a parameter that no loss reads."""

    def __init__(self, trunk, tasks=3):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(tasks))
        self.spare = nn.Parameter(torch.ones(2))

    def forward(self, x):
        z = self.trunk(x)
        z = z[0][:, -1] if isinstance(z, tuple) else z
        return [(head(z) - k).square().mean() for k, head in enumerate(self.heads)]


class Checkpointed(nn.Module):
    """Counts its forward passes."""

    runs = 0

    def __init__(self, inputs=5):
        super().__init__()
        self.layer = nn.Linear(inputs, 8)

    def forward(self, x):
        def counted(x):
            self.runs += 1
            return self.layer(x).tanh()

        return checkpoint(counted, x, use_reentrant=False)


class Double(torch.autograd.Function):
    """Of somebody's own."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, *grads):
        return 2 * grads[0]


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 8)

    def forward(self, x):
        return Double.apply(self.layer(x))


TRUNKS = {
    "layers": lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8)),
    "norms": lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.LayerNorm(8)),
    "recurrent": lambda: nn.Sequential(nn.Unflatten(1, (5, 1)), nn.GRU(1, 8, batch_first=True)),
    "a checkpoint": Checkpointed,
}
FORMS = {
    "list": list,
    "tuple": tuple,
    "dict": lambda losses: {f"task {k}": loss for k, loss in enumerate(losses)},
    "dict in another order": lambda losses: {
        f"task {k}": losses[k] for k in reversed(range(len(losses)))
    },
}


@pytest.fixture
def taken(monkeypatch):
    """How often the short way was taken, in an open list of one number."""
    count, whole = [0], _balancer.measure_short

    def counting(*args):
        found = whole(*args)
        count[0] += found is not None
        return found

    monkeypatch.setattr(_balancer, "measure_short", counting)
    return count


def pair(net, *args, **options):
    """A balancer, and one of a copy that always goes the ordinary way."""
    twin = deepcopy(net)
    ordinary = mf.Balancer(twin, *args, **options)
    ordinary._plain = None
    return (net, mf.Balancer(net, *args, **options)), (twin, ordinary)


def step(net, balancer, x, form=list, *, block=False):
    net.zero_grad()
    with balancer if block else nullcontext():
        losses = form(net(x))
    return balancer.backward(losses)


def check_same(pairs, infos):
    (one, first), (two, second) = pairs
    for name, leaf in one.named_parameters():
        other = dict(two.named_parameters())[name]
        assert (leaf.grad is None) == (other.grad is None), name
        assert leaf.grad is None or torch.equal(leaf.grad, other.grad), name
    for name in ("losses", "gramian", "weights", "rates"):
        assert torch.equal(getattr(infos[0], name), getattr(infos[1], name)), name
    assert list(infos[0].tasks) == list(infos[1].tasks)
    for a, b in zip(first.state_dict()["state"], second.state_dict()["state"], strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])


@every("trunk", TRUNKS)
@every("rule", RULES)
def test_a_short_step_is_the_ordinary_one(trunk, rule, taken):
    torch.manual_seed(0)
    forms = [(form, block) for form in FORMS for block in (False, True)]
    for number, (form, block) in enumerate(forms if rule == "mgda" else forms[-3:]):
        kind = torch.float64 if number % 2 else torch.float32
        heads, reduction = ("plain", "own")[number // 2 % 2], ("mean", "sum")[number // 4 % 2]
        net = Net(TRUNKS[trunk]()).to(kind)
        pairs = pair(net, RULES[rule](), "trunk.*", heads=heads, reduction=reduction)
        taken[0] = 0
        for k in range(3):
            x = torch.randn(6, 5, dtype=kind)
            shape = FORMS[form] if k else FORMS["dict"] if "dict" in form else list
            infos = [step(*each, x, shape, block=block) for each in pairs]
            check_same(pairs, infos)
            for one, _ in pairs:
                with torch.no_grad():
                    for leaf in one.parameters():
                        if leaf.grad is not None:
                            leaf.sub_(leaf.grad, alpha=0.1)
        assert taken[0] == 2  # all but the first


@every("trunk", TRUNKS)
@every("rule", ALONE)
def test_so_is_one_of_losses_alone(trunk, rule, taken):
    torch.manual_seed(6)
    for number, form in enumerate(FORMS.values()):
        reduction = ("mean", "sum")[number % 2]
        pairs = pair(Net(TRUNKS[trunk]()), ALONE[rule](), None, reduction=reduction)
        taken[0] = 0
        for k in range(3):
            x = torch.randn(6, 5)
            shape = form if k else FORMS["dict"] if number > 1 else list
            check_same(pairs, [step(*each, x, shape, block=number > 2) for each in pairs])
        assert taken[0] == 2


def test_the_mean_of_losses_alone_is_the_stock_step():
    torch.manual_seed(7)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    balancer = mf.Balancer(net, mf.mean(), None)
    for _ in range(2):
        step(net, balancer, x)
    found = [leaf.grad for leaf in net.trunk.parameters()]
    net.zero_grad()
    torch.stack(net(x)).mean().backward()
    torch.testing.assert_close(found, [leaf.grad for leaf in net.trunk.parameters()])


def test_what_is_kept_follows_the_module(taken):
    torch.manual_seed(1)
    pairs = pair(Net(TRUNKS["layers"]()), mf.mgda(), "trunk.*")
    x = torch.randn(6, 5)

    def same():
        check_same(pairs, [step(*each, x) for each in pairs])

    same()
    same()
    for net, _ in pairs:
        net.trunk[0].requires_grad_(False)
    same()
    other = nn.Linear(8, 8)
    for net, _ in pairs:
        net.trunk[2] = deepcopy(other)
    same()
    for net, _ in pairs:
        net.trunk[0].requires_grad_(True)
        net.double()
    x = x.double()
    same()  # the ordinary way, which finds the parameter that trains again
    assert taken[0] == 3
    same()
    assert taken[0] == 4
    # what waits in .grad is added to, in the parameter's own memory
    (net, balancer), _ = pairs
    before = net.trunk[0].weight.grad
    kept = before.clone()
    balancer.backward(net(x))
    assert net.trunk[0].weight.grad is before
    assert torch.equal(before, 2 * kept)
    grads = [leaf.grad for leaf in net.parameters() if leaf.grad is not None]
    versions = [grad._version for grad in grads]
    for k, grad in enumerate(grads):
        grad.fill_(k)  # no entry is another's, and no change counts as another's
    assert all(bool((grad == k).all()) for k, grad in enumerate(grads))
    assert [grad._version - old for grad, old in zip(grads, versions, strict=True)] == [1] * len(
        grads
    )


def test_what_no_loss_reads_has_no_rows_in_a_short_step_either(taken):
    torch.manual_seed(0)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    net.trunk.spare = nn.Parameter(torch.ones(1000, 1000))  # whose rows would be asked for
    net.trunk.vector, net.heads.spare = (nn.Parameter(torch.ones(1001)) for _ in range(2))
    pairs, most = pair(net, mf.mgda(), "trunk.*"), 0
    for _ in range(3):
        with Largest() as largest:
            found = step(*pairs[0], x)
        check_same(pairs, [found, step(*pairs[1], x)])
        most = largest.most
    assert taken[0] == 2
    assert most < 1001


def test_a_large_network_asks_the_graph_once(taken, monkeypatch):
    monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    torch.manual_seed(2)
    pairs = pair(Net(TRUNKS["layers"]()), mf.mgda(), "trunk.*")
    x = torch.randn(6, 5)
    for _ in range(4):
        check_same(pairs, [step(*each, x) for each in pairs])
    assert taken[0] == 3


def hooked(net, losses):
    losses[0].register_hook(lambda grad: 3 * grad)
    return losses


def turned(net, losses):
    net.trunk[0].weight.register_hook(lambda grad: grad.flip(0))
    return losses


OTHERWISE = {
    "a hook on a loss": (hooked, {}),
    "a hook on a parameter": (turned, {}),
    "a vector": (lambda net, losses: torch.stack(losses), {}),
    "retain_graph": (None, {"retain_graph": True}),
    "present": (None, {"present": torch.tensor([True, False, True])}),
    "a scale": (None, {"scale": 2.0}),
}


@every("case", OTHERWISE)
def test_what_asks_for_more_goes_the_ordinary_way(case, taken):
    change, options = OTHERWISE[case]
    torch.manual_seed(3)
    pairs = pair(Net(TRUNKS["layers"]()), mf.mgda(), "trunk.*")
    x = torch.randn(6, 5)
    for each in pairs:
        step(*each, x)
    infos = []
    for net, balancer in pairs:
        net.zero_grad()
        losses = net(x)
        infos.append(balancer.backward(change(net, losses) if change else losses, **options))
    check_same(pairs, infos)
    assert taken[0] == 0


def test_other_modules_and_modes_go_the_ordinary_way(taken):
    torch.manual_seed(4)
    x = torch.randn(6, 5)
    nets = {
        "somebody's own backward": Net(nn.Sequential(Doubled(), nn.Tanh())),
        "two dtypes": Net(TRUNKS["layers"]()),
    }
    nets["two dtypes"].spare = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    for net in nets.values():
        if net is nets["two dtypes"]:  # refused as before
            with pytest.raises(ValueError, match="dtype"):
                mf.Balancer(net, mf.mgda(), "trunk.*").backward(net(x))
            continue
        pairs = pair(net, mf.mgda(), "trunk.*")
        for _ in range(3):
            check_same(pairs, [step(*each, x) for each in pairs])
    pairs = pair(Net(TRUNKS["layers"]()), mf.mgda(), "trunk.*")
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            check_same(pairs, [step(*each, x) for each in pairs])
    for options in (
        {"measure": "trunk.2.*"},
        {"heads": "weighted"},
        {"gramian_dtype": torch.float64},
    ):
        pairs = pair(Net(TRUNKS["layers"]()), mf.mgda(), "trunk.*", **options)
        for _ in range(3):
            check_same(pairs, [step(*each, x) for each in pairs])
    assert taken[0] == 0


MORE = {
    "weighted heads": ({"heads": "weighted"}, {}),
    "a part is measured": ({"measure": "trunk.2.*"}, {}),
    "a wide Gramian": ({"gramian_dtype": torch.float64}, {}),
    "an absent task": ({}, {"present": torch.tensor([True, False, True])}),
    "a half": ({}, {}),
}


@every("case", MORE)
def test_the_ordinary_step_makes_rows_in_one_matrix(case, monkeypatch):
    """A list of rows that is stacked would hold them twice."""
    options, given = MORE[case]
    made, whole = [], backward.row_matrix

    def noting(*args, **rest):
        made.append(whole(*args, **rest))
        return made[-1]

    monkeypatch.setattr(backward, "row_matrix", noting)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    dtype = torch.bfloat16 if case == "a half" else torch.float32
    balancer = mf.Balancer(net.to(dtype), mf.mgda(), "trunk.*", **options)
    balancer.backward(net(x.to(dtype)), **given)
    assert [len(matrix) for matrix, _ in made] == [3]


def test_errors_are_those_of_the_ordinary_step(taken):
    torch.manual_seed(5)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    for _ in range(2):
        step(net, balancer, x)
    assert taken[0] == 1
    losses = net(x)
    with pytest.raises(ValueError, match=r"losses: NaN or infinite entries \[1\]"):
        balancer.backward([losses[0], losses[1] * float("nan"), losses[2]])
    torch.autograd.grad(losses[0], net.trunk[0].weight)  # the graph is as it was
    with pytest.raises(ValueError, match="2 at this step"):
        balancer.backward(net(x)[:2])
    losses = net(x)
    balancer.backward(losses)
    with pytest.raises(RuntimeError, match="has freed their graph"):
        balancer.backward(losses)
    grads = [leaf.grad.clone() for leaf in net.trunk.parameters()]
    stranger = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="not in it"):
        balancer.backward([loss * stranger for loss in net(x)])
    losses = net(x)
    with torch.no_grad():
        net.trunk[2].weight += 1
    with pytest.raises(RuntimeError, match="compute the losses anew"):
        balancer.backward(losses)
    assert all(map(torch.equal, grads, [leaf.grad for leaf in net.trunk.parameters()]))


def test_a_checkpoint_runs_once_a_task(taken):
    net, x = Net(TRUNKS["a checkpoint"]()), torch.randn(6, 5)
    head = Checkpointed(8)
    net.heads[0] = nn.Sequential(head, nn.Linear(8, 1))
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    for _ in range(3):
        net.trunk.runs = head.runs = 0
        losses = net(x)
        balancer.backward(losses)
        # forward, and in every pass that enters it: the head's own task alone
        assert (net.trunk.runs, head.runs) == (1 + len(net.heads), 2)
        with pytest.raises(RuntimeError, match="has freed their graph"):
            balancer.backward(losses)
    assert taken[0] == 2


@every("amount", ["little", "much"])
def test_what_one_loss_alone_reaches_is_freed_if_it_is_much(amount, taken, monkeypatch):
    before = taken[0]
    monkeypatch.setattr(graph, "_FEW", {"little": 1000, "much": 0}[amount])
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    for _ in range(3):
        losses = net(x)
        squares = [loss.grad_fn.next_functions[0][0] for loss in losses]
        balancer.backward(losses)
        with pytest.raises(RuntimeError, match="after they have already been freed"):
            _ = squares[0]._saved_self  # of the largest graph, that of the first
        if amount == "little":
            assert squares[1]._saved_self.shape == squares[2]._saved_self.shape == (6, 1)
            continue
        with pytest.raises(RuntimeError, match="after they have already been freed"):
            _ = squares[2]._saved_self
    assert taken[0] == before + 2


@every("given", ["all", "a task without labels"])
def test_so_it_is_after_a_small_batch(given, taken, monkeypatch):
    """Batches of one graph differ in size; the largest graph may be that of an absent task."""
    monkeypatch.setattr(graph, "_FEW", 1000)
    before, net = taken[0], Net(TRUNKS["layers"]())
    balancer, present = mf.Balancer(net, mf.mgda(), "trunk.*"), None
    for samples in (6, 6, 600, 6):
        losses = net(torch.randn(samples, 5))
        if given != "all":
            losses = [losses[0], net(torch.ones(1, 5))[1], losses[2]]
            present = torch.tensor([False, True, False])
        nodes = [loss.grad_fn.next_functions[0][0] for loss in (losses[0], losses[2])]
        balancer.backward(losses, present=present)
        if samples > 6:
            for node in nodes:
                with pytest.raises(RuntimeError, match="after they have already been freed"):
                    _ = node._saved_self
    assert taken[0] == before + (3 if given == "all" else 0)


@every("which", ["trunk.0.weight", "heads.0.weight"])
@every("size", [(8, 3), (8, 7)])
def test_a_parameter_of_another_shape_than_in_its_graph_is_an_error(which, size):
    torch.manual_seed(10)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    for each, balancer in pair(net, mf.mgda(), "trunk.*"):
        step(each, balancer, x)
        each.zero_grad()
        losses = each(x)
        each.get_parameter(which).data = torch.randn(size)
        with pytest.raises(RuntimeError, match=r"size|shape"):
            balancer.backward(losses)


def test_graphs_of_all_lengths_are_not_all_remembered(taken):
    net = Net(TRUNKS["layers"]())
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    for length in range(100):
        one, *others = net(torch.randn(6, 5))
        for _ in range(length):
            one = 1.01 * one
        balancer.backward([one, *others])
    assert taken[0]
    assert balancer._short is not None
    assert len(balancer._short.light) <= 65


@every("order", [(0, 1), (1, 0)])
def test_the_last_pass_is_that_of_the_largest_graph(order, taken, monkeypatch):
    """It frees what it visits, so that nothing else has to be visited for that."""
    torch.manual_seed(9)
    before = taken[0]
    net, x, entered = Net(TRUNKS["layers"](), 2), torch.randn(6, 5), []
    pairs = pair(net, mf.mgda(), "trunk.*")
    passes = separate.run_backward

    def noting(root, *args, **options):
        entered.append((root.node.name(), options["keep"]))
        return passes(root, *args, **options)

    monkeypatch.setattr(separate, "run_backward", noting)
    for _ in range(3):
        infos = []
        for net, balancer in pairs:
            deep = (
                net.heads[0](net.trunk(x).sin().sin().sin().sin().sin().sin().sin()).square().sum()
            )
            losses = deep, (net.heads[1](net.trunk(x[:3])) - 1).square().mean()
            infos.append(balancer.backward([losses[k] for k in order]))
        check_same(pairs, infos)
    assert entered == [("MeanBackward0", True), ("SumBackward0", False)] * 6
    assert taken[0] == before + 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_leaves_that_are_pieces_of_one_tensor(taken):
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
        expected = balancer.backward(net(x), retain_graph=True)
        found = balancer.backward(net(x))
        assert torch.equal(found.gramian, expected.gramian)
    assert taken[0] == 0


def test_what_is_shared_may_change(taken):
    torch.manual_seed(8)
    part = ["trunk.0"]
    pairs = pair(Net(TRUNKS["layers"]()), mf.mgda(), lambda name: name.startswith(part[0]))
    x = torch.randn(6, 5)
    for prefix in ("trunk.0", "trunk.0", "trunk.2", "trunk"):
        part[0] = prefix
        check_same(pairs, [step(*each, x) for each in pairs])
    assert taken[0] == 3


SHARED = {
    "a module": lambda net: net.trunk,
    "a parameter": lambda net: net.trunk[2].weight,
    "several": lambda net: [net.trunk[0], net.trunk[2].weight],
    "globs": lambda net: ("trunk.0.*", "trunk.2.*"),
}


@every("shared", SHARED)
def test_what_is_shared_can_be_said_in_all_ways(shared, taken):
    torch.manual_seed(9)
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    twin = deepcopy(net)
    pairs = [(one, mf.Balancer(one, mf.mgda(), SHARED[shared](one))) for one in (net, twin)]
    pairs[1][1]._plain = None
    taken[0] = 0
    for _ in range(3):
        check_same(pairs, [step(*each, x) for each in pairs])
    assert taken[0] == 2


def test_losses_of_the_inputs_alone_are_refused(taken):
    net, x = Net(TRUNKS["layers"]()), torch.randn(6, 5)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    for _ in range(2):
        step(net, balancer, x)
    inputs = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="depend on no parameter"):
        balancer.backward(list(inputs.square()))
    assert taken[0] == 1
