"""Every operation by every engine, under every transform, against a loop of torch.autograd.grad.
First derivatives are compared with one plain backward pass a task and network; hypergradients, the
derivatives of a function of the Gramian by a scalar inside the losses, with differences of Gramians
that were made by such loops. Many operations with leaves and hyper-parameters of their own go
through one call: what is compared is still every operation's own number. One operation of each kind
is tested here, every operation of the table by `-m exhaustive`.
"""

# pyright: reportArgumentType=false

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from mtlfunc.gradients.layerwise.graph import read_graph
from mtlfunc.gradients.run import places_of
from mtlfunc.types import Params
from tests.support.operations import COARSE, DOUBLE, OPERATIONS, REFUSED, constant
from tests.support.operations.losses import Batch, Losses, literal, stacked

U = torch.tensor([0.2, -0.5, 0.9], dtype=DOUBLE)


def gramian(rows: Params, leads: int = 1) -> Tensor:
    flat = torch.cat([row.reshape(*row.shape[:leads], -1) for row in rows.values()], -1)
    return flat @ flat.mT


class Comparison:
    """Collects what is neither right nor refused as the table says."""

    def __init__(self, names: tuple[str, ...], turn: int | None = None) -> None:
        self.names, self.mistakes, self.turn = names, list[str](), turn
        self.kinds, self.words = REFUSED.get(names[0], ((), "")) if len(names) == 1 else ((), "")

    def __call__(self, mode: str, f: Callable[[], Any], expected: Any, **near: Any) -> None:
        if self.turn is not None:  # every third
            self.turn += 1
            if self.turn % 3:
                return
        refusable = any(kind in mode for kind in self.kinds)
        try:
            got = f()
        except (RuntimeError, NotImplementedError) as error:
            if not (refusable and re.search(self.words, str(error))):
                self.mistakes.append(f"{mode}: {', '.join(self.names)}: {error}")
            return
        if isinstance(expected, dict):  # rows, leaf by leaf
            for name, row in expected.items():
                self.compare(f"{mode}: {self.names[int(name.split('.')[0])]}", got[name], row)
        elif near:  # hypergradients [..., K]
            for k, name in enumerate(self.names):
                self.compare(f"{mode}: {name}", got[..., k], expected[..., k], **near)
        else:
            self.compare(f"{mode}: {', '.join(self.names)}", got, expected)

    def compare(
        self, where: str, got: Tensor, expected: Tensor, rtol: float = 1e-9, atol: float = 1e-13
    ) -> None:
        rtol = max(rtol, COARSE.get(self.names[0], 0.0))
        size = float(expected.abs().max())
        error = float((got - expected).abs().max())
        if not error <= rtol * size + atol:
            self.mistakes.append(f"{where}: off by {error:.1e} of {size:.1e}")


