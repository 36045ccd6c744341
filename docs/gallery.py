"""Draw the gallery: every figure of `python -m paper_repro figure`, with its command under it.

`python docs/gallery.py` draws them all, `python docs/gallery.py NAME` one again. It writes
docs/figures.md, and the pictures small, with few colours, next to it. A figure whose picture is not
there has its command alone. What each command took goes to paper_repro/lengths.json, which the
command tells beforehand.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from docs import full
from mtlfunc.core.files import write_whole
from paper_repro.__main__ import papers
from paper_repro.report.commands import LENGTHS, Catalogue, lasts, lengths, summary
from paper_repro.report.parts import spent

ROOT = Path(__file__).parent.parent
FOLDER, PAGE = ROOT / "docs" / "figures", ROOT / "docs" / "figures.md"
SIZE = {"mgda.counterexample": "9x4"}
"""Inches, where a command shows how they are given."""
WIDEST, COLOURS = 900, 256
HEAD = """# Figures

Every figure of the papers that takes options of yours, under it the command that drew it. Its
options are in `--help`; `--out fig.pdf` writes a vector file with the numbers next to it as JSON,
`--seed 1` draws other random numbers. A command says how long its figure takes, and how far it is.
Written by `python docs/gallery.py`.

**In a paper**: `--preset column` is 3.25 inches wide, `--preset page` 6.75, with letters of 8
points; `--preset talk` is 12 with 16. Tests ask the renderer that no text overlaps or is cut, in
all of them. `--panels 1,3` takes some panels, `--log x,y` logarithmic axes; `--font`,
`--font-size`, `--colours` and `--style FILE`, a style of matplotlib, change the look; `--size 6x3`
sets inches. `--data-only` writes the numbers
alone. In the JSON `numbers` is a record a point, and `drawn` has every line, band and cloud of
points as it is drawn. `--colours` also takes a palette of matplotlib by name. A figure of your own:

```python
import json
import matplotlib.pyplot as plt

found = json.load(open("mgda.raised_tasks.json"))
for tasks in (2, 3, 5):
    rows = [row for row in found["numbers"] if row["tasks"] == tasks][:4]
    plt.plot([row["width"] for row in rows], [row["mean"] for row in rows], label=f"{tasks} tasks")
plt.xlabel("width of the representation")
plt.legend()
```
"""


def words_of(name: str) -> list[str]:
    """The command of a figure, without where it goes."""
    size = ["--size", SIZE[name]] if name in SIZE else []
    return [name, *size]


def with_few_colours(picture: Image.Image) -> Image.Image:
    """A small file of it, in which thin lines and large areas keep their colours."""
    return picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3)


def draw(name: str) -> tuple[str, dict[str, Any]]:
    """Put a figure's picture in its place; returns its caption and what it took.

    Raises:
        SystemExit: where the command fails.
    """
    with tempfile.TemporaryDirectory() as there:
        path = Path(there) / f"{name}.png"
        program = [sys.executable, "-m", "paper_repro", "figure"]
        begin = spent()
        # a process of its own: nothing that another figure computed is there
        words = [*program, *words_of(name), "--out", path]
        if subprocess.run(words, cwd=ROOT, check=False).returncode:
            raise SystemExit(f"{name} failed")
        length = {"seconds": round(spent() - begin, 1), "machine": full.here()}
        caption = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["caption"]
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((WIDEST, WIDEST))
        FOLDER.mkdir(exist_ok=True)
        few = with_few_colours(picture)
        write_whole(FOLDER / f"{name}.png", lambda file: few.save(file, "png", optimize=True))
    return caption, length


def page(figures: Catalogue, captions: dict[str, str]) -> str:
    """docs/figures.md: every figure, with its picture if it is drawn."""
    parts = [HEAD]
    for name in figures.names:
        parts += [f"## {name}\n", f"{summary(figures[name])} {lasts(name)}".rstrip() + "\n"]
        if name in captions:
            parts.append(f"![{name}](figures/{name}.png)\n")
        parts.append(f"```bash\npython -m paper_repro figure {' '.join(words_of(name))}\n```\n")
        if name in captions:
            parts.append(captions[name].replace("*", "\\*") + "\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the gallery of figures.")
    parser.add_argument("names", nargs="*", help="figures to draw again (default: all)")
    chosen = parser.parse_args().names
    figures = Catalogue("paper_repro", papers())
    kept = FOLDER / "captions.json"
    captions = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name in chosen or figures.names:
        captions[name], lengths()[name] = draw(name)
        took = {each: lengths()[each] for each in figures.names if each in lengths()}
        for path, values in ((kept, captions), (LENGTHS, took)):
            write_whole(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        write_whole(PAGE, page(figures, captions))


if __name__ == "__main__":
    main()
