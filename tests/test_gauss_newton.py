"""Gauss-Newton in sample space against least squares over parameters, and its line search."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import mtlfunc as mf
from mtlfunc.types import Geometry
from tests.support.loops import trained
from tests.support.networks import perceptron
from tests.support.oracles import F64, check_slope, literal
from tests.support.problems import flatten

SHAPES = {"fewer": (5, 9), "square": (6, 6), "more": (9, 4), "one": (1, 3)}


def _case(name: str) -> tuple[Tensor, Tensor]:
    rows, params = SHAPES[name]
    draw = {"dtype": F64, "generator": torch.Generator().manual_seed(rows)}
    return torch.randn(rows, params, **draw), torch.randn(rows, **draw)


def _least_squares(J: Tensor, r: Tensor, damping: float, omega: Tensor | None = None) -> Tensor:
    """argmin ‖√ω (r - J d)‖² + λ s ‖d‖² by an SVD; s is the largest ω_t‖g_t‖², ω at most 1."""
    share = np.ones(len(r)) if omega is None else np.sqrt((omega / omega.max()).numpy())
    A, b = share[:, None] * J.numpy(), share * r.numpy()
    stacked = np.vstack([A, np.sqrt(damping * (A**2).sum(1).max()) * np.eye(A.shape[1])])
    right = np.concatenate([b, np.zeros(A.shape[1])])
    return torch.from_numpy(np.linalg.lstsq(stacked, right, rcond=None)[0])


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 3.0])
@pytest.mark.parametrize("name", SHAPES)
def test_direction_is_that_of_damped_least_squares(name, damping):
    J, r = _case(name)
    omega = torch.arange(len(r), dtype=F64) + 0.5
    for weights, rule in (
        (None, mf.physics.gauss_newton(damping)),
        (omega, mf.physics.gauss_newton(damping, preference=omega)),
        (omega, mf.physics.gauss_newton(damping, preference=7 * omega)),
    ):
        found = mf.aggregate(rule, J, losses=r)
        expected = _least_squares(J, r, damping, weights)
        # the system's condition is 1/damping, in float64
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 * float(r.norm()))


@pytest.mark.parametrize("name", ["fewer", "square", "one"])
def test_without_damping_the_step_zeroes_the_residuals(name):
    J, r = _case(name)
    d = mf.aggregate(mf.physics.gauss_newton(0.0), J, losses=r)
    torch.testing.assert_close(J @ d, r, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d, torch.linalg.pinv(J) @ r, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_one_residual_too_many_needs_damping(dtype):
    """The Gramian's last eigenvalue is 0, and after rounding of either sign."""
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        J = torch.randn(7, 6, dtype=F64, generator=draw) * 10.0 ** torch.arange(-4.0, 3.0)[:, None]
        J, r = J.to(dtype), torch.ones(7, dtype=dtype)
        with pytest.raises(ValueError, match="damping: 0 leaves the Gramian of 7 residuals sing"):
            mf.aggregate(mf.physics.gauss_newton(0.0), J, losses=r)
        zero = torch.zeros((), dtype=dtype)
        found = vmap(lambda x, J=J, r=r: mf.aggregate(mf.physics.gauss_newton(x), J, losses=r))
        assert found(torch.stack([zero, zero + 1e-3])).isnan().all(1).tolist() == [True, False]
        independent = mf.aggregate(mf.physics.gauss_newton(0.0), J[:6], losses=r[:6])
        assert bool(independent.isfinite().all())


def test_units_of_residuals_and_of_gradients():
    J, r = _case("fewer")
    d = mf.aggregate(mf.physics.gauss_newton(1e-3), J, losses=r)
    for scale in (1e-10, 1e10):
        both = mf.aggregate(mf.physics.gauss_newton(1e-3), scale * J, losses=scale * r)
        torch.testing.assert_close(both, d, rtol=1e-9, atol=0)
        rows = mf.aggregate(mf.physics.gauss_newton(1e-3), scale * J, losses=r)
        torch.testing.assert_close(scale * rows, d, rtol=1e-9, atol=0)


