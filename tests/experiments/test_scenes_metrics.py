"""experiments/scenes: metrics and the gains over single tasks."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from experiments.scenes import metrics, published, render, train


@pytest.fixture
def guesses() -> tuple[metrics.Outputs, render.Views]:
    """Random predictions for two images with unknown pixels; of 6 classes one is in neither."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, 7, generator=generator)
    logits[:, 3] = -50
    label = torch.randint(-1, 6, (2, 5, 7), generator=generator)
    label[label == 3] = -1
    depth = torch.rand(2, 1, 5, 7, generator=generator) * 4
    depth[depth < 0.8] = 0
    normal = metrics.unit(torch.randn(2, 3, 5, 7, generator=generator))
    normal[:, :, 2] = 0
    outputs = {
        metrics.SEGMENT: logits,
        metrics.DEPTH: torch.rand(2, 1, 5, 7, generator=generator) * 4,
        metrics.NORMAL: torch.randn(2, 3, 5, 7, generator=generator) + 2 * normal,
    }
    return outputs, render.Views(torch.rand(2, 3, 5, 7, generator=generator), label, depth, normal)


def test_segmentation_scores_are_scikit_learns(guesses):
    outputs, views = guesses
    predicted, known = outputs[metrics.SEGMENT].argmax(1), views.label >= 0
    truth, guess = views.label[known].numpy(), predicted[known].numpy()
    counts = metrics.confusion(predicted, views.label, 6)
    assert np.array_equal(counts.numpy(), confusion_matrix(truth, guess, labels=range(6)))
    scores = metrics.segmentation_scores(counts)
    present = sorted(set(truth) | set(guess))
    assert len(present) == 5
    expected = jaccard_score(truth, guess, labels=present, average="macro")
    assert scores["mIoU"] == pytest.approx(expected)
    assert scores["pixel accuracy"] == pytest.approx(accuracy_score(truth, guess))


def test_losses_and_errors_are_their_literal_loops(guesses):
    outputs, views = guesses
    entropy, distance, cosine = [], [], []
    relative, angles = [], []
    for i, row, column in np.ndindex(2, 5, 7):
        here = (i, slice(None), row, column)
        if (label := int(views.label[i, row, column])) >= 0:
            scores = outputs[metrics.SEGMENT][here].double()
            entropy.append(math.log(float(scores.exp().sum())) - float(scores[label]))
        if (true := float(views.depth[here])) != 0:
            distance.append(abs(float(outputs[metrics.DEPTH][here]) - true))
            relative.append(distance[-1] / true)
        wanted = views.normal[here].double().numpy()
        if wanted.any():
            given = outputs[metrics.NORMAL][here].double().numpy()
            cosine.append(float(given @ wanted) / float(np.linalg.norm(given)))
            angles.append(math.degrees(math.acos(max(-1, min(1, cosine[-1])))))
    found = metrics.losses(outputs, views)
    assert list(found) == list(metrics.TASKS)
    assert found[metrics.SEGMENT].item() == pytest.approx(np.mean(entropy), rel=1e-5)
    assert found[metrics.DEPTH].item() == pytest.approx(np.mean(distance), rel=1e-5)
    assert found[metrics.NORMAL].item() == pytest.approx(1 - np.mean(cosine), rel=1e-5)
    scores = metrics.Scores(6)
    scores.add(outputs, views)
    result = scores.result()
    assert list(result) == list(metrics.METRICS)
    expected = {
        "absolute error": np.mean(distance),
        "relative error": np.mean(relative),
        "mean angle": np.mean(angles),
        "median angle": np.median(angles),
        "within 11.25°": np.mean(np.array(angles) < 11.25),
        "within 22.5°": np.mean(np.array(angles) < 22.5),
        "within 30°": np.mean(np.array(angles) < 30),
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5), name


def test_batches_count_alike_and_confusion_adds_up(guesses):
    outputs, views = guesses
    scores, each = metrics.Scores(6), []
    for i in range(2):
        one = {task: value[i : i + 1] for task, value in outputs.items()}
        part = render.Views(*(leaf[i : i + 1] for leaf in views))
        scores.add(one, part)
        each.append(metrics.depth_scores(one[metrics.DEPTH], part.depth)["absolute error"])
    whole = metrics.confusion(outputs[metrics.SEGMENT].argmax(1), views.label, 6)
    assert torch.equal(scores.counts, whole)
    assert scores.result()["absolute error"] == pytest.approx(np.mean(each))


# Rows of table 3 of Liu et al. 2021 and the Δm that stands beside them.
ROWS = {
    "MGDA": ((0.3047, 0.5990, 0.6070, 0.2555, 24.88, 19.45, 0.2918, 0.5688, 0.6936), 1.38),
    "PCGrad": ((0.3806, 0.6464, 0.5550, 0.2325, 27.41, 22.80, 0.2386, 0.4983, 0.6314), 3.97),
    "GradDrop": ((0.3939, 0.6512, 0.5455, 0.2279, 27.48, 22.96, 0.2338, 0.4944, 0.6287), 3.58),
    "CAGrad": ((0.3979, 0.6549, 0.5486, 0.2250, 26.31, 21.58, 0.2561, 0.5236, 0.6558), 0.20),
}


