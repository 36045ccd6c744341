#!/usr/bin/env bash
# deepchem 2.8.0: a batch of one molecule is predicted as a square of numbers, a row in the units of each task.
#
# model.predict(data, [transformer]) undoes the normalisation of labels batch by batch. Where a batch holds one
# molecule, NormalizationTransformer and MinMaxTransformer take that axis for the one of a single task, and
# multiply every task's output by every task's scale. Seen for MultitaskRegressor, three tasks with labels around
# 10, -5 and 100, batches of 100:
#     molecules                     1            2            100            101            102
#     shape, without a transformer  (1, 3, 1)    (2, 3, 1)    (100, 3, 1)    (101, 3, 1)    (102, 3, 1)
#     shape, with the transformer   (3, 3, 1)    (2, 3, 1)    (100, 3, 1)    (103, 3, 1)    (102, 3, 1)
#     its last row, about           100 100 100  10 -5 100    10 -5 100      100 100 100    10 -5 100
#     row of the odd molecule       10 10 10                                 10 10 10
# The row should be about 10, -5, 100. No call warns of it; evaluate() raises
# an error about shapes for 101 molecules.
#
# Why it matters: to predict one molecule at a time, and read the first row, gives each task a number of the first
# task's scale. Of a data set whose size is one more than a multiple of the batch (1 of 100 sizes), the table
# of predictions has two rows too many at its end, and what is joined behind it moves.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q deepchem==2.8.0 torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1 \
    pandas==3.1.1 rdkit==2026.9.1 || exit 2
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>errors <<'END' || { status=$?; tail -3 errors; exit $status; }
import logging
import sys

logging.disable(logging.WARNING)
import deepchem as dc
import numpy as np
import torch

print("deepchem", dc.__version__, "torch", torch.__version__, "numpy", np.__version__)
rng = np.random.default_rng(0)
torch.manual_seed(0)
LEVELS = np.array([10.0, -5.0, 100.0])
X = rng.normal(size=(102, 4))
data = dc.data.NumpyDataset(X, X[:, :3] + LEVELS)
model = dc.models.MultitaskRegressor(3, 4, layer_sizes=[8], batch_size=100)
seen = {}
for way in (dc.trans.NormalizationTransformer, dc.trans.MinMaxTransformer):
    transformer = way(transform_y=True, dataset=data)
    model.fit(transformer.transform(data), nb_epoch=30)
    for n in (1, 2, 100, 101, 102):
        few = dc.data.NumpyDataset(X[:n])
        plain, whole = model.predict(few), model.predict(few, [transformer])
        odd = whole[n // 100 * 100 if n % 100 == 1 else 0, :, 0]
        print(f"{way.__name__}, {n} molecules: {plain.shape} {whole.shape}, last row {whole[-1, :, 0].round(1)}, "
              f"row of the {'odd' if n % 100 == 1 else 'first'} molecule {odd.round(1)}")
        wrong = n % 100 == 1
        seen[way.__name__, n] = (
            plain.shape == (n, 3, 1)
            and whole.shape == (n + 2 * wrong, 3, 1)
            and np.abs(odd - (LEVELS[0] if wrong else LEVELS)).max() < 5
        )
for name, is_so in seen.items():
    print(*name, is_so)
sys.exit(0 if all(seen.values()) else 1)
END