NET = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
POINTS = torch.linspace(-1, 1, 24, dtype=F64).reshape(12, 2)


def _start() -> mf.types.Params:
    return {
        name: torch.linspace(-1, 1, leaf.numel(), dtype=F64).cos().reshape(leaf.shape) * 0.7
        for name, leaf in mf.parameters(NET).items()
    }


def residuals(params, x):
    return functional_call(NET, params, (x,))[:, 0] - torch.sin(2 * x[:, 0]) * x[:, 1]


PROBES = {
    "a row a point": mf.jacobian(),
    "one pass": mf.jacobian(weightings=lambda x: torch.eye(len(x), dtype=x.dtype)),
}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize(("lr", "decay"), [(1.0, 0.9), (0.3, 0.5)])
def test_momentum_is_spring(probe, lr, decay):
    """Against SPRING's algorithm, where the carried share of a step is decay·lr of the last v."""
    damping = 1e-3
    rule = mf.physics.gauss_newton(damping, momentum=True)
    step = mf.descend(residuals, rule, PROBES[probe], mf.sgd(lr, momentum=decay), metric=True)
    state = step.init(_start(), POINTS)
    v = torch.zeros(len(flatten(_start())), dtype=F64)
    for _ in range(4):
        r, J = residuals(state.params, POINTS), literal(residuals, state.params, POINTS)
        carried = lr * decay * v
        s = (lr * (J @ J.mT)).diagonal().max()
        system = lr * (J @ J.mT) + damping * s * torch.eye(len(r), dtype=F64)
        whole = carried + lr * J.mT @ torch.linalg.solve(system, r - J @ carried)
        before = flatten(state.params)
        state, info = step.update(state, POINTS)
        moved = before - flatten(state.params)
        torch.testing.assert_close(moved, whole, rtol=1e-7, atol=1e-8 * float(whole.norm()))
        v = moved / lr
        error = mf.physics.newton_error(info, damping)
        assert float(error.residual) < 1e-10  # float64 at a condition of 1e3
        assert float(error.rounding) < 1e-10


def test_many_points_carry_momentum_as_a_few_do():
    """200 points, for which one pass makes no rows unless a metric asks for them."""
    net = perceptron(2, 32, 1)
    points = torch.linspace(-1, 1, 400, dtype=F64).sin().reshape(200, 2)

    def off(params, x):
        return functional_call(net, params, (x,))[:, 0] - x.prod(1)

    ends = []
    for probe in PROBES.values():
        rule = mf.physics.gauss_newton(1e-2, momentum=True)
        step = mf.descend(off, rule, probe, mf.sgd(1.0, momentum=0.9), metric=True)
        state = step.init(mf.parameters(net), points)
        for _ in range(3):
            state, info = step.update(state, points)
            assert float(mf.physics.newton_error(info, 1e-2).residual) < 1e-10
        ends.append(flatten(state.params))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-9)


def test_steps_solve_a_nonlinear_problem_and_vmap_over_damping():
    """The sum of squares falls by orders of magnitude, for every damping of a mapped grid."""
    target = {name: leaf + 0.1 for name, leaf in _start().items()}
    exact = functional_call(NET, target, (POINTS,))[:, 0]

    def off(params, x):
        return functional_call(NET, params, (x,))[:, 0] - exact

    def after(damping, steps=10):
        step = mf.descend(off, mf.physics.gauss_newton(damping), mf.jacobian(), mf.sgd(1.0))
        state = trained(step, [POINTS] * steps, _start())
        return off(state.params, POINTS).square().sum(), flatten(state.params)

    dampings = torch.tensor([1e-8, 1e-3], dtype=F64)
    values, ends = vmap(after)(dampings)
    first = off(_start(), POINTS).square().sum()
    assert float(values[0] / first) < 1e-12
    assert float(values[1] / first) < 1e-4
    for damping, value, end in zip(dampings, values, ends, strict=True):
        torch.testing.assert_close(after(damping)[0], value, rtol=1e-6, atol=1e-20)
        torch.testing.assert_close(after(damping)[1], end, rtol=1e-6, atol=1e-9)
    # a step of a thousandth of the damping: 1e-6 of curvature in the quotient
    check_slope(lambda damping: after(damping, 2)[1].sum(), 1e-3, "grad", rtol=1e-4, h=1e-6)


