#!/usr/bin/env bash
# torch 2.13.0: inside parametrize.cached() functional_call ignores the parameters that it is given,
# and torch.func.grad returns zeros, from the second call on.
#
# torch.nn.utils.parametrize.cached() keeps the value of every parametrized weight until the context
# is left, by the module and the weight's name, whatever the parameters are. Seen for a linear layer
# under weight_norm, called with its parameters and with the same ones whose lengths (original0) are
# 3 times larger:
#     outside of the context:      the second output is 3 times the first
#     inside, functional_call:     both outputs are the first
#     inside, grad, first call:    the gradients of outside
#     inside, grad, second call:   zeros for both parameters of the weight
#     inside, after a vmap:        an error about a tensor that escaped from vmap
# In the first two cases there is no error and no warning. The documentation says that values are
# "computed and cached the first time they are required", and shows the context around a forward
# pass.
#
# Why it matters: the context is there to save time where several losses share parametrized weights
# (weight_norm, spectral_norm, orthogonal), as tasks do. With torch.func, whose calls take their
# parameters as arguments, a finite difference, a second task, a second seed or a second step gets
# the weights of the first, and its gradients are zero, which reads as a solved task. Opened inside
# the function that is differentiated, the context is right.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" - <<'END'
import sys

import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn.utils import parametrizations, parametrize

torch.manual_seed(0)
module = parametrizations.weight_norm(nn.Linear(3, 3, bias=False))
lengths = "parametrizations.weight.original0"
params = {name: x.detach() for name, x in module.named_parameters()}
longer = params | {lengths: 3 * params[lengths]}
x = torch.randn(2, 3)


def loss(params):
    return functional_call(module, params, (x,)).square().sum()


def norms(grads):
    return [round(g.norm().item(), 4) for g in grads.values()]


outside = functional_call(module, params, (x,)), functional_call(module, longer, (x,))
right = norms(grad(loss)(params))
with parametrize.cached():
    inside = functional_call(module, params, (x,)), functional_call(module, longer, (x,))
with parametrize.cached():
    slopes = norms(grad(loss)(params)), norms(grad(loss)(params))


def cached_inside(params):
    with parametrize.cached():
        return loss(params)


cure = norms(grad(cached_inside)(params)), norms(grad(cached_inside)(params))
seen = {
    "outside, the second is 3 times the first": torch.allclose(outside[1], 3 * outside[0]),
    "inside, the first is right": torch.equal(inside[0], outside[0]),
    "inside, the second is the first": torch.equal(inside[1], inside[0]),
    "first gradient right": slopes[0] == right,
    "second gradient zero": slopes[1] == [0.0, 0.0],
    "both right where the function opens it": cure == (right, right),
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
print("norms of gradients:", right, "then", *slopes)
sys.exit(0 if all(seen.values()) else 1)
END
