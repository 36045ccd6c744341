"""`python -m paper_repro figure NAME`: a paper's figure with options of one's own."""

import argparse
import functools
import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from common.arguments import at_least
from common.machine import threads
from common.progress import say
from common.shown import shown
from common.signals import Terminated
from mtlfunc.core.files import write_whole

from .display import Display, caught
from .draws import redrawn
from .figures import FORMS, panels_of
from .findings import Figure, is_recorded
from .looks import WIDTHS, Look, arrange, cycle, family, letters, style_of
from .options import Impossible, Option, meant, names, parameters, read, several, written
from .parts import OURS, Store, drop

ABOUT = """A figure of a paper with options of one's own; without any it is the paper's. Writes the
figure, and its numbers as JSON beside it."""
LENGTHS = Path(__file__).parent.parent / "lengths.json"
"""What each figure took with its own options; `python docs/gallery.py` writes it."""


@functools.cache
def lengths() -> dict[str, dict[str, Any]]:
    """By the figures' names: `seconds` of processor time, imports included, and the `machine`."""
    return json.loads(LENGTHS.read_text(encoding="utf-8"))


def lasts(name: str) -> str:
    """How long a figure takes with its own options, in words; "" if it was never measured."""
    if name not in lengths():
        return ""
    seconds, machine = lengths()[name].values()
    said = f"about {seconds:.0f} s of one processor's time"
    return f"With its own options it takes {said} ({machine})."


class Catalogue:
    """Every figure function of a package's papers, by its name paper.figure, imported when it is
    asked for.
    """

    def __init__(self, package: str, papers: Sequence[str]) -> None:
        self.folders = {paper: importlib.import_module(f"{package}.{paper}") for paper in papers}
        self.names = [
            f"{paper}.{name}"
            for paper, folder in self.folders.items()
            for name in getattr(folder, "FIGURES", {})
        ]

    def __getitem__(self, name: str) -> Callable[..., Figure]:
        paper, _, figure = name.partition(".")
        return getattr(self.folders[paper], figure)

    def listed(self) -> str:
        """A line per figure: its name, the seconds that it takes and what it shows."""
        width, lines = max(map(len, self.names)) + 2, []
        for name in self.names:
            took = f"{lengths()[name]['seconds']:.0f} s" if name in lengths() else ""
            lines.append(f"{name:<{width}}{took:>5}  {summary(self[name])}")
        return "\n".join(lines)


def summary(figure: Callable[..., Figure]) -> str:
    return (figure.__doc__ or "").strip().splitlines()[0]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser_of(name: str, figure: Callable[..., Figure]) -> argparse.ArgumentParser:
    """The options of one figure, from its signature."""
    parser = Parser(
        prog=f"python -m paper_repro figure {name}",
        description=f"{summary(figure)} {lasts(name)}",
        epilog="Write blanks between several values, commas between numbers that belong together; "
        "names may be quoted.",
        allow_abbrev=False,
    )
    for parameter in parameters(figure).values():
        parser.add_argument(
            f"--{parameter.name.replace('_', '-')}",
            metavar="… …" if several(parameter.kind) else "…",
            help=f"{said(parameter.kind, parameter.option)} (default: "
            f"{written(parameter.default)})".replace("%", "%%"),
        )
    parser.add_argument(
        "--seed",
        type=at_least(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="other random numbers (default: 0)",
    )
    size = parser.add_mutually_exclusive_group()
    for option, (kind, metavar, text) in LOOK.items():
        group = size if option in ("preset", "size") else parser
        group.add_argument(f"--{option}", type=kind, metavar=metavar, help=text)
    parser.add_argument("--data-only", action="store_true", help="write the numbers alone")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path(f"{name}.png"),
        help=f"where to, a name that ends in .{', .'.join(FORMS)} (default: {name}.png)",
    )
    return parser