def first_derivatives(names: tuple[str, ...], turn: int | None, tasks: int = 3) -> list[str]:
    """Three networks and three samples, as many as tasks, and two."""
    check, losses = Comparison(names, turn), Losses(names, tasks)
    s = torch.full((len(names),), 0.3, dtype=DOUBLE)
    networks = [losses.params(i) for i in range(3)]
    params, every, pair = networks[0], stacked(networks), stacked(networks[:2])
    each = [literal(losses, one) for one in networks]
    rows, first = stacked(each), each[0]
    samples = stacked([literal(losses, params, (s, u)) for u in U])

    def rows_of(params: Params, **how: Any) -> Params:
        return mf.task_gradients(losses, params, (), **how)[1]

    def layerwise(params: Params) -> Tensor:
        return mf.task_gramian(losses, params, (), engine="layerwise")[1]

    def scalars(params: Params) -> Params:
        return mf.task_gradients(lambda p, b: tuple(losses(p, b)), params, ())[1]

    def of_samples(params: Params) -> Params:
        return mf.sample_gradients(lambda p, u: losses(p, (s, u)), params, U)[1]

    def of_two_networks() -> Params:
        return {name: row[1] for name, row in vmap(of_samples)(stacked([params, params])).items()}

    def samples_inside() -> Tensor:
        each = lambda params, us: vmap(lambda u: losses(params, (s, u)))(us)  # noqa: E731
        return mf.sample_gramian(each, params, U)[1]

    def networks_inside() -> Params:
        def summed(params: Params, batch: Batch) -> Tensor:
            return vmap(lambda p: losses(p, batch))(params).sum(0)

        found = mf.task_gradients(summed, every, ())[1]
        return {name: row.movedim(1, 0) for name, row in found.items()}

    check("rows", lambda: rows_of(params), first)
    check("rows one by one", lambda: rows_of(params, chunk_size=1), first)
    check("layerwise", lambda: layerwise(params), gramian(first))
    check("vmap, 3 networks", lambda: vmap(rows_of)(every), rows)
    check("vmap, 2 networks", lambda: vmap(rows_of)(pair), {n: row[:2] for n, row in rows.items()})
    check("vmap, layerwise", lambda: vmap(layerwise)(every), gramian(rows, 2))
    check("vmap, scalars", lambda: vmap(scalars)(every), rows)
    check("vmap, samples", lambda: of_samples(params), samples)
    check("vmap, samples of 2 networks", of_two_networks, samples)
    pairs = {name: row.flatten(0, 1) for name, row in samples.items()}
    check("inside, samples", samples_inside, gramian(pairs))
    check("inside, networks", networks_inside, rows)
    return check.mistakes


