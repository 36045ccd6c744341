"""What the texts say of each other: exact rest points, what a lane of the study trains."""

from fractions import Fraction
from typing import Any

import pytest
import torch

import mtlfunc as mf
from paper_repro.cross_paper import digits, rest_points
from paper_repro.report.findings import Finding, Settings
from tests.support.reproductions import by_name, check_complete, check_ledger, findings_of

TINY = Settings(seeds=2, shrink=0.02)


def short(patch: pytest.MonkeyPatch) -> None:
    """Fewer and longer steps to the rest points, over the same way."""
    for name, value in {"HALVINGS": 6, "EACH": 10, "FIRST": 1.2}.items():
        patch.setattr(rest_points, name, value)


@pytest.fixture(scope="module")
def every() -> dict[str, list[Finding]]:
    with pytest.MonkeyPatch.context() as patch:
        short(patch)
        patch.setattr(digits, "RATES", (1e-2,))
        return findings_of("cross_paper", TINY)


@pytest.fixture(scope="module")
def found(every) -> dict[str, Any]:
    return by_name(every)


def test_ledger_and_findings_agree(every):
    check_ledger(every)
    assert set(by_name(every)) == {"X-03", "CA-37", "auxiliaries", "c"}


def test_findings_are_complete(every):
    check_complete(every)


def test_rest_point_holds_at_any_budget(found):
    claim = found["X-03"]
    assert claim.verdict == "holds"
    assert claim.measured["T = 2: share of draws in which a step on W raises a task"] == 0
    assert claim.measured["rate of task 1, three tasks"] == -6


def test_fractions_of_the_examples():
    assert rest_points.exact_rest(rest_points.PAIR, 2) == (
        [Fraction(13, 18), Fraction(5, 18)],
        [Fraction(245, 9), Fraction(637, 9)],
    )
    assert rest_points.exact_rest(rest_points.TRIPLE, 2)[0] == [
        Fraction(2, 5),
        Fraction(2, 5),
        Fraction(1, 5),
    ]
    assert (
        min(rest_points.exact_rest(rest_points.OUTSIDE, 1)[1]) < 0
    )  # on both coordinates, though not on W


def test_a_rule_that_rests_elsewhere_is_seen(monkeypatch):
    right = mf.gradnorm
    short(monkeypatch)
    monkeypatch.setattr(
        mf, "gradnorm", lambda *args, **options: right(*args, **(options | {"floor": 0.5}))
    )
    assert rest_points.unit_gradients(TINY).verdict == "does not hold"
    monkeypatch.setattr(mf, "gradnorm", right)
    assert rest_points.unit_gradients(TINY).verdict == "holds"


def test_images_are_turned_each_by_its_own_number():
    images = torch.arange(2 * 4 * 64.0).reshape(2, 4, 64)
    turned = digits.turn(images, torch.tensor([[0, 1, 2, 3], [3, 3, 0, 2]]))
    assert torch.equal(turned[0, 0], images[0, 0])
    assert torch.equal(turned[1, 1].reshape(8, 8), torch.rot90(images[1, 1].reshape(8, 8), 3))


def test_a_lane_is_the_run_it_stands_for(monkeypatch):
    """One seed of the study against the same run put together by itself."""
    monkeypatch.setattr(digits, "RATES", (1e-2,))
    data, seed, steps = digits.split(TINY), 1, 4
    lanes = digits.Lanes(torch.tensor([1.0, 64.0]), torch.tensor([0.8, 0.4]))
    _, runs = digits.train(lambda c: mf.cagrad(c=c), lanes, data, steps, TINY, "test")
    batches = [
        digits.Batch(*(leaf[seed] for leaf in digits.batch_of(data, i))) for i in range(steps)
    ]
    scales = torch.tensor([1.0, 1.0, 64.0])

    def scaled(params: mf.types.Params, batch: digits.Batch) -> torch.Tensor:
        return scales * torch.stack(digits.losses(params, batch))

    step = mf.descend(
        scaled,
        mf.cagrad(c=0.4),
        mf.jacobian("trunk.*"),
        mf.adam(1e-2),
    )
    state = step.init(digits.network(mf.random.fold_in(mf.random.key(seed), 2)), batches[0])
    for i, batch in enumerate(batches):
        rows = mf.task_gradients(scaled, state.params, batch)[1]
        flat = torch.cat(
            [row.flatten(1) for name, row in rows.items() if name.startswith("trunk.")], 1
        ).double()
        state, info = step.update(state, batch)
        d = info.weights.double() @ flat
        torch.testing.assert_close(
            runs.cosines[i, seed], flat @ d / flat.norm(dim=1) / d.norm(), rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(
            runs.weights[i, seed],
            (info.weights / info.weights.sum()).double(),
            rtol=1e-3,
            atol=1e-4,
        )
    images, labels = (part[seed] for part in data.test)
    assert float(runs.accuracy[seed]) == pytest.approx(
        float(digits.accuracy(state.params, images, labels)), abs=0.006
    )