@pytest.mark.parametrize("name", ROWS)
def test_flat_delta_is_the_published_one(name):
    values, published_delta = ROWS[name]
    base = published.PUBLISHED["NYUv2"].base
    assert metrics.flat(dict(zip(base, values, strict=True)), base) == pytest.approx(
        published_delta, abs=0.015
    )


def test_delta_by_task_of_a_published_row_is_that_by_hand():
    """LibMTL's mean over a task's metrics, then over tasks, of CAGrad's row and of MGDA's."""
    base = published.PUBLISHED["NYUv2"].base
    by_hand = {
        # gains on the base over the base, by task: two metrics, two, five
        "CAGrad": (
            (1.49 / 38.30 + 1.73 / 63.76) / 2
            + (0.1268 / 0.6754 + 0.0530 / 0.2780) / 2
            - (1.30 / 25.01 + 2.37 / 19.21 + 453 / 3014 + 484 / 5720 + 357 / 6915) / 5
        )
        / 3,
        "MGDA": (
            (-7.83 / 38.30 - 3.86 / 63.76) / 2
            + (0.0684 / 0.6754 + 0.0225 / 0.2780) / 2
            + (0.13 / 25.01 - 0.24 / 19.21 - 96 / 3014 - 32 / 5720 + 21 / 6915) / 5
        )
        / 3,
    }
    assert by_hand["CAGrad"] == pytest.approx(0.0433, abs=5e-5)
    for name, expected in by_hand.items():
        values = dict(zip(base, ROWS[name][0], strict=True))
        assert metrics.by_task(values, base) == pytest.approx(100 * expected)
    cagrad = dict(zip(base, ROWS["CAGrad"][0], strict=True))
    assert metrics.by_task(cagrad, base) > 0 < metrics.flat(cagrad, base)  # better, and worse


def test_pixels_of_all_batches_count_alike_where_libmtl_averages(guesses):
    """Two images with different numbers of known pixels: one loop over all of them."""
    outputs, views = guesses
    depth = views.depth.clone()
    depth[0, :, :3] = 0
    views = views._replace(depth=depth)
    scores, errors, angles = metrics.Scores(6), [], []
    for i in range(2):
        one = {task: value[i : i + 1] for task, value in outputs.items()}
        scores.add(one, render.Views(*(leaf[i : i + 1] for leaf in views)))
        for row, column in np.ndindex(5, 7):
            here = (i, slice(None), row, column)
            if (true := float(views.depth[here])) != 0:
                apart = abs(float(outputs[metrics.DEPTH][here]) - true)
                errors.append((apart, apart / true))
            wanted = views.normal[here].double().numpy()
            if wanted.any():
                given = outputs[metrics.NORMAL][here].double().numpy()
                angles.append(math.degrees(math.acos(given @ wanted / np.linalg.norm(given))))
    found, apart = scores.pooled(), scores.result()
    assert list(found) == list(apart) == list(metrics.METRICS)
    assert found["mIoU"] == apart["mIoU"]
    absolute, relative = np.mean(errors, 0)
    expected = {
        "absolute error": absolute,
        "relative error": relative,
        "mean angle": np.mean(angles),
        "median angle": np.median(angles),
        "within 22.5°": np.mean(np.array(angles) < 22.5),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert found["absolute error"] != pytest.approx(apart["absolute error"], rel=1e-3)
    assert found["median angle"] != pytest.approx(apart["median angle"], rel=1e-3)


def test_delta_by_task_is_its_literal_formula():
    base = dict(zip(metrics.METRICS, (0.4, 0.5, 1.0, 0.2, 20.0, 10.0, 0.3, 0.5, 0.6), strict=True))
    values = base | {"mIoU": 0.5, "absolute error": 1.5, "mean angle": 15.0}
    # (25 + 0)/2 of segmentation, (-50 + 0)/2 of depth, (25 + 0 + …)/5 of normals
    assert metrics.by_task(values, base) == pytest.approx((12.5 - 25 + 5) / 3)
    assert metrics.flat(values, base) == pytest.approx((-25 + 50 - 25) / 9)


def test_score_is_delta_to_first_order():
    base = dict(zip(metrics.METRICS, (0.4, 0.5, 1.0, 0.2, 20.0, 10.0, 0.3, 0.5, 0.6), strict=True))
    other = {name: value * (1 + 1e-4 * i) for i, (name, value) in enumerate(base.items())}
    gain = train.score(other) - train.score(base)
    assert 100 * gain == pytest.approx(-metrics.flat(other, base), rel=1e-3)