def hypergradients(names: tuple[str, ...], turn: int | None, tasks: int = 2) -> list[str]:
    """Two networks, as many as tasks."""
    check, losses, u = Comparison(names, turn), Losses(names, tasks), U[0]
    at = torch.full((len(names),), 0.3, dtype=DOUBLE)
    networks = [losses.params(i) for i in range(2)]
    params, every = networks[0], stacked(networks)

    h = 1e-3
    a, b, c, d, e = (
        torch.stack([losses.parts(literal(losses, one, (at + k * h, u))) for one in networks])
        for k in (-2, -1, 0, 1, 2)
    )
    first = (8 * (d - b) - (e - a)) / (12 * h)  # to O(h⁴)
    second = (16 * (b + d) - a - e - 30 * c) / (12 * h * h)

    def parts(params: Params, s: Tensor) -> Tensor:
        return losses.parts(mf.task_gradients(losses, params, (s, u))[1])

    def slope(params: Params, s: Tensor = at) -> Tensor:
        return grad(lambda s: parts(params, s).sum())(s)

    def forward(params: Params) -> Tensor:
        return jvp(lambda s: parts(params, s), (at,), (torch.ones_like(at),))[1]

    def twice(s: Tensor) -> Tensor:
        def once(s: Tensor) -> Tensor:
            return jvp(lambda s: parts(params, s), (s,), (torch.ones_like(at),))[1]

        return jvp(once, (s,), (torch.ones_like(at),))[1]

    def curvature(params: Params) -> Tensor:
        return grad(lambda s: slope(params, s).sum())(at)

    def layerwise(s: Tensor) -> Tensor:
        found = mf.task_gramian(losses, params, (s, u), engine="layerwise")[1]
        return (constant(tasks, tasks) * found).sum()

    def inside(s: Tensor) -> Tensor:
        def summed(params: Params, batch: Batch) -> Tensor:
            return vmap(lambda p: losses(p, batch))(params).sum(0)

        return losses.parts(mf.task_gradients(summed, every, (s, u))[1]).sum()

    def closure(f: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = at.clone().requires_grad_()
        out = f(leaf)
        return torch.autograd.grad(out, leaf)[0] if out.requires_grad else torch.zeros_like(at)

    def together(s: Tensor) -> Tensor:
        return vmap(lambda p: parts(p, s))(every).sum()

    near = {"rtol": 2e-6, "atol": 1e-9}
    check("again, grad", lambda: slope(params), first[0], **near)
    check("again, layerwise", lambda: grad(layerwise)(at), first[0], **near)
    check("again, closure", lambda: closure(lambda s: parts(params, s).sum()), first[0], **near)
    check(
        "again, vmap, vmap, grad",
        lambda: vmap(lambda s: vmap(lambda p: slope(p, s))(every))(torch.stack([at, at]))[1],
        first,
        **near,
    )
    check("again, grad, vmap", lambda: grad(together)(at), first.sum(0), **near)
    check("again, vmap, forward", lambda: vmap(forward)(every), first, **near)
    check("again, inside, closure", lambda: closure(inside), first.sum(0), **near)
    check("again, vmap, closure", lambda: closure(together), first.sum(0), **near)
    coarse = {"rtol": 2e-5, "atol": 1e-7}
    check("again, third", lambda: curvature(params), second[0], **coarse)
    check("again, forward, forward", lambda: twice(at), second[0], **coarse)
    check("again, vmap, third", lambda: vmap(curvature)(every), second, **coarse)
    return check.mistakes


class Kind(NamedTuple):
    """What decides how the passes of a whole graph are run, and the names of its nodes."""

    passes: tuple[bool, ...]
    nodes: frozenset[str]


def kind_of(name: str) -> Kind:
    operation = OPERATIONS[name]
    inputs = [x.clone().requires_grad_() for x in operation.inputs]
    with warnings.catch_warnings(action="ignore"):  # of what is deprecated
        leaves = tree_leaves(operation.call(*inputs))
    total = torch.stack([(x * x.conj()).real.sum() for x in leaves]).sum()
    edge = get_gradient_edge(total)
    graph = read_graph((edge,), places_of({str(i): x for i, x in enumerate(inputs)}, False))
    passes = graph.can_batch, graph.can_batch_twice, graph.needs_recording
    waiting, nodes = [edge.node], set()
    while waiting:
        if (node := waiting.pop()) not in nodes:
            nodes.add(node)
            waiting += [other for other, _ in node.next_functions if other is not None]
    names = frozenset(node.name() for node in nodes)
    return Kind((*passes, graph.has_final_backward), names)


KINDS = {name: kind_of(name) for name in OPERATIONS}


def representatives() -> list[str]:
    """One operation of each kind; every node of autograd that some operation has is in one."""
    seen, found = set[object](), []
    for name, kind in KINDS.items():
        new = {(kind.passes, node) for node in kind.nodes} | {REFUSED.get(name)}
        if not new <= seen:
            found.append(name)
            seen |= new
    return found


def groups(names: Iterable[str], *marks: pytest.MarkDecorator) -> list[Any]:
    """Operations alike, 24 at a time; what torch refuses somewhere, alone."""
    kinds: dict[tuple[bool, ...], list[str]] = {}
    found: list[tuple[str, ...]] = []
    for name in names:
        if name in REFUSED or name in COARSE:
            found.append((name,))
        else:
            kinds.setdefault(KINDS[name].passes, []).append(name)
    for alike in kinds.values():
        found += [tuple(alike[i : i + 24]) for i in range(0, len(alike), 24)]
    return [
        pytest.param(x, id=x[0] if len(x) == 1 else f"{x[0]}…{x[-1]}", marks=marks) for x in found
    ]


GROUPS = [*groups(representatives()), *groups(OPERATIONS, pytest.mark.exhaustive)]
# of the representatives a third of the ways, in turn
IN_TURN = [
    param._replace(values=(*param.values, None if param.marks else turn))
    for turn, param in enumerate(GROUPS)
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.(lu_solve|cholesky|qr) is deprecated:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:index_reduce\(\) is in beta:UserWarning"),
]


@pytest.mark.parametrize(("names", "turn"), IN_TURN)
def test_rows_and_gramians_of_every_operation(names, turn):
    assert not first_derivatives(names, turn)


@pytest.mark.parametrize(("names", "turn"), IN_TURN)
def test_hypergradients_of_every_operation(names, turn):
    assert not hypergradients(names, turn)


@pytest.mark.parametrize(
    "name", ["solve", "weight_norm", "cdist", "attention of some", "batch_norm F"]
)
def test_a_scale_that_comes_after_the_operation(name):
    """Operations on leaves alone, whose passes something outside differentiates."""
    losses = Losses((name,), 3)
    params, at, h = losses.params(0), torch.tensor(1.3, dtype=DOUBLE), 1e-3

    def scaled(s: Tensor) -> Callable[..., Tensor]:
        powers = torch.stack([s, s**2, s**3])
        return lambda params, batch: powers * losses(params, batch) + (s * losses(params, ())).sin()

    def difference(k: int) -> Tensor:
        ahead, behind = (
            losses.parts(literal(scaled(at + sign * k * h), params)).sum() for sign in (1, -1)
        )
        return (ahead - behind) / (2 * k * h)

    s = at.clone().requires_grad_()
    rows = mf.task_gradients(scaled(s), params, ())[1]
    (slope,) = torch.autograd.grad(losses.parts(rows).sum(), s)
    expected = (4 * difference(1) - difference(2)) / 3
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3)])
@pytest.mark.parametrize(
    "call",
    [torch.cholesky_inverse, lambda L, upper: torch.cholesky_solve(constant(3, 2), L, upper=upper)],
)
def test_a_factor_has_no_gradient_in_its_unused_triangle(call, shape, upper):
    """Where it is not 0, torch's own backward gives it one: central differences are the measure."""
    leaf = 0.3 * constant(*shape) + 2 * torch.eye(3, dtype=DOUBLE)

    def losses(params: Params, batch: Batch) -> Tensor:
        out = call(params["L"], upper=upper).flatten()
        return constant(3, len(out)) @ out.sin()

    unit = torch.eye(leaf.numel(), dtype=DOUBLE).reshape(-1, *shape)
    ahead, behind = (
        torch.stack([losses({"L": leaf + h * e}, ()) for e in unit]) for h in (1e-5, -1e-5)
    )
    expected = ((ahead - behind) / 2e-5).mT.reshape(3, *shape)

    def rows_of(L: Tensor) -> Tensor:
        return mf.task_gradients(losses, {"L": L}, ())[1]["L"]

    torch.testing.assert_close(rows_of(leaf), expected, rtol=1e-7, atol=1e-8)
    several = vmap(rows_of)(torch.stack([leaf, leaf]))
    expected = torch.stack([rows_of(leaf)] * 2)
    torch.testing.assert_close(several, expected, rtol=1e-12, atol=1e-13)


