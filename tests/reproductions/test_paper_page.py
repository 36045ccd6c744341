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
from paper_repro.report import of_record
from paper_repro.report.entry import command_of, typeset
from paper_repro.report.findings import QUICK, TENTH, Claim, Figure, Settings
from paper_repro.report.layout import fit
from paper_repro.report.layout import typeset as formulas
from paper_repro.report.page import FINDINGS, MEANING, page
from paper_repro.report.results import VERDICTS, Results, draw
from paper_repro.report.said import filled
from paper_repro.report.summary import table
from tests.support import ROOT
from tests.support.reproductions import misplaced

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DECIDED = [row for row in ROWS if row.module]
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


def test_size_and_figures(folder: Path, text: str) -> None:
    assert len(text.encode()) <= 2_000_000
    images = re.findall(r'<img [^>]*src="([^"]*)"', text)
    assert sorted(map(unquote, images)) == sorted(x.name for x in folder.glob("*.png"))
    assert len(re.findall(r'href="[^"]*\.svg"', text)) == len(images)
    single = (folder / "single.html").read_text(encoding="utf-8")
    embedded = re.findall(r'<img [^>]*src="data:image/png;base64,[^"]+"', single)
    assert len(embedded) == len(images)
    assert ".svg" not in re.sub(r"<pre.*?</pre>", "", single, flags=re.DOTALL)


def test_each_decided_claim_leads_to_its_evidence(text: str) -> None:
    found = dict(articles(text))
    for row in DECIDED:
        entry = found[row.id]
        if row.module == LEFT_OUT:
            assert f"--only {LEFT_OUT}" in entry
            assert "Run again" not in entry
            continue
        assert f'href="#figure-{row.module}-drawn"' in entry
        assert f"python -m paper_repro --quick --only {row.id}</code>" in entry
        path = f"paper_repro/{row.module.replace('.', '/_?')}.py"
        assert re.search(rf"{path}:\d+</code> in <a href=\"#code-{row.module}-", entry), row.id
        decided = re.search(r"Decided by <code>(\S+\.py):(\d+)–(\d+)</code>", entry)
        assert decided, row.id
        lines = ROOT.joinpath(decided[1]).read_text().splitlines()
        first = lines[int(decided[2]) - 1].rstrip()
        assert html.escape(f"{decided[2]:>4}  {first}") in entry
        assert "[0.25, 0.75]" in entry


def test_a_card_says_what_the_paper_claims_and_what_came_out(text: str) -> None:
    for identifier, entry in articles(text):
        parts = re.findall(r"<p><strong>(.+?):</strong> (.+?)</p>", entry)
        text = "paper" if identifier[:3] in ("PC-", "CA-", "GN-") else "claim"
        assert [name for name, _ in parts] == [f"The {text}", "Here"], identifier
        assert all(found.strip(". ") for _, found in parts), identifier


def test_the_page_begins_with_findings(text: str) -> None:
    """In words where the numbers are those that the sentence names, else as on the card."""
    begin = text.split('<nav id="contents">', maxsplit=1)[0]
    run = [name for name in FINDINGS if LEDGER[name].module != LEFT_OUT]
    assert re.findall(r'<li><a href="#([^"]+)">', begin) == [
        row.id for row in ROWS if row.id in run
    ]
    assert begin.index("<strong>Here:</strong>") < begin.index("The last run")
    assert set(FINDINGS) <= set(LEDGER)
    assert {LEDGER[name].paper for name in FINDINGS} == set(PAPERS) - {"X"}


def test_findings_name_numbers_that_the_record_has() -> None:
    for name, template in FINDINGS.items():
        numbers = json.loads((ROOT / "docs/record/default.json").read_text())["numbers"][name]
        assert "{" not in filled(template, numbers)


