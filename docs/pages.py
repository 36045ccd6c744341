"""The pages of the site that are made of docstrings, tables and the ledger of claims.

Each function returns `{path below docs/: text}`; `docs/build.py` writes them.
"""

import ast
import inspect
import json
import re
from operator import attrgetter
from pathlib import Path

import mtlfunc as mf
from docs import record
from docs.verdicts import shown, standing
from paper_repro.claims import DECISIONS, KINDS, PAPERS, ROWS
from paper_repro.report import of_record, standins
from paper_repro.report.decisions import Row
from paper_repro.report.said import said

DOCS = Path(__file__).parent
APPLIED = {"aggregate", "weights"}  # these two apply a rule
PHYSICS = {"gauss_newton", "ntk"}  # rules of `mf.physics`
RULES = sorted({*mf.rules.__all__, *PHYSICS} - APPLIED)
FOLDERS = {
    "PC": "pcgrad",
    "SU": "mgda",
    "CA": "cagrad",
    "GN": "gradnorm",
    "X": "cross_paper",
    "SI": "since",
}
"""Folders of paper_repro, which are also the names of the pages, by the letters of a claim."""
REPRODUCED = {"pcgrad": "pcgrad", "mgda": "mgda", "cagrad": "cagrad", "gradnorm": "gradnorm"}

GROUPS = {
    "training": (
        "Steps and loops",
        """descend balance capture Balancer log_dict adam sgd parameters stack
        assign_gradients""",
    ),
    "probes": (
        "Probes",
        """jacobian representation losses_only double_sampling moving_average excess_risk
        second_evaluation graddrop subset Run""",
    ),
    "gradients": (
        "Gradients and Gramians",
        """task_jacobian task_gradients task_gramian sample_gradients sample_gramian sample_norms
        explain_gramian""",
    ),
    "studies": ("Studies: grid, audit, arena", "grid audit arena"),
}
TYPES = [
    "Probe",
    "Rule",
    "Optimizer",
    "Step",
    "Geometry",
    "Info",
    "TaskJacobian",
    "TrainState",
]
ROOMS = {
    "solvers": "Solvers",
    "testing": "Testing of solvers",
    "physics": "Residuals of equations",
    "muon": "Common descent for Muon",
    "diagnostics": "Diagnostics",
    "plot": "Plots",
    "optim": "Optimizers",
    "random": "Random keys",
}


def path_of(rule: str) -> str:
    """A rule's name as one writes it after `mf.`."""
    return f"physics.{rule}" if rule in PHYSICS else rule


def title(text: str, line: str = "=") -> str:
    """A heading of reStructuredText, wide characters allowed for."""
    return f"{text}\n{line * (2 * len(text))}\n\n"


def cells(row: str) -> list[str]:
    """The cells of a row of a Markdown table."""
    return [cell.strip() for cell in row.strip().strip("|").split(" | ")]


def methods() -> list[list[str]]:
    """The rows of the table of methods: method, rule, probe, what the weights sum to."""
    text = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    return [cells(line) for line in text.splitlines() if line.startswith("| ") and "`mf." in line]


def linked(text: str) -> str:
    """The table of methods, its rules linked to their pages."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("| ") and "`mf." in line:
            row = cells(line)
            name = re.match(r"`mf\.(?:physics\.)?(\w+)\(", row[1])
            if name and name[1] in RULES:
                row[1] = f"[{row[1]}](rule-{name[1]}.rst)"
                lines[i] = f"| {' | '.join(row)} |"
    return "\n".join(lines)


def rst(cell: str) -> str:
    """A cell of Markdown in reStructuredText."""
    parts = re.split(r"`([^`]+)`", cell)
    parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    return "".join(parts) or "–"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A list table, whose first row is its head."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        for i, cell in enumerate(row):
            lines.append(f"   {'*' if not i else ' '} - {cell}")
    return "\n".join(lines) + "\n\n"


# ---- front page ----------------------------------------------------------------------------------


def front() -> str:
    """The README up to its commands, with the site's links."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    text = text[text.index("\n") : text.index("## Three uses")]
    return text.replace("](docs/", "](").strip()


