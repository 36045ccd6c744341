"""Other random numbers for a whole run: verdicts that change hang on the draw."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mtlfunc as mf

from .parts import Store

DRAWS = ("uniform", "normal", "permutation")


@contextmanager
def redrawn(draw: int) -> Iterator[None]:
    """Fold `draw` into the key of all that `mf.random` is asked for; 0 changes nothing.

    The questions name their keys in some fifty places, so this is done once, beneath them. Rules
    that draw for themselves, as PCGrad its orders, keep their streams.
    """
    before = {name: getattr(mf.random, name) for name in DRAWS}

    def folded(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda key, *args, **kwargs: function(mf.random.fold_in(key, draw), *args, **kwargs)

    Store.draw = draw
    try:
        if draw:
            for name, function in before.items():
                setattr(mf.random, name, folded(function))
        yield
    finally:
        Store.draw = 0
        for name, function in before.items():
            setattr(mf.random, name, function)
