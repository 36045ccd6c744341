"""Gramians rounded as on another processor: every product of a matrix with its own transpose gets
last-bit noise.
The order in which a product of matrices is summed is the processor's and its library's, and with it
the last bits. Whatever hangs on them is wrong somewhere else. `nudged(seed)` adds z·2⁻⁵²·(|J||J|ᵀ)
(2⁻²³ in float32), z one of -1, 0, 1, to the entries of every product J Jᵀ, wherever it is made
(package, tests, under transforms, inside torch), symmetrically. (|J||J|ᵀ)ᵢⱼ is the scale of a sum's
rounding error, at most √(Gᵢᵢ Gⱼⱼ): noise in units of Gᵢⱼ would leave right angles alone. Equal
operands get equal noise, as they do on one processor. Entries whose (|J||J|ᵀ)ᵢⱼ ends in zeros stay:
small integers, and gradients without a common parameter, are exact everywhere.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

BITS = {
    torch.float64: (torch.int64, 2.0**-52, 2**12 - 1, 0x7FF << 52),
    torch.float32: (torch.int32, 2.0**-23, 2**6 - 1, 0xFF << 23),
}
"""The integers of the same size, one unit in the last place of 1, the bits that are zero where a
sum of few short numbers is exact, the bits of the exponent.
"""


def noise(product: Tensor, size: Tensor, seed: int) -> Tensor:
    """`product` [..., T, T] with last-bit noise that its digits, the place and the seed decide."""
    integer, unit, ending, exponent = BITS[product.dtype]

    def bits(matrix: Tensor) -> Tensor:
        lower = matrix.tril() + matrix.tril(-1).mT
        return lower.contiguous().view(integer).to(torch.int64)

    place = torch.arange(product.shape[-1])
    low, high = torch.minimum(place, place[:, None]), torch.maximum(place, place[:, None])
    mixed = (bits(product) & ~exponent) + 0x1B873593 * (1 + seed + 131 * low + 16381 * high)
    for shift in (30, 27, 31):
        mixed = (mixed ^ (mixed >> shift)) * 0x5851F42D4C957F2D
    z = torch.remainder(mixed >> 33, 3) - 1
    size = size.tril() + size.tril(-1).mT
    return product + unit * size * torch.where(bits(size) & ending == 0, 0, z).to(product.dtype)


@contextmanager
def nudged(seed: int) -> Iterator[None]:
    """Noise on every Gramian that a CPU makes in float32 or float64."""

    def own(left: Tensor, right: Tensor) -> bool:
        return (
            left.dtype in BITS
            and left.shape == right.mT.shape
            and left.numel() > 0
            and torch.equal(left, right.mT)
        )

    def mm(left: Tensor, right: Tensor) -> Tensor:
        out = left.new_empty(left.shape[0], right.shape[1])
        torch.ops.aten.mm.out(left, right, out=out)
        if not own(left, right):
            return out
        size = torch.empty_like(out)
        return noise(out, torch.ops.aten.mm.out(left.abs(), right.abs(), out=size), seed)

    def bmm(left: Tensor, right: Tensor) -> Tensor:
        out = left.new_empty(*left.shape[:2], right.shape[2])
        torch.ops.aten.bmm.out(left, right, out=out)
        if not own(left, right):
            return out
        size = torch.empty_like(out)
        return noise(out, torch.ops.aten.bmm.out(left.abs(), right.abs(), out=size), seed)

    # the kernels themselves, below autograd and functorch
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*[Oo]verriding a previously registered kernel.*")
        library.impl("mm", mm, "CPU")
        library.impl("bmm", bmm, "CPU")
    try:
        yield
    finally:
        library._destroy()
