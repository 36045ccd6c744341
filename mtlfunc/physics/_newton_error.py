"""How exactly a Gauss-Newton step solves its equations."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.checks import check_scalar, check_tensor, normalized_preference
from ..solvers.problems import or_one, root
from ..types import Info, NewtonError, Scalar


def newton_error(
    info: Info, damping: Scalar, *, preference: Float[Tensor, " task"] | None = None,
    present: Bool[Tensor, " task"] | None = None,
) -> NewtonError:  # fmt: skip
    """The certificate of a step with `mtlfunc.physics.gauss_newton`, from its `Info` alone.

    Args:
        info: of the step, with a Gramian `[task, task]`. With `momentum=True` its rates hold J c.
        damping: the rule's.
        preference: the rule's.
        present: which residuals the step had; None is all.

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
    omega, losses = normalized_preference(preference, torch.ones_like(info.losses)), info.losses
    if present is not None:
        check_tensor(present, "present", "[task]", losses.shape)
        omega, losses = omega.where(present, 0.0), losses.where(present, 0.0)
    share = root(omega.double() / or_one(omega.amax()))
    length = root(gramian.diagonal())
    longest = or_one((share * length).amax().square())
    damped = damping * longest * ((w := info.weights.double()) / or_one(share))
    missing = share * (losses.double() - info.rates.double()) - damped
    noise = torch.finfo(info.gramian.dtype).eps * (share * length).norm() * (length @ w.abs())
    size = or_one((share * losses.double()).norm())
    return NewtonError(missing.norm() / size, noise / size)
