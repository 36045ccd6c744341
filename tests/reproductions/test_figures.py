"""Figures with options of one's own: each is drawn with something changed; bad input is said."""

import json
import math
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure as Canvas
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from paper_repro import __main__ as program
from paper_repro import cagrad, gradnorm
from paper_repro.gradnorm import common
from paper_repro.pcgrad import landscape
from paper_repro.report.commands import Catalogue, parser_of
from paper_repro.report.figures import axes, in_style
from paper_repro.report.layout import fit, numbers_of
from paper_repro.report.looks import WIDTHS, Look, arrange, clashes
from paper_repro.report.options import parameters, read, several, written

FIGURES = Catalogue("paper_repro", program.papers())
SMALL: dict[str, str] = {
    "cagrad.toy": "--c 0.4 2 --starts -9,3 4,8 --steps 20 --methods GD CAGrad GradNorm",
    "cagrad.surface": "--sign printed --points 30 --extent 5",
    "cagrad.role_of_c": "--c 0 0.2 1 10 100 --tasks 2 3 --draws 6 --parameters 7",
    "gradnorm.toy": "--scales 1 10 100 --steps 6 --seeds 2 --inputs 4 --outputs 3 --width 5 "
    "--batch 6",
    "gradnorm.rates": "--scales 2 9 4 --rates 1e-3 1e-2 --steps 4 --seeds 2 --width 5 --inputs 3",
    "gradnorm.strength": "--alphas 0 0.7 --scales 1 2 3 4 5 6 7 8 --steps 4 --seeds 2 --width 4",
    "gradnorm.search": "--scales 1 5 25 --draws 3 --rates 3e-3 1e-2 --steps 4 --seeds 2 --width 4",
    "mgda.counterexample": "--start 1,-1 --steps 9 --rate 0.05",
    "mgda.oscillation": "--gradients 2,0 0,1 -1,1 --steps 5 --draws 3 --most 20",
    "mgda.raised_tasks": "--tasks 2 --widths 1 2 --draws 3 --steps 2",
    "pcgrad.figure1": "--start 0.5,-2 --steps 30 --methods PCGrad GradNorm",
    "pcgrad.conditions_along": "--start 1,1 --steps 30 --methods sum",
    "pcgrad.curvature": "--problems regression --steps 6 --seeds 2 --rate 0.01",
    "pcgrad.overshoot": "--draws 90 --shortest 0.5 --longest 5",
}


def run(*words: str) -> int:
    """The exit status of the command, with words as in a shell."""
    try:
        return program.main(["figure", *words])
    except SystemExit as stop:
        return int(stop.code or 0)


def drawn(canvas: Canvas) -> np.ndarray:
    """All numbers of the lines, areas, points, surfaces and pictures of a canvas's panels."""
    found: list[Any] = []
    for panel in (x for x in canvas.axes if not hasattr(x, "_colorbar")):
        for x in panel.get_children():
            if isinstance(x, Line2D):
                found += getattr(x, "get_data_3d", x.get_data)()
            elif isinstance(x, Poly3DCollection):
                found += [x._faces]  # pyright: ignore
            elif isinstance(x, PathCollection):
                found += [x.get_offsets(), x.get_array()]
            elif isinstance(x, Collection):
                found += [path.vertices for path in x.get_paths()]
            elif isinstance(x, AxesImage):
                found += [x.get_array()]
            elif isinstance(x, Rectangle) and x is not panel.patch:
                found += [x.get_xy(), np.add(x.get_xy(), [x.get_width(), x.get_height()])]
    every = np.concatenate([np.ravel(np.asarray(x, float)) for x in found if x is not None])
    return np.unique(every[np.isfinite(every)])


