"""The site of documentation: its code runs, it names every public function, its links resolve."""

import html.parser
import importlib.util
import json
import os
import re
from operator import attrgetter
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from matplotlib import pyplot

import mtlfunc as mf
from docs import outputs, pages
from tests.support import ROOT, python

DOCS = ROOT / "docs"
RUN = [DOCS / name for name in ("start.md", "choosing.md", "solvers.md", "agents.md")]
RUN += [*sorted(DOCS.glob("how-to/*.md")), *sorted(DOCS.glob("from/*.md"))]
RUN += [DOCS / "methods" / "bibliography.md"]
RUN = [path for path in RUN if path.name not in ("index.md", "peers.md")]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_page_runs_and_prints_what_it_shows(path):
    pyplot.close("all")  # those of other pages
    ran = list(outputs.run(path.read_text(encoding="utf-8"), path.name))
    assert ran, "a page without code"
    if all(block.printed is None for block in ran):
        packages = outputs.needs("".join(block.code for block in ran))
        pytest.skip(f"needs {', '.join(dict.fromkeys(packages))}")
    assert any(block.stored for block in ran), "a page that shows no output"
    for block in ran:
        if block.printed is not None:
            found = outputs.difference(block.printed, block.stored or "")
            assert not found, f"after\n{block.code}\n{found}"
    for figure in ran[-1].figures:
        assert f"]({figure.name})" in path.read_text(encoding="utf-8"), "a figure that is not shown"


def test_a_wrong_output_of_a_page_is_found():
    page = "```python\nprint([1.5, 1.25], 'ok')\n```\n\n```text\n{}\n```\n"
    for stored, right in [
        ("[1.5, 1.25] ok", True),
        ("[1.5, 1.26] ok", True),  # within two units of the line's last decimal
        ("[1.5, 1.28] ok", False),
        ("[1.53, 1.25] ok", False),
        ("[1.5, 1.25] no", False),
        ("[1.5, 1.25] ok\nmore", False),
    ]:
        (block,) = outputs.run(page.format(stored), "page")
        assert block.printed is not None
        assert block.stored is not None
        assert (not outputs.difference(block.printed, block.stored)) == right, stored
    assert outputs.written(page.format("?"), "page") == page.format("[1.5, 1.25] ok")


def test_page_for_users_of_torchjd_names_all_that_it_exports():
    aggregation = pytest.importorskip("torchjd.aggregation")
    scalarization = pytest.importorskip("torchjd.scalarization")
    text = (DOCS / "from" / "torchjd.md").read_text()
    bases = {"Aggregator", "Weighting", "GramianWeightedAggregator", "WeightedAggregator"}
    for name in {*aggregation.__all__, *scalarization.__all__} - {*bases, "Scalarizer"}:
        base = name.removesuffix("Weighting")
        assert re.search(rf"`{base}(Weighting)?\b", text) or f"`{base}(" in text, name


def test_page_says_which_aggregators_of_torchjd_are_mapped():
    aggregation = pytest.importorskip("torchjd.aggregation")
    given = {"Constant": [torch.ones(3)], "Krum": [0, 1], "TrimmedMean": [0]}
    given |= {"CAGrad": [0.4], "FairGrad": [1.0], "NashMTL": [3]}
    found, mapped = 0, []
    jacobians = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))
    for name in aggregation.__all__:
        kind = getattr(aggregation, name)
        if "Weight" in name or name == "Aggregator":  # a weighting, or a base
            continue
        found += 1
        try:
            each = torch.func.vmap(kind(*given.get(name, [])))(jacobians)
        except (RuntimeError, ImportError):
            continue
        loop = torch.stack([kind(*given.get(name, []))(matrix) for matrix in jacobians])
        torch.testing.assert_close(each, loop, rtol=1e-3, atol=1e-4)
        mapped.append(name)
    page = (DOCS / "from" / "index.md").read_text(encoding="utf-8")
    assert f"| {len(mapped)} of {found} under `vmap` * |" in page
    assert ", ".join(f"`{name}`" for name in sorted(mapped)) in page


def test_page_says_which_states_of_torchjd_do_not_load():
    aggregation = pytest.importorskip("torchjd.aggregation")
    jacobian = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for name in ("GradVac", "PCD", "ExcessMTL"):
        used = getattr(aggregation, name)()
        used(jacobian)
        with pytest.raises(RuntimeError, match="Unexpected key"):
            getattr(aggregation, name)().load_state_dict(used.state_dict())
    assert "A new `GradVac()`, `PCD()` or `ExcessMTL()`" in (DOCS / "from/torchjd.md").read_text()