def test_what_is_refused_says_what_to_use_instead():
    """Under a transform; single plain passes are torch's, but for what torch gets wrong there."""

    def norm(p: Params, _: Any) -> Tensor:
        named: Any = {"training": True, "momentum": 0.1, "eps": 1e-5}
        return torch.native_batch_norm(p["x"], None, None, None, None, **named)[0].sum(0)

    def products(p: Params, _: Any) -> Tensor:
        return p["x"].scatter_reduce(0, torch.tensor([0, 0]), p["x"], reduce="prod")

    def strided(p: Params, _: Any) -> Tensor:
        return torch.as_strided_scatter(p["x"], 2 * p["x"][:1], (1,), (1,))

    def rows_of(losses: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: mf.task_gradients(losses, {"x": x}, ())[1]["x"]

    with pytest.raises(NotImplementedError, match=r"_norm: .* use torch.nn.functional.batch_norm"):
        vmap(rows_of(norm))(torch.ones(2, 4, 3))
    with pytest.raises(NotImplementedError, match=r"scatter_reduce: .* products are wrong"):
        jvp(rows_of(products), (torch.ones(2),), (torch.ones(2),))
    with pytest.raises(NotImplementedError, match=r"as_strided_scatter: .* use slice_scatter"):
        rows_of(strided)(torch.ones(2))


CURVATURES: dict[str, Callable[..., Any]] = {
    "forward": jacfwd,
    "hessian": hessian,
    "reverse over forward": lambda u: jacrev(jacfwd(u)),
    "forward twice": lambda u: jacfwd(jacfwd(u)),
    "reverse twice": lambda u: jacrev(jacrev(u)),
    "forward over a gradient": lambda u: (
        lambda x: torch.stack([jvp(grad(u), (x,), (v,))[1] for v in torch.eye(3, dtype=DOUBLE)])
    ),
}
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "slogdet": lambda A: torch.linalg.slogdet(A)[1],
    "logdet": lambda A: torch.logdet(A @ A.mT),
    "solve": lambda A: torch.linalg.solve(A, constant(3)).sin().sum(),
    "solve_ex": lambda A: torch.linalg.solve_ex(A, constant(3, 2))[0].sin().sum(),
    "tensorsolve": lambda A: torch.linalg.tensorsolve(A, constant(3)).sin().sum(),
    "householder": lambda A: (
        torch.linalg.householder_product(A, A[0]).square() * constant(3, 3)
    ).sum(),
    "inv": lambda A: torch.linalg.inv(A).sin().sum(),
}


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("end", ENDS)
def test_curvatures_inside_losses_by_every_door(end, curvature):
    """Against a loop of jacrev of jacrev over samples and of backward passes over rows."""
    W, X = constant(3, 3), constant(4, 3)
    eye = torch.eye(3, dtype=DOUBLE)

    def curve(W: Tensor, x: Tensor, twice: Callable[..., Any]) -> Tensor:
        found = twice(lambda x: ENDS[end](W * x.sin()[:, None] + torch.outer(x, x) + 2 * eye))(x)
        return found.flatten() @ constant(found.numel(), 2)

    def each(params: Params, X: Tensor) -> Tensor:
        return vmap(lambda x: curve(params["W"], x, CURVATURES[curvature]))(X)

    def tasks(params: Params, X: Tensor) -> Tensor:
        return each(params, X).mean(0)

    if end != "inv" and curvature != "reverse twice":
        for call in (mf.task_gradients, mf.task_gramian, mf.sample_gradients):
            with pytest.raises(NotImplementedError, match=r"forward mode .*(jacrev|linalg\.inv)"):
                call(tasks, {"W": W}, X)
        return
    leaf = W.clone().requires_grad_()
    plain = jacrev if curvature == "forward" else CURVATURES["reverse twice"]
    values = torch.stack([curve(leaf, x, plain) for x in X])
    rows = torch.stack(
        [torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in values.flatten()]
    )
    means = rows.unflatten(0, (4, 2)).mean(0)
    near, params = {"rtol": 1e-7, "atol": 1e-9}, {"W": W}
    # inside a derivative the graph does not prove that samples stay separate
    losses, found = mf.sample_gramian(each, params, X, engine="rows")
    torch.testing.assert_close(losses, values.detach(), **near)
    torch.testing.assert_close(found, rows @ rows.mT, **near)
    for engine in ("auto", "rows", "layerwise"):
        losses, found = mf.task_gramian(tasks, params, X, engine=engine)
        torch.testing.assert_close(losses, values.detach().mean(0), **near)
        torch.testing.assert_close(found, means @ means.mT, **near)
    found = mf.task_gradients(tasks, params, X)[1]["W"]
    torch.testing.assert_close(found.flatten(1), means, **near)
    step = mf.balance(tasks, mf.mean(), mf.jacobian())
    gradient = step.update(params, X, step.init(params, X))[0]["W"]
    torch.testing.assert_close(gradient.flatten(), means.mean(0), **near)
