"""What the texts say of each other: exact rest points, what a lane of the study trains."""

import pytest
import torch

import mtlfunc as mf
from paper_repro.cross_paper import adam_metric, auxiliaries
from tests.support.oracles import near, rows_by_name


def test_a_lane_is_the_run_it_stands_for(monkeypatch):
    """One seed of the study against the same run put together by itself."""
    monkeypatch.setattr(auxiliaries, "RATES", (1e-2,))
    data, seed, steps = auxiliaries.split(2), 1, 4
    _, runs = auxiliaries.train(mf.cagrad(c=0.4), torch.tensor([1.0, 64.0]), data, steps, "test")
    every = (auxiliaries.batch_of(data, i) for i in range(steps))
    batches = [auxiliaries.Batch(*(leaf[seed] for leaf in batch)) for batch in every]
    scales = torch.tensor([1.0, 1.0, 64.0])

    def scaled(params: mf.types.Params, batch: auxiliaries.Batch) -> torch.Tensor:
        return scales * torch.stack(auxiliaries.losses(params, batch))

    step = mf.descend(scaled, mf.cagrad(c=0.4), mf.jacobian("trunk.*"), mf.adam(1e-2))
    state = step.init(auxiliaries.network(mf.random.fold_in(mf.random.key(seed), 2)), batches[0])
    for i, batch in enumerate(batches):
        rows = mf.task_gradients(scaled, state.params, batch)[1]
        flat = torch.cat([row.flatten(1) for name, row in rows.items() if "trunk." in name], 1)
        state, info = step.update(state, batch)
        flat, weights = flat.double(), info.weights.double()
        d = weights @ flat
        near(runs.cosines[i, seed], flat @ d / flat.norm(dim=1) / d.norm(), 1e-3, 1e-4)
        near(runs.weights[i, seed], weights / weights.sum(), 1e-3, 1e-4)
    images, labels = (part[seed] for part in data.test)
    expected = float(auxiliaries.accuracy(state.params, images, labels))
    assert float(runs.accuracy[-1, seed]) == pytest.approx(expected, abs=0.006)


def test_steps_in_adams_metric_equal_a_literal_loop():
    """One seed of the study against rows of single passes and Adam written out."""
    steps, seed = 4, 1
    rises, _ = adam_metric.train(mf.upgrad(), 0.9, metric=True, seeds=2, steps=steps)
    params, data = adam_metric.problem(mf.random.key(seed))
    first = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    second, size = first, adam_metric.BATCH
    for t in range(1, steps + 1):
        key = mf.random.fold_in(mf.random.fold_in(mf.random.key(seed), 4), t - 1)
        order = mf.random.permutation(key, adam_metric.SAMPLES)[:size]
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        rows = rows_by_name(adam_metric.losses(leaves, (data[0][order], data[1][order])), leaves)
        # the metric of the state before the step: 1 before the first one, as Adam has none then
        scale = {name: adam_metric.RATE * torch.ones_like(v) for name, v in second.items()}
        for name, v in second.items() if t > 1 else ():
            root = (v / (1 - 0.999 ** (t - 1))).sqrt() + 1e-8
            scale[name] = adam_metric.RATE * 0.1 / (1 - 0.9**t) / root
        flat = torch.cat([(scale[n].sqrt() * rows[n]).flatten(1) for n in rows], 1)
        w = mf.weights(mf.upgrad(), flat @ flat.T)
        grads = {name: torch.tensordot(w, row, 1) for name, row in rows.items()}
        first = {n: 0.9 * first[n] + 0.1 * grads[n] for n in grads}
        second = {n: 0.999 * second[n] + 0.001 * grads[n].square() for n in grads}
        root = {n: (second[n] / (1 - 0.999**t)).sqrt() + 1e-8 for n in grads}
        moved = {n: -adam_metric.RATE * first[n] / (1 - 0.9**t) / root[n] for n in grads}
        change = torch.stack([(rows[n] * moved[n]).flatten(1).sum(1) for n in rows]).sum(0)
        rise = change.max().clamp_min(0) / change.abs().max()
        # a direction of UPGrad is scaled by nothing, so float64 agrees to its solver's gap
        assert float(rises[t - 1, seed]) == pytest.approx(float(rise), abs=1e-6)
        params = {n: params[n] + moved[n] for n in params}
