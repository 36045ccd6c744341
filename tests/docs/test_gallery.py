"""The gallery has every figure, its picture, and a command that the program takes."""

import shlex

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from docs import gallery
from paper_repro.__main__ import papers
from paper_repro.report.commands import Catalogue, lasts, parser_of, summary, values_of
from paper_repro.report.options import parameters
from tests.support import ROOT

FIGURES = Catalogue("paper_repro", papers())
PAGE = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")


def test_every_figure_is_in_it_once():
    shown = [line[3:] for line in PAGE.splitlines() if line.startswith("## ")]
    assert shown == FIGURES.names


@pytest.mark.parametrize("name", FIGURES.names)
def test_a_command_is_taken_and_its_picture_is_there_if_it_is_shown(name):
    (line,) = [x for x in PAGE.splitlines() if x.startswith(f"python -m paper_repro figure {name}")]
    words = shlex.split(line)[4:]
    assert words == gallery.words_of(name)
    parser, own = parser_of(name, FIGURES[name]), parameters(FIGURES[name])
    values, out, seed, look = values_of(words[1:], parser, own)
    assert (seed, out.suffix) == (0, ".png")
    assert look is not None
    assert (look.size is not None) == (name in gallery.SIZE)
    assert set(values) <= set(own)
    assert f"{summary(FIGURES[name])} {lasts(name)}\n" in PAGE
    assert lasts(name), "python docs/gallery.py NAME measures it"
    path = gallery.FOLDER / f"{name}.png"
    assert path.exists() == (f"![{name}](figures/{name}.png)" in PAGE)
    if path.exists():
        with Image.open(path) as picture:
            assert max(picture.size) <= gallery.WIDEST


def test_thin_lines_and_areas_keep_their_colours():
    across = Image.linear_gradient("L").resize((900, 600))
    along = across.transpose(Image.Transpose.ROTATE_90).resize((900, 600))
    one = ImageOps.colorize(across, (68, 1, 84), (253, 231, 37), (33, 145, 140))
    other = ImageOps.colorize(along, (102, 37, 6), (255, 255, 229), (254, 153, 41))
    picture = Image.blend(one, other, 0.5)
    line = (213, 94, 0)
    picture.paste(line, (100, 300, 120, 302))
    shown = gallery.with_few_colours(picture).convert("RGB")
    drawn = shown.getpixel((110, 301))
    assert isinstance(drawn, tuple)
    assert max(abs(a - b) for a, b in zip(drawn, line, strict=True)) < 32
    assert max(ImageStat.Stat(ImageChops.difference(shown, picture)).mean) < 2.5
