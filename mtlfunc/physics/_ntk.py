"""NTK weights: every term of a physics loss converges at about the same rate."""

from torch import Tensor

from ..core.checks import poison
from ..rules.common import no_state, preference_of, reading
from ..types import Geometry, Rule, State, constructor


@constructor
def ntk(*, preference: Tensor | None = None) -> Rule:
    """NTK weights: w_k = p_k Σ_j tr K_j / tr K_k, K_k the tangent kernel of term k's residuals.

    At the default p = 1/T every weight is 1/T of the paper's λ_k; `reduction="sum"` steps with λ_k.
    tr K_k over the number of points is the mean rate at which gradient descent lowers the term's
    residuals. The probe `mtlfunc.physics.kernel_traces(residuals, mtlfunc.losses_only())` measures
    the traces. They change slowly; `mtlfunc.momentum(ntk(), 0.9)` averages them.

    Args:
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.

    Returns:
        weights; at the default p they are 1 where all traces are equal, and sum to at least T where
        none is 0. A term whose trace is 0 has weight p_k.

    Raises:
        ValueError: for a bad preference; at a step, where no probe measured the traces.

    Source:
        Wang, Yu & Perdikaris 2022 (arXiv:2007.14527), the adaptive training algorithm. Other codes
        divide by norms of gradients (PaddleScience), or take shares that are not inverted (PINA).

    Examples:
        >>> import torch, mtlfunc as mf
        >>> ones, extra = torch.ones(2), {"trace": torch.tensor([1.0, 3.0])}
        >>> ntk().update(mf.Geometry(ones, None, ones / 2, ones > 0, extra), ())[0]
        tensor([2.0000, 0.6667])
    """

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        if "trace" not in geometry.extra:
            cure = "mtlfunc.physics.kernel_traces(residuals, probe)"
            raise ValueError(f"ntk: geometry.extra has no 'trace'; use {cure}")
        present = geometry.present & ((trace := geometry.extra["trace"]) > 0)
        total = trace.where(present, 0.0).sum()
        ratio = total / trace.where(present, 1.0)
        p = preference_of(geometry, preference, trace)
        return poison(p * ratio.where(present, 1.0), trace.where(geometry.present, 0.0)), ()

    reads = reading("trace", preference=preference)
    return Rule(no_state(preference), update, reads, heads="weighted")
