"""Gramians rounded as on another processor: every product of a matrix with its own transpose gets
last-bit noise.

The order in which a product of matrices is summed is the processor's and its library's, and with it
the last bits. Whatever hangs on them is wrong somewhere else. `nudged(seed)` multiplies the entries
of every such product, wherever it is made (package, tests, under transforms, inside torch), by
1 + z·2⁻⁵² (2⁻²³ in float32), z one of -1, 0, 1, symmetrically. Equal operands get equal noise, as
they do on one processor. Entries that end in zeros stay: small integers are exact everywhere.

`MTLFUNC_NUDGE=1 python -m pytest …` runs any test so; seeds are integers.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

BITS = {
    torch.float64: (torch.int64, 2.0**-52, 2**12 - 1),
    torch.float32: (torch.int32, 2.0**-23, 2**6 - 1),
}
"""The integers of the same size, one unit in the last place of 1, the bits that are zero where a
sum of few short numbers is exact.
"""


def noise(product: Tensor, seed: int) -> Tensor:
    """`product` [..., T, T] with last-bit noise that depends on its bits, the place and the seed
    alone.
    """
    integer, unit, ending = BITS[product.dtype]
    lower = product.tril() + product.tril(-1).mT
    bits = lower.contiguous().view(integer).to(torch.int64)
    place = torch.arange(product.shape[-1])
    low, high = torch.minimum(place, place[:, None]), torch.maximum(place, place[:, None])
    mixed = bits + 0x1B873593 * (1 + seed + 131 * low + 16381 * high)
    for shift in (30, 27, 31):
        mixed = (mixed ^ (mixed >> shift)) * 0x5851F42D4C957F2D
    z = torch.remainder(mixed >> 33, 3) - 1
    return product * (1 + unit * torch.where(bits & ending == 0, 0, z).to(product.dtype))


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
        return noise(out, seed) if own(left, right) else out

    def bmm(left: Tensor, right: Tensor) -> Tensor:
        out = left.new_empty(*left.shape[:2], right.shape[2])
        torch.ops.aten.bmm.out(left, right, out=out)
        return noise(out, seed) if own(left, right) else out

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
