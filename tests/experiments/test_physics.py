"""The physics study: references against other integrators, residuals and methods against literal
ones, what a run counts, and the command.
"""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.func import functional_call, grad, hessian, vmap

import mtlfunc as mf
from common.study import Choice
from experiments.physics import run
from experiments.physics.methods import LENGTHS, METHODS, ntk_weights
from experiments.physics.problems import HARD, PROBLEMS, VISCOSITY
from experiments.physics.references import (
    ALLEN_CAHN,
    KORTEWEG,
    LAST,
    REACTION,
    cole_hopf,
    evolution,
    spectral,
)
from experiments.physics.report import Results, against, figures, page
from experiments.physics.run import MARKS, Settings, trained
from tests.support import ROOT
from tests.support.device import host_reads

CPU = torch.device("cpu")


def test_burgers_integral_is_the_spectral_solution():
    t = np.linspace(0, 1, 6)
    x, u = spectral(
        lambda x: -np.sin(np.pi * x),
        lambda ik: VISCOSITY * ik**2,
        lambda u, derivative: -derivative(u**2 / 2),
        t,
    )
    found = cole_hopf(*np.meshgrid(x, t), VISCOSITY)
    np.testing.assert_allclose(found, u, rtol=0, atol=1e-9)  # h⁴ of 4,000 steps is 4e-15