def llms() -> str:
    """llms.txt: what the site has, a line per page, for programs that read it."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    about = " ".join(text.split("\n\n")[1].split())
    lines = ["# mtlfunc\n", f"> {about}\n", "## Pages\n"]
    for path in [
        "agents",
        "start",
        "choosing",
        "concepts",
        "tour",
        "solvers",
        "limits",
    ]:
        lines.append(f"- [{heading_of(DOCS / f'{path}.md')}]({path}.md)")
    for folder in ("how-to", "from"):
        for path in sorted((DOCS / folder).glob("*.md")):
            if path.name != "index.md":
                lines.append(f"- [{heading_of(path)}]({folder}/{path.stem}.md)")
    rules = [
        f"- [mf.{path_of(name)}](methods/rule-{name}.md): "
        f"{first_line(attrgetter(path_of(name))(mf).__doc__)}"
        for name in RULES
    ]
    return "\n".join([*lines, "\n## Rules\n", *rules, ""])


def heading_of(path: Path) -> str:
    """A page's title."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


# ---- a page per rule -----------------------------------------------------------------------------


def audited() -> tuple[list[str], dict[str, list[list[str]]], dict[str, str]]:
    """Heads and rows of the table of properties by rule, and what each head means."""
    text = (DOCS / "properties.md").read_text(encoding="utf-8")
    rows = [cells(line) for line in text.splitlines() if line.startswith("| ")]
    found: dict[str, list[list[str]]] = {}
    for row in rows[1:]:
        name = row[0].strip("`").partition("(")[0].rpartition(".")[2]
        found.setdefault(name, []).append(row)
    legend = " ".join(text[text.index("✓ holds") :].split("\n\n")[0].split())
    meanings = dict(re.findall(r"\*([^*]+)\*:? ?([^*]*?)(?=[;.] \*|\. T is)", legend))
    return rows[0][1:], found, meanings


def properties_part(name: str) -> str:
    """What the audit finds of a rule: one line a property."""
    heads, found, meanings = audited()
    rows = found.get(name, [])
    if not rows:
        return ""
    lines = [
        [f"*{head}*", rst(meanings.get(head, "")), *(row[i] for row in rows)]
        for i, head in enumerate(heads, 1)
    ]
    head = ["property", "what it says", *(rst(row[0]) for row in rows)]
    return (
        title("What the audit finds", "-")
        + "✓ holds over all instances; ✗ fails; (✗) fails only where gradients are linearly "
        + "dependent; – does not apply. All rules next to each other, and how this is found: "
        + ":doc:`/properties`. The smallest counterexample of every ✗: "
        + f"``print(mf.audit({qualified(rows[0][0].strip('`'))}))``.\n\n"
        + table(head, lines)
    )


def qualified(call: str) -> str:
    """A rule as one writes it after `import mtlfunc as mf`."""
    return re.sub(r"(?<![\w.])(?=[a-z_.]+\()", "mf.", call)


def heading(name: str) -> str:
    """What a method is called, from the table of methods."""
    for row in methods():
        if re.match(rf"`mf\.{path_of(name)}\(", row[1]):
            return row[0][0].upper() + row[0][1:]
    return name


