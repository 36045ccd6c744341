"""`python -m paper_repro`: its command line, what it writes, what an interruption leaves, and the exact findings."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Canvas

import mtlfunc as mf
from paper_repro import gradnorm, mgda_ub
from paper_repro.__main__ import main, reproduce, reproductions
from paper_repro._findings import Claim, Figure, Settings, Verdict, verdict_of
from paper_repro._intervals import mean_interval, ratio_interval, share_interval

TINY = Settings(seeds=2, shrink=0.004)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both reproductions at a tiny budget."""
    mpl.use("Agg")
    out = tmp_path_factory.mktemp("out")
    modules = reproductions()
    assert reproduce(modules, list(modules), TINY, out) == 0
    return out


def claims_in(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "claims.json").read_text(encoding="utf-8"))


def fake(*findings: Claim | Figure, stop: bool = False) -> ModuleType:
    module = ModuleType("fake", "A reproduction of nothing.")

    def run(settings: Settings) -> Iterator[Claim | Figure]:
        yield from findings
        if stop:
            raise KeyboardInterrupt

    module.run = run  # type: ignore[attr-defined]
    return module


def claim(identifier: str, value: float = 1.0) -> Claim:
    return Claim(identifier, "a paper", "a <claim>", "holds", {"value": value}, "here")


def figure(name: str) -> Figure:
    canvas = Canvas(figsize=(1, 1))
    canvas.add_subplot().plot([0, 1])
    return Figure(name, f"caption of {name}", canvas)


def test_claims_have_the_schema_and_the_vocabulary(written: Path) -> None:
    claims = claims_in(written)
    assert {c["module"] for c in claims} == {"gradnorm", "mgda_ub"}
    assert len({c["id"] for c in claims}) == len(claims)
    for c in claims:
        assert {"id", "paper", "claim", "verdict", "measured", "where"} <= set(c)
        assert re.fullmatch(r"(GN|SU)-\d\d", c["id"])
        assert c["verdict"] in get_args(Verdict)
        assert c["measured"]
        assert all(isinstance(value, int | float) for value in c["measured"].values())
        assert c["where"]
    ids = {c["id"] for c in claims}
    assert {"GN-04", "GN-05", "GN-12", "GN-13", "GN-15", "GN-16", "GN-17", "GN-19", "GN-20", "GN-21", "GN-22"} <= ids
    assert {"SU-28", "SU-30", "SU-31", "SU-32", "SU-33", "SU-34", "SU-35", "SU-36"} <= ids


def test_what_is_exact_holds_at_any_budget(written: Path) -> None:
    verdicts = {c["id"]: c["verdict"] for c in claims_in(written)}
    for identifier in ("GN-13", "GN-15", "GN-16", "SU-28", "SU-31", "SU-33", "SU-34"):
        assert verdicts[identifier] == "holds", identifier
    measured = {c["id"]: c["measured"] for c in claims_in(written)}
    assert measured["SU-30"]["draws in which MGDA itself raises a task"] == 0