def test_singular_gramians_are_refused_or_nan():
    J, r = _case("more")
    G = (J @ J.mT)[None]
    exact = mf.physics.gauss_newton(0.0)
    assert bool(vmap(lambda G: mf.weights(exact, G, r))(G - 1e-6 * torch.eye(9)).isnan().all())
    slope = grad(lambda r: mf.weights(exact, G[0] - 1e-6 * torch.eye(9), r).sum())
    assert bool(slope(r).isnan().all())
    J[:, 1:] = 1e-9 * J[:, 1:]  # parallel up to what float32 resolves
    with pytest.raises(ValueError, match=r"torch.float32 does not resolve; .* float64 parameters"):
        mf.weights(mf.physics.gauss_newton(1e-12), (J @ J.mT).float(), r.float())


def test_nan_points_and_absent_ones():
    J, r = _case("fewer")
    G = J @ J.mT
    bad = r.clone()
    bad[2] = torch.nan
    with pytest.raises(ValueError, match=r"losses: NaN or infinite entries \[2\]"):
        mf.weights(mf.physics.gauss_newton(), G, bad)
    hidden = vmap(lambda r: mf.weights(mf.physics.gauss_newton(), G, r))(bad[None])
    assert bool(hidden.isnan().all())
    present = torch.tensor([True, False, True, True, False])
    share = present.to(F64) / 3
    rows = J * present[:, None]
    geometry = Geometry(r * present, rows @ rows.mT, share, present, {})
    w = mf.physics.gauss_newton(0.0).update(geometry, ())[0]
    alone = mf.weights(mf.physics.gauss_newton(0.0), G[present][:, present], r[present])
    torch.testing.assert_close(w[present], alone)
    assert w[~present].tolist() == [0.0, 0.0]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"reads 'carried', what the optimizer carries along"):
        mf.balance(residuals, mf.physics.gauss_newton(momentum=True), mf.jacobian())
    with pytest.raises(ValueError, match=r"the losses; pass losses="):
        mf.weights(mf.physics.gauss_newton(), torch.eye(2))


def test_certificate_says_what_float32_lost():
    x = torch.linspace(0, 1, 10)[:, None]
    params = {"a": torch.ones(10)}

    def close(params, x):  # powers of x: a badly conditioned Gramian
        return (x ** torch.arange(10, dtype=x.dtype)) @ params["a"] - torch.cos(20 * x[:, 0])

    found = {}
    for dtype in (torch.float32, torch.float64):
        leaves = {name: leaf.to(dtype) for name, leaf in params.items()}
        step = mf.balance(close, mf.physics.gauss_newton(1e-5), mf.jacobian())
        info = step.update(leaves, x.to(dtype), step.init(leaves, x.to(dtype)))[2]
        found[dtype] = mf.physics.newton_error(info, 1e-5)
    assert float(found[torch.float32].rounding) > 1e-4
    assert float(found[torch.float64].rounding) < 1e-10
    step = mf.balance(close, mf.mean(), mf.losses_only())
    info = step.update(params, x, step.init(params, x))[2]
    with pytest.raises(ValueError, match="info: expected one Gramian"):
        mf.physics.newton_error(info, 0.0)