def formulas() -> dict[str, str]:
    """What each rule computes, in words and as a formula, in reStructuredText."""
    text = (DOCS / "methods" / "formulas.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### (\w+)\n\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
    return {name: with_math(said) for name, said in sections}


def in_words(name: str) -> str:
    """What a rule computes, in a sentence."""
    return re.split(r"(?<=\.)\s", formulas()[name].replace("\n", " "))[0]


def with_math(text: str) -> str:
    """Markdown with formulas, in reStructuredText."""
    prose, *rest = re.split(r"\$\$(.*?)\$\$", text, flags=re.DOTALL)
    words = re.split(r"\$([^$]+)\$", prose)
    words[::2] = [rst(word) if word else "" for word in words[::2]]
    words[1::2] = [f":math:`{word}`" for word in words[1::2]]
    blocks = [f".. math::\n\n{indented(formula.strip())}\n\n" for formula in rest[::2]]
    return "".join(words).strip() + "\n\n" + "".join(blocks)


def papers() -> dict[str, str]:
    """The paper of each method, from the bibliography, in reStructuredText."""
    text = (DOCS / "methods" / "bibliography.md").read_text(encoding="utf-8")
    rows = [cells(line) for line in text.splitlines() if line.startswith("| `mf.")]
    link = re.compile(r"\[([^]]+)\]\(([^)]+)\)")
    return {
        name: link.sub(r"`\1 <\2>`__", paper)
        for names, paper in rows
        for name in re.findall(r"mf\.(?:physics\.)?(\w+)", names)
    }


def reads(call: str) -> str:
    """What a rule of the table of methods reads of the geometry, as the rule says it."""
    scope = {"mf": mf, "f": lambda gramian: gramian[0]}
    rule: mf.Rule = eval(call.split("`")[1], scope)
    return ", ".join(f"``{field}``" for field in sorted(rule.reads or ())) or "anything"


def method_page(name: str, drawn: bool) -> str:
    """What a rule is, promises and looks like."""
    found = [row for row in methods() if f"`mf.{path_of(name)}(" in row[1]]
    used = [[*map(rst, row[:3]), reads(row[1]), *map(rst, row[3:])] for row in found]
    parts = [title(f"{heading(name)}: ``{name}``"), formulas()[name]]
    if drawn:
        parts += [
            picture(name, f"direction, length and rates of {name} over angle and ratio of lengths"),
            "Two tasks, over the angle between their gradients and the ratio of their lengths: "
            "where the direction points, how long it is, and each task's rate; hatched where a "
            "loss rises. Drawn by ``mtlfunc.plot.portrait``; all of them: :doc:`gallery`.\n\n",
        ]
    if name in papers():
        parts.append(f"**Paper.** {papers()[name]}.\n\n")
    parts.append(f".. autofunction:: mtlfunc.{path_of(name)}\n\n")
    if used:
        head = ["method", "rule", "probe", "reads", "weights sum to"]
        parts += [title("In use", "-"), table(head, used)]
    parts.append(properties_part(name))
    if name in REPRODUCED:
        parts += [
            title("Reproduction", "-"),
            f"The paper's claims, one by one: :doc:`/reproductions/{REPRODUCED[name]}`.\n",
        ]
    return "".join(parts)


def picture(name: str, alt: str) -> str:
    """A rule's portrait, in a box of its own that scrolls where the screen is narrow."""
    image = f".. image:: ../portraits/{name}.svg\n   :class: portrait\n   :alt: {alt}"
    return f".. container:: picture\n\n{indented(image)}\n\n"


def method_pages(drawn: set[str]) -> dict[str, str]:
    """A page for every rule, and the gallery of portraits."""
    pages = {f"methods/rule-{name}.rst": method_page(name, name in drawn) for name in RULES}
    gallery = [
        title("Gallery of portraits"),
        "What each rule does with two tasks, over the angle between their gradients (across, 0° to "
        "180°) and the ratio of their lengths (upwards). From left to right: the direction, from "
        "g₁ to g₂; its length, in units of the mean gradient; the rates of both tasks, where red "
        "and hatched means that this loss rises. Rules with state are shown at their first step; "
        "losses are equal.\n\n",
    ]
    for name in RULES:
        if name in drawn:
            gallery.append(
                f"{title(heading(name), '-')}:doc:`rule-{name}`\n\n"
                + picture(name, f"portrait of {name}")
            )
    pages["methods/gallery.rst"] = "".join(gallery)
    return pages


# ---- reference -----------------------------------------------------------------------------------


def entry(path: str) -> str:
    """The directive that documents a public name."""
    room, _, rule = path.rpartition(".")
    if room == "physics" and rule in PHYSICS:
        return f"``mtlfunc.{path}``: :doc:`/methods/rule-{rule}`.\n\n"
    found = attrgetter(path)(mf)
    if place_of(path) != path:
        return f"``mtlfunc.{path}`` is :py:func:`mtlfunc.{place_of(path)}`.\n\n"
    if inspect.isclass(found):
        tuple_like = issubclass(found, tuple)
        error = issubclass(found, BaseException)
        members = "" if tuple_like or error else "   :members:\n"
        return f".. autoclass:: mtlfunc.{path}\n{members}\n"
    if not callable(found):
        return f"``mtlfunc.{path}``: {', '.join(map(str, found))}\n\n"
    return f".. autofunction:: mtlfunc.{path}\n\n"


def place_of(path: str) -> str:
    """Where a name is documented: each thing has one place, to which its source links back."""
    found = attrgetter(path)(mf)
    rooms = [room for room in ROOMS if getattr(getattr(mf, room), path, None) is found]
    return f"{rooms[0]}.{path}" if rooms else path


def public(room: str) -> list[str]:
    """Public names of a room of functions."""
    module = getattr(mf, room)
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        ]
    return sorted(listed, key=lambda name: (name[0].isupper(), name))