def said(kind: Any, option: Option) -> str:
    """An option's help, with the names that it may have."""
    inner = get_args(kind)[0] if get_origin(kind) is tuple else kind
    return f"{option.text}: {names(inner)}" if get_origin(inner) is Literal else option.text


def joined(words: Sequence[str]) -> list[str]:
    """An option and its values as one word, in which no negative number looks like an option."""
    found: list[str] = []
    for word in words:
        value = not word.startswith("-") or word[1:2].isdigit() or word[1:2] == "."
        if value and found and found[-1].startswith("--"):
            found[-1] += f"{' ' if '=' in found[-1] else '='}{word}"
        else:
            found.append(word)
    return found


def values_of(
    words: Sequence[str], parser: argparse.ArgumentParser, own: Iterable[str]
) -> tuple[dict[str, Any], Path, int, Look | None]:
    """The figure's `own` options that were given, where it goes, the seed and the look."""
    given = vars(parser.parse_args(joined(words)))
    values = {name: given[name] for name in own if given[name] is not None}
    if given["data_only"]:
        return values, given["out"], given["seed"], None
    style = letters(given["font_size"])
    for name in ("style", "font", "colours"):
        style |= given[name] or {}
    look = Look(given["size"], given["preset"], style, given["panels"] or (), given["log"] or ())
    return values, given["out"], given["seed"], look


def inches(text: str) -> tuple[float, float]:
    """Raises Impossible for anything else than two lengths."""
    found = re.fullmatch(r"(\d+\.?\d*)x(\d+\.?\d*)", text)
    both = tuple(map(float, found.groups())) if found else ()
    if not both or not all(2 <= each <= 60 for each in both):
        raise Impossible(f"expected inches, 2 to 60, as 6.5x3, got {text}")
    return both[0], both[1]


LOOK = {
    "preset": (
        functools.partial(read, Literal["column", "page", "talk"], Option("")),
        "NAME",
        f"{', '.join(WIDTHS)}; of a paper 3.25 or 6.75 inches wide with letters of 8 points, of a "
        "talk 12 with 16; as high as the panels need, no title over a single panel",
    ),
    "size": (
        inches,
        "WxH",
        "inches, as 6.5x3; the letters keep their 11 to 12 points (default: the figure's own)",
    ),
    "font": (family, "NAME", "a family that matplotlib finds, as 'DejaVu Serif'"),
    "font-size": (
        functools.partial(read, float, Option("", 4, 40)),
        "POINTS",
        "4 to 40, of titles and labels; ticks and legends have 11/12 of it",
    ),
    "style": (style_of, "FILE", "a style of matplotlib, a file or a name, over the figure's own"),
    "colours": (
        cycle,
        "A,B,…",
        "of the lines, in their order; or a palette of matplotlib, as tab10",
    ),
    "panels": (
        functools.partial(read, tuple[int, ...], Option("", low=1)),
        "I,J,…",
        "these alone, counted from 1, in this order",
    ),
    "log": (
        functools.partial(read, tuple[Literal["x", "y"], ...], Option("")),
        "AXES",
        "logarithmic axes in every panel: x, y or x,y",
    ),
}
"""What every figure takes: how it is read, metavar and help."""


def refusal(out: Path) -> str:
    """Why a figure cannot be written there; "" where it can."""
    if out.suffix[1:] not in FORMS:
        return f"--out: {out} has to end in .{', .'.join(FORMS)}"
    numbers = out.with_suffix(".json")
    try:
        if numbers.is_file() and not is_recorded(numbers):
            return (
                f"--out: the figure's numbers go to {numbers}, which holds something else; give "
                "the figure another name, or move that file"
            )
        for path in (out, numbers):
            there = path.exists()
            path.open("ab").close()
            if not there:
                path.unlink()
    except OSError as error:
        return f"--out: {error.filename} cannot be written ({error.strerror})"
    return ""


