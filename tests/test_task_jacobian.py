"""`mf.task_jacobian` beside torch.func's transforms and loops of backward()."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.testing import assert_close

import mtlfunc as mf
from mtlfunc.types import Metric

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
PARAMS = {name: leaf.detach() for name, leaf in NET.named_parameters()}
X = torch.randn(4, 5, dtype=torch.float64)
STEP = {name: torch.randn_like(leaf) for name, leaf in PARAMS.items()}
C = torch.randn(2, 3, dtype=torch.float64)
W = torch.randn(3, dtype=torch.float64)


def vector(params: Any, x: Tensor) -> Tensor:
    return functional_call(NET, params, (x,)).square().mean(0)


FORMS = {
    "vector": vector,
    "scalars": lambda params, x: tuple(vector(params, x)),
    "by name": lambda params, x: dict(zip("abc", vector(params, x), strict=True)),
}


def samples(params: Any, x: Tensor) -> Tensor:
    return functional_call(NET, params, (x,)).square()[:, 0]


def parts(params: Any, x: Tensor) -> Tensor:
    return functional_call(NET, params, (x,)).square()[:, :2]


def flat(rows: Any, names: Any = PARAMS) -> Tensor:
    return torch.cat([rows[name].reshape(-1, PARAMS[name].numel()) for name in names], 1)


ROWS = jacrev(vector)(PARAMS, X)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", ["auto", "layerwise", "rows"])
def test_every_method_is_that_of_the_matrix(form, engine):
    J = mf.task_jacobian(FORMS[form], PARAMS, X, engine=engine)
    matrix = flat(ROWS)
    assert len(J) == 3
    assert J.names == (("a", "b", "c") if form == "by name" else (0, 1, 2))
    assert_close(J.losses, vector(PARAMS, X))
    assert_close(J.gramian(), matrix @ matrix.T)
    assert_close(J.rows(), ROWS)
    assert_close(flat(W @ J)[0], W @ matrix)
    assert_close(J @ STEP, jvp(lambda p: vector(p, X), (PARAMS,), (STEP,))[1])
    assert_close((C @ J).gramian(), C @ matrix @ matrix.T @ C.T)
    assert_close((C @ J).losses, C @ vector(PARAMS, X))
    assert_close(flat((C @ J)[[1]].rows()), C[1:] @ matrix)
    assert_close(C[:, :2] @ J[:2] @ STEP, C[:, :2] @ (J @ STEP)[:2])
    assert J[[2, 0]].names == J[::-2].names == (J.names[2], J.names[0])
    assert J[[2, 0]][[1]].names == J[[0]].names
    some = J[[2, 0, 1]][torch.tensor([True, True, False])].over("0.*")
    heads = {name: ROWS[name][[0, 2]].mean(0) for name in PARAMS if name not in some.columns}
    found = some.measure(rows=True, heads="plain").combine(torch.ones(2).to(W))
    assert_close({name: found[name] for name in heads}, heads)
    scale = {name: leaf.abs() for name, leaf in STEP.items()}
    assert_close(J.gramian(metric=Metric(scale, {})), matrix * flat(scale) @ matrix.T)
    for rows in (False, True):
        found = J.measure(gramian=True, rows=rows)
        assert_close(found.gramian, matrix @ matrix.T)
        assert_close(flat(found.combine(W))[0], W @ matrix)
    assert_close(found.rows, ROWS)


@pytest.mark.parametrize("losses", [samples, parts])
def test_weightings_of_samples(losses):
    A = torch.randn(2, *losses(PARAMS, X).shape, dtype=torch.float64)
    J = mf.task_jacobian(losses, PARAMS, X, weightings=A)
    assert J[[1, 0]].names == J[[1, 0]][:].names == (1, 0)
    assert_close(vmap(lambda i: J[i].losses[0])(torch.tensor([1, 0])), J.losses.flip(0))
    matrix = A.flatten(1) @ flat(jacrev(lambda p: losses(p, X).flatten())(PARAMS))
    assert_close(J.gramian(), matrix @ matrix.T)
    assert_close(flat(J.rows()), matrix)
    assert_close(flat(W[:2] @ J)[0], W[:2] @ matrix)
    assert_close((W[None, :2] @ J).gramian()[0, 0], (W[:2] @ matrix).square().sum())
    assert_close(J @ STEP, matrix @ flat(STEP)[0])


def test_other_columns():
    J = mf.task_jacobian(vector, PARAMS, X, shared="0.*")
    assert J.columns == ("0.weight", "0.bias")
    for some in (J, J.over("2.*"), J.over(["0.weight", "2.bias"])):
        matrix = flat(ROWS, some.columns)
        assert_close(some.gramian(), matrix @ matrix.T)
        assert list(W @ some) == list(some.columns)
        step = {name: STEP[name] for name in some.columns}
        assert_close(some @ step, matrix @ flat(step, step)[0])
        left = [name for name in PARAMS if name not in some.columns]
        for rows, gramian in ((False, False), (False, True), (True, False)):
            grads = some.measure(rows=rows, gramian=gramian, heads="plain").combine(W)
            assert_close(flat(grads, some.columns)[0], W @ matrix)
            assert_close(flat(grads, left)[0], flat(ROWS, left).mean(0))
    two = lambda p, x: (vector(p, x)[0], p["0.bias"].sum() * torch.nan)  # noqa: E731
    lost = mf.task_jacobian(two, PARAMS, X)
    assert_close(lost[[0]].gramian(), (flat(ROWS) @ flat(ROWS).T)[:1, :1])
    more = PARAMS | {"unread": torch.ones(2, dtype=torch.float64)}
    for engine in ("auto", "rows", "layerwise"):
        J = mf.task_jacobian(vector, more, X, shared="unread", engine=engine)
        zeros = [J.gramian(), (W @ J)["unread"], (W @ J.over("*"))["unread"]]
        zeros += mf.sample_norms(samples, more, X, shared="unread", engine=engine)[1:]
        assert not any(bool(x.any()) for x in zeros)
        assert "to save" not in str(J.explain())


losses_at = lambda a: {name: a * leaf for name, leaf in PARAMS.items()}  # noqa: E731


@pytest.mark.parametrize(
    ("form", "engine"), [("vector", "auto"), ("scalars", "layerwise"), ("by name", "rows")]
)
def test_under_vmap_and_its_derivatives(form, engine):
    def found(a: Tensor) -> tuple[Tensor, ...]:
        J = mf.task_jacobian(FORMS[form], losses_at(a), X, engine=engine)
        total = torch.stack([x.sum() for x in (J.losses.softmax(0) @ J).values()]).sum()
        return J.gramian(), J @ STEP, total, (C @ J).gramian()

    def literal(a: Tensor) -> tuple[Tensor, ...]:
        rows = jacrev(vector)(losses_at(a), X)
        matrix = torch.cat([rows[name].flatten(1) for name in PARAMS], 1)
        w, gramian = vector(losses_at(a), X).softmax(0), matrix @ matrix.T
        return gramian, matrix @ flat(STEP)[0], (w @ matrix).sum(), C @ gramian @ C.T

    a = torch.tensor([[0.5, 1.0], [1.5, -0.3]]).double()
    for transform in (lambda f: f, jacrev, lambda f: jacrev(jacrev(f)), torch.func.jacfwd):
        expected = [[transform(literal)(y) for y in x] for x in a]
        for i, each in enumerate(vmap(vmap(transform(found)))(a)):
            assert_close(each, torch.stack([torch.stack([y[i] for y in x]) for x in expected]))


def test_weights_are_differentiated():
    length = lambda w: flat(w @ mf.task_jacobian(vector, PARAMS, X)).square().sum()  # noqa: E731
    assert_close(grad(length)(W), 2 * flat(ROWS) @ flat(ROWS).T @ W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes(dtype):
    params = {name: leaf.to(dtype) for name, leaf in PARAMS.items()}
    J = mf.task_jacobian(vector, params, X.to(dtype))
    assert J.gramian().dtype == (J @ J.pull(W)).dtype == torch.float32
    rows = flat(J.rows()).double()
    assert_close(J.gramian(dtype=torch.float64), rows @ rows.T, rtol=1e-14, atol=0.0)
    assert {x.dtype for x in J.rows().values()} == {dtype} == {x.dtype for x in J.pull(W).values()}
    rtol, atol = (0.2, 0.2) if dtype == torch.bfloat16 else (1e-4, 1e-5)
    assert_close(J.gramian().double(), flat(ROWS) @ flat(ROWS).T, rtol=rtol, atol=atol)


@pytest.mark.parametrize("form", [lambda x: x, tuple, list])
def test_of_losses_that_exist(form):
    J = mf.task_jacobian(form(NET(X).square().mean(0)), NET, shared=NET[0])
    matrix = flat(ROWS, J.columns)
    assert_close(J.gramian(), matrix @ matrix.T)
    assert_close(flat(W @ J, J.columns)[0], W @ matrix)
    assert_close(flat(W @ J.over("*"))[0], W @ flat(ROWS))
    assert all(leaf.grad is None for leaf in NET.parameters())
    assert not J.gramian().requires_grad
    hooked = NET(X)
    hooked.register_hook(lambda g: 2 * g)
    double = mf.task_jacobian(hooked.square().mean(0), NET)
    assert_close(double.gramian(), 4 * flat(ROWS) @ flat(ROWS).T)


def test_complex_parameters():
    z = {"z": torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128)}
    J = mf.task_jacobian(lambda p, _: (p["z"] * p["z"].conj()).real, z, ())
    assert_close(J.rows()["z"], torch.diag(2 * z["z"]))
    assert_close(J.gramian(), torch.diag(4 * (z["z"].abs() ** 2)))
    assert_close((torch.ones(2).double() @ J)["z"], 2 * z["z"])
    step = {"z": torch.tensor([1j, 1.0], dtype=torch.complex128)}
    assert_close(J @ step, torch.tensor([4.0, 6.0]).double())
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()  # P of real and imaginary parts
    parts = torch.view_as_real(2 * z["z"]).square()
    assert_close(J.gramian(metric=Metric({"z": scale}, {})), torch.diag((scale * parts).sum(1)))
    with pytest.raises(TypeError, match=r"metric: .*last axis of 2"):
        J.gramian(metric=Metric({"z": scale[:, 0]}, {}))


def test_prints():
    J = mf.task_jacobian(vector, PARAMS, X)
    assert repr(C @ J) == "TaskJacobian [2 rows, 66 parameters]"
    assert str(J.explain()) == str(mf.explain_gramian(vector, PARAMS, X))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda J: W[:2] @ J, r"weights: expected \[3\].* for J's 3 rows, got \[2\]"),
        (lambda J: C.T @ J, r"C: expected \[mixture, 3\]"),
        (lambda J: W.numpy() @ J, "ndarray|numpy"),
        (lambda J: W.to(torch.complex64) @ J, "(complex64|c64)"),
        (lambda J: J.mixed(C.to("meta")), "C: .*real numbers on cpu.* on meta"),
        (lambda J: J @ {k: x.to("meta") for k, x in STEP.items()}, "step: .*device"),
        *((lambda J, w=w: J[w], rf"J\[...\]: .*below 3, got {w}") for w in (True, None)),
        (lambda J: J[:, [2, 0, 1]], r"J\[...\]: .*below 3"),
        (lambda J: J[0, 1], r"J\[...\]: .*below 3, got \(0, 1\)"),
        (lambda J: J[[3]], r"J\[...\]: .*below 3, got \[3\]"),
        (lambda J: J @ {"0.weight": STEP["0.weight"]}, "step: .*J.over"),
        (lambda J: J @ W, "step: .*Tensor"),
        (lambda J: (C @ J).weighted(C), "weightings: .*C @ J"),
        (lambda J: J.weighted(C[:, :2]), r"weightings: expected \[task, 3\]"),
        (lambda J: J.gramian(dtype="half"), "dtype"),
        (lambda J: J.over("3.*"), "3"),
        (lambda J: J[[0]].summed(None), r"summed: .*J.summed\(group\)\[\[0\]\]"),
        (lambda J: mf.task_jacobian(parts, PARAMS, X), r"losses of shape \[task\], got \[4, 2\]"),
        (lambda J: mf.task_jacobian(vector, PARAMS, X, engine=W), "engine"),  # pyright: ignore
        (lambda J: mf.task_jacobian(NET(X).detach().mean(0), NET), "they depend on no parameter"),
        (lambda J: mf.task_jacobian(NET(X).mean(0), NET, X), "batch: .*leave it out"),
    ],
)
def test_refusals(call, words):
    J = mf.task_jacobian(vector, PARAMS, X)
    with pytest.raises((ValueError, TypeError, IndexError), match=words):
        call(J)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
        J.gramian()