def records(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("preset", [None, *WIDTHS])
@pytest.mark.parametrize("name", SMALL)
def test_no_text_overlaps_or_is_cut(name, preset, tmp_path, capsys, monkeypatch):
    """As the renderer places it, with changed options, at every preset; the JSON has all of it."""
    seen: list[Canvas] = []
    wanted: list[Any] = []

    def arranged(canvas: Canvas, look: Any) -> list[str]:
        wanted.append(drawn(canvas))
        seen.append(canvas)
        return arrange(canvas, look)

    monkeypatch.setattr("paper_repro.report.commands.arrange", arranged)
    out = tmp_path / "figure.pdf"
    words = [*SMALL[name].split(), "--out", str(out), *(["--preset", preset] if preset else [])]
    assert run(name, *words) == 0
    said = capsys.readouterr().out
    assert "in this look" not in said
    assert str(out) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.json", "figure.pdf"]
    found = records(out)
    assert found["figure"] == name
    assert found["numbers"]
    lists = [each for mark in found["drawn"] for k, each in mark.items() if k in "x y z value"]
    lists += [row for mark in found["drawn"] for row in mark.get("rows", ())]
    every = np.unique([x for each in lists for x in each if x is not None])
    (values,) = wanted
    above = np.searchsorted(every, values).clip(1, len(every) - 1)
    off = np.minimum(abs(every[above] - values), abs(every[above - 1] - values))
    assert (off <= 1e-6 * abs(values)).all()
    for panel in seen[0].axes if name == "cagrad.role_of_c" else ():
        assert all(len(numbers_of(axis)) > 1 for axis in (panel.xaxis, panel.yaxis)), panel
    given = {word[2:].replace("-", "_") for word in SMALL[name].split() if word.startswith("--")}
    defaults = {each.name: each.default for each in parameters(FIGURES[name]).values()}
    assert given <= set(defaults) == set(found["arguments"])
    for option in given:
        assert found["arguments"][option] != json.loads(json.dumps(defaults[option])), option
    if preset:
        box = re.search(rb"/MediaBox \[ 0 0 (\S+) (\S+) \]", out.read_bytes())
        assert box is not None
        width, height = (float(x) / 72 for x in box.groups())
        assert width == WIDTHS[preset]
        assert height <= 9.5 or preset == "talk"


@pytest.mark.parametrize("name", ["pcgrad.overshoot", "gradnorm.strength", "cagrad.role_of_c"])
def test_a_seed_draws_other_numbers_and_the_same_again(name: str, tmp_path: Path) -> None:
    found = []
    for i, seed in enumerate(("0", "1", "1")):
        out = tmp_path / f"{i}.png"
        assert run(name, *SMALL[name].split(), "--seed", seed, "--out", str(out)) == 0
        found.append(records(out))
    first, other, again = (each["numbers"] for each in found)
    assert first != other == again
    assert [each["arguments"].get("seed") for each in found] == [None, 1, 1]


@pytest.mark.parametrize("entries", [1, 6])
@pytest.mark.parametrize("aspect", ["auto", "equal"])
def test_text_is_fitted_whatever_its_length(entries: int, aspect: Any) -> None:
    with in_style():
        canvas, panels = axes(1, 3, (12.5, 5))
        for panel in panels:
            for j in range(entries):
                panel.plot([0, 1], [j, entries - j], label=f"a method with a long name, w_{j}")
            panel.set(
                xlabel="a label that goes on for longer than its panel is wide, in units of L_i",
                ylabel="another one that is longer than its panel is high, of θ^MT " * 2,
                title="a title, and no short one, either, for a panel of this width",
                aspect=aspect,
            )
            panel.legend(loc="center")
        fit(canvas)
        assert clashes(canvas) == []
    for panel in panels:
        legend = panel.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y0 > panel.get_window_extent().y1 - 1
    for text in canvas.findobj(Text):
        assert isinstance(text, Text)
        assert not re.search("[_^]", "".join(text.get_text().split("$")[::2]))


def test_chosen_panels_stand_as_they_are_named_and_name_their_lines() -> None:
    for preset in (None, "column", "page"):
        canvas, panels = axes(1, 3, (12.5, 5))
        for name, panel in zip("abc", panels, strict=True):
            panel.plot([0, 1], [0, 1], label=name)
        arrange(canvas, Look(panels=(3, 1), preset=preset))
        first, second = (panels[i].get_position() for i in (2, 0))
        assert first.x0 < second.x0 or first.y0 > second.y1
        legend: Any = panels[2].get_legend()
        assert [x.get_text() for x in legend.get_texts()] == ["c"]


def test_a_look_changes_the_drawing_alone(tmp_path: Path) -> None:
    """Panels, scales, letters, colours and a style of one's own; or the numbers alone."""
    (tmp_path / "own.mplstyle").write_text("lines.linewidth: 9")
    figure = "gradnorm.toy", *SMALL["gradnorm.toy"].split()
    alone, drawn = tmp_path / "alone.svg", tmp_path / "drawn.svg"
    look = f"--panels 1 --log y --colours red,lime --style {tmp_path / 'own.mplstyle'}".split()
    assert run(*figure, "--data-only", "--out", str(alone)) == 0
    assert not alone.exists()
    assert run(*figure, "--seeds", "3", "--panels", "9", "--out", str(drawn)) == 2
    assert drawn.with_name("drawn.svg.parts").exists()  # what it computed serves the next look
    assert run(*figure, *look, "--font", "DejaVu Serif", "--out", str(drawn)) == 0
    assert records(drawn) == records(alone)
    text = drawn.read_text(encoding="utf-8")
    assert len(re.findall('id="axes_', text)) == 1
    for given in ("stroke-width: 9", "#ff0000", "DejaVuSerif-"):
        assert given in text, given
    assert "#0072b2" not in text


def test_ctrl_c_says_that_the_command_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("paper_repro.report.commands.threads", Mock(side_effect=KeyboardInterrupt))
    assert run("cagrad.toy", "--out", str(tmp_path / "toy.png")) == 130
    assert "interrupted cagrad.toy" in capsys.readouterr().err


def test_the_paper_s_values_are_the_defaults() -> None:
    toy, regression, figure1 = (
        {each.name: each.default for each in parameters(FIGURES[name]).values()}
        for name in ("cagrad.toy", "gradnorm.toy", "pcgrad.figure1")
    )
    assert toy["starts"] == ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))
    assert (toy["steps"], toy["rate"], toy["c"]) == (100_000, 1e-3, (0.5,))
    sizes = [regression[name] for name in ("inputs", "outputs", "width", "batch", "alpha")]
    assert sizes == [250, 100, 100, 100, 0.12]
    assert figure1["start"] == (0.5, -3.0)


