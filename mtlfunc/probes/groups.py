"""Groups of shared parameters, layer by layer or block by block, each with weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

from ..core.tree import combine, layer_of, select
from ..types import Blocks, Params, Rows, Select
from .common import fixed

Groups = str | Callable[[str], Hashable] | Mapping[str, Select]
"""`"layer"`, a function from a name to its group's label, or `{label: glob or predicate}`."""


def partition(names: tuple[str, ...], param_groups: Groups) -> dict[Hashable, tuple[str, ...]]:
    """The shared leaves by group: in the order of a dict, else of first appearance.

    Raises:
        ValueError: for a glob that matches no shared leaf, a leaf in two groups or in none.
        TypeError: for anything but the three kinds.
    """
    if isinstance(param_groups, str) and param_groups != "layer":
        raise ValueError(
            f'param_groups={param_groups!r}: expected "layer", a function from a name to a label, '
            "or a dict {label: glob}"
        )
    found: dict[Hashable, tuple[str, ...]] = {}
    if isinstance(param_groups, Mapping):
        found = {
            label: select(dict.fromkeys(names, torch.empty(0)), which, f"param_groups[{label!r}]")
            for label, which in param_groups.items()
        }
    elif isinstance(param_groups, str) or callable(param_groups):
        label_of = layer_of if isinstance(param_groups, str) else param_groups
        for name in names:
            label = label_of(name)
            if label is not None:
                found[label] = (*found.get(label, ()), name)
    else:
        raise TypeError(
            'param_groups: expected "layer", a function from a name to a label, or a dict {label: '
            f"glob}}, got {type(param_groups).__name__}"
        )
    for name in names:
        owners = [label for label, members in found.items() if name in members]
        if len(owners) > 1:
            raise ValueError(
                f"param_groups: {name!r} is in {' and '.join(map(repr, owners))}; every shared "
                "parameter belongs to one group"
            )
        if not owners:
            raise ValueError(
                f"param_groups: {name!r} is shared but in no group; add it to one, or narrow "
                "shared to the parameters that are grouped"
            )
    return found


def fixed_groups(param_groups: Groups | None) -> Groups | None:
    """Groups for every step: an iterator of parameters would be used up by the first."""
    if isinstance(param_groups, Mapping):
        return {label: fixed(which) for label, which in param_groups.items()}
    return param_groups


def combine_groups(weights: Tensor, rows: Rows, blocks: Blocks) -> Params:
    """Weighted sums of rows: by weights `[row]`, or by each group's own of `[group, row]`."""
    if not blocks:
        return combine(weights, rows)
    grads: Params = {}
    for own, names in zip(weights.unbind(0), blocks, strict=True):
        grads |= combine(own, {name: rows[name] for name in names})
    return grads
