#!/usr/bin/env bash
# Opacus 1.6.0, BackPACK 1.7.1 and NNGeometry 0.4: the gradient of each sample is wrong for the
# weight of a convolution whose padding_mode is "circular", "reflect" or "replicate".
#
# torch pads such a layer's input with values of the image before it convolves. These libraries
# take the input without them and put zeros there, for the gradient of the weight alone. Seen for
# nn.Conv2d(3, 4, 3, padding=1, padding_mode=...), four images of 9 x 9, largest error of an entry
# over the largest entry of a loop's gradients:
#     padding_mode   Opacus (hooks)   BackPACK (BatchGrad)   NNGeometry (Jacobian)
#     zeros                    0.00                   0.00                    0.00
#     circular                 0.55                   0.55                    0.76
#     reflect                  0.39                   0.39                    0.78
#     replicate                0.40                   0.40                    1.00
# No library warns, and Opacus' validator has nothing to say about the layer. The sum over samples is
# not `.grad`, which is right, as the bias is. Opacus with force_functorch=True is right in all modes.
#
# Why it matters: the gradients of samples and tasks whose angles, norms and Gramians are compared
# come from such libraries, and networks on periodic domains and panoramas have circular padding. What
# is compared are then the gradients of another layer.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 opacus==1.6.0 \
    backpack-for-pytorch==1.7.1 nngeometry==0.4 || exit 2
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from nngeometry.backend import TorchHooksJacobianBackend
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def network(mode):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), nn.Sigmoid(), nn.Flatten())


def loss_of(outputs):
    return outputs.square().sum()


def error(got, wanted):
    return float((got - wanted).abs().max() / wanted.abs().max())


torch.manual_seed(1)
images = torch.randn(4, 3, 9, 9)
same = True
for mode in ("zeros", "circular", "reflect", "replicate"):
    net = network(mode)
    loop = [torch.autograd.grad(loss_of(net(x[None])), [*net.parameters()]) for x in images]
    weights, biases = (torch.stack(x) for x in zip(*loop))
    found = {}

    for name, options in (("Opacus", {}), ("Opacus by functorch", {"force_functorch": True})):
        net = network(mode)
        assert not ModuleValidator.validate(net)
        hooked = GradSampleModule(net, loss_reduction="sum", **options)
        loss_of(hooked(images)).backward()
        found[name] = error(net[0].weight.grad_sample, weights)
        assert error(net[0].bias.grad_sample, biases) < 1e-4
        assert error(net[0].weight.grad, weights.sum(0)) < 1e-4

    net = extend(network(mode))
    sum_of_squares = extend(nn.MSELoss(reduction="sum"))
    with backpack(BatchGrad()):
        sum_of_squares(net(images), torch.zeros(4, 4 * 81)).backward()
    found["BackPACK"] = error(net[0].weight.grad_batch, weights)
    assert error(net[0].weight.grad, weights.sum(0)) < 1e-4

    net = network(mode)
    outputs = net(images)[:, :3]
    rows = torch.stack(
        [
            torch.stack(
                [
                    torch.cat([g.flatten() for g in torch.autograd.grad(y, [*net.parameters()], retain_graph=True)])
                    for y in column
                ]
            )
            for column in outputs.T
        ]
    )  # [output, image, parameter]
    backend = TorchHooksJacobianBackend(net, lambda x: net(x)[:, :3])
    found["NNGeometry"] = error(
        backend.get_jacobian(DataLoader(TensorDataset(images), batch_size=4)), rows.detach()
    )

    print(f"{mode}:", ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    same &= found.pop("Opacus by functorch") < 1e-4
    same &= all((value < 1e-4) if mode == "zeros" else (value > 0.1) for value in found.values())
sys.exit(0 if same else 1)
END
