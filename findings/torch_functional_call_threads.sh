#!/usr/bin/env bash
# torch 2.13.0: two functional_calls of one module in two threads exchange their parameters, and the
# module keeps a tensor of the first call for good.
#
# torch.func.functional_call(module, params, args) puts the given tensors into the module, calls it,
# and takes out again what it finds there. Two threads whose calls overlap put theirs into the same
# place. Seen for a module weight · x with weight 1, at x = 1; events make the order the same in
# every run (a enters, b enters, a ends, b ends):
#     a calls with weight 10: 20, which is b's
#     b calls with weight 20:  1, which is the module's own
#     afterwards the module's weight is 10, a plain tensor in place of the nn.Parameter
# There is no error and no warning, and its documentation says nothing of threads. The module's
# parameters() then yields that tensor, which requires no grad, while an optimizer that was made
# before goes on with the old parameter.
#
# Why it matters: "stateless" calls look safe to share out. A sweep over seeds in a thread pool, Dask
# workers with several threads, or a server that evaluates several sets of weights of one network
# give wrong numbers, and what runs after them is wrong too. One module a thread, a lock around the
# call, or processes are right.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" - <<'END'
import sys
import threading

import torch
from torch import nn
from torch.func import functional_call

entered = {name: threading.Event() for name in "ab"}
may_go_on = {name: threading.Event() for name in "ab"}


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, name, x):
        entered[name].set()
        may_go_on[name].wait(60)
        return self.weight * x


module, found = Scale(), {}
own = module.weight


def call(name, value):
    x, params = torch.tensor(1.0), {"weight": torch.tensor(value)}
    found[name] = functional_call(module, params, (name, x)).item()


threads = {
    name: threading.Thread(target=call, args=(name, value))
    for name, value in (("a", 10.0), ("b", 20.0))
}
for name in "ab":
    threads[name].start()
    entered[name].wait(60)
for name in "ab":
    may_go_on[name].set()
    threads[name].join()
print("a, with weight 10:", found["a"])
print("b, with weight 20:", found["b"])
print("the module's weight:", module.weight.item(), type(module.weight).__name__)
print("it is the parameter that it was:", module.weight is own)
left = module.weight.item() == 10 and type(module.weight) is torch.Tensor
sys.exit(0 if found == {"a": 20.0, "b": 1.0} and left else 1)
END
