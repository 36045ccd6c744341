"""Several processes that train on one batch together: all that other folders need of it."""

from .group import Group, check_group, describe_params, refuse_join, unwrap, warn_without_group
from .union import ALONE, WHOLE, Ranks, Shares, mask_of, union_of

__all__ = [
    "ALONE", "WHOLE", "Group", "Ranks", "Shares", "check_group", "describe_params", "mask_of",
    "refuse_join", "union_of", "unwrap", "warn_without_group",
]  # fmt: skip
