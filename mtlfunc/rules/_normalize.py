"""Any rule on normalised gradients: of length 1, relative to their losses, or both."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.checks import check_option
from ..core.expect import expect_rule, heads_of
from ..solvers.problems import or_one, root
from ..types import Geometry, Rule, State, constructor
from .common import gramian_of, mean_present, reading_also
from .losswise import require_nonnegative

By = Literal["norm", "loss", "both"]


@constructor
def normalize(rule: Rule, by: By = "norm") -> Rule:
    """The rule sees the rows g̃_t = g_t/s_t, with s_t = ‖g_t‖, L_t or L_t‖g_t‖, and its weights
    apply to these: d = s̄ Σ w_t g̃_t, s̄ the mean of the s_t.

    Args:
        rule: any `Rule`; losses, preference and present tasks reach it as they are.
        by: "norm" for ‖g_t‖, "loss" for L_t, "both" for L_t‖g_t‖ (MGDA's "l2", "loss" and "loss+").

    Returns:
        weights w_t s̄/s_t. The common factor s̄, over the present tasks, keeps lengths and learning
        rates what they were. Where all s_t are equal, a rule whose weights do not depend on the
        gradients' unit stays as it is. A row with s_t = 0, of length or loss 0, is divided by s̄.

    Raises:
        ValueError: for another `by`; with "loss" and "both" for losses seen below 0 (unseen: NaN).

    Source:
        the normalisations of Sener & Koltun 2018's code and of LibMTL. The former applies the
        weights w to gradients that were **not** normalised, as does LibMTL for a representation;
        elsewhere LibMTL steps along Σ w_t g̃_t. `normalize(mean())` on what is retained and minus
        what is forgotten is NGDiff (Bu et al. 2024); `normalize(mgda())` has GAPO's direction with
        exponent 1, and that of the Chebyshev centre of the gradients' dual cone (arXiv:2605.09975;
        docs/methods/formulas.md).

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.aggregate(normalize(mf.mgda()), torch.tensor([[1.0, 0.0], [0.0, 3.0]])).tolist()
        [1.0, 1.0]
    """
    expect_rule(rule)
    check_option(by, "by", get_args(By))

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        losses, present = geometry.losses, geometry.present
        size = torch.ones_like(losses)
        if by != "norm":
            size = require_nonnegative(losses, "normalize: dividing by the losses needs")
        if by != "loss":
            length = root(gramian_of(geometry).diagonal())
            size = size.to(length) * length
        mean = or_one(mean_present(size, present))
        size = torch.where(size == 0, mean, size)
        if geometry.gramian is not None:
            divisor = size.to(geometry.gramian)
            geometry = geometry._replace(gramian=geometry.gramian / divisor[:, None] / divisor)
        unit = mean * size  # of what the rule sees added to its G w
        products = {k: x / unit.to(x) for k, x in geometry.extra.items() if k == "carried"}
        geometry = geometry._replace(extra=geometry.extra | products)
        weights, state = rule.update(geometry, state)
        return weights * (mean / size).to(weights), state

    size = {"norm": ["gramian"], "loss": ["losses"], "both": ["gramian", "losses"]}[by]
    return Rule(rule.init, update, reading_also(rule, *size, "present"), heads_of(rule))
