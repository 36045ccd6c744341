"""Whether the conflict of two tasks is real, or the noise of a batch."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_gramian, check_scalar, poison
from ..core.tree import root
from ..types import Conflict, ConflictSums, Scalar
from ._noise import by_samples


def conflict(gramian: Float[Tensor, "n n"], tasks: int, level: Scalar = 0.95) -> Conflict:
    """Inner products ⟨E g_s, E g_t⟩ of the tasks' expected gradients, with confidence intervals.

    The inner product of two mean gradients of one batch is off by the covariance of their noise, tr
    Cov(g_s, g_t)/B, since tasks that share samples share noise. Products of *different* samples are
    not: with K_bc = ½(g_sb·g_tc + g_tb·g_sc), the mean U of K_bc over b ≠ c is unbiased. Its
    variance is the jackknife's, which is not too small on average; the interval is symmetric, with
    Student's quantile at B - 1 degrees of freedom.

    A verdict is withheld where few samples make up the noise. With a_b the change of U when sample
    b is left out, they are about (Σ a_b²)² / Σ a_b⁴, a third of B for Gaussian noise; the interval
    holds only if there are several, and a verdict takes at least 6. So fewer than about 10 samples
    hardly ever have one. What no product shows, no test sees: among B samples are fewer than two of
    a kind whose share is below `rare`, with a probability of more than 1 - level, and the product
    of two is then in no sum (at 95 % `rare` is 0.14 for 32 samples, 0.037 for 128). A verdict
    assumes that such samples do not turn it, however long their gradients are.

    For one batch; who looks at every step and stops at a conflict takes `running_conflict`.

    Args:
        gramian: `[B·T, B·T]` of `mtlfunc.sample_gramian`, over the flattened losses [sample, task].
        tasks: T; at least three samples of each.
        level: of the confidence intervals, in (0, 1): each pair's alone.

    Returns:
        a `Conflict` of tensors `[T, T]`: `inner`, U; `low` and `high`; `cosine`, U_st / √(U_ss
        U_tt), cut to [-1, 1], NaN unless the intervals of both squared lengths lie above 0;
        `needed`, about how many samples would make the interval exclude 0 if U were true (from one
        batch an order of magnitude); `verdict`, int8: -1 for a conflict, 1 for agreement, 0 for
        open or withheld; `effective`, by how many samples the noise is made up; and `rare`, 0-d. On
        the diagonal is the squared length ‖E g_t‖², where 1 says that it stands out of the noise.

    Raises:
        ValueError: unless T divides the Gramian's rows with at least three samples, for a Gramian
            that is not symmetric, and for a level outside (0, 1).

    Source:
        U-statistics: Hoeffding 1948; the variance: Arvesen 1969; the quantile: Abramowitz & Stegun
        26.7.3 and 26.7.4.

    Examples:
        >>> import torch
        >>> g = torch.tensor([[3.0, 0.0], [-2.0, 1.0], [2.0, 1.0], [-1.0, 0.0]] * 8)
        >>> found = conflict(g @ g.mT, tasks=2)
        >>> round(found.inner[0, 1].item(), 2), found.verdict.tolist()
        (-3.47, [[1, -1], [-1, 1]])
    """
    sums, spread, level = _sums(gramian, tasks, level)
    count = len(gramian) // tasks
    quantile = _student(level, count - 1)
    # Var U = (4/B)(ζ₁ + ζ₂/2B), of which the jackknife sees (4/B)(ζ₁ + ζ₂/B)
    linear = (count * sums.variance / 4 - spread / count).clamp_min(0)
    square = (sums.inner / quantile).square()
    needed = (2 * linear + (4 * linear.square() + 2 * spread * square).sqrt()) / square
    return _judge(gramian, level, sums, quantile * root(sums.variance), needed)


def running_conflict(
    state: ConflictSums | None, gramian: Float[Tensor, "n n"], tasks: int, level: Scalar = 0.95
) -> tuple[Conflict, ConflictSums]:
    """`conflict` over the steps so far, with intervals that hold at all steps at once.

    Who looks at 200 intervals of 95 % sees several that miss; this is a confidence *sequence*: with
    about the probability `level` no interval of the whole run misses, so that one may look at every
    step and stop at will. What is estimated is the mean over the steps so far of ⟨E g_s, E g_t⟩ at
    each step's own parameters; start with None again for another phase of training.

    Args:
        state: None at first, then what the step before returned.
        gramian: of this step's samples, as in `conflict`; steps may differ in their numbers.
        tasks: T.
        level: of all intervals of a pair together, in (0, 1).

    Returns:
        a `Conflict` as of `conflict`, whose `needed`, `effective` and `rare` count the samples of
        all steps, and the next state. Products are of samples of one step: `rare` is the share of
        which no step has two, and falls with the root of the number of steps.

    Raises:
        ValueError: as `conflict`, and for a state of another number of tasks.
        TypeError: for a state that is something else.

    Source:
        Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2021, the asymptotic confidence sequence
        (Lindeberg's form), with ρ² = 0.1: s√(2(tρ² + 1)/(t²ρ²) · log(√(tρ² + 1)/α)). Here s² is the
        mean of the jackknife's variances, so that drift of the gradients does not count as noise.

    Examples:
        >>> import torch
        >>> g = torch.tensor([[3.0, 0.0], [-2.0, 1.0], [2.0, 1.0], [-1.0, 0.0]] * 8)
        >>> state = None
        >>> for _ in range(3):
        ...     found, state = running_conflict(state, g @ g.mT, tasks=2)
        >>> found.verdict[0, 1].item(), int(state.steps)
        (-1, 3)
    """
    sums, _, level = _sums(gramian, tasks, level)
    if not isinstance(state, ConflictSums | None):
        raise TypeError(f"state: expected None or the last call's, got {type(state).__name__}")
    if state is not None:
        if state.inner.shape != sums.inner.shape:
            raise ValueError(
                f"state: it is of {len(state.inner)} tasks, and the Gramian of {tasks}; start "
                "with None"
            )
        sums = ConflictSums(*(old + new for old, new in zip(state, sums, strict=True)))
    time = sums.steps.to(sums.inner)
    grown = 1 + _RHO2 * time
    half = root(sums.variance / time)
    half = half * (2 * grown / (time.square() * _RHO2) * (grown.sqrt() / (1 - level)).log()).sqrt()
    needed = sums.samples * (half / (sums.inner / time)).square()
    return _judge(gramian, level, sums, half, needed), sums


_RHO2 = 0.1
"""Where the sequence is tightest: at about 1/ρ² · 10 steps."""


def _sums(gramian: Tensor, tasks: int, level: Scalar) -> tuple[ConflictSums, Tensor, Tensor]:
    """Of one step, in float64; ζ₂ `[task, task]`, the variance of one K_bc; and the level."""
    check_gramian(gramian, symmetric=True)
    check_scalar(level, "level", positive=True, below=1.0)
    blocks = by_samples(gramian, tasks, least=3).double()
    count = blocks.shape[-1]
    blocks = 0.5 * (blocks + blocks.mT)
    blocks = blocks - torch.diag_embed(blocks.diagonal(dim1=-2, dim2=-1))
    row = blocks.sum(-1)  # [task, task, sample]
    inner = row.sum(-1) / (count * (count - 1))
    # without sample b the mean is U + (U - 2 mean_c K_bc)/(B - 2), so far from the mean of all:
    apart = 2 * (row / (count - 1) - inner[..., None]) / (count - 2)
    terms = (count - 1) / count * apart.square()
    spread = blocks.square().sum((-2, -1)) / (count * (count - 1)) - inner.square()
    one = torch.ones((), dtype=torch.int64, device=gramian.device)
    sums = ConflictSums(one, count * one, inner, terms.sum(-1), terms.square().sum(-1))
    exact = torch.as_tensor(level, dtype=inner.dtype, device=inner.device)
    return sums, spread.clamp_min(0), exact


LEAST = 6
"""Effective samples that a verdict takes. On 32 samples of Gaussian noise it withholds one verdict
in a hundred; with one strong sample among them there are one or two.
"""


def _rare(level: Tensor, steps: Tensor, samples: Tensor) -> Tensor:
    """The share p of samples of which no step has two, with a probability of 1 - level, if steps
    have equal numbers of samples: by bisection, (1 - p)^(B - 1)·(1 + (B - 1)p) being the chance.
    """
    others = samples / steps - 1
    wanted = (1 - level).log() / steps
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(40):
        p = (low + high) / 2
        misses = others * torch.log1p(-p) + torch.log1p(others * p) > wanted
        low, high = torch.where(misses, p, low), torch.where(misses, high, p)
    return high


def _student(level: Tensor, freedom: int) -> Tensor:
    """Student's quantile √ν tan θ of a two-sided interval; the probability is a finite sum in θ."""
    powers = torch.arange(freedom % 2, freedom, 2).to(level)
    factors = torch.cat([powers[:1] ** 0, (1 - 1 / powers[1:]).cumprod(0)])
    low, high = torch.zeros_like(level), torch.full_like(level, math.pi / 2)
    for _ in range(60):
        angle = (low + high) / 2
        within = angle.sin() * (factors * angle.cos() ** powers).sum()
        within = 2 / math.pi * (angle + within) if freedom % 2 else within
        low, high = angle.where(within < level, low), high.where(within < level, angle)
    return freedom**0.5 * high.tan()


def _judge(
    gramian: Tensor, level: Tensor, sums: ConflictSums, half: Tensor, needed: Tensor
) -> Conflict:
    time = sums.steps.to(sums.inner)
    inner, rare = sums.inner / time, _rare(level, time, sums.samples.to(sums.inner))
    # how many equal terms have this sum and this sum of squares; all samples where it is 0
    flat = sums.fourth == 0
    ratio = sums.variance.square() / sums.fourth.where(~flat, 1.0)
    effective = torch.where(flat, sums.samples, ratio)
    low, high = inner - half, inner + half
    verdict = (low > 0).to(torch.int8) - (high < 0).to(torch.int8)
    verdict = verdict * (effective >= LEAST)
    length = root(inner.diagonal())
    seen = low.diagonal() > 0
    cosine = (inner / length[:, None] / length).clamp(-1, 1)
    cosine = cosine.where(seen[:, None] & seen, torch.nan)
    needed = torch.where(inner == 0, torch.inf, needed)

    def given(x: Tensor) -> Tensor:
        return poison(x.to(gramian.dtype), gramian)

    inner, low, high, cosine, needed = map(given, (inner, low, high, cosine, needed))
    rare = rare.to(gramian.dtype)
    return Conflict(inner, low, high, cosine, needed, verdict, given(effective), rare)