def test_a_soliton_keeps_its_shape():
    dispersion, speed = 0.03**2, 0.5

    def wave(x, t):
        away = (x - speed * t + 1) % 2 - 1
        return 3 * speed / np.cosh(math.sqrt(speed / dispersion) / 2 * away) ** 2

    x, u = spectral(
        lambda x: wave(x, 0),
        lambda ik: -dispersion * ik**3,
        lambda u, derivative: -derivative(u**2 / 2),
        np.linspace(0, 1, 3),
    )
    np.testing.assert_allclose(u[-1], wave(x, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LAST)
def test_evolutions_by_another_integrator(name):
    """Adaptive steps of order 8, on other points."""
    count = 64 if name == "Korteweg-de Vries" else 128
    x = -1 + 2 * np.arange(count) / count
    ik = 1j * np.pi * np.fft.rfftfreq(count, 1 / count)

    def slope(t, u):
        first, second, third = (np.fft.irfft(ik**k * np.fft.rfft(u), count) for k in (1, 2, 3))
        if name == "Allen-Cahn":
            return ALLEN_CAHN * second + REACTION * (u - u**3)
        return -u * first - KORTEWEG * third

    start = x**2 * np.cos(np.pi * x) if name == "Allen-Cahn" else np.cos(np.pi * x)
    found = solve_ivp(slope, (0, LAST[name]), start, "DOP853", rtol=1e-8, atol=1e-9).y[:, -1]
    points, u = evolution(name, 3)
    last = points[:, 1] == points[:, 1].max()
    np.testing.assert_allclose(points[last, 0], x[:: count // 64], rtol=0, atol=1e-12)
    # Allen-Cahn starts with a kink at ±1, which 128 points blur
    atol = 2e-4 if name == "Allen-Cahn" else 1e-5
    np.testing.assert_allclose(u[last], found[:: count // 64], rtol=0, atol=atol)


def literal(name: str, u, params, x):
    """D u - f at one point, by nested derivatives."""
    value, slope = u(params, x), grad(u, 1)(params, x)
    curves = hessian(u, 1)(params, x)
    d = len(x)
    wave = math.pi**2
    if name.startswith("Poisson 2-D"):
        return curves.trace() + 2 * wave * (math.pi * x).sin().prod()
    if name == "Poisson 5-D":
        return curves.trace() + wave * (math.pi * x).cos().sum()
    if name == "Helmholtz":
        exact = (math.pi * x[0]).sin() * (2 * math.pi * x[1]).sin()
        return curves.trace() + value - (1 - 5 * wave) * exact
    if name == "Burgers":
        return slope[1] + value * slope[0] - VISCOSITY * curves[0, 0]
    if name == "Allen-Cahn":
        return slope[1] - ALLEN_CAHN * curves[0, 0] - REACTION * (value - value**3)
    third = grad(lambda x: hessian(u, 1)(params, x)[0, 0])(x)[0]
    assert d == 2
    return slope[1] + value * slope[0] + KORTEWEG * third


@pytest.mark.parametrize("name", [name for name in PROBLEMS if "noisy" not in name])
def test_residuals_are_the_equation_and_the_values(name):
    problem = PROBLEMS[name]
    net = problem.network(3)
    params = mf.parameters(net)
    points = next(problem.batches(3, CPU))

    def u(params, x):
        return functional_call(net, params, (x[None],))[0, 0]

    found = problem.residuals(net, params, points)
    inside, x = points.inside, points.x
    count = problem.counts[0]
    assert int(inside.sum()) == count
    expected = vmap(lambda x: literal(name, u, params, x))(x[inside][:20]) / count**0.5
    torch.testing.assert_close(found[inside][:20], expected, rtol=1e-9, atol=1e-9)
    for term, (n, faces) in enumerate(
        zip(problem.counts[1:], problem.faces.values(), strict=True), 1
    ):
        here = points.member[:, term] == 1
        assert int(here.sum()) == n
        on_face = [x[here][:, axis] == problem.box[axis][end] for axis, end in faces]
        assert bool(torch.stack(on_face).any(0).all())
        off = vmap(lambda x: u(params, x))(x[here]) - problem.value(x[here])
        torch.testing.assert_close(found[here], 10 * off / n**0.5, rtol=1e-9, atol=1e-12)
    # where the solution is known on the faces, the values asked for are those of it
    where, exact = problem.solution(9)
    assert where.shape == (len(exact), len(problem.box))
    low, high = torch.tensor(problem.box, dtype=torch.float64).unbind(1)
    assert bool(((where >= low) & (where <= high)).all())
    for axis, end in itertools.chain(*problem.faces.values()):
        face = where[:, axis] == problem.box[axis][end]
        atol = 0.03 if name == "Allen-Cahn" else 1e-6  # its kink at the start is cut off
        torch.testing.assert_close(problem.value(where[face]), exact[face], rtol=0, atol=atol)


def test_new_points_differ_from_step_to_step_and_noise_is_in_the_source():
    noisy = PROBLEMS["Poisson 2-D with noisy new points"].batches(0, CPU)
    one, two = next(noisy), next(noisy)
    assert not torch.equal(one.x, two.x)
    clean = PROBLEMS["Poisson 2-D"].source(one.x)
    off = (one.target - clean)[one.inside]
    assert 5 < float(off.std()) < 20  # 24 draws of standard deviation 10
    fixed = PROBLEMS["Poisson 2-D"].batches(0, CPU)
    assert torch.equal(next(fixed).x, next(fixed).x)
    assert sum(leaf.numel() for leaf in PROBLEMS[[*HARD][-1]].network(0).parameters()) == 105


SMALL = PROBLEMS["Poisson 2-D"]._replace(width=6, counts=(12, 8))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_the_loss(method):
    net = SMALL.network(1)
    points = next(SMALL.batches(1, CPU))

    def loss(params):
        return float(SMALL.residuals(net, params, points).square().sum())

    first = loss(mf.parameters(net))
    setting = 1.0 if method == "L-BFGS" else METHODS[method].grid[-1]
    steps = METHODS[method].way(SMALL, SMALL.network(1), SMALL.batches(1, CPU), setting)
    params = next(itertools.islice(steps, 60, None))
    assert loss({name: leaf.detach() for name, leaf in params.items()}) < 0.5 * first


@pytest.mark.parametrize("method", [name for name in METHODS if name != "L-BFGS"])
@pytest.mark.parametrize("problem", ["Poisson 2-D", "Korteweg-de Vries", "Burgers"])
def test_a_step_on_a_device_reads_nothing(method, problem):
    """Strong Wolfe conditions are looked at on the host; no other method waits for a device.

    torch's Adam counts the steps of every parameter in a tensor on the CPU, which it reads.
    """
    case = PROBLEMS[problem]._replace(counts=(6,) + (4,) * len(PROBLEMS[problem].faces), width=5)
    net = case.network(0).to("meta")
    points = next(case.batches(0, torch.device("meta")))
    steps = METHODS[method].way(case, net, itertools.repeat(points), METHODS[method].grid[0])

    def two_steps() -> None:
        for _ in range(2):
            assert all(leaf.device.type == "meta" for leaf in next(steps).values())

    counts = [] if method in ("Gauss-Newton", "SPRING") else ["aten::_local_scalar_dense"] * 12
    assert host_reads(two_steps) == counts


def test_gauss_newton_steps_along_the_least_squares_solution():
    damping = 1e-6
    net = SMALL.network(1)
    points = next(SMALL.batches(1, CPU))
    params = mf.parameters(net)
    r = SMALL.residuals(net, params, points)
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    each = [
        torch.autograd.grad(one, [*leaves.values()], retain_graph=True)
        for one in SMALL.residuals(net, leaves, points)
    ]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in each]).numpy()
    s = (J**2).sum(1).max()
    stacked = np.vstack([J, np.sqrt(damping * s) * np.eye(J.shape[1])])
    right = np.concatenate([r.numpy(), np.zeros(J.shape[1])])
    d = torch.from_numpy(np.linalg.lstsq(stacked, right, rcond=None)[0])
    steps = METHODS["Gauss-Newton"].way(SMALL, net, SMALL.batches(1, CPU), damping)
    after = next(steps)
    moved = torch.cat([(params[name] - leaf).flatten() for name, leaf in after.items()])
    length = float(moved @ d / (d @ d))
    assert min(abs(length - 0.5**k) for k in range(LENGTHS)) < 1e-6
    torch.testing.assert_close(moved, length * d, rtol=1e-6, atol=1e-8 * float(d.norm()))


def test_ntk_weights_are_those_of_single_points():
    net = SMALL.network(1)
    points, params = next(SMALL.batches(1, CPU)), mf.parameters(net)
    squares = []
    for i in range(len(points.x)):
        one = grad(lambda p, i=i: SMALL.residuals(net, p, points)[i])(params)
        squares.append(sum((leaf**2).sum() for leaf in one.values()))
    trace = torch.stack(squares) @ points.member
    found = ntk_weights(SMALL, net, params, points)
    torch.testing.assert_close(found, trace.sum() / trace / len(trace), rtol=1e-9, atol=0)


def test_only_steps_that_end_before_a_mark_count(monkeypatch):
    """With a clock by which every step takes 1.5 marks."""
    clock = itertools.count()
    monkeypatch.setattr(run, "seconds_now", lambda device: 0.75 * next(clock))
    # two readings a step are 0.75 apart, and the marks 0.5
    looked = []

    def look(params):
        looked.append(params["layers.0.weight"])
        return float(len(looked))

    seen, kept, taken = trained(SMALL, "Adam", 1e-2, 1, 0.5 * MARKS, CPU, look)
    assert seen == [float(i + 1) for i in range(MARKS)]
    assert taken == 2 * MARKS // 3
    first = dict(SMALL.network(1).named_parameters())["layers.0.weight"]
    assert torch.equal(looked[0], first)
    assert not torch.equal(looked[1], first)  # one step ended at .75, before 1
    assert torch.equal(looked[-1], kept["layers.0.weight"])


def _results(digits, method_fails=False):
    """Made-up runs: errors 10^-digits by method, three seeds."""
    x, _ = PROBLEMS["Poisson 2-D"].solution(5)
    row = {
        name: [
            {
                "errors": [10.0 ** -(value + 0.01 * seed)] * MARKS,
                "score": value + 0.01 * seed if value else -math.inf,
                "steps": 7,
                "field": [0.1] * len(x),
            }
            for seed in range(3)
        ]
        for name, value in digits.items()
    }
    choice = Choice("", 1.0, {"": {1.0: 1.0}}, (), False)
    choices = {"Poisson 2-D": dict.fromkeys(row, (choice,))}
    return Results(
        {"Poisson 2-D": row}, choices, (0, 1, 2), (9,), Settings(1.0, 5), "processor time"
    )


def test_the_report_says_where_gauss_newton_loses():
    results = _results({"Adam": 1, "L-BFGS": 4, "Gauss-Newton": 3, "MGDA": 0, "ConFIG": 3})
    row = results.runs["Poisson 2-D"]
    assert against(row) == {"higher": ["L-BFGS"], "open": ["ConFIG"], "lower": ["Adam", "MGDA"]}
    text = page(results)
    assert "higher than that of the methods in brackets on: Poisson 2-D (L-BFGS)." in text
    assert "9.8e-05 ×/÷" in text
    assert "failed" in text  # MGDA
    assert set(figures(results)) == {"errors", "fields"}
    fails = against({**row, "Gauss-Newton": row["MGDA"]})
    assert fails == {"higher": ["Adam", "L-BFGS", "ConFIG"], "open": ["MGDA"], "lower": []}


def test_the_command_writes_and_goes_on(tmp_path):
    command = [
        *(sys.executable, "-m", "experiments.physics", "--quick", "--workers", "1"),
        *("--rules", "Adam,Gauss-Newton", "--seconds", "0.02", "--out", str(tmp_path)),
    ]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Where Gauss-Newton loses" in first.stdout
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("seed*.json")}
    written = {x.name for x in tmp_path.iterdir()} - {"cells", ".lock"}
    assert written == {"results.json", "table.md", "errors.png"}  # no fields without L-BFGS
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert {x: set(y) for x, y in numbers["runs"].items()} == {
        problem: {"Adam", "Gauss-Newton"} for problem in ("Poisson 2-D", "Korteweg-de Vries")
    }
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout == first.stdout
    assert cells == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("seed*.json")}
