"""Build the site: `python docs/build.py OUT`, after `pip install -e ".[repro,docs]"`.

Pages that are written are in `docs/`; those that follow from docstrings, tables and the ledger of
claims are made by `docs/pages.py`. Warnings are errors, and nothing is read from a network.
Portraits of rules are drawn once and kept in `docs/.portraits` until the sources change, the
notebooks are run once and kept in `docs/.notebooks`; `--stored-notebooks` takes them as they are
stored, without outputs. `--folder latest` puts the site into a folder of OUT, and its version into
OUT/versions.json, from which the pages make a menu; OUT/index.html leads to stable, or to latest.
"""

import argparse
import hashlib
import inspect
import json
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
KEPT = DOCS / ".portraits"


def sources_hash() -> str:
    """Of all that a portrait depends on."""
    import matplotlib
    import torch

    found = hashlib.sha256(f"{matplotlib.__version__} {torch.__version__}".encode())
    for room in ("rules", "solvers", "core", "plot"):
        for path in sorted((ROOT / "mtlfunc" / room).rglob("*.py")):
            found.update(path.read_bytes())
    found.update(inspect.getsource(draw).encode())
    return found.hexdigest()


def draw(call: str, path: Path) -> None:
    """The portrait of a rule, written as one writes it after `from mtlfunc import *`."""
    import matplotlib

    matplotlib.use("Agg")
    import torch
    from matplotlib import pyplot as plt

    import mtlfunc as mf

    rule = eval(call, vars(mf) | {"physics": mf.physics})
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cells without an answer are grey
        panels = mf.plot.portrait(rule, cells=(60, 54))
    figure = panels[0].figure
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def portraits(target: Path) -> set[str]:
    """Draw every rule that two gradients and two losses determine; the names of those drawn."""
    from docs.properties import RULES

    current = KEPT / sources_hash()
    if not current.is_dir():
        shutil.rmtree(KEPT, ignore_errors=True)
        current.mkdir(parents=True)
    calls: dict[str, str] = {}
    for call in RULES:
        calls.setdefault(call.split("(")[0].rpartition(".")[2], call)
    # these read what a probe or an optimizer of their own adds: no picture over two gradients
    measured = {"excess_mtl", "ntk", "safe"}
    for name, call in calls.items():
        path = current / f"{name}.svg"
        if name not in measured and not path.exists():
            print(f"portrait of {call}", flush=True)
            half = path.with_suffix(".part.svg")
            draw(call, half)
            half.replace(path)
    shutil.copytree(current, target)
    return set(calls) - measured


def assemble(source: Path, *, run: bool) -> None:
    """All pages, written and made, in one folder; `run` the notebooks for their outputs."""
    from docs import notebooks, pages

    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("*.py", "__pycache__", ".*"))
    shutil.copy(ROOT / "CHANGELOG.md", source / "changelog.md")
    (source / "notebooks").mkdir()
    if run:
        notebooks.write(source / "notebooks")
    else:
        for path in notebooks.NOTEBOOKS:
            shutil.copy(path, source / "notebooks")
    drawn = portraits(source / "portraits")
    if (source / "distributed.md").exists():
        listed = source / "how-to" / "index.md"
        text = listed.read_text(encoding="utf-8")
        listed.write_text(
            text.replace("\nlogging\n", "\nlogging\n/distributed\n"), encoding="utf-8"
        )
    made = pages.method_pages(drawn) | pages.api_pages() | pages.reproduction_pages()
    made |= pages.example_pages()
    for name, text in made.items():
        path = source / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-"): pages.FOLDERS[letters]
        for letters, name in pages.PAPERS.items()
    }
    index = source / "index.md"
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace("<!-- front -->", pages.front()), encoding="utf-8")
    methods = source / "methods" / "index.md"
    text = methods.read_text(encoding="utf-8")
    methods.write_text(pages.linked(text), encoding="utf-8")
    for path in source.rglob("*.md"):  # in the repository the claims are one page
        text = path.read_text(encoding="utf-8")
        text = text.replace("../experiments/notebooks/", "notebooks/")
        if "claims.md" in text:
            for anchor, folder in anchors.items():
                text = text.replace(f"claims.md#{anchor})", f"reproductions/{folder}.md)")
            text = text.replace("[docs/claims.md](", "[Reproductions](")
            text = text.replace("claims.md)", "reproductions/index.md)")
        path.write_text(text, encoding="utf-8")


def add_version(out: Path, folder: str) -> None:
    """Name a version's folder in the list of all, and lead the root's page to the stable one."""
    import mtlfunc as mf

    listed = out / "versions.json"
    known = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
    known[folder] = mf.__version__
    listed.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    first = "stable" if "stable" in known else folder
    lead = f'<!doctype html><meta http-equiv="refresh" content="0; url={first}/index.html">\n'
    (out / "index.html").write_text(lead, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the site as HTML.")
    parser.add_argument("out", type=Path, help="a folder, made if need be")
    parser.add_argument("--stored-notebooks", action="store_true", help="without their outputs")
    named = "of OUT, for this version among others: stable or latest"
    parser.add_argument("--folder", choices=["stable", "latest"], help=named)
    options = parser.parse_args()
    out: Path = (options.out / (options.folder or "")).resolve()
    sys.path.insert(0, str(ROOT))
    try:
        import latex2mathml.converter  # noqa: F401, for docs/conf.py
        from sphinx.cmd.build import build_main
    except ImportError as missing:
        parser.error(f'{missing.name} is not installed: pip install -e ".[repro,docs]"')
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        assemble(source, run=not options.stored_notebooks)
        keep, html = Path(folder) / "doctrees", Path(folder) / "html"  # myst-nb writes next to it
        arguments = ["-b", "html", "-W", "--keep-going", "-q", "-c", str(DOCS), "-d", str(keep)]
        status = build_main([*arguments, str(source), str(html)])
        texts = []
        for path in sorted(source.rglob("*.md")):  # a page's Markdown next to its HTML
            twin = html / path.relative_to(source)
            twin.parent.mkdir(parents=True, exist_ok=True)
            texts.append(path.read_text(encoding="utf-8"))
            twin.write_text(texts[-1], encoding="utf-8")
        if options.folder:  # of an earlier build, whose pages may be gone
            shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(html, out, dirs_exist_ok=True)
    (out / "llms-full.txt").write_text("\n\n".join(texts), encoding="utf-8")
    from docs import pages

    (out / "llms.txt").write_text(pages.llms(), encoding="utf-8")
    if options.folder:
        add_version(options.out, options.folder)
    print(f"open {out / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
