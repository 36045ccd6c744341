"""Settings chosen from a grid on other seeds than those they are judged on."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


def chosen(scores: np.ndarray) -> np.ndarray:
    """The setting of every seed, `[seed]`: the best one, in the mean, on the other half of them.

    Args:
        scores: what is to be small, `[setting, seed]`; a run that is not finite is never best.
    """
    finite = np.where(np.isfinite(scores), scores, np.inf)
    best = [int(finite[:, half::2].mean(1).argmin()) for half in (1, 0)]
    return np.resize(best, scores.shape[1])


def judged(scores: np.ndarray, choice: np.ndarray | None = None) -> np.ndarray:
    """Every seed's score at the setting chosen for it, `[seed]`."""
    choice = chosen(scores) if choice is None else choice
    return scores[choice, np.arange(scores.shape[1])]


def spelled(settings: Iterable[float]) -> str:
    """Those that were judged: one, or one for either half of the seeds."""
    return " and ".join(f"{setting:g}" for setting in sorted(set(settings)))


def at_edge(choice: Sequence[int] | np.ndarray, settings: int) -> bool:
    """Whether a setting was chosen at an end of its grid, so that a wider one may have a better."""
    return settings > 1 and bool(np.isin(choice, (0, settings - 1)).any())


class Best(NamedTuple):
    """A method at the settings chosen for it."""

    choice: np.ndarray  # [seed]
    scores: np.ndarray  # [seed], as judged
    edge: bool  # one of them is at an end of its grid
    settings: str  # in words


def at_best(scores: np.ndarray, grid: Sequence[float] | np.ndarray) -> Best:
    """Scores `[setting, seed]` at the best ones; `grid` has the value of every setting."""
    choice, (values, place) = chosen(scores), np.unique(grid, return_inverse=True)
    picked = place[choice]
    edge = at_edge(picked, len(values))
    return Best(choice, judged(scores, choice), edge, spelled(values[picked]))