def first_line(text: str | None) -> str:
    """The first sentence of a docstring."""
    return " ".join((text or "").split("\n\n")[0].split())


def api_pages() -> dict[str, str]:
    """Every public name once: rules on their own pages, the rest by subject."""
    pages = {}
    for file, (name, members) in GROUPS.items():
        pages[f"api/{file}.rst"] = title(name) + "".join(map(entry, members.split()))
    for room, name in ROOMS.items():
        about = first_line(getattr(mf, room).__doc__)
        lines = [title(f"{name}: ``mtlfunc.{room}``"), f"{rst(about)}\n\n"]
        pages[f"api/{room}.rst"] = "".join(
            [*lines, *(entry(f"{room}.{member}") for member in public(room))]
        )
    rules = [[f":doc:`{name} </methods/rule-{name}>`", in_words(name)] for name in RULES]
    applied = "".join(entry(name) for name in sorted(APPLIED))
    pages["api/rules.rst"] = title("Rules") + table(["rule", "what it is"], rules) + applied
    types = DOCS.parent / "mtlfunc" / "types.py"
    pages["api/types.rst"] = (
        title("Types")
        + "A method is made of named tuples of pure functions. All of them, on one screen, are at "
        + "the end of this page.\n\n"
        + "".join(map(entry, TYPES))
        + title("mtlfunc/types.py", "-")
        + f".. code-block:: python\n\n{indented(types.read_text(encoding='utf-8'))}\n"
    )
    pages["api/index.rst"] = api_index()
    return pages


def api_index() -> str:
    """Every public name with a line, in groups."""
    groups = {file: (name, members.split()) for file, (name, members) in GROUPS.items()}
    groups["rules"] = ("Rules", [*RULES, *sorted(APPLIED)])
    groups |= {
        room: (name, [f"{room}.{member}" for member in public(room)])
        for room, name in ROOMS.items()
    }
    groups["types"] = ("Types", TYPES)
    parts = [
        title("API reference"),
        "``import mtlfunc as mf``: every public name, with its arguments, what comes back and what "
        "is raised.\n\n",
    ]
    order = ["training", "rules", "probes", "gradients", "studies", *ROOMS, "types"]
    for file in order:
        name, members = groups[file]
        rows = []
        for member in members:
            found = attrgetter(path_of(member))(mf)
            page = f"/methods/rule-{member}" if member in RULES else None
            place = path_of(member) if page else f"mtlfunc.{place_of(member)}"
            label = f":doc:`mf.{place} <{page}>`" if page else f":py:obj:`mf.{member} <{place}>`"
            said = rst(first_line(found.__doc__) if callable(found) else "")
            rows.append([label, in_words(member) if page else said])
        parts += [
            title(name, "-"),
            f"In full: :doc:`{file}`.\n\n",
            table(["name", "what it is"], rows),
        ]
    toctree = "\n".join(f"   {file}" for file in order)
    return "".join([*parts, f".. toctree::\n   :hidden:\n\n{toctree}\n"])


