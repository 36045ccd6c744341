"""From a result to figures, a page and a JSON file."""

import base64
import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from mtlfunc.core.files import write_whole
from mtlfunc.studies.arena import MEASURES, STATIC, Result, normalized

from .store import plain

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 90rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; font-size: .8rem; margin: 1rem 0; display: block;
  overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .5rem;
  border-bottom: 1px solid #ddd; }
th { background: #f4f4f4; }
td { white-space: nowrap; } summary { cursor: pointer; font-weight: 600; }
img { max-width: 100%; height: auto; } figcaption { color: #444; }
"""
PICTURED = ("mean", "mgda", "pcgrad", "cagrad", STATIC)
"""Drawn on the fronts, beside the user's."""


def ranks(result: Result) -> tuple[Figure, str]:
    measures = [by for by in MEASURES if result.ranks(by)]
    figure = Figure(
        figsize=(5.2 * len(measures), 1.6 + 0.26 * len(result.rules)), layout="constrained"
    )
    for i, by in enumerate(measures):
        result.plot(figure.add_subplot(1, len(measures), i + 1), by)
    apart = [
        f"{result.critical_difference(by):.1f} ({by})"
        for by in measures
        if math.isfinite(result.critical_difference(by))
    ]
    return figure, (
        "Average ranks, 1 is best, of every rule and (orange) the mean and the static search, at "
        "the learning rate that is best by this measure on other seeds. Thick: 95 % over seeds, "
        "the choice of the learning rate included; thin: over problems, where there are enough. "
        + (
            f"Ranks must lie more than {', '.join(apart)} apart for two rules to differ, all "
            "pairs taken together."
            if apart
            else "There are too few problems to tell rules apart on others."
        )
    )


def scores(result: Result) -> tuple[Figure, str]:
    """A map of how much better or worse than the mean every rule does, as a share of the mean's
    score.
    """
    order, names = [rank.rule for rank in result.ranks()], list(result.cells)
    table = np.array(
        [[float(result.reported(name, rule).mean()) for name in names] for rule in order]
    )
    against = (
        np.array([float(result.reported(name, "mean").mean()) for name in names])
        if "mean" in order
        else np.full(len(names), np.nan)
    )
    with np.errstate(invalid="ignore"):
        share = 100 * (table / against - 1)
    figure = Figure(
        figsize=(3.4 + 0.95 * len(names), 1.8 + 0.26 * len(order)), layout="constrained"
    )
    ax = figure.add_subplot()
    image = ax.imshow(
        np.where(np.isfinite(share), share.clip(-100, 100), np.nan),
        cmap="PuOr",
        norm=TwoSlopeNorm(0, -100, 100),
        aspect="auto",
    )
    ax.set_facecolor("#999999")
    for (i, j), value in np.ndenumerate(table):
        shade = abs(share[i, j]) if np.isfinite(share[i, j]) else 0
        ax.text(
            j,
            i,
            f"{value:.3f}" if np.isfinite(value) else "failed",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shade > 65 else "black",
        )
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(order)), order)
    figure.colorbar(image, ax=ax, label="against the mean's score, % (clipped)", shrink=0.8)
    return (
        figure,
        "Mean scores by problem, best average rank on top; colour: how much lower (orange) or "
        "higher (purple) than the mean's score. Grey: failed.",
    )


def fronts(result: Result, mine: tuple[str, ...]) -> tuple[Figure, str] | None:
    """Where the runs end, on the problems with two losses and a known front."""
    names = [
        name
        for name in result.cells
        if (front := result.problems[name].front) is not None
        and front.shape[1] == 2
        and len(front) > 1
    ]
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.9 * rows + 0.5), layout="constrained")
    shown = [
        rule
        for rule in (*PICTURED, *mine)
        if rule in result.rules and any(not result.status(name, rule) for name in names)
    ]
    for i, name in enumerate(names):
        ax: Axes = figure.add_subplot(rows, columns, i + 1)
        problem = result.problems[name]
        assert problem.front is not None
        ax.plot(
            *normalized(problem, problem.front).T.numpy(),
            color="0.7",
            linewidth=3,
            label="Pareto front",
        )
        for j, rule in enumerate(shown):
            final = normalized(
                problem,
                result.cells[name][rule].losses[
                    result.chosen(name, rule), result.settings.tuning :
                ],
            )
            ax.plot(
                *final.T.numpy(),
                MARKERS[j % len(MARKERS)],
                color=f"C{j}",
                markersize=6,
                alpha=0.7,
                label=rule,
                fillstyle="none",
            )
        ax.set(
            title=name,
            xlabel="score of loss 1",
            ylabel="score of loss 2",
            xlim=(-0.08, 1.35),
            ylim=(-0.08, 1.35),
        )
        ax.grid(alpha=0.25)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return (
        figure,
        "Where the runs of the reporting seeds end, at each rule's own learning rate by mean "
        "score; points beyond 1.35 are not shown.",
    )


MARKERS = "sD^ov<>P*X"


def write(result: Result, settings: dict[str, Any], mine: tuple[str, ...], out: Path) -> list[Path]:
    """results.json, the figures and arena.html, each whole before it is put in place."""
    figures: dict[str, tuple[Figure, str]] = {"ranks": ranks(result), "scores": scores(result)}
    drawn = fronts(result, mine)
    figures |= {"fronts": drawn} if drawn else {}
    paths = []
    for name, (figure, _) in figures.items():
        paths.append(out / f"{name}.png")
        write_whole(
            paths[-1], lambda file, figure=figure: figure.savefig(file, format="png", dpi=130)
        )
    if not drawn:
        (out / "fronts.png").unlink(missing_ok=True)
    content = {
        "settings": settings,
        "problems": {name: problem.text for name, problem in result.problems.items()},
        "notes": result.notes(),
        "ranks": {by: [_rank(rank._asdict()) for rank in result.ranks(by)] for by in MEASURES},
        "critical difference": {
            by: result.critical_difference(by) for by in MEASURES if result.ranks(by)
        },
        "records": {by: result.records(by) for by in MEASURES},
    }
    paths += [out / "results.json", out / "arena.html"]
    captions = {name: text for name, (_, text) in figures.items()}
    write_whole(paths[-2], json.dumps(plain(content), indent=1, ensure_ascii=False))
    write_whole(paths[-1], page(result, settings, captions, out))
    return paths


def page(result: Result, settings: dict[str, Any], captions: dict[str, str], out: Path) -> str:
    """The whole study as one HTML page, figures included."""

    def image(name: str) -> str:
        content = base64.b64encode((out / f"{name}.png").read_bytes()).decode()
        return f'<img alt="{name}" src="data:image/png;base64,{content}">'

    figures = "".join(
        f"<figure>{image(name)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for name, caption in captions.items()
    )
    how = "; ".join(f"{name} {value}" for name, value in settings.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>The arena</title>'
        f"<style>{STYLE}</style><h1>The arena</h1>"
        "<p>Every rule on small problems with known answers, against constant weights that were "
        f"searched for. {html.escape(how)}.</p>"
        f"{result._repr_html_()}{figures}</html>"
    )


def _rank(rank: dict[str, Any]) -> dict[str, Any]:
    def named(interval: Any) -> dict[str, float]:
        return dict(zip(("mean", "low", "high"), interval, strict=True))

    return rank | {
        "seeds": named(rank["seeds"]),
        "problems": named(rank["problems"]),
        "against": {other: named(interval) for other, interval in rank["against"].items()},
    }
