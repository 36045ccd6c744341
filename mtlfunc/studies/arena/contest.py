"""`arena(rule)`: a rule against the others and a tuned static search, in less than a minute."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from ...core.checks import check_count, check_scalar
from ...core.expect import rule_name
from ...core.progress import progress_bar
from ...probes import jacobian, losses_only
from ...rules import cagrad, gradnorm, mean, mgda, pcgrad
from ...rules.common import as_rule
from ...types import Probe, Rule
from .problems import QUICK, BenchmarkProblem, standard
from .result import Result
from .study import STATIC, Cell, Contestant, Settings, compete

SHORT = Settings(seeds=10, tuning=6, budget=0.5)  # of a notebook: fewer seeds, half the steps

REFERENCES: dict[str, Contestant] = {
    "mean": Contestant(mean, lambda shared: losses_only()),
    "gradnorm": Contestant(lambda: gradnorm(0.12), jacobian),
    "mgda": Contestant(mgda, jacobian),
    "pcgrad": Contestant(pcgrad, jacobian),
    "cagrad": Contestant(lambda: cagrad(0.4), jacobian),
}
"""Whom a rule meets, beside the static search."""


def arena(
    rule: Any, *, against: Mapping[str, Contestant] | None = None,
    problems: Iterable[str] | Mapping[str, BenchmarkProblem] = QUICK, settings: Settings = SHORT,
    progress: bool = True,
) -> Result:  # fmt: skip
    """A rule against others and a tuned static search, each at its own best learning rate.

    On small problems with known answers. The static search tries several weight vectors at every
    learning rate, a rule has one setting of its own at every learning rate: the search is a bar
    that has seen more, `Cell.lr` and the notes of the result say how much more.

    Args:
        rule: a `Rule`; a function without arguments that makes one, as `mtlfunc.mgda`; a function
            of a Gramian (or of a Gramian and losses) to weights; a pair of any of these with its
            probe, or with a function from the glob of shared parameters to one, as `(rule, lambda
            shared: mtlfunc.jacobian(shared, heads="weighted"))`; or a dict of all these by name.
            Without a probe it gets `mtlfunc.jacobian(shared)`.
        against: contestants by name; None is mean, gradnorm, mgda, pcgrad and cagrad. Their results
            are remembered while the process lives.
        problems: names among those of `standard()`, or problems of your own by name.
        settings: seeds, tuning seeds, steps and optimizer.
        progress: show a bar.

    Returns:
        a `Result`: print it, or let a notebook show it; `.records()`, `.ranks(by)` and `.plot(ax)`
        have the rest. A rule that raises, gives NaN or diverges is named, and ranks last there.

    Raises:
        TypeError: for anything but a rule, or settings of another type.
        ValueError: for an unknown problem, or none, or settings of nothing.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> from mtlfunc.studies.arena import Settings, standard
        >>> list(standard())[:3]
        ['conflict', 'spread', 'conditioning']
        >>> def softmin(gramian):
        ...     return torch.softmax(-gramian.diagonal(), -1)
        >>> tiny = Settings(seeds=2, tuning=2, budget=0.02)
        >>> result = mf.arena(
        ...     {"mine": softmin}, problems=["vlmop2"], settings=tiny, progress=False
        ... )
        >>> result.rules
        ['mine', 'mean', 'gradnorm', 'mgda', 'pcgrad', 'cagrad', 'static search']
    """
    if not isinstance(settings, Settings):
        raise TypeError(f"settings: expected Settings(...), got {type(settings).__name__}")
    for name in ("seeds", "tuning"):
        check_count(getattr(settings, name), f"settings.{name}")
    check_scalar(settings.budget, "settings.budget", positive=True)
    known, others = standard(), contestants(REFERENCES if against is None else against, {STATIC})
    if isinstance(problems, Mapping):
        chosen = dict(problems)
    else:
        names = [problems] if isinstance(problems, str) else list(problems)  # a generator, too
        unknown = ", ".join(repr(name) for name in names if name not in known)
        if unknown:
            raise ValueError(f"problems: there is no {unknown}; there are {', '.join(known)}")
        chosen = {name: known[name] for name in names}
    if not chosen:
        raise ValueError(f"problems: expected at least one of {', '.join(known)}, got none")
    mine = contestants(rule, taken=(*others, STATIC))
    field: dict[str, Contestant | None] = {**mine, **others, STATIC: None}
    cells: dict[str, dict[str, Cell]] = {name: {} for name in chosen}
    pairs = [(name, rival) for name in chosen for rival in field]
    for name, rival in (bar := progress_bar(pairs, desc="arena", disable=not progress)):
        bar.set_postfix_str(f"{rival} on {name}", refresh=False)
        built_in = rival == STATIC or others.get(rival) is REFERENCES.get(rival, ())
        if built_in and chosen[name] is known.get(name):
            cells[name][rival] = _run_cached(name, rival, settings)
        else:
            cells[name][rival] = compete(chosen[name], field[rival], settings)
    return Result(chosen, cells, settings)


@cache
def _run_cached(problem: str, rival: str, settings: Settings) -> Cell:
    """A built-in rule on a built-in problem, which no notebook changes."""
    return compete(standard()[problem], None if rival == STATIC else REFERENCES[rival], settings)


def contestants(rule: Any, taken: Iterable[str] = ()) -> dict[str, Contestant]:
    """Contestants by name, none that is `taken`, from all that `arena` takes as a rule.

    Raises:
        TypeError: for anything but a rule.
    """
    entries = rule.items() if isinstance(rule, Mapping) else [(None, rule)]
    found: dict[str, Contestant] = {}
    for name, entry in entries:
        named = isinstance(entry, Rule | Contestant)  # which are tuples, too
        pair = isinstance(entry, tuple) and not named and len(entry) == 2
        made, probe = (entry[0], entry[1]) if pair else (entry, jacobian)
        if isinstance(entry, Contestant):
            contestant, guess = entry, ""
        else:
            ready, guess = as_rule(made), rule_name(made)
            contestant = Contestant(lambda ready=ready: ready, _probe_factory(probe))
        # no lambda's name, nor that of `stateless` or a test
        tells = guess not in ("", "rule", "stateless") and not guess.startswith("test_")
        label = name or (guess if tells else "your rule")
        while label in (*taken, *found):
            label += " (yours)"
        found[label] = contestant
    return found


def _probe_factory(probe: Any) -> Callable[[str], Any]:
    if isinstance(probe, Probe):
        return lambda shared: probe
    if not callable(probe):
        expected = "a mtlfunc.Probe or a function from the glob of shared parameters to one"
        raise TypeError(f"probe: expected {expected}, got {type(probe).__name__}")
    return probe
