"""Second derivatives of every rule, in every mode and nesting, against differences of the first."""

import numpy as np
import pytest
import torch
from torch.func import grad, jvp, vmap

import mtlfunc as mf
from tests.support.every import in_turn
from tests.support.families import jacobian
from tests.support.registry import RULES
from tests.support.rules import F64, SPECTRAL, geometry

SMOOTH = [name for name, case in RULES.items() if case.smooth]
AT = torch.tensor(0.1, dtype=F64)
H = 1e-4


def curve(rule, count=3, width=4, steps=2, seed=0):
    """A number that all weights of a few steps determine, as a function of one number."""
    start, move = (jacobian("gaussian", count, seed + i, width=width) for i in (0, 7))
    task = torch.arange(count, dtype=F64)
    probe = torch.from_numpy(np.random.default_rng(seed).standard_normal((steps, count)))

    def value(s):
        kept, state = [], None
        for step in range(steps):
            rows = start + (s + 0.1 * step) * 0.3 * move
            losses = (1 + task) * torch.exp(-s * (0.2 + 0.1 * task) - 0.1 * step * task)
            if state is None:
                state = rule.init(losses, mf.random.key(5))
            weights, state = rule.update(geometry(rows @ rows.mT, losses), state)
            kept.append(weights)
        return (probe * torch.stack(kept)).sum()

    return value


def forward(f):
    return lambda s: jvp(f, (s,), (torch.ones_like(s),))[1]


def backward_twice(f):
    """The second derivative by two plain backward passes through a recorded graph."""
    s = AT.clone().requires_grad_()
    value = f(s)
    for _ in range(2):
        if not value.requires_grad:  # what does not depend on s any more has derivative 0
            return torch.zeros_like(AT)
        (found,) = torch.autograd.grad(value, s, create_graph=True, allow_unused=True)
        value = torch.zeros_like(AT) if found is None else found
    return value.detach()


def difference(f):
    return (f(AT + H) - f(AT - H)) / (2 * H)


NESTINGS = {
    "reverse over reverse": lambda f: grad(grad(f))(AT),
    "forward over reverse": lambda f: forward(grad(f))(AT),
    "reverse over forward": lambda f: grad(forward(f))(AT),
    "forward over forward": lambda f: forward(forward(f))(AT),
    "backward twice": backward_twice,
    "vmapped": lambda f: vmap(grad(grad(f)))(torch.stack([AT + 0.05, AT, AT - 0.05]))[1],
    "vmapped, forward": lambda f: vmap(forward(forward(f)))(torch.stack([AT, AT + 0.05]))[0],
}


def agree(value, rtol=1e-5, smooth=None, nestings=NESTINGS):
    """Second derivatives next to differences of the first ones, of `smooth` if there is one."""
    expected = difference(forward(smooth or value))
    for name in nestings:
        error = float((NESTINGS[name](value) - expected).abs())
        assert error <= rtol * (1 + float(expected.abs())), (name, error, float(expected))


PLAIN = [name for name in SMOOTH if "-" not in name]
LATER = pytest.mark.exhaustive
VARIANTS = [pytest.param(x, NESTINGS, id=x, marks=LATER) for x in SMOOTH if "-" in x]


@pytest.mark.parametrize(("rule", "nestings"), [*in_turn(PLAIN, NESTINGS, 2), *VARIANTS])
def test_second_derivatives_of_rules(rule, nestings):
    """Of order two in every nesting; H = 1e-4; by faces where a rule solves with cvx."""
    f = curve(RULES[rule].make())
    # Truncation H² = 1e-8 and rounding 1e-13/H, times derivatives two orders higher.
    agree(f, smooth=curve(RULES[rule.removesuffix("-cvx")].make()), nestings=nestings)


FACTORED = SPECTRAL | {"nash_mtl": mf.nash_mtl, "fairgrad": lambda: mf.fairgrad(2.0)}


@pytest.mark.parametrize(("count", "width"), [(2, 2), (5, 3), (9, 9), (12, 4)])
@pytest.mark.parametrize(("rule", "nestings"), in_turn(FACTORED, NESTINGS, 2))
def test_second_derivatives_of_directions(rule, nestings, count, width):
    """Of q·d, d = Jᵀw, with more tasks than parameters, too: there the null space of G moves."""
    start, move = (jacobian("gaussian", count, seed, width=width) for seed in (1, 2))
    start, made = start + 1.0, FACTORED[rule]()  # some common descent
    q = torch.linspace(1, -0.5, width, dtype=F64)

    def value(s):
        rows = start + 0.3 * s * move
        return q @ (mf.weights(made, rows @ rows.mT) @ rows)

    agree(value, nestings=nestings)


EQUAL = {name: [2.0] * 4 for name in FACTORED if name != "aligned_mtl-median"}
EQUAL["aligned_mtl"] = [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(("rule", "lengths"), EQUAL.items())
def test_second_derivatives_where_eigenvalues_are_equal(rule, lengths):
    """Where eigenvectors have no derivative; Aligned-MTL's scale is a simple eigenvalue: no NaN."""
    made, move = FACTORED[rule](), jacobian("gaussian", 4, 3, width=4)
    probe = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)

    def value(s):
        rows = torch.diag(torch.tensor(lengths, dtype=F64)) + (s - AT) * move
        return probe @ mf.weights(made, rows @ rows.mT)

    agree(value, nestings=("forward over forward", "reverse over forward"))


@pytest.mark.parametrize("alpha", [0.4, 1.0, 2.0, 3.0])
def test_fairgrad_differentiated_twice_in_alpha(alpha):
    J = jacobian("gaussian", 3)
    probe = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    agree(lambda s: probe @ mf.weights(mf.fairgrad(alpha + s), J @ J.mT), 1e-6)
