#!/usr/bin/env bash
# gpytorch 1.15.2, botorch 0.18.1: the log density of a posterior of several tasks is that of shuffled values.
#
# MultitaskMultivariateNormal(mean, covariance, interleaved=False) orders its covariance by task. Its mean, variance,
# samples and slices are right. Its log_prob(value) takes an n x t value in the order of its memory as if it were
# t x n, so that values of one task are judged as those of another. Where n = t, or where tasks are interleaved, it
# is right. Seen for one distribution of 4 points and 3 tasks, by both orders:
#     interleaved=True, and torch's MultivariateNormal     -27.02
#     interleaved=False                                    -24.43
# botorch's posteriors of several tasks have that order. Two outcomes, sin(6x) and 5 + cos(6x), 12 points, log density
# of held-out values:
#     held-out points                                      7              2
#     ModelListGP, SingleTaskGP of two outcomes            -8e6           5.51
#     sum of each outcome's own                            37.5           5.51
#     MultiTaskGP                                          -1e6           -.81
#     torch's, of its mean and covariance, by task         18.0           -.81
# A KL divergence of one order from the other compares covariances entry by entry: 20.0 between the two above, which
# are the same distribution. No call warns of it.
#
# Why it matters: the log density of held-out values is how models of several tasks are compared, and a likelihood
# that is maximised. It is wrong in size and in gradient, and with outcomes of similar values nothing shows it.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5 gpytorch==1.15.2 botorch==0.18.1 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import sys
import warnings
from importlib.metadata import version

import torch
from botorch.models import ModelListGP, MultiTaskGP, SingleTaskGP
from gpytorch.distributions import MultitaskMultivariateNormal
from torch.distributions import MultivariateNormal, kl_divergence

print(*(f"{x} {version(x)}" for x in ("torch", "gpytorch", "botorch")))
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
torch.manual_seed(0)
seen = {}


def by_task(found, value):
    """torch's log density of the same mean and covariance, with the value ordered by task."""
    return MultivariateNormal(found.loc, found.covariance_matrix).log_prob(value.T.reshape(-1)).item()


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for n, t in ((4, 3), (3, 3)):
        root = torch.randn(n * t, n * t)
        covariance, mean = root @ root.T + torch.eye(n * t), torch.randn(n, t)
        order = torch.arange(n * t).reshape(n, t).T.reshape(-1)
        one = MultitaskMultivariateNormal(mean, covariance)
        two = MultitaskMultivariateNormal(mean, covariance[order][:, order], interleaved=False)
        value = torch.randn(n, t)
        found = [x.log_prob(value).item() for x in (one, two)]
        right = MultivariateNormal(mean.reshape(-1), covariance).log_prob(value.reshape(-1)).item()
        slopes = []
        for each in (one, two):
            leaf = value.clone().requires_grad_()
            slopes.append(torch.autograd.grad(each.log_prob(leaf), leaf)[0])
        apart = ((slopes[0] - slopes[1]).norm() / slopes[0].norm()).item()
        divergence = kl_divergence(one, two).item()
        print(f"{n} points, {t} tasks: log_prob {found}, torch's {right}, gradients apart by {apart}, KL {divergence}")
        seen[n, t] = torch.equal(one.mean, two.mean) and torch.allclose(one.variance, two.variance)
        seen[n, t] &= abs(found[0] - right) < 1e-8 and divergence > 1
        seen[n, t] &= (abs(found[1] - right) < 1e-8) == (apart < 1e-8) == (n == t)
        seen[n, t] &= abs(by_task(two, value) - right) < 1e-8
        for task in range(t):
            slices = [x[:, task].log_prob(value[:, task]).item() for x in (one, two)]
            seen[n, t] &= abs(slices[0] - slices[1]) < 1e-8

told = [str(x.message) for x in told]
X = torch.rand(12, 1)
outcomes = torch.cat([torch.sin(6 * X), 5 + torch.cos(6 * X)], 1)
both = [SingleTaskGP(X, outcomes[:, i : i + 1]) for i in range(2)]
with_task = torch.cat([torch.cat([X, torch.full_like(X, i)], 1) for i in range(2)])
models = {
    "ModelListGP": ModelListGP(*both),
    "SingleTaskGP": SingleTaskGP(X, outcomes),
    "MultiTaskGP": MultiTaskGP(with_task, outcomes.T.reshape(-1, 1), task_feature=1),
}
for held in (7, 2):
    new = torch.rand(held, 1)
    value = torch.cat([torch.sin(6 * new), 5 + torch.cos(6 * new)], 1)
    with torch.no_grad(), warnings.catch_warnings(record=True) as more:
        warnings.simplefilter("always")
        own = sum(x.posterior(new).distribution.log_prob(value[:, i]).item() for i, x in enumerate(both))
        for name, model in models.items():
            posterior = model.posterior(new).distribution
            found, right = posterior.log_prob(value).item(), by_task(posterior, value)
            print(f"{name}, {held} held out: log_prob {found:.6g}, by task {right:.6g}, sum of each one's {own:.6g}")
            seen[name, held] = abs(found - right) < 1e-4 if held == 2 else found < -1e6 < 0 < right
            if name != "MultiTaskGP":
                seen[name, held] &= abs(right - own) < 1e-3
    told += [str(x.message) for x in more]
print("warnings", told)
seen["no warning"] = not any("interleav" in x or "log_prob" in x for x in told)
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