@pytest.mark.parametrize("name", FIGURES.names)
def test_defaults_are_read_as_they_are_shown(name: str) -> None:
    for each in parameters(FIGURES[name]).values():
        assert read(each.kind, each.option, written(each.default)) == each.default
        if several(each.kind):
            with pytest.raises(ValueError, match=f"{each.name}: expected several values, got 3"):
                FIGURES[name](**{each.name: 3})
    assert "--out" in parser_of(name, FIGURES[name]).format_help()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("Toy", "there is no figure Toy; did you mean cagrad.toy or gradnorm.toy? there are: "),
        ("", "which figure"),
        ("cagrad.toy --sizes 3", "unrecognized arguments: --sizes=3"),
        ("gradnorm.toy --seeds 2 3", "--seeds: expected a whole number alone, got '2 3'"),
        ("cagrad.toy --methods MGDA, eps", "'MGDA, epsilon', PCGrad"),
        ("cagrad.toy --size 6x1", "--size: expected inches, 2 to 60, as 6.5x3, got 6"),
        ("cagrad.toy --c nan", "--c: expected 0 to 1e+06, got nan"),
        ("cagrad.toy --starts 1,2,3", "--starts: expected 2 numbers together, got 1,2,3"),
        ("gradnorm.toy --scales 1", "--scales: expected at least 2 values, got 1"),
        ("cagrad.toy --methods GD GD", "--methods: expected every value once, got GD twice"),
        ("mgda.counterexample --inputs 1,1 2,2", "--inputs: expected samples that are not all"),
        ("cagrad.toy --out toy.gif", "--out: toy.gif has to end in .png"),
        ("cagrad.toy --out /no/such/folder/toy.png", "toy.png cannot be written (No such file"),
        ("cagrad.toy --preset poster", "--preset: expected column, page, talk; got poster"),
        ("cagrad.toy --preset column --size 6x3", "--size: not allowed with argument --preset"),
        ("cagrad.toy --font Nonesuch", "--font: matplotlib does not find 'Nonesuch'"),
        ("cagrad.toy --style no.mplstyle", "--style: no.mplstyle is not a style of matplotlib"),
        ("cagrad.toy --colours red,blurple", "--colours: 'blurple' is no colour or palette"),
        ("cagrad.toy --font-size 99", "--font-size: expected 4 to 40, got 99"),
    ],
)
def test_what_cannot_be_is_a_sentence(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words.split()) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [2, 3, 8])
def test_gradnorm_draws_every_task(count: int) -> None:
    """Once three scales drew two tasks, and labelled σ = 10 as 100."""
    scales = tuple(float(10 ** (i % 3) + i) for i in range(count))
    found = gradnorm.toy(scales=scales, steps=5, seeds=2, inputs=3, outputs=2, width=4, batch=5)
    _, losses, weights = found.figure.axes
    names = [f"σ = {scale:g}" for scale in scales]
    for panel in (losses, weights):
        assert sorted(text.get_text() for text in panel.texts) == sorted(names)
    assert f"sum {count}" in weights.get_ylabel()
    assert weights.get_yscale() == "linear"
    last = [row for row in found.numbers if row["method"] == "GradNorm" and row["step"] == 5]
    assert {(row["task"], row["scale"]) for row in last} == set(enumerate(scales, 1))
    assert math.isclose(sum(row["weight"] for row in last), count, rel_tol=1e-5)
    assert found._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    assert clashes(found.figure) == []
    lost = gradnorm.toy(rates=(1e3,), steps=60, seeds=2, inputs=3, outputs=2, width=4, batch=5)
    assert lost.drawn("png")  # with whatever ends are left