def test_every_rule_with_a_paper_is_in_the_bibliography():
    assert set(pages.RULES) - {"mean", "normalize", "stateless"} <= set(pages.papers())
    assert set(pages.papers()) <= {*mf.__all__, *pages.PHYSICS}


def test_reference_has_every_public_name():
    assert set(mf.__all__) - {*pages.ROOMS, "audit"} <= pages.documented()
    for name in pages.documented():
        found = mf
        for part in name.split("."):
            found = getattr(found, part)
        assert found.__doc__, name


def test_every_rule_has_its_method_properties_and_page():
    made = pages.method_pages(set(pages.RULES))
    for name in pages.RULES:
        page = made[f"methods/rule-{name}.rst"]
        assert f"autofunction:: mtlfunc.{pages.path_of(name)}" in page
        assert "In use" in page
        assert "``present``" in page or name == "imtl_g", "what the rule reads"
        if name != "stateless":
            assert "What the audit finds" in page
            assert page.count("\n     - ") >= 2 * 15, "every property, what it says, what is found"
    assert made["methods/gallery.rst"].count(".. image::") == len(pages.RULES)


def test_every_rule_has_a_formula_that_browsers_draw():
    assert set(pages.formulas()) == set(pages.RULES)
    for name, said in pages.formulas().items():
        assert said.count(".. math::") == 1, name
        assert pages.in_words(name).endswith("."), name
        text = attrgetter(pages.path_of(name))(mf).__doc__
        assert re.match(r"[A-Z][\w-]*[ :]", text), "help() begins with words"
    converter = pytest.importorskip("latex2mathml.converter")
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*/*.md")]:
        text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for formula in re.findall(r"\$+([^$]+)\$+", text):
            assert "\\" not in converter.convert(formula), f"{path.name}: {formula}"


def test_every_property_is_explained():
    heads, _, meanings = pages.audited()
    assert set(heads) - set(meanings) <= {"continuous"}


def test_every_claim_has_an_anchor_on_its_papers_page():
    made = pages.reproduction_pages()
    for row in pages.ROWS:
        page = made[f"reproductions/{pages.FOLDERS[row.paper]}.md"]
        assert page.count(f'<a id="{row.id.lower()}"></a>') == 1


class Reader(html.parser.HTMLParser):
    """Places that can be linked to, and links, of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.places |= {place for place in (named.get("id"), named.get("name")) if place}
        if tag == "script":  # the site works without a network
            assert ":" not in (named.get("src") or ""), named
        self.links += [link for link in (named.get("href"), named.get("src")) if link]


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("sphinx", "furo", "myst_nb", "latex2mathml"))),
    reason='needs pip install -e ".[docs]"',
)
def test_site_builds_without_a_warning_and_inner_links_resolve(tmp_path: Path):
    # the notebooks' outputs are the matter of test_notebooks.py
    command = [str(DOCS / "build.py"), str(tmp_path), "--stored-notebooks", "--folder", "latest"]
    gone = tmp_path / "latest" / "gone.html"
    gone.parent.mkdir()
    gone.touch()
    python(*command, env=os.environ | {"DOCS_URL": "https://site.example/stable/"})
    assert not gone.exists()
    assert {x.name for x in tmp_path.iterdir()} == {"index.html", "latest", "versions.json"}
    assert json.loads((tmp_path / "versions.json").read_text()) == {"latest": mf.__version__}
    assert "url=latest/index.html" in (tmp_path / "index.html").read_text()
    tmp_path /= "latest"
    start = (tmp_path / "start.html").read_text(encoding="utf-8")
    assert '<link rel="canonical" href="https://site.example/stable/start.html"' in start
    assert 'src="_static/versions.js' in start
    read_pages = {path: read(path) for path in tmp_path.rglob("*.html")}
    assert len(read_pages) >= 60
    text = (tmp_path / "methods" / "rule-cagrad.html").read_text(encoding="utf-8")
    assert '<div class="math"><math' in text
    assert (tmp_path / "searchindex.js").stat().st_size > 100_000
    broken = []
    for path, page in read_pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, place = unquote(link.split("?")[0] if "#" not in link else link).partition("#")
            target = (path.parent / file.split("?")[0]).resolve() if file else path
            if not target.exists() or (
                place and target in read_pages and place not in read_pages[target].places
            ):
                broken.append(f"{path.relative_to(tmp_path)}: {link}")
    assert not broken
