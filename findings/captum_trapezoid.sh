#!/usr/bin/env bash
# captum 0.9.0: attributions by the trapezoidal rule are too small by one part in the number of steps.
#
# Attributions along a path sum to the change of the output. Of the five rules that IntegratedGradients offers, four are
# exact for a linear function with any number of steps. The weights of riemann_trapezoid are 1/n, halved at both ends,
# for n points that are 1/(n - 1) apart, and sum to 1 - 1/n. Seen, attributions of a linear function over right ones:
#     n_steps                                              2       5       10      50      200
#     riemann_trapezoid                                    .5      .8      .9      .98     .995
#     riemann_left, _right, _middle, gausslegendre         1       1       1       1       1
# LayerIntegratedGradients, InternalInfluence and NeuronConductance have the same factor. For a sum of squares all
# attributions are .9 of the right ones with 10 steps, as by riemann_left, where a trapezoidal rule is exact. No
# call warns of it; return_convergence_delta=True shows it.
#
# Why it matters: the rule is of second order, and is chosen to save steps. It converges like the first-order one, and
# where attributions are compared across tasks with other numbers of steps, the task with fewer has less of them.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5 captum==0.9.0 || exit 2
cd "$folder"
MPLBACKEND=agg "$folder/venv/bin/python" - <<'END'
import sys
import warnings
from importlib.metadata import version

import torch
from captum.attr import IntegratedGradients, InternalInfluence, LayerIntegratedGradients, NeuronConductance
from torch import nn

print(*(f"{x} {version(x)}" for x in ("torch", "captum")))
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
rules = "riemann_trapezoid", "riemann_left", "riemann_right", "riemann_middle", "gausslegendre"
linear = nn.Linear(3, 1, bias=False)
net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False))
x = torch.tensor([[1.0, 2.0, 3.0]])
seen = {}


def over(found, right):
    """The one factor between two sets of attributions."""
    ratio = found / right
    assert torch.allclose(ratio, ratio.mean(), atol=1e-6), ratio
    return ratio.mean().item()


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for n in (2, 5, 10, 50, 200):
        ratios = [over(IntegratedGradients(linear).attribute(x, n_steps=n, method=m), linear.weight * x) for m in rules]
        print(f"linear, {n} steps:", {m: round(r, 4) for m, r in zip(rules, ratios)})
        seen["linear", n] = abs(ratios[0] - (1 - 1 / n)) < 1e-6 and all(abs(r - 1) < 1e-6 for r in ratios[1:])
    squares = [
        over(IntegratedGradients(lambda z: (z**2).sum(1)).attribute(x, n_steps=10, method=m), x**2) for m in rules
    ]
    points = torch.linspace(0, 1, 10)
    plain = torch.trapezoid(2 * points, points).item()
    print("squares, 10 steps:", {m: round(r, 4) for m, r in zip(rules, squares)}, "torch.trapezoid", plain)
    seen["squares"] = abs(squares[0] - 0.9) < 1e-6 and abs(squares[1] - 0.9) < 1e-6 and abs(plain - 1) < 1e-9
    _, delta = IntegratedGradients(linear).attribute(x, n_steps=10, method=rules[0], return_convergence_delta=True)
    seen["delta"] = abs(delta.item() + 0.1 * linear(x).item()) < 1e-6
    kinds = {LayerIntegratedGradients: {}, InternalInfluence: {}, NeuronConductance: {"neuron_selector": 0}}
    for kind, more in kinds.items():
        found = [kind(net, net[0]).attribute(x, n_steps=10, method=m, **more) for m in (rules[0], rules[-1])]
        print(kind.__name__, over(*found))
        seen[kind.__name__] = abs(over(*found) - 0.9) < 1e-6
told = [str(w.message) for w in told]
print("warnings", *sorted(set(told)), sep="\n    ")
seen["no warning"] = not any("trapezoid" in w or "step" in w for w in told)
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