def test_page_is_self_contained(written: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == len(list(written.glob("*.png"))) >= 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<link" not in page
    assert "<script" not in page
    for c in claims_in(written):
        assert c["id"] in page


def test_only_pngs_json_and_html_are_written(written: Path) -> None:
    assert {path.suffix for path in written.iterdir()} == {".png", ".json", ".html"}


def test_list_names_every_reproduction() -> None:
    run = subprocess.run([sys.executable, "-m", "paper_repro", "--list"], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[0].startswith("gradnorm")
    assert run.stdout.splitlines()[1].startswith("mgda_ub")


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--only", "nothing"], "there are: gradnorm, mgda_ub"), (["--seeds", "1"], "at least 2"), (["--device", "abacus"], "--device")]
)
def test_bad_arguments_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_interruption_keeps_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = reproduce({"fake": fake(claim("XX-01"), figure("one"), stop=True)}, ["fake"], TINY, tmp_path)
    assert status == 130
    assert [c["id"] for c in claims_in(tmp_path)] == ["XX-01"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims.json", "fake-one.png", "report.html"]
    assert "1 claims and 1 figures" in capsys.readouterr().err


def test_interruption_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reproduce({"fake": fake(claim("XX-01"))}, ["fake"], TINY, tmp_path)
    before = (tmp_path / "claims.json").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    assert reproduce({"fake": fake(claim("XX-02"))}, ["fake"], TINY, tmp_path) == 130
    assert (tmp_path / "claims.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims.json", "report.html"]


def test_other_modules_stay_and_own_leftovers_go(tmp_path: Path) -> None:
    first, second = fake(claim("XX-01"), claim("XX-02"), figure("one")), fake(claim("YY-01"))
    reproduce({"a": first, "b": second}, ["a", "b"], TINY, tmp_path)
    reproduce({"a": fake(claim("XX-01", 2.0)), "b": second}, ["a"], TINY, tmp_path)
    assert [(c["id"], c["measured"]["value"]) for c in claims_in(tmp_path)] == [("XX-01", 2.0), ("YY-01", 1.0)]
    assert not list(tmp_path.glob("*.png"))
    assert "caption of one" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_captions_survive_a_run_of_another_module(tmp_path: Path) -> None:
    modules = {"a": fake(figure("one")), "b": fake(claim("YY-01"))}
    reproduce(modules, ["a"], TINY, tmp_path)
    reproduce(modules, ["b"], TINY, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "caption of one" in page
    assert "a &lt;claim&gt;" in page


def test_counterexample_in_fractions() -> None:
    x = mgda_ub.fractions(mgda_ub.X)
    v = [[-target for target in row] for row in mgda_ub.fractions(mgda_ub.Y)]
    bound, exact = (mgda_ub.exact_step(x, v, bound=which) for which in (True, False))
    assert bound.weights == [Fraction(1, 2), Fraction(1, 2)]
    assert bound.direction == [1, 0]
    assert bound.rates == [3, -1]
    assert exact.weights == [Fraction(3, 10), Fraction(7, 10)]
    assert exact.rates == [Fraction(1, 5), Fraction(1, 5)]


@pytest.mark.parametrize(("name", "rates"), [("MGDA-UB", [3.0, -1.0]), ("MGDA", [0.2, 0.2])])
def test_counterexample_through_the_library(name: str, rates: list[float]) -> None:
    assert mgda_ub.through_library(mgda_ub.probes()[name])[1] == pytest.approx(rates, abs=1e-12)


@pytest.mark.parametrize(("name", "end"), [("MGDA-UB", [0.0, 2.0]), ("MGDA", [0.5, 0.5])])
def test_counterexample_iterated(name: str, end: list[float]) -> None:
    path = mgda_ub.trajectory(mgda_ub.probes()[name], 100, lr=0.2)
    assert path.losses[0].tolist() == [1, 1]
    assert path.losses[-1] == pytest.approx(end, abs=2e-2)


def test_measuring_the_last_layer_alone_is_gradnorm_on_the_whole_trunk() -> None:
    """The experiment names the measured layer as the only shared one; with weighted heads that is the same method."""
    problem = gradnorm.Problem(inputs=5, outputs=3)
    key = mf.random.key(1)
    params = gradnorm.initial_params(key, problem)
    batch = gradnorm.sample(mf.random.fold_in(key, 9), gradnorm.linear_maps(mf.random.fold_in(key, 8), problem), problem, 20)
    lr, alpha = torch.tensor(1e-3), torch.tensor(gradnorm.ALPHA)
    short = gradnorm.step_of("gradnorm", problem, lr, alpha, torch.ones(2))
    whole = mf.descend(
        gradnorm.losses, mf.gradnorm(alpha), mf.adam(lr), mf.jacobian("trunk.*", measure=f"trunk.{gradnorm.LAYERS - 1}.*", heads="weighted"), reduction="sum"
    )
    states = [step.init(params, batch) for step in (short, whole)]
    for _ in range(5):
        states = [step.update(state, batch)[0] for step, state in zip((short, whole), states, strict=True)]
    for name in params:
        torch.testing.assert_close(states[0].params[name], states[1].params[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[0].balance.rule.weights, states[1].balance.rule.weights, rtol=1e-4, atol=1e-5)


def test_seeds_do_not_depend_on_how_many_there_are() -> None:
    problem = gradnorm.Problem(rates=(1e-3,), steps=4)
    two, three = (gradnorm.train("weighted", problem, gradnorm.variants_of(problem, seeds, Settings()), Settings(), "test", seeds) for seeds in (2, 3))
    np.testing.assert_allclose(two.test, three.test[:, :, :2], rtol=1e-4)


def test_diverged_runs_are_never_best() -> None:
    test = np.ones((1, 2, 2, 2))
    test[0, 0, 1] = np.nan
    runs = gradnorm.Runs(np.zeros(1), test, np.ones((2, 2)), np.ones((1, 2, 2, 2)), np.ones((1, 2, 2, 2)), torch.ones(2, 2, 2), [1.0, 2.0])
    assert runs.best() == 1
    assert np.isinf(runs.final()[0, 1])


def test_intervals_match_known_values() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)  # t = 4.3027 at 2 degrees of freedom, s/√n = .57735
    assert ratio_interval([2.0, 4.0], [1.0, 2.0]) == pytest.approx((2.0, 2.0, 2.0))
    assert share_interval(0, 100) == pytest.approx((0.0, 0.0, 0.0370), abs=1e-4)


@pytest.mark.parametrize(
    ("below", "above", "verdict"),
    [
        ([True, True], [False, False], "holds"),
        ([True, False], [False, True], "holds only when"),
        ([False, False], [True, False], "does not hold"),
        ([False, False], [False, False], "inconclusive"),
    ],
)
def test_verdicts(below: list[bool], above: list[bool], verdict: str) -> None:
    assert verdict_of(below, above) == verdict
