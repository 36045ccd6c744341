"""An even grid of the simplex (Das and Dennis 1998)."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor


def simplex_lattice(divisions: int, tasks: int) -> Float[Tensor, "point task"]:
    """All (k_1, …, k_T)/divisions with integers k_t >= 0 that sum to it, in lexicographic order."""
    # A composition of `divisions` into T parts is a choice of T - 1 bars among divisions + T - 1
    # places.
    places = itertools.combinations(range(divisions + tasks - 1), tasks - 1)
    bars = torch.tensor(list(places), dtype=torch.float64)
    first = bars.new_full((len(bars), 1), -1.0)
    last = bars.new_full((len(bars), 1), divisions + tasks - 1.0)
    return (bars.diff(dim=1, prepend=first, append=last) - 1) / divisions
