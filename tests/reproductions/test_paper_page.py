"""report.html: its structure, read as text, and its behaviour in headless Chromium."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from matplotlib.figure import Figure as Canvas

from paper_repro.__main__ import configuration_of, reproductions
from paper_repro.claims import KINDS, LEDGER, PAPERS, ROWS
from paper_repro.report.findings import QUICK, Claim, Figure, Settings
from paper_repro.report.layout import fit
from paper_repro.report.page import MEANING, page
from paper_repro.report.results import VERDICTS, Results, draw
from paper_repro.report.said import filled
from tests.support import ROOT
from tests.support.reproductions import misplaced

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
LEFT_OUT = "gradnorm.reach"
"""A question that has not run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every question but one, with made-up numbers, and their page."""
    out = tmp_path_factory.mktemp("out")
    modules = reproductions()
    results = Results(out, configuration_of(QUICK), modules)
    canvas = Canvas(figsize=(2, 1))
    canvas.add_subplot().plot([0, 1])
    numbers = {f"<number> w_{i}": i / 7 for i in range(60)}
    numbers |= {"share": 0.5, "share, low": 0.25, "share, high": 0.75}
    for name in modules:
        if name == LEFT_OUT:
            continue
        found: list[Any] = [draw(out, name, Figure("drawn", f"<caption> of {name}", canvas))]
        for i, row in enumerate(row for row in ROWS if row.module == name):
            verdict: Any = VERDICTS[i % 4]
            claim = Claim(row.id, verdict, numbers, "<here>; w_i & <b>bold</b>; `code_x`")
            results.add(name, claim)
            found.append(claim)
        results.finish(name, f"key of {name}", found, 1.0)
    keys = {name: f"key of {name}" for name in modules} | {"pcgrad.race": "another"}
    (out / "report.html").write_text(page(results, modules, keys), encoding="utf-8")
    (out / "single.html").write_text(
        page(results, modules, keys, single_file=True), encoding="utf-8"
    )
    return out


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def articles(text: str) -> Iterator[tuple[str, str]]:
    """Ids and HTML of the claims' entries, as they stand."""
    yield from re.findall(r'<article id="([^"]+)">(.*?)</article>', text, re.DOTALL)


# ---- structure ----


def test_every_claim_has_one_anchor_under_its_paper(text: str) -> None:
    found = [identifier for identifier, _ in articles(text)]
    assert sorted(found) == sorted(LEDGER)
    sections = re.split(r'<section id="(PC|SU|CA|GN|X|SI)">', text)
    assert sections[1::2] == list(PAPERS)
    for paper, section in zip(sections[1::2], sections[2::2], strict=True):
        assert {LEDGER[x].paper for x, _ in articles(section)} == {paper}


def test_ids_are_unique_and_every_link_resolves(folder: Path) -> None:
    for name in ("report.html", "single.html"):
        text = (folder / name).read_text(encoding="utf-8")
        ids = re.findall(r'\bid="([^"]*)"', text)
        assert len(ids) == len(set(ids))
        for link in re.findall(r'href="([^"]*)"', text):
            if link.startswith("#"):
                assert html.unescape(link[1:]) in ids, link
            else:
                assert (folder / unquote(link)).is_file(), link
        assert "<link" not in text
        assert "http" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL)


def test_findings_name_numbers_that_the_record_has() -> None:
    said = {row.id: row.finding for row in ROWS if row.finding}
    assert {name.split("-")[0] for name in said} == set(PAPERS) - {"X"}
    for name, template in said.items():
        numbers = json.loads((ROOT / "docs/record/default.json").read_text())["numbers"][name]
        assert "{" not in filled(template, numbers)


def test_older_results_have_a_page(folder: Path) -> None:
    """Of claims that nothing decides today, of other numbers, and of none."""
    results = Results(folder, configuration_of(Settings()), reproductions())
    usual = configuration_of(Settings())
    for identifier, measured in (("PC-01", {"x, low": 1.0}), ("PC-06", {}), ("GN-21", {"x": 1.0})):
        results.found[identifier] = dict(results.found["PC-02"]) | {
            "id": identifier,
            "configuration": usual,
            "measured": measured,
            "where": "as then",
        }
    found = dict(articles(page(results, reproductions(), dict.fromkeys(reproductions(), ""))))
    for identifier in ("PC-01", "PC-06", "GN-21"):
        assert "<strong>Here:</strong> as then.</p>" in found[identifier]


def test_values_are_escaped(text: str) -> None:
    assert "<b>" not in text
    assert "<caption>" not in text
    assert "<number>" not in text
    assert "<here>" not in text
    assert "w<sub>i</sub> &amp; &lt;b&gt;bold&lt;/b&gt;" in text
    assert "<code>code_x</code>" in text  # no index


