"""Several processes that train on one batch together: all that other folders need of it."""

from .group import Group as Group
from .group import check_group as check_group
from .group import describe_params as describe_params
from .group import refuse_join as refuse_join
from .group import unwrap as unwrap
from .group import warn_without_group as warn_without_group
from .union import ALONE as ALONE
from .union import WHOLE as WHOLE
from .union import Ranks as Ranks
from .union import Shares as Shares
from .union import mask_of as mask_of
from .union import of_union as of_union
from .union import union_of as union_of
