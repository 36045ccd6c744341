"""The site of documentation: its code runs, it names every public function, its links resolve."""

import html.parser
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

import mtlfunc as mf
from docs import outputs, pages
from tests.support import ROOT

DOCS = ROOT / "docs"
RUN = [
    DOCS / "start.md",
    DOCS / "choosing.md",
    *sorted((DOCS / "how-to").glob("*.md")),
    *sorted((DOCS / "from").glob("*.md")),
    DOCS / "solvers.md",
    DOCS / "agents.md",
    DOCS / "methods" / "bibliography.md",
]
RUN = [path for path in RUN if path.name != "index.md"]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_page_runs_and_prints_what_it_shows(path):
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
    without = {"mean", "normalize", "stateless"}
    assert set(pages.RULES) - without <= set(pages.papers())
    assert set(pages.papers()) <= {*mf.__all__, *pages.PHYSICS}


def test_papers_without_a_function_are_what_the_bibliography_says():
    """DCGD for two losses, DiBS-MTL, NTKMTL, the Chebyshev centre, as their code has them."""
    page = (DOCS / "methods" / "bibliography.md").read_text(encoding="utf-8")
    *_, last = outputs.run(page, "bibliography.md")
    dibs = last.scope["dibs"]
    dice = torch.Generator().manual_seed(0)
    drawn = torch.randn(20, 5, 6, generator=dice, dtype=torch.float64)
    for rows in drawn:
        a, b = two = rows[:2]
        total, bisector = a + b, a / a.norm() + b / b.norm()
        centre = (bisector @ total) / (bisector @ bisector) * bisector
        torch.testing.assert_close(2 * mf.aggregate(mf.config(), two), centre)
        projected = total
        for one, other in ((a, b), (b, a)):
            if total @ one < 0:
                projected = other - (a @ b) / (one @ one) * one
        torch.testing.assert_close(2 * mf.aggregate(mf.dualproj(), two), projected)

        unit = rows / rows.norm(dim=1, keepdim=True)
        for steps in (1, 4):
            moved = torch.zeros_like(rows[0])
            for _ in range(steps):
                moved = moved - 0.1 * (moved + 0.5 * unit).norm(dim=1) @ unit
            found = dibs(rows @ rows.T, 0.5, 0.1, steps)
            torch.testing.assert_close(-found @ rows, moved)
            if steps == 1:
                plain = mf.weights(mf.normalize(mf.mean()), rows @ rows.T)
                torch.testing.assert_close(found / found.sum(), plain / plain.sum())
                ntk = (rows.square().sum() / rows.square().sum(1)).sqrt()
                torch.testing.assert_close(ntk / ntk.sum(), plain / plain.sum())

        d = mf.weights(mf.normalize(mf.mgda()), rows @ rows.T) @ rows
        others = torch.randn(
            500, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        others = others / others.norm(dim=1, keepdim=True)
        best = (others @ unit.T).amin(1).max()
        assert (unit @ d).min() >= best * d.norm()


def test_uw_so_is_what_the_bibliography_says():
    tau, losses = 0.5, torch.tensor([0.4, 1.0, 3.0])
    rule = mf.stateless(lambda gramian, losses: torch.softmax(1 / (tau * losses), 0))
    powers = [math.exp(1 / x / tau) for x in losses.tolist()]
    expected = torch.tensor([power / sum(powers) for power in powers])
    torch.testing.assert_close(mf.weights(rule, torch.eye(3), losses), expected)


def test_weights_of_physics_libraries_are_what_the_bibliography_says():
    """jaxpi's gradient norms, averaged over steps, and SoftAdapt, which sees the present losses."""
    drawn = torch.rand(6, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def lines(params, rows):  # the losses at 0 are the rows' first entries, all positive
        return rows[:, 0] + rows @ params["x"]

    params = {"x": torch.zeros(5, dtype=torch.float64)}
    rule = mf.momentum(mf.normalize(mf.mean()), 0.9)
    norms = mf.balance(lines, rule, mf.jacobian(), reduction="sum")
    soft = mf.balance(lines, mf.dwa(1, 1.0), mf.losses_only())
    states = [step.init(params, drawn[0]) for step in (norms, soft)]
    expected, before = None, []
    for rows in drawn:
        length = rows.norm(dim=1)
        now = length.mean() / length
        expected = now if expected is None else 0.9 * expected + 0.1 * now
        _, states[0], info = norms.update(params, rows, states[0])
        torch.testing.assert_close(info.weights, expected)

        _, states[1], info = soft.update(params, rows, states[1])
        if len(before) > 1:
            torch.testing.assert_close(info.weights, torch.softmax(before[-1] / before[-2], 0))
        before.append(rows[:, 0])


def test_modular_gradient_surgery_is_what_the_bibliography_says():
    """MGS for two tasks: PCGrad for each tensor separately, then the sum."""

    def losses(params, rows):
        return rows @ torch.cat([params["a"], params["b"]])

    params = {"a": torch.zeros(2), "b": torch.zeros(4)}
    drawn = torch.randn(20, 2, 6, generator=torch.Generator().manual_seed(0))
    for rows in drawn:
        _, found = mf.task_gradients(losses, params, rows)
        grads = {n: 2 * mf.weights(mf.pcgrad(), x @ x.mT) @ x for n, x in found.items()}
        for name, (p, q) in zip("ab", rows.split([2, 4], dim=1), strict=True):
            conflict = (p @ q).clamp_max(0)
            expected = p - conflict / (q @ q) * q + q - conflict / (p @ p) * p
            torch.testing.assert_close(grads[name], expected)


def test_reference_has_every_public_name():
    rooms = {*pages.ROOMS, "audit"}
    assert set(mf.__all__) - rooms <= pages.documented()
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
            drawn = converter.convert(formula)
            assert "\\" not in drawn, f"{path.name}: {formula}"


def test_every_property_is_explained():
    heads, _, meanings = pages.audited()
    assert set(heads) - set(meanings) <= {"continuous"}


def test_every_claim_has_an_anchor_on_its_papers_page():
    made = pages.reproduction_pages()
    for row in pages.ROWS:
        page = made[f"reproductions/{pages.FOLDERS[row.paper]}.md"]
        assert page.count(f'<a id="{row.id.lower()}"></a>') == 1


# ---- the site as it is built ---------------------------------------------------------------------


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
    any(
        importlib.util.find_spec(name) is None
        for name in ("sphinx", "furo", "myst_nb", "latex2mathml")
    ),
    reason='needs pip install -e ".[docs]"',
)
def test_site_builds_without_a_warning_and_inner_links_resolve(tmp_path: Path):
    # the notebooks' outputs are the matter of test_notebooks.py
    command = [sys.executable, str(DOCS / "build.py"), str(tmp_path), "--stored-notebooks"]
    command += ["--folder", "latest"]
    gone = tmp_path / "latest" / "gone.html"
    gone.parent.mkdir()
    gone.touch()
    address = {"DOCS_URL": "https://site.example/stable/"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | address
    )
    assert done.returncode == 0, done.stderr
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
