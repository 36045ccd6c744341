"""How much of a batch's gradient is noise: the parts of its length, and the noise scale."""

from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_count, check_gramian, check_tensor, poison
from ..types import SampleNoise


def sample_noise(gramian: Float[Tensor, "n n"], tasks: int = 1) -> SampleNoise:
    """Gradient noise of every task, and conflict within and between tasks, over samples.

    With s̄ the mean of ‖g_b‖² over the B samples and m = ‖mean_b g_b‖²: noise = B(s̄ - m)/(B - 1),
    signal = m - noise/B.

    Args:
        gramian: of `mtlfunc.sample_gramian`, over the flattened losses [sample, task].
        tasks: T; the Gramian has n = samples·T rows.

    Returns:
        signal, noise and their ratio `[task]`, and the shares of conflicts `[task, task]`.

    Raises:
        ValueError: unless T divides n with at least two samples.

    Source:
        McCandlish et al. 2018, appendix A.1, for the estimators.

    Examples:
        >>> g = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> sample_noise(g @ g.mT).noise.tolist(), sample_noise(g @ g.mT).signal.tolist()
        ([2.0], [0.0])
    """
    check_gramian(gramian)
    blocks = by_samples(gramian, tasks, least=2)
    count = blocks.shape[-1]
    own = blocks.diagonal(dim1=0, dim2=1)  # [sample, sample, task]
    spread, mean = own.diagonal(dim1=0, dim2=1).mean(-1), own.mean((0, 1))
    signal, noise = _unbiased_moments(spread, mean, count)
    apart = ~torch.eye(count, dtype=torch.bool, device=gramian.device)
    share = ((blocks < 0) & apart).sum((-2, -1)).to(gramian.dtype) / (count * (count - 1))
    return SampleNoise(signal, noise, signal / noise, poison(share, gramian))


def by_samples(gramian: Tensor, tasks: int, least: int) -> Tensor:
    """`[task, task, sample, sample]` of a Gramian, if it has enough samples of each task."""
    rows = len(gramian)
    if not isinstance(tasks, Integral) or tasks < 1 or rows % tasks or rows < least * tasks:
        raise ValueError(
            f"tasks={tasks!r}: expected a divisor of the Gramian's {rows} rows, an integer, that "
            f"leaves at least {least} samples, of losses [sample, task]"
        )
    return gramian.reshape(rows // tasks, tasks, rows // tasks, tasks).permute(1, 3, 0, 2)


def noise_scale(
    samples: Float[Tensor, "n ..."], total: Float[Tensor, "*task"] | None = None, *,
    tasks: int = 1, size: int = 1,
) -> Float[Tensor, "*task"]:  # fmt: skip
    """The simple noise scale B = tr Σ / ‖E g‖², the critical batch size, in samples.

    At batches of B samples the noise of the mean gradient is as long as the gradient itself; far
    smaller batches are mostly noise, far larger ones hardly faster. Σ is the covariance of one
    sample's gradient; both parts are unbiased, over n batches of k samples each:

        tr Σ = kn (mean ‖g_b‖² - ‖mean g_b‖²) / (n - 1)        ‖E g‖² = ‖mean g_b‖² - tr Σ / kn

    Their ratio is not, and one batch estimates it badly: take the mean of Gramians, or of squared
    lengths, over steps first. (`sample_noise` has the two parts.)

    Args:
        samples: the Gramian `[n·task, n·task]` of `mtlfunc.sample_gramian`; or, with `total`, the
            lengths ‖g_b‖ `[n]` or `[n, task]` of `mtlfunc.sample_norms`, n >= 2.
        total: the length of the mean gradient, 0-d or `[task]`, such as `clip_grad_norm_` returns.
        tasks: T, of a Gramian.
        size: k, where g_b is the mean gradient of k samples: of a micro-batch when gradients
            are accumulated, or of one worker's share.

    Returns:
        B `[task]`, or of the shape of `total`; infinite where noise hides the gradient.

    Raises:
        ValueError: for other shapes, fewer than two gradients or a size not in 1, 2, …

    Source:
        McCandlish et al. 2018, eq. 2.9 and appendix A.1.

    Examples:
        >>> g = torch.tensor([[1.0, 1.0], [1.0, -1.0], [4.0, 0.0]]).double()
        >>> noise_scale(g @ g.mT), noise_scale(g.norm(dim=1), g.mean(0).norm())
        (tensor([1.5000], dtype=torch.float64), tensor(1.5000, dtype=torch.float64))
    """
    check_count(size, "size")
    check_tensor(samples, "samples", "[n, n], or of lengths with total")
    check_tensor(total if total is not None else samples, "total", "0-d or [task]")
    if total is None:
        signal, noise, _, _ = sample_noise(samples, tasks)
    elif samples.shape[1:] == total.shape and len(samples) > 1 and tasks == 1:
        # squares of lengths in half precision are 0 or infinite
        wide = torch.promote_types(samples.dtype, torch.float32)
        squares, square = samples.to(wide).square(), total.to(wide).square()
        signal, noise = _unbiased_moments(squares.mean(0), square, len(samples))
    else:
        raise ValueError(
            "samples: expected the lengths [n] or [n, task] of at least two gradients, with total "
            f"0-d or [task] and no tasks=, got {list(samples.shape)} and {list(total.shape)}"
        )
    hidden = signal <= 0
    return torch.where(hidden, torch.inf, size * noise / signal.where(~hidden, 1.0))


def _unbiased_moments(spread: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """‖E g‖² and tr Cov(g) from the mean of ‖g_b‖² over `count` batches, and ‖mean g_b‖²."""
    noise = (spread - mean).clamp_min(0) * (count / (count - 1))  # of equal ones it may round below
    return mean - noise / count, noise