def test_classification_losses_are_scaled_cross_entropies() -> None:
    problem = common.Problem(scales=(1.0, 5.0), inputs=3, outputs=4, width=6, kind="classification")
    key = torch.tensor(3)
    params = common.initial_params(key, problem)
    maps = common.linear_maps(key, problem)
    x, y = common.sample(key, maps, problem, 9)
    labels = torch.einsum("bi,toi->tbo", x, maps).argmax(-1)
    hidden = x
    for layer in range(common.LAYERS):
        weight = params[f"trunk.{layer}.weight"]
        hidden = (hidden @ weight.mT + params[f"trunk.{layer}.bias"]).relu()
    for task, scale in enumerate(problem.scales):
        out = hidden @ params["heads.weight"][task].mT + params["heads.bias"][task]
        expected = scale * torch.nn.functional.cross_entropy(out, labels[task])
        torch.testing.assert_close(common.entropies_of(params, (x, y))[task], expected)


def test_toy_of_one_rule_is_the_report_s() -> None:
    """The same points as of the rules that the report runs side by side."""
    from common.problems import cagrad_toy as toy
    from paper_repro.cagrad import toy_runs

    found = cagrad.toy(starts=((-8.5, 7.5),), methods=("CAGrad",), c=(0.5,), steps=30)
    starts = torch.zeros(1, 2, dtype=torch.float64)
    one = toy_runs.trajectories([("GD", "CAGrad")], starts, 30, compiled=False)["CAGrad"]
    at, point = found.numbers[-1], one.points[-1, one.lanes.find((-8.5, 7.5), 0.5)]
    assert at["step"] == 30
    np.testing.assert_allclose(at["x"], point.numpy(), rtol=1e-12)
    np.testing.assert_allclose(at["losses"], toy.at(point).tolist(), rtol=1e-12)


@pytest.mark.parametrize("crossing", [False, True])
def test_definition_3_is_the_derivative_of_the_mean_gradient(crossing: bool) -> None:
    """g·d/dε of the mean of ∇L over the step from θ + εg, by sums over many points of it."""
    floor, count = 0.3, 400_001
    start = torch.tensor([0.3, -0.4] if crossing else [2.5, 1.0], dtype=torch.float64)
    after = start + torch.tensor([0.9 if crossing else 0.1, 0.7], dtype=torch.float64)

    def gradient(at: torch.Tensor) -> torch.Tensor:
        x, y = at.unbind(-1)
        t = torch.tanh(y)
        u = torch.stack([x / 2 + t, x / 2 - t + 2], -1)
        scale = torch.tensor([20.0, 25.0], dtype=torch.float64)
        slope = torch.where(u.abs() > floor, scale / u, 0.0)
        turn = (1 - t**2) * (slope[..., 0] - slope[..., 1])
        return torch.stack([slope.sum(-1) / 2, turn], -1)

    g = gradient(start)
    s = (torch.arange(count, dtype=torch.float64) + 0.5)[:, None] / count

    def mean(epsilon: float) -> torch.Tensor:
        return gradient(start + epsilon * g + s * (after - start)).mean(0) @ g

    step = 1e-4
    expected = (mean(step) - mean(-step)) / (2 * step) / (g @ g)
    found = landscape.definition_3(start, after, floor, pieces=4000)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2)
