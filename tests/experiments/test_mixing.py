"""experiments/mixing: the domains, PiKE against a loop, the vmapped runs, resuming, the command."""

import json
import math

import pytest
import torch

import mtlfunc as mf
from common.problems.digits import digits
from experiments.mixing import __main__ as command
from experiments.mixing import data, report, study

SMALL = ["--quick", "--seeds", "2", "--steps", "2", "--methods", "uniform,align,PiKE"]


@pytest.mark.parametrize("problem", data.PROBLEMS)
def test_parts_share_no_image_and_domains_are_what_they_are_called(problem):
    source = digits()
    task = data.task(problem, source, torch.tensor(3))
    used = sum(len(part.labels) for part in (task.target, task.validation, task.test))
    assert used + data.TRAIN == len(source.labels)
    seen = {tuple(image.tolist()) for part in task[1:] for image in part.images}
    assert len(seen) == used
    if problem == "one helps":
        noisy, plain, turned, also = task.domains.images
        _, flipped, labels, anything = task.domains.labels
        assert torch.equal(plain, also)
        assert not {tuple(image.tolist()) for image in plain} & seen
        assert torch.equal(flipped, 9 - labels)
        whole = turned.unflatten(1, (8, 8)).rot90(-1, (1, 2)).flatten(1)
        assert torch.equal(whole, plain)
        # within five standard deviations
        right = (task.domains.labels[0] == labels).float().mean()
        assert abs(float(right) - (1 - 0.9 * data.WRONG)) < 5 * 0.5 / data.TRAIN**0.5
        assert abs(float((anything == labels).float().mean()) - 0.1) < 5 * 0.3 / data.TRAIN**0.5
        assert abs(float((noisy - plain).std()) - data.NOISE) < 0.01
    else:
        assert task.domains.images.shape == (data.COUNT, data.TRAIN // data.COUNT, 64)


def test_pike_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    rule, w = study.pike(torch.tensor(0.3), torch.tensor(0.2)), [0.25] * 4
    ones = torch.ones(8)
    state = rule.init(ones, mf.random.key(0))
    for _ in range(3):
        rows = torch.randn(8, 5, generator=generator)
        for k in range(4):
            one, other = rows[2 * k], rows[2 * k + 1]
            whole = float((one - other).square().sum()) / 2 / 2  # σ²/b, of both halves together
            w[k] *= math.exp(0.3 * float(one @ other) - 0.1 * whole)
        w = [x / sum(w) for x in w]
        geometry = mf.Geometry(ones, rows @ rows.mT, ones / 8, ones > 0, {})
        weights, state = rule.update(geometry, state)
        torch.testing.assert_close(weights, torch.tensor(w).repeat_interleave(2) / 2)


@pytest.mark.parametrize("name", ["oracle", "target alone", "align", "PiKE"])
def test_vmapped_runs_are_those_of_one_seed_and_setting(name):
    source, method = digits(), study.methods(quick=True)[name]
    settings = [(0.01, method.settings[0]), (0.003, method.settings[-1])]
    args = "one helps", method

    def tick(_: int) -> None: ...

    both = study.runs(*args, (0, 1), settings, source, 3, tick)
    one = study.runs(*args, (1,), settings[1:], source, 3, tick)
    for many, alone in zip(both, one, strict=True):
        torch.testing.assert_close(many[1, 1], alone[0, 0], rtol=1e-4, atol=1e-5)


def test_command_writes_a_table_a_figure_and_all_numbers(tmp_path):
    assert command.main([*SMALL, "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert {x["method"] for x in numbers["outcomes"]} == {"uniform", "align", "PiKE"}
    assert all(len(x["test"]) == 2 for x in numbers["outcomes"])
    assert (tmp_path / "table.md").is_file()
    assert (tmp_path / "mixing.png").stat().st_size > 10_000


def test_a_rival_that_is_better_is_said_to_be():
    better, worse = [[0.1], [0.12]], [[0.5], [0.55]]
    found = {
        ("one helps", "0-1", name): study.Outcome(test, [[[0.25] * 4]] * 2)
        for name, test in {"uniform": better, "align": worse}.items()
    }
    assert "worse: uniform" in report.words(found)
