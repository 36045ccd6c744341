"""Questions one after the other, or side by side in processes of their own, one thread each."""

import functools
import importlib
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from matplotlib import style

from common.device import on
from common.files import FULL
from common.jobs import Died, say
from common.locks import digest
from common.pool import perform_all

from .display import Display, caught
from .draws import redrawn
from .figures import STYLE
from .findings import Claim, Figure, Settings
from .parts import Store, spent
from .results import Drawn, Results
from .verdicts import findings


class Question(NamedTuple):
    """One that is to run."""

    name: str
    module: str  # that answers it
    key: str  # of its results


class Run:
    """Questions at work, and what has come of them; `parts` is the folder of long computations."""

    def __init__(self, results: Results, display: Display, settings: Settings, parts: Path) -> None:
        self.results, self.display, self.settings, self.parts = results, display, settings, parts
        self.found: dict[str, list[Claim | Drawn]] = {}  # by question that has begun
        self.done: list[str] = []
        self.failed: dict[str, str] = {}  # what ended them

    def skip(self, name: str) -> None:
        """Its results are those of an earlier run."""
        self.done.append(name)
        self.display.done += 1
        self.display.line(
            f"[{name}] same code and settings as when it last ran: results kept (--fresh runs it "
            "again)"
        )

    def perform(self, questions: Sequence[Question], workers: int | str) -> None:
        """All, in this process or in others."""
        ask = functools.partial(answer, self.settings, self.parts.absolute())

        def died(question: Question, how: Died) -> None:
            self.fail(question.name, f"{how}; the same command runs it again")

        perform_all(ask, questions, workers, self.hear, died=died, tick=self.display.tick)

    def hear(self, question: Question, said: tuple[str, Any]) -> None:
        """Put what a question says in its place."""
        name, (kind, what) = question.name, said
        if name in self.failed:
            return  # its last words
        if kind == "begun":
            self.results.start(name)
            self.found[name] = []
            self.display.begin(name)
        elif kind == "line":
            self.display.line(f"[{name}] {what}")
        elif kind == "progress":
            self.display.progress(name, what)
        elif kind == "found":
            self.results.add(name, what)
            self.found[name].append(what)
            text = f"figure {what.name}" if isinstance(what, Drawn) else f"{what.id} {what.verdict}"
            self.display.line(f"[{name}] {text}")
        elif kind == "done":
            self.results.finish(name, question.key, self.found[name], what)
            self.done.append(name)
            wall, (own, _) = self.display.end(name), what
            self.display.line(f"[{name}] finished in {wall:.0f} s, {own:.0f} s of processor time")
        else:
            self.fail(name, what)

    def fail(self, name: str, text: str) -> None:
        self.failed[name] = text.strip().splitlines()[-1]
        self.display.end(name)
        self.display.line(f"[{name}] failed:\n{text.rstrip()}")


def answer(settings: Settings, parts: Path, question: Question) -> tuple[str, Any]:
    """Run a question, which says its findings one by one; that it is done, or what it died of."""
    mpl.use("Agg")
    module, name = importlib.import_module(question.module), question.name
    with suppress(OSError):  # of another machine
        parts.mkdir(parents=True, exist_ok=True)
    Store.folder = parts if parts.is_dir() else None
    Store.owner, begin = owner(name, settings), spent()
    Store.earlier, Store.used = {}, {}
    if getattr(module, "TIMED", False):
        settings = settings._replace(device=torch.device("cpu"))
    say(("begun", None))
    try:
        with (
            style.context(STYLE),
            caught(lambda text: say(("line", text)), lambda text: say(("progress", text))),
            redrawn(settings.draw),
            on(settings.device),
        ):
            for found in findings(module, settings):
                if isinstance(found, Figure):
                    say(("found", Drawn(found.name, {x: found.drawn(x) for x in ("png", "svg")})))
                else:
                    say(("found", found))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        return "failed", traceback.format_exc()
    finally:
        Store.folder = None
    seconds, used = spent() - begin + sum(Store.earlier.values()), Store.used
    own = seconds - sum(used[key] for key in Store.earlier)
    return "done", (seconds, {"": own} | {key[:8]: took for key, took in used.items()})


def owner(name: str, settings: Settings) -> str:
    """A question with its settings, as the names of its long computations begin."""
    return f"{name}-{digest([], settings)[:8]}"