def command(words: Sequence[str], figures: Catalogue) -> int:
    """Draw one figure, or list them; returns the exit status."""
    general = Parser(
        prog="python -m paper_repro figure",
        usage="%(prog)s (--list | NAME [options])",
        description=ABOUT,
        epilog="`python -m paper_repro figure NAME --help` says which options a figure has.",
    )
    general.add_argument("--list", action="store_true", help="list the figures and exit")
    if not words or words[0].startswith("-"):
        if general.parse_args(words).list:
            say(figures.listed(), sys.stdout)
            return 0
        general.error(f"which figure? There are: {', '.join(figures.names)}")
    name, rest = words[0], words[1:]
    if name not in figures.names:
        near, there = meant(name, figures.names), ", ".join(figures.names)
        general.error(f"there is no figure {name}; {near}there are: {there}")
    figure = figures[name]
    parser = parser_of(name, figure)
    values, out, seed, look = values_of(rest, parser, parameters(figure))
    wrong = refusal(out)
    if wrong:
        parser.error(wrong)
    with redrawn(seed):
        return draw(name, figure, values, out, parser, look)


def draw(
    name: str,
    figure: Callable[..., Figure],
    values: dict[str, Any],
    out: Path,
    parser: argparse.ArgumentParser,
    look: Look | None,
) -> int:
    """Compute, draw and write, the numbers alone without a look; what is computed is kept until
    then.
    """
    # by the whole name: the same figure may be on its way to a file of another format
    parts, begin, display = out.with_name(f"{out.name}.parts"), time.monotonic(), Display(1)
    others = parts.exists()  # of a command that was stopped
    announced = iter([lasts(name)])

    def progress(text: str) -> None:
        for sentence in announced:  # before the first bar, so not for what is refused
            say(f"{name}: {sentence or 'how long it takes was never measured'}", display.err)
        display.progress(name, text)

    display.begin(name)
    Store.folder = parts
    try:
        parts.mkdir(exist_ok=True)
        # one thread, as the report: the tensors are small
        with threads(1), caught(display.line, progress), (look or Look()).in_force():
            found = figure(**values)._replace(name=name)
            if Store.draw:
                found = found._replace(arguments={**found.arguments, "seed": Store.draw})
            numbers = shown(panels_of(found.figure))  # before panels go or axes change
            wrong = arrange(found.figure, look) if look else []
            numbered = ", ".join(map(str, look.panels)) if look else ""
            said = found.caption + (f" Drawn: panels {numbered}." if numbered else "")
            if look:
                write_whole(out, found._replace(caption=said).drawn(out.suffix[1:]))
            found.record(out, numbers)
    except KeyboardInterrupt as stop:
        gone = time.monotonic() - begin
        say(f"\ninterrupted {name} after {gone:.0f} s; {leave(parts)}", sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except OSError as error:
        say(f"\nstopped {name}: {error}; {leave(parts)}", sys.stderr)
        return 1
    except Impossible as error:  # of a look perhaps: what is computed serves another
        kept = leave(parts)
        parser.error(f"--{error}; {kept}" if parts.exists() else f"--{error}")
    except Exception:  # the same command would fail again
        if not others:
            drop(parts)
        raise
    finally:
        Store.folder = None
    drop(parts)
    paths = ([out] if look else []) + [out.with_suffix(".json")]
    display.line(f"{', '.join(map(str, paths))}: {len(found.numbers)} records\n{said}")
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        cure = "a larger --size, fewer --panels, or a --preset"
        display.line(f"in this look {wrong[0]}{more}; {cure} may have room")
    return 0


def leave(parts: Path) -> str:
    """What a stopped figure keeps, said; an empty folder goes."""
    kept = [path for path in parts.glob("*-*") if OURS.fullmatch(path.name) and not path.suffix]
    if not kept:
        drop(parts)
        return "nothing was finished, so nothing is kept"
    return f"{len(kept)} finished computations kept in {parts}; the command goes on from there"
