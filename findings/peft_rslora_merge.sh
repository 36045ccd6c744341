#!/usr/bin/env bash
# peft 0.21.2: adapters of rank-stabilised LoRA that are merged come out longer by the root of the merged rank.
#
# add_weighted_adapter makes one adapter of several, cat and svd exactly: the weighted sum of their updates. With
# use_rslora=True an update is scaled by alpha / sqrt(r). The merged adapter keeps that flag and gets alpha = r, as for
# the scale alpha / r = 1, so that its scale is sqrt(r). Seen for two adapters of rank 4, alpha 8, weights .7 and
# .3, length of the merged update, over that of the same updates stored with use_rslora=False and alpha 16:
#     cat, svd with svd_rank=8                      2.83
#     linear, ties, dare_linear, magnitude_prune    2
#     svd with svd_rank=16                          4
#     one adapter, weight 1, linear                 2     (it should be the adapter itself)
# The directions are the same. For rank 16 the merged update of one adapter is 4 times itself, for rank 64 8 times. No
# call warns of it. The repository has a later change for it, the release has not.
#
# Why it matters: task arithmetic adds the updates of several tasks, and its weights are tuned or compared. Here they
# are off by a factor that depends on the rank and the way of merging: one way looks better than another for its rank
# alone, and a merged model that is spoilt is blamed on tasks that conflict.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5 peft==0.21.2 transformers==5.24.0 || exit 2
cd "$folder"
HF_HUB_OFFLINE=1 HOME="$folder" "$folder/venv/bin/python" - <<'END'
import sys
import warnings
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

print(*(f"{x} {version(x)}" for x in ("torch", "peft", "transformers")))
torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(96, 96, bias=False)

    def forward(self, x):
        return self.linear(x)


def merged(stabilised, names, weights, rank, **options):
    """The adapters' own updates, and the update of the adapter that is made of them."""
    alpha = 8 if stabilised else 8 * rank**0.5
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["linear"], use_rslora=stabilised)
    model = get_peft_model(Net(), config, adapter_name="a")
    model.add_adapter("b", config)
    layer = model.base_model.model.linear
    torch.manual_seed(0)
    for name in "ab":
        nn.init.normal_(layer.lora_A[name].weight)
        nn.init.normal_(layer.lora_B[name].weight)
    torch.manual_seed(1)
    model.add_weighted_adapter(names, weights, "merged", **options)
    return [layer.get_delta_weight(x).detach() for x in ("a", "b", "merged")]


cases = {
    "cat": (2, 4, {"combination_type": "cat"}, 8**0.5),
    "svd, rank 8": (2, 4, {"combination_type": "svd", "svd_rank": 8}, 8**0.5),
    "svd, rank 16": (2, 4, {"combination_type": "svd", "svd_rank": 16}, 4),
    "linear": (2, 4, {"combination_type": "linear"}, 2),
    "ties": (2, 4, {"combination_type": "ties", "density": 0.5}, 2),
    "dare_linear": (2, 4, {"combination_type": "dare_linear", "density": 0.5}, 2),
    "magnitude_prune": (2, 4, {"combination_type": "magnitude_prune", "density": 0.5}, 2),
    "one of rank 4": (1, 4, {"combination_type": "linear"}, 2),
    "one of rank 16": (1, 16, {"combination_type": "linear"}, 4),
    "one of rank 64": (1, 64, {"combination_type": "linear"}, 8),
}
seen = {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for name, (count, rank, options, factor) in cases.items():
        names, weights = ("ab", [0.7, 0.3]) if count == 2 else ("a", [1.0])
        a, b, found = merged(True, list(names), weights, rank, **options)
        a2, b2, right = merged(False, list(names), weights, rank, **options)
        ratio = (found.norm() / right.norm()).item()
        apart = (found / found.norm() - right / right.norm()).norm().item()
        print(f"{name}: {ratio:.4f} times as long, directions apart by {apart:.1e}")
        seen[name] = torch.allclose(a, a2, rtol=1e-3, atol=1e-3) and torch.allclose(b, b2, rtol=1e-3, atol=1e-3)
        seen[name] &= abs(ratio - factor) < 0.01 and apart < 1e-3
        if name in ("cat", "svd, rank 8") or count == 1:
            exact = 0.7 * a + 0.3 * b if count == 2 else a
            seen[name, "exact without"] = ((right - exact).norm() / exact.norm()).item() < 1e-3
told = [str(x.message) for x in told]
print("warnings", *sorted(set(told)), sep="\n    ")
seen["no warning"] = not any("rslora" in x.lower() or "scal" in x for x in told)
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