def test_certificate_of_a_weighted_step_is_that_of_the_weighted_residuals():
    """√ω_t r_t with gradients √ω_t g_t; what has no share is not there, however long."""
    J, r = _case("square")
    share, w, none = torch.tensor([0.5, 1.0, 0.2], dtype=F64), r.sin()[:3], torch.zeros_like(r)[:3]

    def certificate(J: Tensor, r: Tensor, w: Tensor, **given: Tensor):
        info = mf.Info(r, J @ J.mT, w, J @ (J.mT @ w), (), {})
        return mf.physics.newton_error(info, 1e-2, **given)

    long, omega = torch.cat([J[:3], 1e6 * J[3:]]), torch.cat([share**2, none])
    own = certificate(long, r, torch.cat([w, none]), preference=omega)
    other = certificate(share[:, None] * J[:3], share * r[:3], w / share)
    torch.testing.assert_close(own, other, rtol=1e-12, atol=0.0)
    absent = torch.cat([J[:3], 0 * J[3:]]), torch.cat([r[:3], none / 0]), torch.cat([w, none])
    own = certificate(*absent, present=torch.arange(6) < 3)
    torch.testing.assert_close(own, certificate(J[:3], r[:3], w), rtol=1e-12, atol=0.0)


def test_line_search_is_a_loop_over_lengths():
    params, direction = _start(), {name: leaf.sin() for name, leaf in _start().items()}
    factors = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.3], dtype=F64)

    def objective(params, x):
        return residuals(params, x).square().sum()

    def at(factor):
        return {name: leaf - factor * direction[name] for name, leaf in params.items()}

    values = torch.stack([objective(at(factor), POINTS) for factor in factors])

    def search(params):
        return mf.physics.line_search(objective, params, direction, POINTS, factors)

    found = search(params)
    torch.testing.assert_close(found.values, values)
    assert float(found.factor) == float(factors[values.argmin()])
    torch.testing.assert_close(flatten(found.params), flatten(at(found.factor)))
    many = {name: torch.stack([leaf, 0.5 * leaf]) for name, leaf in params.items()}
    mapped = vmap(search)(many)
    for i in range(2):
        one = search({name: leaf[i] for name, leaf in many.items()})
        torch.testing.assert_close(mapped.values[i], one.values)
        assert float(mapped.factor[i]) == float(one.factor)


def test_line_search_passes_nan_by_and_names_bad_arguments():
    def objective(params, batch):
        return params["x"].log()

    params, direction = {"x": torch.tensor(1.0)}, {"x": torch.tensor(1.0)}
    factors = torch.tensor([2.0, 0.5, 0.0])  # log(-1) is NaN
    assert float(mf.physics.line_search(objective, params, direction, (), factors).factor) == 0.5
    # and where no length has a value, the step is none that looks like one
    assert mf.physics.line_search(objective, params, direction, (), factors[:1]).params["x"].isnan()
    for other in ({"y": torch.tensor(1.0)}, {"x": torch.ones(2)}, {}):
        with pytest.raises(ValueError, match="direction: expected a tensor for each of params"):
            mf.physics.line_search(objective, params, other, (), factors)
    with pytest.raises(ValueError, match=r"objective: expected a 0-d tensor, got \[2\]"):
        mf.physics.line_search(lambda p, b: torch.ones(2), params, direction, (), factors)


def test_a_residual_of_relu_has_no_gradient():
    """Its second derivative is 0 almost everywhere, for all parameters."""
    points = torch.linspace(-1, 1, 24, dtype=F64).sin().reshape(12, 2)
    net = perceptron(2, 8, 1, activation=nn.ReLU)

    def residual(params, x):
        """Δu - 1 as people write it."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            u = functional_call(net, params, (x,))
            first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
            second = [
                torch.autograd.grad(first[:, i].sum(), x, create_graph=True)[0][:, i]
                for i in range(2)
            ]
        return second[0] + second[1] - 1

    def after(damping):
        step = mf.descend(residual, mf.physics.gauss_newton(damping), mf.jacobian(), mf.sgd(1.0))
        return step.update(step.init(params, points), points)[0].params

    params = mf.parameters(net)
    _, gramian = mf.sample_gramian(residual, params, points)[:2]
    assert not gramian.any()
    assert not mf.sample_norms(residual, params, points)[1].any()
    with pytest.raises(ValueError, match=r"damping: 0 leaves the Gramian of 12 residuals singular"):
        after(0.0)
    moved = after(1e-6)
    for name, leaf in params.items():
        assert torch.equal(moved[name], leaf)
