"""Counter-based random numbers: a key is an int64 tensor, so a seed vmaps like any other tensor.

`torch.Generator` cannot be batched. Here every number is a hash (the finaliser of splitmix64) of a
key and a position: the same key gives the same numbers alone, vmapped and compiled, on every
device. A plain key on a CPU, the case of an ordinary training loop, is hashed in Python's integers
and NumPy's instead of some thirty operations in torch.
"""

import math
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .checks import check_dtype
from .transforms import is_readable

__all__ = ["draw", "fold_in", "key", "normal", "permutation", "stream", "uniform"]
__dir__: Any = __all__.copy  # for completion: public names alone


_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_HIGH, _LOW = 0x9E3779B9, 0x7F4A7C15  # its halves
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB
_POSITIVE = 2**63 - 1

_library = torch.library.Library("mtlfunc", "FRAGMENT")
_library.define("from_memory(Tensor x) -> Tensor")
_library.impl("from_memory", torch.clone, "CompositeExplicitAutograd")
torch.library.register_fake("mtlfunc::from_memory", torch.empty_like, lib=_library)
torch.library.register_vmap(
    "mtlfunc::from_memory",
    lambda info, dims, x: (torch.ops.mtlfunc.from_memory(x), dims[0]),
    lib=_library,
)


class Stream(NamedTuple):
    """A key and how many draws were taken from it: the state of whatever draws once per step."""

    key: Int[Tensor, ""]
    drawn: Int[Tensor, ""]


def key(seed: int | Tensor, device: torch.device | str | None = None) -> Int[Tensor, ""]:
    """A key from a seed.

    Args:
        seed: an integer from -2**63 to 2**63 - 1, or a 0-d integer tensor, which may be batched.
        device: of the key; None is the seed's, or the CPU.

    Returns:
        a 0-d int64 tensor.

    Raises:
        TypeError: for a seed that is not an integer.
        ValueError: for a tensor with dimensions, or a number out of that range.

    Examples:
        >>> int(key(3)) == int(key(torch.tensor(3)))
        True
    """
    if isinstance(seed, Tensor):
        if seed.is_floating_point() or seed.is_complex() or seed.dtype == torch.bool:
            raise TypeError(f"key: expected an integer seed, got a tensor of dtype {seed.dtype}")
        if seed.ndim:
            raise ValueError(
                f"key: expected a 0-d tensor, got shape {list(seed.shape)}; batch over seeds "
                "with torch.func.vmap"
            )
        return seed.to(device=device, dtype=torch.int64)
    if isinstance(seed, bool) or not isinstance(seed, Integral):  # NumPy's integers, too
        raise TypeError(f"key: expected an integer seed, got {type(seed).__name__}")
    seed = int(seed)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"key: expected a seed from -2**63 to 2**63 - 1, got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=device)


def fold_in(key: Int[Tensor, ""], data: int | Tensor) -> Int[Tensor, ""]:
    """A new key from a key and a number; different numbers give independent keys.

    Args:
        key: a 0-d int64 tensor (see `key`), which may be batched.
        data: an integer, or an integer tensor.

    Returns:
        a 0-d int64 tensor.

    Examples:
        >>> int(fold_in(key(0), 1)) == int(fold_in(key(0), 2))
        False
    """
    if _is_plain(key, data):
        folded = _hash(_hash(int(key) + _GOLDEN) ^ _hash(int(data) + _FIRST))
        return torch.from_numpy(np.array(folded, np.int64))
    _expect_key(key)
    key, data = _from_memory(key), _from_memory(data * torch.ones_like(key))
    return _hash(_hash(key + _GOLDEN) ^ _hash(data + _FIRST))


def stream(key: Int[Tensor, ""]) -> Stream:
    """The start of a stream of draws, for rules and probes that draw once per step.

    Args:
        key: a 0-d int64 tensor (see `key`), which may be batched.

    Returns:
        the key, with no draw taken.

    Examples:
        >>> int(stream(key(0)).drawn)
        0
    """
    return Stream(key, torch.zeros_like(key))


def draw(stream: Stream) -> tuple[Int[Tensor, ""], Stream]:
    """The key of this draw, and the stream after it.

    Args:
        stream: of `stream`, or of the last draw.

    Returns:
        a 0-d int64 key, and the stream to keep.

    Examples:
        >>> first, after = draw(stream(key(0)))
        >>> int(first) == int(fold_in(key(0), 0)), int(after.drawn)
        (True, 1)
    """
    key, drawn = stream
    return fold_in(key, drawn), Stream(key, drawn + 1)


def uniform(
    key: Int[Tensor, ""], shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """Numbers in [0, 1), with as many bits as the dtype holds.

    Args:
        key: a 0-d int64 tensor (see `key`), which may be batched.
        shape: of the answer.
        dtype: floating.

    Returns:
        a tensor of that shape; the same for the same key, alone, vmapped or compiled.

    Examples:
        >>> x = uniform(key(0), (3,))
        >>> bool(((0 <= x) & (x < 1)).all())
        True
    """
    check_dtype(dtype, "dtype")
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))  # more would round up to 1
    return (_bits(key, shape, digits).to(torch.float64) * 2.0**-digits).to(dtype)