def test_table_has_every_claim_in_order_with_what_filters_it(text: str) -> None:
    body = text.split('<table class="claims">')[1].split("</table>", maxsplit=1)[0]
    rows = re.findall(
        r'<tr data-paper="(\w+)" data-verdict="([^"]+)" data-kind="([^"]+)">.*?href="#([\w-]+)"',
        body,
    )
    assert [(row[0], row[2], row[3]) for row in rows] == [(r.paper, r.kind, r.id) for r in ROWS]
    assert {row[1] for row in rows} <= set(VERDICTS)
    options = re.findall(r'<option value="([^"]+)"', text)
    assert options == [*PAPERS, *VERDICTS, *KINDS]
    assert set(MEANING) == set(VERDICTS)


def test_nothing_of_the_machine_is_in_it(text: str) -> None:
    assert str(ROOT) not in text


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    modules = reproductions()
    text = page(Results(tmp_path, {}, modules), modules, dict.fromkeys(modules, ""))
    assert sorted(x for x, _ in articles(text)) == sorted(LEDGER)
    assert "<img" not in text


# ---- figures ----


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("entries", [1, 6])
@pytest.mark.parametrize("aspect", ["auto", "equal"])
def test_text_is_fitted_whatever_its_length(columns: int, entries: int, aspect: Any) -> None:
    canvas = Canvas(figsize=(4 * columns, 5), layout="constrained")
    for i in range(columns):
        panel = canvas.add_subplot(1, columns, i + 1)
        for j in range(entries):
            panel.plot([0, 1], [j, entries - j], label=f"a method with a long name, w_{j}")
        panel.set(
            xlabel="a label that goes on for much longer than its panel is wide, in units of L_i",
            ylabel="another one that is longer than its panel is high, of θ^MT " * 2,
            title="a title, and no short one, either, for a panel of this width",
            aspect=aspect,
        )
        panel.legend(loc="center")
    fit(canvas)
    assert not misplaced(canvas)


# ---- in a browser ----

CLICKS = """<script>
const out = {}, visible = () => [...document.querySelectorAll("table.claims tbody tr")]
  .filter((row) => row.offsetParent !== null);
const choose = (name, value) => {
  const select = document.querySelector(`select[name=${name}]`);
  select.value = value;
  select.dispatchEvent(new Event("change", {bubbles: true}));
};
out.all = visible().length;
choose("paper", "GN"); choose("kind", "exact"); choose("verdict", "holds");
out.chosen = visible().map((row) => row.querySelector("a").textContent);
out.said = document.querySelector("#filter output").textContent;
visible()[0].querySelector("a").click();
choose("paper", ""); choose("kind", ""); choose("verdict", "");
out.again = visible().length;
out.wide = document.documentElement.scrollWidth - window.innerWidth;
out.width = window.innerWidth;
setTimeout(() => {
  out.hash = location.hash;
  out.top = document.querySelector(location.hash).getBoundingClientRect().top;
  document.querySelector(`${location.hash} a[href^="#code-"]`).click();
  setTimeout(() => {
    out.open = document.getElementById(decodeURIComponent(location.hash.slice(1))).open;
    out.ground = getComputedStyle(document.body).backgroundColor;
    const pre = document.createElement("pre");
    pre.id = "clicked"; pre.textContent = JSON.stringify(out); document.body.append(pre);
  }, 100);
}, 100);
</script>"""


def clicked(folder: Path, profile: Path, *options: str) -> dict[str, Any]:
    """What the page does in a browser when a reader filters the table and follows links."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "clicked.html").write_text(text.replace("</body>", f"{CLICKS}</body>"))
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=5000",
            *options,
            "--dump-dom",
            (folder / "clicked.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = re.search(r'<pre id="clicked">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1400, 390])
def test_filter_and_anchors_in_chromium(width: int, folder: Path, tmp_path: Path) -> None:
    dark = width == 390
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    found = clicked(folder, tmp_path, f"--window-size={width},900", *scheme)
    claims = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    expected = [
        claim["id"]
        for claim in claims
        if (claim["paper"], claim["kind"], claim["verdict"]) == (PAPERS["GN"], "exact", "holds")
    ]
    assert len(expected) > 1
    assert found["chosen"] == expected
    assert found["said"] == f"{len(expected)} of {len(ROWS)} claims"
    assert found["all"] == found["again"] == len(ROWS)
    assert found["hash"] == f"#{expected[0]}"
    assert 0 <= found["top"] < 900
    assert found["open"]
    assert found["wide"] <= 0
    channels = [int(x) for x in re.findall(r"\d+", found["ground"])[:3]]
    assert max(channels) < 80 if dark else min(channels) > 200
