#!/usr/bin/env bash
# LibMTL 1.1.5 (the newest on PyPI): the targets of its GradVac never rise above zero.
#
# GradVac (Wang et al., ICLR 2021) keeps a target for the cosine of each two tasks, a running mean
# of the cosines that starts at 0 and moves at each step. A gradient whose cosine with another is
# below the target is turned until it reaches it. This version moves the mean only where the cosine
# is below the target, so that a target can only fall. Seen for two tasks with fixed gradients whose
# cosine is 0.8, ten steps, beta = 0.5:
#     target of LibMTL: 0.000; running mean: 0.799
# Then the cosine is 0.1 for one step. LibMTL leaves both gradients as they are and their sum is
# (1.100, 0.995). The rule with the running mean gives (2.445, 2.212). In the first ten steps both
# are the plain sum.
# The repository (commit 4336804, read but not run) moves the mean at each step, so what
# `pip install LibMTL` brings is another rule. The script loads GradVac's own file, because the
# package's __init__ needs a torchvision that is older than this torch.
#
# Why it matters: targets above zero are what sets GradVac apart from PCGrad. Results of GradVac
# from this version are those of a rule that acts on conflicts alone, and a paper that says "LibMTL"
# has to say from where.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/pip" install -q --no-deps LibMTL==1.1.5 || exit 2
"$folder/venv/bin/python" - <<'END'
import math
import sys
import sysconfig
import types

import torch

site = sysconfig.get_paths()["purelib"]
for name in ("LibMTL", "LibMTL.weighting"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [f"{site}/{name.replace('.', '/')}"]
from LibMTL.weighting.GradVac import GradVac  # noqa: E402

shared = torch.nn.Parameter(torch.zeros(2))


class Rule(GradVac):
    task_num, device, rep_grad = 2, torch.device("cpu"), False

    def get_share_params(self):
        return [shared]

    def zero_grad_share_params(self):
        shared.grad.zero_()


def paper(gradients, targets, beta):
    """The sum of the corrected gradients; moves `targets`."""
    total = torch.zeros(2)
    for i, j in ((0, 1), (1, 0)):
        own, other = gradients[i].clone(), gradients[j]
        cosine, target = float(torch.cosine_similarity(own, other, dim=0)), targets[i][j]
        if cosine < target:
            up = target * math.sqrt(1 - cosine**2) - cosine * math.sqrt(1 - target**2)
            own += own.norm() * up / (other.norm() * math.sqrt(1 - target**2)) * other
        targets[i][j] = (1 - beta) * target + beta * cosine
        total += own
    return total


def two(cosine):
    return torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])


rule, targets, equal = Rule(), [[0.0, 0.0], [0.0, 0.0]], True
for step in range(11):
    gradients = two(0.8 if step < 10 else 0.1)
    if step == 10:
        means = (rule.rho_T[0, 1].item(), targets[0][1])
        print(f"target of LibMTL: {means[0]:.3f}; running mean: {means[1]:.3f}")
    shared.grad = None
    rule.backward(gradients @ shared, beta=0.5)
    exact = paper(gradients, targets, 0.5)
    if step < 10:
        equal &= torch.allclose(shared.grad, gradients.sum(0)) and torch.allclose(
            exact, gradients.sum(0)
        )
print("sum of LibMTL:", shared.grad.tolist(), "with the running mean:", exact.tolist())
plain = torch.allclose(shared.grad, two(0.1).sum(0))
other = torch.allclose(exact, torch.tensor([2.4454, 2.2119]), atol=1e-3)
sys.exit(0 if equal and plain and other and means[0] == 0 and means[1] > 0.79 else 1)
END