def test_what_the_record_has_otherwise_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the card and after the run; not where all runs agree with this one."""
    runs = "hangs on the size: the default run says holds"
    same = of_record.Kept(verdict="holds", default="holds", when="", runs="", numbers="", bounds="")
    numbers = "x: 1 [0, 2], device 3"
    other: of_record.Kept = {**same, "verdict": "does not hold", "runs": runs, "numbers": numbers}
    row, one = (r for r in DECIDED[:9] if r.id in ("PC-02", "PC-03"))
    monkeypatch.setattr(of_record, "kept", lambda: {row.id: other, one.id: same})
    results = Results(folder, configuration_of(QUICK), reproductions())
    usual = configuration_of(Settings())
    for identifier in (row.id, one.id):
        results.found[identifier] |= {"verdict": "holds", "configuration": usual}
    found = dict(articles(page(results, reproductions(), dict.fromkeys(reproductions(), ""))))
    assert (
        "Of record: does not hold (hangs on the size: the default run says holds; numbers that "
        "leave their interval: x: 1 [0, 2], device 3)." in found[row.id]
    )
    assert "Of record" not in found[one.id]
    text = table(results, reproductions())
    assert (
        f"is a larger run's (docs/claims.md):\n{row.id}  holds; of record: does not hold\n" in text
    )
    assert "kept of this size" not in text
    assert f"{one.id}  holds; " not in text
    results.found[one.id] |= {"verdict": "inconclusive"}
    results.found[row.id] |= {"configuration": configuration_of(Settings(full=True))}
    text = table(results, reproductions())
    said = f"{row.id}  holds; kept: does not hold\n{one.id}  inconclusive; kept: holds\n"
    assert f"kept of this size (docs/claims.md):\n{said}" in text
    assert "a larger run's" not in text
    for identifier in (row.id, one.id):  # of a small budget
        results.found[identifier] |= {"configuration": configuration_of(QUICK)}
    assert "(docs/claims.md)" not in table(results, reproductions())


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


def test_a_small_budget_is_said_where_it_settles_nothing(folder: Path) -> None:
    results = Results(folder, configuration_of(QUICK), reproductions())
    numbers = {f"{side}: difference{end}": -1.0 for side in "ab" for end in ("", ", low", ", high")}
    for verdict, said in (("inconclusive", True), ("does not hold", False)):
        results.found["PC-27"] |= {"verdict": verdict, "measured": numbers}
        found = dict(articles(page(results, reproductions(), dict.fromkeys(reproductions(), ""))))
        assert ("; this budget is too small to settle it.</p>" in found["PC-27"]) == said


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


def test_results_of_other_code_are_marked(text: str) -> None:
    notice = "Found by an earlier run, of other code, settings or libraries"
    assert text.count(notice) == 1
    assert notice in text.split('<section id="pcgrad.race">')[1].split("<figure", maxsplit=1)[0]


def test_nothing_of_the_machine_is_in_it(text: str) -> None:
    assert str(ROOT) not in text


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    modules = reproductions()
    text = page(Results(tmp_path, {}, modules), modules, dict.fromkeys(modules, ""))
    assert sorted(x for x, _ in articles(text)) == sorted(LEDGER)
    assert "<img" not in text


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (Settings(), ""),
        (QUICK, " --quick"),
        (QUICK._replace(seeds=7), " --quick --seeds 7"),
        (Settings(full=True, seeds=3), " --full --seeds 3"),
        (Settings(full=True, shrink=TENTH), " --full --tenth"),
    ],
)
def test_commands_repeat_the_run(settings: Settings, options: str) -> None:
    command = command_of("GN-21", configuration_of(settings))
    assert command == f"python -m paper_repro{options} --only GN-21"


@pytest.mark.parametrize(
    ("raw", "on_page", "drawn"),
    [
        ("w_i", "w<sub>i</sub>", "$w_{i}$"),
        ("θ^MT", "θ<sup>MT</sup>", r"$θ^{\mathrm{MT}}$"),
        ("Ḡ r_i^α", "Ḡ r<sub>i</sub><sup>α</sup>", "Ḡ $r_{i}^{α}$"),
        ("‖∇_W L_i‖", "‖∇<sub>W</sub> L<sub>i</sub>‖", "‖$∇_{W}$ $L_{i}$‖"),
        ("2G_12, σ_i²", "2G<sub>12</sub>, σ<sub>i</sub>²", "2$G_{12}$, $σ_{i}$²"),
        ("active_set", "active_set", "active_set"),
    ],
)
def test_indices_are_typeset(raw: str, on_page: str, drawn: str) -> None:
    assert typeset(raw) == on_page
    assert formulas(raw) == drawn
    assert formulas(drawn) == drawn


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
