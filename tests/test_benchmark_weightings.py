"""The benchmark of weightings: contenders give the same gradient, and the table their ratios."""

import torch

from experiments.benchmarks import weightings


def test_contenders_agree():
    for name in ("mlp", "lora"):
        torch.manual_seed(0)
        net, x = weightings.CASES[name].make()
        x = x[:8]
        found = {}
        for way, call in weightings.contenders(net, x, 3).items():
            if way not in ("plain", "TorchJD"):  # whose gradient is a copy's
                call()
                grads = [leaf.grad.flatten() for leaf in net.parameters() if leaf.grad is not None]
                found[way] = torch.cat(grads)
        wanted = found.pop("K passes")
        assert set(found) == {"mf.Balancer", "mf.balance"}
        for way, grad in found.items():
            # float32 sums of a thousand terms in another order
            slack = 1e-5 * float(wanted.abs().max())
            torch.testing.assert_close(grad, wanted, rtol=0, atol=slack, msg=f"{name} {way}")