def normal(
    key: Int[Tensor, ""], shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """Standard normal numbers, by inversion.

    Args:
        key: a 0-d int64 tensor (see `key`), which may be batched.
        shape: of the answer.
        dtype: floating.

    Returns:
        a tensor of that shape; the same for the same key, alone, vmapped or compiled.

    Examples:
        >>> normal(key(0), (2, 3)).shape
        torch.Size([2, 3])
    """
    check_dtype(dtype, "dtype")
    middle = (_bits(key, shape, 53).to(torch.float64) + 0.5) * 2.0**-52
    return (torch.erfinv(middle - 1) * math.sqrt(2)).to(dtype)


def permutation(key: Int[Tensor, ""], n: int, rows: int | None = None) -> Int[Tensor, "..."]:
    """A random order of 0 … n-1, or several independent ones.

    Args:
        key: a 0-d int64 tensor (see `key`), which may be batched.
        n: how many there are to order.
        rows: how many orders; None is one, without an axis for it.

    Returns:
        int64 `[n]`, or `[rows, n]`.

    Examples:
        >>> sorted(permutation(key(0), 4).tolist())
        [0, 1, 2, 3]
    """
    x = uniform(key, (n,) if rows is None else (rows, n), torch.float64)
    if not torch.compiler.is_compiling() or n > _MOST_COMPARED:
        return x.argsort(-1)
    # Triton 3.6 does not compile a sort that is fused with the hash.
    tasks = torch.arange(n, device=x.device)
    first, second = x.unsqueeze(-2), x.unsqueeze(-1)
    ahead = (first < second) | ((first == second) & (tasks < tasks[:, None]))
    return torch.zeros_like(x, dtype=torch.int64).scatter(-1, ahead.sum(-1), tasks.expand(x.shape))


_MOST_COMPARED = 128
"""Up to so many numbers a compiled program compares each with all instead of sorting them."""


def _expect_key(x: Any) -> None:
    """Raise for what would give other numbers than the same seed."""
    if not isinstance(x, Tensor) or x.dtype is not torch.int64 or x.ndim:
        given = f"{x.dtype}, {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"key: expected a 0-d int64 tensor, got {given}; use mtlfunc.random.key(seed), and "
            "torch.func.vmap for several"
        )


def _is_plain(*numbers: Any) -> bool:
    """Whether these 64-bit integers can be read: on a CPU, no transform, no tracer, no compiler."""
    for x in numbers:
        if type(x) is Tensor:
            if x.ndim or x.dtype is not torch.int64 or not is_readable(x):
                return False
        elif type(x) is not int or not -(2**63) <= x < 2**63:
            return False
    return True


def _bits(key: Tensor, shape: int | tuple[int, ...], digits: int) -> Tensor:
    """Whole numbers of so many random bits."""
    count, plain = math.prod((shape,) if isinstance(shape, int) else shape), _is_plain(key)
    if plain:
        start, position = int(key), np.arange(1, count + 1, dtype=np.int64)
    else:
        _expect_key(key)
        start, position = _from_memory(key), torch.arange(1, count + 1, device=key.device)
    # Times the golden ratio modulo 2**64, in halves whose products stay inside int64. The mask
    # changes nothing; it keeps inductor from multiplying positions itself, in 32 bits or in Python.
    position = position & _POSITIVE
    product = position * _LOW + ((position * _HIGH) << 32)
    found = _shift(_hash(_hash(start + _GOLDEN) + product), 64 - digits)
    return (torch.from_numpy(found) if plain else found).reshape(shape)


def _from_memory(key: Tensor) -> Tensor:
    """The key, of which a C++ compiler may know nothing.

    inductor writes signed products, whose overflow the compiler takes for impossible: where it
    knows the factors, as of a constant key, it ends loops early or makes up a value.
    """
    compiled = torch.compiler.is_compiling() and key.device.type == "cpu"
    return torch.ops.mtlfunc.from_memory(key) if compiled else key


def _hash(x: Any) -> Any:
    """The finaliser of splitmix64, of a tensor, an array of NumPy or an integer."""
    x = _wrap(x)
    x = _wrap((x ^ _shift(x, 30)) * _FIRST)
    x = _wrap((x ^ _shift(x, 27)) * _SECOND)
    return x ^ _shift(x, 31)


def _wrap(x: Any) -> Any:
    """Modulo 2**64, as tensors and arrays of int64 do by themselves."""
    return (x + 2**63) % 2**64 - 2**63 if isinstance(x, int) else x


def _shift(x: Any, n: int) -> Any:
    return (x >> n) & ((1 << (64 - n)) - 1)  # a logical shift: int64's own carries the sign
