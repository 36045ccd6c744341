"""Count phrases that make prose hard to read: `python docs/prose.py [FILE …]`.

It reads Markdown pages without their code, docstrings and comments, and prints every find with a
plainer phrase. It ends with status 1 if there are more than LIMIT in 10,000 words.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1

PLAINER = {
    r"\bis no\b(?! (longer|more|larger|smaller|better|worse|other))": "is not a",
    r"\bare no\b(?! (longer|more|larger|smaller|better|worse))": "are not",
    r"\b(one|once|[0-9]+|a page|a row|a line|a step|a pass|a number|a kernel call) a "
    r"(task|step|layer|sample|rank|method|rule|network|minute|run|row|leaf|group)\b": "per …",
    r"\bso many\b": "name the quantity",
    r"(?<=[,;]) too\b(?=[.,;:)])": "also",
    r"\banew\b|\bafresh\b": "again",
    r"\bbeside\b": "next to",
    r"\btold\b(?! (by|the|you))": "say who says it",
    r"\bin vain\b": "without success",
    r"\bapart\b(?! from)": "separate, different",
    r"\bfor good\b": "permanently",
    r"\bnobody\b|\bnobody's\b": "no one, or name who",
    r"\bat rest\b|\brests at\b": "stationary",
    r"\bhouse\b|\bthe door\b|\bthe floor\b": "no metaphors",
    r"\bby itself\b|\bby themselves\b": "alone, separately",
    r"\bwhose turn\b|\bwho finds\b|\bof its own accord\b": "say it directly",
    r"\bas ever\b": "as before",
    r"\bwhence\b|\bwherein\b|\bthereby\b|\bhitherto\b|\bnought\b": "a common word",
    r"\bin place of\b": "instead of",
}
FINDS = [(re.compile(pattern, re.IGNORECASE), hint) for pattern, hint in PLAINER.items()]
SKIPPED = {"claims.md", "CHANGELOG.md"}  # quotations of papers, and what was written then


def page(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a Markdown page that are not code."""
    code = False
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*(```|~~~)", line) and "{" not in line:
            code = not code
        elif not code:
            yield number, re.sub(r"`[^`]*`", "", line)


def module(text: str) -> Iterator[tuple[int, str]]:
    """The lines of docstrings and comments."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                said = first.value.value
                if isinstance(said, str):
                    lines = said.splitlines()
                    for number, line in enumerate(lines, first.lineno):
                        if not line.lstrip().startswith((">>>", "...")):
                            yield number, re.sub(r"`[^`]*`", "", line)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def files() -> list[Path]:
    """Every page and module whose words a reader meets."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    rooms = ("mtlfunc", "common", "experiments", "paper_repro", "docs")
    modules = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    hidden = {ROOT / "docs" / "prose.py"}
    found = [*pages, *modules]
    return sorted(
        path
        for path in found
        if path not in hidden
        and path.name not in SKIPPED
        and not any(part.startswith(".") or part == "out" for part in path.relative_to(ROOT).parts)
    )


def main() -> int:
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or files()
    words = found = 0
    for path in chosen:
        text = path.read_text(encoding="utf-8")
        for number, line in (module if path.suffix == ".py" else page)(text):
            words += len(line.split())
            for pattern, hint in FINDS:
                for match in pattern.finditer(line):
                    found += 1
                    place = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
                    print(f"{place}:{number}: {match.group()!r}: {hint}")
    rate = 10_000 * found / max(words, 1)
    print(f"{found} in {words} words: {rate:.1f} in 10,000 (at most {LIMIT})")
    return int(rate > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