def indented(text: str) -> str:
    """Text as the body of a directive."""
    return "\n".join(f"   {line}".rstrip() for line in text.splitlines())


def documented() -> set[str]:
    """Names that have a place in the reference, as written after `mtlfunc.`."""
    top = {name for _, members in GROUPS.values() for name in members.split()}
    return top.union(
        map(path_of, RULES),
        APPLIED,
        TYPES,
        (f"{room}.{name}" for room in ROOMS for name in public(room)),
    )


# ---- reproductions -------------------------------------------------------------------------------


def numbers() -> tuple[record.Run, dict[str, str]]:
    """The default run of the record, and the captions of its pictures by folder."""
    kept = record.read("default")
    assert kept is not None
    captions = (DOCS / "reproductions" / "captions.json").read_text(encoding="utf-8")
    return kept, json.loads(captions)


def numbers_part(row: Row, claim: dict[str, str], kept: record.Run) -> str:
    """What a claim's verdict rests on, folded: the decision in words, and every number."""
    table = "\n".join(
        f"| {claim_cell(name)} | {value:.4g} |" for name, value in kept.numbers[row.id].items()
    )
    found = said(DECISIONS[row.id], kept.numbers[row.id]).replace("*", "\\*")
    marks = of_record.marks(claim)
    runs = f"Of record: {claim['verdict']}. {marks}.\n\n" if marks else ""
    return (
        f"````{{dropdown}} {row.id}, {shown(row, claim['verdict'])}\n{row.statement}\n\n"
        f"**Here (default run):** {found}.\n\n{runs}"
        f"*{kept.where[row.id]}. The claim {DECISIONS[row.id].fails}*\n\n"
        f"| measured | |\n|---|---|\n{table}\n\n`python -m paper_repro --only {row.id}`\n````\n"
    )


def standins_part(rows: list[Row]) -> str:
    """Claims about data that are not here: published next to measured, then every gain."""
    table = standins.table(rows)
    folded = [standin_part(found) for row in rows for found in standins.of(row)]
    return "\n".join(["## Other data, and what stands in\n", table, "", *folded]) if table else ""


def standin_part(found: dict) -> str:
    """Every gain that a stand-in was judged by, and every level, by seeds."""
    runs = found["runs"]
    lines = [
        f"| {claim_cell(name)} | "
        + " | ".join(
            "{mean:+.3g} [{low:+.3g}, {high:+.3g}]".format(**run[part][name])
            for run in runs.values()
        )
        + " |"
        for part in ("gains", "levels")
        for name in next(iter(runs.values()))[part]
    ]
    return (
        f"````{{dropdown}} {found['claim']}, {found['study']}\n{standins.said(found)}. It holds if "
        f"{found['holds']}.\n\n| gains, then levels | seeds {' | seeds '.join(runs)} |\n"
        f"{'|---' * (1 + len(runs))}|\n" + "\n".join(lines) + "\n````\n"
    )


def question(module: str) -> str:
    """The question that a reproduction asks: the first line of its file."""
    folder, name = module.rsplit(".", 1)
    folder = DOCS.parent / "paper_repro" / folder.replace(".", "/")
    path = folder / f"{name}.py"
    if not path.exists():  # its name is that of a figure, which the folder offers
        path = folder / f"_{name}.py"
    text = re.match(r'"""(.*?)(?:\n\n|""")', path.read_text(encoding="utf-8"), re.DOTALL)
    return " ".join(text.group(1).split()) if text else ""


def claim_cell(text: str) -> str:
    """Prose in a cell of Markdown: no bar ends it."""
    return text.replace("|", "\\|")


def verdict_cell(row: Row, claim: dict[str, str]) -> str:
    """A verdict, with a mark if it hangs on something."""
    hangs = of_record.marks({**claim, "when": ""})
    return shown(row, claim["verdict"]) + ("\\*" if hangs else "")


