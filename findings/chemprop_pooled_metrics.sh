#!/usr/bin/env bash
# chemprop 2.3.1: R² and the areas under curves of several tasks are those of all tasks' values in one list.
#
# A metric of a network with several targets flattens them. Its R² is then about one mean of all tasks, and its
# area under the ROC curve compares a molecule's value of one task with another's of another. Seen by
# Trainer.test() for 300 molecules and random targets, of which nothing can be learned:
#     two regression tasks, means 0 and 50             test/r2     .998     by task  -.01, .01
#     three classifications, 10, 50 and 90 % positive  test/roc    .78      by task  .47, .52, .34
#                                                      test/prc    .73      by task  .22, .59, .76
# `chemprop train` ends by printing the mean over tasks under these same names, test/r2 and test/roc. What it
# logs as val/roc on the way, and selects the epoch by with --tracking-metric roc, is the pooled number: on such
# labels val/roc was .90 and test/roc .54 in one run.
#
# Why it matters: tables of several tasks (Tox21, QM9, ADMET) report the mean over tasks. The pooled number
# is near its best for a network that knows each task's mean alone, so methods that balance tasks look the same
# by it, and a checkpoint is chosen by how well the tasks' base rates are told apart.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 chemprop==2.3.1 lightning==2.6.6 torchmetrics==1.9.0 \
  rdkit==2026.3.6 scikit-learn==1.9.1 pandas==3.1.1 scipy==1.17.1 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import itertools
import logging
import sys
import warnings

import chemprop
import numpy as np
import torch
from chemprop import data, models, nn
from lightning import pytorch as pl
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning|torch")
print("chemprop", chemprop.__version__, "torch", torch.__version__)
torch.set_num_threads(1)
parts = ["C", "CC", "CCC", "C(C)C", "CO", "CN", "C(=O)O", "c1ccccc1", "Cl", "F", "C#N", "COC"]
smiles = [f"C{c}C({a})C{b}" for a, b, c in itertools.product(parts, parts, ["C", "N", "O"])][:300]
draw = np.random.default_rng(0)
targets = {
    "regression": draw.normal([0.0, 50.0], 1.0, (300, 2)),
    "classification": (draw.random((300, 3)) < [0.1, 0.5, 0.9]).astype(float),
}


def tested(kind, y):
    """What Trainer.test() answers, beside the scores of each task by scikit-learn."""
    pl.seed_everything(0, verbose=False)
    points = [data.MoleculeDatapoint.from_smi(text, row) for text, row in zip(smiles, y, strict=True)]
    train, test = data.MoleculeDataset(points[:200]), data.MoleculeDataset(points[200:])
    if kind == "regression":
        undo = nn.UnscaleTransform.from_standard_scaler(train.normalize_targets())
        head = nn.RegressionFFN(n_tasks=y.shape[1], output_transform=undo)
        metrics = [nn.metrics.R2Score()]
    else:
        head = nn.BinaryClassificationFFN(n_tasks=y.shape[1])
        metrics = [nn.metrics.BinaryAUROC(), nn.metrics.BinaryAUPRC()]
    net = models.MPNN(nn.BondMessagePassing(), nn.MeanAggregation(), head, metrics=metrics)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=15, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(net, data.build_dataloader(train, num_workers=0))
    loader = data.build_dataloader(test, num_workers=0, shuffle=False)
    pooled = trainer.test(net, loader, verbose=False)[0]
    values = torch.cat(trainer.predict(net, loader)).numpy()
    scores = {"r2": r2_score} if kind == "regression" else {"roc": roc_auc_score, "prc": average_precision_score}
    alone = {
        name: [float(score(y[200:, i], values[:, i])) for i in range(y.shape[1])]
        for name, score in scores.items()
    }
    return pooled, alone


found = {}
for kind, y in targets.items():
    pooled, alone = tested(kind, y)
    for name, each in alone.items():
        found[name] = float(pooled[f"test/{name}"]), each
        print(f"{kind}: test/{name} {found[name][0]:.3f} by task", [f"{x:.3f}" for x in each])
seen = {
    "R² is perfect": found["r2"][0] > 0.99 and max(found["r2"][1]) < 0.1,
    "the ROC curve is good": found["roc"][0] > 0.7 and np.mean(found["roc"][1]) < 0.6,
    "and that of precision": found["prc"][0] > np.mean(found["prc"][1]) + 0.15,
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
