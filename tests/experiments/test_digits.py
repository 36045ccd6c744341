"""experiments/digits: the data, the vmapped runs, the report and the command line."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from scipy import stats
from torch.func import vmap

import mtlfunc as mf
from experiments.digits import __main__ as command
from experiments.digits import data, report, study


@pytest.fixture(scope="module")
def source() -> data.Digits:
    return data.digits(dtype=torch.float64)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits")
    assert (
        command.main(["--rules", "pcgrad,mean", "--seeds", "2", "--epochs", "1", "--out", str(out)])
        == 0
    )
    return out


def numbers(node: object) -> list[float]:
    if isinstance(node, dict):
        return [x for value in node.values() for x in numbers(value)]
    if isinstance(node, list):
        return [x for value in node for x in numbers(value)]
    return [float(node)] if isinstance(node, int | float) else []


def test_overlay_is_the_larger_pixel_of_two_shifted_images():
    left, right = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 1.0], [0.0, 6.0]])
    expected = torch.tensor([[1.0, 2.0, 0.0], [3.0, 5.0, 1.0], [0.0, 0.0, 6.0]])
    assert torch.equal(data.overlay(left, right, offset=1), expected)


def test_splits_share_no_source_image(source):
    parts = vmap(lambda key: data.splits(source, key))(torch.arange(3))
    for seed in range(3):
        used = [set(part.sources[seed].flatten().tolist()) for part in parts]
        # disjoint, and every image is in one of them
        assert sum(map(len, used)) == len(set().union(*used)) == len(source.labels)
    assert not torch.equal(parts.train.sources[0], parts.train.sources[1])


def test_pairs_are_made_of_their_sources(source):
    for part in data.splits(source, torch.tensor(5)):
        left, right = part.sources.unbind(-1)
        assert torch.equal(part.labels, source.labels[part.sources])
        assert torch.equal(
            part.canvases.reshape(-1, 10, 10),
            data.overlay(source.images[left], source.images[right]),
        )
        assert set(left.bincount(minlength=len(source.labels)).tolist()) == {0, data.PARTNERS}
        assert set(right.tolist()) <= set(left.tolist())
        # A right digit is drawn with replacement: the number of distinct ones is that of uniform
        # draws, within five standard deviations.
        members, draws = len(left) // data.PARTNERS, len(right)
        missing = members * (1 - 1 / members) ** draws
        assert abs(members - len(right.unique()) - missing) < 5 * math.sqrt(missing)


@pytest.mark.parametrize("name", study.methods())
def test_run_alone_equals_run_in_the_study(source, name):
    seeds, rates = torch.arange(2), torch.tensor([4e-3, 1.6e-2], dtype=torch.float64)
    parts = vmap(lambda key: data.splits(source, key))(seeds)
    training, validation = (
        data.Pairs(*(leaf[:, : 2 * study.BATCH] for leaf in part))
        for part in (parts.train, parts.validation)
    )
    params = {
        leaf: value.double() for leaf, value in mf.stack([study.Net(0), study.Net(1)]).items()
    }

    def run(params, seed, lr, training, validation):
        return study.train(
            params, seed, lr, training, validation, method=study.methods()[name], epochs=2
        )

    together = vmap(vmap(run, (None, None, 0, None, None)), (0, 0, None, 0, 0))(
        params, seeds, rates, training, validation
    )
    alone = run(
        {leaf: value[1] for leaf, value in params.items()},
        seeds[1],
        rates[0],
        data.Pairs(*(leaf[1] for leaf in training)),
        data.Pairs(*(leaf[1] for leaf in validation)),
    )
    for leaf, value in alone.params.items():
        torch.testing.assert_close(together.params[leaf][1, 0], value, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(value, params[leaf][1], rtol=1e-3)
    assert torch.equal(together.conflict[1, 0], alone.conflict)
    assert torch.equal(together.validation[1, 0], alone.validation)


def test_one_task_alone_leaves_the_other_head_untrained(source):
    parts = data.splits(source, torch.tensor(0))
    params = {leaf: value.double() for leaf, value in mf.parameters(study.Net(0)).items()}
    training = data.Pairs(*(leaf[: study.BATCH] for leaf in parts.train))
    run = study.train(
        params,
        torch.tensor(0),
        torch.tensor(1e-2, dtype=torch.float64),
        training,
        training,
        method=study.baselines()["left alone"],
        epochs=1,
    )
    moved = {leaf for leaf in params if not torch.equal(run.params[leaf], params[leaf])}
    assert moved == {leaf for leaf in params if not leaf.startswith("right.")}


def test_networks_do_not_touch_the_global_generator():
    before = torch.get_rng_state()
    first, again, other = study.Net(3), study.Net(3), study.Net(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.left.weight, again.left.weight)
    assert not torch.equal(first.left.weight, other.left.weight)


def test_command_writes_finite_results(finished):
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert list(results["methods"]) == ["left alone", "right alone", "mean", "pcgrad"]
    assert all(math.isfinite(x) for x in numbers(results))
    for method in results["methods"].values():
        # above chance after 33 steps
        assert all(0.1 < x <= 1 for values in method["test"].values() for x in values)
        assert method["best"] == max(range(len(method["grid"])), key=method["grid"].__getitem__)
        assert method["summary"]["at_edge"] == (method["best"] in (0, len(method["rates"]) - 1))
    shown = (finished / "table.md").read_text(encoding="utf-8")
    for method in results["methods"]:
        assert f"| {method}" in shown
    assert "nan" not in shown
    image = plt.imread(finished / "digits.png")
    assert image.std() > 0
    assert sorted(path.name for path in finished.iterdir()) == [
        "cells",
        "digits.png",
        "results.json",
        "table.md",
    ]


def test_delta_m_is_paired_with_the_baselines_of_the_same_seed(finished):
    methods = json.loads((finished / "results.json").read_text(encoding="utf-8"))["methods"]
    alone = {task: methods[f"{task} alone"]["test"][task] for task in study.TASKS}
    deltas = {}
    for name in ("mean", "pcgrad"):
        test = methods[name]["test"]
        deltas[name] = [
            50
            * sum(
                (alone[task][seed] - test[task][seed]) / alone[task][seed] for task in study.TASKS
            )
            for seed in range(2)
        ]
        assert methods[name]["summary"]["delta_m"]["mean"] == pytest.approx(sum(deltas[name]) / 2)
    difference = [a - b for a, b in zip(deltas["pcgrad"], deltas["mean"], strict=True)]
    assert methods["pcgrad"]["summary"]["against_mean"]["mean"] == pytest.approx(
        sum(difference) / 2, abs=1e-9
    )
    assert methods["mean"]["summary"]["against_mean"] is None


def test_estimate_is_student_s_interval():
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    expected = stats.t.interval(
        0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values)
    )
    found = report.estimate(values)
    assert (found.low, found.high) == pytest.approx(expected)


def test_verdicts_follow_the_intervals():
    def row(rule: str, values: list[float]) -> report.Row:
        return report.Row(rule, {}, report.estimate(values), None, "0.1", False, None, 1.0)

    text = "\n".join(
        report.verdicts(
            [
                row("good", [-2.0, -2.1, -1.9]),
                row("bad", [2.0, 2.1, 1.9]),
                row("open", [-1.0, 1.0, 0.1]),
            ]
        )
    )
    assert (
        "one task alone** — better: good; worse: bad; no difference shown (the interval includes "
        "0): open." in text
    )
    assert "equal weights" not in text


def test_best_rate_at_the_edge_is_said():
    def outcome(best: int) -> study.Outcome:
        scores = {"left": [0.5, 0.6], "right": [0.5, 0.7]}
        return study.Outcome(
            [0.1, 0.2, 0.3],
            best,
            [0.5, 0.5, 0.5],
            scores,
            [[0.5], [0.6]],
            [0.1, 0.2],
            [0.1, 0.2, 0.3],
            1.0,
            8,
        )

    alone = {
        name: outcome(1)._replace(conflict=None, conflict_grid=None) for name in study.baselines()
    }
    alone = {
        f"{task} alone": alone[f"{task} alone"]._replace(test={task: [0.8, 0.9]})
        for task in study.TASKS
    }
    assert "No best rate lies at the edge" in report.table(alone | {"mean": outcome(1)})
    assert "At the edge of the grid: mgda" in report.table(
        alone | {"mean": outcome(1), "mgda": outcome(2)}
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--rules", "mean,nosuch"],
            f"unknown 'nosuch'; choose from {', '.join(study.methods())}",
        ),
        (["--seeds", "1"], "expected N >= 2, or A:B"),
        (["--epochs", "0"], "expected an integer >= 1, got 0"),
        (["--device", "nosuch"], "'nosuch' cannot be used"),
        (["--out", __file__], "cannot be made a folder"),
    ],
)
def test_command_refuses(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def interrupted(geometry: mf.Geometry, state: object) -> tuple[torch.Tensor, object]:
    raise KeyboardInterrupt


SHORT = ["--rules", "mean,pcgrad", "--seeds", "2", "--epochs", "1", "--out"]


def test_a_stopped_study_goes_on(tmp_path, monkeypatch, capsys):
    """Its table has what was finished; the same command performs the rest only."""
    available = study.methods()
    stopped = available["mean"]._replace(rule=mf.mean()._replace(update=interrupted))
    monkeypatch.setattr(command, "methods", lambda: available | {"mean": stopped})
    call = [*SHORT, str(tmp_path)]
    assert command.main(call) == 130
    assert "2 finished runs are kept in" in capsys.readouterr().err
    first = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(first["methods"]) == ["left alone", "right alone"]
    monkeypatch.setattr(command, "methods", lambda: available)
    real, performed = study.study, []

    def counted(name: str, *rest: Any) -> study.Outcome:
        performed.append(name)
        return real(name, *rest)

    monkeypatch.setattr(command, "study", counted)
    assert command.main(call) == 0
    assert performed == ["mean", "pcgrad"]
    assert "kept from an earlier run: left alone, right alone" in capsys.readouterr().out
    whole = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(whole["methods"]) == ["left alone", "right alone", "mean", "pcgrad"]
    for name, method in first["methods"].items():
        assert whole["methods"][name] == method
    assert command.main(call) == 0  # all of it is kept
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == whole
    # those of other settings are made, and leave these
    assert command.main([*call, "--rules", "mean", "--seeds", "3:5"]) == 0
    assert performed[2:] == ["left alone", "right alone", "mean"]
    assert command.main(call) == 0
    assert len(performed) == 5


def test_interruption_of_the_first_method_says_so(tmp_path, monkeypatch, capsys):
    stopped = study.Method(mf.losses_only(), mf.mean()._replace(update=interrupted), ("left",))
    monkeypatch.setattr(command, "baselines", lambda device: {"left alone": stopped})
    assert command.main([*SHORT, str(tmp_path)]) == 130
    assert "interrupted; 0 finished runs are kept" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
