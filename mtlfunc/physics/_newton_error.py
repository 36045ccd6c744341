"""How exactly a Gauss-Newton step solves its equations."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_scalar, normalized_preference
from ..solvers.problems import or_one, root
from ..types import Info, NewtonError, Scalar


def newton_error(
    info: Info, damping: Scalar, *, preference: Float[Tensor, " task"] | None = None
) -> NewtonError:
    """The certificate of a step with `mtlfunc.physics.gauss_newton`, from its `Info` alone.

    Args:
        info: of the step, whose Gramian `[task, task]` was measured. With `momentum=True` its rates
            hold J c, which the equations then count.
        damping: the rule's.
        preference: the rule's.

    Returns:
        `residual` and `rounding`, 0-d, in units of ‖√ω r‖; both are 0 where all residuals are.

    Raises:
        ValueError: for an `Info` without a Gramian, or with one of each group of parameters.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> losses = lambda params, batch: batch @ params["x"] - 1
        >>> step = mf.descend(losses, mf.physics.gauss_newton(0.0), mf.jacobian(), mf.sgd(1.0))
        >>> batch = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> _, info = step.update(step.init({"x": torch.zeros(2)}, batch), batch)
        >>> bool(newton_error(info, 0.0).residual < 1e-6)
        True
    """
    check_scalar(damping, "damping")
    gramian = info.gramian.double()
    if gramian.ndim != 2 or not len(gramian):
        raise ValueError(
            f"info: expected one Gramian [task, task], got shape {list(gramian.shape)}; use a "
            "probe that measures it, mtlfunc.jacobian(...)"
        )
    omega = normalized_preference(preference, torch.ones_like(info.losses))
    share = root(omega.double() / omega.amax())
    length = root(gramian.diagonal())
    longest = or_one((share * length).amax().square())
    w = info.weights.double()
    damped = damping * longest * (w / or_one(share))
    missing = share * (info.losses.double() - info.rates.double()) - damped
    eps = torch.finfo(info.gramian.dtype).eps
    noise = eps * (share * length).norm() * (length * w.abs()).sum()
    size = or_one((share * info.losses.double()).norm())
    return NewtonError(missing.norm() / size, noise / size)
