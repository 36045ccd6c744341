"""Other random numbers for a whole run: verdicts that change hang on the draw."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import mtlfunc as mf

from .parts import Store

DRAWS = ("uniform", "normal", "permutation")


@contextmanager
def redrawn(draw: int) -> Iterator[None]:
    """Fold `draw` into the key of all that `mf.random` is asked for; 0 changes nothing. The
    questions name their keys in some fifty places, so this is done once, beneath them. What the
    package draws, as PCGrad its orders and `mf.subset` its tasks, stays: it reads the module, which
    only the questions read by way of `mf`, and rules that draw in kernels could not be redirected.
    """
    package: Any = mf
    module = package.random

    def folded(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda key, *args, **kwargs: function(mf.random.fold_in(key, draw), *args, **kwargs)

    Store.draw = draw
    try:
        if draw:
            others = {name: folded(getattr(module, name)) for name in DRAWS}
            package.random = SimpleNamespace(**{**vars(module), **others})
        yield
    finally:
        Store.draw = 0
        package.random = module
