#!/usr/bin/env bash
# deepchem 2.8.0: a missing label of a multitask data set is a zero in the scores and in the normalisation.
#
# DeepChem's loaders write 0 for a missing label, with weight 0. Its tutorial of fingerprints says that a weight of
# 0 makes a label ignored in fitting and evaluation, without effect on metrics, and goes on with
# model.evaluate(test, [metric], transformers). That call, like Metric.compute_metric, reads no weights unless
# use_sample_weights=True. Seen for one task of two, 4,000 rows of a CSV, a share of whose labels is an empty field:
#     share missing                                  0      .25    .5     .84    (MUV: .84)
#     ROC-AUC of a model, labels that exist          .875   .875   .878   .883
#     the same by model.evaluate                     .875   .801   .746   .713
#     ROC-AUC of a worse one, labels that exist      .785   .789   .793   .810
#     the same by model.evaluate                     .785   .868   .922   .972   (it scores untested molecules low)
# A regression task whose labels are 5 +- 1 and predicted to .3:
#     mean absolute error by model.evaluate          .24    1.44   2.62   4.23
#     R2 by model.evaluate                           .91    -.23   -.94   -5.15
#     mean of the labels that exist, normalised      0      .54    .96    2.24   (by NormalizationTransformer)
#     their deviation                                1      .43    .38    .52
# No call warns of it. With use_sample_weights=True the scores are right where weights are 0 or 1, but
# pearson_r2_score, DeepChem's usual score of regression, raises an error then.
#
# Why it matters: these are the scores of Tox21, ToxCast, MUV and PCBA, where tasks differ in what is missing. A
# mean over tasks then ranks methods by how they treat untested molecules, and tasks that were to be of one scale
# have losses that differ by the square of the deviations above.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q deepchem==2.8.0 numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1 pandas==3.1.1 \
    joblib==1.6.0 rdkit==2026.9.1 || exit 2
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>errors <<'END' || { status=$?; tail -3 errors; exit $status; }
import logging
import sys

logging.disable(logging.WARNING)
import deepchem as dc
import numpy as np
import pandas as pd
import sklearn
from sklearn.metrics import roc_auc_score

print("deepchem", dc.__version__, "numpy", np.__version__, "scikit-learn", sklearn.__version__)


class Fixed(dc.models.Model):
    """Predicts what it is given, in the order of the rows."""

    def __init__(self, answers, kind):
        super().__init__()
        self.answers, self.kind = answers, kind

    def predict(self, dataset, transformers=()):
        return self.answers

    def get_task_type(self):
        return self.kind


def evaluate(dataset, answers, kind, name, **options):
    metric = dc.metrics.Metric(getattr(dc.metrics, name))
    model = Fixed(answers, kind)
    _, scores = model.evaluate(dataset, [metric], [], per_task_metrics=True, **options)
    return scores[metric.name][1]


class Number(dc.feat.Featurizer):
    def _featurize(self, datapoint, **kwargs):
        return np.array([float(datapoint)])


def load(table):
    table.to_csv("labels.csv", index=False)
    loader = dc.data.CSVLoader(["a", "b"], feature_field="x", featurizer=Number())
    return loader.create_dataset("labels.csv")


N = 4000
rng = np.random.default_rng(0)
score, tested = rng.normal(size=N), rng.normal(size=N)
labels = (score + 0.8 * rng.normal(size=N) > 0).astype(float)
values = 5 + rng.normal(size=N)
rows = {}
for share in (0.0, 0.25, 0.5, 0.84):
    missing = np.argsort(tested) < share * N  # what was tested says nothing about the labels
    there = ~missing
    data = load(pd.DataFrame({"x": score, "a": labels, "b": np.where(missing, np.nan, labels)}))
    assert (data.w[:, 1] == there).all() and (data.y[missing, 1] == 0).all()
    row = []
    for noise, low in ((0.0, 0.0), (0.8, 3.0)):
        logit = score + noise * np.random.default_rng(1).normal(size=N) - low * missing
        positive = 1 / (1 + np.exp(-np.stack([logit, logit], 1)))
        answers = np.stack([1 - positive, positive], -1)
        right = roc_auc_score(labels[there], logit[there])
        weighted = evaluate(data, answers, "classification", "roc_auc_score", use_sample_weights=True)
        assert abs(weighted - right) < 1e-9
        row += [right, evaluate(data, answers, "classification", "roc_auc_score")]

    data = load(pd.DataFrame({"x": score, "a": values, "b": np.where(missing, np.nan, values)}))
    guess = values + 0.3 * np.random.default_rng(2).normal(size=N)
    answers = np.stack([guess, guess], 1)
    row += [evaluate(data, answers, "regression", n) for n in ("mean_absolute_error", "r2_score")]
    scaled = dc.trans.NormalizationTransformer(transform_y=True, dataset=data).transform(data).y[there, 1]
    row += [scaled.astype(float).mean(), scaled.astype(float).std()]
    rows[share] = row
    print(f"missing {share:.2f}: AUC {row[0]:.3f} evaluate {row[1]:.3f}, worse one AUC {row[2]:.3f} "
          f"evaluate {row[3]:.3f}, MAE {row[4]:.2f} R2 {row[5]:.2f}, normalised {row[6]:.2f} +- {row[7]:.2f}")
try:
    evaluate(data, answers, "regression", "pearson_r2_score", use_sample_weights=True)
    pearson = "no error"
except TypeError as error:
    pearson = f"TypeError: {error}"
print("pearson_r2_score with weights:", pearson)
none, half, most = rows[0.0], rows[0.5], rows[0.84]
seen = {
    "right without missing labels": abs(none[0] - none[1]) < 1e-9 and none[4] < 0.3 and abs(none[7] - 1) < 1e-6,
    "too low": half[0] - half[1] > 0.1 and most[0] - most[1] > 0.15,
    "the worse one is first": all(r[0] > r[2] + 0.05 and r[3] > r[1] + 0.05 for r in (half, most)),
    "regression": half[4] > 2 and most[4] > 4 and half[5] < -0.5,
    "normalisation": half[6] > 0.7 and half[7] < 0.5 and most[6] > 1.5,
    "pearson refuses weights": pearson != "no error",
}
for name, is_so in seen.items():
    print(f"{name}: {is_so}")
sys.exit(0 if all(seen.values()) else 1)
END