def reproduction_pages() -> dict[str, str]:
    """A page a paper: its claims, their verdicts and the questions behind them."""
    found, (kept, captions) = standing(), numbers()
    pages = {}
    for letters, name in PAPERS.items():
        rows = [row for row in ROWS if row.paper == letters]
        folder = FOLDERS[letters]
        modules = list(dict.fromkeys(row.module for row in rows if row.module))
        picture = captions.get(folder)
        counted: dict[str, int] = {}
        for row in rows:
            verdict = found[row.id]["verdict"]
            counted[verdict] = counted.get(verdict, 0) + 1
        said = ", ".join(f"{verdict} {count}" for verdict, count in counted.items())
        lines = [
            f"# {name}\n",
            f"{len(rows)} claims: {said}. The numbers and figures behind each are in "
            "`paper_repro/out/report.html`, after\n",
            f"```bash\npython -m paper_repro --only {folder}\n```\n",
            f"![]({folder}.png)\n\n{picture}\n" if picture else "",
            "## Claims\n\n| id | verdict | claim | kind | decided by |\n|---|---|---|---|---|",
            *(
                f'| <a id="{row.id.lower()}"></a>{row.id} | {verdict_cell(row, found[row.id])} '
                f"| {claim_cell(row.statement)} | {row.kind} "
                f"| {f'`{row.module}`' if row.module else '–'} |"
                for row in rows
            ),
            "\n## Numbers\n\nEach claim's decision in words and every number that was read, of the "
            "default run; published numbers stand next to measured ones under their names.\n",
            *(numbers_part(row, found[row.id], kept) for row in rows if row.id in kept.numbers),
            standins_part(rows),
            "\n## Questions\n\nEach is one file; `--only` takes its name, or a claim's.\n",
            *(f"- `{module}`: {question(module)}" for module in modules),
        ]
        pages[f"reproductions/{folder}.md"] = "\n".join(lines) + "\n"
    kinds = "\n".join(f"- **{kind}**: {meaning}" for kind, meaning in KINDS.items())
    listed = "\n".join(FOLDERS.values())
    pages["reproductions/index.md"] = (
        "# Reproductions\n\nEvery definition, theorem, experiment and number of four papers in a "
        "sentence, and some of the field since 2020, with the verdict of record: that of "
        "the largest run that decides. A verdict with an asterisk hangs on the run, on a threshold "
        "or on a processor; its numbers say on which. A dash means that "
        f"no reproduction decides the claim.\n\n{kinds}\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n{listed}\n```\n"
    )
    return pages


# ---- examples ------------------------------------------------------------------------------------


def example_pages() -> dict[str, str]:
    """A page for every training loop of experiments/examples: what its file says, and its code."""
    pages, rows = {}, []
    for path in sorted((DOCS.parent / "experiments" / "examples").glob("[a-z]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        said = ast.get_docstring(module)
        assert said, path
        head, _, rest = said.partition("\n\n")
        head = " ".join(head.split())
        name, code = path.stem, path.read_text(encoding="utf-8").split('"""', 2)[2].strip()
        pages[f"examples/{name}.md"] = (
            f"# {name.replace('_', ' ').capitalize()}\n\n{head}\n\n{rest}\n\n"
            f"## The whole file\n\n`experiments/examples/{path.name}`\n\n"
            f"```python\n{code}\n```\n"
        )
        rows.append(f"| [{name}]({name}.md) | {claim_cell(head)} |")
    listed = "\n".join(name.split("/")[1].removesuffix(".md") for name in pages)
    pages["examples/index.md"] = (
        "# Examples in other training loops\n\nEach page is one file of a checkout and runs with "
        "`python -m experiments.examples.NAME`. The examples train small networks on made-up data; "
        "`problem` defines them.\n\n| example | what it shows |\n|---|---|\n"
        + "\n".join(rows)
        + f"\n\n```{{toctree}}\n:hidden:\n{listed}\n```\n"
    )
    return pages
